//! Encoded events in a ring, and islands: events before the ring that stay although their
//! neighbours are gone.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::labels::LabelSets;
use super::memory::Size;
use super::outbox::Entry;
use super::shares::Shares;
use super::watches::Watches;
use super::{Limits, Memory, Room};
use crate::config::WhenFull;
use crate::proto::EventKind;
use crate::state::{self, Records};

mod giving_way;
mod marks;
mod recovery;

pub(super) use marks::may_change;
pub(super) use recovery::{Known, Remains};

pub(super) const CLOSED: u8 = EventKind::Closed as u8;
pub(super) const REMOVED: u8 = EventKind::Removed as u8;
const DATA: u8 = EventKind::Data as u8;

/// An event before the ring that stays although its neighbours are gone.
#[derive(Debug)]
pub(super) struct Island {
    pub(super) bytes: IslandBytes,
    pub(super) entry: Entry,
    /// Whether it stays until its watch is removed.
    is_fact: bool,
}

/// The encoding of an island.
#[derive(Debug)]
pub(super) enum IslandBytes {
    /// In memory that ends with the daemon.
    Own(Box<[u8]>),
    /// In memory that later lives find.
    Kept(state::Entry),
}

impl std::ops::Deref for IslandBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Kept(entry) => entry.bytes(),
        }
    }
}

#[derive(Debug)]
struct Chunk {
    /// Where the chunk begins, counted over all bytes ever appended.
    start: u64,
    bytes: Bytes,
}

#[derive(Debug)]
pub(super) struct Log {
    limits: Limits,
    memory: Arc<Memory>,
    /// The sequence number of the ring's first event.
    first: u64,
    /// Where the ring's first event begins, counted over all bytes ever appended.
    start: u64,
    entries: VecDeque<Entry>,
    chunks: VecDeque<Chunk>,
    /// Boxed, because the nodes of the map are usually half empty.
    islands: BTreeMap<u64, Box<Island>>,
    island_bytes: u64,
    /// Where islands and consumers are kept for later lives; `None` if they are not.
    records: Option<Records>,
    marks: marks::Marks,
    /// The islands that stay until their watch is removed.
    facts: Room,
    /// The other islands that some consumer has not acknowledged.
    pinned_islands: Room,
    /// Whether more events have to give way than one commit may trim.
    is_behind: bool,
    watches: Watches,
    /// Room that is set aside.
    reserved: Room,
    /// The lowest cursor that a consumer has acknowledged; `None` without consumers.
    floor: Option<u64>,
    /// The pinned bytes by watch, of the events after `counted`.
    shares: Shares,
    counted: u64,
    /// This journal's part of the committed memory, and the part of it that attached readers have
    /// not read.
    committed: u64,
    unread: u64,
    trimmed: u64,
    /// Of those, the ones that some consumer had not acknowledged.
    dropped: u64,
}

impl Log {
    pub(super) fn new(limits: Limits, memory: Arc<Memory>) -> Self {
        Self {
            limits,
            memory,
            first: 1,
            start: 0,
            entries: VecDeque::new(),
            chunks: VecDeque::new(),
            islands: BTreeMap::new(),
            island_bytes: 0,
            records: None,
            marks: marks::Marks::default(),
            facts: Room::default(),
            pinned_islands: Room::default(),
            is_behind: false,
            watches: Watches::new(limits),
            reserved: Room::default(),
            floor: None,
            shares: Shares::new(limits.watch_bytes),
            counted: 0,
            committed: 0,
            unread: 0,
            trimmed: 0,
            dropped: 0,
        }
    }

    /// Keeps islands and consumers for later lives.
    pub(super) fn keep_in(&mut self, records: Records) {
        self.records = Some(records);
    }

    pub(super) const fn records(&mut self) -> Option<&mut Records> {
        self.records.as_mut()
    }

    pub(super) const fn limits(&self) -> Limits {
        self.limits
    }

    /// Returns the oldest event in the ring; newest + 1 if it is empty.
    pub(super) const fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn newest(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    pub(super) fn events(&self) -> u64 {
        (self.entries.len() + self.islands.len()) as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.ring_bytes() + self.island_bytes
    }

    pub(super) fn islands(&self) -> u64 {
        self.islands.len() as u64
    }

    pub(super) const fn trimmed(&self) -> u64 {
        self.trimmed
    }

    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) const fn reserved(&self) -> Room {
        self.reserved
    }

    pub(super) const fn shares(&mut self) -> &mut Shares {
        &mut self.shares
    }

    pub(super) const fn watches(&self) -> &Watches {
        &self.watches
    }

    pub(super) const fn watches_mut(&mut self) -> &mut Watches {
        &mut self.watches
    }

