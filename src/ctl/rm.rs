//! `rm`: ends and forgets watches.

use clap::Args;

use super::failure::Outcome;
use super::names::Watches;
use super::parse;
use super::session::{Session, answer};
use crate::proto::RemoveWatchRequest;

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl rm build test
  evloopctl rm @7                 # by id

What still runs is ended first: a process gets SIGTERM and, after a while, SIGKILL. The
exit code is 0, or 1 if one of them could not be removed.";

/// Options of `rm`.
#[derive(Debug, Args)]
pub(super) struct Rm {
    #[command(flatten)]
    watches: Watches,
}

pub(super) async fn run(session: &Session, args: Rm) -> Outcome {
    let mut code = 0;
    for watch in args.watches.references() {
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
