//! `logs`: what a process wrote.

use clap::Args;

use super::attached::named;
use super::failure::{Gone, OWN_FAILURE, Outcome};
use super::feed::{Feed, Source};
use super::names::OneWatch;
use super::output;
use super::parse;
use super::session::Session;
use super::transcript::{Links, Transcript, Until};
use super::watch;
use crate::proto::{OnGap, RunRequest};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl logs build            # what there is
  evloopctl logs -f build         # until it is done
  evloopctl logs @7               # by id

Its stdout goes to stdout and its stderr to stderr, byte for byte. The exit code is never the
process's: 0 if this is all of its output, 125 if the journal no longer holds all of it (stderr
says how much is gone of which stream) or evloopctl failed.";

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
    let watch = named(session, args.name).await?;
    let name = watch.name.clone();
    let request = RunRequest {
        r#loop: session.loop_ref.clone(),
        name: name.clone(),
        on_gap: OnGap::Skip.into(),
        ..RunRequest::default()
    };
    let mut feed = Feed::new(session.clone(), Source::Run(request));
    let until = if args.follow {
        feed = feed.telling_standstill();
        Until::Done
    } else {
        Until::CaughtUp
    };
    let (mut transcript, links) = (Transcript::new(session.json), Links::default());
    let read = tokio::select! {
        read = transcript.run(&mut feed, until, &links) => read.map(|()| true),
        () = output::reader_gone() => Ok(false),
    };
    if matches!(read, Ok(true)) && transcript.is_open() {
        // Without --follow it may write on: what counts is what it had written when we began.
        let known = match until {
            Until::Done => watch::get(session, &parse::by_id(watch.watch_id))
                .await
                .ok(),
            Until::CaughtUp => Some(watch),
        };
        transcript.settle(known.as_ref());
    }
    let whole = transcript.report(&name);
    match read {
        Err(failure) if failure.gone != Some(Gone::Reader) => Err(failure),
        Ok(_) | Err(_) if whole => Ok(0),
        Ok(_) | Err(_) => Ok(OWN_FAILURE),
    }
}
