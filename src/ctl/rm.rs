//! `rm`: ends and forgets watches.

use clap::Args;

use super::failure::Outcome;
use super::parse;
use super::session::{Session, answer};
use crate::proto::{RemoveWatchRequest, WatchRef};

pub(super) const EXAMPLES: &str = "Example:
  evloopctl rm build

What still runs is ended first: a process gets SIGTERM and, after a while, SIGKILL.";

/// Options of `rm`.
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// The watches, by name or id
    #[arg(required = true, value_parser = parse::watch_ref)]
    names: Vec<WatchRef>,
}

pub(super) async fn run(session: &Session, args: Rm) -> Outcome {
    let mut code = 0;
    for watch in args.names {
        let what = format!("rm {}", parse::watch_name(&watch));
        let request = RemoveWatchRequest {
            r#loop: session.loop_ref.clone(),
            watch: Some(watch),
            ..RemoveWatchRequest::default()
        };
        if let Err(failure) = answer(&what, session.watches().remove_watch(request).await) {
            code = failure.report();
        }
    }
    Ok(code)
}
