//! `rm`: ends and removes watches.

use clap::Args;
use futures_util::{StreamExt as _, stream};

use super::complete;
use super::description;
use super::explain;
use super::failure::{Failure, Outcome};
use super::lookup;
use super::output;
use super::parse;
use super::session::{Session, answer};
use super::style::printable;
use crate::proto::{ListWatchesRequest, RemoveWatchRequest, WatchRef, WatchState};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl rm build test
  evloopctl rm @7                 # by id
  evloopctl rm --all              # all watches that have ended
  evloopctl rm --all --force      # everything on the loop

A watch that has not ended is ended first: a process gets SIGTERM, and SIGKILL if it does not end. \
The exit code is 0, or 1 if one of the watches could not be removed.";

pub(super) const USAGE_LINES: &str = "evloopctl rm [OPTIONS] <NAME|--id <ID>>...
       evloopctl rm --all [--force]";

/// The largest number of removals at the same time. Each may wait for a process to end.
const AT_ONCE: usize = 32;

/// Options of `rm`.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Rm {
    /// The names, or `@7` for the watch with the id 7
    #[arg(value_name = "NAME", required_unless_present_any = ["watch_ids", "all"], value_parser = parse::watch_ref, add = complete::watches())]
    watches: Vec<WatchRef>,
    /// The id of a watch, instead of its name; may be repeated
    #[arg(long = "id", value_name = "ID", value_parser = parse::watch_id, add = complete::ids())]
    watch_ids: Vec<WatchRef>,
    /// Remove all watches of the loop that have ended, of any kind, and print their names
    #[arg(short, long, conflicts_with_all = ["watches", "watch_ids"])]
    all: bool,
    /// With --all, remove also watches that have not ended; with names, ignore names that do not exist
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn run(session: &Session, args: Rm) -> Outcome {
    let force = args.force;
    let mut asked: Vec<_> = args.watches.into_iter().chain(args.watch_ids).collect();
    if args.all {
        let found = lookup::watches(session, ListWatchesRequest::default()).await?;
        let found = found
            .iter()
            .filter(|watch| force || watch.state() == WatchState::Closed);
        asked = found.map(description::watch_ref).collect();
    }
    let mut removals = stream::iter(asked)
        .map(|watch| async {
            let name = parse::watch_name(&watch);
            (name, remove(session, watch).await)
        })
        .buffered(AT_ONCE);
    let mut code = 0;
    while let Some((name, removed)) = removals.next().await {
        match removed {
            Ok(()) if args.all => output::line(&printable(&name))?,
            Ok(()) => {}
            Err(failure) if failure.reason == "WATCH_NOT_FOUND" && (force || args.all) => {}
            Err(failure) if failure.reason == "WATCH_NOT_FOUND" && name == "all" => {
                let advice = "`evloopctl rm --all` forgets all that has ended";
                let failure = failure.with_message("there is no `all`").advice(advice);
                code = failure.of_verb(&session.verb).report();
            }
            Err(failure) => code = explain::report(session, failure).await,
        }
    }
    Ok(code)
}

async fn remove(session: &Session, watch: WatchRef) -> Result<(), Failure> {
    let name = parse::watch_name(&watch);
    let request = RemoveWatchRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(watch),
        ..RemoveWatchRequest::default()
    };
    let removed = answer(session.watches().remove_watch(request).await);
    removed
        .map(drop)
        .map_err(|failure| match failure.reason.as_str() {
            "WATCH_NOT_FOUND" => failure,
            _ => failure.about(name),
        })
}
