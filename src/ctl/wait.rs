//! `wait`: for the end of a process.

use clap::Args;

use super::failure::{Failure, Outcome};
use super::feed::{Feed, Item, Source, cut_short};
use super::json;
use super::names::OneWatch;
use super::output;
use super::parse;
use super::session::Session;
use super::transcript::exit_code;
use super::watch;
use crate::proto::{
    EventKind, Exited, Filter, OnGap, SubscribeRequest, Watch, WatchState, subscribe_request,
    watch as watch_message,
};

pub(super) const EXAMPLES: &str = "Example:
  evloopctl wait build; echo \"make said $?\"

The exit code is the process's (128 + N if signal N ended it), 125 if evloopctl itself failed.";

/// Options of `wait`.
#[derive(Debug, Args)]
pub(super) struct Wait {
    #[command(flatten)]
    name: OneWatch,
}

pub(super) async fn run(session: &Session, args: Wait) -> Outcome {
    let asked = args.name.reference();
    let name = parse::watch_name(&asked);
    let watch = watch::get(session, &asked).await?;
    let exited = match exited(&name, &watch)? {
        Some(exited) => exited,
        None => ended(session, &name, &watch).await?,
    };
    if session.json {
        output::json_lines([&json::exited(&exited)])?;
    }
    exit_code(&name, &exited)
}

/// How the process ended; none if it has not.
fn exited(name: &str, watch: &Watch) -> Result<Option<Exited>, Failure> {
    let Some(watch_message::Status::Process(status)) = &watch.status else {
        return Err(Failure::new(name, "it is no process"));
    };
    match &status.exited {
        None if watch.state() == WatchState::Closed => {
            Err(Failure::new(name, "it ended without an exit status"))
        }
        exited => Ok(exited.clone()),
    }
}

/// Sleeps until the process's end is in the journal, then looks.
async fn ended(session: &Session, name: &str, watch: &Watch) -> Result<Exited, Failure> {
    let added = watch.added.clone().unwrap_or_default();
    let request = SubscribeRequest {
        r#loop: session.loop_ref.clone(),
        start: Some(subscribe_request::Start::After(added)),
        on_gap: OnGap::Skip.into(),
        filter: Some(Filter {
            watch_ids: vec![watch.watch_id],
            kinds: vec![EventKind::Exited.into(), EventKind::Closed.into()],
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    };
    let id = parse::by_id(watch.watch_id);
    let mut feed = Feed::new(session.clone(), Source::Subscribe(request));
    loop {
        match feed.next().await? {
            Item::Header(_) => {}
            Item::Batch(batch) if batch.events.is_empty() && batch.gaps.is_empty() => {}
            Item::Batch(_) => {
                if let Some(exited) = exited(name, &watch::get(session, &id).await?)? {
                    return Ok(exited);
                }
            }
            Item::Goodbye(goodbye) => {
                let short = cut_short(&goodbye);
                return Err(short.unwrap_or_else(|| Failure::new(name, "the stream ended")));
            }
        }
    }
}
