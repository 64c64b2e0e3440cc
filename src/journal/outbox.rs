//! The writer's side: a turn's events, encoded and numbered, not yet visible.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use bytes::BytesMut;

use super::{Inner, Journal, LabelSet, Limits, Room, handoff};
use crate::clock::{Now, nanos};
use crate::error::{Error, Result};

mod push;

/// More room than this is ample, whatever the budget.
const AMPLE: Room = Room {
    events: 1024,
    bytes: 256 * 1024,
};
/// How long a watch waits for attached readers that read nothing, where others have to wait too.
const HELD_UP_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes that a turn may read although all loops doing so might exceed the memory.
const PART_MIN: u64 = 16 * 1024;

/// How full a journal is, for a loop that wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Enough room to begin again.
    Ample,
    /// Enough room to go on.
    Enough,
    /// It holds all it can.
    Full,
    /// All journals together do.
    OutOfMemory,
}

/// There is less room than that.
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

/// Whom a watch waits for alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// Its attached readers: they have not read more than they may be behind.
    Readers,
    /// Consumers: they have not acknowledged more than the watch's share of the journal.
    Consumers,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, Default)]
pub struct About {
    /// The watch; 0 is the loop itself.
    pub watch: u64,
    /// The client's own number.
    pub user_data: u64,
    /// The watch's labels.
    pub labels: LabelSet,
}

/// What the log knows of an event beside its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Where it ends, counted over all bytes ever appended.
    pub(super) end: u64,
    pub(super) watch: u64,
    /// Cost of all events of the watch, this one included; the log's to say.
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
    buf: BytesMut,
    entries: Vec<Entry>,
    released: Vec<LabelSet>,
    limits: Limits,
    /// What is set aside.
    reserved: Room,
    /// What is left beside them, and beside what is pinned.
    room: Room,
    /// Bytes that sources may hand over whatever happens.
    exposed: u64,
    /// Something is pinned, or would be.
    pins: bool,
    /// Something found no room since the loop last asked.
    lacking: bool,
    /// The loop does not read some of its sources until there is room.
    sources_paused: bool,
    /// What it takes to go on reading, as the loop said, and to begin again.
    low: Room,
    ample: Room,
    /// What attached readers have not read, beside what is pinned.
    unread: Room,
    /// More has to give way than one commit may take.
    behind: bool,
    /// The journal does not know yet of what was set aside, or of `sources_paused`.
    unsettled: bool,
    next_expiry: Option<u64>,
    crossed: Vec<u64>,
    /// Of what was pushed last, monotonic nanoseconds.
    now: u64,
    /// Empty between commits: it keeps its memory.
    woken: Vec<Waker>,
}

impl Outbox {
    /// The writer of an empty journal. There must be no second one.
    #[must_use]
    pub fn new(journal: Arc<Journal>) -> Self {
        let (room, limits) = journal
            .board
            .with(|inner| (inner.log.room(), inner.log.limits()));
        Self {
            journal,
            newest: 0,
            end: 0,
            buf: BytesMut::new(),
            entries: Vec::new(),
            released: Vec::new(),
            limits,
            reserved: Room::default(),
            room,
            exposed: 0,
            pins: false,
            lacking: false,
            sources_paused: false,
            low: Room::default(),
            ample: Room::default(),
            unread: Room::default(),
            behind: false,
            unsettled: false,
            next_expiry: None,
            crossed: Vec::new(),
            now: 0,
            woken: Vec::new(),
        }
    }

    /// Sequence number of the event pushed last.
    #[must_use]
    pub const fn newest(&self) -> u64 {
        self.newest
    }

    /// How much may be pushed without anything set aside for it, so that nothing that a
    /// consumer waits for has to give way.
    #[must_use]
    pub fn room(&self) -> Room {
        let bytes = self.room.bytes.min(self.memory());
        Room {
            bytes: bytes.saturating_sub(self.exposed),
            ..self.room
        }
    }

    /// Bytes that sources may hand over whatever happens: no room for anything else.
    pub const fn set_exposed(&mut self, bytes: u64) {
        self.exposed = bytes;
    }

    /// Bytes that the memory of all journals leaves; all there are while nothing is pinned.
    fn memory(&self) -> u64 {
        if self.pins {
            let available = self.journal.memory.available(self.room.bytes);
            available.saturating_sub(self.pending().cost())
        } else {
            u64::MAX
        }
    }

