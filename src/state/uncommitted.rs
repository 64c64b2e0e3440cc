//! What an earlier life has transferred, and did not commit.

use std::os::fd::RawFd;

/// Bytes that an earlier life took and did not commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unrecorded {
    /// The number of the descriptor.
    pub number: RawFd,
    /// The bytes of the stream before them; `None`: as many as are recorded.
    pub offset: Option<u64>,
    /// The bytes.
    pub(super) bytes: Vec<u8>,
}

impl Unrecorded {
    /// Returns the bytes that come after the first `offset` bytes of the stream, if there are any.
    #[must_use]
    pub fn after(&self, offset: u64) -> Option<&[u8]> {
        let known = offset.saturating_sub(self.offset.unwrap_or(offset));
        let rest = self.bytes.get(usize::try_from(known).ok()?..);
        rest.filter(|rest| !rest.is_empty())
    }

    /// Returns how many bytes of the stream come before what follows.
    pub(super) fn end(&self) -> Option<u64> {
        Some(self.offset? + self.bytes.len() as u64)
    }
}

/// Bytes of a stream that an earlier life has sent, without having committed that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The number of the descriptor.
    pub number: RawFd,
    /// The bytes of the stream before them; `None`: as many as were sent before.
    pub offset: Option<u64>,
    /// How many they are; `None`: nothing tells.
    pub len: Option<u64>,
}

impl Sent {
    /// Returns how many bytes of the stream are sent, if `sent` were before; `None` if nothing tells.
    #[must_use]
    pub fn after(&self, sent: u64) -> Option<u64> {
        let offset = self.offset.unwrap_or(sent);
        match self.len {
            Some(len) => Some(sent.max(offset + len)),
            // They were recorded: only what follows was in doubt.
            None if offset < sent => Some(sent),
            None => None,
        }
    }
}

/// What an earlier life has transferred last. Some of it may be committed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uncommitted {
    /// What it took, the bytes of each stream in order.
    pub taken: Vec<Unrecorded>,
    /// What it sent, the bytes of each stream in order.
    pub sent: Vec<Sent>,
}

impl Uncommitted {
    /// Returns what it has of these descriptors.
    #[must_use]
    pub fn of(&self, numbers: &[RawFd]) -> Self {
        let taken = self.taken.iter();
        let sent = self.sent.iter();
        Self {
            taken: taken
                .filter(|one| numbers.contains(&one.number))
                .cloned()
                .collect(),
            sent: sent
                .filter(|one| numbers.contains(&one.number))
                .copied()
                .collect(),
        }
    }
}
