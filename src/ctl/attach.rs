//! `attach`: joins a process that exists.

use clap::Args;

use super::attached::{attached, name_of};
use super::failure::Outcome;
use super::names::OneWatch;
use super::session::Session;
use crate::proto::{OnGap, RunRequest};

pub(super) const EXAMPLES: &str = "Example:
  evloopctl attach build

All of its output, from the start; your input and signals go to it. The exit code is
the process's, also of one that is finished.";

/// Options of `attach`.
#[derive(Debug, Args)]
pub(super) struct Attach {
    #[command(flatten)]
    name: OneWatch,
    /// Only look: leave its stdin alone
    #[arg(long)]
    no_stdin: bool,
}

pub(super) async fn run(session: &Session, args: Attach) -> Outcome {
    let request = RunRequest {
        r#loop: session.loop_ref.clone(),
        name: name_of(session, &args.name.reference()).await?,
        on_gap: OnGap::Skip.into(),
        ..RunRequest::default()
    };
    attached(session, request, !args.no_stdin).await
}
