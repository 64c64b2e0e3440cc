//! Tables, and sheets of labelled lines, for people. On a terminal they are cut to its width; in a pipe or a file they are
//! not cut.

use std::fmt::Write as _;
use std::io;

use anstyle::Style;
use rustix::termios::{isatty, tcgetwinsize};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::failure::Failure;
use super::output::print;
use super::style::{DIM, PLAIN, printable};

/// The least width of a column, in terminal columns, however narrow the terminal is.
const COLUMN_MIN: usize = 4;
/// The height of a terminal that does not report its height, in lines.
const ROWS: usize = 24;
/// The space between two columns of a table, in terminal columns.
const GAP: usize = 2;

/// Returns the width and the height of the terminal that stdout is; `None` if stdout is not a terminal, or its width is
/// not known.
pub(super) fn terminal_size() -> Option<(usize, usize)> {
    let stdout = io::stdout();
    if !isatty(&stdout) {
        return None;
    }
    let size = tcgetwinsize(&stdout).ok()?;
    let [columns, rows] = [size.ws_col, size.ws_row].map(usize::from);
    // Some terminals report a width but no height.
    let rows = if rows > 0 { rows } else { ROWS };
    (columns > 0).then_some((columns, rows))
}

fn terminal_width() -> Option<usize> {
    terminal_size().map(|(columns, _)| columns)
}

/// Printable text with a style: a cell of a table, or the value of a line.
#[derive(Debug)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

/// Returns a cell with a style.
pub(super) fn cell(text: &impl ToString, style: Style) -> Cell {
    let text = printable(&text.to_string());
    Cell { text, style }
}

/// Returns a cell without a style.
pub(super) fn plain(text: &impl ToString) -> Cell {
    cell(text, PLAIN)
}

/// Rows of cells under a head row. Each column is as wide as its widest cell.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(heads: &[&str]) -> Self {
        let rows = vec![heads.iter().map(|head| cell(&head, DIM)).collect()];
        Self { rows }
    }

    pub(super) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(cells.into());
    }

    pub(super) fn print(&self) -> Result<(), Failure> {
        print(&self.text(terminal_width()))
    }

    /// Returns the table as text. If it is wider than `width`, its widest columns are cut, down to [`COLUMN_MIN`].
    pub(super) fn text(&self, width: Option<usize>) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        if let Some(width) = width {
            fit(&mut widths, width);
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut pending = 0;
            for (Cell { text: word, style }, width) in row.iter().zip(&widths) {
                let word = cut(word, *width);
                if !word.is_empty() {
                    let _ = write!(text, "{:pending$}{style}{word}{style:#}", "");
                    pending = 0;
                }
                pending += width.saturating_sub(word.width()) + GAP;
            }
            text.push('\n');
        }
        text
    }
}

/// Makes the widest columns narrower, all to the same width, until a row fits into `line` terminal columns.
fn fit(widths: &mut [usize], line: usize) {
    let room = line.saturating_sub(GAP * widths.len().saturating_sub(1));
    let mut most = widths.iter().copied().max().unwrap_or(0);
    while most > COLUMN_MIN && widths.iter().map(|w| (*w).min(most)).sum::<usize>() > room {
        most -= 1;
    }
    let mut spare = room.saturating_sub(widths.iter().map(|w| (*w).min(most)).sum());
    for width in widths {
        if *width > most {
            // The columns that remain because the width does not divide evenly.
            let more = (*width - most).min(usize::from(spare > 0));
            spare -= more;
            *width = most + more;
        }
    }
}

/// Cuts text to `width` terminal columns. Text that is cut ends with an ellipsis.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut used = 1;
    for letter in text.chars() {
        used += letter.width().unwrap_or(0);
        if used > width {
            break;
        }
        short.push(letter);
    }
    short.push('…');
    short
}

/// A title and labelled lines that describe one thing.
#[derive(Debug)]
pub(super) struct Sheet {
    title: String,
    lines: Vec<(String, Cell)>,
}

