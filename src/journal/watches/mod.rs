//! What the log knows of each watch: what it holds, what it keeps when room is needed, and what
//! readers that are attached to it have not read yet.
//!
//! Sizes here are *costs*: an event costs its bytes, and at least the budget's bytes divided by its
//! events, so that one number stands for both bounds of a budget.

use std::collections::{BTreeSet, VecDeque};

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::Limits;
use super::levels::Levels;
use super::outbox::Entry;

mod attached;

use attached::Attached;

/// What an event is worth at least where bytes are promised: with a budget of few events, which cost
/// more, as many events are kept as with one of many.
const EVENT_MIN: u64 = 64;

/// One watch that is not removed, or that somebody still reads.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Cost of all of its events so far.
    pub(super) total: u64,
    /// What few watches have. Of the others all events are held.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    /// Cost of the events that are held.
    held: u64,
    /// The newest of its events that is lost; 0: none is.
    lost_through: u64,
    /// Its islands that stay until it is removed, and those that may give way, oldest first.
    facts: SmallVec<[u64; 4]>,
    islands: VecDeque<u64>,
    /// Cost of those that may give way.
    spare: u64,
    readers: SmallVec<[Attached; 1]>,
    /// Since when some reader has something to read and has read nothing, as far as was looked:
    /// its place in [`Watches::behind`].
    behind: Option<u64>,
    /// Its readers are so far behind that it waits for them.
    waits: bool,
    removed: bool,
}

/// What becomes of the oldest event of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It becomes an island: until the watch is removed, or for as long as it is worth it.
    Fact,
    Island,
    /// It gives way.
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

    /// Cost of the events that are held.
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
    records: HashMap<u64, Record>,
    levels: Levels,
    /// Every watch keeps so much of its newest, as of the last [`Watches::measure`].
    level: u64,
    /// Least cost of an event.
    unit: u64,
    /// Unread cost above which a watch waits for its attached readers.
    window: u64,
    /// Unread cost of all watches.
    unread: u64,
    /// Watches with islands that may give way, by the cost of those.
    spare: BTreeSet<(u64, u64)>,
    /// Watches some reader of which has something to read, by `Rare::behind`.
    behind: BTreeSet<(u64, u64)>,
    /// How many watches wait for their readers.
    waiting: usize,
    /// Watches that began to wait, or ceased to, since the loop last asked.
    crossed: Vec<u64>,
    /// Readers that were let go.
    let_go: u64,
}

impl Watches {
    pub(super) fn new(limits: Limits) -> Self {
        let unit = (limits.bytes / limits.events.max(1)).max(1);
        let promised = |bytes: u64| bytes.saturating_mul(unit.max(EVENT_MIN)) / EVENT_MIN;
        Self {
            records: HashMap::new(),
            levels: Levels::new(promised(limits.watch_keep), limits.bytes / 2),
            level: 0,
            unit,
            window: promised(limits.attached_bytes).min(limits.bytes / 8),
            unread: 0,
            spare: BTreeSet::new(),
            behind: BTreeSet::new(),
            waiting: 0,
            crossed: Vec::new(),
            let_go: 0,
        }
    }

    fn cost(&self, bytes: u64) -> u64 {
        bytes.max(self.unit)
    }

