//! How far the streams of a watch are.

/// How far the streams of a watch are. It changes with each transfer, so later lives find it apart from
/// the rest of the watch's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes that were appended of its incoming streams, of which a watch has two at most.
    pub received: [u64; 2],
    /// Bytes of its outgoing stream that were taken.
    pub taken: u64,
    /// Bytes of those that are sent.
    pub sent: u64,
    /// Whether WritePaused was told, and WriteResumed is to follow.
    pub write_paused: bool,
}

impl Progress {
    /// How many numbers it is.
    pub const NUMBERS: usize = 5;

    /// Returns it as numbers.
    #[must_use]
    pub fn numbers(self) -> [u64; Self::NUMBERS] {
        let [first, second] = self.received;
        [
            first,
            second,
            self.taken,
            self.sent,
            self.write_paused.into(),
        ]
    }

    /// Returns what those numbers are.
    #[must_use]
    pub const fn of([first, second, taken, sent, paused]: [u64; Self::NUMBERS]) -> Self {
        Self {
            received: [first, second],
            taken,
            sent,
            write_paused: paused != 0,
        }
    }
}
