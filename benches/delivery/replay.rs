//! A journal that is read from its beginning, and a loop with many readers, compared with a bare
//! tonic server that streams the same bytes.

use bytes::Bytes;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::subscribe_request::Start;
use evloopd::proto::{Post, PostRequest, StartAt, SubscribeRequest};
use std::time::Instant;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::daemon::Daemon;
use crate::grpc::{self, REPLAY};
use crate::report::{Report, Target, alternate};
use crate::{Outcome, raw};

/// The number of events that a late subscriber reads.
const REPLAYED: u64 = 2_000_000;
const SUBSCRIBERS: usize = 64;
/// The number of events that all of them receive.
const FANNED: u64 = 204_800;
/// The number of events in one Post.
const POSTS: u64 = 1024;

/// A journal with room for all events.
const CONFIG: &str = "version = 1\n[limits]\nmemory = \"4GiB\"\n\
    [policy.default]\njournal_events = 20000000\njournal_bytes = \"2GiB\"\n";

fn from_oldest() -> SubscribeRequest {
    SubscribeRequest {
        start: Some(Start::StartAt(StartAt::Oldest.into())),
        ..SubscribeRequest::default()
    }
}

/// Posts that many events and returns the sequence number of the last.
async fn post(channel: Channel, events: u64) -> Outcome<u64> {
    let mut client = EventServiceClient::new(channel);
    let posts = vec![
        Post {
            payload: Bytes::from_static(&[b'x'; 32]),
            ..Post::default()
        };
        usize::try_from(POSTS)?
    ];
    let mut last = 0;
    for _ in 0..events / POSTS {
        let request = PostRequest {
            posts: posts.clone(),
            ..PostRequest::default()
        };
        let answer = client.post(request).await?.into_inner();
        last = answer.cursor.ok_or("a post without its cursor")?.seq;
    }
    Ok(last)
}

fn per_ms(events: u64, begun: Instant) -> f64 {
    let events = u32::try_from(events).map_or(f64::NAN, f64::from);
    events / begun.elapsed().as_secs_f64() / 1000.0
}

/// Reads until the stream has accounted for `last`.
async fn read(mut stream: tonic::Streaming<Bytes>, last: u64) -> Outcome<()> {
    while let Some(message) = stream.message().await? {
        if raw::through(&message)? >= Some(last) {
            return Ok(());
        }
    }
    Err("the stream ended".into())
}

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let daemon = Daemon::start_with(CONFIG)?;
    let channel = runtime.block_on(daemon.connect())?;
    let before = daemon.resident()?;
    let last = runtime.block_on(post(channel.clone(), REPLAYED))?;
    let held = daemon.resident()?.saturating_sub(before);
    let oldest = from_oldest();
    let capture = raw::capture(channel.clone(), &oldest, last);
    let messages = runtime.block_on(capture)?;
    let yardstick = grpc::start_with(&messages)?;
    drop(messages);
    let bare = runtime.block_on(yardstick.connect())?;
    let rates = alternate(
        || {
            runtime.block_on(async {
                let begun = Instant::now();
                read(raw::subscribe(channel.clone(), &from_oldest()).await?, last).await?;
                Ok(per_ms(REPLAYED, begun))
            })
        },
        || {
            runtime.block_on(async {
                let begun = Instant::now();
                read(raw::call(bare.clone(), REPLAY, Bytes::new()).await?, last).await?;
                Ok(per_ms(REPLAYED, begun))
            })
        },
    )?;
    let target = Some(Target::AtLeast(0.7));
    report.ratio(("replay_vs_raw_stream", ""), "events/ms", target, rates);
    let events = f64::from(u32::try_from(REPLAYED)?);
    let held = f64::from(u32::try_from(held / 1024)?) * 1024.0;
    report.figure(("journal_bytes_per_event", ""), None, vec![held / events]);
    Ok(())
}

/// Measures a loop that is posted to, with many subscribers, each on its own connection.
pub(crate) fn run_fanout(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let daemon = Daemon::start_with(CONFIG)?;
    let poster = runtime.block_on(daemon.connect())?;
    let captured = async {
        let last = post(poster.clone(), FANNED).await?;
        raw::capture(poster.clone(), &from_oldest(), last).await
    };
    let messages = runtime.block_on(captured)?;
    let last = messages
        .iter()
        .filter_map(|m| raw::through(m).ok().flatten())
        .max();
    let last = last.ok_or("nothing was captured")?;
    let yardstick = grpc::start_with(&messages)?;
    let connect = |ours: bool| {
        runtime.block_on(async {
            let mut channels = Vec::with_capacity(SUBSCRIBERS);
            for _ in 0..SUBSCRIBERS {
                channels.push(if ours {
                    daemon.connect().await?
                } else {
                    yardstick.connect().await?
                });
            }
            Ok::<_, crate::Failure>(channels)
        })
    };
    let (ours, theirs) = (connect(true)?, connect(false)?);
    let total = FANNED * SUBSCRIBERS as u64;
    let rates = alternate(
        || {
            runtime.block_on(async {
                let now = SubscribeRequest {
                    start: Some(Start::StartAt(StartAt::Now.into())),
                    ..SubscribeRequest::default()
                };
                let mut streams = Vec::with_capacity(SUBSCRIBERS);
                for channel in &ours {
                    streams.push(raw::subscribe(channel.clone(), &now).await?);
                }
                let begun = Instant::now();
                let posting = tokio::spawn({
                    let poster = poster.clone();
                    async move { post(poster, FANNED).await.map_err(|e| e.to_string()) }
                });
                let mut readers = JoinSet::new();
                let (tell, told) = tokio::sync::watch::channel(None);
                for stream in streams {
                    let told = told.clone();
                    readers.spawn(read_told(stream, told));
                }
                let last = posting.await??;
                tell.send(Some(last))?;
                while let Some(done) = readers.join_next().await {
                    done??;
                }
                Ok(per_ms(total, begun))
            })
        },
        || {
            runtime.block_on(async {
                let begun = Instant::now();
                let mut readers = JoinSet::new();
                for channel in &theirs {
                    let stream = raw::call(channel.clone(), REPLAY, Bytes::new()).await?;
                    readers.spawn(async move {
                        read(stream, last).await.map_err(|error| error.to_string())
                    });
                }
                while let Some(done) = readers.join_next().await {
                    done??;
                }
                Ok(per_ms(total, begun))
            })
        },
    )?;
    let target = Some(Target::AtLeast(0.7));
    report.ratio(("fanout64_vs_raw_stream", ""), "events/ms", target, rates);
    Ok(())
}

/// Reads like [`read`], but learns the last sequence number only later.
async fn read_told(
    mut stream: tonic::Streaming<Bytes>,
    mut told: tokio::sync::watch::Receiver<Option<u64>>,
) -> Result<(), String> {
    let mut through = 0;
    loop {
        let last = *told.borrow_and_update();
        if last.is_some_and(|last| through >= last) {
            return Ok(());
        }
        tokio::select! {
            message = stream.message() => {
                let message = message.map_err(|e| e.to_string())?.ok_or("the stream ended")?;
                let reached = raw::through(&message).map_err(|e| e.to_string())?;
                through = reached.unwrap_or(through);
            }
            changed = told.changed(), if last.is_none() => changed.map_err(|e| e.to_string())?,
        }
    }
}
