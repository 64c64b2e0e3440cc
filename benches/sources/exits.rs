//! Short children until all exits are known to the client: those of a daemon with a cgroup of its own
//! for each child and without, and those of supervisord.

use std::time::{Duration, Instant};

use evloopd::proto::admin_service_client::AdminServiceClient;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::{
    AddWatchRequest, BatchAddWatchesRequest, EventKind, ExecCommand, GetStatusRequest, ProcessSpec,
    Stdio, WatchSpec, batch_add_watches_result, event, exited, process_spec, watch_spec,
};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::Outcome;
use crate::daemon::{Daemon, Subscription};
use crate::report::{Report, Target, alternate};
use crate::source::BACKENDS;
use crate::yardstick::{Process, python};

const PROGRAM: &str = "/bin/true";
/// The children of a round.
const CHILDREN: u32 = 200;
/// The time after which a round has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon, and the stream of the exits of its children.
struct Ours {
    daemon: Daemon,
    watches: WatchServiceClient<Channel>,
    exits: Subscription,
}

impl Ours {
    async fn start(configuration: &str) -> Outcome<Self> {
        let daemon = Daemon::start_with(configuration)?;
        let channel = daemon.connect().await?;
        let exits = Subscription::open(channel.clone(), EventKind::Exited).await?;
        Ok(Self {
            daemon,
            watches: WatchServiceClient::new(channel),
            exits,
        })
    }

    /// Starts all children and waits for their exits; the seconds.
    async fn round(&mut self) -> Outcome<f64> {
        let begun = Instant::now();
        let requests = vec![child(); usize::try_from(CHILDREN)?];
        let request = BatchAddWatchesRequest {
            requests,
            ..BatchAddWatchesRequest::default()
        };
        let mut watches = self.watches.clone();
        let added = tokio::spawn(async move { watches.batch_add_watches(request).await });
        let mut left = CHILDREN;
        while left > 0 {
            for event in self.exits.next().await?.events {
                match event.kind {
                    Some(event::Kind::Exited(e)) if e.status == Some(exited::Status::Code(0)) => {
                        left -= 1;
                    }
                    other => return Err(format!("not an exit in order: {other:?}").into()),
                }
            }
        }
        let taken = begun.elapsed();
        for result in added.await??.into_inner().results {
            match result.result {
                Some(batch_add_watches_result::Result::Added(_)) => {}
                other => return Err(format!("not added: {other:?}").into()),
            }
        }
        Ok(taken.as_secs_f64())
    }
}

fn child() -> AddWatchRequest {
    let null = Stdio::Null.into();
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

fn rate(seconds: f64) -> f64 {
    f64::from(CHILDREN) / seconds
}

async fn within<T>(round: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::time::timeout(PATIENCE, round).await?
}

pub(crate) fn run_cgroups(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let with = Ours::start("version = 1\n[children]\ncgroups = \"auto\"\n");
    let without = Ours::start("version = 1\n[children]\ncgroups = \"off\"\n");
    let mut with = runtime.block_on(with)?;
    let mut without = runtime.block_on(without)?;
    let request = GetStatusRequest::default();
    let status = runtime.block_on(async {
        let channel = with.daemon.connect().await?;
        let answer = AdminServiceClient::new(channel).get_status(request).await?;
        Outcome::Ok(answer.into_inner())
    })?;
    if status.cgroups.is_empty() {
        eprintln!("  left out: {}", status.cgroups_missing);
        return Ok(());
    }
    let rates = alternate(
        || Ok(rate(runtime.block_on(within(with.round()))?)),
        || Ok(rate(runtime.block_on(within(without.round()))?)),
    )?;
    report.ratio(
        ("spawn_with_cgroup_vs_without", ""),
        "children/s",
        None,
        rates,
    );
    Ok(())
}

pub(crate) fn run_supervisord(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let at = directory.path().to_string_lossy().into_owned();
    let script = include_str!("supervisord.py");
    let children = CHILDREN.to_string();
    let arguments = ["-c", script, PROGRAM, &children, &at];
    let mut client = Process::start_program(python().as_ref(), &arguments)?;
    match &*client.line()? {
        "ready" => {}
        missing => {
            eprintln!("  left out: {missing}");
            return Ok(());
        }
    }
    for backend in BACKENDS {
        let configuration = format!("version = 1\n{}", Daemon::on(backend));
        let mut ours = runtime.block_on(Ours::start(&configuration))?;
        let rates = alternate(
            || Ok(rate(runtime.block_on(within(ours.round()))?)),
            || {
                client.tell("go")?;
                Ok(rate(client.line()?.parse()?))
            },
        )?;
        report.ratio(
            ("exit_events_vs_supervisord", backend),
            "exits/s",
            Some(Target::AtLeast(5.0)),
            rates,
        );
    }
    Ok(())
}
