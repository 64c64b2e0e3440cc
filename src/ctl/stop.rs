//! `stop`: ends processes, and waits for their ends.

use clap::Args;
use futures_util::future::join_all;

use super::complete;
use super::description;
use super::exit::no_process;
use super::explain;
use super::failure::{Failure, Outcome};
use super::lookup;
use super::names::Watches;
use super::output;
use super::parse;
use super::session::{Session, answer};
use super::units::counted;
use crate::proto::{StopProcessRequest, StopProcessResponse, WatchRef};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl stop build
  evloopctl stop --time 30s web worker
  evloopctl stop -s INT @7

Each process and all of its descendants get the signal, and SIGKILL if one of them has not ended in time. A process \
that has ended can still be looked at; `evloopctl rm` ends and forgets processes. The exit code is \
0 if all processes have ended, also if they ended before.";

/// Options of `stop`.
#[derive(Debug, Args)]
pub(super) struct Stop {
    /// How long each process may take before it gets SIGKILL; a number alone is seconds
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    time: prost_types::Duration,
    /// The first signal, by name or number [default: the process's own `--stop-signal`, else SIGTERM]
    #[arg(short, long, value_parser = parse::signal, add = complete::signals())]
    signal: Option<String>,
    #[command(flatten)]
    processes: Watches,
}

pub(super) async fn run(session: &Session, args: Stop) -> Outcome {
    let signal = args.signal.unwrap_or_default();
    let processes = args.processes.references();
    let stops = processes.map(|process| stop(session, process, &signal, args.time));
    let mut code = 0;
    for stopped in join_all(stops).await {
        if let Err(failure) = stopped {
            code = explain::report(session, failure).await;
        }
    }
    Ok(code)
}

async fn stop(
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
