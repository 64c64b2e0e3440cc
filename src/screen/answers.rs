//! The answers to what a program asks its terminal for.

use avt::Terminal;

use super::followed::Followed;
use super::modes::put;

/// The most bytes of answers that wait to be taken; what is asked for beyond them is not answered.
const LIMIT: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Answers(Vec<u8>);

impl Answers {
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    fn give(&mut self, answer: std::fmt::Arguments<'_>) {
        let length = self.0.len();
        put(&mut self.0, answer);
        if self.0.len() > LIMIT {
            self.0.truncate(length);
        }
    }

    /// DA1: a VT220 with ANSI colours.
    pub(super) fn attributes(&mut self) {
        self.give(format_args!("\x1b[?62;22c"));
    }

    /// DSR 5: all is well.
    pub(super) fn status(&mut self) {
        self.give(format_args!("\x1b[0n"));
    }

    /// DSR 6: the cursor's row and column, from 1, as the program would set it.
    pub(super) fn position(&mut self, terminal: &Terminal, followed: &Followed) {
        let (columns, _) = terminal.size();
        let cursor = terminal.cursor();
        let row = cursor.row.saturating_sub(followed.origin()) + 1;
        let column = (cursor.col + 1).min(columns);
        self.give(format_args!("\x1b[{row};{column}R"));
    }
}