    /// What is pushed and not committed.
    fn pending(&self) -> Room {
        Room {
            events: self.entries.len() as u64,
            bytes: self.buf.len() as u64,
        }
    }

    /// Whether there is room for this many events of at most [`UNRESERVED_EVENT_BYTES`](super::UNRESERVED_EVENT_BYTES). If not,
    /// [`Outbox::level`] says so.
    pub fn has_room(&mut self, events: u64) -> bool {
        let room = self.room().holds(Room::unreserved(events));
        self.lacking |= !room;
        room
    }

    /// Something that cannot fail waits for room.
    pub const fn lack_room(&mut self) {
        self.lacking = true;
    }

    /// How full the journal is. `low` is what it takes to go on reading.
    pub fn level(&mut self, low: Room) -> Level {
        self.low = low;
        let lacking = std::mem::take(&mut self.lacking);
        let limits = self.limits;
        let memory = self.journal.memory.limit();
        let room = self.room();
        // What would be left if there was memory without end.
        let own = Room {
            bytes: self.room.bytes.saturating_sub(self.exposed),
            ..self.room
        };
        let ample = Room {
            events: (limits.events / 8).clamp(low.events, AMPLE.events),
            bytes: (limits.bytes.min(memory) / 8).clamp(low.bytes, AMPLE.bytes),
        };
        self.ample = ample;
        if !room.holds(low) && own.holds(low) {
            Level::OutOfMemory
        } else if lacking || !room.holds(low) {
            // Also where there is room again by now: who found none waits to be told.
            Level::Full
        } else if room.holds(ample) {
            Level::Ample
        } else {
            Level::Enough
        }
    }

    /// Bytes that one turn may read, so that all loops together stay within the memory.
    #[must_use]
    pub fn turn_bytes(&self) -> u64 {
        let memory = self.memory();
        self.room()
            .bytes
            .min(self.journal.memory.part(memory).max(PART_MIN))
    }

    /// Sets so much aside: it will fit, whatever comes before it.
    ///
    /// # Errors
    /// There is no room for it. Nothing is set aside then.
    pub fn reserve(&mut self, wanted: Room) -> Result<()> {
        let mut room = self.room;
        // What is set aside must be there, also while nothing is pinned.
        let memory = self.journal.memory.available(wanted.cost());
        room.bytes = room.bytes.min(memory).saturating_sub(self.exposed);
        if !room.holds(wanted) {
            return Err(full(room, wanted));
        }
        self.room = self.room.less(wanted);
        self.reserved = self.reserved + wanted;
        self.unsettled = true;
        Ok(())
    }

    /// Room for what a client posts.
    ///
    /// # Errors
    /// There is none.
    pub fn check_room(&self, wanted: Room) -> Result<()> {
        let room = self.room();
        if room.holds(wanted) {
            return Ok(());
        }
        Err(full(room, wanted))
    }

    /// So much of what was set aside has been, or will not be, pushed.
    pub fn unreserve(&mut self, room: Room) {
        self.reserved = self.reserved - room;
        self.unsettled = true;
    }

    /// What is set aside.
    #[must_use]
    pub const fn reserved(&self) -> Room {
        self.reserved
    }

    /// Whether some sources are not read until there is room: whoever makes some, calls. Other
    /// loops look, too, whether it is their readers that leave none.
    pub fn set_sources_paused(&mut self, sources_paused: bool) {
        if self.sources_paused != sources_paused {
            self.unsettled = true;
            self.sources_paused = sources_paused;
            if sources_paused && self.memory() < self.low.bytes {
                self.journal.memory.call_all();
            }
        }
    }

