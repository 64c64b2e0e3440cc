//! Leaves out of recorded output what a terminal would answer or take away from its user.

#[cfg(test)]
mod tests;

use super::framer::Framer;
use super::sequence::{self, Csi};
use super::sink::{Kind, Sink};

/// The control that asks for an answerback.
const ENQ: u8 = 0x05;

/// A filter for recorded output that is shown on a terminal.
///
/// It leaves out what a terminal would answer, as the answer would be typed into whatever reads the
/// terminal now: DA1, DA2, DA3, DECID and ENQ; DSR; DECRQM, DECRQSS, DECRQPSR, DECREQTPARM, DECRQCRA,
/// DECRQUPSS and presentation state reports; XTVERSION, XTGETTCAP, XTQMODKEYS, XTSMGRAPHICS, reports
/// of the window (XTWINOPS 11 to 21) and of colours; questions for the kitty keyboard flags, kitty
/// graphics, and the colours, fonts and cursors of OSC 4, 5, 10 to 19, 21, 22, 50, 60 and 61. It leaves
/// out the clipboard (OSC 52, 5522 and iTerm's), titles (OSC 0 to 3, `ESC k`, and XTWINOPS 22 and 23),
/// and what tmux would pass to the terminal around it.
///
/// All else passes byte for byte, however it is cut into calls. Only where what is left out has cut
/// something short, ST (`ESC \`) comes in its place. A sequence is held back until its end:
/// at most 256 bytes of a control sequence, and longer ones are left out; at most 4 KiB of a string,
/// of which longer ones pass or not by their beginning (colours do not).
///
/// Output that is shown while it comes has titles of its own: [`Quiet::with_titles`].
#[derive(Debug, Default)]
pub struct Quiet {
    framer: Framer,
    passed: Passed,
}

#[derive(Debug, Default)]
struct Passed {
    /// Whether titles pass.
    titles: bool,
    out: Vec<u8>,
    /// Whether the long string that is under way passes.
    passes: bool,
    /// Whether the sequence that passed last may be unfinished: it was cut short by what came next.
    open: bool,
    /// The last bytes that passed, which may be the beginning of a character.
    last: [u8; 3],
}

impl Quiet {
    /// A filter at the beginning of the output.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Quiet::new`], for a terminal that shows the output as it comes: titles pass, and so do the
    /// sequences that save them and take them back.
    pub fn with_titles() -> Self {
        let passed = Passed {
            titles: true,
            ..Passed::default()
        };
        Self {
            framer: Framer::default(),
            passed,
        }
    }

    /// Whether a sequence is unfinished, of which the rest is needed.
    pub fn is_holding(&self) -> bool {
        self.framer.is_inside()
    }

    /// What passes of the next bytes and of those that were held back.
    pub fn filter(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.framer.feed(bytes, &mut self.passed);
        std::mem::take(&mut self.passed.out)
    }
}

impl Passed {
    fn pass(&mut self, bytes: &[u8]) {
        for byte in &bytes[bytes.len().saturating_sub(self.last.len())..] {
            self.last.rotate_left(1);
            self.last[2] = *byte;
            self.open = false;
        }
        self.out.extend_from_slice(bytes);
    }

    /// Passes a sequence without the questions between its bytes.
    fn sequence(&mut self, raw: &[u8]) {
        let kept: Vec<u8> = raw.iter().copied().filter(|byte| *byte != ENQ).collect();
        self.pass(&kept);
    }

    /// Passes the controls between the bytes of a sequence that does not pass.
    fn controls(&mut self, raw: &[u8]) {
        let inside = raw.get(1..).unwrap_or_default().iter().copied();
        let controls: Vec<u8> = inside.filter(|byte| *byte < 0x20 && *byte != ENQ).collect();
        self.pass(&controls);
    }

    fn leaves_out(&self, csi: &Csi) -> bool {
        is_question(csi) || !self.titles && is_about_titles(csi)
    }

    /// Whether a string passes; if it is not `whole`, what may still come of it counts.
    fn passes_string(&self, kind: Kind, raw: &[u8], whole: bool) -> bool {
        if is_title(kind, raw) {
            self.titles
        } else {
            passes(kind, raw, whole)
        }
    }

    /// Nothing passes of what came. What it has cut short is ended in its place, by ST.
    fn leave_out(&mut self) {
        if self.open || ends_inside_character(self.last) {
            self.pass(b"\x1b\\");
        }
    }
}

impl Sink for Passed {
    fn text(&mut self, bytes: &[u8]) {
        let mut runs = bytes.split(|byte| *byte == ENQ);
        self.pass(runs.next().unwrap_or_default());
        for run in runs {
            self.leave_out();
            self.pass(run);
        }
    }

    fn control(&mut self, _byte: u8) {}

    fn escape(&mut self, raw: &[u8]) {
        if sequence::escape(raw) == b"Z" {
            self.leave_out();
            self.controls(raw);
        } else {
            self.sequence(raw);
        }
    }

