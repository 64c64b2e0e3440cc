//! From a write to a watched pipe until the client holds the event, against a message's way
//! to a bare gRPC server and back. One at a time.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use evloopd::proto::EventKind;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::{Daemon, Subscription};
use crate::grpc::{EchoStream, Process};
use crate::report::{Report, Target, alternate};
use crate::throughput::pipes;

const SAMPLES: usize = 5000;
/// About the bytes of a batch with one event.
const ECHO_BYTES: usize = 64;

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let daemon = Daemon::start()?;
    let yardstick = Process::start()?;
    let (readers, writers) = pipes(1)?;
    let mut events = runtime.block_on(async {
        let channel = daemon.connect().await?;
        daemon.watch_pipes(channel.clone(), &readers).await?;
        Subscription::open(channel, EventKind::Data).await
    })?;
    drop(readers);
    let mut echo =
        runtime.block_on(async { EchoStream::open(yardstick.connect().await?).await })?;

    let (ours, theirs) = alternate(
        || runtime.block_on(watched(&writers, &mut events)),
        || runtime.block_on(echoed(&mut echo)),
    )?;
    for (name, percent, target) in [
        ("latency_p50_vs_grpc_echo", 50, Target::AtMost(1.3)),
        ("latency_p99_vs_grpc_echo", 99, Target::AtMost(1.6)),
    ] {
        let of = |rounds: &[Vec<Duration>]| {
            let micros = rounds.iter().map(|samples| percentile(samples, percent));
            micros.collect()
        };
        report.ratio(name, "µs", target, (of(&ours), of(&theirs)));
    }
    Ok(())
}

async fn watched(writers: &[OwnedFd], events: &mut Subscription) -> Outcome<Vec<Duration>> {
    let mut samples = Vec::with_capacity(SAMPLES);
    for writer in writers.iter().cycle().take(SAMPLES) {
        let begun = Instant::now();
        rustix::io::write(writer, b"x")?;
        events.next().await?;
        samples.push(begun.elapsed());
    }
    samples.sort_unstable();
    Ok(samples)
}

async fn echoed(echo: &mut EchoStream) -> Outcome<Vec<Duration>> {
    let message = Bytes::from_static(&[b'x'; ECHO_BYTES]);
    let mut samples = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let begun = Instant::now();
        echo.round_trip(message.clone()).await?;
        samples.push(begun.elapsed());
    }
    samples.sort_unstable();
    Ok(samples)
}

/// In microseconds; the samples are sorted.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let sample = sorted.get(sorted.len() * percent / 100);
    sample.map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e6)
}
