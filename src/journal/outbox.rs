//! The writer's side of a journal: the events of a turn, encoded and numbered, but not yet visible.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use buffer::Buffer;

use super::recovery::Kept;
use super::{Inner, Journal, LabelSet, Limits, Room, handoff};
use crate::clock::{Now, nanos};
use crate::error::{Error, Result};
use crate::state::Turns;

mod buffer;
mod lent;
mod look_back;
mod push;

/// With this much room the level is [`Level::Ample`], however large the budget is.
const AMPLE: Room = Room {
    events: 1024,
    bytes: 256 * 1024,
};
/// How long a watch waits for attached readers that read nothing while the whole loop is short of
/// room because of them.
const HELD_UP_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes that a turn may always read, even if all loops together would then exceed the memory.
const PART_MIN: u64 = 16 * 1024;

/// How full a journal is, to a loop that wants to read its sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// There is enough room for a paused loop to read again.
    Ample,
    /// There is enough room for a reading loop to go on.
    Enough,
    /// There is too little room in this journal.
    Full,
    /// There is too little room in the memory of all journals.
    OutOfMemory,
}

/// Returns the error for too little room: `wanted` does not fit into `room`.
#[must_use]
pub fn full(room: Room, wanted: Room) -> Error {
    let (unit, needed, available) = if room.events < wanted.events {
        ("events", wanted.events, room.events)
    } else {
        ("bytes", wanted.bytes, room.bytes)
    };
    Error::JournalFull {
        unit,
        needed,
        available,
    }
}

/// The readers that make one watch wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// Its attached readers: they are further behind than they may be.
    Readers,
    /// Consumers: what they have not acknowledged is more than the watch's share of the journal.
    Consumers,
}

/// The object that an event is about.
#[derive(Debug, Clone, Copy, Default)]
pub struct About {
    /// The watch; 0 means the loop itself.
    pub watch: u64,
    /// The watch's `user_data`, a number that the client chose.
    pub user_data: u64,
    /// The watch's labels.
    pub labels: LabelSet,
}

/// What the log keeps about an event beside its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Where the event ends, counted over all bytes ever appended.
    pub(super) end: u64,
    pub(super) watch: u64,
    /// The cost of all events of the watch up to and including this one. The log sets it.
    pub(super) upto: u64,
    pub(super) labels: LabelSet,
    pub(super) kind: u8,
}

/// The one writer of a journal.
#[derive(Debug)]
pub struct Outbox {
    journal: Arc<Journal>,
    newest: u64,
    end: u64,
    buf: Buffer,
    /// Commits what later lives find; `None` if they find nothing.
    turns: Option<Turns>,
    /// Something was kept in this turn.
    has_kept: bool,
    /// Some watch may have other labels from an event of this turn on.
    has_marks: bool,
    entries: Vec<Entry>,
    released: Vec<LabelSet>,
    limits: Limits,
    /// Room that is set aside.
    reserved: Room,
    /// Room that is left beside the pinned events and what is set aside.
    room: Room,
    /// Bytes that sources may still hand over, even if the loop stops reading them.
    exposed: u64,
    /// Bytes that watches have taken from sources and may still append.
    kept: u64,
    /// Room that other threads may use while the loop waits.
    lent: Room,
    /// Whether events are held for consumers or attached readers, or would be if there were any.
    pins: bool,
    /// Whether the next [`Outbox::level`] reports the journal as full: some event found no room.
    marked_full: bool,
    /// The loop leaves some of its sources unread until there is room.
    sources_paused: bool,
    /// The room that the loop needs to go on reading, as it said last, and the room that it needs to
    /// resume after a pause.
    low: Room,
    ample: Room,
    /// Events that attached readers have not read and that are not pinned.
    unread: Room,
    /// Whether more events have to give way than one commit may trim.
    behind: bool,
    /// Whether `reserved` or `sources_paused` has changed since the journal was told last.
    unsynchronized: bool,
    next_expiry: Option<u64>,
    wait_changes: Vec<u64>,
    /// The time of the event pushed last, monotonic nanoseconds.
    now: u64,
    /// Empty between commits; kept for their allocations.
    woken: Vec<Waker>,
    chunks: Vec<Bytes>,
}

