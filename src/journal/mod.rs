//! The bounded log of one loop's events.
//!
//! The loop's thread is the only writer: it encodes events into its [`Outbox`] and hands all events
//! of a turn over under one short lock. Readers have cursors of their own and take slices of
//! encoded events.
//!
//! Events after the lowest cursor that a consumer has acknowledged are *pinned*. All others are
//! history, and give way when the budget is used up, first where there is most of it: every watch
//! that is not removed keeps its newest bytes, as far as half of the budget goes. When everything
//! is pinned, `when_full` decides: either the loop stops reading its sources ([`Outbox::room`] says
//! how much may be appended), or the oldest events give way although they are pinned. *Facts*,
//! events that happen once to a watch (its start, its ends), stay until the watch is removed. An
//! event that stays although its neighbours are gone is an *island*.
//!
//! A journal without *history* drops an event, unless it is a fact, once all readers have it.
//!
//! A reader may be *attached* to a watch: the events of the watch from then on stay until the
//! reader has read them, and this watch alone waits for the reader ([`Outbox::waits_for`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::Now;
use crate::config::{History, WhenFull};
use crate::error::{Error, Result};
use crate::event::{Cursor, Epoch, Labels};

mod committed;
mod consumers;
mod handoff;
mod labels;
mod levels;
mod log;
mod memory;
mod monitor;
mod outbox;
mod progress;
mod reader;
mod recovery;
mod room;
mod shares;
#[cfg(test)]
mod tests;
mod walk;
mod watches;

pub use consumers::ConsumerStatus;
use consumers::Consumers;
pub use handoff::{InlineTask, offer_inline};
pub use labels::LabelSet;
use labels::LabelSets;
use log::Log;
pub use memory::Memory;
use monitor::Monitor;
pub use outbox::{About, Level, Outbox, WaitsFor, full};
use progress::Progress;
pub use reader::{End, Reader, Start};
pub use recovery::Recovered;
pub use room::Room;
pub use walk::{Filter, Read};

/// Bytes that must be free before a source pushes an event that has no room set aside. No such
/// event takes more, its payload not counted.
pub const UNRESERVED_EVENT_BYTES: u64 = 1024;
/// Most bytes that an event costs beside its encoding. An island costs that much, an event in the
/// ring about half.
pub const ENTRY_BYTES: u64 = 112;
/// Most events that one acknowledgement unpins under one lock.
const ACK_AT_ONCE: u64 = 16 * 1024;

/// A journal's budget.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most events held.
    pub events: u64,
    /// Most bytes of encoded events held.
    pub bytes: u64,
    /// Most pinned bytes of one watch; beyond, that watch alone is paused.
    pub watch_bytes: u64,
    /// Whether events are kept after all readers have them.
    pub history: History,
    /// The newest bytes that every watch keeps until it is removed, as far as half of the budget
    /// goes. An event counts as at least `bytes / events`.
    pub watch_keep: u64,
    /// How many bytes of a watch its attached readers may be behind before the watch waits for
    /// them; at most an eighth of `bytes`.
    pub attached_bytes: u64,
    /// How long the watch waits for an attached reader that reads nothing.
    pub attached_patience: Duration,
    /// What happens when everything is pinned.
    pub when_full: WhenFull,
    /// Most consumers.
    pub consumers: usize,
    /// How long a consumer is kept while no reader holds it, unless the consumer has a time of its
    /// own.
    pub consumer_ttl: Duration,
}

