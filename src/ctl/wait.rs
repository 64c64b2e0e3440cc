//! `wait`: for the end of a process.

use clap::Args;

use super::failure::{Failure, Outcome};
use super::feed::{Feed, Item, Source, cut_short};
use super::json;
use super::names::OneWatch;
use super::output;
use super::parse;
use super::session::Session;
use super::transcript::{end_of, exit_code};
use super::watch;
use crate::proto::{
    EventKind, Exited, Filter, LoopRef, OnGap, SubscribeRequest, Watch, subscribe_request,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl wait build; echo \"make said $?\"
  evloopctl wait @7               # by id

The exit code is the process's (128 + N if signal N ended it, SIGINT too), 125 if evloopctl itself
failed or the exit status is not known.";

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
    let exited = match end_of(&name, &watch)? {
        Some(exited) => exited,
        None => {
            let mut feed = end_feed(session, session.loop_ref.clone(), &watch).telling_standstill();
            ended(&mut feed, session, &name, &watch).await?
        }
    };
    if session.json {
        output::json_lines([&json::exited(&exited)])?;
    }
    exit_code(&name, &exited)
}

/// The end of a process, and nothing else of it.
pub(super) fn end_feed(session: &Session, of: Option<LoopRef>, watch: &Watch) -> Feed {
    let added = watch.added.clone().unwrap_or_default();
    let request = SubscribeRequest {
        r#loop: of,
        start: Some(subscribe_request::Start::After(added)),
        on_gap: OnGap::Skip.into(),
        filter: Some(Filter {
            watch_ids: vec![watch.watch_id],
            kinds: vec![EventKind::Exited.into(), EventKind::Closed.into()],
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    };
    Feed::new(session.clone(), Source::Subscribe(request))
}

/// Sleeps until the process's end is in the journal, then looks.
async fn ended(
    feed: &mut Feed,
    session: &Session,
    name: &str,
    watch: &Watch,
) -> Result<Exited, Failure> {
    let id = parse::by_id(watch.watch_id);
    loop {
        match feed.next().await? {
            Item::Header(_) => {}
            Item::Batch(batch) if batch.events.is_empty() && batch.gaps.is_empty() => {}
            Item::Batch(_) => {
                if let Some(exited) = end_of(name, &watch::get(session, &id).await?)? {
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
