//! What the log knows of each watch: what it holds, what it keeps when room is needed, and what
//! readers that are attached to it have not read yet.
//!
//! Sizes are *costs*: an event costs its bytes, and at least the budget's bytes divided by its events,
//! so that one number stands for both bounds of a budget.

use std::collections::{BTreeSet, VecDeque};

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::board::Place;
use super::levels::Levels;
use super::outbox::Entry;
use super::{Limits, Room};

/// One watch that is not removed, or that somebody still reads.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Cost of all of its events so far.
    pub(super) total: u64,
    /// Cost of those that are held.
    held: u64,
    /// The newest of its events that is lost; 0: none is.
    lost_through: u64,
    /// What few watches have.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    /// Its islands that stay until it is removed, and those that may give way, oldest first.
    facts: SmallVec<[u64; 4]>,
    islands: VecDeque<u64>,
    readers: SmallVec<[Attached; 1]>,
    /// Its readers are so far behind that it has to wait for them, since then (monotonic nanoseconds).
    waits: Option<u64>,
    removed: bool,
    /// It is in [`Watches::rotation`].
    rotates: bool,
}

/// A reader that the watch waits for.
#[derive(Debug, Clone, Copy)]
struct Attached {
    place: Place,
    /// What it has read, or what was there when it came, if that is more: a sequence number, and
    /// the cost of the watch's events up to there.
    after: u64,
    upto: u64,
    /// When it read last, monotonic nanoseconds.
    read_at: u64,
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
        self.rare.get_or_insert_default()
    }

    pub(super) fn is_removed(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.removed)
    }

    fn readers(&self) -> &[Attached] {
        self.rare.as_ref().map_or(&[], |rare| &rare.readers)
    }

    /// Whether an attached reader has not read that event of the watch.
    fn awaits(&self, seq: u64) -> bool {
        self.readers().iter().any(|reader| reader.after < seq)
    }

    /// Cost of what the slowest attached reader has not read.
    fn unread(&self) -> u64 {
        let slowest = self.readers().iter().map(|reader| reader.upto).min();
        slowest.map_or(0, |upto| self.total - upto)
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
    /// Watches with islands that may give way, in turns.
    rotation: VecDeque<u64>,
    /// Watches that wait for their readers, by since when.
    waiting: BTreeSet<(u64, u64)>,
    /// Watches that began to wait, or ceased to, since the loop last asked.
    crossed: Vec<u64>,
    /// Readers that were let go.
    let_go: u64,
}

/// Watches that give way in turns: of so many, the one that has most does.
const CHOICES: usize = 8;

impl Watches {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            records: HashMap::new(),
            levels: Levels::new(limits.watch_keep, limits.bytes / 2),
            level: limits.watch_keep,
            unit: (limits.bytes / limits.events.max(1)).max(1),
            window: limits.attached_bytes.min(limits.bytes / 8),
            unread: 0,
            rotation: VecDeque::new(),
            waiting: BTreeSet::new(),
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
        record.total += cost;
        let total = record.total;
        if !record.is_removed() {
            self.levels.sub(record.held);
            self.levels.add(record.held + cost);
        }
        record.held += cost;
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

    /// An event became an island.
    pub(super) fn islanded(&mut self, watch: u64, seq: u64, fate: Fate) {
        let Some(record) = self.records.get_mut(&watch) else {
            return;
        };
        let rare = record.rare();
        if fate == Fate::Fact {
            rare.facts.push(seq);
            return;
        }
        rare.islands.push_back(seq);
        if !std::mem::replace(&mut rare.rotates, true) {
            self.rotation.push_back(watch);
        }
        if self.rotation.len() > 2 * self.records.len() {
            let records = &self.records;
            self.rotation.retain(|watch| records.contains_key(watch));
        }
    }

