//! Readers: cursors into the log. A reader is an observer, holds a consumer, or is attached to a
//! watch.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use super::consumers::Holder;
use super::monitor::WaiterId;
use super::walk::{Filter, Read, Walk};
use super::{Inner, Journal};
use crate::clock::Now;
use crate::error::Result;
use crate::event::Cursor;

/// Where a reader begins.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    /// With the first event that is appended from here on.
    Now,
    /// With the oldest event held.
    Oldest,
    /// After a cursor.
    After {
        /// The last sequence number that counts as read.
        cursor: Cursor,
        /// Whether lost events become a gap instead of an error.
        skip: bool,
    },
}

/// Why a reader gets nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The journal is closed, and the reader has read all of it.
    Closed,
    /// Another reader holds the consumer now.
    TakenOver,
    /// The consumer was deleted.
    Deleted,
}

/// A cursor into a journal.
pub struct Reader {
    journal: Arc<Journal>,
    waiter: WaiterId,
    after: u64,
    filter: Filter,
    /// The consumer that it reads as.
    consumer: Option<(String, Holder)>,
    /// The watch that waits for this reader.
    attached: Option<u64>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("waiter", &self.waiter)
            .field("after", &self.after)
            .field("consumer", &self.consumer)
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Makes an observer that begins at `start`.
    ///
    /// # Errors
    /// The cursor is too old, of another history or from the future, and `start` does not allow to
    /// skip.
    pub fn reader(self: &Arc<Self>, start: Start, filter: Filter) -> Result<Reader> {
        self.monitor.try_add_waiter(|inner, waiter| {
            let after = self.position(inner, start, &filter)?;
            inner.join(waiter, after);
            Ok(Reader {
                journal: Arc::clone(self),
                waiter,
                after,
                filter,
                consumer: None,
                attached: None,
            })
        })
    }

    /// Makes a reader attached to a watch that is not added yet: its first event will be the next
    /// one after `after`.
    pub fn reader_from_birth(self: &Arc<Self>, watch: u64, after: u64) -> Reader {
        let now = Now::sample().monotonic;
        let waiter = self.monitor.add_waiter(|inner, waiter| {
            inner.join(waiter, after);
            inner
                .log
                .watches_mut()
                .attach_first(watch, waiter, after, now);
            waiter
        });
        Reader {
            journal: Arc::clone(self),
            waiter,
            after,
            filter: Filter::life_of(watch),
            consumer: None,
            attached: Some(watch),
        }
    }

    /// Makes a reader that holds a consumer, and makes the consumer if there is none of that name.
    /// A reader that held it before ends with [`End::TakenOver`]. Without a `start`, begins right
    /// after the acknowledged cursor.
    ///
    /// # Errors
    /// The same as of [`Journal::reader`], and the limit on consumers.
    pub fn hold(
        self: &Arc<Self>,
        name: &str,
        start: Option<Start>,
        ttl: Option<Duration>,
        filter: Filter,
    ) -> Result<Reader> {
        let now = Now::sample();
        let held: Result<(Reader, bool)> = self.monitor.try_add_waiter(|inner, waiter| {
            let known = inner.consumers.get(name).map(|consumer| consumer.acked);
            let after = match (start, known) {
                (Some(start), _) => self.position(inner, start, &filter)?,
                (None, Some(acked)) => acked,
                (None, None) => inner.log.newest(),
            };
            if known.is_none() {
                let records = inner.log.records();
                inner.consumers.create(name, after, ttl, now, records)?;
                inner.repin();
            }
            let records = inner.log.records();
            let (holder, before) = inner.consumers.hold(name, waiter, ttl, records)?;
            inner.join(waiter, after);
            let reader = Reader {
                journal: Arc::clone(self),
                waiter,
                after,
                filter,
                consumer: Some((name.to_owned(), holder)),
                attached: None,
            };
            Ok((reader, before.is_some()))
        });
        let (reader, taken_over) = held?;
        if taken_over {
            self.wake_all(|_| ());
        }
        self.call();
        Ok(reader)
    }

