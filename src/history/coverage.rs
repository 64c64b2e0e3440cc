//! Which events a reader may not have received, so that their absence is no violation.

use super::View;

/// How much of a history one reader received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coverage {
    /// What the reader's filter lets through.
    pub(super) view: View,
    /// Whether no watch is older than the recording.
    pub(super) from_birth: bool,
    /// The last sequence number that a gap covers; 0 if there was no gap.
    pub(super) last_lost: u64,
}

impl Coverage {
    /// Returns whether there may be events after `seq` that were not delivered.
    pub(super) fn lossy_since(self, seq: u64) -> bool {
        self.view == View::Kinds || self.last_lost > seq
    }

    /// Returns whether a watch may have had events before its first delivered one.
    pub(super) fn lossy_from_start(self) -> bool {
        !self.from_birth || self.lossy_since(0)
    }
}
