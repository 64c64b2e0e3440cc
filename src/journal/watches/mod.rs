//! What the log keeps about each watch: which of its events are held, which it keeps when room is
//! needed, and what its attached readers have not read yet.
//!
//! Sizes here are *costs*: an event costs its bytes, but at least the budget's bytes divided by its
//! events. So one number stands for both bounds of a budget.

use std::collections::{BTreeSet, VecDeque};

use smallvec::SmallVec;

use super::Limits;
use super::levels::Levels;
use super::outbox::Entry;
use crate::id_map::IdMap;

mod attached;

use attached::Attached;

/// The cost of an event up to which promises in bytes are taken as they are. Where the budget allows
/// so few events that each costs more, the promises grow in proportion: as many events are kept.
const EVENT_MIN: u64 = 64;

/// A watch that is not removed, or that a reader is attached to.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The cost of all of its events so far.
    pub(super) total: u64,
    /// State that few watches need. All events of a watch without it are held.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    /// The cost of the events that are held.
    held: u64,
    /// The newest of its events that is lost; 0 if none is.
    lost_through: u64,
    /// Its islands that stay until it is removed, and those that may give way, oldest first.
    facts: SmallVec<[u64; 4]>,
    islands: VecDeque<u64>,
    /// The cost of `islands`.
    spare: u64,
    readers: SmallVec<[Attached; 1]>,
    /// The time since when some reader has had something to read and has read nothing, as of the
    /// last look, monotonic nanoseconds. The key in [`Watches::behind`].
    behind: Option<u64>,
    /// Whether it waits for its readers because they are too far behind.
    waits: bool,
    removed: bool,
}

/// What becomes of the oldest event of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It becomes an island that stays until the watch is removed.
    Fact,
    /// It becomes an island that may give way later.
    Island,
    /// It is lost.
    Lost,
}

impl Record {
    fn rare(&mut self) -> &mut Rare {
        let held = self.total;
        self.rare.get_or_insert_with(|| {
            Box::new(Rare {
                held,
                ..Rare::default()
            })
        })
    }

    /// Returns the cost of the events that are held.
    fn held(&self) -> u64 {
        self.rare.as_ref().map_or(self.total, |rare| rare.held)
    }

    pub(super) fn is_removed(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.removed)
    }
}

/// All watches of a log.
#[derive(Debug)]
pub(super) struct Watches {
    records: IdMap<Record>,
    levels: Levels,
    /// How much of its newest events every watch keeps, as of the last [`Watches::measure`].
    level: u64,
    /// The least cost of an event.
    unit: u64,
    /// The unread cost above which a watch waits for its attached readers.
    window: u64,
    /// The unread cost of all watches.
    unread: u64,
    /// Watches with islands that may give way, ordered by the cost of those.
    spare: BTreeSet<(u64, u64)>,
    /// Watches some reader of which has something to read, ordered by `Rare::behind`.
    behind: BTreeSet<(u64, u64)>,
    /// How many watches wait for their readers.
    waiting: usize,
    /// Watches that began or ceased to wait since the loop last took these changes.
    wait_changes: Vec<u64>,
    /// How many readers were given up.
    readers_let_go: u64,
}

impl Watches {
    pub(super) fn new(limits: Limits) -> Self {
        let unit = (limits.bytes / limits.events.max(1)).max(1);
        let promised = |bytes: u64| bytes.saturating_mul(unit.max(EVENT_MIN)) / EVENT_MIN;
        Self {
            records: IdMap::default(),
            levels: Levels::new(promised(limits.watch_keep), limits.bytes / 2),
            level: 0,
            unit,
            window: promised(limits.attached_bytes).min(limits.bytes / 8),
            unread: 0,
            spare: BTreeSet::new(),
            behind: BTreeSet::new(),
            waiting: 0,
            wait_changes: Vec::new(),
            readers_let_go: 0,
        }
    }

    fn cost(&self, bytes: u64) -> u64 {
        bytes.max(self.unit)
    }

    /// Counts an appended event of `bytes`. Returns the cost of all events of its watch up to this
    /// one.
    pub(super) fn append(&mut self, watch: u64, bytes: u64, now: u64) -> u64 {
        let cost = self.cost(bytes);
        let record = self.records.get_or_insert_with(watch, || {
            self.levels.add(0);
            Record::default()
        });
        if !record.is_removed() {
            self.levels.sub(record.held());
            self.levels.add(record.held() + cost);
        }
        record.total += cost;
        if let Some(rare) = &mut record.rare {
            rare.held += cost;
        }
        let total = record.total;
        if !record.readers().is_empty() {
            self.unread += cost;
            self.weigh(watch, now);
        }
        total
    }

    /// Computes anew how much every watch keeps.
    pub(super) fn measure(&mut self) {
        self.level = self.levels.level();
    }

    /// Has no watch keep its newest events, until the next [`Watches::measure`].
    pub(super) const fn keep_nothing(&mut self) {
        self.level = 0;
    }

    /// Returns the most that all islands that may give way hold together.
    pub(super) const fn islands_max(&self) -> u64 {
        self.levels.most()
    }