    /// Returns the sequence number up to which everything counts as read for a reader that begins
    /// at `start`.
    pub(super) fn position(&self, inner: &Inner, start: Start, filter: &Filter) -> Result<u64> {
        let (cursor, skip) = match start {
            Start::Now => return Ok(inner.log.newest()),
            Start::Oldest => return Ok(inner.oldest_position()),
            Start::After { cursor, skip } => (cursor, skip),
        };
        match self.check(inner, cursor) {
            Err(_) if skip && cursor.epoch.is_some_and(|epoch| epoch != self.epoch) => Ok(0),
            Err(_) if skip => Ok(inner.log.newest()),
            Err(error) => Err(error),
            Ok(()) if !skip && inner.log.has_lost_after(cursor.seq, filter) => {
                Err(self.out_of_range(&inner.log, cursor, "too old"))
            }
            Ok(()) => Ok(cursor.seq),
        }
    }
}

impl Inner {
    fn join(&mut self, waiter: WaiterId, after: u64) {
        self.readers += 1;
        self.progress.join(waiter, after);
    }

    /// Returns the position right before the oldest event held: an island, or the first event of
    /// the ring.
    fn oldest_position(&self) -> u64 {
        let island = self.log.islands_from(0).next().map(|(seq, _)| seq);
        island.unwrap_or(self.log.first()) - 1
    }

    /// Returns why the holder of a consumer gets nothing more even if there are events; `None` if it
    /// does.
    fn ousted(&self, consumer: Option<&(String, Holder)>) -> Option<End> {
        let (name, holder) = consumer?;
        match self.consumers.get(name) {
            None => Some(End::Deleted),
            Some(consumer) if consumer.holder != Some(*holder) => Some(End::TakenOver),
            Some(_) => None,
        }
    }
}

impl Reader {
    /// Attaches the reader to a watch: events of the watch from here on stay until this reader has
    /// read them, and the watch waits for it (see [`super::Limits::attached_bytes`]). Changes
    /// nothing if there is no such watch.
    #[must_use]
    pub fn attached(mut self, watch: u64) -> Self {
        let now = Now::sample().monotonic;
        let (journal, waiter) = (Arc::clone(&self.journal), self.waiter);
        journal.monitor.with(|inner| {
            let after = self.after.max(inner.log.newest());
            let watches = inner.log.watches_mut();
            if watches.is_present(watch) {
                watches.attach(watch, waiter, after, now);
                self.attached = Some(watch);
            }
        });
        self
    }

    /// Makes another reader of the same events, from the same place on. It is attached to the same
    /// watch, if this one is.
    #[must_use]
    pub fn sibling(&self) -> Self {
        let waiter = self.journal.monitor.add_waiter(|inner, waiter| {
            inner.join(waiter, self.after);
            if let Some(watch) = self.attached {
                inner
                    .log
                    .watches_mut()
                    .attach_beside(watch, self.waiter, waiter);
            }
            waiter
        });
        Self {
            journal: Arc::clone(&self.journal),
            waiter,
            after: self.after,
            filter: self.filter.clone(),
            consumer: None,
            attached: self.attached,
        }
    }

    /// Returns the sequence number up to which everything was read.
    #[must_use]
    pub const fn after(&self) -> u64 {
        self.after
    }

    /// Returns the journal that it reads.
    #[must_use]
    pub const fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Returns which events it reads.
    #[must_use]
    pub const fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Returns the name of the consumer that it reads as.
    #[must_use]
    pub fn consumer(&self) -> Option<&str> {
        self.consumer.as_ref().map(|(name, _)| name.as_str())
    }