    /// An event of so many bytes is gone.
    pub(super) fn lost(&mut self, watch: u64, seq: u64, bytes: u64) {
        let cost = self.cost(bytes);
        let Some(record) = self.records.get_mut(&watch) else {
            return;
        };
        if !record.is_removed() {
            self.levels.sub(record.held);
            self.levels.add(record.held - cost);
        }
        record.held -= cost;
        record.lost_through = record.lost_through.max(seq);
    }

    /// The oldest island of a watch that may give way, if it has one that nobody waits for.
    fn oldest_island(&self, watch: u64) -> Option<u64> {
        let record = self.records.get(&watch)?;
        let seq = *record.rare.as_ref()?.islands.front()?;
        (!record.awaits(seq)).then_some(seq)
    }

    /// As [`Watches::oldest_island`], if `upto`, the cost up to that event, says that it is older
    /// than what the watch keeps.
    pub(super) fn stale_island(&self, watch: u64, upto: impl Fn(u64) -> u64) -> Option<u64> {
        let seq = self.oldest_island(watch)?;
        let record = self.records.get(&watch)?;
        let newer = record.total - upto(seq);
        (newer >= self.level || record.is_removed()).then_some(seq)
    }

    /// Whose oldest island gives way next: of a few watches, the one that has most.
    pub(super) fn next_to_give_way(&mut self) -> Option<(u64, u64)> {
        let mut most: Option<(u64, u64, u64)> = None;
        let mut choices = 0;
        for _ in 0..self.rotation.len() {
            let watch = self.rotation.pop_front()?;
            let Some(record) = self.records.get_mut(&watch) else {
                continue;
            };
            if record.rare().islands.is_empty() {
                record.rare().rotates = false;
                continue;
            }
            let held = record.held;
            self.rotation.push_back(watch);
            if let Some(seq) = self.oldest_island(watch) {
                most = most.max(Some((held, watch, seq)));
                choices += 1;
            }
            if choices == CHOICES {
                break;
            }
        }
        most.map(|(_, watch, seq)| (watch, seq))
    }

    /// The oldest island of that watch is none any longer.
    pub(super) fn gave_way(&mut self, watch: u64) {
        if let Some(record) = self.records.get_mut(&watch) {
            record.rare().islands.pop_front();
        }
    }

    /// The watch is removed. Its islands, if nobody reads it: they go with it.
    pub(super) fn remove(&mut self, watch: u64) -> Vec<u64> {
        let Some(record) = self.records.get_mut(&watch) else {
            return Vec::new();
        };
        if !record.is_removed() {
            self.levels.sub(record.held);
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
        let rare = record.and_then(|record| record.rare);
        rare.map_or_else(Vec::new, |rare| {
            rare.facts.into_iter().chain(rare.islands).collect()
        })
    }

    /// Whether the watch was added and is not removed.
    pub(super) fn is_present(&self, watch: u64) -> bool {
        let record = self.records.get(&watch);
        record.is_some_and(|record| !record.is_removed())
    }

    /// The newest event of that watch that is lost, 0 if none is. Unknown of a watch that is gone.
    pub(super) fn lost_through(&self, watch: u64) -> Option<u64> {
        self.records.get(&watch).map(|record| record.lost_through)
    }
}

/// Attached readers.
impl Watches {
    /// The watch waits from now on for the reader of that place, which has read everything up to
    /// `after`. Nothing of a watch that is gone.
    pub(super) fn attach(&mut self, watch: u64, place: Place, after: u64, now: u64) {
        if let Some(record) = self.records.get_mut(&watch) {
            let upto = record.total;
            record.rare().readers.push(Attached {
                place,
                after,
                upto,
                read_at: now,
            });
        }
    }

    /// As [`Watches::attach`], to a watch that is not there yet.
    pub(super) fn attach_first(&mut self, watch: u64, place: Place, after: u64, now: u64) {
        self.levels.add(0);
        self.records.insert(watch, Record::default());
        self.attach(watch, place, after, now);
    }

