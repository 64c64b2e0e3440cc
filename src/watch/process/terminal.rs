//! The terminal of a child: a pseudoterminal (pty(7)) of which the daemon has the master's end.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, Winsize, tcgetattr,
    tcgetpgrp, tcsetattr, tcsetwinsize,
};

use super::{Process, STDIN, STDOUT};
use crate::driver::{Lane, Nonblocking};
use crate::error::{Error, Result, SystemError};
use crate::event::{Kind, Resized, Stream, StreamEndReason, largest};
use crate::proto::{TerminalSize, TerminalStatus};
use crate::watch::Context;
use crate::watch::transport::{Incoming, Outgoing};

/// The most bytes of a line that is edited in a terminal. The kernel drops those beyond, and says
/// nothing (termios(3), canonical mode).
const LINE_MAX: usize = 4095;

/// A new pseudoterminal.
#[derive(Debug)]
pub(super) struct Pty {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
    pub(super) size: TerminalSize,
}

impl Pty {
    /// Opens a pseudoterminal of that size, whose master does not block.
    ///
    /// # Errors
    /// The step `pty`, and the errno: ENOSPC if the host has as many as `kernel.pty.max` allows.
    pub(super) fn open(size: TerminalSize) -> Result<Self, SystemError> {
        let failed = |errno| {
            let detail = match errno {
                Errno::NOSPC => "the host has as many terminals as kernel.pty.max allows",
                _ => "",
            };
            SystemError::new(errno, "pty", detail)
        };
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).map_err(failed)?;
        let opened = unlockpt(&master).and_then(|()| {
            let slave = ioctl_tiocgptpeer(&master, flags)?;
            tcsetwinsize(&master, winsize(size))?;
            let mut modes = tcgetattr(&slave)?;
            // Erasing a character of several bytes erases all of them.
            modes.input_modes |= InputModes::IUTF8;
            tcsetattr(&slave, OptionalActions::Now, &modes)?;
            rustix::io::ioctl_fionbio(master.as_fd(), true)?;
            Ok(slave)
        });
        let slave = opened.map_err(failed)?;
        Ok(Self {
            master,
            slave,
            size,
        })
    }
}

