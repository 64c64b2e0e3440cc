//! Posts of one event each, compared with XADD to a Redis that keeps nothing on a disk: one after
//! the other, and until a subscriber has the event. The client of each side is one thread.

use std::time::{Duration, Instant};

use bytes::Bytes;
use evloopd::proto::attach_request::Message;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::subscribe_request::Start;
use evloopd::proto::{
    AttachPost, AttachRequest, AttachResponse, EventKind, Filter, Post, PostRequest, StartAt,
    SubscribeRequest, attach_response, attach_result,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::Outcome;
use crate::daemon::{Daemon, Subscription};
use crate::latency::percentile;
use crate::redis::{Connection, Redis};
use crate::report::{Report, Target, alternate};

/// Posts in one round.
const POSTS: u32 = 5000;
const PAYLOAD: &[u8] = &[b'x'; 64];

/// What one round took.
struct Taken {
    /// Posts in a millisecond.
    rate: f64,
    /// Microseconds of the server's CPU time for one post.
    cpu: f64,
}

impl Taken {
    fn since(begun: Instant, cpu: Duration) -> Self {
        Self {
            rate: f64::from(POSTS) / begun.elapsed().as_secs_f64() / 1000.0,
            cpu: cpu.as_secs_f64() * 1e6 / f64::from(POSTS),
        }
    }
}

fn redis(case: &str) -> Outcome<Option<Redis>> {
    let redis = Redis::start()?;
    if redis.is_none() {
        eprintln!("{case}: skipped: there is no redis-server");
    }
    Ok(redis)
}

fn post() -> Post {
    Post {
        payload: Bytes::from_static(PAYLOAD),
        ..Post::default()
    }
}

/// Adds both results of posts that are awaited one after the other.
fn add(
    report: &mut Report,
    [rate, cpu]: [&'static str; 2],
    target: f64,
    (ours, theirs): (Vec<Taken>, Vec<Taken>),
) {
    let rates = |rounds: &[Taken]| rounds.iter().map(|taken| taken.rate).collect();
    let cpus = |rounds: &[Taken]| rounds.iter().map(|taken| taken.cpu).collect();
    let target = Some(Target::AtLeast(target));
    let both = (rates(&ours), rates(&theirs));
    report.ratio((rate, ""), "posts/ms", target, both);
    report.ratio((cpu, ""), "µs", None, (cpus(&ours), cpus(&theirs)));
}

async fn add_all(redis: &Redis, connection: &mut Connection) -> Outcome<Taken> {
    let (cpu, begun) = (redis.cpu()?, Instant::now());
    for _ in 0..POSTS {
        connection.add(PAYLOAD).await?;
    }
    Ok(Taken::since(begun, redis.cpu()? - cpu))
}

pub(crate) fn run_unary(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let Some(redis) = redis("post_unary")? else {
        return Ok(());
    };
    let daemon = Daemon::start()?;
    let mut events = EventServiceClient::new(runtime.block_on(daemon.connect())?);
    let mut connection = runtime.block_on(redis.connect())?;
    let rounds = alternate(
        || {
            runtime.block_on(async {
                let (cpu, begun) = (daemon.cpu()?, Instant::now());
                for _ in 0..POSTS {
                    let request = PostRequest {
                        posts: vec![post()],
                        ..PostRequest::default()
                    };
                    let answer = events.post(request).await?.into_inner();
                    answer.cursor.ok_or("a post without its cursor")?;
                }
                Ok(Taken::since(begun, daemon.cpu()? - cpu))
            })
        },
        || runtime.block_on(add_all(&redis, &mut connection)),
    )?;
    let names = ["post_unary_vs_redis", "post_unary_cpu_vs_redis"];
    add(report, names, 0.5, rounds);
    Ok(())
}

/// A stream that carries posts, and no events.
struct Attached {
    requests: mpsc::Sender<AttachRequest>,
    answers: Streaming<AttachResponse>,
    posts: u64,
}

impl Attached {
    async fn open(channel: Channel) -> Outcome<Self> {
        let start = SubscribeRequest {
            start: Some(Start::StartAt(StartAt::Now.into())),
            filter: Some(Filter {
                kinds: vec![EventKind::PolicyChanged.into()],
                ..Filter::default()
            }),
            ..SubscribeRequest::default()
        };
        let (requests, stream) = mpsc::channel(1);
        requests.send(request(Message::Start(start))).await?;
        let answers = EventServiceClient::new(channel)
            .attach(ReceiverStream::new(stream))
            .await?;
        Ok(Self {
            requests,
            answers: answers.into_inner(),
            posts: 0,
        })
    }

    async fn post(&mut self) -> Outcome<()> {
        self.posts += 1;
        let message = Message::Post(AttachPost {
            number: self.posts,
            posts: vec![post()],
        });
        self.requests.send(request(message)).await?;
        loop {
            match self.answers.message().await?.and_then(|m| m.message) {
                Some(attach_response::Message::Result(result)) => {
                    return match result.result {
                        Some(attach_result::Result::Posted(_)) if result.number == self.posts => {
                            Ok(())
                        }
                        other => Err(format!("not the answer to the post: {other:?}").into()),
                    };
                }
                Some(_) => {}
                None => return Err("the stream ended".into()),
            }
        }
    }
}

const fn request(message: Message) -> AttachRequest {
    AttachRequest {
        message: Some(message),
    }
}

pub(crate) fn run_attach(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let Some(redis) = redis("post_attach")? else {
        return Ok(());
    };
    let daemon = Daemon::start()?;
    let mut attached = runtime.block_on(async { Attached::open(daemon.connect().await?).await })?;
    let mut connection = runtime.block_on(redis.connect())?;
    let rounds = alternate(
        || {
            runtime.block_on(async {
                let (cpu, begun) = (daemon.cpu()?, Instant::now());
                for _ in 0..POSTS {
                    attached.post().await?;
                }
                Ok(Taken::since(begun, daemon.cpu()? - cpu))
            })
        },
        || runtime.block_on(add_all(&redis, &mut connection)),
    )?;
    let names = ["post_attach_vs_redis", "post_attach_cpu_vs_redis"];
    add(report, names, 1.0, rounds);
    Ok(())
}

/// Returns the median in microseconds.
fn median(mut samples: Vec<Duration>) -> f64 {
    samples.sort_unstable();
    percentile(&samples, 50)
}

pub(crate) fn run_to_receive(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let Some(redis) = redis("post_to_receive")? else {
        return Ok(());
    };
    let daemon = Daemon::start()?;
    let (mut events, mut subscription) = runtime.block_on(async {
        let poster = EventServiceClient::new(daemon.connect().await?);
        let subscriber = daemon.connect().await?;
        let subscription = Subscription::open(subscriber, EventKind::Posted).await?;
        Ok::<_, crate::Failure>((poster, subscription))
    })?;
    let (mut poster, mut reader) = runtime.block_on(async {
        Ok::<_, crate::Failure>((redis.connect().await?, redis.connect().await?))
    })?;
    let (ours, theirs) = alternate(
        || {
            runtime.block_on(async {
                let mut samples = Vec::new();
                for _ in 0..POSTS {
                    let request = PostRequest {
                        posts: vec![post()],
                        ..PostRequest::default()
                    };
                    let begun = Instant::now();
                    let received = async {
                        subscription.next().await?;
                        Outcome::Ok(begun.elapsed())
                    };
                    let (posted, received) = tokio::join!(events.post(request), received);
                    posted?;
                    samples.push(received?);
                }
                Ok(median(samples))
            })
        },
        || {
            runtime.block_on(async {
                let mut samples = Vec::new();
                for _ in 0..POSTS {
                    // XREAD must wait before the event comes, as the subscriber does.
                    reader.block().await?;
                    poster.settle().await?;
                    let begun = Instant::now();
                    poster.send_add(PAYLOAD).await?;
                    reader.unblocked(PAYLOAD).await?;
                    samples.push(begun.elapsed());
                    poster.added().await?;
                }
                Ok(median(samples))
            })
        },
    )?;
    let target = Some(Target::AtMost(1.2));
    report.ratio(
        ("post_to_receive_p50_vs_redis", ""),
        "µs",
        target,
        (ours, theirs),
    );
    Ok(())
}
