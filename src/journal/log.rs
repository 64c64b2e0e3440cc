//! Encoded events in a ring, and islands of terminal facts before it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use smallvec::SmallVec;

use super::labels::LabelSets;
use super::outbox::Entry;
use super::{Limits, Memory};

pub(super) const CLOSED: u8 = 11;
pub(super) const REMOVED: u8 = 12;
const EXITED: u8 = 18;
const ADDED: u8 = 10;

/// A terminal event whose neighbours are gone.
#[derive(Debug)]
pub(super) struct Island {
    pub(super) bytes: Bytes,
    pub(super) entry: Entry,
}

#[derive(Debug)]
struct Chunk {
    /// Where it begins, counted over all bytes ever appended.
    start: u64,
    bytes: Bytes,
}

#[derive(Debug)]
pub(super) struct Log {
    limits: Limits,
    memory: Arc<Memory>,
    /// Sequence number of the ring's first entry.
    first: u64,
    /// Where the ring's first entry begins.
    start: u64,
    entries: VecDeque<Entry>,
    chunks: VecDeque<Chunk>,
    islands: BTreeMap<u64, Island>,
    island_bytes: u64,
    /// Terminal events of watches that are not removed: they outlive trimming.
    kept: HashMap<u64, SmallVec<[u64; 2]>>,
    /// Watches added and not removed.
    present: HashSet<u64>,
    trimmed: u64,
}

impl Log {
    pub(super) fn new(limits: Limits, memory: Arc<Memory>) -> Self {
        memory.journals.fetch_add(1, Ordering::Relaxed);
        Self {
            limits,
            memory,
            first: 1,
            start: 0,
            entries: VecDeque::new(),
            chunks: VecDeque::new(),
            islands: BTreeMap::new(),
            island_bytes: 0,
            kept: HashMap::new(),
            present: HashSet::new(),
            trimmed: 0,
        }
    }

    pub(super) const fn limits(&self) -> Limits {
        self.limits
    }

    /// Oldest event in the ring; newest + 1 if it is empty.
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

    fn ring_bytes(&self) -> u64 {
        self.entries.back().map_or(0, |last| last.end - self.start)
    }

    /// Appends a turn's events, then trims to the budget.
    pub(super) fn append(
        &mut self,
        chunk: Bytes,
        entries: &mut Vec<Entry>,
        labels: &mut LabelSets,
    ) {
        self.memory.add(chunk.len() as u64);
        let start = self.entries.back().map_or(self.start, |last| last.end);
        for entry in entries.drain(..) {
            labels.hold(entry.labels);
            self.entries.push_back(entry);
            match entry.kind {
                CLOSED | EXITED => {
                    let seq = self.newest();
                    self.kept.entry(entry.watch).or_default().push(seq);
                }
                ADDED => {
                    self.present.insert(entry.watch);
                }
                REMOVED => {
                    self.present.remove(&entry.watch);
                    self.let_go(entry.watch, labels);
                }
                _ => {}
            }
        }
        self.chunks.push_back(Chunk {
            start,
            bytes: chunk,
        });
        while self.over_budget() {
            self.trim_one(labels);
        }
    }

    fn over_budget(&self) -> bool {
        !self.entries.is_empty()
            && (self.events() > self.limits.events
                || self.bytes() > self.limits.bytes
                || self.memory.presses(self.bytes()))
    }

    /// Takes the oldest entry out of the ring; a terminal fact becomes an island.
    fn trim_one(&mut self, labels: &mut LabelSets) {
        let Some(entry) = self.entries.front().copied() else {
            return;
        };
        let seq = self.first;
        let len = entry.end - self.start;
        if self.is_kept(&entry, seq) {
            let mut bytes = Vec::new();
            self.slices(seq..seq + 1, &mut |slice| bytes.extend_from_slice(&slice));
            self.island_bytes += len;
            let bytes = Bytes::from(bytes);
            self.islands.insert(seq, Island { bytes, entry });
        } else {
            self.memory.sub(len);
            self.trimmed += 1;
            labels.release(entry.labels);
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
    }

    fn is_kept(&self, entry: &Entry, seq: u64) -> bool {
        self.kept
            .get(&entry.watch)
            .is_some_and(|seqs| seqs.contains(&seq))
    }

    /// The watch is removed: its terminal facts need not be kept any longer.
    fn let_go(&mut self, watch: u64, labels: &mut LabelSets) {
        for seq in self.kept.remove(&watch).unwrap_or_default() {
            if let Some(island) = self.islands.remove(&seq) {
                let len = island.bytes.len() as u64;
                self.island_bytes -= len;
                self.memory.sub(len);
                self.trimmed += 1;
                labels.release(island.entry.labels);
            }
        }
    }

    /// Whether the watch was added and is not removed.
    pub(super) fn is_present(&self, watch: u64) -> bool {
        self.present.contains(&watch)
    }

    /// The entry of an event in the ring.
    pub(super) fn entry(&self, seq: u64) -> Option<&Entry> {
        let index = seq.checked_sub(self.first)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Encoded size of events in the ring.
    pub(super) fn len_of(&self, seqs: Range<u64>) -> u64 {
        self.begin(seqs.end) - self.begin(seqs.start)
    }

    /// Where an event of the ring begins, counted over all bytes ever appended.
    fn begin(&self, seq: u64) -> u64 {
        match seq.checked_sub(1).and_then(|before| self.entry(before)) {
            Some(before) => before.end,
            None => self.start,
        }
    }

    /// The encoded bytes of consecutive events in the ring, in slices.
    pub(super) fn slices(&self, seqs: Range<u64>, take: &mut impl FnMut(Bytes)) {
        let (mut from, to) = (self.begin(seqs.start), self.begin(seqs.end));
        let index = self.chunks.partition_point(|chunk| chunk.start <= from);
        for chunk in self.chunks.range(index.saturating_sub(1)..) {
            if from >= to {
                break;
            }
            let end = to.min(chunk.start + chunk.bytes.len() as u64);
            // A chunk is in memory: its offsets fit.
            let within = |at: u64| usize::try_from(at - chunk.start).unwrap_or(usize::MAX);
            let range = within(from)..within(end);
            take(chunk.bytes.slice(range));
            from = end;
        }
    }

    /// Islands with a sequence number of at least `from`, in order.
    pub(super) fn islands_from(&self, from: u64) -> impl Iterator<Item = (u64, &Island)> {
        self.islands
            .range(from..)
            .map(|(seq, island)| (*seq, island))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.memory.sub(self.bytes());
        self.memory.journals.fetch_sub(1, Ordering::Relaxed);
    }
}