    fn pauses(&self) -> bool {
        self.limits.when_full == WhenFull::Pause
    }

    /// Returns the first pinned event in the ring; newest + 1 if none is pinned.
    fn pinned_from(&self) -> u64 {
        match self.floor {
            Some(floor) => self.first.max(floor + 1),
            None => self.newest() + 1,
        }
    }

    /// Returns the events that some consumer has not acknowledged, without islands that are facts.
    pub(super) fn pinned(&self) -> Room {
        let ring = self.held_after(self.pinned_from() - 1);
        Room {
            events: ring.events + self.pinned_islands.events,
            bytes: ring.bytes + self.pinned_islands.bytes,
        }
    }

    /// Returns the sequence number after which events are held for consumers; the greatest number
    /// if none are.
    fn pinned_after(&self) -> u64 {
        self.pinned_after_floor(self.floor)
    }

    fn pinned_after_floor(&self, floor: Option<u64>) -> u64 {
        floor.filter(|_| self.pauses()).unwrap_or(u64::MAX)
    }

    /// Returns whether more events have to give way than one commit may trim. The next commit goes
    /// on.
    pub(super) const fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Returns the events that attached readers have not read and that are not pinned.
    pub(super) fn unread(&self) -> Room {
        match self.pinned_after() {
            u64::MAX => self.watches.unread(),
            floor => self.watches.unread_up_to(floor),
        }
    }

    /// Returns the size of the ring's events after `seq`.
    pub(super) fn held_after(&self, seq: u64) -> Room {
        let from = self.first.max(seq + 1);
        let end = self.newest() + 1;
        Room {
            events: end.saturating_sub(from),
            bytes: if from < end {
                self.len_of(from..end)
            } else {
                0
            },
        }
    }

    /// Returns how much may be appended beside the room that is set aside, so that no event that is
    /// pinned, or that an attached reader waits for, has to give way.
    pub(super) fn room(&self) -> Room {
        let unread = self.unread();
        let mut held = Room {
            events: self.reserved.events + self.facts.events + unread.events,
            bytes: self.reserved.bytes + self.facts.bytes + unread.bytes,
        };
        if self.pauses() {
            let pinned = self.pinned();
            held.events += pinned.events;
            held.bytes += pinned.bytes;
        }
        Room {
            events: self.limits.events,
            bytes: self.limits.bytes,
        }
        .less(held)
    }

    /// Returns whether events are held for consumers or attached readers, or would be if there were
    /// any.
    pub(super) fn pins(&self) -> bool {
        (self.pauses() && self.floor.is_some()) || self.watches.unread().bytes > 0
    }

    pub(super) fn reserve(&mut self, room: Room) {
        self.reserved = room;
    }

    /// Sets the lowest acknowledged cursor, and counts again what each watch has pinned.
    pub(super) fn set_floor(&mut self, floor: Option<u64>) {
        self.repin_islands(floor);
        self.floor = floor;
        let counted = self.pinned_from() - 1;
        if self.pauses() {
            for seq in self.counted + 1..=counted {
                self.count(seq, Shares::sub);
            }
            for seq in counted + 1..=self.counted {
                self.count(seq, Shares::add);
            }
        }
        self.counted = counted;
    }

    fn count(&mut self, seq: u64, change: fn(&mut Shares, u64, u64)) {
        if let Some(entry) = self.entry(seq).copied()
            && entry.kind == DATA
        {
            let bytes = self.len_of(seq..seq + 1);
            change(&mut self.shares, entry.watch, bytes);
        }
    }

    /// Updates this journal's part of the committed memory. In a closed journal nothing waits for
    /// attached readers. Returns whether the part is smaller than before.
    pub(super) fn update_memory(&mut self, closed: bool) -> bool {
        let kept = self.kept().cost();
        let unread = if closed { 0 } else { self.unread().cost() };
        self.memory.hold_unread(self.unread, unread);
        self.unread = unread;
        let committed = kept + unread + self.reserved.cost();
        let before = std::mem::replace(&mut self.committed, committed);
        self.memory.commit(before, committed);
        committed < before
    }

    /// Returns what cannot give way even if attached readers read everything: pinned events and
    /// facts.
    fn kept(&self) -> Room {
        let mut kept = self.facts;
        if self.pauses() {
            let pinned = self.pinned();
            kept.events += pinned.events;
            kept.bytes += pinned.bytes;
        }
        kept
    }

    /// Returns what the journal takes of the memory of all journals.
    pub(super) fn size(&self) -> Size {
        let held = Room {
            events: self.events(),
            bytes: self.bytes(),
        };
        Size {
            held: held.cost(),
            kept: self.kept().cost() + self.unread,
        }
    }

    fn ring_bytes(&self) -> u64 {
        self.entries.back().map_or(0, |last| last.end - self.start)
    }