    /// Returns the bytes of the events after the cursor, whether they match the filter or not.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        let after = self.after;
        self.journal
            .monitor
            .with(|inner| inner.log.held_after(after).bytes)
    }

    /// Reads the next events: at most about `max_bytes` and `max_events`; an event larger than
    /// `max_bytes` comes alone. If there is none, the result is empty and `caught_up`.
    pub fn read(&mut self, max_bytes: usize, max_events: usize) -> Read {
        let journal = Arc::clone(&self.journal);
        let read = journal
            .monitor
            .with(|inner| self.read_locked(inner, max_bytes, max_events));
        self.tell(read)
    }

    /// Polls for events after the cursor. Is ready even if the filter leaves all of them out: the
    /// result then only moves the cursor.
    pub fn poll_read(
        &mut self,
        cx: &Context<'_>,
        max_bytes: usize,
        max_events: usize,
    ) -> Poll<Result<Read, End>> {
        let journal = Arc::clone(&self.journal);
        let polled = journal.monitor.poll(cx, self.waiter, |inner| {
            if let Some(end) = inner.ousted(self.consumer.as_ref()) {
                Some(Err(end))
            } else if inner.log.newest() > self.after {
                Some(Ok(self.read_locked(inner, max_bytes, max_events)))
            } else {
                inner.closed.then_some(Err(End::Closed))
            }
        });
        polled.map_ok(|read| self.tell(read))
    }

    /// Wakes the loop if it waits for what this read has freed. The caller must not hold the
    /// journal's lock.
    fn tell(&self, (read, freed): (Read, Freed)) -> Read {
        if freed.awaited {
            self.journal.call();
        }
        if freed.memory {
            self.journal.memory.released();
        }
        read
    }

    /// Polls until the consumer has acknowledged more than `acked`. Returns the new sequence
    /// number.
    pub fn poll_acked(&mut self, cx: &Context<'_>, acked: u64) -> Poll<Result<u64, End>> {
        self.journal.monitor.poll(cx, self.waiter, |inner| {
            if let Some(end) = inner.ousted(self.consumer.as_ref()) {
                return Some(Err(end));
            }
            let (name, _) = self.consumer.as_ref()?;
            let now = inner.consumers.get(name)?.acked;
            (now > acked).then_some(Ok(now))
        })
    }

    /// Polls until the journal is closed and `given_up` returns true. That is checked when the
    /// journal closes and after [`Journal::rouse`].
    pub fn poll_given_up(&mut self, cx: &Context<'_>, given_up: impl Fn() -> bool) -> Poll<()> {
        self.journal.monitor.poll(cx, self.waiter, |inner| {
            (inner.closed && given_up()).then_some(())
        })
    }

    fn read_locked(
        &mut self,
        inner: &mut Inner,
        max_bytes: usize,
        max_events: usize,
    ) -> (Read, Freed) {
        let (read, upto) = Walk::new(inner, &self.filter, self.after, max_bytes, max_events).take();
        inner
            .progress
            .advance(self.waiter, self.after, read.through);
        self.after = read.through;
        let gaps = &self.journal.gaps;
        gaps.fetch_add(read.gaps.len() as u64, Ordering::Relaxed);
        let mut freed = Freed::default();
        if let Some(watch) = self.attached {
            freed.awaited = inner.is_awaited();
            let now = Now::sample().monotonic;
            let closed = inner.closed;
            let Inner { log, labels, .. } = inner;
            log.advance(watch, self.waiter, self.after, upto, now, labels);
            freed.memory = log.update_memory(closed);
        }
        (read, freed)
    }
}

/// What a read has freed.
#[derive(Debug, Clone, Copy, Default)]
struct Freed {
    /// Whether the loop waits for room and has to check it.
    awaited: bool,
    /// Memory was freed.
    memory: bool,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let held = self.consumer.take();
        let attached = self.attached.take();
        let was_held = held.is_some();
        let freed = self.journal.monitor.remove_waiter(self.waiter, |inner| {
            inner.readers -= 1;
            inner.progress.leave(self.waiter, self.after);
            let now = Now::sample();
            if let Some((name, holder)) = held {
                inner.consumers.release(&name, holder, now);
            }
            let mut freed = Freed::default();
            if let Some(watch) = attached {
                freed.awaited = inner.is_awaited();
                let closed = inner.closed;
                let Inner { log, labels, .. } = inner;
                log.detach(watch, self.waiter, now.monotonic, labels);
                freed.memory = log.update_memory(closed);
            }
            freed
        });
        // Without a holder the consumer expires some time from now.
        if was_held || freed.awaited {
            self.journal.call();
        }
        if freed.memory {
            self.journal.memory.released();
        }
    }
}
