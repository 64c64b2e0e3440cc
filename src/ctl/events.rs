//! `events`: what happened on a loop.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use super::complete;
use super::failure::{Failure, Outcome, USAGE};
use super::feed::{Feed, Source, Tape};
use super::filter::Filter;
use super::output;
use super::parse;
use super::printer::{Printer, Until};
use super::session::Session;
use crate::proto::{Cursor, OnGap, StartAt, SubscribeRequest, subscribe_request::Start};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl events                               # all that is held
  evloopctl events -f --filter 'kind:exited label:team=ci'
  evloopctl events --since 10m --until 5m
  evloopctl events -f --json --after 1041        # go on where you were
  evloopctl events -f --consumer audit           # held until it has printed it
  evloopctl events -f --record build.rec         # for evloopctl check

A broken connection is made again, and the events go on where they were. The exit code is 3 if \
events were missing; each gap is reported on stderr.

As a consumer, what is printed is acknowledged, batch by batch, after it was written: whoever \
crashes and begins again with the same --consumer misses nothing, and sees at most the last \
batch again.";

/// Options of `events`.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with what is to come
    #[arg(short, long)]
    follow: bool,
    /// Begin after this position
    #[arg(long, value_name = "EPOCH:SEQ", value_parser = parse::cursor, conflicts_with = "oldest")]
    after: Option<Cursor>,
    /// Begin with the oldest event that is held; without --follow and --consumer this is the default
    #[arg(long)]
    oldest: bool,
    /// Only what happened at or after it: `10m` or `600` (seconds) ago, `12:00:00`, `2030-01-31T12:00:00Z`
    #[arg(long, value_name = "WHEN", value_parser = parse::moment, conflicts_with_all = ["after", "consumer"])]
    since: Option<Timestamp>,
    /// Only what happened at or before it; with --follow, end with the first event after it
    #[arg(long, value_name = "WHEN", value_parser = parse::moment, conflicts_with = "consumer")]
    until: Option<Timestamp>,
    #[command(flatten)]
    filter: Filter,
    /// Read as this consumer, made if there is none: begin after what it has acknowledged, a new
    /// one with what is to come. Who reads as it already is ended
    #[arg(long, value_name = "NAME", value_parser = parse::name, add = complete::consumers())]
    consumer: Option<String>,
    /// How long the consumer is kept while nobody reads as it [default: as it was; the policy's]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "consumer")]
    ttl: Option<prost_types::Duration>,
    /// Write all that comes to this file too, as it came, for `evloopctl check`; it must not exist
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Replace the file of --record if it exists
    #[arg(long, requires = "record")]
    force: bool,
}

impl Events {
    fn start(&self) -> Option<Start> {
        let at = |at: StartAt| Some(Start::StartAt(at.into()));
        match &self.after {
            Some(cursor) => Some(Start::After(cursor.clone())),
            None if self.oldest || self.since.is_some() => at(StartAt::Oldest),
            // Where the consumer is.
            None if self.consumer.is_some() => None,
            None if self.follow => at(StartAt::Now),
            None => at(StartAt::Oldest),
        }
    }

    /// Where to record, if anywhere; before anything else, so that a wrong file costs nothing.
    fn tape(&self) -> Result<Option<Tape>, Failure> {
        let Some(path) = &self.record else {
            return Ok(None);
        };
        if !self.force && path.symlink_metadata().is_ok() {
            let failure = Failure::new(format!("--record {}", path.display()), "the file exists");
            let advice = "choose another, or replace it with --force";
            return Err(failure.advice(advice).code(USAGE));
        }
        Ok(Some(Tape::new(path.clone(), self.force)))
    }
}

pub(super) async fn run(session: &Session, args: Events) -> Outcome {
    let (start, tape) = (args.start(), args.tape()?);
    let request = SubscribeRequest {
        r#loop: session.loop_ref.clone(),
        start,
        on_gap: OnGap::Fail.into(),
        filter: Some(args.filter.resolve(session).await?),
        consumer: args.consumer.unwrap_or_default(),
        consumer_ttl: args.ttl,
        ..SubscribeRequest::default()
    };
    let mut printer = Printer::new(session).await?.between(args.since, args.until);
    let mut feed = Feed::new(session.clone(), Source::Subscribe(request));
    if let Some(tape) = tape {
        feed = feed.record(tape);
    }
    let until = if args.follow {
        feed = feed.telling_standstill();
        Until::Goodbye
    } else {
        Until::CaughtUp
    };
    let code = printer.run(&mut feed, until).await?;
    if let (false, true, Some(cursor)) = (session.json, printer.was_read, feed.cursor()) {
        let with = match feed.consumer() {
            "" => format!("--after {}", parse::cursor_text(&cursor)),
            name => format!("--consumer {name}"),
        };
        output::note(&format!("go on with {with}"));
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        events: Events,
    }

    fn parsed(words: &[&str]) -> Events {
        let line = Line::try_parse_from([&["events"], words].concat());
        line.unwrap().events
    }

    #[test]
    fn the_start_is_what_was_said_else_the_consumers_else_by_follow() {
        let at = |at: StartAt| Some(Start::StartAt(at.into()));
        let start = |words: &[&str]| parsed(words).start();
        assert_eq!(start(&[]), at(StartAt::Oldest));
        assert_eq!(start(&["-f"]), at(StartAt::Now));
        assert_eq!(start(&["-f", "--oldest"]), at(StartAt::Oldest));
        assert_eq!(start(&["--consumer", "c"]), None);
        assert_eq!(start(&["-f", "--consumer", "c"]), None);
        let oldest = ["-f", "--consumer", "c", "--oldest"];
        assert_eq!(start(&oldest), at(StartAt::Oldest));
        let cursor = parse::cursor("7").unwrap();
        let after = ["--consumer", "c", "--after", "7"];
        assert_eq!(start(&after), Some(Start::After(cursor)));
        for wrong in [
            &["--ttl", "1h"][..],
            &["--force"],
            &["--oldest", "--after", "7"],
        ] {
            let line = [&["events"], wrong].concat();
            assert!(Line::try_parse_from(line).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_file_that_exists_is_recorded_over_only_by_force() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let refused = parsed(&["--record", path]).tape().unwrap_err();
        assert_eq!(refused.code, USAGE);
        assert!(refused.to_string().contains("--force"), "{refused}");
        assert!(
            parsed(&["--record", path, "--force"])
                .tape()
                .unwrap()
                .is_some()
        );
        let new = format!("{path}.new");
        assert!(parsed(&["--record", &new]).tape().unwrap().is_some());
        assert!(parsed(&[]).tape().unwrap().is_none());
    }
}
