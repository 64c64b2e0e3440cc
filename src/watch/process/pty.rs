//! A new pseudoterminal (pty(7)).

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::error::{Result, SystemError};
use crate::proto::TerminalSize;
use crate::sys::{self, Credentials};

/// A new pseudoterminal.
#[derive(Debug)]
pub(super) struct Opened {
    /// For the driver, which waits on it.
    pub(super) master: OwnedFd,
    /// The same open file, for all else.
    pub(super) control: OwnedFd,
    pub(super) slave: OwnedFd,
}

impl Opened {
    /// Opens a pseudoterminal of that size, for that user (`None`: the daemon's own).
    ///
    /// # Errors
    /// The system refuses; ENOSPC if the host has as many as `kernel.pty.max` allows.
    pub(super) fn open(
        size: TerminalSize,
        user: Option<&Credentials>,
    ) -> Result<Self, SystemError> {
        let failed = |errno| {
            let detail = match errno {
                Errno::NOSPC => "the host has as many terminals as kernel.pty.max allows",
                _ => "",
            };
            SystemError::new(errno, "pty", detail)
        };
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let open = || {
            let master = openpt(flags)?;
            unlockpt(&master)?;
            rustix::io::ioctl_fionbio(&master, true)?;
            sys::set_packet_mode(master.as_fd(), true)?;
            let slave = ioctl_tiocgptpeer(&master, flags)?;
            let mut modes = tcgetattr(&slave)?;
            modes.input_modes.insert(InputModes::IUTF8);
            tcsetattr(&slave, OptionalActions::Now, &modes)?;
            tcsetwinsize(&slave, winsize(size))?;
            if let Some(user) = user {
                rustix::fs::fchown(&slave, Some(user.uid), Some(user.gid))?;
            }
            rustix::fs::fchmod(&slave, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
            let control = rustix::io::fcntl_dupfd_cloexec(&master, 3)?;
            Ok(Self {
                master,
                control,
                slave,
            })
        };
        open().map_err(failed)
    }
}

pub(super) fn winsize(size: TerminalSize) -> Winsize {
    let short = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Winsize {
        ws_row: short(size.rows),
        ws_col: short(size.columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
