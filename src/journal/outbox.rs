//! The writer's side: a turn's events, encoded and numbered, not yet visible.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;

use bytes::BytesMut;

use super::{Journal, LabelSet, handoff};
use crate::clock::Now;
use crate::event::{self, Event, Kind};

/// Encoded events are cut out of allocations of this many bytes.
const BLOCK: usize = 64 * 1024;

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
    /// Empty between commits: it keeps its memory.
    woken: HashMap<u64, Waker>,
}

impl Outbox {
    /// The writer of an empty journal. There must be no second one.
    #[must_use]
    pub fn new(journal: Arc<Journal>) -> Self {
        Self {
            journal,
            newest: 0,
            end: 0,
            buf: BytesMut::new(),
            entries: Vec::new(),
            released: Vec::new(),
            woken: HashMap::new(),
        }
    }

    /// Sequence number of the event pushed last.
    #[must_use]
    pub const fn newest(&self) -> u64 {
        self.newest
    }

    /// Numbers and encodes an event. Nobody sees it before [`Outbox::commit`].
    pub fn push(&mut self, now: Now, about: About, kind: Kind) -> u64 {
        self.newest += 1;
        let number = event::kind_number(&kind);
        let event = Event {
            seq: self.newest,
            monotonic_ns: now.monotonic,
            realtime_ns: now.realtime,
            watch_id: about.watch,
            user_data: about.user_data,
            kind: Some(kind),
        };
        if self.buf.capacity() - self.buf.len() < 256 {
            self.buf.reserve(BLOCK);
        }
        self.end += event::encode(&event, &mut self.buf) as u64;
        self.entries.push(Entry {
            end: self.end,
            watch: about.watch,
            labels: about.labels,
            kind: number,
        });
        self.newest
    }

    /// The watch that had these labels is gone; what was pushed still carries them, and
    /// is held as long as it is in the journal.
    pub fn release_labels(&mut self, set: LabelSet) {
        self.released.push(set);
    }

    /// Makes what was pushed visible, in order, and wakes who waits for it.
    pub fn commit(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        let chunk = self.buf.split().freeze();
        let news = chunk.len();
        {
            let mut inner = self.journal.inner.lock();
            let inner = &mut *inner;
            inner
                .log
                .append(chunk, &mut self.entries, &mut inner.labels);
            for set in self.released.drain(..) {
                inner.labels.release(set);
            }
            std::mem::swap(&mut inner.waiting, &mut self.woken);
        }
        handoff::wake(self.woken.drain().map(|(_, waker)| waker), news);
    }
}
