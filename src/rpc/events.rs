//! EventService.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::server::event_service_server::EventService;
use super::stream::{EventStream, Parts};
use super::watches::check_items;
use super::wire;
use super::{Api, asker, convert, mutate, object};
use crate::error::{Error, Result};
use crate::event::{Cursor, PAYLOAD_MAX, Posted};
use crate::event_loop::Posting;
use crate::journal::{Journal, Read, Reader, Start};
use crate::policy::check_loop_name;
use crate::proto::{
    AckRequest, AckResponse, PollRequest, PostRequest, PostResponse, StartAt, SubscribeHeader,
    SubscribeRequest, subscribe_request,
};

/// Bytes of events in a batch, if the subscriber does not say.
const BATCH_BYTES: u32 = 64 * 1024;
/// Bytes of events in one answer of Poll: with the rest below gRPC's 4 MiB.
const POLL_BYTES: usize = 3 << 20;
const POLL_EVENTS: u32 = 1024;
const POLL_EVENTS_MAX: u32 = 65_536;
const POSTS_MAX: usize = 1024;
const HEARTBEAT: Duration = Duration::from_secs(15);
const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn heartbeat(given: Option<prost_types::Duration>) -> Result<Duration> {
    let bounds = Duration::from_millis(100)..=HOUR;
    convert::duration("heartbeat", given, HEARTBEAT, bounds)
}

/// Right after what the consumer has acknowledged; at the newest if that is nothing.
fn after_consumer(journal: &Journal, consumer: &str) -> Start {
    match journal.acked(consumer) {
        Some(seq) => Start::After {
            cursor: Cursor { epoch: None, seq },
            skip: true,
        },
        None => Start::Now,
    }
}

#[tonic::async_trait]
impl EventService for Api {
    type SubscribeStream = EventStream<SubscribeHeader>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let permit = self.streams.take()?;
        let on = self.on(&asker, request.r#loop, true)?;
        if !request.consumer.is_empty() {
            check_loop_name("consumer", &request.consumer)?;
        }
        let at = |at| match StartAt::try_from(at) {
            Ok(StartAt::Unspecified) => Ok(after_consumer(on.journal(), &request.consumer)),
            Ok(StartAt::Now) => Ok(Start::Now),
            Ok(StartAt::Oldest) => Ok(Start::Oldest),
            Err(_) => Err(Error::invalid("start_at", "must be NOW or OLDEST")),
        };
        convert::on_gap(request.on_gap)?;
        let start = match request.start {
            None => at(0)?,
            Some(subscribe_request::Start::StartAt(value)) => at(value)?,
            Some(subscribe_request::Start::After(cursor)) => {
                convert::after("after", &cursor, request.on_gap)?
            }
        };
        let batch_bytes = match request.max_batch_bytes {
            0 => BATCH_BYTES,
            1024..=1_048_576 => request.max_batch_bytes,
            _ => return Err(Error::invalid("max_batch_bytes", "must be 1 KiB to 1 MiB").into()),
        };
        let heartbeat = heartbeat(request.heartbeat)?;
        let filter = convert::filter(request.filter)?;
        let reader = on.journal().reader(start, filter)?;
        let header = SubscribeHeader {
            instance: self.identity.instance.clone(),
            boot_id: self.identity.boot_id.clone(),
            loop_id: on.id(),
            loop_name: on.full_name().to_owned(),
            epoch: on.journal().epoch().to_string(),
            after: reader.after(),
        };
        Ok(Response::new(EventStream::new(Parts {
            header,
            reader,
            registry: Arc::clone(&self.registry),
            batch_bytes: batch_bytes as usize,
            heartbeat,
            until_closed: false,
            done: false,
            permit,
        })))
    }

