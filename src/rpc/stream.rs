//! Turns a reader of a journal into a stream of messages: header, snapshot, batches, heartbeats,
//! goodbye.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::Status;

use super::quota::{Charge, LEAST, MemoryQuota};
use super::snapshot::{PART_BYTES, Unread};
use super::wire::Streamed;
use crate::error::Error;
use crate::journal::{End, Read, Reader};
use crate::memory::Use;
use crate::policy::Registry;
use crate::proto::{Goodbye, GoodbyeReason};
use crate::watch::Permit;

/// Most events of one batch.
const BATCH_EVENTS: usize = 65_536;
/// Most reads in one turn that find no event for this reader.
const READS_AT_ONCE: usize = 8;

/// Limits the bytes that may be delivered and not acknowledged.
#[derive(Debug)]
pub(super) struct Window {
    max: u64,
    /// The batches that are not acknowledged: the `through` of each, and its bytes.
    batches: VecDeque<(u64, u64)>,
    bytes: u64,
    acked: u64,
}

impl Window {
    /// Makes a window of at most `max` bytes. Events up to `acked` are acknowledged already.
    pub(super) const fn new(max: u64, acked: u64) -> Self {
        Self {
            max,
            batches: VecDeque::new(),
            bytes: 0,
            acked,
        }
    }

    /// Records that everything up to `seq` is acknowledged.
    pub(super) fn ack(&mut self, seq: u64) {
        self.acked = self.acked.max(seq);
        while let Some((through, bytes)) = self.batches.front()
            && *through <= self.acked
        {
            self.bytes -= bytes;
            self.batches.pop_front();
        }
    }

    fn sent(&mut self, read: &Read) {
        if read.bytes > 0 {
            self.bytes += read.bytes as u64;
            self.batches.push_back((read.through, read.bytes as u64));
        }
    }

    /// Returns the bytes that may still be sent.
    fn left(&self) -> u64 {
        self.max.saturating_sub(self.bytes)
    }
}

/// How delivered events are acknowledged.
#[derive(Debug)]
pub(super) enum Acks {
    /// They are not acknowledged: the stream has no window.
    None,
    /// Delivery acknowledges them.
    Auto,
    /// Through [`EventStream::ack`] or the consumer's cursor. At most a window of bytes is
    /// unacknowledged.
    Window(Window),
}

/// The stream of one subscription.
#[derive(Debug)]
pub struct EventStream<H> {
    header: Option<H>,
    snapshot: Option<Unread>,
    /// The error with which reading the snapshot failed.
    failed: Option<Error>,
    /// The memory of the part of the snapshot that is being sent.
    held: Charge,
    /// The memory of the batch that is being sent.
    sending: Charge,
    reader: Reader,
    registry: Arc<Registry>,
    batch_bytes: usize,
    heartbeat: Duration,
    timer: Pin<Box<Sleep>>,
    linger: Option<Linger>,
    acks: Acks,
    /// The `through` of the last batch.
    sent: u64,
    /// The last batch said that nothing more was waiting.
    caught_up: bool,
    /// Whether the stream ends at the end of the one watch it is about.
    until_closed: bool,
    /// The stream ends once everything up to here is delivered.
    until: Option<u64>,
    goodbye: Option<GoodbyeReason>,
    over: bool,
    _permit: Permit,
}

/// The wait for a batch to become full.
#[derive(Debug)]
struct Linger {
    delay: Duration,
    timer: Pin<Box<Sleep>>,
    waits: bool,
}

/// The arguments of [`EventStream::new`].
#[derive(Debug)]
pub(super) struct Parts<H> {
    pub(super) header: H,
    pub(super) snapshot: Option<Unread>,
    pub(super) quota: Arc<MemoryQuota>,
    pub(super) reader: Reader,
    pub(super) registry: Arc<Registry>,
    pub(super) batch_bytes: usize,
    pub(super) heartbeat: Duration,
    pub(super) linger: Duration,
    pub(super) acks: Acks,
    pub(super) until_closed: bool,
    /// Nothing is left to read: the goodbye follows the header.
    pub(super) done: bool,
    pub(super) permit: Permit,
}

