//! An amount of journal: a budget, or a part of it that is held or set aside.

use std::ops::{Add, Sub};

use super::{ENTRY_BYTES, UNRESERVED_EVENT_BYTES};

/// A number of events and the bytes of all of them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Events.
    pub events: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Room {
    /// Returns the bytes that it takes of the memory of all journals.
    #[must_use]
    pub(super) const fn cost(self) -> u64 {
        self.bytes + self.events * ENTRY_BYTES
    }

    /// Returns the room of one event of at most `bytes`.
    #[must_use]
    pub const fn event(bytes: u32) -> Self {
        Self {
            events: 1,
            bytes: bytes as u64,
        }
    }

    /// Returns the room of as many events that have no room set aside, their payloads not counted.
    #[must_use]
    pub const fn unreserved(events: u64) -> Self {
        Self {
            events,
            bytes: events * UNRESERVED_EVENT_BYTES,
        }
    }

    /// Returns whether all of `other` fits into it.
    #[must_use]
    pub const fn holds(self, other: Self) -> bool {
        self.events >= other.events && self.bytes >= other.bytes
    }

    /// Returns how many times `one` fits into it, which is not nothing.
    #[must_use]
    pub const fn over(self, one: Self) -> u64 {
        let events = self.events.checked_div(one.events);
        let bytes = self.bytes.checked_div(one.bytes);
        match (events, bytes) {
            (Some(events), Some(bytes)) if events < bytes => events,
            (_, Some(bytes)) => bytes,
            (Some(events), None) => events,
            (None, None) => 0,
        }
    }

    /// Returns `count` times as much.
    #[must_use]
    pub const fn times(self, count: u64) -> Self {
        Self {
            events: self.events * count,
            bytes: self.bytes * count,
        }
    }

    /// Returns what is left without `other`, at least nothing.
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
