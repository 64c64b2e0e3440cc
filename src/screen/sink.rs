//! The pieces into which what a program writes is split.

/// The most bytes that a control sequence (`CSI`) or an escape sequence may have. Longer ones are
/// swallowed whole, as no terminal acts on them in one way.
pub(super) const SEQUENCE_LIMIT: usize = 256;

/// The most bytes of a string (OSC, DCS and their like) that are held back until its end.
pub(super) const STRING_LIMIT: usize = 4096;

/// What a string is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An operating system command, which BEL ends too.
    Osc,
    /// A device control string.
    Dcs,
    /// A string of a kind whose contents act on no screen: SOS, PM, APC, or screen's `ESC k`.
    Other,
}

/// What receives the pieces, in the order in which they came. `raw` is everything from the
/// introducer to the last byte, with the controls that came between.
pub(super) trait Sink {
    /// Text and C0 controls other than ESC; a character of UTF-8 may be cut at its borders.
    fn text(&mut self, bytes: &[u8]);
    /// A C0 control inside a sequence; it is in that sequence's `raw` too.
    fn control(&mut self, byte: u8);
    /// A finished escape sequence, or a C1 control that introduces nothing.
    fn escape(&mut self, raw: &[u8]);
    /// A finished control sequence.
    fn csi(&mut self, raw: &[u8]);
    /// A finished string of at most [`STRING_LIMIT`] bytes.
    fn string(&mut self, kind: Kind, raw: &[u8]);
    /// A sequence that was cancelled, or cut short by the next; for the latter, `raw` ends before.
    fn cancelled(&mut self, raw: &[u8]);
    /// A sequence has become longer than sequences may be. Nothing of it counts but the controls: those
    /// after these bytes come as text.
    fn too_long(&mut self, raw: &[u8]);
    /// A string has become longer than [`STRING_LIMIT`]; these are its bytes so far.
    fn long(&mut self, kind: Kind, raw: &[u8]);
    /// More bytes of a long string, up to its last one.
    fn long_more(&mut self, bytes: &[u8]);
}
