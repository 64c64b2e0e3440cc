//! Makes text from clients and children safe to show to people: on one line, without characters
//! that move the cursor, change the direction of writing or are invisible, and of bounded length.
//!
//! An escape consists of characters that are not escaped themselves, so text that is escaped twice
//! does not change. Therefore a backslash in the original text looks the same as one of an escape.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};

/// Whether a character is invisible, or changes how the characters around it are shown: controls
/// (C0, DEL, C1), line separators, direction marks, and those without width that Unicode calls
/// default ignorable.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' // soft hyphen
            | '\u{34f}'
            | '\u{61c}' // direction mark, like 200E and 200F
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' // zero width, direction
            | '\u{2028}'..='\u{202e}' // line and paragraph separator, direction
            | '\u{2060}'..='\u{206f}' // word joiner, invisible operators, isolates
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' // variation selectors
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}') // tags, more variation selectors
}

/// Writes a number in groups of three digits: `1234567` as `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Escapes characters that are [hidden](is_hidden), as `\n` or `\u{202e}`. Text of more than `max`
/// bytes is cut, and ends with the number of bytes left out. `max` must be at least 64.
pub const fn escaped<T: Display>(text: T, max: usize) -> Shown<T> {
    Shown {
        text,
        max,
        escapes: is_hidden,
    }
}

/// Like [`escaped`], but also escapes every character that is not ASCII.
pub const fn ascii<T: Display>(text: T, max: usize) -> Shown<T> {
    Shown {
        text,
        max,
        escapes: |c| !c.is_ascii() || c.is_control(),
    }
}

/// Cuts like [`escaped`] but escapes nothing, for text that is escaped later.
pub const fn cut<T: Display>(text: T, max: usize) -> Shown<T> {
    Shown {
        text,
        max,
        escapes: |_| false,
    }
}

/// Escapes a whole line of the log, given without its newline. With `coloured`, ESC is kept, since
/// the log itself writes escape sequences.
#[must_use]
pub fn log_line(line: &str, coloured: bool) -> Cow<'_, str> {
    let escapes = |c| is_hidden(c) && !(coloured && c == '\x1b');
    if !line.contains(escapes) {
        return line.into();
    }
    let mut out = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        push(&mut out, c, escapes(c));
    }
    out.into()
}

/// Escapes [hidden](is_hidden) characters in one line of serialised JSON, as `\uXXXX`. The value of
/// the JSON does not change.
#[must_use]
pub fn json(line: &str) -> Cow<'_, str> {
    // Most lines are printable ASCII, for which this check is fast.
    let plain = line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if plain || !line.contains(is_hidden) {
        return line.into();
    }
    let mut out = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        if is_hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// A text that is escaped and cut when it is displayed; see [`escaped`].
#[derive(Debug, Clone, Copy)]
pub struct Shown<T> {
    text: T,
    max: usize,
    escapes: fn(char) -> bool,
}

/// The bytes of the longest note on the bytes left out.
const NOTE_MAX: usize = "... (18446744073709551615 bytes more)".len();

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut head = Head {
            kept: String::new(),
            bytes: 0,
            max: self.max,
        };
        write!(head, "{}", self.text)?;
        let with_note = self.max.saturating_sub(NOTE_MAX);
        let mut out = String::with_capacity(head.kept.len());
        // Bytes of `out` that fit before the note, and the bytes of the text that they stand for.
        let (mut shown, mut told) = (0, 0);
        for (at, c) in head.kept.char_indices() {
            push(&mut out, c, (self.escapes)(c));
            if out.len() <= with_note {
                (shown, told) = (out.len(), at + c.len_utf8());
            }
            if out.len() > self.max {
                break;
            }
        }
        if out.len() <= self.max {
            return f.write_str(&out);
        }
        out.truncate(shown);
        write!(f, "{out}... ({} bytes more)", head.bytes - told)
    }
}

fn push(out: &mut String, c: char, escapes: bool) {
    if !escapes {
        out.push(c);
    } else if c.is_ascii() {
        out.extend(c.escape_default());
    } else {
        out.extend(c.escape_unicode());
    }
}

/// A writer that keeps the beginning of a text: at most one character more than `max` bytes, which
/// shows that the text is longer.
struct Head {
    kept: String,
    bytes: usize,
    max: usize,
}

impl fmt::Write for Head {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes = self.bytes.saturating_add(text.len());
        for c in text.chars() {
            if self.kept.len() > self.max {
                break;
            }
            self.kept.push(c);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