fn winsize(size: TerminalSize) -> Winsize {
    let short = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Winsize {
        ws_row: short(size.rows),
        ws_col: short(size.columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// The terminal of a running child.
#[derive(Debug)]
pub(super) struct Terminal {
    /// A duplicate of the master, for what is asked and set; the driver has the master itself.
    control: OwnedFd,
    /// The other end, open until the child has ended: while nobody has it open, the master cannot
    /// be read, and somebody may open it again.
    pub(super) slave: Option<OwnedFd>,
    pub(super) size: TerminalSize,
    /// The bytes of the last, unfinished line of the input.
    line: usize,
}

impl Terminal {
    pub(super) fn new((control, slave): (OwnedFd, OwnedFd), size: TerminalSize) -> Self {
        Self {
            control,
            slave: Some(slave),
            size,
            line: 0,
        }
    }

    fn modes(&self) -> Result<Termios> {
        let modes = tcgetattr(&self.control);
        modes.map_err(|errno| SystemError::new(errno, "tcgetattr", "").into())
    }

    /// Returns the bytes of the unfinished line after this input.
    ///
    /// # Errors
    /// The terminal edits lines, and one is longer than it can hold.
    pub(super) fn line_after(&self, input: &[u8]) -> Result<usize> {
        let modes = self.modes()?;
        if !modes.local_modes.contains(LocalModes::ICANON) {
            return Ok(0);
        }
        let code = |index| modes.special_codes[index];
        let ends = [
            b'\n',
            b'\r',
            code(SpecialCodeIndex::VEOF),
            code(SpecialCodeIndex::VEOL),
            code(SpecialCodeIndex::VKILL),
            code(SpecialCodeIndex::VINTR),
            code(SpecialCodeIndex::VQUIT),
        ];
        let mut line = self.line;
        for byte in input {
            line = if ends.contains(byte) { 0 } else { line + 1 };
            if line > LINE_MAX {
                return Err(Error::wrong_state(
                    "the terminal edits lines, and holds at most 4095 bytes of one: the line is longer",
                ));
            }
        }
        Ok(line)
    }

    pub(super) const fn set_line(&mut self, line: usize) {
        self.line = line;
    }

    /// Returns what ends the input of whoever reads the terminal.
    ///
    /// # Errors
    /// The terminal does not edit lines: no byte means the end.
    pub(super) fn end_of_input(&self) -> Result<Vec<u8>> {
        let modes = self.modes()?;
        let end = modes.special_codes[SpecialCodeIndex::VEOF];
        if !modes.local_modes.contains(LocalModes::ICANON) || end == 0 {
            return Err(Error::wrong_state(
                "the terminal is in raw mode, in which nothing means the end of the input",
            ));
        }
        // The first one only hands an unfinished line over.
        let count = if self.line > 0 { 2 } else { 1 };
        Ok(vec![end; count])
    }

    /// Changes the size. Returns whether it is another one.
    fn resize(&mut self, size: TerminalSize) -> Result<bool> {
        if size == self.size {
            return Ok(false);
        }
        let set = tcsetwinsize(&self.control, winsize(size));
        set.map_err(|errno| SystemError::new(errno, "resize", ""))?;
        self.size = size;
        Ok(true)
    }

    fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(&self.control).ok()
    }
}

impl Process {
    pub(super) fn resize_terminal(
        &mut self,
        cx: &mut Context<'_>,
        size: TerminalSize,
    ) -> Result<()> {
        let terminal = self.terminal.as_mut().ok_or_else(no_terminal)?;
        cx.reserve_event(largest::RESIZED)?;
        let resized = terminal.resize(size);
        cx.release_event(largest::RESIZED);
        if resized? {
            cx.emit(Kind::Resized(Resized { size: Some(size) }));
        }
        Ok(())
    }

    /// Gives the terminal to the driver, as stdout and, if it is, as stdin.
    pub(super) fn attach_terminal(&mut self, cx: &mut Context<'_>) {
        let Some(Pty {
            master,
            slave,
            size,
        }) = self.pty.take()
        else {
            return;
        };
        let control = rustix::io::fcntl_dupfd_cloexec(&master, 0);
        let (Ok(control), Some(source)) = (control, cx.attach(master, Nonblocking::Own)) else {
            cx.fail(Errno::MFILE, "pty");
            return;
        };
        self.terminal = Some(Terminal::new((control, slave), size));
        self.outputs[0] = Some(Incoming::new(STDOUT, source, Stream::Stdout, false));
        if self.typed_into {
            self.stdin = Some(Outgoing::new(STDIN, source, self.stdin_marks));
        }
    }

    /// Returns whether the stream of a lane is the terminal.
    pub(super) fn is_terminal(&self, lane: Lane) -> bool {
        lane == STDOUT && self.terminal.is_some()
    }

    /// The terminal has nothing more to read, and nobody has it open: that is its end if the child
    /// has ended, too.
    pub(super) fn end_terminal(&mut self, cx: &mut Context<'_>) {
        let closed = self.terminal.as_ref().is_some_and(|t| t.slave.is_none());
        if closed {
            self.end_stream(cx, STDOUT, StreamEndReason::Eof);
        } else if let Some(output) = &mut self.outputs[0] {
            // The child has hung it up by vhangup(2), or has ended and its end is still to come.
            output.ended = false;
            self.check_exit_later(cx);
        }
    }

    /// Tries to read again a terminal that was hung up.
    pub(super) fn look_at_terminal(&self, cx: &mut Context<'_>) {
        if self.terminal.is_some()
            && let [Some(output), _] = &self.outputs
        {
            output.start(cx);
        }
    }

    /// Lets go of the end of the terminal that kept it readable, since the child has ended.
    pub(super) fn leave_terminal(&mut self, cx: &mut Context<'_>) {
        if let Some(terminal) = &mut self.terminal {
            terminal.slave = None;
            self.look_at_terminal(cx);
        }
    }

    /// Types the end of the input, after all that was written before it.
    pub(super) fn type_end(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let ended = || Error::wrong_state("stdin is closed");
        let stdin = self.stdin.as_mut().ok_or_else(ended)?;
        let terminal = self.terminal.as_mut().ok_or_else(no_terminal)?;
        let end = terminal.end_of_input()?;
        stdin.insert(cx, end.into());
        terminal.set_line(0);
        Ok(())
    }

    /// Sends a signal to the process group in the terminal's foreground.
    pub(super) fn signal_foreground(&self, number: i32) -> Result<(), Errno> {
        let terminal = self.terminal.as_ref().ok_or(Errno::NOTTY)?;
        let group = terminal.foreground().ok_or(Errno::SRCH)?;
        // A group in the foreground of this terminal is one of this session, and no other.
        let signal = nix::sys::signal::Signal::try_from(number).map_err(|_| Errno::INVAL)?;
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group.as_raw_pid()), signal)
            .map_err(|errno| Errno::from_raw_os_error(errno as i32))
    }

    pub(super) fn terminal_status(&self) -> Option<TerminalStatus> {
        let terminal = self.terminal.as_ref()?;
        let foreground = terminal.foreground().map_or(0, Pid::as_raw_pid);
        let modes = terminal.modes().ok();
        let signals = modes.is_some_and(|modes| modes.local_modes.contains(LocalModes::ISIG));
        Some(TerminalStatus {
            size: Some(terminal.size),
            foreground_group: foreground,
            suspends_leader: signals && foreground == self.pid,
        })
    }
}

pub(super) fn no_terminal() -> Error {
    Error::wrong_state("the process has no terminal")
}
