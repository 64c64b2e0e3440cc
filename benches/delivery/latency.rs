//! The time from a write to a watched pipe until the client has the event, compared with the round
//! trip of a message to a bare gRPC server. One at a time.
//!
//! It is measured twice: on all CPUs, and with everything on one CPU. With several CPUs the
//! scheduler wakes each thread on a sleeping CPU if there is one. The time of such a wake-up
//! depends on the host: on virtual machines it is often longer than everything else, and differs
//! between rounds. An event needs one wake-up more than an echo, that of the loop's thread.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use evloopd::proto::EventKind;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::{BACKENDS, Daemon, Subscription};
use crate::grpc::{self, EchoStream};
use crate::pipes::pipes;
use crate::report::{Report, Target, alternate};

/// The latencies of one round, sorted.
type Samples = Vec<Duration>;

const SAMPLES: usize = 5000;
/// About the size of a batch with one event.
const ECHO_BYTES: usize = 64;

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let (ours, theirs) = measure(runtime, backend)?;
        // The first backend of each class has a target.
        let target = |most| matches!(backend, "epoll" | "io_uring").then_some(most);
        let p50 = ("latency_p50_vs_grpc_echo", 50, target(Target::AtMost(1.15)));
        let p99 = ("latency_p99_vs_grpc_echo", 99, target(Target::AtMost(1.4)));
        add(report, backend, [p50, p99], &ours, &theirs);
    }
    let one_cpu = OneCpu::pin()?;
    for backend in BACKENDS {
        let (ours, theirs) = measure(runtime, backend)?;
        let p50 = ("latency_p50_one_cpu", 50, None);
        let p99 = ("latency_p99_one_cpu", 99, None);
        add(report, backend, [p50, p99], &ours, &theirs);
    }
    drop(one_cpu);
    Ok(())
}

fn measure(runtime: &Runtime, backend: &str) -> Outcome<(Vec<Samples>, Vec<Samples>)> {
    let daemon = Daemon::start_on(backend)?;
    let yardstick = grpc::start()?;
    let (readers, writers) = pipes(1)?;
    let mut events = runtime.block_on(async {
        let channel = daemon.connect().await?;
        daemon.watch_pipes(channel.clone(), &readers).await?;
        Subscription::open(channel, EventKind::Data).await
    })?;
    drop(readers);
    let mut echo =
        runtime.block_on(async { EchoStream::open(yardstick.connect().await?).await })?;
    alternate(
        || runtime.block_on(watched(&writers, &mut events)),
        || runtime.block_on(echoed(&mut echo)),
    )
}

fn add(
    report: &mut Report,
    backend: &'static str,
    results: [(&'static str, usize, Option<Target>); 2],
    ours: &[Samples],
    theirs: &[Samples],
) {
    for (name, percent, target) in results {
        let of = |rounds: &[Samples]| {
            let micros = rounds.iter().map(|samples| percentile(samples, percent));
            micros.collect()
        };
        report.ratio((name, backend), "µs", target, (of(ours), of(theirs)));
    }
}

/// Keeps this thread, and the processes that it starts, on one CPU until dropped.
struct OneCpu(CpuSet);

impl OneCpu {
    fn pin() -> Outcome<Self> {
        let all = sched_getaffinity(None)?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu());
        sched_setaffinity(None, &one)?;
        Ok(Self(all))
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        // This cannot fail: the same CPUs were allowed before.
        let _ = sched_setaffinity(None, &self.0);
    }
}

async fn watched(writers: &[OwnedFd], events: &mut Subscription) -> Outcome<Samples> {
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

async fn echoed(echo: &mut EchoStream) -> Outcome<Samples> {
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

/// Returns a percentile in microseconds. The samples must be sorted.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let sample = sorted.get(sorted.len() * percent / 100);
    sample.map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e6)
}