    /// The journal holds more than its budget, and lets go of it step by step: the loop comes back
    /// soon, and reads little meanwhile.
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.behind
    }

    /// The journal knows what was set aside, and who waits.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        !self.unsettled
    }

    /// Why that watch's source is not to be read, if it alone is not.
    #[must_use]
    pub fn waits_for(&self, watch: u64) -> Option<WaitsFor> {
        self.journal.board.with(|inner| {
            if inner.log.watches().waits(watch) {
                Some(WaitsFor::Readers)
            } else {
                let over = inner.log.shares().is_over(watch);
                over.then_some(WaitsFor::Consumers)
            }
        })
    }

    /// Watches for which [`Outbox::waits_for`] may have changed.
    pub fn crossed(&mut self) -> std::vec::Drain<'_, u64> {
        self.crossed.drain(..)
    }

    /// When a consumer that nobody holds is to be deleted, a reader to be let go, or what is over the
    /// budget, monotonic nanoseconds: [`Outbox::expire`].
    #[must_use]
    pub const fn next_expiry(&self) -> Option<u64> {
        self.next_expiry
    }

    /// The watch that had these labels is gone; what was pushed still carries them, and
    /// is held as long as it is in the journal.
    pub fn release_labels(&mut self, set: LabelSet) {
        self.released.push(set);
    }

    /// Makes what was pushed visible, in order, and wakes who waits for it.
    pub fn commit(&mut self) {
        if self.entries.is_empty() && !self.unsettled {
            return;
        }
        let cost = self.pending().cost();
        let chunk = self.buf.split().freeze();
        let news = chunk.len();
        let journal = Arc::clone(&self.journal);
        let mut woken = std::mem::take(&mut self.woken);
        if cost > 0 {
            journal.memory.add(cost);
        }
        let released = if news == 0 {
            journal.board.with(|inner| self.synchronize(inner))
        } else {
            journal.board.post(&mut woken, |inner| {
                let (log, labels) = (&mut inner.log, &mut inner.labels);
                log.append(chunk, &mut self.entries, labels, self.now);
                for set in self.released.drain(..) {
                    labels.release(set);
                }
                self.synchronize(inner)
            })
        };
        handoff::wake(woken.drain(..), news);
        self.woken = woken;
        if released {
            journal.memory.released();
        }
    }

    /// Looks at what others have changed: acknowledged, made, deleted, let go of.
    pub fn refresh(&mut self) {
        if self.journal.changed.swap(false, Ordering::AcqRel) {
            let journal = Arc::clone(&self.journal);
            journal.board.with(|inner| self.synchronize(inner));
        }
    }

    /// Whether all sources have to wait for attached readers: without them there would be room.
    fn is_held_up(&self) -> bool {
        let memory = self.journal.memory.available_without_unread();
        let without = Room {
            events: self.room.events + self.unread.events,
            bytes: (self.room.bytes + self.unread.bytes).min(memory),
        };
        self.sources_paused && !self.room().holds(self.ample) && without.holds(self.low)
    }

    /// How long a watch waits for attached readers that read nothing, nanoseconds.
    fn patience(&self) -> u64 {
        let patience = self.limits.attached_patience;
        nanos(if self.is_held_up() {
            patience.min(HELD_UP_PATIENCE)
        } else {
            patience
        })
    }

    /// Deletes the consumers, and lets go of the attached readers, whose time is over.
    pub fn expire(&mut self, now: Now) {
        if self.next_expiry.is_none_or(|at| at > now.monotonic) {
            return;
        }
        let journal = Arc::clone(&self.journal);
        let (expired, let_go, released) = journal.wake_all(|inner| {
            let expired = inner.consumers.expire(now);
            inner.repin();
            let watches = inner.log.watches_mut();
            // As many as it takes: the loop looks again.
            let enough = if self.is_held_up() {
                watches.unread().bytes / 2
            } else {
                0
            };
            let let_go = watches.let_go(now.monotonic, self.patience(), enough);
            (expired, let_go, self.synchronize(inner))
        });
        if let_go > 0 {
            tracing::warn!(
                readers = let_go,
                "attached readers that read nothing are waited for no longer"
            );
        }
        for consumer in expired {
            tracing::info!(consumer, "a consumer that nobody held was deleted");
        }
        if released {
            journal.memory.released();
        }
    }

    /// Brings both sides up to date. Says whether less of the memory of all is committed.
    fn synchronize(&mut self, inner: &mut Inner) -> bool {
        self.unsettled = false;
        inner.sources_paused = self.sources_paused;
        inner.trim(self.reserved);
        let log = &mut inner.log;
        let released = log.update_memory(inner.closed);
        self.pins = log.pins();
        self.unread = log.unread();
        self.behind = log.is_behind();
        self.room = log.room().less(self.pending());
        log.shares().take_crossed(&mut self.crossed);
        log.watches_mut().take_crossed(&mut self.crossed);
        let letting_go = log.watches().behind_since();
        let letting_go = letting_go.map(|since| since.saturating_add(self.patience()));
        let expiry = inner.consumers.next_expiry();
        let at_once = self.behind.then_some(0);
        self.next_expiry = letting_go.into_iter().chain(expiry).chain(at_once).min();
        released
    }
}