impl Sheet {
    /// Makes a sheet without lines. `title` may hold styles; text from elsewhere in it must be [`printable`].
    pub(super) const fn new(title: String) -> Self {
        let lines = Vec::new();
        Self { title, lines }
    }

    /// Appends a line; an empty value appends none.
    pub(super) fn line(&mut self, label: &str, value: impl ToString) {
        self.styled(label, value, PLAIN);
    }

    /// Appends a line whose value has a style; an empty value appends none.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "numbers are given as they are"
    )]
    pub(super) fn styled(&mut self, label: &str, value: impl ToString, style: Style) {
        let value = value.to_string();
        if !value.is_empty() {
            self.lines.push((printable(label), cell(&value, style)));
        }
    }

    pub(super) fn print(&self) -> Result<(), Failure> {
        print(&self.text(terminal_width()))
    }

    /// Returns the sheet as text. Values are cut so that no line is wider than `width`.
    pub(super) fn text(&self, width: Option<usize>) -> String {
        let labels = self.lines.iter().map(|(label, _)| label.width());
        let labels = labels.max().unwrap_or(0);
        let room = width.map(|width| width.saturating_sub(labels + 2 * GAP).max(COLUMN_MIN));
        let mut text = format!("{}\n", self.title);
        for (label, Cell { text: value, style }) in &self.lines {
            let value = room.map_or_else(|| value.clone(), |room| cut(value, room));
            let padding = labels - label.width() + GAP;
            let _ = writeln!(
                text,
                "{:GAP$}{DIM}{label}{DIM:#}{:padding$}{style}{value}{style:#}",
                "", ""
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn columns_align_and_control_characters_are_shown() {
        let mut table = Table::new(&["NAME", "ID"]);
        table.row([plain(&"längste"), plain(&1)]);
        table.row([plain(&"a\x1b[2J"), plain(&22)]);
        table.row([plain(&"日本"), plain(&3)]);
        let expected = "NAME        ID\nlängste     1\na\\u{1b}[2J  22\n日本        3\n";
        assert_eq!(bare(&table.text(None)), expected);
    }

    #[test]
    fn a_table_is_cut_to_the_terminal_where_it_is_widest() {
        let mut table = Table::new(&["ID", "COMMAND", "WHERE"]);
        table.row([plain(&1), plain(&"x".repeat(90)), plain(&"y".repeat(40))]);
        table.row([plain(&2), plain(&"日".repeat(40)), plain(&"")]);
        for width in [30, 41, 80] {
            let text = bare(&table.text(Some(width)));
            let widths: Vec<_> = text
                .lines()
                .map(unicode_width::UnicodeWidthStr::width)
                .collect();
            assert_eq!(widths[1], width, "{text}");
            assert!(widths.iter().all(|w| *w <= width), "{text}");
            assert!(
                text.contains("x…") && text.contains("y…") && text.contains("日…"),
                "{text}"
            );
        }
        let whole = bare(&table.text(Some(140)));
        assert_eq!(whole, bare(&table.text(None)));
        assert!(!whole.contains('…'));
        // Columns are not made narrower than `COLUMN_MIN`.
        assert!(
            bare(&table.text(Some(3)))
                .lines()
                .all(|line| line.width() <= 18)
        );
    }

    #[test]
    fn a_sheet_has_labels_in_one_column_and_leaves_out_what_is_not_there() {
        let mut sheet = Sheet::new("build".to_owned());
        sheet.line("pid", 7);
        sheet.line("labels", "");
        sheet.line("command", "a\tb".repeat(3));
        let whole = "build\n  pid      7\n  command  a\\tba\\tba\\tb\n";
        assert_eq!(bare(&sheet.text(None)), whole);
        let cut = "build\n  pid      7\n  command  a\\tba\\…\n";
        assert_eq!(bare(&sheet.text(Some(18))), cut);
    }
}