    async fn ack(&self, request: Request<AckRequest>) -> Result<Response<AckResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let on = self.on(&asker, request.r#loop, false)?;
        check_loop_name("consumer", &request.consumer)?;
        let cursor = request.cursor.unwrap_or_default();
        let cursor = convert::cursor("cursor", &cursor)?;
        let acked = on.journal().ack(&request.consumer, cursor)?;
        Ok(Response::new(AckResponse {
            acked: Some(on.journal().cursor(acked).into()),
        }))
    }

    async fn poll(
        &self,
        request: Request<PollRequest>,
    ) -> Result<Response<wire::PollResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let on = self.on(&asker, request.r#loop, true)?;
        let timeout = convert::duration(
            "timeout",
            request.timeout,
            Duration::ZERO,
            Duration::ZERO..=HOUR,
        )?;
        let max_events = match request.max_events {
            0 => POLL_EVENTS,
            1..=POLL_EVENTS_MAX => request.max_events,
            _ => return Err(Error::invalid("max_events", "at most 65536").into()),
        };
        check_items("rearm", &request.rearm)?;
        if !request.consumer.is_empty() {
            check_loop_name("consumer", &request.consumer)?;
        }
        let filter = convert::filter(request.filter)?;
        convert::on_gap(request.on_gap)?;
        if let Some(ack) = &request.ack {
            check_loop_name("consumer", &request.consumer)?;
            let cursor = convert::cursor("ack", ack)?;
            on.journal().ack(&request.consumer, cursor)?;
        }
        let start = match &request.after {
            Some(cursor) => convert::after("after", cursor, request.on_gap)?,
            None => after_consumer(on.journal(), &request.consumer),
        };
        // Before the re-arming: what it makes ready lies behind the reader.
        let reader = on.journal().reader(start, filter)?;
        if !request.rearm.is_empty() {
            on.rearm(request.rearm).await?;
        }
        let batch = read_or_wait(reader, timeout, max_events as usize).await;
        Ok(Response::new(wire::PollResponse {
            more: !batch.caught_up,
            epoch: on.journal().epoch().to_string(),
            batch,
        }))
    }

    async fn post(&self, request: Request<PostRequest>) -> Result<Response<PostResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let on = self.on(&asker, request.r#loop, true)?;
        self.registry.check_draining()?;
        if request.posts.is_empty() || request.posts.len() > POSTS_MAX {
            return Err(Error::invalid("posts", "must be 1 to 1024").into());
        }
        let mut postings = Vec::with_capacity(request.posts.len());
        for (index, post) in request.posts.into_iter().enumerate() {
            let field = |name: &str| format!("posts[{index}].{name}");
            if post.payload.len() > PAYLOAD_MAX {
                return Err(Error::invalid(field("payload"), "at most 256 KiB").into());
            }
            postings.push(Posting {
                posted: Posted {
                    request_id: convert::short_text(field("request_id"), post.request_id)?,
                    topic: convert::short_text(field("topic"), post.topic)?,
                    payload: post.payload,
                },
                user_data: post.user_data,
            });
        }
        let object = object(&on, format!("{} posts", postings.len()));
        let cursor = mutate(
            &asker,
            "Post",
            object,
            async move { on.post(postings).await },
        )
        .await?;
        Ok(Response::new(PostResponse {
            cursor: Some(cursor.into()),
        }))
    }
}

/// Reads at once if a matching event or a gap is there, else when one comes; what
/// was passed until then is part of the answer.
async fn read_or_wait(mut reader: Reader, timeout: Duration, max_events: usize) -> Read {
    let after = reader.after();
    let deadline = tokio::time::Instant::now() + timeout;
    let mut read = reader.read(POLL_BYTES, max_events);
    while read.events == 0 && read.gaps.is_empty() {
        let next = poll_fn(|cx| reader.poll_read(cx, POLL_BYTES, max_events));
        match tokio::time::timeout_at(deadline, next).await {
            Ok(Some(more)) => read = more,
            // Closed and read to its end, or nothing came in time.
            Ok(None) | Err(_) => break,
        }
    }
    read.after = after;
    read
}