impl<H> EventStream<H> {
    pub(super) fn new(parts: Parts<H>) -> Self {
        let linger = (!parts.linger.is_zero()).then(|| Linger {
            delay: parts.linger,
            timer: Box::pin(tokio::time::sleep(parts.linger)),
            waits: false,
        });
        Self {
            sent: parts.reader.after(),
            header: Some(parts.header),
            snapshot: parts.snapshot,
            failed: None,
            held: parts.quota.empty_charge(Use::Snapshots),
            sending: parts.quota.empty_charge(Use::Requests),
            reader: parts.reader,
            registry: parts.registry,
            batch_bytes: parts.batch_bytes,
            heartbeat: parts.heartbeat,
            timer: Box::pin(tokio::time::sleep(parts.heartbeat)),
            linger,
            acks: parts.acks,
            caught_up: false,
            until_closed: parts.until_closed,
            until: None,
            goodbye: parts.done.then_some(GoodbyeReason::Done),
            over: false,
            _permit: parts.permit,
        }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Returns the sequence number up to which everything was sent.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Goes on with the events of another reader. What the one before would still have brought is
    /// left out.
    pub(super) fn go_on_with(&mut self, reader: Reader) {
        self.sent = reader.after();
        self.reader = reader;
    }

    /// Records that everything up to `seq` is acknowledged, which makes room for more.
    pub(super) fn ack(&mut self, seq: u64) {
        if let Acks::Window(window) = &mut self.acks {
            window.ack(seq);
        }
    }

    /// Makes the stream end once all present events are delivered. No acknowledgement will come any
    /// more.
    pub(super) fn flush(&mut self) {
        let newest = self.reader.journal().status().newest;
        self.until.get_or_insert(newest);
        if let Acks::Window(window) = &mut self.acks {
            window.max = u64::MAX;
        }
    }

    /// Makes a batch of a read. The batch also covers what was read since the last batch and had no
    /// event.
    fn batch(&mut self, mut read: Read) -> Streamed<H> {
        read.after = self.sent;
        self.sent = read.through;
        self.caught_up = read.caught_up;
        self.timer.as_mut().reset(Instant::now() + self.heartbeat);
        match &mut self.acks {
            Acks::None => {}
            Acks::Window(window) => window.sent(&read),
            Acks::Auto => {
                let journal = self.reader.journal();
                if let Some(consumer) = self.reader.consumer() {
                    // If the consumer was taken over or deleted, the next read reports it.
                    let _ = journal.ack_known(consumer, journal.cursor(read.through));
                }
            }
        }
        Streamed::Batch(read)
    }

    fn goodbye(&mut self, reason: GoodbyeReason) -> Streamed<H> {
        self.over = true;
        let message = match reason {
            GoodbyeReason::Done => "all events of the stream were delivered",
            GoodbyeReason::Shutdown => "the daemon is ending",
            GoodbyeReason::TakenOver => "another reader holds this consumer now",
            GoodbyeReason::ConsumerDeleted => "the consumer was deleted",
            GoodbyeReason::Unspecified | GoodbyeReason::LoopClosed => "the loop is closed",
        };
        let cursor = self.reader.journal().cursor(self.sent);
        Streamed::Goodbye(Goodbye {
            reason: reason.into(),
            cursor: Some(cursor.into()),
            message: message.to_owned(),
        })
    }

    fn ended(&mut self, end: End) -> Streamed<H> {
        let reason = match end {
            End::TakenOver => GoodbyeReason::TakenOver,
            End::Deleted => GoodbyeReason::ConsumerDeleted,
            End::Closed if self.registry.is_draining() => GoodbyeReason::Shutdown,
            End::Closed => GoodbyeReason::LoopClosed,
        };
        self.goodbye(reason)
    }

    /// Returns whether the client must get this read at once.
    fn is_news(&self, read: &Read) -> bool {
        read.events > 0 || !read.gaps.is_empty() || (read.caught_up && !self.caught_up)
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Streamed<H>>> {
        // The next message is asked for, so the one before is sent.
        self.held.clear();
        self.sending.clear();
        if let Some(header) = self.header.take() {
            return Poll::Ready(Some(Streamed::Header(header)));
        }
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(unread) = &mut self.snapshot {
            return match ready!(unread.poll_part(cx, self.held.readable(PART_BYTES))) {
                Ok(part) => {
                    // Another call may have taken the same memory at the same time.
                    let _ = self.held.grow(part.encoded_len() as u64);
                    if part.last {
                        self.snapshot = None;
                    }
                    Poll::Ready(Some(Streamed::Snapshot(Box::new(part))))
                }
                Err(error) => {
                    (self.failed, self.over) = (Some(error), true);
                    Poll::Ready(None)
                }
            };
        }
        if let Some(reason) = self.goodbye.take() {
            return Poll::Ready(Some(self.goodbye(reason)));
        }
        if self.until.is_some_and(|until| self.reader.after() >= until) {
            return Poll::Ready(Some(self.flushed()));
        }
        for _ in 0..READS_AT_ONCE {
            let bytes = match self.poll_room(cx) {
                Poll::Ready(Ok(bytes)) => self.sending.readable(bytes),
                Poll::Ready(Err(end)) => return Poll::Ready(Some(self.ended(end))),
                Poll::Pending => return self.poll_stalled(cx),
            };
            match self.reader.poll_read(cx, bytes, BATCH_EVENTS) {
                Poll::Ready(Ok(read)) => {
                    if self.until_closed && read.ended {
                        self.goodbye = Some(GoodbyeReason::Done);
                    }
                    if read.bytes > LEAST {
                        // Another call may have taken the same memory at the same time.
                        let _ = self.sending.grow(read.bytes as u64);
                    }
                    if self.is_news(&read) {
                        return Poll::Ready(Some(self.batch(read)));
                    }
                }
                Poll::Ready(Err(end)) => return Poll::Ready(Some(self.ended(end))),
                Poll::Pending => return self.poll_quiet(cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Polls for the next message, or for the error that ends the stream.
    pub(super) fn poll_item(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Streamed<H>, Status>>> {
        let message = ready!(self.poll_message(cx));
        let failed = self.failed.take().map(|error| Err(error.into()));
        Poll::Ready(message.map(Ok).or(failed))
    }

    /// Returns a batch for what was read and not sent yet; then the goodbye.
    fn flushed(&mut self) -> Streamed<H> {
        if self.sent >= self.reader.after() {
            return self.goodbye(GoodbyeReason::Done);
        }
        let read = Read {
            through: self.reader.after(),
            ..Read::default()
        };
        self.batch(read)
    }

    /// Polls for room in the window and for the end of the linger time. Returns how many bytes the
    /// next batch may have.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, End>> {
        let mut bytes = self.batch_bytes;
        if let Acks::Window(window) = &mut self.acks {
            while window.left() == 0 {
                if self.reader.consumer().is_none() {
                    // The stream's own acknowledgements make room, and poll it again.
                    return Poll::Pending;
                }
                let acked = ready!(self.reader.poll_acked(cx, window.acked))?;
                window.ack(acked);
            }
            bytes = bytes.min(usize::try_from(window.left()).unwrap_or(usize::MAX));
        }
        let Some(linger) = &mut self.linger else {
            return Poll::Ready(Ok(bytes));
        };
        let backlog = self.reader.backlog();
        if backlog > 0 && backlog < bytes as u64 && self.until.is_none() {
            if !linger.waits {
                linger.waits = true;
                linger.timer.as_mut().reset(Instant::now() + linger.delay);
            }
            ready!(linger.timer.as_mut().poll(cx));
        }
        linger.waits = false;
        Poll::Ready(Ok(bytes))
    }

    /// Polls while no batch may be sent: only heartbeats go out.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Option<Streamed<H>>> {
        let is_full = matches!(&self.acks, Acks::Window(window) if window.left() == 0);
        let registry = Arc::clone(&self.registry);
        let ending = || registry.is_draining();
        if is_full && self.reader.poll_given_up(cx, ending).is_ready() {
            // Acknowledgements may never come. A client that resumes later begins after the last
            // sent batch.
            return Poll::Ready(Some(self.goodbye(GoodbyeReason::Shutdown)));
        }
        ready!(self.timer.as_mut().poll(cx));
        let read = Read {
            through: self.reader.after(),
            ..Read::default()
        };
        Poll::Ready(Some(self.batch(read)))
    }

    /// Polls while nothing is waiting: says so once, and again with every heartbeat.
    fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<Option<Streamed<H>>> {
        if self.caught_up {
            ready!(self.timer.as_mut().poll(cx));
        }
        let read = Read {
            through: self.reader.after(),
            caught_up: true,
            ..Read::default()
        };
        Poll::Ready(Some(self.batch(read)))
    }
}

impl<H: Message + Default + Unpin> Stream for EventStream<H> {
    type Item = Result<Streamed<H>, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_item(cx)
    }
}
