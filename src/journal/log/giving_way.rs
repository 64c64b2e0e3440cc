//! What gives way when room is needed, and what stays as an island.

use std::collections::BTreeMap;

use super::{CLOSED, Island, Log};
use crate::journal::Room;
use crate::journal::board::Place;
use crate::journal::labels::LabelSets;
use crate::journal::outbox::Entry;
use crate::journal::watches::Fate;

const STARTED: u8 = 15;
const STREAM_END: u8 = 17;
const EXITED: u8 = 18;
const CONNECTED: u8 = 19;
const EOF: u8 = 22;

/// What happens once to a watch and is asked for later: it stays until the watch is removed.
const fn is_fact(kind: u8) -> bool {
    matches!(
        kind,
        CLOSED | STARTED | STREAM_END | EXITED | CONNECTED | EOF
    )
}

/// The ring is made smaller where it has room for so many times what is in it.
const SPARE: usize = 4;
/// Events that one call lets give way, or makes islands.
const AT_ONCE: usize = 16 * 1024;

impl Island {
    fn room(&self) -> Room {
        Room {
            events: 1,
            bytes: self.bytes.len() as u64,
        }
    }
}

impl Log {
    /// Trims what is not needed to the budget, less what is set aside, and what comes up to `unkept`.
    pub(in crate::journal) fn trim(&mut self, unkept: u64, labels: &mut LabelSets) {
        let is_too_much = |log: &Self| {
            let goes = log.first <= unkept && !log.entries.is_empty();
            goes || log.is_over_budget()
        };
        self.is_behind = false;
        if is_too_much(self) {
            self.give_way_while(labels, is_too_much);
        }
    }

    /// Trims history to a share of the memory of all, as long as that is exceeded.
    pub(in crate::journal) fn give_way(&mut self, share: u64, target: u64, labels: &mut LabelSets) {
        self.give_way_while(labels, |log| {
            log.size().held > share && log.memory.used() > target
        });
    }

