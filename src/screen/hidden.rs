//! The state of a terminal that `avt` shows only in its dump.

use avt::parser::{AnsiMode, CtcOp, DecMode, Function, SgrOp};
use avt::{Charset, Parser, Terminal};

/// A cursor that was saved (DECSC).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Saved {
    /// From 0.
    pub(super) row: u16,
    pub(super) column: u16,
    pub(super) pen: Vec<SgrOp>,
    pub(super) origin: bool,
    pub(super) autowrap: bool,
}

impl Default for Saved {
    fn default() -> Self {
        Self {
            row: 0,
            column: 0,
            pen: Vec::new(),
            origin: false,
            autowrap: true,
        }
    }
}

/// What is read from a dump. Its functions lead from a terminal that was reset to this one, so that
/// the last word on each thing is its state.
#[derive(Debug)]
pub(super) struct Hidden {
    pub(super) pen: Vec<SgrOp>,
    /// Of the main and the alternate screen.
    pub(super) saved: [Saved; 2],
    /// The columns with a tab stop, if they are not every eighth.
    pub(super) tabs: Option<Vec<u16>>,
    /// First and last row, from 1, unless that is the whole screen.
    pub(super) margins: Option<(u16, u16)>,
    pub(super) origin: bool,
    pub(super) autowrap: bool,
    pub(super) insert: bool,
    pub(super) newline: bool,
    /// Whether G0 and G1 are the line drawing characters.
    pub(super) drawing: [bool; 2],
    /// Whether G1 is in use.
    pub(super) shifted: bool,
}

impl Hidden {
    pub(super) fn of(terminal: &Terminal) -> Self {
        let mut hidden = Self {
            pen: Vec::new(),
            saved: <[Saved; 2]>::default(),
            tabs: None,
            margins: None,
            origin: false,
            autowrap: true,
            insert: false,
            newline: false,
            drawing: [false; 2],
            shifted: false,
        };
        let mut at = (0, 0);
        let mut alternate = false;
        let mut parser = Parser::new();
        let dump = terminal.dump();
        for function in dump.chars().filter_map(|character| parser.feed(character)) {
            match function {
                Function::Cup(row, column) => {
                    at = (row.saturating_sub(1), column.saturating_sub(1));
                }
                Function::Cha(column) => at.1 = column.saturating_sub(1),
                Function::Sgr(ops) => hidden.pen = ops.as_slice().to_vec(),
                Function::Decsc => {
                    hidden.saved[usize::from(alternate)] = Saved {
                        row: at.0,
                        column: at.1,
                        pen: hidden.pen.clone(),
                        origin: hidden.origin,
                        autowrap: hidden.autowrap,
                    };
                }
                Function::Ctc(CtcOp::ClearAll) => hidden.tabs = Some(Vec::new()),
                Function::Ctc(CtcOp::Set) => hidden.tabs.get_or_insert_default().push(at.1),
                Function::Decstbm(top, bottom) => hidden.margins = Some((top, bottom)),
                Function::Gzd4(set) => hidden.drawing[0] = set == Charset::Drawing,
                Function::G1d4(set) => hidden.drawing[1] = set == Charset::Drawing,
                Function::So => hidden.shifted = true,
                Function::Sm(modes) => {
                    for mode in modes.as_slice() {
                        match mode {
                            AnsiMode::Insert => hidden.insert = true,
                            AnsiMode::NewLine => hidden.newline = true,
                        }
                    }
                }
                Function::Decset(modes) => hidden.set(modes.as_slice(), true, &mut alternate),
                Function::Decrst(modes) => hidden.set(modes.as_slice(), false, &mut alternate),
                _ => {}
            }
        }
        hidden
    }

    fn set(&mut self, modes: &[DecMode], on: bool, alternate: &mut bool) {
        for mode in modes {
            match mode {
                DecMode::Origin => self.origin = on,
                DecMode::AutoWrap => self.autowrap = on,
                DecMode::AltScreenBuffer => *alternate = on,
                _ => {}
            }
        }
    }
}