    /// Returns what becomes of the ring's oldest event.
    pub(super) fn fate(&self, seq: u64, entry: &Entry, is_fact: bool) -> Fate {
        let Some(record) = self.records.get(entry.watch) else {
            return Fate::Lost;
        };
        let newer = record.total - entry.upto;
        if record.is_removed() {
            if record.awaits(seq) {
                Fate::Island
            } else {
                Fate::Lost
            }
        } else if is_fact {
            Fate::Fact
        } else if newer < self.level || record.awaits(seq) {
            Fate::Island
        } else {
            Fate::Lost
        }
    }

    /// Records that an event of `bytes` became an island.
    pub(super) fn islanded(&mut self, watch: u64, seq: u64, bytes: u64, fate: Fate) {
        let cost = self.cost(bytes);
        let Some(record) = self.records.get_mut(watch) else {
            return;
        };
        let rare = record.rare();
        if fate == Fate::Fact {
            rare.facts.push(seq);
            return;
        }
        rare.islands.push_back(seq);
        let spare = rare.spare + cost;
        self.respare(watch, spare);
    }

    fn respare(&mut self, watch: u64, spare: u64) {
        if let Some(record) = self.records.get_mut(watch) {
            let before = std::mem::replace(&mut record.rare().spare, spare);
            self.spare.remove(&(before, watch));
            if spare > 0 {
                self.spare.insert((spare, watch));
            }
        }
    }

    /// Records that an event of `bytes` is lost.
    pub(super) fn lost(&mut self, watch: u64, seq: u64, bytes: u64) {
        let cost = self.cost(bytes);
        let Some(record) = self.records.get_mut(watch) else {
            return;
        };
        if !record.is_removed() {
            self.levels.sub(record.held());
            self.levels.add(record.held() - cost);
        }
        let rare = record.rare();
        rare.held -= cost;
        rare.lost_through = rare.lost_through.max(seq);
    }

    /// Returns the oldest island of a watch that may give way, unless an attached reader waits for
    /// it or it lies after `pinned_after`, where consumers do.
    fn oldest_island(&self, watch: u64, pinned_after: u64) -> Option<u64> {
        let record = self.records.get(watch)?;
        let seq = *record.rare.as_ref()?.islands.front()?;
        (seq <= pinned_after && !record.awaits(seq)).then_some(seq)
    }

    /// Returns the same as [`Watches::oldest_island`], but only if that island is older than what
    /// the watch keeps. `upto` returns the cost of the watch's events up to an island.
    pub(super) fn stale_island(
        &self,
        watch: u64,
        pinned_after: u64,
        upto: impl Fn(u64) -> u64,
    ) -> Option<u64> {
        let seq = self.oldest_island(watch, pinned_after)?;
        let record = self.records.get(watch)?;
        let newer = record.total - upto(seq);
        (newer >= self.level || record.is_removed()).then_some(seq)
    }

    /// Returns the island to drop next, with its watch: the oldest one of the watch that has most
    /// of them.
    pub(super) fn next_to_give_way(&self, pinned_after: u64) -> Option<(u64, u64)> {
        let mut most = self.spare.iter().rev();
        most.find_map(|(_, watch)| Some((*watch, self.oldest_island(*watch, pinned_after)?)))
    }

    /// Records that the oldest island of a watch, an event of `bytes`, is dropped.
    pub(super) fn gave_way(&mut self, watch: u64, bytes: u64) {
        let cost = self.cost(bytes);
        if let Some(record) = self.records.get_mut(watch) {
            let rare = record.rare();
            rare.islands.pop_front();
            let spare = rare.spare - cost;
            self.respare(watch, spare);
        }
    }

    /// Records that events of a watch up to this one may be lost.
    pub(super) fn lost_before(&mut self, watch: u64, seq: u64) {
        if let Some(record) = self.records.get_mut(watch) {
            let rare = record.rare();
            rare.lost_through = rare.lost_through.max(seq);
        }
    }

    /// Marks a watch as removed. Returns the islands to drop, unless a reader is still attached.
    pub(super) fn remove(&mut self, watch: u64) -> Vec<u64> {
        let Some(record) = self.records.get_mut(watch) else {
            return Vec::new();
        };
        if !record.is_removed() {
            self.levels.sub(record.held());
            record.rare().removed = true;
        }
        self.forget(watch)
    }

    /// Forgets a watch that is removed and has no attached reader. Returns its islands.
    fn forget(&mut self, watch: u64) -> Vec<u64> {
        let done = |record: &Record| record.is_removed() && record.readers().is_empty();
        if !self.records.get(watch).is_some_and(done) {
            return Vec::new();
        }
        let record = self.records.remove(watch);
        let Some(rare) = record.and_then(|record| record.rare) else {
            return Vec::new();
        };
        self.spare.remove(&(rare.spare, watch));
        rare.facts.into_iter().chain(rare.islands).collect()
    }

    /// Returns whether the watch was added and is not removed.
    pub(super) fn is_present(&self, watch: u64) -> bool {
        let record = self.records.get(watch);
        record.is_some_and(|record| !record.is_removed())
    }

    /// Returns the newest lost event of a watch, 0 if none is lost. `None` if the watch is gone.
    pub(super) fn lost_through(&self, watch: u64) -> Option<u64> {
        let record = self.records.get(watch)?;
        Some(record.rare.as_ref().map_or(0, |rare| rare.lost_through))
    }
}
