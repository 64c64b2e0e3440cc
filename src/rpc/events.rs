//! The EventService.

use std::future::poll_fn;
use std::time::Duration;

use tonic::{Request, Response, Status, Streaming};

use super::attach::AttachStream;
use super::quota::MemoryQuota;
use super::server::event_service_server::EventService;
use super::stream::EventStream;
use super::watches::check_items;
use super::wire;
use super::{Api, Requester, convert, mutate, object, requester};
use crate::access::audit;
use crate::error::{Error, Result};
use crate::event::{Cursor, PAYLOAD_MAX, Posted};
use crate::event_loop::{Handle, Posting};
use crate::journal::{End, Read, Reader, Start};
use crate::memory::Use;
use crate::policy::check_loop_name;
use crate::proto::*;

/// Most bytes of events in one answer of Poll. With the other fields, the answer stays below gRPC's
/// 4 MiB.
const POLL_BYTES: usize = 3 << 20;
/// Bytes that a waiting Poll call takes.
const WAITING: u64 = 4096;
const POLL_EVENTS: u32 = 1024;
const POLL_EVENTS_MAX: u32 = 65_536;
const POSTS_MAX: usize = 1024;
const HOUR: Duration = Duration::from_secs(3600);

/// Checks what a client posts. `field` is the name of the list in the request, for errors.
pub(super) fn postings(field: &'static str, posts: Vec<Post>) -> Result<Vec<Posting>> {
    if posts.is_empty() || posts.len() > POSTS_MAX {
        return Err(Error::invalid(field, "must be 1 to 1024 events"));
    }
    let checked = posts.into_iter().enumerate().map(|(index, post)| {
        let refused = |name: &str, allowed: &'static str| {
            Err(Error::invalid(format!("{field}[{index}].{name}"), allowed))
        };
        let Post {
            request_id,
            topic,
            payload,
            user_data,
        } = post;
        if request_id.len() > convert::TEXT_MAX {
            return refused("request_id", "must be at most 128 bytes");
        }
        if topic.len() > convert::TEXT_MAX {
            return refused("topic", "must be at most 128 bytes");
        }
        if payload.len() > PAYLOAD_MAX {
            return refused("payload", "must be at most 256 KiB");
        }
        let posted = Posted {
            request_id,
            topic,
            payload,
        };
        Ok(Posting { posted, user_data })
    });
    checked.collect()
}

/// Appends what a client posts and writes that to the audit log, even if the call is cancelled.
pub(super) async fn append(
    requester: &Requester,
    on: Handle,
    postings: Vec<Posting>,
) -> Result<Cursor> {
    let object = object(&on, format_args!("{} posts", postings.len()));
    match on.post_at_once(postings) {
        Ok(cursor) => {
            let done = Ok(cursor);
            audit(&requester.peer, "Post", object, &done);
            done
        }
        Err(postings) => {
            let work = async move { on.post(postings).await };
            mutate(requester, "Post", object, work).await
        }
    }
}