/// The figures of a journal.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// The random name of the history.
    pub epoch: Epoch,
    /// Oldest event in the ring; newest + 1 if it is empty.
    pub oldest: u64,
    /// Newest event; 0 before the first.
    pub newest: u64,
    /// Events held, islands included.
    pub events: u64,
    /// Bytes held, islands included.
    pub bytes: u64,
    /// Events that some consumer has not acknowledged.
    pub pinned: Room,
    /// Room that is set aside.
    pub reserved: Room,
    /// The budget.
    pub limits: Limits,
    /// Events held after their neighbours were trimmed.
    pub islands: u64,
    /// Events trimmed so far.
    pub trimmed: u64,
    /// Of those, the ones that some consumer had not acknowledged.
    pub dropped: u64,
    /// Gaps handed to readers so far.
    pub gaps: u64,
    /// Readers now.
    pub readers: usize,
    /// Events that attached readers have not read.
    pub unread: Room,
    /// Attached readers given up so far because they read nothing.
    pub readers_let_go: u64,
    /// Consumers now.
    pub consumers: usize,
}

/// Wakes the loop, so that it calls [`Outbox::refresh`].
type Caller = Box<dyn Fn() + Send + Sync>;

/// The bounded log of one loop's events.
pub struct Journal {
    epoch: Epoch,
    memory: Arc<Memory>,
    monitor: Monitor<Inner>,
    /// The loop has to call [`Outbox::refresh`].
    changed: AtomicBool,
    caller: OnceLock<Caller>,
    gaps: AtomicU64,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Inner {
    log: Log,
    labels: LabelSets,
    readers: usize,
    progress: Progress,
    consumers: Consumers,
    /// The loop leaves some of its sources unread until there is room.
    sources_paused: bool,
    closed: bool,
}

impl Inner {
    /// Applies a change of the consumers or of what they have acknowledged. Returns whether memory
    /// was freed.
    fn repin(&mut self) -> bool {
        let floor = self.consumers.floor();
        self.log.set_floor(floor);
        self.log.update_memory(self.closed)
    }

    /// Returns whether the loop waits for room.
    fn is_awaited(&mut self) -> bool {
        self.sources_paused
            || self.log.shares().is_any_over()
            || self.log.watches().is_any_waiting()
    }
}

impl Journal {
    /// Makes an empty journal with a new epoch.
    ///
    /// # Errors
    /// The system has no random bytes for the epoch.
    pub fn new(limits: Limits, memory: &Arc<Memory>) -> Result<Arc<Self>> {
        let epoch = Epoch::random().map_err(|_| recovery::NO_RANDOM)?;
        let journal = Arc::new(Self {
            epoch,
            memory: Arc::clone(memory),
            monitor: Monitor::new(Inner {
                log: Log::new(limits, Arc::clone(memory)),
                labels: LabelSets::default(),
                readers: 0,
                progress: Progress::new(limits.history),
                consumers: Consumers::new(limits.consumers, limits.consumer_ttl),
                sources_paused: false,
                closed: false,
            }),
            changed: AtomicBool::new(false),
            caller: OnceLock::new(),
            gaps: AtomicU64::new(0),
        });
        memory.join(&journal);
        Ok(journal)
    }

    /// Sets the function that wakes the loop when it has to call [`Outbox::refresh`].
    pub fn call_on_change(&self, call: impl Fn() + Send + Sync + 'static) {
        // A journal has one loop, so this is called once.
        let _ = self.caller.set(Box::new(call));
    }

    /// Returns the random name of the history.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the cursor right after `seq`.
    #[must_use]
    pub const fn cursor(&self, seq: u64) -> Cursor {
        Cursor {
            epoch: Some(self.epoch),
            seq,
        }
    }

    /// Returns the figures of the journal.
    #[must_use]
    pub fn status(&self) -> Status {
        self.monitor.with(|inner| {
            let log = &inner.log;
            Status {
                epoch: self.epoch,
                oldest: log.first(),
                newest: log.newest(),
                events: log.events(),
                bytes: log.bytes(),
                pinned: log.pinned(),
                reserved: log.reserved(),
                limits: log.limits(),
                islands: log.islands(),
                trimmed: log.trimmed(),
                dropped: log.dropped(),
                gaps: self.gaps.load(Ordering::Relaxed),
                readers: inner.readers,
                unread: log.watches().unread(),
                readers_let_go: log.watches().readers_let_go(),
                consumers: inner.consumers.len(),
            }
        })
    }