    /// The reader has read everything up to `after`; the watch's events up to there cost `upto`, if
    /// any was among what it read.
    pub(super) fn advance(
        &mut self,
        watch: u64,
        place: Place,
        after: u64,
        upto: Option<u64>,
        now: u64,
    ) {
        self.change(watch, now, |readers, total| {
            if let Some(reader) = readers.iter_mut().find(|reader| reader.place == place) {
                reader.after = reader.after.max(after);
                reader.upto = reader.upto.max(upto.unwrap_or(0)).min(total);
                reader.read_at = now;
            }
        });
    }

    /// The reader is gone. Says which islands go with it, of a watch that is removed.
    pub(super) fn detach(&mut self, watch: u64, place: Place, now: u64) -> Vec<u64> {
        self.change(watch, now, |readers, _| {
            readers.retain(|reader| reader.place != place);
        });
        self.forget(watch)
    }

    fn change(
        &mut self,
        watch: u64,
        now: u64,
        change: impl FnOnce(&mut SmallVec<[Attached; 1]>, u64),
    ) {
        let Some(record) = self.records.get_mut(&watch) else {
            return;
        };
        let before = record.unread();
        let total = record.total;
        if let Some(rare) = &mut record.rare {
            change(&mut rare.readers, total);
        }
        self.unread -= before - record.unread().min(before);
        self.weigh(watch, now);
    }

    /// Looks whether the watch has to wait for its readers: above the window until half of it.
    fn weigh(&mut self, watch: u64, now: u64) {
        let Some(record) = self.records.get_mut(&watch) else {
            return;
        };
        let unread = record.unread();
        let rare = record.rare();
        match rare.waits {
            None if unread > self.window => {
                rare.waits = Some(now);
                self.waiting.insert((now, watch));
                self.crossed.push(watch);
            }
            Some(since) if unread <= self.window / 2 => {
                rare.waits = None;
                self.waiting.remove(&(since, watch));
                self.crossed.push(watch);
            }
            _ => {}
        }
    }

    /// Whether the watch waits for its readers.
    pub(super) fn waits(&self, watch: u64) -> bool {
        let rare = self.records.get(&watch).and_then(|r| r.rare.as_ref());
        rare.is_some_and(|rare| rare.waits.is_some())
    }

    /// Whether any watch does.
    pub(super) fn is_any_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Since when the first of those that wait does, monotonic nanoseconds.
    pub(super) fn waiting_since(&self) -> Option<u64> {
        self.waiting.first().map(|(since, _)| *since)
    }

    /// Lets go of readers that others have waited for, for so long that nothing was read. Says how many.
    pub(super) fn let_go(&mut self, now: u64, patience: u64) -> u64 {
        let before = self.let_go;
        while let Some(&(since, watch)) = self.waiting.first()
            && since.saturating_add(patience) <= now
        {
            self.waiting.pop_first();
            let mut gone = 0;
            let mut latest = since;
            self.change(watch, now, |readers, total| {
                readers.retain(|reader| {
                    let stuck = reader.read_at.max(since).saturating_add(patience) <= now;
                    let behind = reader.upto < total;
                    gone += u64::from(stuck && behind);
                    latest = latest.max(reader.read_at);
                    !(stuck && behind)
                });
            });
            self.let_go += gone;
            // Whoever is left has read since: it has its own time.
            let record = self.records.get_mut(&watch);
            if let Some(rare) = record.and_then(|record| record.rare.as_mut())
                && rare.waits.is_some()
            {
                rare.waits = Some(latest);
                self.waiting.insert((latest, watch));
            }
        }
        self.let_go - before
    }

    /// Readers that were let go so far.
    pub(super) const fn readers_let_go(&self) -> u64 {
        self.let_go
    }

    /// What attached readers have not read.
    pub(super) const fn unread(&self) -> Room {
        Room {
            events: self.unread / self.unit,
            bytes: self.unread,
        }
    }

    pub(super) fn take_crossed(&mut self, into: &mut Vec<u64>) {
        into.append(&mut self.crossed);
    }
}
