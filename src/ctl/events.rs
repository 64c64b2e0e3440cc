//! `events`: what happened on a loop.

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::failure::Outcome;
use super::feed::{Feed, Source};
use super::output::{self, DIM};
use super::parse;
use super::printer::{Printer, Until};
use super::session::Session;
use super::watch;
use crate::proto::{
    Cursor, EventKind, Filter, OnGap, StartAt, SubscribeRequest, WatchRef, subscribe_request,
    watch_ref,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl events                               # all that is held
  evloopctl events -f --kind exited --label team=ci
  evloopctl events -f --json --after 1041        # go on where you were

The exit code is 3 if events were missing; each gap is reported on stderr.";

const KINDS: [&str; 19] = [
    "added",
    "closed",
    "removed",
    "ready",
    "timer_fired",
    "started",
    "data",
    "stream_end",
    "exited",
    "connected",
    "accepted",
    "accept_paused",
    "eof",
    "write_paused",
    "write_resumed",
    "signal",
    "posted",
    "loop_state_changed",
    "policy_changed",
];

/// Options of `events`.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with what is to come
    #[arg(short, long)]
    follow: bool,
    /// Begin after this position
    #[arg(long, value_name = "EPOCH:SEQ", value_parser = parse::cursor, conflicts_with = "oldest")]
    after: Option<Cursor>,
    /// Begin with the oldest event that is held; without --follow this is the default
    #[arg(long)]
    oldest: bool,
    /// Only this kind, or these, separated by commas; may be repeated
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = PossibleValuesParser::new(KINDS))]
    kinds: Vec<String>,
    /// Only this watch, by name or id (0: the loop itself); may be repeated
    #[arg(long = "watch", value_name = "WATCH", value_parser = parse::watch_ref)]
    watches: Vec<WatchRef>,
    /// Only watches with this label; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::key_value)]
    labels: Vec<(String, String)>,
}

pub(super) async fn run(session: &Session, args: Events) -> Outcome {
    let start = match args.after {
        Some(cursor) => subscribe_request::Start::After(cursor),
        None if args.oldest || !args.follow => {
            subscribe_request::Start::StartAt(StartAt::Oldest.into())
        }
        None => subscribe_request::Start::StartAt(StartAt::Now.into()),
    };
    let mut watch_ids = Vec::new();
    for watch in &args.watches {
        watch_ids.push(match watch.r#ref {
            // Also of a watch that is gone, whose events are still there.
            Some(watch_ref::Ref::WatchId(id)) => id,
            _ => watch::get(session, watch).await?.watch_id,
        });
    }
    let request = SubscribeRequest {
        r#loop: session.loop_ref.clone(),
        start: Some(start),
        on_gap: OnGap::Fail.into(),
        filter: Some(Filter {
            watch_ids,
            kinds: args
                .kinds
                .iter()
                .filter_map(|kind| event_kind(kind))
                .map(i32::from)
                .collect(),
            labels: args.labels.into_iter().collect(),
        }),
        ..SubscribeRequest::default()
    };
    let mut printer = Printer::new(session).await?;
    let mut feed = Feed::new(session.clone(), Source::Subscribe(request));
    let until = if args.follow {
        Until::Goodbye
    } else {
        Until::CaughtUp
    };
    let code = printer.run(&mut feed, until).await?;
    if let (false, Some(cursor)) = (session.json, feed.cursor()) {
        output::line(&format!(
            "{DIM}go on with --after {}{DIM:#}",
            parse::cursor_text(&cursor)
        ))?;
    }
    Ok(code)
}

fn event_kind(word: &str) -> Option<EventKind> {
    EventKind::from_str_name(&format!("EVENT_KIND_{}", word.to_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_event_can_be_asked_for() {
        let kinds: Vec<_> = KINDS
            .iter()
            .map(|kind| event_kind(kind).unwrap())
            .map(i32::from)
            .collect();
        let all: Vec<_> = (10..=28).collect();
        assert_eq!(kinds, all);
        assert!(EventKind::try_from(29).is_err(), "a kind without a word");
    }
}