    /// An event of so many bytes is appended; what all events of its watch up to it cost.
    pub(super) fn append(&mut self, watch: u64, bytes: u64, now: u64) -> u64 {
        let cost = self.cost(bytes);
        let record = self.records.entry(watch).or_insert_with(|| {
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

    /// Says anew how much every watch keeps.
    pub(super) fn measure(&mut self) {
        self.level = self.levels.level();
    }

    /// Most that islands which may give way hold together.
    pub(super) const fn islands_max(&self) -> u64 {
        self.levels.most()
    }

    /// What becomes of an event that is the ring's oldest.
    pub(super) fn fate(&self, seq: u64, entry: &Entry, is_fact: bool) -> Fate {
        let Some(record) = self.records.get(&entry.watch) else {
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

    /// An event of so many bytes became an island.
    pub(super) fn islanded(&mut self, watch: u64, seq: u64, bytes: u64, fate: Fate) {
        let cost = self.cost(bytes);
        let Some(record) = self.records.get_mut(&watch) else {
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
        if let Some(record) = self.records.get_mut(&watch) {
            let before = std::mem::replace(&mut record.rare().spare, spare);
            self.spare.remove(&(before, watch));
            if spare > 0 {
                self.spare.insert((spare, watch));
            }
        }
    }

    /// An event of so many bytes is gone.
    pub(super) fn lost(&mut self, watch: u64, seq: u64, bytes: u64) {
        let cost = self.cost(bytes);
        let Some(record) = self.records.get_mut(&watch) else {
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

    /// The oldest island of a watch that may give way, if nobody waits for it: no attached reader,
    /// and no consumer, which wait for what comes after `pinned_after`.
    fn oldest_island(&self, watch: u64, pinned_after: u64) -> Option<u64> {
        let record = self.records.get(&watch)?;
        let seq = *record.rare.as_ref()?.islands.front()?;
        (seq <= pinned_after && !record.awaits(seq)).then_some(seq)
    }

    /// As [`Watches::oldest_island`], if `upto`, the cost up to that event, says that it is older
    /// than what the watch keeps.
    pub(super) fn stale_island(
        &self,
        watch: u64,
        pinned_after: u64,
        upto: impl Fn(u64) -> u64,
    ) -> Option<u64> {
        let seq = self.oldest_island(watch, pinned_after)?;
        let record = self.records.get(&watch)?;
        let newer = record.total - upto(seq);
        (newer >= self.level || record.is_removed()).then_some(seq)
    }

    /// Whose oldest island gives way next: the watch's that has most of them.
    pub(super) fn next_to_give_way(&self, pinned_after: u64) -> Option<(u64, u64)> {
        let mut most = self.spare.iter().rev();
        most.find_map(|(_, watch)| Some((*watch, self.oldest_island(*watch, pinned_after)?)))
    }

    /// The oldest island of that watch, an event of so many bytes, is none any longer.
    pub(super) fn gave_way(&mut self, watch: u64, bytes: u64) {
        let cost = self.cost(bytes);
        if let Some(record) = self.records.get_mut(&watch) {
            let rare = record.rare();
            rare.islands.pop_front();
            let spare = rare.spare - cost;
            self.respare(watch, spare);
        }
    }

    /// The watch is removed. Its islands, if nobody reads it: they go with it.
    pub(super) fn remove(&mut self, watch: u64) -> Vec<u64> {
        let Some(record) = self.records.get_mut(&watch) else {
            return Vec::new();
        };
        if !record.is_removed() {
            self.levels.sub(record.held());
            record.rare().removed = true;
        }
        self.forget(watch)
    }

    /// Forgets a watch that is removed and that nobody reads; its islands.
    fn forget(&mut self, watch: u64) -> Vec<u64> {
        let done = |record: &Record| record.is_removed() && record.readers().is_empty();
        if !self.records.get(&watch).is_some_and(done) {
            return Vec::new();
        }
        let record = self.records.remove(&watch);
        let Some(rare) = record.and_then(|record| record.rare) else {
            return Vec::new();
        };
        self.spare.remove(&(rare.spare, watch));
        rare.facts.into_iter().chain(rare.islands).collect()
    }

    /// Whether the watch was added and is not removed.
    pub(super) fn is_present(&self, watch: u64) -> bool {
        let record = self.records.get(&watch);
        record.is_some_and(|record| !record.is_removed())
    }

    /// The newest event of that watch that is lost, 0 if none is. Unknown of a watch that is gone.
    pub(super) fn lost_through(&self, watch: u64) -> Option<u64> {
        let record = self.records.get(&watch)?;
        Some(record.rare.as_ref().map_or(0, |rare| rare.lost_through))
    }
}
