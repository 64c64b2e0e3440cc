//! `events`: prints the events of a loop.

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
  evloopctl events                               # all in the journal
  evloopctl events -f --filter 'kind:exited label:team=ci'
  evloopctl events --since 10m --until 5m
  evloopctl events -f --json --after 1041        # go on after event 1041
  evloopctl events -f --consumer audit           # kept until printed
  evloopctl events -f --record build.rec         # for evloopctl check

After the connection broke, evloopctl connects again and goes on after the last event. The exit \
code is 3 if events are missing; each gap is reported on stderr.

With --consumer, each batch of events is acknowledged after it was written. If evloopctl crashes \
and is started again with the same --consumer, no event is missed, and at most the last batch is \
printed again.";

/// Options of `events`.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on with new events as they come
    #[arg(short, long)]
    follow: bool,
    /// Begin after this position
    #[arg(long, value_name = "EPOCH:SEQ", value_parser = parse::cursor, conflicts_with = "oldest")]
    after: Option<Cursor>,
    /// Begin with the oldest event in the journal; the default without --follow and --consumer
    #[arg(long)]
    oldest: bool,
    /// Only events at or after this time: `10m` or `600` (seconds) ago, `12:00:00`, `2030-01-31T12:00:00Z`
    #[arg(long, value_name = "WHEN", value_parser = parse::moment, conflicts_with_all = ["after", "consumer"])]
    since: Option<Timestamp>,
    /// Only events at or before this time; with --follow, end with the first later event
    #[arg(long, value_name = "WHEN", value_parser = parse::moment, conflicts_with = "consumer")]
    until: Option<Timestamp>,
    #[command(flatten)]
    filter: Filter,
    /// Read as this consumer: begin after what it has acknowledged. If it does not exist, it is made, and begins with new
    /// events. If another reader reads as it, the other reader's stream ends
    #[arg(long, value_name = "NAME", value_parser = parse::name, add = complete::consumers())]
    consumer: Option<String>,
    /// How long the consumer is kept while nobody reads as it [default: as before; for a new one, as the policy says]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, requires = "consumer")]
    ttl: Option<prost_types::Duration>,
    /// Write all events to this file too, for `evloopctl check`; the file must not exist
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
            // The daemon begins at the consumer's position.
            None if self.consumer.is_some() => None,
            None if self.follow => at(StartAt::Now),
            None => at(StartAt::Oldest),
        }
    }

    /// Returns the file of `--record`, if there is one.
    ///
    /// # Errors
    /// The file exists, and `--force` is absent.
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
        feed = feed.reporting_standstill();
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
