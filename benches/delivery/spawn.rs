//! Children that end at once.
//!
//! Many: from AddWatch to Exited, compared with posix_spawn(3) and waitid(2) in a loop. Both sides
//! have the same number of children at a time.
//!
//! One after the other: from Run to Exited, compared with asyncio in a Python process.

use std::collections::VecDeque;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evloopd::proto::process_service_client::ProcessServiceClient;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::{
    AddWatchRequest, Event, EventKind, ExecCommand, ProcessSpec, RunRequest, Stdio as SpecStdio,
    WatchSpec, event, exited, process_spec, run_response, watch_spec,
};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::Outcome;
use crate::daemon::{BACKENDS, Daemon, Subscription};
use crate::latency::percentile;
use crate::report::{Report, Target, alternate};
use crate::yardstick::{Process, python};

const PROGRAM: &str = "/bin/true";
const CHILDREN: u32 = 500;
const IN_FLIGHT: u32 = 8;
/// Children that run one after the other.
const RUNS: usize = 200;
/// The time after which a round has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let channel = runtime.block_on(daemon.connect())?;
        let open = Subscription::open(channel.clone(), EventKind::Exited);
        let mut exits = runtime.block_on(open)?;
        let watches = WatchServiceClient::new(channel);
        let rates = alternate(
            || {
                let begun = Instant::now();
                let round = watched(&watches, &mut exits);
                runtime.block_on(async { tokio::time::timeout(PATIENCE, round).await })??;
                Ok(rate(begun))
            },
            || {
                let begun = Instant::now();
                spawned()?;
                Ok(rate(begun))
            },
        )?;
        report.ratio(
            ("spawn_vs_posix_spawn", backend),
            "children/s",
            Some(Target::AtLeast(0.85)),
            rates,
        );
    }
    Ok(())
}

pub(crate) fn run_one_by_one(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    for backend in BACKENDS {
        let daemon = Daemon::start_on(backend)?;
        let channel = runtime.block_on(daemon.connect())?;
        let processes = ProcessServiceClient::new(channel);
        let medians = alternate(
            || {
                let round = run_each(processes.clone());
                runtime.block_on(async { tokio::time::timeout(PATIENCE, round).await })?
            },
            || {
                let (script, runs) = (include_str!("children.py"), RUNS.to_string());
                let arguments = ["-c", script, PROGRAM, &runs];
                let mut process = Process::start_program(python().as_ref(), &arguments)?;
                Ok(process.line()?.parse()?)
            },
        )?;
        let name = ("spawn_to_exit_p50_vs_asyncio", backend);
        report.ratio(name, "µs", Some(Target::AtMost(0.9)), medians);
    }
    Ok(())
}

/// The median, in microseconds.
async fn run_each(mut processes: ProcessServiceClient<Channel>) -> Outcome<f64> {
    let mut samples = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let request = RunRequest {
            spec: Some(process()),
            finished_ttl: Some(prost_types::Duration::default()),
            ..RunRequest::default()
        };
        let begun = Instant::now();
        let mut told = processes.run(request).await?.into_inner();
        let exited = loop {
            let message = told.message().await?.and_then(|told| told.message);
            match message {
                Some(run_response::Message::Header(_)) => {}
                Some(run_response::Message::Batch(batch)) => {
                    let mut events = batch.events.into_iter();
                    let is_exit = |e: &Event| matches!(e.kind, Some(event::Kind::Exited(_)));
                    if let Some(exited) = events.find(is_exit) {
                        break exited;
                    }
                }
                other => return Err(format!("not a batch: {other:?}").into()),
            }
        };
        samples.push(begun.elapsed());
        check(exited)?;
        while told.message().await?.is_some() {}
    }
    samples.sort_unstable();
    Ok(percentile(&samples, 50))
}

pub(crate) fn rate(begun: Instant) -> f64 {
    f64::from(CHILDREN) / begun.elapsed().as_secs_f64()
}

/// Adds a child whenever one has exited.
pub(crate) async fn watched(
    watches: &WatchServiceClient<Channel>,
    exits: &mut Subscription,
) -> Outcome<()> {
    let mut calls = JoinSet::new();
    let add = |calls: &mut JoinSet<_>| {
        let mut watches = watches.clone();
        calls.spawn(async move { watches.add_watch(child()).await });
    };
    for _ in 0..IN_FLIGHT {
        add(&mut calls);
    }
    let (mut asked, mut exited) = (IN_FLIGHT, 0);
    while exited < CHILDREN {
        for event in exits.next().await?.events {
            check(event)?;
            exited += 1;
            if asked < CHILDREN {
                asked += 1;
                add(&mut calls);
            }
        }
        while let Some(answer) = calls.try_join_next() {
            answer??;
        }
    }
    while let Some(answer) = calls.join_next().await {
        answer??;
    }
    Ok(())
}

/// It has exited, as it should.
fn check(event: Event) -> Outcome<()> {
    match event.kind {
        Some(event::Kind::Exited(e)) if e.status == Some(exited::Status::Code(0)) => Ok(()),
        other => Err(format!("not an exit in order: {other:?}").into()),
    }
}

fn process() -> ProcessSpec {
    let null = SpecStdio::Null.into();
    ProcessSpec {
        command: Some(process_spec::Command::Exec(ExecCommand {
            argv: vec![PROGRAM.into()],
            ..ExecCommand::default()
        })),
        stdin: null,
        stdout: null,
        stderr: null,
        ..ProcessSpec::default()
    }
}

fn child() -> AddWatchRequest {
    AddWatchRequest {
        spec: Some(WatchSpec {
            spec: Some(watch_spec::Spec::Process(process())),
        }),
        finished_ttl: Some(prost_types::Duration::default()),
        ..AddWatchRequest::default()
    }
}

/// Waits for the oldest child whenever [`IN_FLIGHT`] of them run.
fn spawned() -> Outcome<()> {
    let mut running = VecDeque::new();
    for _ in 0..CHILDREN {
        if running.len() == usize::try_from(IN_FLIGHT)? {
            wait_oldest(&mut running)?;
        }
        let mut command = Command::new(PROGRAM);
        command.stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        running.push_back(command.spawn()?);
    }
    while !running.is_empty() {
        wait_oldest(&mut running)?;
    }
    Ok(())
}

fn wait_oldest(running: &mut VecDeque<Child>) -> Outcome<()> {
    let status = running.pop_front().map(|mut child| child.wait());
    match status.transpose()? {
        Some(status) if !status.success() => Err(format!("{PROGRAM}: {status}").into()),
        _ => Ok(()),
    }
}
