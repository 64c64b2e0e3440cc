//! `kill`: sends a signal to a process.

use clap::Args;

use super::failure::Outcome;
use super::names::Watches;
use super::parse;
use super::session::{Session, answer};
use crate::proto::{SendSignalRequest, SignalTarget};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl kill build            # SIGTERM to its process group
  evloopctl kill -s HUP --process web
  evloopctl kill @7               # by id

The exit code is 0, or 1 if one of them could not be sent the signal.";

/// Options of `kill`.
#[derive(Debug, Args)]
pub(super) struct Kill {
    /// The signal, by name or number
    #[arg(short, long, default_value = "SIGTERM", value_parser = parse::signal)]
    signal: String,
    /// To the process alone, not to its group
    #[arg(long)]
    process: bool,
    #[command(flatten)]
    processes: Watches,
}

pub(super) async fn run(session: &Session, args: Kill) -> Outcome {
    let target = if args.process {
        SignalTarget::Process
    } else {
        SignalTarget::Group
    };
    let mut code = 0;
    for watch in args.processes.references() {
        let what = format!("kill {}", parse::watch_name(&watch));
        let request = SendSignalRequest {
            r#loop: session.loop_ref.clone(),
            watch: Some(watch),
            signal: args.signal.clone(),
            target: target.into(),
            ..SendSignalRequest::default()
        };
        if let Err(failure) = answer(&what, session.processes().send_signal(request).await) {
            code = failure.report();
        }
    }
    Ok(code)
}
