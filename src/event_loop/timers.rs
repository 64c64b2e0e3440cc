//! The alarms of watches, by deadline; those with the same deadline in the order they were set.
//!
//! A cancelled alarm stays in its heap until its deadline, or until more than half of the heap is
//! cancelled, so that setting and cancelling are cheap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;

use crate::clock::Now;
use crate::driver::Key;
use crate::watch::Alarm;

/// The number of entries below which a heap is not rebuilt (asyncio's number).
const REBUILD_MIN: usize = 100;

/// The number of an alarm, never 0. Only the alarm that a watch set last is current; the others are
/// stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AlarmId(NonZeroU64);

impl AlarmId {
    /// Returns whether the alarm is in the heap of the realtime clock.
    const fn is_realtime(self) -> bool {
        self.0.get() & 1 == 1
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: u64,
    id: AlarmId,
    key: Key,
}

#[derive(Debug, Default)]
struct Heap {
    entries: BinaryHeap<Reverse<Entry>>,
    stale: usize,
}

/// The alarms of both clocks.
#[derive(Debug, Default)]
pub(super) struct Timers {
    monotonic: Heap,
    realtime: Heap,
    /// The number of alarms set so far.
    set: u64,
}

impl Heap {
    /// Removes and returns the first entry if it is due.
    fn due(&mut self, now: u64) -> Option<Entry> {
        let Reverse(first) = self.entries.peek()?;
        if first.at > now {
            return None;
        }
        self.entries.pop().map(|Reverse(entry)| entry)
    }
}

impl Timers {
    /// Sets an alarm. Returns its number.
    pub(super) fn set(&mut self, alarm: Alarm, key: Key) -> AlarmId {
        self.set += 1;
        let (heap, at, bit) = match alarm {
            Alarm::Monotonic(at) => (&mut self.monotonic, at, 0),
            Alarm::Realtime(at) => (&mut self.realtime, at, 1),
        };
        // The value is at least 2.
        let id = AlarmId(NonZeroU64::new(self.set << 1 | bit).unwrap_or(NonZeroU64::MIN));
        heap.entries.push(Reverse(Entry { at, id, key }));
        id
    }

    /// Counts a cancelled alarm as stale, and rebuilds its heap if too many are stale. `is_current`
    /// returns whether an alarm is not stale.
    pub(super) fn mark_stale(&mut self, id: AlarmId, is_current: impl Fn(Key, AlarmId) -> bool) {
        let heap = if id.is_realtime() {
            &mut self.realtime
        } else {
            &mut self.monotonic
        };
        heap.stale += 1;
        if heap.stale > heap.entries.len() / 2 && heap.entries.len() > REBUILD_MIN {
            heap.entries
                .retain(|Reverse(entry)| is_current(entry.key, entry.id));
            heap.stale = 0;
        }
    }

    /// Removes and returns the next due alarm, which may be stale.
    pub(super) fn due(&mut self, now: Now) -> Option<(Key, AlarmId)> {
        let due = self.monotonic.due(now.monotonic);
        let due = due.or_else(|| self.realtime.due(now.realtime));
        due.map(|entry| (entry.key, entry.id))
    }

    /// Returns the nanoseconds until the next alarm, which may be stale.
    pub(super) fn next_in(&self, now: Now) -> Option<u64> {
        let left = |heap: &Heap, now: u64| {
            let Reverse(first) = heap.entries.peek()?;
            Some(first.at.saturating_sub(now))
        };
        let monotonic = left(&self.monotonic, now.monotonic);
        let realtime = left(&self.realtime, now.realtime);
        monotonic.into_iter().chain(realtime).min()
    }

    /// Returns whether any alarm depends on the realtime clock.
    pub(super) fn follows_realtime(&self) -> bool {
        !self.realtime.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(slot: u32) -> Key {
        Key {
            slot,
            generation: 0,
        }
    }

    #[test]
    fn alarms_come_by_deadline_and_ties_in_the_order_they_were_set() {
        let mut timers = Timers::default();
        for (slot, at) in [(0, 30), (1, 10), (2, 10), (3, 20)] {
            timers.set(Alarm::Monotonic(at), key(slot));
        }
        let now = Now {
            monotonic: 20,
            realtime: 0,
        };
        let due: Vec<_> = std::iter::from_fn(|| timers.due(now)).collect();
        let slots: Vec<_> = due.iter().map(|(key, _)| key.slot).collect();
        assert_eq!(slots, [1, 2, 3]);
        assert_eq!(timers.next_in(now), Some(10));
    }

    #[test]
    fn alarms_taken_back_do_not_pile_up() {
        let mut timers = Timers::default();
        for round in 0..100_000u64 {
            let id = timers.set(Alarm::Monotonic(u64::MAX - round), key(0));
            timers.mark_stale(id, |_, current| current > id);
        }
        assert!(timers.monotonic.entries.len() <= REBUILD_MIN + 1);
    }
}
