//! The screen of a terminal, kept from the bytes that a program writes to it.
//!
//! A [`Screen`] is fed everything that a program has written and can then tell, as bytes for another
//! terminal, what is on it: [`Screen::restore`]. [`Screen::undo`] takes back what the program has
//! turned on in a terminal. [`Quiet`] leaves out of recorded output what a terminal would answer, or
//! what would change more than its text.
//!
//! `avt` keeps the cells, the cursor, the margins and the tab stops. What it does not know is kept
//! beside it: the modes of keys and mouse, the cursor's shape, the title, characters and sequences
//! that are not complete yet.
//!
//! Known limits: no scrollback; no left and right margins; no underline styles and colours, hidden
//! text, hyperlinks, palettes or images; G2, G3 and national character sets count as ASCII.

mod answers;
mod clusters;
mod execute;
mod followed;
mod framer;
mod hidden;
mod modes;
mod quiet;
mod restore;
mod sequence;
mod sgr;
mod sink;
mod skip;
#[cfg(test)]
mod tests;
mod text;
mod undo;

use avt::{Parser, Terminal};

pub use quiet::Quiet;

use answers::Answers;
use clusters::Clusters;
use followed::Followed;
use framer::Framer;
use modes::Modes;

/// The number of the mode that enters the alternate screen and saves the cursor.
const ALTERNATE_AND_CURSOR: u16 = 1049;

/// The screen of a terminal: both buffers, the cursor and all modes.
///
/// Its memory is bounded by its size: [`Screen::memory`]. How `feed` is cut into calls makes no
/// difference.
pub struct Screen {
    framer: Framer,
    state: State,
}

/// Everything but the unfinished sequence.
struct State {
    terminal: Terminal,
    /// Of complete sequences, so that it is always between two of them.
    parser: Parser,
    /// The bytes of a character that is not complete.
    partial: Vec<u8>,
    /// The character that was written just before, if it was one.
    last: Option<char>,
    clusters: Clusters,
    modes: Modes,
    followed: Followed,
    /// The mode by which the alternate screen was entered last.
    alternate_by: u16,
    answers: Answers,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (columns, rows) = self.state.terminal.size();
        f.debug_struct("Screen")
            .field("rows", &rows)
            .field("columns", &columns)
            .field("cursor", &self.state.terminal.cursor())
            .finish_non_exhaustive()
    }
}

impl Screen {
    /// The screen of a terminal that was reset. The caller has checked that both sizes are from 1 to
    /// 1,000; 0 counts as 1.
    pub fn new(rows: u16, columns: u16) -> Self {
        let (rows, columns) = (usize::from(rows.max(1)), usize::from(columns.max(1)));
        // It refuses sizes of 0 only.
        let terminal = Terminal::new(columns, rows);
        let terminal = terminal.unwrap_or_else(|_| unreachable!("sizes are at least 1"));
        Self {
            framer: Framer::default(),
            state: State {
                terminal,
                parser: Parser::new(),
                partial: Vec::new(),
                last: None,
                clusters: Clusters::default(),
                modes: Modes::default(),
                followed: Followed::new(rows),
                alternate_by: ALTERNATE_AND_CURSOR,
                answers: Answers::default(),
            },
        }
    }

    /// The bytes of memory that the screen of a terminal of this size takes at most, without what
    /// all of them share. For a budget.
    pub const fn memory(rows: u16, columns: u16) -> usize {
        const BUFFERS: usize = 2;
        const LINE: usize = 128;
        const REST: usize = 192 << 10;
        let line = columns as usize * size_of::<avt::Cell>() + LINE;
        BUFFERS * rows as usize * line + REST
    }

    /// Takes what the program wrote next. Much at once costs less: of a long run of lines without
    /// sequences only those are looked at that will be seen. No more than a line is ever written for
    /// one sequence, but a sequence of four bytes may erase the whole screen.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.framer.feed(bytes, &mut self.state);
    }

    /// The terminal has another size now; lines of the main screen are wrapped anew. Sizes as for
    /// [`Screen::new`].
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let (rows, columns) = (usize::from(rows.max(1)), usize::from(columns.max(1)));
        self.state.last = None;
        self.state.terminal.resize(columns, rows);
        self.state.followed.resize(rows);
    }

    /// The rows and columns.
    pub fn size(&self) -> (usize, usize) {
        let (columns, rows) = self.state.terminal.size();
        (rows, columns)
    }

    /// The column of the cursor, from 0; the number of columns, if the next character will go to the
    /// next line.
    pub fn column(&self) -> usize {
        self.state.terminal.cursor().col
    }

    /// What the program waits to read: the answers to what it asked for (DA1, DSR 5 and 6) since the
    /// last call, as a terminal with this screen would have given them then. At most 4 KiB; what
    /// was asked for beyond that is not answered.
    pub fn take_answers(&mut self) -> Vec<u8> {
        self.state.answers.take()
    }
}
