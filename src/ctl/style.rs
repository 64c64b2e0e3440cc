//! The styles of text on a terminal, and the escaping of text that comes from elsewhere.

use anstyle::{AnsiColor, Effects, Style};

use crate::text;

pub(super) const PLAIN: Style = Style::new();
pub(super) const DIM: Style = Style::new().effects(Effects::DIMMED);
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default();
pub(super) const NOTICE: Style = AnsiColor::Yellow.on_default();
pub(super) const NAME: Style = AnsiColor::Cyan.on_default();

/// The longest text that is printed, in bytes; longer text is cut. JSON is never cut.
const TEXT_MAX: usize = 4096;

/// Returns text that is safe to print: control characters and invisible characters are escaped, and text longer than
/// [`TEXT_MAX`] is cut.
pub(super) fn printable(text: &str) -> String {
    text::escaped(text, TEXT_MAX).to_string()
}