#[tonic::async_trait]
impl EventService for Api {
    type SubscribeStream = EventStream<SubscribeHeader>;
    type AttachStream = AttachStream;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let requester = requester(&request)?;
        let (_, stream) = self
            .subscription(&requester, request.into_inner(), false)
            .await?;
        Ok(Response::new(stream))
    }

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let requester = requester(&request)?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.message);
        let Some(attach_request::Message::Start(start)) = first else {
            return Err(Error::invalid("start", "must be set in the first message").into());
        };
        let (on, events) = self.subscription(&requester, start, true).await?;
        Ok(Response::new(AttachStream::new(
            requester, on, events, requests,
        )))
    }

    async fn ack(&self, request: Request<AckRequest>) -> Result<Response<AckResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: AckRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            check_loop_name("consumer", &request.consumer)?;
            convert::can_consume("consumer", &on)?;
            let cursor = request.cursor.unwrap_or_default();
            let cursor = convert::cursor("cursor", &cursor)?;
            let acked = on.journal().ack(&request.consumer, cursor)?;
            Ok(AckResponse {
                acked: Some(on.journal().cursor(acked).into()),
            })
        };
        let answer = self
            .once(requester, "Ack", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn poll(
        &self,
        request: Request<PollRequest>,
    ) -> Result<Response<wire::PollResponse>, Status> {
        let requester = requester(&request)?;
        let waits = requester.quota.charge(Use::Polls, WAITING)?;
        let request = request.into_inner();
        let on = self.on(&requester, request.r#loop, true)?;
        let timeout = convert::duration(
            "timeout",
            request.timeout,
            Duration::ZERO,
            Duration::ZERO..=HOUR,
        )?;
        let max_events = match request.max_events {
            0 => POLL_EVENTS,
            1..=POLL_EVENTS_MAX => request.max_events,
            _ => return Err(Error::invalid("max_events", "must be at most 65536").into()),
        };
        check_items("rearm", &request.rearm)?;
        let fence = request.fence || (timeout.is_zero() && !request.rearm.is_empty());
        if !request.consumer.is_empty() || request.ack.is_some() {
            check_loop_name("consumer", &request.consumer)?;
            convert::can_consume("consumer", &on)?;
        }
        let filter = convert::filter(request.filter)?;
        convert::skips_gap(request.on_gap)?;
        let after = request.after.as_ref();
        let start = after.map(|cursor| convert::after("after", cursor, request.on_gap));
        let start = start.transpose()?;
        if let Some(ack) = &request.ack {
            let cursor = convert::cursor("ack", ack)?;
            on.journal().ack(&request.consumer, cursor)?;
        }
        // The reader is made before the re-arming, so that it sees every event that the re-arming
        // causes.
        let reader = if request.consumer.is_empty() {
            let start = start.unwrap_or(Start::Now);
            on.journal().reader(start, filter)?
        } else {
            on.journal().hold(&request.consumer, start, None, filter)?
        };
        if start.is_some() {
            on.journal().returns_after(reader.after());
        }
        let since = on.rearm(request.rearm).await?.since;
        let looked_at_ns = if fence {
            let looked = on.fence().await?;
            since.unwrap_or(looked)
        } else {
            0
        };
        let batch = read_or_wait(reader, timeout, max_events as usize, &requester.quota).await?;
        drop(waits);
        Ok(Response::new(wire::PollResponse {
            more: !batch.caught_up,
            epoch: on.journal().epoch().to_string(),
            looked_at_ns,
            batch,
        }))
    }

    async fn post(&self, request: Request<PostRequest>) -> Result<Response<PostResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: PostRequest| async move {
            let on = api.on(&requester, request.r#loop, true)?;
            api.registry.check_draining()?;
            let postings = postings("posts", request.posts)?;
            let cursor = append(&requester, on, postings).await?;
            Ok(PostResponse {
                cursor: Some(cursor.into()),
            })
        };
        let answer = self
            .once(requester, "Post", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn create_consumer(
        &self,
        request: Request<CreateConsumerRequest>,
    ) -> Result<Response<CreateConsumerResponse>, Status> {
        let requester = requester(&request)?;
        let request = request.into_inner();
        let answer = self.once(requester, "CreateConsumer", request, Self::consumer_created);
        Ok(Response::new(answer.await?))
    }

    async fn list_consumers(
        &self,
        request: Request<ListConsumersRequest>,
    ) -> Result<Response<ListConsumersResponse>, Status> {
        let requester = requester(&request)?;
        let listed = self.consumers_listed(&requester, request.into_inner())?;
        Ok(Response::new(listed))
    }

    async fn get_consumer(
        &self,
        request: Request<GetConsumerRequest>,
    ) -> Result<Response<GetConsumerResponse>, Status> {
        let requester = requester(&request)?;
        let described = self.consumer_described(&requester, request.into_inner())?;
        Ok(Response::new(described))
    }

    async fn delete_consumer(
        &self,
        request: Request<DeleteConsumerRequest>,
    ) -> Result<Response<DeleteConsumerResponse>, Status> {
        let requester = requester(&request)?;
        let request = request.into_inner();
        let answer = self.once(requester, "DeleteConsumer", request, Self::consumer_deleted);
        Ok(Response::new(answer.await?))
    }
}

/// Reads at once if there is a matching event or a gap, else waits until one comes. The result also
/// covers the events that the filter left out meanwhile.
async fn read_or_wait(
    mut reader: Reader,
    timeout: Duration,
    max_events: usize,
    quota: &MemoryQuota,
) -> Result<Read> {
    let after = reader.after();
    let deadline = tokio::time::Instant::now() + timeout;
    let mut read = reader.read(quota.readable(POLL_BYTES), max_events);
    // A timeout of zero must not wait, not even for the next tick of the clock.
    while read.events == 0 && read.gaps.is_empty() && !timeout.is_zero() {
        let next = poll_fn(|cx| reader.poll_read(cx, quota.readable(POLL_BYTES), max_events));
        match tokio::time::timeout_at(deadline, next).await {
            Ok(Ok(more)) => read = more,
            // The journal is closed and read to its end, or the timeout is over.
            Ok(Err(End::Closed)) | Err(_) => break,
            Ok(Err(over)) => {
                let name = reader.consumer().unwrap_or_default().to_owned();
                return Err(match over {
                    End::TakenOver => Error::TakenOver { name },
                    _ => Error::ConsumerNotFound { name },
                });
            }
        }
    }
    read.after = after;
    Ok(read)
}