impl Outbox {
    /// Makes the writer of an empty journal. A journal must have only one.
    #[must_use]
    pub fn new(journal: Arc<Journal>) -> Self {
        let (room, limits) = journal
            .monitor
            .with(|inner| (inner.log.room(), inner.log.limits()));
        Self {
            journal,
            newest: 0,
            end: 0,
            buf: Buffer::Own(BytesMut::new()),
            turns: None,
            has_kept: false,
            has_marks: false,
            entries: Vec::new(),
            released: Vec::new(),
            limits,
            reserved: Room::default(),
            room,
            exposed: 0,
            kept: 0,
            lent: Room::default(),
            pins: false,
            marked_full: false,
            sources_paused: false,
            low: Room::default(),
            ample: Room::default(),
            unread: Room::default(),
            behind: false,
            unsynchronized: false,
            next_expiry: None,
            wait_changes: Vec::new(),
            now: 0,
            woken: Vec::new(),
            chunks: Vec::new(),
        }
    }

    /// Has the events found by later lives.
    pub(super) fn keep_in(&mut self, kept: Kept) {
        self.buf = Buffer::kept(kept.writer);
        self.turns = Some(kept.turns);
    }

    /// Goes on after the events of an earlier life, which end there.
    pub(super) const fn go_on_after(&mut self, newest: u64, end: u64) {
        self.newest = newest;
        self.end = end;
    }

    /// Says that this life has gone on with what an earlier one left.
    pub fn has_gone_on(&self) {
        if let Some(turns) = &self.turns {
            turns.set_tries(0);
        }
    }

