//! The user's own terminal: its size, its keys, and its modes, which are left as they were found.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Signal, kill_current_process_group};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::proto::TerminalSize;
use crate::sys::async_fd;

/// The most bytes of one read; a terminal gives no more at once.
const READ: usize = 4096;
/// The most bytes of one input, as the daemon takes them.
const INPUT: usize = 64 * 1024;

/// The controlling terminal, by a description of its own: it can be made non-blocking without a
/// change for the other programs that have the terminal as their standard streams.
#[derive(Debug)]
pub(in crate::ctl) struct Local {
    tty: AsyncFd<Arc<OwnedFd>>,
    /// The modes to restore, while the terminal is raw.
    cooked: Option<Termios>,
}

impl Local {
    /// Opens the controlling terminal.
    ///
    /// # Errors
    /// Those of open(2): ENXIO if there is none.
    pub(in crate::ctl) fn open() -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let tty = rustix::fs::open(c"/dev/tty", flags, Mode::empty())?;
        let tty = async_fd(Arc::new(tty), Interest::READABLE)?;
        Ok(Self { tty, cooked: None })
    }

    /// Returns whether evloopctl is in the terminal's foreground.
    pub(in crate::ctl) fn is_foreground(&self) -> bool {
        is_foreground(&self.tty) == Some(true)
    }

    /// Returns the size of the terminal; `None` if it has none.
    pub(in crate::ctl) fn size(&self) -> Option<TerminalSize> {
        size_of(&self.tty)
    }

    /// Makes the terminal pass every key on as it is, unless it does so already.
    ///
    /// # Errors
    /// Those of tcsetattr(3).
    pub(in crate::ctl) fn make_raw(&mut self) -> io::Result<()> {
        if self.cooked.is_none() {
            let cooked = tcgetattr(&self.tty)?;
            let mut raw = cooked.clone();
            raw.make_raw();
            tcsetattr(&self.tty, OptionalActions::Now, &raw)?;
            self.cooked = Some(cooked);
        }
        Ok(())
    }

    /// Restores the modes.
    pub(in crate::ctl) fn restore(&mut self) {
        if let Some(cooked) = self.cooked.take() {
            // A terminal that is gone has no modes.
            let _ = tcsetattr(&self.tty, OptionalActions::Now, &cooked);
        }
    }

    /// Waits for keys. Nothing is lost if it is cancelled.
    ///
    /// # Errors
    /// The terminal is closed.
    pub(in crate::ctl) async fn read(&self) -> io::Result<Vec<u8>> {
        let read = |tty: &Arc<OwnedFd>| {
            let mut keys = vec![0; READ];
            let mut len = rustix::io::read(tty, &mut keys)?;
            // What is pasted is one input, so that it is refused as a whole or not at all.
            while len > 0 && len + READ <= INPUT {
                keys.resize(len + READ, 0);
                match rustix::io::read(tty, &mut keys[len..]) {
                    Ok(more) if more > 0 => len += more,
                    _ => break,
                }
            }
            keys.truncate(len);
            Ok(keys)
        };
        let keys = self.tty.async_io(Interest::READABLE, read).await?;
        if keys.is_empty() {
            return Err(Errno::IO.into());
        }
        Ok(keys)
    }

    /// Stops the job, as Ctrl-Z does in a shell. Returns once it is continued.
    ///
    /// # Errors
    /// Those of kill(2).
    pub(in crate::ctl) fn stop_job(&self) -> io::Result<()> {
        Ok(kill_current_process_group(Signal::TSTP)?)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Returns the size of the user's terminal, if there is one.
pub(in crate::ctl) fn local_size() -> Option<TerminalSize> {
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    let tty = rustix::fs::open(c"/dev/tty", flags, Mode::empty()).ok()?;
    size_of(tty)
}

fn size_of(tty: impl AsFd) -> Option<TerminalSize> {
    let size = tcgetwinsize(tty).ok()?;
    let [rows, columns] = [size.ws_row, size.ws_col].map(|number| u32::from(number.min(1000)));
    (rows > 0 && columns > 0).then_some(TerminalSize { rows, columns })
}

/// Returns whether stdin, stdout and stderr are one terminal, in whose foreground evloopctl is.
pub(in crate::ctl) fn is_one_terminal() -> bool {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    let device = |fd| rustix::fs::fstat(fd).ok().map(|stat| stat.st_rdev);
    let terminal = device(streams[0]);
    let same = |fd| isatty(fd) && terminal.is_some() && device(fd) == terminal;
    streams.into_iter().all(same) && is_foreground(streams[0]) == Some(true)
}

/// Returns whether evloopctl is in the foreground of a terminal; `None` if `fd` is not its controlling terminal.
pub(in crate::ctl) fn is_foreground(fd: impl AsFd) -> Option<bool> {
    let foreground = match tcgetpgrp(fd) {
        Ok(group) => group.as_raw_pid(),
        // A group outside evloopctl's pid namespace.
        Err(Errno::OPNOTSUPP) => 0,
        Err(_) => return None,
    };
    Some(foreground == nix::unistd::getpgrp().as_raw())
}
