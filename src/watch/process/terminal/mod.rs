//! The terminal of a child: its output, what is typed into it, its size.
//!
//! The daemon has the terminal open itself until the child has ended. So reading does not fail while
//! no process has it open (a program may close it and open it again by its name), and the end of its
//! output comes after the child's end.

use std::cell::RefCell;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use nix::libc;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{tcgetattr, tcgetpgrp, tcgetwinsize, tcsetwinsize};

pub use self::kept::EarlierTerminal;
use super::STDIN;
use super::pty::{Opened, winsize};
use super::relay::Relay;
use super::typed::{LINE_MAX, Line, Modes};
use crate::driver::{Direction, Op, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{Kind, Resized, largest};
use crate::proto::{TerminalSize, TerminalStatus};
use crate::sys;
use crate::watch::transport::{Ended, Incoming, fresh};
use crate::watch::water::{Gauge, WaterMarks};
use crate::watch::{Context, Taken};

mod kept;

/// The bytes that are read at once; the kernel holds about 20 KiB.
const AT_ONCE: usize = 32 * 1024;
/// The most bytes that are read before a byte is typed that makes the kernel drop output. A program
/// that writes faster loses some.
const BEFORE_DROP: usize = 64 * 1024;
/// The room in the journal without which nothing is read.
const ROOM: u32 = 4096;
/// The most reports of packet mode in a row.
const REPORTS_AT_ONCE: usize = 64;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The terminal of a child, until its output has ended.
#[derive(Debug)]
pub(in crate::watch::process) struct Terminal {
    control: OwnedFd,
    /// Kept open until the child has ended.
    slave: Option<OwnedFd>,
    size: TerminalSize,
    /// `None` if stdin is not the terminal, or nobody reads it any more.
    typing: Option<Typing>,
    pub(super) flushes: u64,
    flushed_at: u64,
    /// What is read through a pipe that later lives find, and typed from a file that they find. `None` if
    /// they do not go on with it.
    relay: Option<Relay>,
}

/// What is typed.
#[derive(Debug)]
struct Typing {
    /// The terminal's source in the driver.
    source: SourceId,
    taken: u64,
    line: Line,
    /// The number of end-of-file bytes that wait until the terminal takes them.
    eofs: u8,
    gauge: Gauge,
}

/// Why reading stopped.
enum Stop {
    Empty,
    /// The kernel has dropped output here.
    Flushed,
    Ended(Ended),
}

impl Terminal {
    /// Returns the terminal of a child that was started, and the descriptor for the driver.
    pub(super) fn new(opened: Opened, size: TerminalSize) -> (Self, OwnedFd) {
        let Opened {
            master,
            control,
            slave,
        } = opened;
        let terminal = Self {
            control,
            slave: Some(slave),
            size,
            typing: None,
            flushes: 0,
            flushed_at: 0,
            relay: None,
        };
        (terminal, master)
    }

    /// Makes what later lives need, if they go on with the loop.
    pub(super) fn survive(&mut self, cx: &Context<'_>) {
        if cx.relays.survive() {
            // Without descriptors for it, the terminal ends with the daemon.
            self.relay = Relay::new().ok();
        }
    }

    /// Lets clients type. The driver has the terminal as that source.
    pub(super) fn take_input(&mut self, source: SourceId) {
        self.typing = Some(Typing {
            source,
            taken: 0,
            line: Line::default(),
            eofs: 0,
            // Nothing waits in the daemon: a write pauses when the terminal takes less.
            gauge: Gauge::new(WaterMarks::with_high(0)),
        });
    }

    /// The child has ended: its output ends once no other process has the terminal open.
    pub(super) fn child_ended(&mut self, cx: &mut Context<'_>) {
        cx.close_files(self.slave.take().into_iter().collect());
        self.typing = None;
    }

    /// Returns the descriptor from which the rest of the output can be read, without packet mode.
    pub(super) fn into_rest(self, cx: &mut Context<'_>) -> OwnedFd {
        // It fails only for a descriptor that is no master.
        let _ = sys::set_packet_mode(self.control.as_fd(), false);
        let relay = self.relay.into_iter().flat_map(Relay::into_files);
        cx.close_files(self.slave.into_iter().chain(relay).collect());
        self.control
    }

    /// Ends it with the turn.
    pub(super) fn close(self, cx: &mut Context<'_>) {
        let relay = self.relay.into_iter().flat_map(Relay::into_files);
        let files = self.slave.into_iter().chain(relay);
        cx.close_files(files.chain([self.control]).collect());
    }

    /// Reads what is there, as far as there is room, and appends it. Returns whether the output has
    /// ended.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, output: &mut Incoming) -> Option<Ended> {
        if !output.is_read() {
            return None;
        }
        if !cx.has_room_for(ROOM) {
            // The watch is held in this turn.
            return None;
        }
        let budget = usize::try_from(cx.read_budget()).unwrap_or(usize::MAX);
        let most = budget.clamp(ROOM as usize, AT_ONCE);
        match self.take(cx, output, most) {
            Ok(()) => None,
            // Somebody has hung the terminal up (vhangup(2)). The child may open it again.
            Err(Ended::Failed(Errno::IO)) if self.slave.is_some() => self.reopen().err(),
            Err(Ended::Failed(Errno::IO)) => Some(Ended::Eof),
            Err(ended) => Some(ended),
        }
    }

    fn reopen(&mut self) -> Result<(), Ended> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&self.control, flags).map_err(Ended::Failed)?;
        self.slave = Some(slave);
        Ok(())
    }

    /// Reads until nothing is there, or until at least `most` bytes are read.
    fn take(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Incoming,
        most: usize,
    ) -> Result<(), Ended> {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(AT_ONCE, 0);
            let mut left = most;
            while left > 0 {
                let (len, stop) = self.fill(cx, &mut buffer[..left.min(AT_ONCE)]);
                if len > 0 {
                    output.deliver(cx, &buffer[..len]);
                }
                left = left.saturating_sub(len.max(1));
                match stop {
                    None => {}
                    Some(Stop::Empty) => break,
                    Some(Stop::Flushed) => {
                        self.flushes += 1;
                        self.flushed_at = output.offset;
                    }
                    Some(Stop::Ended(ended)) => return Err(ended),
                }
            }
            Ok(())
        })
    }

    /// Fills the buffer. Returns how much of it, and why it is not full.
    fn fill(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> (usize, Option<Stop>) {
        let (mut len, mut reports) = (0, 0);
        while len < buffer.len() && reports < REPORTS_AT_ONCE {
            let mut report = [0];
            let read = match &mut self.relay {
                Some(relay) => {
                    cx.progressed();
                    relay.read(cx.relays, &self.control, &mut report, &mut buffer[len..])
                }
                None => rustix::io::readv(
                    &self.control,
                    &mut [
                        IoSliceMut::new(&mut report),
                        IoSliceMut::new(&mut buffer[len..]),
                    ],
                ),
            };
            let stop = match read {
                // This kernel cannot move what a terminal has: it ends with the daemon.
                Err(Errno::INVAL) if self.relay.take().is_some() => {
                    cx.changed();
                    continue;
                }
                Ok(0) => Stop::Ended(Ended::Eof),
                Ok(1) if report[0] & sys::PACKET_FLUSHED != 0 => Stop::Flushed,
                Ok(1) => {
                    reports += 1;
                    continue;
                }
                Ok(read) => {
                    len += read - 1;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Stop::Empty,
                Err(errno) => Stop::Ended(Ended::Failed(errno)),
            };
            return (len, Some(stop));
        }
        (len, None)
    }

    fn modes(&self) -> Result<Modes> {
        let modes = tcgetattr(&self.control);
        let modes = modes.map_err(|errno| SystemError::new(errno, "tcgetattr", ""))?;
        Ok(Modes::from(&modes))
    }

    /// Types. `at` is the offset of `data` in what is typed, `None` its end.
    ///
    /// # Errors
    /// `at` leaves a hole; a line becomes longer than the kernel keeps; the journal has no room for
    /// WritePaused.
    pub(super) fn write(
        &mut self,
        cx: &mut Context<'_>,
        output: Option<&mut Incoming>,
        data: Bytes,
        at: Option<u64>,
    ) -> Result<Taken> {
        let modes = self.modes()?;
        let typing = self.typing.as_ref().ok_or_else(closed)?;
        let data = fresh(data, at, typing.taken)?;
        if typing.line.after(&modes, &data).is_none() {
            return Err(Error::invalid(
                "data",
                format!(
                    "must have at most {LINE_MAX} bytes in a line, with those that were written \
                     before: the terminal edits lines (ICANON), and the kernel drops the rest of a \
                     longer one"
                ),
            ));
        }
        // It pauses if the terminal takes less.
        let pauses = typing.gauge.prepare(cx, 0, true)?;
        let typed = if typing.eofs == 0 {
            self.type_all(cx, output, &modes, &data)
        } else {
            Ok(0)
        };
        let typing = self.typing.as_mut().ok_or_else(closed)?;
        let typed_len = typed.as_ref().map_or(0, |typed| *typed);
        typing.taken += typed_len as u64;
        cx.progressed();
        cx.changed();
        typing.line = (typing.line)
            .after(&modes, &data[..typed_len])
            .unwrap_or_default();
        if typed_len < data.len() && typed.is_ok() {
            if pauses {
                typing.gauge.pause(cx, 0);
            }
            typing.wait(cx);
        } else if pauses {
            cx.unreserve();
            cx.unreserve();
        }
        typed?;
        Ok(Taken {
            taken: typing.taken,
            buffered: 0,
        })
    }

    /// Types as much as the terminal takes. Before a byte that makes the kernel drop output, reads
    /// that output.
    fn type_all(
        &mut self,
        cx: &mut Context<'_>,
        mut output: Option<&mut Incoming>,
        modes: &Modes,
        data: &[u8],
    ) -> Result<usize> {
        let mut typed = 0;
        while typed < data.len() {
            let rest = &data[typed..];
            let piece = match modes.first_drop(rest) {
                Some(0) => {
                    if let Some(output) = output.as_deref_mut()
                        && !output.paused
                        && cx.has_room_for(ROOM)
                    {
                        // An end of the output is found again by the next read.
                        let _ = self.take(cx, output, BEFORE_DROP);
                    }
                    &rest[..1]
                }
                Some(first) => &rest[..first],
                None => rest,
            };
            let typed_now = match &self.relay {
                Some(relay) => relay.type_from_file(&self.control, piece),
                None => rustix::io::write(&self.control, piece),
            };
            match typed_now {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(len) => typed += len,
                Err(Errno::INTR) => {}
                Err(_) if typed > 0 => break,
                Err(errno) => return Err(SystemError::new(errno, "write", "").into()),
            }
        }
        Ok(typed)
    }

    /// Types the end-of-file byte, so that a program reads an end of file.
    ///
    /// # Errors
    /// The terminal is in raw mode, or has no such byte.
    pub(super) fn write_eof(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let modes = self.modes()?;
        let Some(typing) = &mut self.typing else {
            return Ok(());
        };
        if !modes.lines || modes.eof.is_none() {
            return Err(Error::wrong_state(
                "the terminal does not edit lines now (raw mode), so it has no end of file: write \
                 the byte that the program expects",
            ));
        }
        if typing.eofs == 0 {
            typing.eofs = typing.line.eofs();
        }
        self.type_eofs(cx, &modes);
        Ok(())
    }

    /// Types the end-of-file bytes that are due, as many as the terminal takes.
    fn type_eofs(&mut self, cx: &mut Context<'_>, modes: &Modes) {
        let Some(typing) = &mut self.typing else {
            return;
        };
        while typing.eofs > 0 {
            // The terminal may be in raw mode by now, where it would be a byte like others.
            let Some(eof) = modes.eof.filter(|_| modes.lines) else {
                typing.eofs = 0;
                break;
            };
            match rustix::io::write(&self.control, &[eof]) {
                Ok(1) => typing.eofs -= 1,
                Err(Errno::INTR) => {}
                _ => return typing.wait(cx),
            }
        }
        typing.line = Line::default();
        cx.changed();
    }

    /// The terminal takes more of what is typed.
    pub(super) fn takes_more(&mut self, cx: &mut Context<'_>) {
        if self.typing.as_ref().is_some_and(|typing| typing.eofs > 0)
            && let Ok(modes) = self.modes()
        {
            self.type_eofs(cx, &modes);
        }
        if let Some(typing) = &mut self.typing
            && typing.eofs == 0
        {
            typing.gauge.sink(cx, 0);
        }
    }

    /// Changes the size, and appends Resized if it is another one.
    ///
    /// # Errors
    /// The journal has no room, or the system refuses.
    pub(super) fn resize(&mut self, cx: &mut Context<'_>, size: TerminalSize) -> Result<()> {
        if size == self.size() {
            return Ok(());
        }
        cx.reserve_event(largest::RESIZED)?;
        let set = tcsetwinsize(&self.control, winsize(size));
        cx.release_event(largest::RESIZED);
        set.map_err(|errno| SystemError::new(errno, "resize", ""))?;
        self.size = size;
        cx.changed();
        cx.emit(Kind::Resized(Resized { size: Some(size) }));
        Ok(())
    }

    /// Returns the size, which the child may have changed itself.
    fn size(&self) -> TerminalSize {
        let now = tcgetwinsize(&self.control);
        now.map_or(self.size, |size| TerminalSize {
            rows: size.ws_row.into(),
            columns: size.ws_col.into(),
        })
    }

    /// Sends the process group in the foreground a signal. `session` is the session of the terminal.
    ///
    /// # Errors
    /// ESRCH if there is none; EPERM.
    pub(super) fn signal_foreground(&self, session: i32, number: i32) -> Result<(), Errno> {
        let group = tcgetpgrp(&self.control).map_err(|_| Errno::SRCH)?;
        if [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP].contains(&number) {
            return sys::signal_foreground(self.control.as_fd(), number);
        }
        let Ok(leader) = rustix::process::pidfd_open(group, PidfdFlags::empty()) else {
            // The leader has ended. No other process gets its number while its group has processes.
            return sys::kill_group(group.as_raw_pid(), number);
        };
        // The group may have ended, and another process may have got its number.
        let of_session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(group.as_raw_pid())));
        if of_session != Ok(nix::unistd::Pid::from_raw(session)) {
            return Err(Errno::SRCH);
        }
        match sys::signal_group(leader.as_fd(), number) {
            Err(Errno::INVAL) => sys::kill_group(group.as_raw_pid(), number),
            sent => sent,
        }
    }

    /// Returns its present state. `leader` is the child.
    pub(super) fn status(&self, leader: i32) -> TerminalStatus {
        let modes = self.modes().unwrap_or_default();
        let foreground = tcgetpgrp(&self.control).map_or(0, Pid::as_raw_pid);
        TerminalStatus {
            size: Some(self.size()),
            foreground_group: foreground,
            suspends_leader: modes.signals.is_some() && foreground == leader,
            line_mode: modes.lines,
            flushes: self.flushes,
            flushed_at: self.flushed_at,
        }
    }
}

impl Typing {
    /// Waits until the terminal takes more.
    fn wait(&self, cx: &mut Context<'_>) {
        if !cx.is_live(STDIN) {
            cx.start(STDIN, self.source, Op::Ready(Direction::Write));
        }
    }
}

fn closed() -> Error {
    Error::wrong_state("stdin is not a pipe or terminal, or is closed")
}
