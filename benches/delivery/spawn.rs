//! Many short children: from AddWatch to Exited, compared with posix_spawn(3) and waitid(2) in a
//! loop. Both sides have the same number of children at a time.

use std::collections::VecDeque;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::{
    AddWatchRequest, EventKind, ExecCommand, ProcessSpec, Stdio as SpecStdio, WatchSpec, event,
    exited, process_spec, watch_spec,
};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::Outcome;
use crate::daemon::{BACKENDS, Daemon, Subscription};
use crate::report::{Report, Target, alternate};

const PROGRAM: &str = "/bin/true";
const CHILDREN: u32 = 500;
const IN_FLIGHT: u32 = 8;
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
            Some(Target::AtLeast(0.8)),
            rates,
        );
    }
    Ok(())
}

fn rate(begun: Instant) -> f64 {
    f64::from(CHILDREN) / begun.elapsed().as_secs_f64()
}

/// Adds a child whenever one has exited.
async fn watched(watches: &WatchServiceClient<Channel>, exits: &mut Subscription) -> Outcome<()> {
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
            match event.kind {
                Some(event::Kind::Exited(e)) if e.status == Some(exited::Status::Code(0)) => {}
                other => return Err(format!("not an exit with code 0: {other:?}").into()),
            }
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

fn child() -> AddWatchRequest {
    let null = SpecStdio::Null.into();
    let process = ProcessSpec {
        command: Some(process_spec::Command::Exec(ExecCommand {
            argv: vec![PROGRAM.into()],
            ..ExecCommand::default()
        })),
        stdin: null,
        stdout: null,
        stderr: null,
        ..ProcessSpec::default()
    };
    AddWatchRequest {
        spec: Some(WatchSpec {
            spec: Some(watch_spec::Spec::Process(process)),
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
