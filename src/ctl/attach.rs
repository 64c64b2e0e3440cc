//! `attach`: joins a process that was started before.

use clap::Args;

use super::attached::{Foreground, Forget, attached};
use super::failure::Outcome;
use super::leaving::OnHangup;
use super::lookup;
use super::names::OneWatch;
use super::session::Session;
use super::terminal::{self, DetachKeys};
use crate::proto::{OnGap, RunRequest};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl attach build
  evloopctl attach -n build            # only watch its output
  evloopctl attach --read-only edit    # only look, without keys or size
  evloopctl attach @7                  # by id

It prints all output of the process from the start, and passes your input and signals on to it. \
A process with a terminal is shown as its screen is now, and gets your keys; Ctrl-P Ctrl-Q leaves, \
and so does Ctrl-C with --read-only, by which no key reaches it. \
Ctrl-C twice within a second leaves the process, and so does a closed pipe or terminal: the \
process runs on. The exit code is the process's own, also if it ended before: 128 + N if signal N \
ended it; if that was SIGINT, evloopctl ends by SIGINT too. If some output is gone, stderr says so \
and the exit code is still the process's. It is 125 if evloopctl failed.";

/// Options of `attach`.
#[derive(Debug, Args)]
pub(super) struct Attach {
    #[command(flatten)]
    name: OneWatch,
    /// Pass no input on to its stdin
    #[arg(short, long, visible_alias = "read-only")]
    no_stdin: bool,
    /// The keys that leave the terminal of a process, such as `ctrl-a,d`; empty: none do
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
}

pub(super) async fn run(session: &Session, args: Attach) -> Outcome {
    let how = Foreground {
        input: !args.no_stdin,
        on_hangup: OnHangup::Keep,
        forget: Forget::Never,
    };
    let process = lookup::process(session, &args.name.reference()).await?;
    if terminal::is_of(&process) && !session.json {
        let options = terminal::Options {
            foreground: how,
            detach_keys: args.detach_keys,
            started: false,
            looks: args.no_stdin,
        };
        return terminal::attached(session, &process, options).await;
    }
    let request = RunRequest {
        r#loop: session.loop_ref.clone(),
        name: process.name,
        on_gap: OnGap::Skip.into(),
        ..RunRequest::default()
    };
    attached(session, request, how).await
}
