//! What gives way when room is needed, and what stays as an island.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{CLOSED, Island, Log};
use crate::journal::board::Place;
use crate::journal::labels::LabelSets;
use crate::journal::outbox::Entry;
use crate::journal::watches::Fate;
use crate::journal::{Room, SLOT_BYTES};

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

impl Log {
    /// Trims what is not needed to the budget, less what is set aside.
    pub(in crate::journal) fn trim(&mut self, labels: &mut LabelSets) {
        if self.is_over_budget() {
            self.give_way_while(labels, Self::is_over_budget);
        }
    }

    /// Trims history to a share of the memory of all, as long as that is exceeded.
    pub(in crate::journal) fn give_way(&mut self, share: u64, target: u64, labels: &mut LabelSets) {
        self.give_way_while(labels, |log| {
            log.bytes() > share && log.memory.used() > target
        });
    }

    /// The oldest of the ring gives way, but every watch keeps its newest; where that is not
    /// enough, islands do, of the watches that have most of them.
    fn give_way_while(&mut self, labels: &mut LabelSets, is_too_much: impl Fn(&Self) -> bool) {
        self.watches.measure();
        while is_too_much(self) {
            if self.may_trim() {
                self.trim_one(labels);
            } else if !self.drop_an_island(labels) {
                break;
            }
        }
        while self.island_bytes - self.facts.bytes
            > self.watches.islands_max() + self.watches.unread().bytes
            && self.drop_an_island(labels)
        {}
    }

    fn is_over_budget(&self) -> bool {
        self.events() + self.reserved > self.limits.events
            || self.bytes() + self.reserved * SLOT_BYTES > self.limits.bytes
            || self.memory.presses(self.bytes())
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
                let mut bytes = Vec::new();
                self.slices(seq..seq + 1, &mut |slice| bytes.extend_from_slice(&slice));
                self.island_bytes += len;
                if fate == Fate::Fact {
                    self.facts.events += 1;
                    self.facts.bytes += len;
                }
                let bytes = Bytes::from(bytes);
                self.islands.insert(seq, Island { bytes, entry });
                self.watches.islanded(entry.watch, seq, fate);
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
        self.memory.sub(len);
        self.trimmed += 1;
        self.dropped += u64::from(self.floor.is_some_and(|floor| seq > floor));
        labels.release(entry.labels);
        self.watches.lost(entry.watch, seq, len);
    }

    pub(super) fn drop_islands(&mut self, seqs: Vec<u64>, labels: &mut LabelSets) {
        for seq in seqs {
            if let Some(island) = self.islands.remove(&seq) {
                let len = island.bytes.len() as u64;
                self.island_bytes -= len;
                if is_fact(island.entry.kind) {
                    self.facts = self.facts.less(Room {
                        events: 1,
                        bytes: len,
                    });
                }
                self.lose(seq, &island.entry, len, labels);
            }
        }
    }

    /// The watch has newer events by now than some of its islands: those it does not keep any longer.
    fn drop_stale_islands(&mut self, watch: u64, labels: &mut LabelSets) {
        let upto = |islands: &BTreeMap<u64, Island>, seq| {
            islands.get(&seq).map_or(0, |island| island.entry.upto)
        };
        while let Some(seq) = self
            .watches
            .stale_island(watch, |seq| upto(&self.islands, seq))
        {
            self.watches.gave_way(watch);
            self.drop_islands(vec![seq], labels);
        }
    }

    /// Drops the oldest island of a watch that has many. False: there is none that may go.
    fn drop_an_island(&mut self, labels: &mut LabelSets) -> bool {
        let Some((watch, seq)) = self.watches.next_to_give_way() else {
            return false;
        };
        self.watches.gave_way(watch);
        self.drop_islands(vec![seq], labels);
        true
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