    /// Returns the number of the turn that is being done, for what later lives find; 0 if they find
    /// nothing of it. What is kept with it counts once the turn is committed.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.turns.as_ref().map_or(0, Turns::current)
    }

    /// Says that something is missing in later lives: then the epoch is a new one.
    pub fn lose(&self) {
        if let Some(turns) = &self.turns {
            turns.lose();
        }
    }

    /// Says that something was kept in this turn, so that the next [`Outbox::commit`] commits it even
    /// without events.
    pub const fn mark_kept(&mut self) {
        self.has_kept = true;
    }

    /// Returns the sequence number of the event pushed last.
    #[must_use]
    pub const fn newest(&self) -> u64 {
        self.newest
    }

    /// Returns how much may be pushed without room set aside for it, so that no event that a
    /// consumer or an attached reader waits for has to give way.
    #[must_use]
    pub fn room(&self) -> Room {
        let bytes = self.room.bytes.min(self.memory());
        let room = Room {
            bytes: bytes.saturating_sub(self.to_come()),
            ..self.room
        };
        room.less(self.lent)
    }

    /// Sets how many bytes sources may still hand over even if the loop stops reading them.
    /// [`Outbox::room`] leaves them out.
    pub const fn set_exposed(&mut self, bytes: u64) {
        self.exposed = bytes;
    }

    /// Records that a watch which kept `before` bytes to append later now keeps `after`.
    /// [`Outbox::room`] leaves them out.
    pub const fn keep(&mut self, before: u64, after: u64) {
        self.kept = self.kept.saturating_sub(before).saturating_add(after);
    }

    /// Returns the bytes that may come in any case.
    const fn to_come(&self) -> u64 {
        self.exposed.saturating_add(self.kept)
    }

    /// Returns the bytes left in the memory of all journals; without limit while nothing is held
    /// for readers.
    fn memory(&self) -> u64 {
        if self.pins {
            let available = self.journal.memory.available(self.room.bytes);
            available.saturating_sub(self.pending().cost())
        } else {
            u64::MAX
        }
    }

    /// Returns the size of what is pushed and not committed.
    fn pending(&self) -> Room {
        Room {
            events: self.entries.len() as u64,
            bytes: self.buf.len() as u64,
        }
    }

    /// Returns whether there is room for this many events of at most
    /// [`UNRESERVED_EVENT_BYTES`](super::UNRESERVED_EVENT_BYTES). If not, the next [`Outbox::level`]
    /// reports the journal as full.
    pub fn has_room(&mut self, events: u64) -> bool {
        let room = self.room().holds(Room::unreserved(events));
        self.marked_full |= !room;
        room
    }

    /// Makes the next [`Outbox::level`] report the journal as full, because an event that must not
    /// be lost waits for room.
    pub const fn mark_full(&mut self) {
        self.marked_full = true;
    }

    /// Returns how full the journal is. `low` is the room it takes to go on reading.
    pub fn level(&mut self, low: Room) -> Level {
        self.low = low;
        let marked_full = std::mem::take(&mut self.marked_full);
        let limits = self.limits;
        let memory = self.journal.memory.limit();
        let room = self.room();
        // The room of this journal alone, without the limit on the memory of all.
        let own = Room {
            bytes: self.room.bytes.saturating_sub(self.to_come()),
            ..self.room
        };
        let ample = Room {
            events: (limits.events / 8).clamp(low.events, AMPLE.events),
            bytes: (limits.bytes.min(memory) / 8).clamp(low.bytes, AMPLE.bytes),
        };
        self.ample = ample;
        if !room.holds(low) && own.holds(low) {
            Level::OutOfMemory
        } else if marked_full || !room.holds(low) {
            // This holds even if there is room again: a source that found none is paused, and must
            // be resumed.
            Level::Full
        } else if room.holds(ample) {
            Level::Ample
        } else {
            Level::Enough
        }
    }

    /// Returns how many bytes one turn may read, so that all loops together stay within the memory.
    #[must_use]
    pub fn turn_bytes(&self) -> u64 {
        let memory = self.memory();
        self.room()
            .bytes
            .min(self.journal.memory.part(memory).max(PART_MIN))
    }

    /// Sets room aside: events of this size will fit, whatever is pushed before them.
    ///
    /// # Errors
    /// There is too little room. Nothing is set aside then.
    pub fn reserve(&mut self, wanted: Room) -> Result<()> {
        let mut room = self.room;
        // Room that is set aside counts against the memory even while nothing is pinned.
        let memory = self.journal.memory.available(wanted.cost());
        room.bytes = room.bytes.min(memory).saturating_sub(self.to_come());
        if !room.holds(wanted) {
            return Err(full(room, wanted));
        }
        self.room = self.room.less(wanted);
        self.reserved = self.reserved + wanted;
        self.unsynchronized = true;
        Ok(())
    }

    /// Sets the room aside that an earlier life had set aside, whether there is as much or not: the
    /// event that tells of the crash has taken some.
    pub(crate) fn reserve_again(&mut self, room: Room) {
        self.room = self.room.less(room);
        self.reserved = self.reserved + room;
        self.unsynchronized = true;
    }

    /// Checks that there is room for events that a client posts.
    ///
    /// # Errors
    /// There is too little room.
    pub fn check_room(&self, wanted: Room) -> Result<()> {
        let room = self.room();
        if room.holds(wanted) {
            return Ok(());
        }
        Err(full(room, wanted))
    }

    /// Releases room that was set aside: its events have been pushed, or will not be.
    pub fn unreserve(&mut self, room: Room) {
        self.reserved = self.reserved - room;
        self.unsynchronized = true;
    }

    /// Returns the room that is set aside.
    #[must_use]
    pub const fn reserved(&self) -> Room {
        self.reserved
    }

    /// Sets whether some sources are left unread until there is room. While they are, a thread that
    /// makes room wakes this loop. If memory is short, all other loops look whether their attached
    /// readers use it up.
    pub fn set_sources_paused(&mut self, sources_paused: bool) {
        if self.sources_paused != sources_paused {
            self.unsynchronized = true;
            self.sources_paused = sources_paused;
            if sources_paused && self.memory() < self.low.bytes {
                self.journal.memory.call_all();
            }
        }
    }

    /// Returns whether the journal holds more than its budget and frees it step by step. The loop
    /// then comes back soon, and reads little meanwhile.
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.behind
    }

    /// Returns whether `reserved` and `sources_paused` are unchanged since the journal was told
    /// last.
    #[must_use]
    pub const fn is_synchronized(&self) -> bool {
        !self.unsynchronized
    }

    /// Returns why the source of this watch alone is left unread, or `None` if it is not.
    #[must_use]
    pub fn waits_for(&self, watch: u64) -> Option<WaitsFor> {
        self.journal.monitor.with(|inner| {
            if inner.log.watches().waits(watch) {
                Some(WaitsFor::Readers)
            } else {
                let over = inner.log.shares().is_over(watch);
                over.then_some(WaitsFor::Consumers)
            }
        })
    }

    /// Takes the watches for which [`Outbox::waits_for`] may have changed.
    pub fn take_wait_changes(&mut self) -> std::vec::Drain<'_, u64> {
        self.wait_changes.drain(..)
    }

    /// Returns when [`Outbox::expire`] is due, monotonic nanoseconds: a consumer that no reader
    /// holds is to be deleted, an attached reader is to be given up, or the journal is over its
    /// budget.
    #[must_use]
    pub const fn next_expiry(&self) -> Option<u64> {
        self.next_expiry
    }

    /// Ends the use of a set of labels by a watch that is gone. Events in the journal still use the
    /// set.
    pub fn release_labels(&mut self, set: LabelSet) {
        self.released.push(set);
    }

    /// Makes the pushed events visible, in order, and wakes the readers that wait for them.
    pub fn commit(&mut self) {
        self.commit_and(|woken, news| handoff::wake(woken, news));
    }

    fn commit_and(&mut self, wake: impl FnOnce(std::vec::Drain<'_, Waker>, usize)) {
        if self.entries.is_empty() && !self.unsynchronized && !self.has_kept {
            return;
        }
        let cost = self.pending().cost();
        let news = self.buf.len();
        let mut chunks = std::mem::take(&mut self.chunks);
        self.buf.commit(|chunk| chunks.push(chunk));
        if (std::mem::take(&mut self.has_kept) || news > 0)
            && let Some(turns) = &mut self.turns
        {
            if !self.buf.is_whole() {
                turns.lose();
            }
            if std::mem::take(&mut self.has_marks) {
                let first = self.newest + 1 - self.entries.len() as u64;
                let entries = &self.entries;
                self.journal.monitor.with(|inner| {
                    inner.log.keep_labels(first, entries, &mut inner.labels);
                });
            }
            turns.commit(self.newest);
        }
        let journal = Arc::clone(&self.journal);
        let mut woken = std::mem::take(&mut self.woken);
        if cost > 0 {
            journal.memory.add(cost);
        }
        let released = if news == 0 {
            journal.monitor.with(|inner| self.synchronize(inner))
        } else {
            journal.monitor.notify_all(&mut woken, |inner| {
                let (log, labels) = (&mut inner.log, &mut inner.labels);
                log.append(chunks.drain(..), &mut self.entries, labels, self.now);
                for set in self.released.drain(..) {
                    labels.release(set);
                }
                self.synchronize(inner)
            })
        };
        wake(woken.drain(..), news);
        self.woken = woken;
        self.chunks = chunks;
        if released {
            journal.memory.released();
        }
    }

    /// Takes over what other threads have changed: consumers made or deleted, cursors acknowledged,
    /// events read by attached readers.
    pub fn refresh(&mut self) {
        if self.journal.changed.swap(false, Ordering::AcqRel) {
            let journal = Arc::clone(&self.journal);
            journal.monitor.with(|inner| self.synchronize(inner));
        }
    }

    /// Returns whether all sources wait because of attached readers: without what those have not
    /// read, there would be room.
    fn is_held_up(&self) -> bool {
        let memory = self.journal.memory.available_without_unread();
        let without = Room {
            events: self.room.events + self.unread.events,
            bytes: (self.room.bytes + self.unread.bytes).min(memory),
        };
        self.sources_paused && !self.room().holds(self.ample) && without.holds(self.low)
    }

    /// Returns how long a watch waits for attached readers that read nothing, nanoseconds.
    fn patience(&self) -> u64 {
        let patience = self.limits.attached_patience;
        nanos(if self.is_held_up() {
            patience.min(HELD_UP_PATIENCE)
        } else {
            patience
        })
    }

    /// Deletes the consumers whose time to live is over, and gives up the attached readers that have
    /// read nothing for too long.
    pub fn expire(&mut self, now: Now) {
        if self.next_expiry.is_none_or(|at| at > now.monotonic) {
            return;
        }
        let journal = Arc::clone(&self.journal);
        let (expired, dropped, released) = journal.wake_all(|inner| {
            let expired = inner.consumers.expire(now, inner.log.records());
            inner.repin();
            let watches = inner.log.watches_mut();
            // Gives up only as many readers as are needed now; the loop calls this again.
            let enough = if self.is_held_up() {
                watches.unread().bytes / 2
            } else {
                0
            };
            let dropped = watches.drop_stalled_readers(now.monotonic, self.patience(), enough);
            (expired, dropped, self.synchronize(inner))
        });
        if dropped > 0 {
            tracing::warn!(
                readers = dropped,
                "watches no longer wait for attached readers that have read nothing"
            );
        }
        for consumer in expired {
            tracing::info!(consumer, "a consumer that nobody held was deleted");
        }
        if released {
            journal.memory.released();
        }
    }

    /// Brings the outbox and the journal up to date with each other. Returns whether less of the
    /// memory of all is committed than before.
    fn synchronize(&mut self, inner: &mut Inner) -> bool {
        self.unsynchronized = false;
        inner.sources_paused = self.sources_paused;
        inner.trim(self.reserved);
        let log = &mut inner.log;
        let released = log.update_memory(inner.closed);
        self.pins = log.pins();
        self.unread = log.unread();
        self.behind = log.is_behind();
        self.room = log.room().less(self.pending());
        log.shares().take_wait_changes(&mut self.wait_changes);
        log.watches_mut().take_wait_changes(&mut self.wait_changes);
        let letting_go = log.watches().behind_since();
        let letting_go = letting_go.map(|since| since.saturating_add(self.patience()));
        let expiry = inner.consumers.next_expiry();
        let at_once = self.behind.then_some(0);
        self.next_expiry = letting_go.into_iter().chain(expiry).chain(at_once).min();
        released
    }
}
