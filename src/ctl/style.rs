//! The styles of text on a terminal, and the escaping of text that comes from elsewhere.

use anstyle::{AnsiColor, Effects, Style};

use crate::text;

pub(super) const PLAIN: Style = Style::new();
pub(super) const DIM: Style = Style::new().effects(Effects::DIMMED);
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default();
pub(super) const NOTICE: Style = AnsiColor::Yellow.on_default();
pub(super) const NAME: Style = AnsiColor::Cyan.on_default();

/// Longest text of one cell, bytes; JSON has all of it.
const CELL_MAX: usize = 4096;

/// Escaped and bounded, so that nothing from elsewhere moves the cursor or hides.
pub(super) fn printable(text: &str) -> String {
    text::escaped(text, CELL_MAX).to_string()
}
