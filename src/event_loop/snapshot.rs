//! Snapshots: the state of all watches at one position of the journal, read in parts.
//!
//! Opening a snapshot copies nothing. Before a watch changes or is removed, its state is kept for
//! the open snapshots that have not returned it yet, once for all of them. An unchanged watch is
//! returned as it is now. Watches that were added later have higher ids than any watch of the
//! snapshot.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use prost::Message as _;

use super::command::Command;
use super::mailbox::Message;
use super::sweeps::STEP;
use super::{EventLoop, Handle, Shared};
use crate::error::{Error, Result};
use crate::event::Cursor;
use crate::memory::{Budget, Taken, Use};
use crate::proto;

#[cfg(test)]
mod tests;

/// The largest number of watches that one part examines, of which its filter may leave out most.
/// Also the largest number of kept watches that one turn releases.
const LOOKS_MAX: usize = 4096;
/// The bytes that a kept watch takes beyond its encoding.
const KEPT_BYTES: usize = 128;

/// A filter for the watches that a reader wants.
pub type Wanted = Arc<dyn Fn(&proto::Watch) -> bool + Send + Sync>;

/// One part of a snapshot.
#[derive(Debug, Default)]
pub struct Part {
    /// The watches, in the order of their ids.
    pub watches: Vec<proto::Watch>,
    /// Whether this is the last part.
    pub last: bool,
}

/// An open snapshot. Dropping it ends it.
pub struct Snapshot {
    on: Handle,
    number: u64,
    cursor: Cursor,
    wanted: Wanted,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("number", &self.number)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// Opens a snapshot of all watches as they are now.
    ///
    /// # Errors
    /// The loop is closed, or its mailbox is full.
    pub async fn snapshot(&self, wanted: Wanted) -> Result<Snapshot> {
        let on = self.clone();
        self.call(|reply| Command::OpenSnapshot {
            // Created on the loop's thread, so that the snapshot is ended even if the caller no
            // longer waits for the reply.
            visit: reply.after(|(number, cursor)| {
                Ok(Snapshot {
                    on,
                    number,
                    cursor,
                    wanted,
                })
            }),
        })
        .await
    }
}

impl Snapshot {
    /// Returns the position of the snapshot.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Returns the next part, which ends with the watch that makes it larger than `bytes`.
    ///
    /// # Errors
    /// There was no memory to keep a watch that the snapshot has not returned yet, or the mailbox
    /// is full.
    pub async fn next(&self, bytes: usize) -> Result<Part> {
        let (number, wanted) = (self.number, Arc::clone(&self.wanted));
        let read = |reply| Command::ReadSnapshot {
            number,
            bytes,
            wanted,
            reply,
        };
        match self.on.call(read).await {
            // All watches of a closed loop are removed, so the rest of the snapshot consists of
            // kept watches.
            Err(Error::LoopClosed { .. }) => {
                let mut left = self.on.shared().snapshots_left.lock();
                left.part(number, bytes, &self.wanted, |_| None, |_| None)
            }
            part => part,
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let end = End {
            shared: Arc::clone(self.on.shared()),
            number: self.number,
            open: true,
        };
        // There is one such message for each snapshot. A closed mailbox drops it.
        self.on.push(Message::Internal(Command::EndSnapshot(end)));
    }
}

/// Ends a snapshot when it is carried out, or when it is dropped because the loop is closed.
pub(super) struct End {
    shared: Arc<Shared>,
    number: u64,
    open: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let mut left = self.shared.snapshots_left.lock();
        left.end(self.number);
        left.release_kept(usize::MAX);
    }
}

/// The progress of reading a snapshot.
#[derive(Debug)]
struct Reading {
    /// The id of the newest watch in the snapshot.
    last_id: u64,
    /// The id of the watch that was returned last.
    position: u64,
    /// Whether the snapshot was dropped or read to its end.
    ended: bool,
    failed: Option<Error>,
}

impl Reading {
    fn has_yet_to_return(&self, id: u64) -> bool {
        self.position < id && id <= self.last_id
    }
}

/// The earlier state of a watch.
#[derive(Debug)]
struct Kept {
    watch: Box<[u8]>,
    /// The number of snapshots that have not returned it yet.
    wanted_by: u32,
}

