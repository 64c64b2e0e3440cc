//! Text from outside, made fit to be shown to people: on one line, without characters that move a
//! cursor, turn the direction of writing around or cannot be seen, and no longer than a bound.
//!
//! What was escaped is not escaped again: an escape consists of characters that stay as they are. So
//! a text can pass through more than one hand, and a backslash of its own is not told from one that
//! was put there.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};

/// Whether a character is not seen, or changes how those around it are seen: controls (C0, DEL, C1),
/// separators of lines, marks of direction, and what Unicode calls default ignorable: of no width.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' // soft hyphen
            | '\u{34f}'
            | '\u{61c}' // direction, as of 200E and 200F
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

/// A number as people write it: `1234567` as `1,234,567`.
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

/// Escapes what [`is_hidden`], as `\n` or `\u{202e}`. Beyond `max` bytes it is cut, and says how
/// much is left out; `max` is at least 64.
pub const fn escaped<T: Display>(text: T, max: usize) -> Shown<T> {
    Shown {
        text,
        max,
        escapes: is_hidden,
    }
}

/// As [`escaped`], and everything that is not ASCII.
pub const fn ascii<T: Display>(text: T, max: usize) -> Shown<T> {
    Shown {
        text,
        max,
        escapes: |c| !c.is_ascii() || c.is_control(),
    }
}

/// Cuts as [`escaped`] does and escapes nothing, for what will be.
pub const fn cut<T: Display>(text: T, max: usize) -> Shown<T> {
    Shown {
        text,
        max,
        escapes: |_| false,
    }
}

/// A line of a log that is whole; its own newline is not part of it. `coloured`: escape sequences
/// are the log's own.
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

/// Serialised JSON on one line, with `\u` escapes for what [`is_hidden`]: it means the same.
#[must_use]
pub fn json(line: &str) -> Cow<'_, str> {
    // Most lines are printable ASCII, which is looked at fast.
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

/// See [`escaped`].
#[derive(Debug, Clone, Copy)]
pub struct Shown<T> {
    text: T,
    max: usize,
    escapes: fn(char) -> bool,
}

/// Bytes of the longest note on what was left out.
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
        // What is shown with the note, and how much of the text that is.
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

/// The beginning of what is written to it, just too long if it is longer than `max`.
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
