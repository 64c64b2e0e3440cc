//! `attach`: joins a process that exists.

use clap::Args;

use super::attached::{Foreground, Forget, attached};
use super::failure::Outcome;
use super::leaving::OnHangup;
use super::lookup;
use super::names::OneWatch;
use super::session::Session;
use crate::proto::{OnGap, RunRequest};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl attach build
  evloopctl attach -n build            # only look
  evloopctl attach @7                  # by id

All of its output, from the start; your input and signals go to it. Ctrl-C twice within a \
second leaves, and so does a closed pipe or a lost terminal: the process runs on. The exit code \
is the process's (128 + N if signal N ended it; by SIGINT evloopctl ends by SIGINT itself), \
also of one that is finished, and also if some of its output is gone, which is said on stderr; \
125 if evloopctl failed.";

/// Options of `attach`.
#[derive(Debug, Args)]
pub(super) struct Attach {
    #[command(flatten)]
    name: OneWatch,
    /// Only look: leave its stdin alone
    #[arg(short, long)]
    no_stdin: bool,
}

pub(super) async fn run(session: &Session, args: Attach) -> Outcome {
    let request = RunRequest {
        r#loop: session.loop_ref.clone(),
        name: lookup::process(session, &args.name.reference()).await?.name,
        on_gap: OnGap::Skip.into(),
        ..RunRequest::default()
    };
    let how = Foreground {
        input: !args.no_stdin,
        on_hangup: OnHangup::Keep,
        forget: Forget::Never,
    };
    attached(session, request, how).await
}
