//! `logs`: what a process wrote.

use clap::Args;
use tokio::sync::Notify;

use super::attached::name_of;
use super::failure::{GAP_MET, Outcome};
use super::feed::{Feed, Source};
use super::names::OneWatch;
use super::output;
use super::session::Session;
use super::transcript::{Transcript, Until};
use crate::proto::{OnGap, RunRequest};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl logs build            # what there is
  evloopctl logs -f build         # until it is done

Its stdout goes to stdout and its stderr to stderr, byte for byte. The exit code is 3
if the daemon no longer holds all of it, 125 if evloopctl failed.";

/// Options of `logs`.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Go on until the process is done
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    name: OneWatch,
}

pub(super) async fn run(session: &Session, args: Logs) -> Outcome {
    let request = RunRequest {
        r#loop: session.loop_ref.clone(),
        name: name_of(session, &args.name.reference()).await?,
        on_gap: OnGap::Skip.into(),
        ..RunRequest::default()
    };
    let mut feed = Feed::new(session.clone(), Source::Run(request));
    let mut transcript = Transcript::new(session.json);
    let until = if args.follow {
        Until::Done
    } else {
        Until::CaughtUp
    };
    let resumed = Notify::new();
    let ended = tokio::select! {
        ended = transcript.run(&mut feed, until, &resumed) => ended,
        () = output::reader_gone() => Ok(()),
    };
    match ended {
        Err(failure) if !failure.is_silent() => return Err(failure),
        Ok(()) | Err(_) => {}
    }
    Ok(if transcript.incomplete { GAP_MET } else { 0 })
}
