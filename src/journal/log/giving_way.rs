//! Trimming: which events give way when room is needed, and which stay as islands.

use std::collections::BTreeMap;

use super::{Island, IslandBytes, Log};
use crate::journal::Room;
use crate::journal::labels::LabelSets;
use crate::journal::monitor::WaiterId;
use crate::journal::outbox::Entry;
use crate::journal::recovery::ISLAND;
use crate::journal::watches::Fate;
use crate::proto::EventKind;

/// Returns whether an event of this kind is a fact: it happens once to a watch, or once to a stream
/// of it, and clients ask for it later, so it stays until the watch is removed.
pub(super) const fn is_fact(kind: EventKind) -> bool {
    match kind {
        EventKind::Closed
        | EventKind::Started
        | EventKind::StreamEnd
        | EventKind::Exited
        | EventKind::Connected
        | EventKind::TlsStarted
        | EventKind::Ended
        | EventKind::Eof => true,
        EventKind::Unspecified
        | EventKind::Posted
        | EventKind::LoopStateChanged
        | EventKind::PolicyChanged
        | EventKind::LifetimeEnded
        | EventKind::Recovered
        | EventKind::Updated
        | EventKind::Added
        | EventKind::Removed
        | EventKind::Ready
        | EventKind::Resized
        | EventKind::TimerFired
        | EventKind::Accepted
        | EventKind::AcceptPaused
        | EventKind::HandshakesFailed
        | EventKind::Data
        | EventKind::Datagram
        | EventKind::DatagramError
        | EventKind::DatagramsDropped
        | EventKind::GroupChanged
        | EventKind::PathChanged
        | EventKind::PathRescan
        | EventKind::PathRoot
        | EventKind::PathSynced
        | EventKind::FileChanged
        | EventKind::WritePaused
        | EventKind::WriteResumed
        | EventKind::Signal => false,
    }
}

/// The ring is shrunk when its capacity is this many times its length.
const SPARE: usize = 4;
/// Most events that one call trims or makes islands.
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
    /// Trims events up to `unkept`, and history until the journal is within its budget less the
    /// room set aside.
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

    /// Trims history while the journal holds more than `share` and all journals hold more than
    /// `target`.
    pub(in crate::journal) fn give_way(&mut self, share: u64, target: u64, labels: &mut LabelSets) {
        self.give_way_while(labels, |log| {
            log.size().held > share && log.memory.used() > target
        });
    }

    /// Trims all history that no consumer waits for, but for facts of watches that are there.
    pub(in crate::journal) fn give_back(&mut self, labels: &mut LabelSets) {
        self.watches.keep_nothing();
        let end = self.floor.unwrap_or(u64::MAX);
        while self.first <= end && self.may_trim() {
            self.trim_one(labels);
        }
        self.entries.shrink_to_fit();
        while self.drop_an_island(labels) {}
    }

    /// Trims while the journal holds too much: the oldest events of the ring, of which every watch
    /// keeps its newest as islands. If that is not enough, it trims islands of the watches that have
    /// most of them. Does at most [`AT_ONCE`] steps under one lock.
    fn give_way_while(&mut self, labels: &mut LabelSets, is_too_much: impl Fn(&Self) -> bool) {
        self.watches.measure();
        // The ring no longer holds the events that have become islands.
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

    /// Takes the oldest event out of the ring: it becomes an island or is lost.
    fn trim_one(&mut self, labels: &mut LabelSets) {
        let Some(entry) = self.entries.front().copied() else {
            return;
        };
        let seq = self.first;
        let len = entry.end - self.start;
        let is_fact = EventKind::try_from(i32::from(entry.kind)).is_ok_and(is_fact);
        match self.watches.fate(seq, &entry, is_fact) {
            Fate::Lost => self.lose(seq, &entry, len, labels),
            fate => {
                let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
                self.slices(seq..seq + 1, &mut |slice| bytes.extend_from_slice(&slice));
                self.island_bytes += len;
                if fate == Fate::Fact {
                    self.facts.events += 1;
                    self.facts.bytes += len;
                }
                let bytes = self.island_bytes_of(seq, bytes);
                let island = Box::new(Island {
                    bytes,
                    entry,
                    is_fact: fate == Fate::Fact,
                });
                self.islands.insert(seq, island);
                self.watches.islanded(entry.watch, seq, len, fate);
            }
        }
        self.entries.pop_front();
        self.first += 1;
        self.forget_marks(labels);
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

    fn island_bytes_of(&mut self, seq: u64, bytes: Vec<u8>) -> IslandBytes {
        let kept = self
            .records
            .as_mut()
            .map(|records| records.put_now(ISLAND, seq, &bytes));
        match kept {
            Some(Ok(entry)) => IslandBytes::Kept(entry),
            // Without memory it does not survive the daemon.
            Some(Err(_)) | None => IslandBytes::Own(bytes.into()),
        }
    }

    /// Counts an event as lost and frees what it used.
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
                if let (IslandBytes::Kept(entry), Some(records)) = (island.bytes, &mut self.records)
                {
                    records.free_now(entry);
                }
            }
        }
    }

    /// Counts again which islands are pinned, for a new lowest cursor.
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

    /// Drops the islands of a watch that are older than what it keeps, now that it has newer
    /// events.
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

    /// Drops the oldest island of the watch that has most of them. Returns `false` if no island may
    /// go.
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

    /// Records that an attached reader has read everything up to `after`, and the watch's events up
    /// to a cost of `upto`.
    pub(in crate::journal) fn advance(
        &mut self,
        watch: u64,
        waiter: WaiterId,
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
        self.watches.advance(watch, waiter, after, upto, now);
        self.drop_stale_islands(watch, labels);
    }

    /// Removes an attached reader.
    pub(in crate::journal) fn detach(
        &mut self,
        watch: u64,
        waiter: WaiterId,
        now: u64,
        labels: &mut LabelSets,
    ) {
        let islands = self.watches.detach(watch, waiter, now);
        self.drop_islands(islands, labels);
        self.drop_stale_islands(watch, labels);
    }
}
