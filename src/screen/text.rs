//! What text and the controls between it do.

use avt::parser::{ElScope, Function};
use unicode_width::UnicodeWidthChar;

use super::State;
use super::clusters::Clusters;

impl State {
    /// Text that begins with no part of a character.
    pub(super) fn plain(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            let ascii = first.is_ascii();
            let end = bytes.iter().position(|byte| byte.is_ascii() != ascii);
            let (run, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if ascii {
                self.functions(run.iter().filter_map(|byte| ascii_function(*byte)));
                let last = run.last().filter(|byte| matches!(byte, 0x20..=0x7e));
                self.last = last.map(|byte| char::from(*byte));
            } else {
                self.characters(run, rest.is_empty());
            }
            bytes = rest;
        }
    }

    /// Bytes outside ASCII; if more of them may follow, an incomplete character is kept.
    fn characters(&mut self, mut run: &[u8], more: bool) {
        loop {
            let error = match std::str::from_utf8(run) {
                Ok(text) => return self.print(text),
                Err(error) => error,
            };
            let (valid, rest) = run.split_at(error.valid_up_to());
            self.print(std::str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                None if more => return self.partial.extend_from_slice(rest),
                None => return self.execute(Function::Print(char::REPLACEMENT_CHARACTER)),
                Some(length) => {
                    self.execute(Function::Print(char::REPLACEMENT_CHARACTER));
                    run = &rest[length..];
                }
            }
        }
    }

    fn print(&mut self, mut text: &str) {
        while !text.is_empty() {
            let mark = text.find(|character: char| character.width() == Some(0));
            let (shown, rest) = text.split_at(mark.unwrap_or(text.len()));
            if let Some(last) = shown.chars().next_back() {
                self.functions(
                    shown
                        .chars()
                        .map(|kept| Function::Print(Clusters::kept(kept))),
                );
                self.last = Some(Clusters::kept(last));
            }
            let mut rest = rest.chars();
            if let Some(mark) = rest.next() {
                self.mark(mark);
            }
            text = rest.as_str();
        }
    }

    /// Adds a character without a width to the one that was written just before. Where that is may be
    /// unknown at the end of a line that does not wrap.
    fn mark(&mut self, mark: char) {
        let (columns, _) = self.terminal.size();
        let Some(last) = self.last else {
            return;
        };
        let cursor = self.terminal.cursor();
        let behind = cursor.col;
        let column = behind.checked_sub(last.width().unwrap_or(1));
        let wraps = self.followed.wraps() || behind + 1 < columns;
        let certain = wraps && !self.followed.inserts();
        let (Some(column), true) = (column, certain) else {
            return;
        };
        // The cell, as what was written may have been a line drawing character.
        let line = self.terminal.screen().line(cursor.row);
        let Some(cell) = line.and_then(|line| line.cells().get(column)) else {
            return;
        };
        let base = cell.char();
        let Some(marked) = self.clusters.with_mark(base, mark, &self.terminal) else {
            return;
        };
        let column = u16::try_from(column + 1).unwrap_or(u16::MAX);
        self.terminal
            .execute([Function::Cha(column), Function::Print(marked)]);
        self.last = Some(marked);
    }

    /// Executes what text is made of: characters and controls.
    fn functions(&mut self, functions: impl Iterator<Item = Function>) {
        if !self.followed.marks_blanks() {
            return self.terminal.execute(functions);
        }
        let (columns, _) = self.terminal.size();
        for function in functions {
            let before = self.terminal.cursor();
            let may_scroll = before.col >= columns - 1 && before.row == self.followed.bottom;
            let prints = matches!(function, Function::Print(_));
            self.execute(function);
            if prints && may_scroll && self.terminal.cursor().col < before.col {
                self.without_marks(Function::El(ElScope::ToRight));
            }
        }
    }

    /// Adds bytes to the character that is not complete; those that belong to it are used.
    pub(super) fn complete(&mut self, bytes: &mut &[u8]) {
        while let (false, Some((byte, rest))) = (self.partial.is_empty(), bytes.split_first()) {
            self.partial.push(*byte);
            match std::str::from_utf8(&self.partial) {
                Ok(text) => {
                    let text = text.to_owned();
                    self.print(&text);
                    self.partial.clear();
                }
                Err(error) if error.error_len().is_none() => {}
                // The byte belongs to no character that has begun.
                Err(_) => {
                    self.give_up_partial();
                    return;
                }
            }
            *bytes = rest;
        }
    }

    /// The character that was not complete never will be.
    pub(super) fn give_up_partial(&mut self) {
        if !self.partial.is_empty() {
            self.partial.clear();
            self.execute(Function::Print(char::REPLACEMENT_CHARACTER));
        }
    }
}

/// What a byte of ASCII does; ESC is none of them.
pub(super) fn ascii_function(byte: u8) -> Option<Function> {
    match byte {
        0x20..=0x7e => Some(Function::Print(char::from(byte))),
        0x08 => Some(Function::Bs),
        0x09 => Some(Function::Ht),
        0x0a..=0x0c => Some(Function::Lf),
        0x0d => Some(Function::Cr),
        0x0e => Some(Function::So),
        0x0f => Some(Function::Si),
        _ => None,
    }
}
