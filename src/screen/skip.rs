//! Leaves out text that will have scrolled away.
//!
//! Of a long run of lines only the last ones are seen. Once the cursor is at the bottom of the
//! scrolling region, each line feed moves one line out of it at the top; a line that is followed by as
//! many line feeds as the screen has rows leaves nothing behind, whatever was written on it.

use avt::parser::Function;

use super::State;

/// The fewest bytes that are worth leaving out.
const LEAST: usize = 64;

impl State {
    /// Executes the beginning of `text`, which contains no sequences, and returns what of it is still
    /// to be executed.
    pub(super) fn skip<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        let (_, rows) = self.terminal.size();
        if text.len() < 2 * rows + LEAST {
            return text;
        }
        let Some(resume) = before_last_lines(text, rows) else {
            return text;
        };
        // So many lines bring the cursor to the bottom, unless it is below the region.
        let Some(start) = nth_line(text, rows) else {
            return text;
        };
        if resume < start + LEAST || text[start..resume].iter().any(|byte| changes_more(*byte)) {
            return text;
        }
        self.plain(&text[..start]);
        if self.terminal.cursor().row != self.followed.bottom {
            return &text[start..];
        }
        self.execute(Function::Cr);
        self.execute(Function::Lf);
        &text[resume..]
    }
}

/// Where the line begins that is followed by `rows` line feeds or a few more, if it begins in the
/// first column.
fn before_last_lines(text: &[u8], rows: usize) -> Option<usize> {
    let ends = (0..text.len()).rev().filter(|at| text[*at] == b'\n');
    let mut ends = ends
        .skip(rows)
        .filter(|at| *at > 0 && text[*at - 1] == b'\r');
    Some(ends.next()? + 1)
}

/// Where the line with the number `number` begins.
fn nth_line(text: &[u8], number: usize) -> Option<usize> {
    let ends = (0..text.len()).filter(|at| text[*at] == b'\n');
    let mut ends = ends.skip(number - 1);
    Some(ends.next()? + 1)
}

/// Whether a control does something that is not gone with the line: VT, FF, SO, SI.
fn changes_more(byte: u8) -> bool {
    matches!(byte, 0x0b | 0x0c | 0x0e | 0x0f)
}