    /// Appends the events of a turn, which [`Memory::add`] has counted. `now` is the time of the
    /// turn, monotonic nanoseconds.
    pub(super) fn append(
        &mut self,
        chunks: impl Iterator<Item = Bytes>,
        entries: &mut Vec<Entry>,
        labels: &mut LabelSets,
        now: u64,
    ) {
        let mut start = self.entries.back().map_or(self.start, |last| last.end);
        let before = self.newest();
        let mut begin = start;
        for mut entry in entries.drain(..) {
            labels.hold(entry.labels);
            entry.upto = self.watches.append(entry.watch, entry.end - begin, now);
            begin = entry.end;
            self.entries.push_back(entry);
            if entry.kind == REMOVED {
                self.note_removed(entry.watch, self.newest());
                let islands = self.watches.remove(entry.watch);
                self.drop_islands(islands, labels);
            }
        }
        for bytes in chunks {
            let len = bytes.len() as u64;
            self.chunks.push_back(Chunk { start, bytes });
            start += len;
        }
        if self.floor.is_none() {
            self.counted = self.newest();
        } else if self.pauses() {
            for seq in before + 1..=self.newest() {
                self.count(seq, Shares::add);
            }
        }
    }

    /// Returns the entry of an event in the ring.
    pub(super) fn entry(&self, seq: u64) -> Option<&Entry> {
        let index = seq.checked_sub(self.first)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Returns the encoded size of a range of events in the ring.
    pub(super) fn len_of(&self, seqs: Range<u64>) -> u64 {
        self.begin(seqs.end) - self.begin(seqs.start)
    }

    /// Returns the first event after `from` that no longer fits into `bytes` together with those
    /// before it.
    pub(super) fn end_within(&self, from: u64, bytes: u64) -> u64 {
        let limit = self.begin(from).saturating_add(bytes);
        self.first + self.entries.partition_point(|entry| entry.end <= limit) as u64
    }

    /// Returns where an event of the ring begins, counted over all bytes ever appended.
    fn begin(&self, seq: u64) -> u64 {
        match seq.checked_sub(1).and_then(|before| self.entry(before)) {
            Some(before) => before.end,
            None => self.start,
        }
    }

    /// Passes the encoded bytes of consecutive events in the ring to `take`, in slices.
    pub(super) fn slices(&self, seqs: Range<u64>, take: &mut impl FnMut(Bytes)) {
        let (mut from, to) = (self.begin(seqs.start), self.begin(seqs.end));
        let index = self.chunks.partition_point(|chunk| chunk.start <= from);
        for chunk in self.chunks.range(index.saturating_sub(1)..) {
            if from >= to {
                break;
            }
            let end = to.min(chunk.start + chunk.bytes.len() as u64);
            // A chunk is in memory: offsets into it fit into a `usize`.
            let within = |at: u64| usize::try_from(at - chunk.start).unwrap_or(usize::MAX);
            let range = within(from)..within(end);
            take(chunk.bytes.slice(range));
            from = end;
        }
    }

    /// Returns the islands with a sequence number of at least `from`, in order.
    pub(super) fn islands_from(&self, from: u64) -> impl Iterator<Item = (u64, &Island)> {
        self.islands
            .range(from..)
            .map(|(seq, island)| (*seq, &**island))
    }
}

#[cfg(test)]
impl Log {
    /// Counts islands and pinned bytes anew and compares them with the accounts.
    pub(super) fn check_accounts(&self) {
        let (mut facts, mut pinned, mut all) = (Room::default(), Room::default(), 0);
        for (seq, island) in &self.islands {
            let bytes = island.bytes.len() as u64;
            all += bytes;
            if island.is_fact {
                facts = Room {
                    events: facts.events + 1,
                    bytes: facts.bytes + bytes,
                };
            } else if *seq > self.pinned_after() {
                pinned = Room {
                    events: pinned.events + 1,
                    bytes: pinned.bytes + bytes,
                };
            }
        }
        assert_eq!((self.facts, self.island_bytes), (facts, all));
        assert_eq!(self.pinned_islands, pinned);
        let mut shares = Shares::new(self.limits.watch_bytes);
        if self.pauses() && self.floor.is_some() {
            for seq in self.pinned_from()..=self.newest() {
                let entry = self.entry(seq).expect("it is pinned");
                if entry.kind == DATA {
                    shares.add(entry.watch, self.len_of(seq..seq + 1));
                }
            }
        }
        assert!(self.shares.is_same(&shares), "{:?} {shares:?}", self.shares);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.memory.sub(self.size().held);
        self.memory.commit(self.committed, 0);
        self.memory.hold_unread(self.unread, 0);
    }
}
