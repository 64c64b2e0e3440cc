//! `close`: closes connections, listeners, pipes and datagram sockets, and says what they left.

use clap::Args;
use futures_util::future::join_all;

use super::description;
use super::explain;
use super::failure::{Failure, Outcome};
use super::feed::{Feed, Item, cut_short, end_feed};
use super::lookup;
use super::names::Watches;
use super::output;
use super::parse;
use super::render::Words as _;
use super::session::{Session, answer};
use super::style::printable;
use super::units::counted;
use crate::kinds::WatchKind;
use crate::proto::event::Kind;
use crate::proto::{AbortRequest, Closed, RemoveWatchRequest, WatchRef};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl close web
  evloopctl close @7 @9
  evloopctl close --abort web     # drop what is unsent, reset the connection

Connections, pipes and datagram sockets first send what they have taken, for at most the \
configuration's close_linger. Then the watch is forgotten, as by `evloopctl rm`. A line for each \
says how it closed, and what it left: bytes that were not sent, connections that were not accepted. \
The exit code is 0, or 1 if a watch could not be closed or, without --abort, has left bytes.";

/// The kinds of watch that are closed.
pub(super) const KINDS: [WatchKind; 5] = [
    WatchKind::Connection,
    WatchKind::Listener,
    WatchKind::ReadPipe,
    WatchKind::WritePipe,
    WatchKind::Datagram,
];

/// Options of `close`.
#[derive(Debug, Args)]
pub(super) struct Close {
    /// Close at once: drop what is unsent, and reset TCP connections
    #[arg(long)]
    abort: bool,
    #[command(flatten)]
    watches: Watches,
}

pub(super) async fn run(session: &Session, args: Close) -> Outcome {
    let abort = args.abort;
    let closings = args.watches.references().map(|asked| async move {
        let name = parse::watch_name(&asked);
        (name, close(session, asked, abort).await)
    });
    let mut code = 0;
    for (name, closed) in join_all(closings).await {
        match closed {
            Ok(closed) => {
                if session.json {
                    output::messages([&closed])?;
                } else {
                    let (words, style) = closed.words();
                    output::line(&format!("{} {style}{words}{style:#}", printable(&name)))?;
                }
                if closed.unsent_bytes > 0 && !abort {
                    let bytes = counted(closed.unsent_bytes, "byte was", "bytes were");
                    let why = format!("{bytes} not sent");
                    code = Failure::new(name, why).of_verb(&session.verb).report();
                }
            }
            Err(failure) => code = explain::report(session, failure).await,
        }
    }
    Ok(code)
}

async fn close(session: &Session, asked: WatchRef, abort: bool) -> Result<Closed, Failure> {
    let found = lookup::watch(session, &asked).await?;
    let name = parse::watch_name(&asked);
    if !KINDS.iter().any(|kind| kind.name() == found.watch_kind) {
        let kind = found.watch_kind.replace('_', " ");
        let why = format!("it is a {kind}, which has nothing to close");
        let advice = format!("`evloopctl rm {name}` ends and forgets it");
        return Err(Failure::new(name, why).advice(advice));
    }
    // The subscription begins before the watch is forgotten.
    let (of, ids) = (session.loop_ref.clone(), vec![found.watch_id]);
    let mut feed = end_feed(session, of, &found, ids);
    let first = feed.next().await?;
    let watch = Some(description::watch_ref(&found));
    if abort {
        let request = AbortRequest {
            r#loop: session.loop_ref.clone(),
            watch: watch.clone(),
            ..AbortRequest::default()
        };
        match answer(session.transports().abort(request).await) {
            Err(failure) if failure.reason == "WATCH_CLOSED" => {}
            aborted => drop(aborted.map_err(|failure| failure.about(name.clone()))?),
        }
    }
    let request = RemoveWatchRequest {
        r#loop: session.loop_ref.clone(),
        watch,
        ..RemoveWatchRequest::default()
    };
    let removed = answer(session.watches().remove_watch(request).await);
    removed.map_err(|failure| failure.about(name.clone()))?;
    closed(&mut feed, first, &name).await
}

/// Returns the event with which the watch closed.
async fn closed(feed: &mut Feed, first: Item, name: &str) -> Result<Closed, Failure> {
    let mut item = first;
    loop {
        match item {
            Item::Header(_) => {}
            Item::Batch(batch) => {
                for event in batch.events {
                    if let Some(Kind::Closed(closed)) = event.kind {
                        return Ok(closed);
                    }
                }
            }
            Item::Goodbye(goodbye) => {
                let over = || Failure::new(name, "its loop ended before it was said how it closed");
                return Err(cut_short(&goodbye).unwrap_or_else(over));
            }
        }
        item = feed.next().await?;
    }
}
