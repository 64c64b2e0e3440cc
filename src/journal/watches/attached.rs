//! Attached readers: readers that a watch waits for.

use smallvec::SmallVec;

use super::{Record, Watches};
use crate::journal::Room;
use crate::journal::monitor::WaiterId;

/// With at most this many watches that have unread events, [`Watches::unread_up_to`] counts the
/// unread events of each; with more, it counts all unread events.
const EACH_MAX: usize = 64;

/// A reader that a watch waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attached {
    waiter: WaiterId,
    /// The sequence number up to which it has read or, at first, the newest one when it was
    /// attached, and the cost of the watch's events up to there.
    after: u64,
    upto: u64,
    /// When it last read, monotonic nanoseconds.
    read_at: u64,
}

impl Record {
    pub(super) fn readers(&self) -> &[Attached] {
        self.rare.as_ref().map_or(&[], |rare| &rare.readers)
    }

    /// Returns whether some attached reader has not read this event of the watch.
    pub(super) fn awaits(&self, seq: u64) -> bool {
        self.readers().iter().any(|reader| reader.after < seq)
    }

    /// Returns the cost of what the slowest attached reader has not read.
    fn unread(&self) -> u64 {
        let slowest = self.readers().iter().map(|reader| reader.upto).min();
        slowest.map_or(0, |upto| self.total - upto)
    }
}

impl Watches {
    /// Attaches the reader with the id `waiter`, which has read everything up to `after`: the watch
    /// waits for it from now on. Does nothing if the watch is gone.
    pub(in crate::journal) fn attach(
        &mut self,
        watch: u64,
        waiter: WaiterId,
        after: u64,
        now: u64,
    ) {
        if let Some(record) = self.records.get_mut(watch) {
            let upto = record.total;
            record.rare().readers.push(Attached {
                waiter,
                after,
                upto,
                read_at: now,
            });
        }
    }

    /// Does the same as [`Watches::attach`], for a watch that is not added yet.
    pub(in crate::journal) fn attach_first(
        &mut self,
        watch: u64,
        waiter: WaiterId,
        after: u64,
        now: u64,
    ) {
        self.levels.add(0);
        self.records.insert(watch, Record::default());
        self.attach(watch, waiter, after, now);
    }

    /// Attaches another reader at the place of one that is attached. Does nothing if that one was let
    /// go.
    pub(in crate::journal) fn attach_beside(
        &mut self,
        watch: u64,
        there: WaiterId,
        waiter: WaiterId,
    ) {
        let Some(record) = self.records.get_mut(watch) else {
            return;
        };
        let readers = record.readers();
        if let Some(there) = readers
            .iter()
            .find(|reader| reader.waiter == there)
            .copied()
        {
            record.rare().readers.push(Attached { waiter, ..there });
        }
    }

    /// Records that the reader has read everything up to `after`. `upto` is the cost of the watch's
    /// events up to there, if the read had any.
    pub(in crate::journal) fn advance(
        &mut self,
        watch: u64,
        waiter: WaiterId,
        after: u64,
        upto: Option<u64>,
        now: u64,
    ) {
        self.change(watch, now, |readers, total| {
            if let Some(reader) = readers.iter_mut().find(|reader| reader.waiter == waiter) {
                reader.after = reader.after.max(after);
                reader.upto = reader.upto.max(upto.unwrap_or(0)).min(total);
                reader.read_at = now;
            }
        });
    }

    /// Removes the reader. Returns the islands to drop, if the watch is removed and this was its
    /// last reader.
    pub(in crate::journal) fn detach(
        &mut self,
        watch: u64,
        waiter: WaiterId,
        now: u64,
    ) -> Vec<u64> {
        self.change(watch, now, |readers, _| {
            readers.retain(|reader| reader.waiter != waiter);
        });
        self.forget(watch)
    }

    fn change(
        &mut self,
        watch: u64,
        now: u64,
        change: impl FnOnce(&mut SmallVec<[Attached; 1]>, u64),
    ) {
        let Some(record) = self.records.get_mut(watch) else {
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

    /// Updates whether the watch waits for its readers: it begins to wait when they are more than
    /// the window behind, and ceases at half of it.
    pub(super) fn weigh(&mut self, watch: u64, now: u64) {
        let Some(record) = self.records.get_mut(watch) else {
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
            self.wait_changes.push(watch);
            if waits {
                self.waiting += 1;
            } else {
                self.waiting -= 1;
            }
        }
    }

    /// Returns whether the watch waits for its readers.
    pub(in crate::journal) fn waits(&self, watch: u64) -> bool {
        let rare = self.records.get(watch).and_then(|r| r.rare.as_ref());
        rare.is_some_and(|rare| rare.waits)
    }

    /// Returns whether any watch waits for its readers.
    pub(in crate::journal) const fn is_any_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Returns a lower bound of the time since when some reader has had something to read and has
    /// read nothing, monotonic nanoseconds.
    pub(in crate::journal) fn behind_since(&self) -> Option<u64> {
        self.behind.first().map(|(since, _)| *since)
    }

    /// Gives up readers that have read nothing for as long as `patience` although there was
    /// something to read, until no more than `enough` is unread. Returns how many were given up.
    pub(in crate::journal) fn drop_stalled_readers(
        &mut self,
        now: u64,
        patience: u64,
        enough: u64,
    ) -> u64 {
        let before = self.readers_let_go;
        while self.unread > enough
            && let Some(&(since, watch)) = self.behind.first()
            && since.saturating_add(patience) <= now
        {
            self.behind.pop_first();
            let mut gone = 0;
            // A reader that stays and is behind has read since: its time counts from then on.
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
            self.readers_let_go += gone;
            let record = self.records.get_mut(watch);
            if let Some(rare) = record.and_then(|record| record.rare.as_mut())
                && rare.behind.is_some()
            {
                rare.behind = Some(next);
                self.behind.insert((next, watch));
            }
        }
        self.readers_let_go - before
    }

    /// Returns how many readers were given up so far.
    pub(in crate::journal) const fn readers_let_go(&self) -> u64 {
        self.readers_let_go
    }

    /// Returns the events that attached readers have not read.
    pub(in crate::journal) const fn unread(&self) -> Room {
        self.room_of(self.unread)
    }

    const fn room_of(&self, cost: u64) -> Room {
        Room {
            events: cost / self.unit,
            bytes: cost,
        }
    }

    /// Returns an upper bound of the events up to `seq` that attached readers have not read.
    pub(in crate::journal) fn unread_up_to(&self, seq: u64) -> Room {
        if self.behind.len() > EACH_MAX {
            return self.unread();
        }
        let records = self.behind.iter().filter_map(|(_, w)| self.records.get(*w));
        let before = records.filter(|record| record.awaits(seq));
        self.room_of(before.map(Record::unread).sum())
    }

    pub(in crate::journal) fn take_wait_changes(&mut self, into: &mut Vec<u64>) {
        into.append(&mut self.wait_changes);
    }
}
