//! `stop`: ends processes, and waits for their ends.

use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::complete;
use super::description;
use super::exit::no_process;
use super::explain;
use super::failure::{Failure, Outcome};
use super::feed::{Feed, Item, cut_short, end_feed};
use super::kill::send;
use super::lookup;
use super::names::Watches;
use super::parse;
use super::session::Session;
use crate::proto::{SignalTarget, WatchRef};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl stop build
  evloopctl stop --time 30s web worker
  evloopctl stop -s INT @7

Each process group gets the signal, and SIGKILL if the process has not ended in time. A process \
that has ended can still be looked at; `evloopctl rm` ends and forgets processes. The exit code is \
0 if all processes have ended, also if they ended before.";

/// How long a process may take to end after SIGKILL. Only a debugger or a device can delay its end.
const KILLED: Duration = Duration::from_secs(5);

/// Options of `stop`.
#[derive(Debug, Args)]
pub(super) struct Stop {
    /// How long each process may take before it gets SIGKILL; a number alone is seconds
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    time: prost_types::Duration,
    /// The first signal, by name or number
    #[arg(short, long, default_value = "SIGTERM", value_parser = parse::signal, add = complete::signals())]
    signal: String,
    #[command(flatten)]
    processes: Watches,
}

pub(super) async fn run(session: &Session, args: Stop) -> Outcome {
    let time = Duration::try_from(args.time).unwrap_or_default();
    let processes = args.processes.references();
    let stops = processes.map(|process| stop(session, process, &args.signal, time));
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
    time: Duration,
) -> Result<(), Failure> {
    let found = lookup::watch(session, &asked).await?;
    let name = parse::watch_name(&asked);
    if !description::is_process(&found) {
        return Err(no_process(&name, &found));
    }
    if description::end(&found).is_some() {
        return Ok(());
    }
    let id = parse::by_id(found.watch_id);
    let ids = vec![found.watch_id];
    // A stopped loop delivers no events, so each heartbeat makes `ended` look at the process.
    let feed = end_feed(session, session.loop_ref.clone(), &found, ids);
    let mut feed = feed.with_heartbeat();
    // A stopped process acts on the signal only after SIGCONT.
    for (signal, time) in [(signal, time), ("SIGKILL", KILLED)] {
        for signal in [signal, "SIGCONT"] {
            match send(session, id.clone(), signal, SignalTarget::Group).await {
                Err(failure) if has_gone(&failure) => return Ok(()),
                // The process has ended, but the event of its end has not been delivered yet.
                Err(failure) if failure.reason == "WRONG_STATE" => {}
                sent => sent?,
            }
        }
        if let Ok(ended) = timeout(time, ended(session, &mut feed, &id)).await {
            return ended;
        }
        if has_ended(session, &id).await? {
            return Ok(());
        }
    }
    Err(
        Failure::new(name, "the process does not end, not even by SIGKILL").advice(
            "it may wait for a device, or a debugger may hold it; `evloopctl show` shows its pid",
        ),
    )
}

fn has_gone(failure: &Failure) -> bool {
    matches!(failure.reason.as_str(), "WATCH_CLOSED" | "WATCH_NOT_FOUND")
}

/// Waits for the end of the process. Cancelling this loses nothing.
async fn ended(session: &Session, feed: &mut Feed, id: &WatchRef) -> Result<(), Failure> {
    loop {
        match feed.next().await? {
            Item::Header(_) => {}
            Item::Batch(_) if has_ended(session, id).await? => return Ok(()),
            Item::Batch(_) => {}
            Item::Goodbye(goodbye) => return cut_short(&goodbye).map_or(Ok(()), Err),
        }
    }
}

/// Asks the daemon whether the process has ended. A process that the daemon no longer knows has ended.
async fn has_ended(session: &Session, id: &WatchRef) -> Result<bool, Failure> {
    match lookup::watch(session, id).await {
        Ok(found) => Ok(description::end(&found).is_some()),
        Err(failure) if has_gone(&failure) => Ok(true),
        Err(failure) => Err(failure),
    }
}
