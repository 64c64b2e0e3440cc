//! The bounded log of one loop's events. Knows events only.
//!
//! The loop's thread is the one writer: it encodes events into its [`Outbox`] and
//! hands a turn's worth over under one short lock. Readers hold a cursor of their own and
//! take slices of encoded events; they pin nothing and delay nobody. The oldest events
//! give way when the budget is used up, but for the terminal facts of watches that can
//! still be asked about: those stay as islands until the watch is removed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::event::{Cursor, Epoch, Labels};

mod handoff;
mod labels;
mod log;
mod outbox;
mod reader;

pub use handoff::{Errand, offer};
pub use labels::LabelSet;
use labels::LabelSets;
use log::Log;
pub use outbox::{About, Outbox};
pub use reader::{Filter, Read, Reader, Start};

/// Most consumers of one loop whose cursor is kept.
pub const CONSUMERS_MAX: usize = 1024;

/// What all journals of a daemon hold together. Once it is used up, a journal that holds
/// more than an equal share trims itself as it appends; one that holds less does not lose what it
/// has to a quiet one, so that all together stay below twice the limit.
#[derive(Debug)]
pub struct Memory {
    limit: u64,
    used: AtomicU64,
    journals: AtomicU64,
}

impl Memory {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
            journals: AtomicU64::new(0),
        })
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// All hold too much, and a journal of this size more than an equal share of the limit.
    fn presses(&self, bytes: u64) -> bool {
        let journals = self.journals.load(Ordering::Relaxed).max(1);
        self.used() > self.limit && bytes > self.limit / journals
    }
}

/// A journal's budget.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most events held.
    pub events: u64,
    /// Most bytes of encoded events held.
    pub bytes: u64,
}

/// The figures of a journal.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// Names the history.
    pub epoch: Epoch,
    /// Oldest event in the ring; newest + 1 if it is empty.
    pub oldest: u64,
    /// Newest event; 0 before the first.
    pub newest: u64,
    /// Events held, islands included.
    pub events: u64,
    /// Bytes held, islands included.
    pub bytes: u64,
    /// The budget.
    pub limits: Limits,
    /// Terminal events held after their neighbours were trimmed.
    pub islands: u64,
    /// Events trimmed so far.
    pub trimmed: u64,
    /// Readers now.
    pub readers: usize,
}

/// The log of one loop.
#[derive(Debug)]
pub struct Journal {
    epoch: Epoch,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: Log,
    labels: LabelSets,
    readers: usize,
    /// Readers that have seen everything, to be woken by the next append.
    waiting: HashMap<u64, std::task::Waker>,
    next_reader: u64,
    consumers: HashMap<String, u64>,
    closed: bool,
}

impl Journal {
    /// An empty journal with a new epoch.
    ///
    /// # Errors
    /// When the system has no randomness for the epoch.
    pub fn new(limits: Limits, memory: Arc<Memory>) -> Result<Arc<Self>> {
        let epoch = Epoch::random().map_err(|_| Error::Internal("no randomness for an epoch"))?;
        Ok(Arc::new(Self {
            epoch,
            inner: Mutex::new(Inner {
                log: Log::new(limits, memory),
                labels: LabelSets::default(),
                readers: 0,
                waiting: HashMap::new(),
                next_reader: 0,
                consumers: HashMap::new(),
                closed: false,
            }),
        }))
    }

    /// Names the history.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The cursor right after `seq`.
    #[must_use]
    pub const fn cursor(&self, seq: u64) -> Cursor {
        Cursor {
            epoch: Some(self.epoch),
            seq,
        }
    }

    /// Its figures now.
    #[must_use]
    pub fn status(&self) -> Status {
        let inner = self.inner.lock();
        let log = &inner.log;
        Status {
            epoch: self.epoch,
            oldest: log.first(),
            newest: log.newest(),
            events: log.events(),
            bytes: log.bytes(),
            limits: log.limits(),
            islands: log.islands(),
            trimmed: log.trimmed(),
            readers: inner.readers,
        }
    }

    /// The number under which events of watches with these labels are filtered.
    /// [`Outbox::release_labels`] when the watch is gone.
    pub fn intern_labels(&self, labels: &Labels) -> LabelSet {
        self.inner.lock().labels.intern(labels)
    }

    /// Nothing will be appended any more: readers end when they have read everything.
    pub fn close(&self) {
        let waiting = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            std::mem::take(&mut inner.waiting)
        };
        handoff::wake(waiting.into_values(), 0);
    }

    /// Where a consumer has read to.
    #[must_use]
    pub fn acked(&self, consumer: &str) -> Option<u64> {
        self.inner.lock().consumers.get(consumer).copied()
    }

    /// Records how far a consumer has read; an older cursor changes nothing.
    /// Returns what is acknowledged now.
    ///
    /// # Errors
    /// A cursor of another history or from the future, and more than
    /// [`CONSUMERS_MAX`] consumers.
    pub fn ack(&self, consumer: &str, cursor: Cursor) -> Result<u64> {
        let mut inner = self.inner.lock();
        if cursor.epoch.is_some_and(|epoch| epoch != self.epoch) {
            return Err(self.out_of_range(&inner.log, cursor, "of another history"));
        }
        if cursor.seq > inner.log.newest() {
            return Err(self.out_of_range(&inner.log, cursor, "from the future"));
        }
        if let Some(acked) = inner.consumers.get_mut(consumer) {
            *acked = cursor.seq.max(*acked);
            return Ok(*acked);
        }
        if inner.consumers.len() >= CONSUMERS_MAX {
            return Err(Error::limit("consumers", CONSUMERS_MAX as u64));
        }
        inner.consumers.insert(consumer.to_owned(), cursor.seq);
        Ok(cursor.seq)
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
