//! Attach: a subscription that also takes acknowledgements, re-arming, writing, datagrams to send
//! and posting, in the order in which they come.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::Requester;
use super::convert;
use super::events::{append, postings};
use super::status::batch_error;
use super::stream::EventStream;
use super::transports::{WRITE_MAX, parcel};
use super::watches::check_items;
use super::wire::AttachResponse;
use crate::error::{Error, Result};
use crate::event_loop::Handle;
use crate::proto::attach_request::Message;
use crate::proto::attach_result::Result as Outcome;
use crate::proto::{
    AttachPost, AttachRearm, AttachRequest, AttachResult, AttachSendTo, AttachWrite, Cursor,
    PostResponse, SendToResponse, SubscribeHeader, WriteResponse,
};

/// A request that is being carried out. Its result is `None` if the client did not ask for one.
type Work = Pin<Box<dyn Future<Output = Option<AttachResult>> + Send>>;

/// Most requests that are carried out before events get their turn.
const REQUESTS_AT_ONCE: usize = 64;

/// Both directions of one Attach call.
pub struct AttachStream {
    requester: Arc<Requester>,
    on: Handle,
    events: EventStream<SubscribeHeader>,
    /// `None` once the client has half-closed the stream.
    requests: Option<Streaming<AttachRequest>>,
    /// The request that is being carried out; the next one waits until it is done.
    work: Option<Work>,
}

impl std::fmt::Debug for AttachStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttachStream")
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl AttachStream {
    pub(super) fn new(
        requester: Requester,
        on: Handle,
        events: EventStream<SubscribeHeader>,
        requests: Streaming<AttachRequest>,
    ) -> Self {
        Self {
            requester: Arc::new(requester),
            on,
            events,
            requests: Some(requests),
            work: None,
        }
    }

    /// Carries out requests of the client. Ready with the first result that the client must get.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<AttachResult> {
        for _ in 0..REQUESTS_AT_ONCE {
            if let Some(work) = &mut self.work {
                let Poll::Ready(result) = work.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                self.work = None;
                if let Some(result) = result {
                    return Poll::Ready(result);
                }
            }
            let Some(requests) = &mut self.requests else {
                return Poll::Pending;
            };
            match Pin::new(requests).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(request))) => {
                    if let Some(refused) = self.take(request) {
                        return Poll::Ready(refused);
                    }
                }
                // The client has half-closed the stream, or the stream is broken: then the goodbye
                // reaches nobody.
                Poll::Ready(None | Some(Err(_))) => {
                    self.requests = None;
                    self.events.flush();
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Begins to carry out a request. Returns the answer if the request is refused at once.
    fn take(&mut self, request: AttachRequest) -> Option<AttachResult> {
        let refused = |number, error: &Error| AttachResult {
            number,
            result: Some(Outcome::Error(batch_error(error))),
        };
        match request.message {
            Some(Message::Ack(cursor)) => self.ack(&cursor).err().map(|error| refused(0, &error)),
            Some(Message::Rearm(rearm)) => {
                self.work = Some(Box::pin(rearmed(self.on.clone(), rearm)));
                None
            }
            Some(Message::Write(write)) => {
                self.work = Some(Box::pin(written(self.on.clone(), write)));
                None
            }
            Some(Message::SendTo(send)) => {
                self.work = Some(Box::pin(sent(self.on.clone(), send)));
                None
            }
            Some(Message::Post(post)) => {
                let drains = self.events.registry().check_draining();
                let (requester, on) = (Arc::clone(&self.requester), self.on.clone());
                self.work = Some(Box::pin(posted(requester, on, drains, post)));
                None
            }
            Some(Message::Start(_)) => {
                let error = Error::invalid("start", "must be set in the first message only");
                Some(refused(0, &error))
            }
            None => {
                let error =
                    Error::invalid("message", "must be set, to ack, rearm, write, send or post");
                Some(refused(0, &error))
            }
        }
    }

    fn ack(&mut self, cursor: &Cursor) -> Result<()> {
        let cursor = convert::cursor("ack", cursor)?;
        let reader = self.events.reader();
        let journal = reader.journal();
        match reader.consumer() {
            Some(consumer) => drop(journal.ack_known(consumer, cursor)?),
            None => journal.check_cursor(cursor)?,
        }
        self.events.ack(cursor.seq);
        Ok(())
    }
}

fn result(number: u64, outcome: Result<Outcome>) -> Option<AttachResult> {
    let result = match outcome {
        Ok(_) if number == 0 => return None,
        Ok(outcome) => outcome,
        Err(error) => Outcome::Error(batch_error(&error)),
    };
    Some(AttachResult {
        number,
        result: Some(result),
    })
}

async fn rearmed(on: Handle, rearm: AttachRearm) -> Option<AttachResult> {
    let outcome = async {
        check_items("rearm.items", &rearm.items)?;
        let rearmed = on.rearm(rearm.items).await?;
        Ok(Outcome::Rearmed(rearmed.answer))
    };
    result(rearm.number, outcome.await)
}

async fn written(on: Handle, write: AttachWrite) -> Option<AttachResult> {
    let outcome = async {
        let name = convert::watch_name(write.watch)?;
        if write.data.len() > WRITE_MAX {
            return Err(Error::invalid("write.data", "must be at most 1 MiB"));
        }
        let taken = on.write(name, write.data, write.offset).await?;
        Ok(Outcome::Written(WriteResponse {
            taken: taken.taken,
            buffered_bytes: taken.buffered,
        }))
    };
    result(write.number, outcome.await)
}

async fn sent(on: Handle, send: AttachSendTo) -> Option<AttachResult> {
    let outcome = async {
        let name = convert::watch_name(send.watch)?;
        let interface = send.source_interface_index;
        let parcel = parcel(send.data, send.peer.as_ref(), &send.source_ip, interface)?;
        let buffered_bytes = on.send_to(name, parcel).await?;
        Ok(Outcome::Sent(SendToResponse { buffered_bytes }))
    };
    result(send.number, outcome.await)
}

async fn posted(
    requester: Arc<Requester>,
    on: Handle,
    drains: Result<()>,
    post: AttachPost,
) -> Option<AttachResult> {
    let outcome = async {
        drains?;
        let postings = postings("post.posts", post.posts)?;
        let cursor = Some(append(&requester, on, postings).await?.into());
        Ok(Outcome::Posted(PostResponse { cursor }))
    };
    result(post.number, outcome.await)
}

impl Stream for AttachStream {
    type Item = Result<AttachResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Poll::Ready(result) = this.poll_requests(cx) {
            return Poll::Ready(Some(Ok(AttachResponse::Result(result))));
        }
        this.events.poll_item(cx)
    }
}
