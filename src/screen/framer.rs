//! Splits what a program writes to its terminal into text, controls and sequences.
//!
//! The rules are those of Paul Williams' state machine for ANSI terminals: an ESC begins a new
//! sequence wherever it comes, CAN and SUB cancel one, other C0 controls inside a sequence act at
//! once. C1 controls count in the UTF-8 form (U+0080 to U+009F), as in xterm and VTE, and not as
//! single bytes.

use super::sequence::is_intermediate;
use super::sink::{Kind, SEQUENCE_LIMIT, STRING_LIMIT, Sink};

const BEL: u8 = 0x07;
const CAN: u8 = 0x18;
const SUB: u8 = 0x1a;
const ESC: u8 = 0x1b;
/// The first byte of a C1 control in UTF-8.
const C1: u8 = 0xc2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Ground,
    /// After a byte that may begin a C1 control.
    GroundC1,
    Escape,
    Csi,
    String(Kind),
    /// After an ESC in a string.
    StringEscape(Kind),
    /// After a byte in a string that may begin a C1 control.
    StringC1(Kind),
}

/// Where in a sequence the bytes so far end.
#[derive(Debug, Default)]
pub(super) struct Framer {
    state: State,
    /// The bytes of the unfinished sequence; one more than the limit when there were more.
    raw: Vec<u8>,
}

