//! `stop`: ends processes, and waits for their ends.

use clap::Args;
use futures_util::future::join_all;

use super::complete;
use super::description;
use super::exit::no_process;
use super::explain;
use super::failure::{Failure, Outcome};
use super::lookup;
use super::output;
use super::parse;
use super::session::{Global, Session, answer};
use super::stop_all;
use super::units::counted;
use crate::proto::{StopProcessRequest, StopProcessResponse, WatchRef};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl stop build
  evloopctl stop --time 30s web worker
  evloopctl stop -s INT @7
  evloopctl stop --all            # all processes; all loops are closed
  evloopctl stop --all --force    # also of a daemon that does not answer

Each process and all of its descendants get the signal, and SIGKILL if one of them has not ended in time. A process \
that has ended can still be looked at; `evloopctl rm` ends and forgets processes. The exit code is \
0 if all processes have ended, also if they ended before.

`stop --all` ends the processes of all of your loops (for an administrator: of all loops) and closes the loops, and says so; the daemon stays. What has outlived its watch is ended, too. A process that calls it is ended with the others if it is one of them.

`stop --all --force` sends SIGKILL at once, without asking the daemon, which may be stopped or hang; then it has the loops closed, if the daemon answers within 10 seconds. It finds the daemon as the process that holds its listening socket, and ends only what is certainly its own: what descends from it; and of what its keeper has taken over, or a daemon without a keeper has, what began after the socket was bound, or is in a cgroup of the daemon. What may be somebody else's, such as an orphan in a container whose process 1 the keeper is, is named and left alone.";

pub(super) const USAGE_LINES: &str = "evloopctl stop [OPTIONS] <NAME|--id <ID>>...
       evloopctl stop [OPTIONS] --all [--force]";

/// Options of `stop`.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Stop {
    /// How long each process may take before it gets SIGKILL; a number alone is seconds
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    time: prost_types::Duration,
    /// The first signal, by name or number [default: the process's own `--stop-signal`, else SIGTERM]
    #[arg(short, long, value_parser = parse::signal, add = complete::signals())]
    signal: Option<String>,
    /// The names, or `@7` for the process with the id 7
    #[arg(value_name = "NAME", required_unless_present_any = ["watch_ids", "all"], value_parser = parse::watch_ref, add = complete::watches())]
    watches: Vec<WatchRef>,
    /// The id of a process, instead of its name; may be repeated
    #[arg(long = "id", value_name = "ID", value_parser = parse::watch_id, add = complete::ids())]
    watch_ids: Vec<WatchRef>,
    /// End all processes, and close all loops
    #[arg(long, conflicts_with_all = ["watches", "watch_ids"])]
    all: bool,
    /// With --all, kill at once what is certainly the daemon's, without asking it
    #[arg(long, requires = "all", conflicts_with_all = ["watches", "watch_ids"])]
    force: bool,
}

impl Stop {
    /// Returns whether it needs no answer of the daemon.
    pub(super) const fn is_forced(&self) -> bool {
        self.force
    }
}

/// Carries it out without a daemon that answers.
pub(super) async fn force(global: Global, verb: String, args: Stop) -> Outcome {
    let signal = args.signal.unwrap_or_default();
    stop_all::force(global, verb, &signal, args.time).await
}

pub(super) async fn run(session: &Session, args: Stop) -> Outcome {
    let signal = args.signal.unwrap_or_default();
    if args.all {
        return stop_all::run(session, &signal, args.time).await;
    }
    let processes = args.watches.into_iter().chain(args.watch_ids);
    let stops = processes.map(|process| stop(session, process, &signal, args.time));
    let mut code = 0;
    for stopped in join_all(stops).await {
        if let Err(failure) = stopped {
            code = explain::report(session, failure).await;
        }
    }
    Ok(code)
}

/// Ends a process with its descendants, if it has not ended.
pub(super) async fn stop(
    session: &Session,
    asked: WatchRef,
    signal: &str,
    time: prost_types::Duration,
) -> Result<(), Failure> {
    let found = lookup::watch(session, &asked).await?;
    let name = parse::watch_name(&asked);
    if !description::is_process(&found) {
        return Err(no_process(&name, &found));
    }
    if description::end(&found).is_some() {
        return Ok(());
    }
    let request = StopProcessRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(parse::by_id(found.watch_id)),
        grace: Some(time),
        signal: signal.to_owned(),
        ..StopProcessRequest::default()
    };
    match answer(session.processes().stop_process(request).await) {
        Ok(stopped) => told(&name, &stopped),
        // It was removed when it ended.
        Err(failure) if has_gone(&failure) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Says what has not ended.
fn told(name: &str, stopped: &StopProcessResponse) -> Result<(), Failure> {
    let pids = |pids: &[i32]| {
        let pids = pids.iter().map(i32::to_string);
        pids.collect::<Vec<_>>().join(", ")
    };
    if stopped.may_have_escaped > 0 {
        let how_many = counted(stopped.may_have_escaped.into(), "process", "processes");
        output::note(&format!(
            "{name} may have left {how_many} behind that cannot be told from others: pid {}",
            pids(&stopped.escaped_pids)
        ));
    }
    if stopped.survivor_pids.is_empty() {
        return Ok(());
    }
    let what = format!(
        "not all of it has ended, not even by SIGKILL: pid {}",
        pids(&stopped.survivor_pids)
    );
    let advice = "such a process waits for a device, or runs as another user";
    Err(Failure::new(name, what).advice(advice))
}

fn has_gone(failure: &Failure) -> bool {
    matches!(failure.reason.as_str(), "WATCH_CLOSED" | "WATCH_NOT_FOUND")
}
