//! How much: of a budget, of what is held, of what is set aside.

use std::ops::{Add, Sub};

use super::{ENTRY_BYTES, UNRESERVED_EVENT_BYTES};

/// So many events, of so many bytes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Events.
    pub events: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Room {
    /// What so much takes of the memory of all, bytes.
    #[must_use]
    pub(super) const fn cost(self) -> u64 {
        self.bytes + self.events * ENTRY_BYTES
    }

    /// One event of at most so many bytes.
    #[must_use]
    pub const fn event(bytes: u32) -> Self {
        Self {
            events: 1,
            bytes: bytes as u64,
        }
    }

    /// As much as so many events may take for which nothing was set aside.
    #[must_use]
    pub const fn unreserved(events: u64) -> Self {
        Self {
            events,
            bytes: events * UNRESERVED_EVENT_BYTES,
        }
    }

    /// All of `other` fits into it.
    #[must_use]
    pub const fn holds(self, other: Self) -> bool {
        self.events >= other.events && self.bytes >= other.bytes
    }

    /// So many times as much.
    #[must_use]
    pub const fn times(self, count: u64) -> Self {
        Self {
            events: self.events * count,
            bytes: self.bytes * count,
        }
    }

    /// What is left of it, at least nothing.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self {
            events: self.events.saturating_sub(other.events),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl Add for Room {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            events: self.events + other.events,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Sub for Room {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            events: self.events - other.events,
            bytes: self.bytes - other.bytes,
        }
    }
}
