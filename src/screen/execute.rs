//! What sequences do.

use avt::ScreenKind;
use avt::parser::{DecMode, Function};

use super::sequence::{self, Csi};
use super::sink::{Kind, Sink};
use super::text::ascii_function;
use super::{ALTERNATE_AND_CURSOR, State, followed, sgr};

/// The introducer of control sequences.
const CSI: &str = "\x1b[";

impl State {
    pub(super) fn is_alternate(&self) -> bool {
        self.terminal.active_screen_kind() == ScreenKind::Alternate
    }

    pub(super) fn execute(&mut self, function: Function) {
        self.last = None;
        self.followed.follow(&function, self.is_alternate());
        if self.followed.marks_blanks() && followed::erases(&function) {
            self.without_marks(function);
        } else {
            self.terminal.execute(function);
        }
    }

    /// Executes a function that erases so that no attributes are seen on the blanks. Attributes that
    /// it saves are not changed by that.
    pub(super) fn without_marks(&mut self, function: Function) {
        if let Function::Decset(modes) = &function {
            for mode in modes.as_slice() {
                self.set_without_marks(*mode);
            }
            return;
        }
        let (reset, set) = self.followed.marks();
        self.terminal.execute(Function::Sgr(reset));
        self.terminal.execute(function);
        self.terminal.execute(Function::Sgr(set));
    }

    fn set_without_marks(&mut self, mode: DecMode) {
        let set = |mode| Function::Decset(vec![mode].into());
        let (reset, again) = self.followed.marks();
        match mode {
            DecMode::SaveCursorAltScreenBuffer => self.terminal.execute([
                set(DecMode::SaveCursor),
                Function::Sgr(reset),
                set(DecMode::AltScreenBuffer),
                Function::Sgr(again),
            ]),
            DecMode::AltScreenBuffer => self.terminal.execute([
                Function::Sgr(reset),
                set(DecMode::AltScreenBuffer),
                Function::Sgr(again),
            ]),
            _ => self.terminal.execute(set(mode)),
        }
    }

    /// Executes what `avt` makes of a complete sequence, given without its introducer.
    fn forward(&mut self, introducer: &str, sequence: &[u8]) {
        let bytes = sequence.iter().map(|byte| char::from(*byte));
        let characters = introducer.chars().chain(bytes);
        let mut function = None;
        for character in characters {
            function = function.or(self.parser.feed(character));
        }
        match function {
            // A repetition over more than a line is no use to anyone, and may be a flood.
            Some(Function::Rep(count)) => {
                let (columns, _) = self.terminal.size();
                let count = usize::from(count).min(columns);
                self.execute(Function::Rep(u16::try_from(count).unwrap_or(u16::MAX)));
            }
            Some(Function::Decaln) => {
                self.execute(Function::Decaln);
                self.execute(Function::Decrst(vec![DecMode::Origin].into()));
                self.execute(Function::Decstbm(0, 0));
            }
            Some(Function::Decstr) => {
                self.execute(Function::Decstr);
                self.execute(Function::Decrst(vec![DecMode::CursorKeys].into()));
                self.execute(Function::Decset(vec![DecMode::AutoWrap].into()));
            }
            Some(function) => self.execute(function),
            None => {}
        }
    }
}

impl Sink for State {
    fn text(&mut self, mut bytes: &[u8]) {
        self.complete(&mut bytes);
        let rest = self.skip(bytes);
        self.plain(rest);
    }

    fn control(&mut self, byte: u8) {
        self.give_up_partial();
        if let Some(function) = ascii_function(byte) {
            self.execute(function);
        }
    }

    fn escape(&mut self, raw: &[u8]) {
        self.give_up_partial();
        match sequence::escape(raw).as_slice() {
            b"c" => {
                self.forward("\x1b", b"c");
                self.modes.reset();
                self.alternate_by = ALTERNATE_AND_CURSOR;
            }
            b"=" => self.modes.set_keypad(true),
            b">" => self.modes.set_keypad(false),
            b"Z" => self.answers.attributes(),
            sequence => self.forward("\x1b", sequence),
        }
    }

    fn csi(&mut self, raw: &[u8]) {
        self.give_up_partial();
        let Some(csi) = Csi::new(raw) else {
            return;
        };
        self.modes.csi(&csi, self.is_alternate());
        match csi.function() {
            (0, 0, b'm') => self.forward(CSI, &sgr::simplified(csi.body())),
            (0, 0, b'c') if csi.number(0) == 0 => self.answers.attributes(),
            (0, 0, b'n') => match csi.number(0) {
                5 => self.answers.status(),
                6 => self.answers.position(&self.terminal, &self.followed),
                _ => {}
            },
            // With parameters it would set the left and right margins.
            (0, 0, b's') if !csi.parameters().is_empty() => {}
            (b'?', 0, b'h') => {
                let entering = |mode: &u16| matches!(mode, 47 | 1047 | 1049);
                let by = csi.numbers().filter(entering).last();
                if let (Some(by), false) = (by, self.is_alternate()) {
                    self.alternate_by = by;
                }
                self.forward(CSI, csi.body());
            }
            (0, 0, _) | (b'?', 0, b'l') | (0, b'!', b'p') => self.forward(CSI, csi.body()),
            _ => {}
        }
    }

    fn string(&mut self, kind: Kind, raw: &[u8]) {
        self.give_up_partial();
        if kind == Kind::Osc {
            self.modes.osc(&sequence::contents(raw));
        }
    }

    fn cancelled(&mut self, _raw: &[u8]) {
        self.give_up_partial();
    }

    fn too_long(&mut self, _raw: &[u8]) {
        self.give_up_partial();
    }

    fn long(&mut self, _kind: Kind, _raw: &[u8]) {
        self.give_up_partial();
    }

    fn long_more(&mut self, _bytes: &[u8]) {}
}