impl Framer {
    /// Hands the pieces of `bytes` to `sink`. A sequence that `bytes` leave unfinished is kept.
    pub(super) fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) {
        while let Some(&byte) = bytes.first() {
            let used = match self.state {
                State::Ground => self.ground(bytes, sink),
                State::String(kind) => self.string(kind, bytes, sink),
                State::Csi => match self.parameters(bytes) {
                    0 => self.step(byte, sink),
                    run => run,
                },
                _ => self.step(byte, sink),
            };
            bytes = &bytes[used..];
        }
    }

    /// The kind of the unfinished string, if there is one.
    pub(super) fn in_string(&self) -> Option<Kind> {
        match self.state {
            State::String(kind) | State::StringEscape(kind) | State::StringC1(kind) => Some(kind),
            _ => None,
        }
    }

    /// Whether the unfinished string is longer than is kept.
    pub(super) fn is_long(&self) -> bool {
        self.raw.len() > self.limit()
    }

    /// Whether a sequence is unfinished.
    pub(super) fn is_inside(&self) -> bool {
        self.state != State::Ground
    }

    /// The bytes of the unfinished sequence.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// A byte that may begin the end of the unfinished string and is not in [`Framer::raw`].
    pub(super) fn ending(&self) -> &'static [u8] {
        match self.state {
            State::StringEscape(_) => &[ESC],
            State::StringC1(_) => &[C1],
            _ => &[],
        }
    }

    fn limit(&self) -> usize {
        if self.in_string().is_some() {
            STRING_LIMIT
        } else {
            SEQUENCE_LIMIT
        }
    }

    /// Text up to the next sequence, or the beginning of one.
    fn ground(&mut self, bytes: &[u8], sink: &mut impl Sink) -> usize {
        let is_end = |(at, &byte): (usize, &u8)| {
            byte == ESC
                || byte == C1
                    && bytes
                        .get(at + 1)
                        .is_none_or(|next| (0x80..0xa0).contains(next))
        };
        let end = bytes.iter().enumerate().position(is_end);
        match end {
            None => sink.text(bytes),
            Some(0) => {
                self.state = if bytes[0] == ESC {
                    State::Escape
                } else {
                    State::GroundC1
                };
                self.raw.clear();
                self.raw.push(bytes[0]);
                return 1;
            }
            Some(end) => sink.text(&bytes[..end]),
        }
        end.unwrap_or(bytes.len())
    }

    /// Adds the parameters and intermediates that come next, up to the limit; how many.
    fn parameters(&mut self, bytes: &[u8]) -> usize {
        let long = self.is_long();
        let room = SEQUENCE_LIMIT.saturating_sub(self.raw.len());
        let bytes = if long {
            bytes
        } else {
            &bytes[..room.min(bytes.len())]
        };
        let is_inside = |byte: &&u8| (0x20..0x40).contains(*byte);
        let run = bytes.iter().take_while(is_inside).count();
        if !long {
            self.raw.extend_from_slice(&bytes[..run]);
        }
        run
    }

    /// The part of a string up to a byte that may end it, or that byte.
    fn string(&mut self, kind: Kind, bytes: &[u8], sink: &mut impl Sink) -> usize {
        let is_end =
            |&byte: &u8| matches!(byte, ESC | CAN | SUB | C1) || byte == BEL && kind == Kind::Osc;
        let run = bytes.iter().position(is_end).unwrap_or(bytes.len());
        self.keep(kind, &bytes[..run], sink);
        let Some(&byte) = bytes.get(run) else {
            return run;
        };
        match byte {
            ESC => self.state = State::StringEscape(kind),
            C1 => self.state = State::StringC1(kind),
            BEL => {
                self.keep(kind, &[byte], sink);
                self.end_string(kind, sink);
            }
            _ => {
                self.keep(kind, &[byte], sink);
                self.cancel(sink);
            }
        }
        run + 1
    }

    /// Adds to the unfinished string.
    fn keep(&mut self, kind: Kind, bytes: &[u8], sink: &mut impl Sink) {
        if self.raw.len() > STRING_LIMIT {
            sink.long_more(bytes);
            return;
        }
        let room = STRING_LIMIT + 1 - self.raw.len();
        let (kept, rest) = bytes.split_at(room.min(bytes.len()));
        self.raw.extend_from_slice(kept);
        if self.raw.len() > STRING_LIMIT {
            sink.long(kind, &self.raw);
            sink.long_more(rest);
        }
    }

    fn end_string(&mut self, kind: Kind, sink: &mut impl Sink) {
        if self.raw.len() <= STRING_LIMIT {
            sink.string(kind, &self.raw);
        }
        self.finish();
    }

    fn cancel(&mut self, sink: &mut impl Sink) {
        if !self.is_long() {
            sink.cancelled(&self.raw);
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.state = State::Ground;
        self.raw.clear();
    }

    fn begin(&mut self, state: State) {
        self.state = state;
        self.raw.clear();
        self.raw.push(ESC);
    }

    /// One byte in any of the other states; the number of bytes used, which may be none.
    fn step(&mut self, byte: u8, sink: &mut impl Sink) -> usize {
        match (self.state, byte) {
            (State::GroundC1, 0x80..0xa0) => {
                self.raw.push(byte);
                self.introduce(byte - 0x40, sink);
            }
            (State::GroundC1, _) => {
                sink.text(&[C1]);
                self.finish();
                return 0;
            }
            (State::StringEscape(kind), b'\\') => {
                self.keep(kind, &[ESC, byte], sink);
                self.end_string(kind, sink);
            }
            (State::StringEscape(kind), _) => {
                self.end_string(kind, sink);
                self.begin(State::Escape);
                return 0;
            }
            (State::StringC1(kind), 0x9c) => {
                self.keep(kind, &[C1, byte], sink);
                self.end_string(kind, sink);
            }
            (State::StringC1(kind), _) => {
                self.keep(kind, &[C1], sink);
                self.state = State::String(kind);
                return 0;
            }
            (_, ESC) => {
                self.cancel(sink);
                self.begin(State::Escape);
            }
            (_, CAN | SUB) => {
                self.push(byte, sink);
                self.cancel(sink);
            }
            (_, 0..0x20) if self.is_long() => sink.text(&[byte]),
            (_, 0..0x20) => {
                self.push(byte, sink);
                sink.control(byte);
            }
            (State::Escape, b'0'..=b'~') if !self.raw.iter().any(is_intermediate) => {
                self.push(byte, sink);
                self.introduce(byte, sink);
            }
            (State::Escape, b'0'..=b'~') | (State::Csi, b'@'..=b'~') => {
                self.push(byte, sink);
                self.end_sequence(sink);
            }
            (_, 0x80..0xa0) if self.raw.last() == Some(&C1) => {
                self.raw.pop();
                self.cancel(sink);
                self.raw.extend([C1, byte]);
                self.introduce(byte - 0x40, sink);
            }
            // Parameters and intermediates, and bytes that belong into no sequence: DEL and above.
            _ => self.push(byte, sink),
        }
        1
    }

    /// Adds to the unfinished sequence.
    fn push(&mut self, byte: u8, sink: &mut impl Sink) {
        if self.raw.len() <= SEQUENCE_LIMIT {
            self.raw.push(byte);
            if self.is_long() {
                sink.too_long(&self.raw);
            }
        }
    }

    fn end_sequence(&mut self, sink: &mut impl Sink) {
        if self.raw.len() <= SEQUENCE_LIMIT {
            if self.state == State::Csi {
                sink.csi(&self.raw);
            } else {
                sink.escape(&self.raw);
            }
        }
        self.finish();
    }

    /// What the byte after ESC, or the C1 control that it stands for, begins.
    fn introduce(&mut self, byte: u8, sink: &mut impl Sink) {
        self.state = match byte {
            b'[' => State::Csi,
            b']' => State::String(Kind::Osc),
            b'P' => State::String(Kind::Dcs),
            b'X' | b'^' | b'_' | b'k' => State::String(Kind::Other),
            _ => {
                self.state = State::Escape;
                return self.end_sequence(sink);
            }
        };
    }
}