/// The open snapshots of a loop, by number, and the watches kept for them.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    open: BTreeMap<u64, Reading>,
    last: u64,
    /// The kept watches, by id and by the newest snapshot for which that state is right.
    kept: BTreeMap<(u64, u64), Kept>,
    ending: VecDeque<u64>,
    budget: Option<Arc<Budget>>,
    taken: Option<Taken>,
}

impl Snapshots {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            budget: Some(Arc::clone(budget)),
            ..Self::default()
        }
    }

    fn open(&mut self, last_id: u64) -> u64 {
        self.last += 1;
        let reading = Reading {
            last_id,
            position: 0,
            ended: false,
            failed: None,
        };
        self.open.insert(self.last, reading);
        self.last
    }

    /// Returns the newest snapshot for which a state of the watch is kept; 0 if none is.
    fn kept_until(&self, id: u64) -> u64 {
        let mut kept = self.kept.range((id, 0)..=(id, u64::MAX));
        kept.next_back().map_or(0, |((_, number), _)| *number)
    }

    /// Returns how many snapshots need the present state of the watch; `None` if nobody reads any
    /// of them.
    fn wanted_by(&self, id: u64) -> Option<u32> {
        // The newest snapshot has the most watches.
        let (_, newest) = self.open.last_key_value()?;
        if id > newest.last_id {
            return None;
        }
        let until = self.kept_until(id);
        let (mut all, mut read) = (0, false);
        for (_, reading) in self.open.range(until + 1..) {
            if reading.has_yet_to_return(id) {
                all += 1;
                read |= !reading.ended && reading.failed.is_none();
            }
        }
        read.then_some(all)
    }

    fn keep(&mut self, id: u64, watch: &proto::Watch, wanted_by: u32) {
        let watch = watch.encode_to_vec().into_boxed_slice();
        let bytes = (watch.len() + KEPT_BYTES) as u64;
        let taken = match (&mut self.taken, &self.budget) {
            (Some(taken), _) => taken.grow(bytes),
            (None, Some(budget)) => budget
                .take(Use::Snapshots, bytes)
                .map(|taken| self.taken = Some(taken)),
            (None, None) => Ok(()),
        };
        match taken {
            Ok(()) => {
                let kept = Kept { watch, wanted_by };
                self.kept.insert((id, self.last), kept);
            }
            Err(error) => {
                let until = self.kept_until(id);
                for (_, reading) in self.open.range_mut(until + 1..) {
                    if reading.has_yet_to_return(id) {
                        reading.failed.get_or_insert_with(|| error.clone());
                    }
                }
            }
        }
    }

    /// Returns the key of the state that is kept of the watch for that snapshot; `None` if the
    /// watch has not changed since.
    fn kept_for(&self, number: u64, id: u64) -> Option<(u64, u64)> {
        let mut kept = self.kept.range((id, number)..=(id, u64::MAX));
        kept.next().map(|(key, _)| *key)
    }

    /// Moves the snapshot past a watch and releases its kept state if no other snapshot needs it.
    fn advance_past(&mut self, number: u64, id: u64) {
        if let Some(key) = self.kept_for(number, id)
            && let Some(kept) = self.kept.get_mut(&key)
        {
            kept.wanted_by = kept.wanted_by.saturating_sub(1);
            if kept.wanted_by == 0 {
                let bytes = (kept.watch.len() + KEPT_BYTES) as u64;
                self.kept.remove(&key);
                if let Some(taken) = &mut self.taken {
                    taken.shrink(bytes);
                }
            }
        }
        if let Some(reading) = self.open.get_mut(&number) {
            reading.position = id;
        }
    }

    fn next_kept(&self, after: u64) -> Option<u64> {
        let mut kept = self.kept.range((after + 1, 0)..);
        kept.next().map(|((id, _), _)| *id)
    }

    /// Returns the next part of a snapshot. `next` and `view` give access to the watches that the
    /// loop has: `next` returns the lowest id above the given one.
    fn part(
        &mut self,
        number: u64,
        bytes: usize,
        wanted: &Wanted,
        next: impl Fn(u64) -> Option<u64>,
        view: impl Fn(u64) -> Option<proto::Watch>,
    ) -> Result<Part> {
        let (mut part, mut size) = (Part::default(), 0);
        for look in 0.. {
            let gone = Error::Internal("the snapshot has ended");
            let reading = self.open.get(&number).ok_or(gone)?;
            if let Some(error) = &reading.failed {
                return Err(error.clone());
            }
            let at = reading.position;
            let ids = next(at).into_iter().chain(self.next_kept(at));
            let Some(id) = ids.min().filter(|id| *id <= reading.last_id) else {
                part.last = true;
                self.end(number);
                break;
            };
            if look == LOOKS_MAX || part.watches.len() == STEP || size > bytes {
                break;
            }
            let kept = self.kept_for(number, id);
            let kept = kept.and_then(|key| self.kept.get(&key));
            let watch = match kept {
                // `keep` encoded it.
                Some(kept) => proto::Watch::decode(&*kept.watch).ok(),
                None => view(id),
            };
            if let Some(watch) = watch.filter(|watch| wanted(watch)) {
                size += watch.encoded_len();
                part.watches.push(watch);
            }
            self.advance_past(number, id);
        }
        Ok(part)
    }

    fn end(&mut self, number: u64) {
        if let Some(reading) = self.open.get_mut(&number)
            && !std::mem::replace(&mut reading.ended, true)
        {
            self.ending.push_back(number);
        }
    }

    pub(super) fn has_more_to_do(&self) -> bool {
        !self.ending.is_empty()
    }

    /// Releases watches kept for snapshots that have ended, at most `looks` of them.
    pub(super) fn release_kept(&mut self, mut looks: usize) {
        while let Some(&number) = self.ending.front() {
            if self.ending.len() == self.open.len() {
                (self.open, self.kept) = (BTreeMap::new(), BTreeMap::new());
                (self.ending, self.taken) = (VecDeque::new(), None);
                return;
            }
            let reading = self.open.get(&number);
            let (mut at, last) = reading.map_or((0, 0), |r| (r.position, r.last_id));
            while let Some(id) = self.next_kept(at).filter(|id| *id <= last) {
                if looks == 0 {
                    return;
                }
                looks -= 1;
                self.advance_past(number, id);
                at = id;
            }
            self.open.remove(&number);
            self.ending.pop_front();
        }
    }
}

