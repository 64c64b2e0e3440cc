//! The output of a child until a client has it, compared with a bare tonic stream of the same
//! messages, and with a tonic server that runs the child itself. The bare stream does not share the
//! CPUs with a child.

use std::time::Instant;

use bytes::Bytes;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::subscribe_request::Start;
use evloopd::proto::subscribe_response::Message;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::{
    AddWatchRequest, EventKind, ExecCommand, Filter, ProcessSpec, StartAt, Stdio, SubscribeRequest,
    SubscribeResponse, WatchSpec, event, process_spec, watch_spec,
};
use prost::Message as _;
use tokio::runtime::Runtime;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::daemon::{BACKENDS, Daemon};
use crate::grpc::{self, CHILD, REPLAY};
use crate::report::{Report, Side, Target, in_turns};
use crate::{Outcome, raw};

const BYTES: usize = 256 << 20;

/// Returns the target relative to the bare stream.
fn target_of(backend: &str) -> Option<Target> {
    match backend {
        "epoll" => Some(Target::AtLeast(0.8)),
        "io_uring" => Some(Target::AtLeast(0.9)),
        _ => None,
    }
}

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let mut daemons = Vec::new();
    let mut bare = Vec::new();
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let channel = runtime.block_on(daemon.connect())?;
        // The yardstick streams the same chunks as this backend makes.
        let messages = runtime.block_on(capture(channel.clone()))?;
        let server = grpc::start_with(&messages)?;
        bare.push((runtime.block_on(server.connect())?, server));
        daemons.push((channel, daemon));
    }
    let runs_it = grpc::start()?;
    let runner = runtime.block_on(runs_it.connect())?;
    let mut sides: Vec<Side<'_, f64>> = Vec::new();
    for ((channel, _), (bare, _)) in daemons.iter().zip(&bare) {
        sides.push(Box::new(|| {
            runtime.block_on(async {
                let begun = Instant::now();
                let mut stream = watched(channel.clone()).await?;
                child(channel.clone()).await?;
                receive(&mut stream, |_| {}).await?;
                Ok(rate(begun))
            })
        }));
        sides.push(Box::new(|| {
            runtime.block_on(async {
                let begun = Instant::now();
                let mut stream = raw::call(bare.clone(), REPLAY, Bytes::new()).await?;
                receive(&mut stream, |_| {}).await?;
                Ok(rate(begun))
            })
        }));
    }
    sides.push(Box::new(|| {
        runtime.block_on(async {
            let begun = Instant::now();
            let line = command().join(" ").into();
            let mut stream = raw::call(runner.clone(), CHILD, line).await?;
            let mut left = BYTES;
            while let Some(chunk) = stream.message().await? {
                left -= chunk.len();
            }
            if left > 0 {
                return Err("the child's output ended early".into());
            }
            Ok(rate(begun))
        })
    }));
    let mut taken = in_turns(sides)?;
    let by_itself = taken.pop().unwrap_or_default();
    let mut taken = taken.into_iter();
    for backend in BACKENDS {
        let rates = (
            taken.next().unwrap_or_default(),
            taken.next().unwrap_or_default(),
        );
        let over_itself = (rates.0.clone(), by_itself.clone());
        report.ratio(
            ("stdout_bytes_vs_tonic_child", backend),
            "MB/s",
            None,
            over_itself,
        );
        let target = target_of(backend);
        report.ratio(
            ("stdout_bytes_vs_raw_stream", backend),
            "MB/s",
            target,
            rates,
        );
    }
    Ok(())
}

pub(crate) fn rate(begun: Instant) -> f64 {
    let bytes = u32::try_from(BYTES).map_or(f64::NAN, f64::from);
    bytes / begun.elapsed().as_secs_f64() / 1e6
}

/// The command line of the child.
fn command() -> [String; 4] {
    ["head", "-c", &BYTES.to_string(), "/dev/zero"].map(str::to_owned)
}

/// Returns all messages of one child.
async fn capture(channel: Channel) -> Outcome<Vec<Bytes>> {
    let mut messages = Vec::new();
    let mut stream = watched(channel.clone()).await?;
    child(channel).await?;
    receive(&mut stream, |message| messages.push(message.clone())).await?;
    Ok(messages)
}

/// Subscribes to the Data of the caller's loop from now on, as a consumer, so that none is lost.
pub(crate) async fn watched(channel: Channel) -> Outcome<Streaming<Bytes>> {
    let request = SubscribeRequest {
        start: Some(Start::StartAt(StartAt::Now.into())),
        consumer: "bench".into(),
        auto_ack: true,
        filter: Some(Filter {
            kinds: vec![EventKind::Data.into()],
            ..Filter::default()
        }),
        max_batch_bytes: 256 * 1024,
        ..SubscribeRequest::default()
    };
    // The consumer is deleted first, so that it starts now and not where it acknowledged before.
    let delete = evloopd::proto::DeleteConsumerRequest {
        name: "bench".into(),
        ..Default::default()
    };
    let mut events = EventServiceClient::new(channel.clone());
    if let Err(status) = events.delete_consumer(delete).await
        && status.code() != tonic::Code::NotFound
    {
        return Err(status.into());
    }
    raw::subscribe(channel, &request).await
}

/// Starts the child.
pub(crate) async fn child(channel: Channel) -> Outcome<()> {
    let process = ProcessSpec {
        command: Some(process_spec::Command::Exec(ExecCommand {
            argv: command().into(),
            ..ExecCommand::default()
        })),
        stdin: Stdio::Null.into(),
        stdout: Stdio::Pipe.into(),
        stderr: Stdio::Null.into(),
        ..ProcessSpec::default()
    };
    let request = AddWatchRequest {
        spec: Some(WatchSpec {
            spec: Some(watch_spec::Spec::Process(process)),
        }),
        finished_ttl: Some(prost_types::Duration::default()),
        ..AddWatchRequest::default()
    };
    WatchServiceClient::new(channel).add_watch(request).await?;
    Ok(())
}

/// Decodes messages until all bytes have been received.
pub(crate) async fn receive(
    stream: &mut Streaming<Bytes>,
    mut each: impl FnMut(&Bytes),
) -> Outcome<()> {
    let mut left = BYTES;
    while let Some(message) = stream.message().await? {
        each(&message);
        match SubscribeResponse::decode(message)?.message {
            Some(Message::Header(_)) => {}
            Some(Message::Batch(batch)) if batch.gaps.is_empty() => {
                for event in batch.events {
                    if let Some(event::Kind::Data(data)) = event.kind {
                        left = left.checked_sub(data.data.len()).ok_or("too many bytes")?;
                    }
                }
                if left == 0 {
                    return Ok(());
                }
            }
            other => return Err(format!("not a batch without gaps: {other:?}").into()),
        }
    }
    Err("the stream ended".into())
}