    /// Returns the number of this set of labels, by which events are filtered.
    /// [`Outbox::release_labels`] ends its use when the watch is gone.
    pub fn intern_labels(&self, labels: &Labels) -> LabelSet {
        self.monitor.with(|inner| inner.labels.intern(labels))
    }

    /// Ends the journal: nothing is appended any more, and readers end once they have read
    /// everything.
    pub fn close(&self) {
        let released = self.wake_all(|inner| {
            inner.closed = true;
            inner.log.update_memory(true)
        });
        if released {
            self.memory.released();
        }
    }

    /// Wakes all readers to look again: a condition outside the journal has changed.
    pub fn rouse(&self) {
        self.wake_all(|_| ());
    }

    /// Makes a change that concerns every reader, and wakes them all.
    fn wake_all<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let mut woken = Vec::new();
        let result = self.monitor.notify_all(&mut woken, change);
        handoff::wake(woken.into_iter(), 0);
        result
    }

    /// Wakes the loop to call [`Outbox::refresh`].
    fn call(&self) {
        self.changed.store(true, Ordering::Release);
        if let Some(call) = self.caller.get() {
            call();
        }
    }

    /// Returns what the journal takes of the memory of all journals.
    fn size(&self) -> memory::Size {
        self.monitor.with(|inner| inner.log.size())
    }

    /// Trims history while the journal holds more than `share` and all journals hold more than
    /// `target`.
    fn give_way(&self, share: u64, target: u64) {
        self.monitor.with(|inner| {
            inner.log.give_way(share, target, &mut inner.labels);
        });
    }

    /// Makes a consumer. Returns `false` if there already is one of that name.
    ///
    /// # Errors
    /// The cursor is of another history, from the future or too old; the limit on consumers.
    pub fn create_consumer(&self, name: &str, start: Start, ttl: Option<Duration>) -> Result<bool> {
        let now = Now::sample();
        let created = self.monitor.with(|inner| {
            if inner.consumers.get(name).is_some() {
                return Ok(false);
            }
            let acked = self.position(inner, start, &Filter::default())?;
            let records = inner.log.records();
            inner.consumers.create(name, acked, ttl, now, records)?;
            inner.repin();
            Ok(true)
        });
        if matches!(created, Ok(true)) {
            self.call();
        }
        created
    }

    /// Deletes a consumer. Returns the sequence number up to which it had acknowledged.
    ///
    /// # Errors
    /// There is no consumer of that name.
    pub fn delete_consumer(&self, name: &str) -> Result<u64> {
        let (acked, released) = self.wake_all(|inner| {
            let consumer = inner.consumers.delete(name, inner.log.records())?;
            Ok::<_, Error>((consumer.acked, inner.repin()))
        })?;
        self.call();
        if released {
            self.memory.released();
        }
        Ok(acked)
    }

    /// Returns the figures of one consumer.
    ///
    /// # Errors
    /// There is no consumer of that name.
    pub fn consumer(&self, name: &str) -> Result<ConsumerStatus> {
        let now = Now::sample();
        let status = self.monitor.with(|inner| inner.consumer(name, now));
        status.ok_or_else(|| Error::ConsumerNotFound {
            name: name.to_owned(),
        })
    }

    /// Returns the figures of up to `max` consumers with names after `after`, in the order of
    /// names.
    #[must_use]
    pub fn consumers(&self, after: &str, max: usize) -> Vec<ConsumerStatus> {
        let now = Now::sample();
        let names: Vec<String> = self.monitor.with(|inner| {
            let names = inner.consumers.names_after(after).take(max);
            names.map(str::to_owned).collect()
        });
        // One lock for each consumer: counting its events takes time.
        let status = |name: &String| self.monitor.with(|inner| inner.consumer(name, now));
        names.iter().filter_map(status).collect()
    }

