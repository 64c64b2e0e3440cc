//! The state of all watches at one position, read part by part.
//!
//! Nothing is copied when a snapshot is opened. A watch that is about to change, or to go, while a
//! snapshot has not come to it yet is kept as it was, once for all snapshots that want it so; what
//! has not changed is told as it is. Watches that were added later have higher ids than any of the
//! snapshot's.

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

/// Watches that one part looks at, most of which its filter may leave out; also kept ones that are
/// let go of in one turn.
const LOOKS: usize = 4096;
/// Bytes that what is kept of a watch takes beside its encoding.
const KEPT_BYTES: usize = 128;

/// Which watches a reader wants.
pub type Wanted = Arc<dyn Fn(&proto::Watch) -> bool + Send + Sync>;

/// A part of a snapshot.
#[derive(Debug, Default)]
pub struct Part {
    /// In the order of their ids.
    pub watches: Vec<proto::Watch>,
    /// Nothing comes after it.
    pub last: bool,
}

/// An open snapshot. It ends when dropped.
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
    /// Opens a snapshot of the watches as they are now.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn snapshot(&self, wanted: Wanted) -> Result<Snapshot> {
        let on = self.clone();
        self.call(|reply| Command::OpenSnapshot {
            // The loop's thread makes it: from there on it ends when it is dropped, also if nobody
            // waits for it any more.
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
    /// The position that it is the state at.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next part: it ends with the watch that makes it larger than so many bytes.
    ///
    /// # Errors
    /// There was no memory to keep what it has not read yet; a full mailbox.
    pub async fn next(&self, bytes: usize) -> Result<Part> {
        let (number, wanted) = (self.number, Arc::clone(&self.wanted));
        let read = |reply| Command::ReadSnapshot {
            number,
            bytes,
            wanted,
            reply,
        };
        match self.on.call(read).await {
            // All of its watches are removed: what is left is what was kept.
            Err(Error::LoopClosed { .. }) => {
                let mut left = self.on.shared().left.lock();
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
        // One for each snapshot. A mailbox that is closed drops it.
        self.on.push(Message::Internal(Command::EndSnapshot(end)));
    }
}

/// Ends a snapshot; dropped, of a loop that is closed by then.
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
        let mut left = self.shared.left.lock();
        left.end(self.number);
        left.go_on(usize::MAX);
    }
}

/// How far a snapshot was read.
#[derive(Debug)]
struct Reading {
    /// The last watch that there was.
    last_id: u64,
    /// The last watch that was told.
    position: u64,
    /// Nobody reads it any more.
    ended: bool,
    failed: Option<Error>,
}

impl Reading {
    fn has_yet_to_tell(&self, id: u64) -> bool {
        self.position < id && id <= self.last_id
    }
}

/// A watch as it was.
#[derive(Debug)]
struct Kept {
    watch: Box<[u8]>,
    /// Snapshots that have not told it yet.
    wanted_by: u32,
}

/// The open snapshots of a loop, by number, and what is kept for them.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    open: BTreeMap<u64, Reading>,
    last: u64,
    /// By id, and by the last snapshot that the watch was so for.
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

    /// The last snapshot that the watch is kept for.
    fn kept_until(&self, id: u64) -> u64 {
        let mut kept = self.kept.range((id, 0)..=(id, u64::MAX));
        kept.next_back().map_or(0, |((_, number), _)| *number)
    }

    /// How many snapshots want the watch kept as it is now; none if nobody reads them.
    fn wanted_by(&self, id: u64) -> Option<u32> {
        // The newest has the most watches.
        let (_, newest) = self.open.last_key_value()?;
        if id > newest.last_id {
            return None;
        }
        let until = self.kept_until(id);
        let (mut all, mut read) = (0, false);
        for (_, reading) in self.open.range(until + 1..) {
            if reading.has_yet_to_tell(id) {
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
                    if reading.has_yet_to_tell(id) {
                        reading.failed.get_or_insert_with(|| error.clone());
                    }
                }
            }
        }
    }

    /// Of what is kept of the watch for that snapshot; none if it has not changed since.
    fn kept_for(&self, number: u64, id: u64) -> Option<(u64, u64)> {
        let mut kept = self.kept.range((id, number)..=(id, u64::MAX));
        kept.next().map(|(key, _)| *key)
    }

    /// The snapshot is past that watch.
    fn pass(&mut self, number: u64, id: u64) {
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

    /// `next` and `view` tell of the watches that are there.
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
            let gone = Error::Internal("the snapshot is gone");
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
            if look == LOOKS || part.watches.len() == STEP || size > bytes {
                break;
            }
            let kept = self.kept_for(number, id);
            let kept = kept.and_then(|key| self.kept.get(&key));
            let watch = match kept {
                // It is what `keep` encoded.
                Some(kept) => proto::Watch::decode(&*kept.watch).ok(),
                None => view(id),
            };
            if let Some(watch) = watch.filter(|watch| wanted(watch)) {
                size += watch.encoded_len();
                part.watches.push(watch);
            }
            self.pass(number, id);
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

    /// Lets go of what was kept for snapshots that have ended.
    pub(super) fn go_on(&mut self, mut looks: usize) {
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
                self.pass(number, id);
                at = id;
            }
            self.open.remove(&number);
            self.ending.pop_front();
        }
    }
}

impl EventLoop {
    /// The watch is about to change: it is kept as it is for snapshots that have yet to tell it.
    pub(super) fn keep(&mut self, slot: usize) {
        if self.snapshots.open.is_empty() {
            return;
        }
        let Some(record) = self.watches.get(slot) else {
            return;
        };
        if let Some(wanted_by) = self.snapshots.wanted_by(record.id()) {
            let view = record.view(&self.shared.journal);
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
            Some(record.view(&self.shared.journal))
        };
        let next = |after| watches.next_after(after);
        self.snapshots.part(number, bytes, wanted, next, view)
    }

    /// Lets go of what snapshots do not need any more, as far as this turn may.
    pub(super) fn tidy_snapshots(&mut self) {
        self.snapshots.go_on(LOOKS);
    }

    /// The loop is closed: what is kept can still be read.
    pub(super) fn leave_snapshots(&mut self) {
        *self.shared.left.lock() = std::mem::take(&mut self.snapshots);
    }
}
