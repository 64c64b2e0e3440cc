//! What the user's terminal shows: all output passes through here, so that what the program changes
//! can be taken back.

use std::io::{self, IsTerminal as _};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::proto::TerminalSize;
use crate::screen::{Quiet, Screen};

/// The size of a terminal that tells none.
const USUAL: TerminalSize = TerminalSize {
    rows: 24,
    columns: 80,
};

/// How long the terminal may take for what evloopctl itself writes to it.
const PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

const BELL: &[u8] = b"\x07";
/// Saves the title of the window on a stack of the terminal (XTWINOPS), and takes it back. A terminal
/// that has no such stack ignores them.
const SAVE_TITLE: &[u8] = b"\x1b[22;2t";
const RESTORE_TITLE: &[u8] = b"\x1b[23;2t";

/// The user's terminal as a place for output.
#[derive(Debug)]
pub(super) struct Display {
    is_terminal: bool,
    /// What the program has turned on in the user's terminal.
    modes: Screen,
    /// Leaves out the program's questions, while another view answers them.
    quiet: Quiet,
    active: bool,
    /// Whether it shows the program's output, and not only what was there before.
    painted: bool,
    /// Whether the title is saved.
    entered: bool,
}

impl Display {
    /// Returns a terminal of this size. If it is `painted`, the output follows what it shows.
    pub(super) fn new(size: Option<TerminalSize>, painted: bool) -> Self {
        Self {
            is_terminal: io::stdout().is_terminal(),
            modes: tracked(size),
            quiet: Quiet::with_titles(),
            active: true,
            painted,
            entered: false,
        }
    }

    /// Saves the title of the window, before the program can change it.
    pub(super) fn enter(&mut self) {
        self.write(SAVE_TITLE);
        self.entered = true;
    }

    /// Returns what to write of the program's output.
    pub(super) fn output(&mut self, data: Bytes) -> Bytes {
        self.modes.feed(&data);
        self.unanswered(data)
    }

    /// Returns the bytes that make a terminal of this size show the screen that `restore` makes.
    pub(super) fn paint(&mut self, restore: &Bytes, size: Option<TerminalSize>) -> Bytes {
        let mut out = self.modes.undo();
        if !self.painted
            && let Some(size) = size
        {
            // What the terminal has shown until now goes to where it scrolls to.
            out.extend((0..size.rows).flat_map(|_| *b"\r\n"));
        }
        out.extend_from_slice(b"\x1b[H\x1b[2J");
        (self.painted, self.modes) = (true, tracked(size));
        self.modes.feed(restore);
        self.quiet = Quiet::with_titles();
        out.extend_from_slice(&self.unanswered(restore.clone()));
        out.into()
    }

    /// Sets whether the program's questions are for this terminal.
    pub(super) const fn set_active(&mut self, active: bool) {
        self.active = active;
    }

    /// Follows the size of the terminal.
    pub(super) fn resize(&mut self, size: TerminalSize) {
        let (rows, columns) = sides(size);
        self.modes.resize(rows, columns);
    }

    /// Undoes what the program has turned on in the user's terminal.
    pub(super) fn leave(&mut self) {
        let mut undo = self.modes.undo();
        self.modes.feed(&undo);
        if std::mem::take(&mut self.entered) {
            undo.extend_from_slice(RESTORE_TITLE);
        }
        self.write(&undo);
    }

    /// Moves on to a line of its own for a message, after [`Display::leave`].
    pub(super) fn end_line(&self) {
        if self.modes.column() > 0 {
            self.write(b"\r\n");
        }
    }

    /// Rings the bell.
    pub(super) fn ring(&self) {
        self.write(BELL);
    }

    /// Leaves out what another view answers.
    fn unanswered(&mut self, data: Bytes) -> Bytes {
        // A sequence that has begun in the filter ends there.
        if self.active && !self.quiet.is_holding() {
            data
        } else {
            self.quiet.filter(&data).into()
        }
    }

    /// Writes what evloopctl itself has for a terminal.
    fn write(&self, bytes: &[u8]) {
        if !self.is_terminal || bytes.is_empty() {
            return;
        }
        let stdout = io::stdout();
        let mut ready = [PollFd::new(&stdout, PollFlags::OUT)];
        // One that is stopped, or whose connection hangs, must not keep evloopctl.
        if poll(&mut ready, Some(&PATIENCE)).is_ok_and(|ready| ready > 0) {
            // A terminal that is gone needs nothing.
            let _ = rustix::io::write(io::stdout(), bytes);
        }
    }
}

/// Returns what follows a terminal of this size, which was just reset.
fn tracked(size: Option<TerminalSize>) -> Screen {
    let (rows, columns) = sides(size.unwrap_or(USUAL));
    Screen::new(rows, columns)
}

fn sides(size: TerminalSize) -> (u16, u16) {
    let side = |number| u16::try_from(number).unwrap_or(u16::MAX);
    (side(size.rows), side(size.columns))
}
