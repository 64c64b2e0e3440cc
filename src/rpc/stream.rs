//! A reader of a journal as a stream of messages: header, batches, heartbeats, goodbye.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::Status;

use super::wire::Streamed;
use crate::journal::{Read, Reader};
use crate::policy::Registry;
use crate::proto::{Goodbye, GoodbyeReason};
use crate::watch::Permit;

/// Most events of one batch.
const BATCH_EVENTS: usize = 65_536;
/// Reads that found nothing for this reader before others get their turn.
const READS_AT_ONCE: usize = 8;

/// What a stream carries and when it ends.
#[derive(Debug)]
pub struct EventStream<H> {
    header: Option<H>,
    reader: Reader,
    registry: Arc<Registry>,
    batch_bytes: usize,
    heartbeat: Duration,
    timer: Pin<Box<Sleep>>,
    /// The last batch's `through`.
    sent: u64,
    /// It said that nothing was waiting.
    caught_up: bool,
    /// Ends behind the end of the one watch it is about.
    until_closed: bool,
    goodbye: Option<GoodbyeReason>,
    over: bool,
    _permit: Permit,
}

/// What an [`EventStream`] is made of.
#[derive(Debug)]
pub(super) struct Parts<H> {
    pub(super) header: H,
    pub(super) reader: Reader,
    pub(super) registry: Arc<Registry>,
    pub(super) batch_bytes: usize,
    pub(super) heartbeat: Duration,
    pub(super) until_closed: bool,
    /// Nothing is left to read: the goodbye follows the header.
    pub(super) done: bool,
    pub(super) permit: Permit,
}

impl<H> EventStream<H> {
    pub(super) fn new(parts: Parts<H>) -> Self {
        Self {
            sent: parts.reader.after(),
            header: Some(parts.header),
            reader: parts.reader,
            registry: parts.registry,
            batch_bytes: parts.batch_bytes,
            heartbeat: parts.heartbeat,
            timer: Box::pin(tokio::time::sleep(parts.heartbeat)),
            caught_up: false,
            until_closed: parts.until_closed,
            goodbye: parts.done.then_some(GoodbyeReason::Done),
            over: false,
            _permit: parts.permit,
        }
    }

    /// What has been passed without a word becomes part of this batch.
    fn batch(&mut self, mut read: Read) -> Streamed<H> {
        read.after = self.sent;
        self.sent = read.through;
        self.caught_up = read.caught_up;
        self.timer.as_mut().reset(Instant::now() + self.heartbeat);
        Streamed::Batch(read)
    }

    fn goodbye(&mut self, reason: GoodbyeReason) -> Streamed<H> {
        self.over = true;
        let message = match reason {
            GoodbyeReason::Done => "all of it was delivered",
            GoodbyeReason::Shutdown => "the daemon is ending",
            _ => "the loop is closed",
        };
        let cursor = self.reader.journal().cursor(self.sent);
        Streamed::Goodbye(Goodbye {
            reason: reason.into(),
            cursor: Some(cursor.into()),
            message: message.to_owned(),
        })
    }

    /// Whether the reader needs to be told of what was read.
    fn is_news(&self, read: &Read) -> bool {
        read.events > 0 || !read.gaps.is_empty() || (read.caught_up && !self.caught_up)
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Streamed<H>>> {
        if let Some(header) = self.header.take() {
            return Poll::Ready(Some(Streamed::Header(header)));
        }
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(reason) = self.goodbye.take() {
            return Poll::Ready(Some(self.goodbye(reason)));
        }
        for _ in 0..READS_AT_ONCE {
            match self.reader.poll_read(cx, self.batch_bytes, BATCH_EVENTS) {
                Poll::Ready(Some(read)) => {
                    if self.until_closed && read.ended {
                        self.goodbye = Some(GoodbyeReason::Done);
                    }
                    if self.is_news(&read) {
                        return Poll::Ready(Some(self.batch(read)));
                    }
                }
                Poll::Ready(None) => {
                    let reason = if self.registry.is_draining() {
                        GoodbyeReason::Shutdown
                    } else {
                        GoodbyeReason::LoopClosed
                    };
                    return Poll::Ready(Some(self.goodbye(reason)));
                }
                Poll::Pending => return self.poll_quiet(cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Nothing is waiting: says so once, and again with every heartbeat.
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
        self.get_mut().poll_message(cx).map(|m| m.map(Ok))
    }
}