    fn csi(&mut self, raw: &[u8]) {
        if Csi::new(raw).is_some_and(|csi| self.leaves_out(&csi)) {
            self.leave_out();
            self.controls(raw);
        } else {
            self.sequence(raw);
        }
    }

    fn string(&mut self, kind: Kind, raw: &[u8]) {
        if self.passes_string(kind, raw, true) {
            self.pass(raw);
            self.open |= !sequence::is_terminated(raw);
        } else {
            self.leave_out();
        }
    }

    fn cancelled(&mut self, raw: &[u8]) {
        self.sequence(raw);
        self.open = true;
    }

    fn too_long(&mut self, raw: &[u8]) {
        self.leave_out();
        self.controls(raw);
    }

    fn long(&mut self, kind: Kind, raw: &[u8]) {
        self.passes = self.passes_string(kind, raw, false);
        if self.passes {
            self.long_more(raw);
        } else {
            self.leave_out();
        }
    }

    fn long_more(&mut self, bytes: &[u8]) {
        if self.passes {
            self.pass(bytes);
            self.open = true;
        }
    }
}

/// Whether the bytes end with the beginning of a character: behind what is left out, it could find the
/// rest of one.
fn ends_inside_character(last: [u8; 3]) -> bool {
    let begins = last.iter().rposition(|byte| !(0x80..0xc0).contains(byte));
    begins.is_some_and(|at| {
        let length = match last[at] {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0.. => 4,
            _ => 1,
        };
        length > last.len() - at
    })
}

/// Whether a control sequence saves a title or takes it back.
fn is_about_titles(csi: &Csi) -> bool {
    csi.function() == (0, 0, b't') && matches!(csi.number(0), 22 | 23)
}

/// Whether a control sequence makes a terminal answer.
fn is_question(csi: &Csi) -> bool {
    match csi.function() {
        // DA1 to DA3, DSR (not XTMODKEYS, which ends in n too), DECREQTPARM.
        (0 | b'>' | b'=' | b'?', 0, b'c') | (0 | b'?', 0, b'n') | (0, 0, b'x') => true,
        // DECRQM, DECRQPSR, DECRQTSR, DECRQUPSS, DECRQCRA, DECRQLP.
        (_, b'$', b'p' | b'w' | b'u') | (_, b'&', b'u') | (_, b'*', b'y') | (_, b'\'', b'|') => {
            true
        }
        // XTVERSION, XTQMODKEYS and XTQFMTKEYS, XTSMGRAPHICS, kitty keyboard flags.
        (b'>', 0, b'q') | (b'?', 0, b'm' | b'g' | b'S' | b'u') => true,
        // XTREPORTCOLORS, XTREPORTSGR.
        (_, b'#', b'R' | b'|') => true,
        (0, 0, b't') => matches!(csi.number(0), 11..=21),
        _ => false,
    }
}

/// Whether a string is a title, of one kind or another.
fn is_title(kind: Kind, raw: &[u8]) -> bool {
    match kind {
        Kind::Osc => {
            let contents = sequence::contents(raw);
            // The letters are those of Sun's terminals.
            matches!(contents.first(), Some(b'l' | b'L' | b'I'))
                || matches!(sequence::command(&contents).0, 0..=3)
        }
        Kind::Dcs => false,
        Kind::Other => sequence::is_title(raw),
    }
}

/// Whether a string that is no title passes; if it is not `whole`, what may still come of it counts.
fn passes(kind: Kind, raw: &[u8], whole: bool) -> bool {
    let contents = sequence::contents(raw);
    match kind {
        Kind::Osc => command_passes(&contents, whole),
        // DECRQSS, XTGETTCAP, and what tmux passes on.
        Kind::Dcs => {
            let has = |part: &[u8]| contents.starts_with(part);
            let parameters = contents
                .iter()
                .take_while(|byte| (b'0'..=b';').contains(*byte));
            let function = &contents[parameters.count()..];
            !(function.starts_with(b"$q") || function.starts_with(b"+q") || has(b"tmux;"))
        }
        Kind::Other => !is_graphics_question(&contents),
    }
}

fn command_passes(contents: &[u8], whole: bool) -> bool {
    const OF_ITERM: [&[u8]; 3] = [b"Copy", b"Report", b"RequestUpload"];
    let (number, value) = sequence::command(contents);
    match number {
        52 | 5522 => false,
        1337 => !OF_ITERM.iter().any(|name| value.starts_with(name)),
        4 | 5 | 10..=19 | 21 | 22 | 50 | 60 | 61 => whole && !value.contains(&b'?'),
        _ => true,
    }
}

/// Whether kitty graphics are asked whether they are there (`a=q`).
fn is_graphics_question(contents: &[u8]) -> bool {
    let Some(contents) = contents.strip_prefix(b"G") else {
        return false;
    };
    let keys = contents
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default();
    keys.split(|byte| *byte == b',').any(|key| key == b"a=q")
}