    /// Records how far a consumer has read, and makes the consumer if there is none of that name.
    /// An older cursor changes nothing. Returns the sequence number that is acknowledged now.
    ///
    /// # Errors
    /// The cursor is of another history or from the future; the limit on consumers.
    pub fn ack(&self, name: &str, cursor: Cursor) -> Result<u64> {
        match self.ack_known(name, cursor) {
            Err(Error::ConsumerNotFound { .. }) => {
                let skip = true;
                self.create_consumer(name, Start::After { cursor, skip }, None)?;
                self.ack_known(name, cursor)
            }
            acked => acked,
        }
    }

    /// Does the same as [`Journal::ack`], but never makes a consumer: a reader's acknowledgement
    /// must not bring back a consumer that was deleted.
    ///
    /// # Errors
    /// The cursor is of another history or from the future; there is no consumer of that name.
    pub fn ack_known(&self, name: &str, cursor: Cursor) -> Result<u64> {
        let now = Now::sample();
        self.monitor.with(|inner| self.check(inner, cursor))?;
        let mut released = false;
        loop {
            // Step by step: unpinning events takes time under the lock.
            let (step, waker) = self.monitor.notify_one(|inner| {
                let step = inner.ack(name, cursor.seq, now);
                let holder = match &step {
                    Ok(step) => step.holder,
                    Err(_) => None,
                };
                (step, holder)
            });
            let step = step?;
            if let Some(waker) = waker {
                waker.wake();
            }
            released |= step.released;
            if step.awaited {
                self.call();
            }
            if step.acked >= cursor.seq {
                if released {
                    self.memory.released();
                }
                return Ok(step.acked);
            }
        }
    }

    /// Checks that a cursor is of this history and not from the future.
    ///
    /// # Errors
    /// The cursor is of another history or from the future.
    pub fn check_cursor(&self, cursor: Cursor) -> Result<()> {
        self.monitor.with(|inner| self.check(inner, cursor))
    }

    fn check(&self, inner: &Inner, cursor: Cursor) -> Result<()> {
        if cursor.epoch.is_some_and(|epoch| epoch != self.epoch) {
            return Err(self.out_of_range(&inner.log, cursor, "of another history"));
        }
        if cursor.seq > inner.log.newest() {
            return Err(self.out_of_range(&inner.log, cursor, "from the future"));
        }
        Ok(())
    }

    fn out_of_range(&self, log: &Log, asked: Cursor, why: &'static str) -> Error {
        Error::CursorOutOfRange {
            asked,
            why,
            oldest: log.first(),
            newest: log.newest(),
            epoch: self.epoch.to_string(),
        }
    }
}

/// The result of one step of an acknowledgement.
struct Step {
    acked: u64,
    holder: Option<monitor::WaiterId>,
    released: bool,
    /// Whether the loop waits for room, which may be there now.
    awaited: bool,
}

impl Inner {
    fn ack(&mut self, name: &str, seq: u64, now: Now) -> Result<Step> {
        let awaited = self.is_awaited();
        let consumer = self.consumers.find(name)?;
        let most = consumer.acked.max(self.log.first() - 1) + ACK_AT_ONCE;
        consumer.acknowledge(seq.min(most));
        let (acked, holder) = (consumer.acked, consumer.holder);
        if holder.is_none() {
            self.consumers.touch(name, now);
        }
        let released = self.repin();
        Ok(Step {
            acked,
            holder: holder.map(|holder| holder.waiter),
            released,
            awaited,
        })
    }

    fn consumer(&self, name: &str, now: Now) -> Option<ConsumerStatus> {
        let mut status = self.consumers.status(name, now)?;
        let newest = self.log.newest();
        let held = self.log.held_after(status.acked);
        status.lag_events = newest - status.acked;
        let mut islands = Room::default();
        for (_, island) in self.log.islands_from(status.acked + 1) {
            islands.events += 1;
            islands.bytes += island.bytes.len() as u64;
        }
        status.lag_bytes = held.bytes + islands.bytes;
        status.lost_events = status.lag_events - held.events - islands.events;
        Some(status)
    }
}
