//! State that `avt` keeps to itself and that is needed while bytes are fed.

use avt::parser::{AnsiMode, DecMode, Function, SgrOp, SgrOps};

/// The attributes that would be seen on a blank, except colours. Terminals erase with the background
/// of the pen only, `avt` with all of it.
const ON_BLANKS: [(SgrOp, SgrOp); 4] = [
    (SgrOp::SetUnderline, SgrOp::ResetUnderline),
    (SgrOp::SetBlink, SgrOp::ResetBlink),
    (SgrOp::SetInverse, SgrOp::ResetInverse),
    (SgrOp::SetStrikethrough, SgrOp::ResetStrikethrough),
];

/// What is saved with the cursor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pen {
    /// Whether positions count from the top margin (DECOM).
    origin: bool,
    /// Whether text does not go on in the next line (DECAWM is reset).
    no_wrap: bool,
    /// Which of [`ON_BLANKS`] are set.
    on_blanks: [bool; ON_BLANKS.len()],
}

/// Follows the functions that a terminal executes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Followed {
    rows: usize,
    /// The first and the last row of the region, from 0.
    pub(super) top: usize,
    pub(super) bottom: usize,
    /// Whether text moves what is right of it (IRM).
    inserts: bool,
    pen: Pen,
    /// Of the main and of the alternate screen.
    saved: [Pen; 2],
}

impl Followed {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            rows,
            top: 0,
            bottom: rows - 1,
            inserts: false,
            pen: Pen::default(),
            saved: [Pen::default(); 2],
        }
    }

    /// The row from which positions count.
    pub(super) fn origin(&self) -> usize {
        if self.pen.origin { self.top } else { 0 }
    }

    pub(super) fn wraps(&self) -> bool {
        !self.pen.no_wrap
    }

    pub(super) fn inserts(&self) -> bool {
        self.inserts
    }

    /// Whether a blank that is erased with this pen would be seen.
    pub(super) fn marks_blanks(&self) -> bool {
        self.pen.on_blanks != Pen::default().on_blanks
    }

    /// The attributes that must be off while something is erased, and those that turn them on.
    pub(super) fn marks(&self) -> (SgrOps, SgrOps) {
        let marks = ON_BLANKS
            .iter()
            .zip(self.pen.on_blanks)
            .filter(|(_, on)| *on);
        let (set, reset): (Vec<_>, Vec<_>) = marks.map(|(mark, _)| *mark).unzip();
        (reset.into(), set.into())
    }

    pub(super) fn resize(&mut self, rows: usize) {
        if rows != self.rows {
            self.rows = rows;
            self.unset_margins();
        }
    }

    fn unset_margins(&mut self) {
        self.top = 0;
        self.bottom = self.rows - 1;
    }

    /// Follows a function; `alternate` says whether that screen was active before it.
    pub(super) fn follow(&mut self, function: &Function, alternate: bool) {
        let screen = usize::from(alternate);
        match function {
            Function::Decstbm(top, bottom) => self.set_margins(*top, *bottom),
            Function::Decsc | Function::Scosc => self.saved[screen] = self.pen,
            Function::Decrc | Function::Scorc => self.pen = self.saved[screen],
            Function::Decset(modes) => self.set_modes(modes.as_slice(), screen),
            Function::Decrst(modes) => self.reset_modes(modes.as_slice(), screen),
            Function::Decstr => {
                self.unset_margins();
                self.inserts = false;
                self.pen = Pen::default();
                self.saved[screen] = Pen::default();
            }
            Function::Sgr(ops) => ops.as_slice().iter().for_each(|op| self.pen.apply(*op)),
            Function::Sm(modes) => self.inserts |= modes.as_slice().contains(&AnsiMode::Insert),
            Function::Rm(modes) => self.inserts &= !modes.as_slice().contains(&AnsiMode::Insert),
            Function::Ris => *self = Self::new(self.rows),
            _ => {}
        }
    }

    fn set_margins(&mut self, top: u16, bottom: u16) {
        let top = usize::from(top.max(1)) - 1;
        let bottom = match bottom {
            0 => self.rows - 1,
            bottom => usize::from(bottom) - 1,
        };
        if top < bottom && bottom < self.rows {
            self.top = top;
            self.bottom = bottom;
        }
    }

    fn set_modes(&mut self, modes: &[DecMode], mut screen: usize) {
        for mode in modes {
            match mode {
                DecMode::Origin => self.pen.origin = true,
                DecMode::AutoWrap => self.pen.no_wrap = false,
                DecMode::SaveCursor => self.saved[screen] = self.pen,
                DecMode::AltScreenBuffer => screen = 1,
                DecMode::SaveCursorAltScreenBuffer => {
                    self.saved[screen] = self.pen;
                    screen = 1;
                }
                _ => {}
            }
        }
    }

    fn reset_modes(&mut self, modes: &[DecMode], mut screen: usize) {
        for mode in modes {
            match mode {
                DecMode::Origin => self.pen.origin = false,
                DecMode::AutoWrap => self.pen.no_wrap = true,
                DecMode::SaveCursor => self.pen = self.saved[screen],
                DecMode::AltScreenBuffer => screen = 0,
                DecMode::SaveCursorAltScreenBuffer => {
                    screen = 0;
                    self.pen = self.saved[0];
                }
                _ => {}
            }
        }
    }
}

impl Pen {
    fn apply(&mut self, op: SgrOp) {
        if op == SgrOp::Reset {
            self.on_blanks = Self::default().on_blanks;
        }
        for ((set, reset), on) in ON_BLANKS.iter().zip(&mut self.on_blanks) {
            *on = op == *set || *on && op != *reset;
        }
    }
}

/// Whether a function may erase cells.
pub(super) fn erases(function: &Function) -> bool {
    use Function::{Dch, Decset, Dl, Ech, Ed, El, Ich, Il, Lf, Nel, Ri, Sd, Su};
    matches!(
        function,
        Dch(_)
            | Dl(_)
            | Ech(_)
            | Ed(_)
            | El(_)
            | Ich(_)
            | Il(_)
            | Sd(_)
            | Su(_)
            | Lf
            | Nel
            | Ri
            | Decset(_)
    )
}
