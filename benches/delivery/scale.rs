//! The cost of an idle daemon, and of very many watches, loops and timers.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use evloopd::proto::admin_service_client::AdminServiceClient;
use evloopd::proto::loop_service_client::LoopServiceClient;
use evloopd::proto::policy_service_client::PolicyServiceClient;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::{
    EventKind, GetLoopRequest, GetServerInfoRequest, NewEventLoopRequest, RemoveWatchRequest,
    TimerSpec, WatchRef, event, timer_spec, watch_ref, watch_spec,
};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::Outcome;
use crate::daemon::{Daemon, Subscription, add_watches};
use crate::pipes::{pipes, rate};
use crate::report::{Report, Target, alternate, p99_micros};
use crate::throughput::Remote;

/// The number of daemons whose memory and start are measured.
const STARTS: usize = 5;
const WATCHES: u32 = 10_000;
const FIRST: usize = 2048;

/// The number of pipes with events, beside the idle ones.
const BUSY: usize = 100;
const FEW: usize = 100;
const MANY: usize = 15_000;
/// The number of events in a round.
const EVENTS: usize = 200 * BUSY;

const LOOPS: u32 = 500;

const TIMERS: u32 = 1_000_000;
/// The number of timers that fire among them, one each millisecond.
const FIRING: u32 = 500;
/// The number of idle timers that are removed, and of removals in flight.
const CANCELLED: u64 = 20_000;
const CANCELLERS: usize = 64;

/// Measures a start, the memory after a first call, and that of many watches on the client's
/// descriptors.
pub(crate) fn run_footprint(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let mut idle = Vec::new();
    let mut per_watch = Vec::new();
    let mut start = Vec::new();
    for _ in 0..STARTS {
        let daemon = Daemon::start()?;
        start.push(daemon.start.as_secs_f64() * 1000.0);
        let (before, after) = runtime.block_on(async {
            let channel = daemon.connect().await?;
            let mut admin = AdminServiceClient::new(channel.clone());
            admin.get_server_info(GetServerInfoRequest {}).await?;
            idle.push(kib(daemon.resident()?)? / 1024.0);
            // The first watches are not counted: they make buffers grow that later ones use too.
            let first = idle_fds(&daemon, channel.clone(), FIRST).await?;
            let before = daemon.resident()?;
            let rest = idle_fds(&daemon, channel, usize::try_from(WATCHES)?).await?;
            let after = daemon.resident()?;
            drop((first, rest));
            Ok::<_, crate::Failure>((before, after))
        })?;
        per_watch.push(kib(after.saturating_sub(before))? * 1024.0 / f64::from(WATCHES));
    }
    report.figure(("idle_rss_mib", ""), Some(Target::AtMost(12.0)), idle);
    let target = Some(Target::AtMost(450.0));
    report.figure(("rss_per_watch_bytes", ""), target, per_watch);
    report.figure(("start_ms", ""), None, start);
    Ok(())
}

fn kib(bytes: u64) -> Outcome<f64> {
    Ok(f64::from(u32::try_from(bytes / 1024)?))
}

/// Adds that many readers that never become ready.
async fn idle_fds(daemon: &Daemon, channel: Channel, count: usize) -> Outcome<Idle> {
    let (mut readers, writers) = pipes(1)?;
    let reader = readers.pop().ok_or("no pipe")?;
    daemon.watch_readable(channel, &reader, count).await?;
    Ok(Idle { _writers: writers })
}

/// The writing ends of the idle pipes. While they are open, no reader hangs up.
struct Idle {
    _writers: Vec<OwnedFd>,
}

/// Measures the cost of an event beside very many idle watches, divided by that beside few.
pub(crate) fn run_fds(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for (backend, many, target) in [
        ("epoll", MANY, Some(Target::AtMost(1.2))),
        ("io_uring", MANY, Some(Target::AtMost(1.2))),
        ("poll", MANY, None),
        // select(2) watches no more than 1024 descriptors.
        ("select", 800, None),
    ] {
        let mut daemons = Vec::new();
        for count in [many, FEW] {
            let daemon = Daemon::start_on(backend)?;
            let busy = runtime.block_on(async {
                let idle = idle_fds(&daemon, daemon.connect().await?, count).await?;
                Ok::<_, crate::Failure>((Remote::new(&daemon, BUSY).await?, idle))
            })?;
            daemons.push((busy, daemon));
        }
        let (crowd, few) = daemons.split_at_mut(1);
        let cost =
            |(busy, _): &mut ((Remote, Idle), Daemon)| Ok(1e6 / busy.0.round(runtime, EVENTS)?);
        let costs = alternate(|| cost(&mut crowd[0]), || cost(&mut few[0]))?;
        report.ratio(("scale_fds", backend), "ns/event", target, costs);
    }
    Ok(())
}

/// Measures the memory of each of very many idle loops, and whether they slow down another loop.
pub(crate) fn run_loops(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in ["epoll", "io_uring"] {
        let config = format!(
            "version = 1\n[limits]\nloops = {}\n{}",
            LOOPS + 1,
            Daemon::on(backend)
        );
        let alone = Daemon::start_with(&config)?;
        let among = Daemon::start_with(&config)?;
        let mut one = runtime.block_on(Remote::new(&alone, BUSY))?;
        let mut hot = runtime.block_on(Remote::new(&among, BUSY))?;
        let before = among.resident()?;
        let channel = runtime.block_on(among.connect())?;
        runtime.block_on(new_loops(channel))?;
        let grown = among.resident()?.saturating_sub(before);
        let target = Some(Target::AtMost(96.0));
        let each = kib(grown)? / f64::from(LOOPS);
        report.figure(("rss_per_loop_kib", backend), target, vec![each]);
        let rates = alternate(
            || hot.round(runtime, 5 * EVENTS),
            || one.round(runtime, 5 * EVENTS),
        )?;
        let target = Some(Target::AtLeast(0.9));
        report.ratio(("hot_among_500", backend), "events/ms", target, rates);
    }
    Ok(())
}

