//! What it costs that a loop survives a crash of the daemon: a loop that does, and one that does not,
//! each on a daemon of the same build with a keeper. And how long the next life takes to answer.
//!
//! `cargo bench --bench survival [-- CASE…]`; the output is that of `delivery`.

// The cases of another benchmark, of which this one uses parts.
#![allow(dead_code)]

use std::time::Instant;

use common::{Case, Outcome, daemon, raw, report, spent, yardstick};
use daemon::{BACKENDS, Daemon, Subscription};
use evloopd::proto::EventKind;
use evloopd::proto::watch_service_client::WatchServiceClient;
use report::{Report, Side, Target, in_turns};
use tokio::runtime::Runtime;

#[path = "../common/mod.rs"]
mod common;
#[path = "../delivery/grpc.rs"]
mod grpc;
#[path = "../delivery/latency.rs"]
mod latency;
#[path = "../delivery/peers.rs"]
mod peers;
#[path = "../delivery/pipes.rs"]
mod pipes;
mod recover;
#[path = "../delivery/spawn.rs"]
mod spawn;
#[path = "../delivery/stdout.rs"]
mod stdout;
#[path = "../delivery/throughput.rs"]
mod throughput;

const CASES: [(&str, Case); 5] = [
    ("throughput_crash_vs_none", throughput_case),
    ("stdout_bytes_crash_vs_none", stdout_case),
    ("spawn_crash_vs_none", spawn_case),
    ("recover_ms", recover::run),
    ("keeper_private_kib", recover::run_keeper),
];

/// A little more than the most descriptors that the daemon of any case has open.
const OPEN_FILES: u64 = 19_000;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    common::run("survival", &CASES, &arguments, OPEN_FILES)
}

/// Starts a daemon whose loops survive a crash, and one whose loops do not.
fn both(backend: &str) -> Outcome<[Daemon; 2]> {
    let with = |level| {
        let policy = Daemon::on(backend);
        Daemon::start_kept(&format!("version = 1\n{policy}survives = \"{level}\"\n"))
    };
    Ok([with("crash")?, with("none")?])
}

/// Reports what both took.
fn compare(
    report: &mut Report,
    (name, backend): (&'static str, &'static str),
    unit: &'static str,
    target: f64,
    sides: Vec<Side<'_, f64>>,
) -> Outcome<()> {
    let mut taken = in_turns(sides)?.into_iter();
    let rates = (
        taken.next().unwrap_or_default(),
        taken.next().unwrap_or_default(),
    );
    report.ratio((name, backend), unit, Some(Target::AtLeast(target)), rates);
    Ok(())
}

fn throughput_case(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let daemons = both(backend)?;
        let mut sides: Vec<Side<'_, f64>> = Vec::new();
        for daemon in &daemons {
            let mut remote = runtime.block_on(throughput::Remote::new(daemon, pipes::PIPES))?;
            sides.push(Box::new(move || remote.round(runtime, pipes::EVENTS)));
        }
        let name = ("throughput_crash_vs_none", backend);
        compare(report, name, "events/ms", 0.95, sides)?;
    }
    Ok(())
}

fn stdout_case(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let daemons = both(backend)?;
        let mut sides: Vec<Side<'_, f64>> = Vec::new();
        for daemon in &daemons {
            let channel = runtime.block_on(daemon.connect())?;
            sides.push(Box::new(move || {
                runtime.block_on(async {
                    let begun = Instant::now();
                    let mut stream = stdout::watched(channel.clone()).await?;
                    stdout::child(channel.clone()).await?;
                    stdout::receive(&mut stream, |_| {}).await?;
                    Ok(stdout::rate(begun))
                })
            }));
        }
        let name = ("stdout_bytes_crash_vs_none", backend);
        compare(report, name, "MB/s", 0.85, sides)?;
    }
    Ok(())
}

fn spawn_case(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let daemons = both(backend)?;
        let mut sides: Vec<Side<'_, f64>> = Vec::new();
        for daemon in &daemons {
            let channel = runtime.block_on(daemon.connect())?;
            let open = Subscription::open(channel.clone(), EventKind::Exited);
            let mut exits = runtime.block_on(open)?;
            let watches = WatchServiceClient::new(channel);
            sides.push(Box::new(move || {
                let begun = Instant::now();
                runtime.block_on(spawn::watched(&watches, &mut exits))?;
                Ok(spawn::rate(begun))
            }));
        }
        let name = ("spawn_crash_vs_none", backend);
        compare(report, name, "children/s", 0.9, sides)?;
    }
    Ok(())
}
