//! Readers that watches wait for.

use smallvec::SmallVec;

use super::{Record, Watches};
use crate::journal::Room;
use crate::journal::board::Place;

/// Watches with unread events that are looked at one by one; of more, all of them count.
const EACH_MAX: usize = 64;

/// A reader that its watch waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attached {
    place: Place,
    /// What it has read, or what was there when it came, if that is more: a sequence number, and
    /// the cost of the watch's events up to there.
    after: u64,
    upto: u64,
    /// When it read last, monotonic nanoseconds.
    read_at: u64,
}

impl Record {
    pub(super) fn readers(&self) -> &[Attached] {
        self.rare.as_ref().map_or(&[], |rare| &rare.readers)
    }

    /// Whether an attached reader has not read that event of the watch.
    pub(super) fn awaits(&self, seq: u64) -> bool {
        self.readers().iter().any(|reader| reader.after < seq)
    }

    /// Cost of what the slowest attached reader has not read.
    fn unread(&self) -> u64 {
        let slowest = self.readers().iter().map(|reader| reader.upto).min();
        slowest.map_or(0, |upto| self.total - upto)
    }
}

impl Watches {
    /// The watch waits from now on for the reader of that place, which has read everything up to
    /// `after`. Nothing of a watch that is gone.
    pub(in crate::journal) fn attach(&mut self, watch: u64, place: Place, after: u64, now: u64) {
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
    pub(in crate::journal) fn attach_first(
        &mut self,
        watch: u64,
        place: Place,
        after: u64,
        now: u64,
    ) {
        self.levels.add(0);
        self.records.insert(watch, Record::default());
        self.attach(watch, place, after, now);
    }

    /// The reader has read everything up to `after`; the watch's events up to there cost `upto`, if
    /// any was among what it read.
    pub(in crate::journal) fn advance(
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
    pub(in crate::journal) fn detach(&mut self, watch: u64, place: Place, now: u64) -> Vec<u64> {
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

    /// Looks how far behind the readers of the watch are. It waits for them from the window on,
    /// until they are back at half of it.
    pub(super) fn weigh(&mut self, watch: u64, now: u64) {
        let Some(record) = self.records.get_mut(&watch) else {
            return;
        };
        let unread = record.unread();
        let rare = record.rare();
        match rare.behind {
            None if unread > 0 => {
                rare.behind = Some(now);
                self.behind.insert((now, watch));
            }
            Some(since) if unread == 0 => {
                rare.behind = None;
                self.behind.remove(&(since, watch));
            }
            _ => {}
        }
        let least = if rare.waits {
            self.window / 2
        } else {
            self.window
        };
        let waits = unread > least;
        if std::mem::replace(&mut rare.waits, waits) != waits {
            self.crossed.push(watch);
            if waits {
                self.waiting += 1;
            } else {
                self.waiting -= 1;
            }
        }
    }

    /// Whether the watch waits for its readers.
    pub(in crate::journal) fn waits(&self, watch: u64) -> bool {
        let rare = self.records.get(&watch).and_then(|r| r.rare.as_ref());
        rare.is_some_and(|rare| rare.waits)
    }

    /// Whether any watch does.
    pub(in crate::journal) const fn is_any_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Since when some reader has something to read and has read nothing, at most, monotonic
    /// nanoseconds.
    pub(in crate::journal) fn behind_since(&self) -> Option<u64> {
        self.behind.first().map(|(since, _)| *since)
    }

    /// Lets go of readers that have read nothing for so long although there was something, until no
    /// more than `enough` is unread. Says how many.
    pub(in crate::journal) fn let_go(&mut self, now: u64, patience: u64, enough: u64) -> u64 {
        let before = self.let_go;
        while self.unread > enough
            && let Some(&(since, watch)) = self.behind.first()
            && since.saturating_add(patience) <= now
        {
            self.behind.pop_first();
            let mut gone = 0;
            // Whoever is left and behind has read since: it has its own time.
            let mut next = u64::MAX;
            self.change(watch, now, |readers, total| {
                readers.retain(|reader| {
                    let idle = reader.read_at.max(since);
                    let is_behind = reader.upto < total;
                    let stays = !is_behind || idle.saturating_add(patience) > now;
                    gone += u64::from(!stays);
                    if stays && is_behind {
                        next = next.min(idle);
                    }
                    stays
                });
            });
            self.let_go += gone;
            let record = self.records.get_mut(&watch);
            if let Some(rare) = record.and_then(|record| record.rare.as_mut())
                && rare.behind.is_some()
            {
                rare.behind = Some(next);
                self.behind.insert((next, watch));
            }
        }
        self.let_go - before
    }

    /// Readers that were let go so far.
    pub(in crate::journal) const fn readers_let_go(&self) -> u64 {
        self.let_go
    }

    /// What attached readers have not read.
    pub(in crate::journal) const fn unread(&self) -> Room {
        self.room_of(self.unread)
    }

    const fn room_of(&self, cost: u64) -> Room {
        Room {
            events: cost / self.unit,
            bytes: cost,
        }
    }

    /// Of what attached readers have not read, what may lie at or before `seq`.
    pub(in crate::journal) fn unread_up_to(&self, seq: u64) -> Room {
        if self.behind.len() > EACH_MAX {
            return self.unread();
        }
        let records = self.behind.iter().filter_map(|(_, w)| self.records.get(w));
        let before = records.filter(|record| record.awaits(seq));
        self.room_of(before.map(Record::unread).sum())
    }

    pub(in crate::journal) fn take_crossed(&mut self, into: &mut Vec<u64>) {
        into.append(&mut self.crossed);
    }
}
