//! How far the streams of a watch are.

/// How far the streams of a watch are. It changes with each transfer, so later lives find it apart from
/// the rest of the watch's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes that were appended of its incoming streams, of which a watch has two at most.
    pub received: [u64; 2],
    /// Bytes that were read of the pipe through which the output of its terminal goes.
    pub relayed: u64,
    /// Bytes of its outgoing stream that were taken.
    pub taken: u64,
    /// Bytes of those that are sent.
    pub sent: u64,
    /// Whether WritePaused was told, and WriteResumed is to follow.
    pub write_paused: bool,
}

/// No stream is as long as this, so that its bit is free in a number of bytes.
const PAUSED: u64 = 1 << 63;

impl Progress {
    /// How many numbers it is.
    pub const NUMBERS: usize = 5;

    /// Returns it as numbers.
    #[must_use]
    pub fn numbers(self) -> [u64; Self::NUMBERS] {
        let [first, second] = self.received;
        let paused = if self.write_paused { PAUSED } else { 0 };
        [first, second, self.relayed, self.taken | paused, self.sent]
    }

    /// Returns what those numbers are.
    #[must_use]
    pub const fn of([first, second, relayed, taken, sent]: [u64; Self::NUMBERS]) -> Self {
        Self {
            received: [first, second],
            relayed,
            taken: taken & !PAUSED,
            sent,
            write_paused: taken & PAUSED != 0,
        }
    }
}