async fn new_loops(channel: Channel) -> Outcome<()> {
    let mut policies = PolicyServiceClient::new(channel);
    for number in 0..LOOPS {
        let request = NewEventLoopRequest {
            name: format!("idle-{number}"),
            ..NewEventLoopRequest::default()
        };
        policies.new_event_loop(request).await?;
    }
    Ok(())
}

/// Measures a million timers on one loop.
pub(crate) fn run_timers(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in ["epoll", "io_uring"] {
        // Every timer reserves room for its events.
        let config = format!(
            "version = 1\n[limits]\nwatches = 1100000\nmemory = \"8GiB\"\n{}\
             max_watches = 1100000\njournal_events = 10000000\njournal_bytes = \"6GiB\"\n",
            Daemon::on(backend)
        );
        let daemon = Daemon::start_with(&config)?;
        let channel = runtime.block_on(daemon.connect())?;
        let mut fired = runtime.block_on(async {
            // The first timer makes the loop, and the buffers that later ones use too.
            add_watches(channel.clone(), [timer(Duration::from_secs(7200))]).await?;
            Subscription::open(channel.clone(), EventKind::TimerFired).await
        })?;
        let journal = runtime.block_on(journal_bytes(channel.clone()))?;
        let before = daemon.resident()?;
        let begun = Instant::now();
        let idle = (0..TIMERS).map(|_| timer(Duration::from_secs(7200)));
        runtime.block_on(add_watches(channel.clone(), idle))?;
        let rate = rate(usize::try_from(TIMERS)?, begun);
        report.figure(("timers_armed_per_ms", backend), None, vec![rate]);
        let grown = daemon.resident()?.saturating_sub(before);
        let journal = runtime.block_on(journal_bytes(channel.clone()))? - journal;
        let each = |bytes: u64| Ok::<_, crate::Failure>(kib(bytes)? * 1024.0 / f64::from(TIMERS));
        report.figure(
            ("rss_per_timer_bytes", backend),
            Some(Target::AtMost(200.0)),
            vec![each(grown.saturating_sub(journal))?],
        );
        report.figure(
            ("journal_per_timer_bytes", backend),
            None,
            vec![each(journal)?],
        );
        let late = alternate(
            || runtime.block_on(lateness(channel.clone(), &mut fired)),
            || Ok(slept_late()),
        )?;
        let target = Some(Target::AtMost(1.5));
        report.ratio(("timer_late_p99_vs_nanosleep", backend), "µs", target, late);
        let rate = runtime.block_on(cancel(channel))?;
        report.figure(("timers_cancelled_per_ms", backend), None, vec![rate]);
    }
    Ok(())
}

fn timer(after: Duration) -> watch_spec::Spec {
    watch_spec::Spec::Timer(TimerSpec {
        schedule: prost_types::Duration::try_from(after)
            .ok()
            .map(timer_spec::Schedule::After),
        ..TimerSpec::default()
    })
}

/// Returns the size of the journal of the caller's loop, which does not count as memory of timers.
async fn journal_bytes(channel: Channel) -> Outcome<u64> {
    let answer = LoopServiceClient::new(channel)
        .get_loop(GetLoopRequest::default())
        .await?;
    let status = answer.into_inner().r#loop.and_then(|l| l.journal);
    Ok(status.ok_or("a loop without its journal")?.bytes)
}

/// Returns the 99th percentile of the lateness of the firing timers, in µs.
async fn lateness(channel: Channel, fired: &mut Subscription) -> Outcome<f64> {
    let soon = (1..=FIRING).map(|n| timer(Duration::from_millis(100 + u64::from(n))));
    add_watches(channel, soon).await?;
    let mut late = Vec::new();
    while late.len() < usize::try_from(FIRING)? {
        for event in fired.next().await?.events {
            if let Some(event::Kind::TimerFired(fired)) = event.kind {
                late.push(fired.late_ns);
            }
        }
    }
    Ok(p99_micros(late))
}

/// Returns the same for a thread that sleeps.
fn slept_late() -> f64 {
    let tick = Duration::from_millis(1);
    let late = (0..FIRING).map(|_| {
        let begun = Instant::now();
        std::thread::sleep(tick);
        let late = begun.elapsed().saturating_sub(tick);
        u64::try_from(late.as_nanos()).unwrap_or(u64::MAX)
    });
    p99_micros(late.collect())
}

/// Removes some of the idle timers, many at a time, and returns the rate per millisecond.
async fn cancel(channel: Channel) -> Outcome<f64> {
    let begun = Instant::now();
    let mut calls = JoinSet::new();
    for first in (2..).take(CANCELLERS) {
        let mut watches = WatchServiceClient::new(channel.clone());
        calls.spawn(async move {
            // Watch 1 is the timer that was added before all others.
            for id in (first..2 + CANCELLED).step_by(CANCELLERS) {
                let request = RemoveWatchRequest {
                    watch: Some(WatchRef {
                        r#ref: Some(watch_ref::Ref::WatchId(id)),
                    }),
                    ..RemoveWatchRequest::default()
                };
                watches.remove_watch(request).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(rate(usize::try_from(CANCELLED)?, begun))
}