    /// The oldest of the ring gives way, but every watch keeps its newest; where that is not
    /// enough, islands do, of the watches that have most of them. So much of it as may be done under
    /// one lock.
    fn give_way_while(&mut self, labels: &mut LabelSets, is_too_much: impl Fn(&Self) -> bool) {
        self.watches.measure();
        // What became islands needs its place in the ring no more.
        if self.entries.len() < self.entries.capacity() / SPARE {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        for _ in 0..AT_ONCE {
            let done = if is_too_much(self) && self.may_trim() {
                self.trim_one(labels);
                true
            } else if is_too_much(self) || self.has_too_many_islands() {
                self.drop_an_island(labels)
            } else {
                false
            };
            if !done {
                return;
            }
        }
        self.is_behind = true;
    }

    fn has_too_many_islands(&self) -> bool {
        let held = self.facts.bytes + self.pinned_islands.bytes + self.watches.unread().bytes;
        self.island_bytes > self.watches.islands_max() + held
    }

    fn is_over_budget(&self) -> bool {
        self.events() + self.reserved.events > self.limits.events
            || self.bytes() + self.reserved.bytes > self.limits.bytes
    }

    fn may_trim(&self) -> bool {
        !self.entries.is_empty() && (self.first < self.pinned_from() || !self.pauses())
    }

    /// Takes the oldest entry out of the ring: it becomes an island, or is gone.
    fn trim_one(&mut self, labels: &mut LabelSets) {
        let Some(entry) = self.entries.front().copied() else {
            return;
        };
        let seq = self.first;
        let len = entry.end - self.start;
        match self.watches.fate(seq, &entry, is_fact(entry.kind)) {
            Fate::Lost => self.lose(seq, &entry, len, labels),
            fate => {
                let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
                self.slices(seq..seq + 1, &mut |slice| bytes.extend_from_slice(&slice));
                self.island_bytes += len;
                if fate == Fate::Fact {
                    self.facts.events += 1;
                    self.facts.bytes += len;
                }
                let island = Box::new(Island {
                    bytes: bytes.into(),
                    entry,
                    is_fact: fate == Fate::Fact,
                });
                self.islands.insert(seq, island);
                self.watches.islanded(entry.watch, seq, len, fate);
            }
        }
        self.entries.pop_front();
        self.first += 1;
        self.start = entry.end;
        while self
            .chunks
            .front()
            .is_some_and(|chunk| chunk.start + chunk.bytes.len() as u64 <= self.start)
        {
            self.chunks.pop_front();
        }
        self.drop_stale_islands(entry.watch, labels);
    }

    /// An event is gone.
    fn lose(&mut self, seq: u64, entry: &Entry, len: u64, labels: &mut LabelSets) {
        self.memory.sub(
            Room {
                events: 1,
                bytes: len,
            }
            .cost(),
        );
        self.trimmed += 1;
        self.dropped += u64::from(self.floor.is_some_and(|floor| seq > floor));
        labels.release(entry.labels);
        self.watches.lost(entry.watch, seq, len);
    }

    pub(super) fn drop_islands(
        &mut self,
        seqs: impl IntoIterator<Item = u64>,
        labels: &mut LabelSets,
    ) {
        for seq in seqs {
            if let Some(island) = self.islands.remove(&seq) {
                let room = island.room();
                self.island_bytes -= room.bytes;
                if island.is_fact {
                    self.facts = self.facts.less(room);
                } else if seq > self.pinned_after() {
                    self.pinned_islands = self.pinned_islands.less(room);
                }
                self.lose(seq, &island.entry, room.bytes, labels);
            }
        }
    }

    /// What consumers have not acknowledged of the islands changes with the lowest cursor.
    pub(super) fn repin_islands(&mut self, floor: Option<u64>) {
        let before = self.pinned_after();
        let after = self.pinned_after_floor(floor);
        let (low, high) = (before.min(after), before.max(after));
        if low == high {
            return;
        }
        let mut moved = Room::default();
        for island in self.islands.range(low + 1..=high).map(|(_, i)| i) {
            if !island.is_fact {
                moved.events += 1;
                moved.bytes += island.room().bytes;
            }
        }
        if after < before {
            self.pinned_islands.events += moved.events;
            self.pinned_islands.bytes += moved.bytes;
        } else {
            self.pinned_islands = self.pinned_islands.less(moved);
        }
    }

    /// The watch has newer events by now than some of its islands: those it does not keep any longer.
    fn drop_stale_islands(&mut self, watch: u64, labels: &mut LabelSets) {
        let upto = |islands: &BTreeMap<u64, Box<Island>>, seq| {
            islands.get(&seq).map_or(0, |island| island.entry.upto)
        };
        let pinned_after = self.pinned_after();
        while let Some(seq) = self
            .watches
            .stale_island(watch, pinned_after, |seq| upto(&self.islands, seq))
        {
            self.drop_oldest_island(watch, seq, labels);
        }
    }

    /// Drops the oldest island of the watch that has most of them. False: there is none that may go.
    fn drop_an_island(&mut self, labels: &mut LabelSets) -> bool {
        let Some((watch, seq)) = self.watches.next_to_give_way(self.pinned_after()) else {
            return false;
        };
        self.drop_oldest_island(watch, seq, labels);
        true
    }

    fn drop_oldest_island(&mut self, watch: u64, seq: u64, labels: &mut LabelSets) {
        let bytes = self.islands.get(&seq).map_or(0, |i| i.room().bytes);
        self.watches.gave_way(watch, bytes);
        self.drop_islands([seq], labels);
    }

    /// The attached reader of a watch has read everything up to `after`, and up to `upto` of the watch.
    pub(in crate::journal) fn advance(
        &mut self,
        watch: u64,
        place: Place,
        after: u64,
        upto: Option<u64>,
        now: u64,
        labels: &mut LabelSets,
    ) {
        let upto = if after >= self.newest() {
            Some(u64::MAX)
        } else {
            upto
        };
        self.watches.advance(watch, place, after, upto, now);
        self.drop_stale_islands(watch, labels);
    }

    /// An attached reader is gone.
    pub(in crate::journal) fn detach(
        &mut self,
        watch: u64,
        place: Place,
        now: u64,
        labels: &mut LabelSets,
    ) {
        let islands = self.watches.detach(watch, place, now);
        self.drop_islands(islands, labels);
        self.drop_stale_islands(watch, labels);
    }
}