impl EventLoop {
    /// Keeps the present state of a watch, which is about to change, for the snapshots that have
    /// not returned it yet.
    pub(super) fn keep_for_snapshots(&mut self, slot: usize) {
        if self.snapshots.open.is_empty() {
            return;
        }
        let Some(record) = self.watches.get(slot) else {
            return;
        };
        if let Some(wanted_by) = self.snapshots.wanted_by(record.id()) {
            let view = record.view(&self.shared.journal, &*self.driver, self.shared.survives);
            self.snapshots.keep(record.id(), &view, wanted_by);
        }
    }

    /// Opens a snapshot. Returns its number and its position.
    pub(super) fn open_snapshot(&mut self) -> (u64, Cursor) {
        let number = self.snapshots.open(self.watches.last_id());
        (number, self.newest())
    }

    pub(super) fn end_snapshot(&mut self, mut end: End) {
        end.open = false;
        self.snapshots.end(end.number);
    }

    pub(super) fn snapshot_part(
        &mut self,
        number: u64,
        bytes: usize,
        wanted: &Wanted,
    ) -> Result<Part> {
        let watches = &self.watches;
        let view = |id| {
            let record = watches.get(watches.by_id(id)?)?;
            Some(record.view(&self.shared.journal, &*self.driver, self.shared.survives))
        };
        let next = |after| watches.next_after(after);
        self.snapshots.part(number, bytes, wanted, next, view)
    }

    /// Releases kept watches that no snapshot needs any more, within the limit of one turn.
    pub(super) fn tidy_snapshots(&mut self) {
        self.snapshots.release_kept(LOOKS_MAX);
    }

    /// Moves the snapshots to where [`Snapshot::next`] can read them once the loop is closed.
    pub(super) fn share_snapshots(&mut self) {
        *self.shared.snapshots_left.lock() = std::mem::take(&mut self.snapshots);
    }
}
