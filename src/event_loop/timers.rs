//! The alarms of watches, by deadline over all clocks; those with the same deadline in the order
//! they were set.
//!
//! A cancelled alarm stays in its heap until its deadline, or until more than half of the heap is
//! cancelled, so that setting and cancelling are cheap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;

use crate::clock::{Clock, Now};
use crate::driver::Key;
use crate::watch::Alarm;

/// The number of entries below which a heap is not rebuilt (asyncio's number).
const REBUILD_MIN: usize = 100;

/// The number of an alarm, never 0. Only the alarm that a watch set last is current; the others are
/// stale. The low bits are its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AlarmId(NonZeroU64);

/// The clocks, in the order of the heaps.
const CLOCKS: [Clock; 3] = [Clock::Monotonic, Clock::Boottime, Clock::Realtime];

impl AlarmId {
    /// Returns the index of the alarm's heap.
    const fn heap(self) -> usize {
        (self.0.get() & 3) as usize
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

/// The alarms of all clocks.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heaps: [Heap; CLOCKS.len()],
    /// The number of alarms set so far.
    set: u64,
}

impl Heap {
    fn first(&self) -> Option<&Entry> {
        self.entries.peek().map(|Reverse(entry)| entry)
    }
}

impl Timers {
    /// Sets an alarm. Returns its number.
    pub(super) fn set(&mut self, alarm: Alarm, key: Key) -> AlarmId {
        self.set += 1;
        let (heap, at) = match alarm {
            Alarm::Monotonic(at) => (0, at),
            Alarm::Boottime(at) => (1, at),
            Alarm::Realtime(at) => (2, at),
        };
        // The value is at least 4.
        let id = AlarmId(NonZeroU64::new(self.set << 2 | heap).unwrap_or(NonZeroU64::MIN));
        let entry = Entry { at, id, key };
        self.heaps[id.heap()].entries.push(Reverse(entry));
        id
    }

    /// Counts a cancelled alarm as stale, and rebuilds its heap if too many are stale. `is_current`
    /// returns whether an alarm is not stale.
    pub(super) fn mark_stale(&mut self, id: AlarmId, is_current: impl Fn(Key, AlarmId) -> bool) {
        let heap = &mut self.heaps[id.heap()];
        heap.stale += 1;
        if heap.stale > heap.entries.len() / 2 && heap.entries.len() > REBUILD_MIN {
            heap.entries
                .retain(|Reverse(entry)| is_current(entry.key, entry.id));
            heap.stale = 0;
        }
    }

    /// Removes and returns the next due alarm, which may be stale: over all clocks the one that is
    /// due longest.
    pub(super) fn due(&mut self, now: Now) -> Option<(Key, AlarmId)> {
        let firsts = self.heaps.iter().zip(CLOCKS).enumerate();
        let due = firsts.filter_map(|(heap, (alarms, clock))| {
            let first = alarms.first()?;
            let late = now.of(clock).checked_sub(first.at)?;
            Some((Reverse(late), first.id.0.get() >> 2, heap))
        });
        let (_, _, heap) = due.min()?;
        let Reverse(entry) = self.heaps[heap].entries.pop()?;
        Some((entry.key, entry.id))
    }

    /// Returns the nanoseconds until the next alarm, which may be stale.
    pub(super) fn next_in(&self, now: Now) -> Option<u64> {
        let firsts = self.heaps.iter().zip(CLOCKS);
        let left = firsts
            .filter_map(|(alarms, clock)| Some(alarms.first()?.at.saturating_sub(now.of(clock))));
        left.min()
    }

    /// Returns whether any alarm can come due earlier than the monotonic clock tells: because
    /// another clock is set, or goes on while the host is suspended.
    pub(super) fn can_jump(&self) -> bool {
        self.heaps[1..].iter().any(|heap| !heap.entries.is_empty())
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
            ..Now::default()
        };
        let due: Vec<_> = std::iter::from_fn(|| timers.due(now)).collect();
        let slots: Vec<_> = due.iter().map(|(key, _)| key.slot).collect();
        assert_eq!(slots, [1, 2, 3]);
        assert_eq!(timers.next_in(now), Some(10));
    }

    #[test]
    fn alarms_of_all_clocks_come_in_one_order_of_deadlines() {
        let mut timers = Timers::default();
        let now = Now {
            monotonic: 100,
            boottime: 1_000,
            realtime: 50_000,
        };
        // Late by 10, 30, 20, 30 and 0; one that is not due.
        timers.set(Alarm::Monotonic(90), key(0));
        timers.set(Alarm::Realtime(49_970), key(1));
        timers.set(Alarm::Boottime(980), key(2));
        timers.set(Alarm::Boottime(970), key(3));
        timers.set(Alarm::Realtime(50_000), key(4));
        timers.set(Alarm::Monotonic(107), key(5));
        let due: Vec<_> = std::iter::from_fn(|| timers.due(now)).collect();
        let slots: Vec<_> = due.iter().map(|(key, _)| key.slot).collect();
        assert_eq!(slots, [1, 3, 2, 0, 4]);
        assert_eq!(timers.next_in(now), Some(7));
        assert!(!timers.can_jump());
    }

    #[test]
    fn alarms_taken_back_do_not_pile_up() {
        let mut timers = Timers::default();
        for round in 0..100_000u64 {
            let id = timers.set(Alarm::Monotonic(u64::MAX - round), key(0));
            timers.mark_stale(id, |_, current| current > id);
        }
        assert!(timers.heaps[0].entries.len() <= REBUILD_MIN + 1);
    }
}
