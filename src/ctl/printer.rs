//! Prints events on stdout, one a line.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::failure::{Failure, GAP_MET, Outcome, complain_loudly};
use super::feed::{Feed, Item, cut_short, ousted};
use super::json;
use super::lookup;
use super::output;
use super::parse::nanoseconds;
use super::render::Renderer;
use super::session::Session;
use super::transcript::complain_gap;
use crate::proto::event::Kind;
use crate::proto::{Batch, Event, ListWatchesRequest};

/// When to stop printing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The daemon ends the stream.
    Goodbye,
    /// Nothing more is there now.
    CaughtUp,
    /// This watch closed.
    Closed(u64),
}

/// Prints a feed.
#[derive(Debug)]
pub(super) struct Printer {
    json: bool,
    renderer: Renderer,
    /// Only what happened between these two, ns since 1970.
    since_ns: u64,
    until_ns: u64,
    gaps: u64,
    /// Events in gaps.
    lost: u64,
    /// Stdout had a reader to the end.
    pub(super) was_read: bool,
}

impl Printer {
    /// One that knows the names of the watches that are there.
    pub(super) async fn new(session: &Session) -> Result<Self, Failure> {
        let mut renderer = Renderer::new(TimeZone::system());
        if !session.json {
            for watch in lookup::watches(session, ListWatchesRequest::default()).await? {
                renderer.learn(watch.watch_id, &watch.name);
            }
        }
        Ok(Self {
            json: session.json,
            renderer,
            since_ns: 0,
            until_ns: u64::MAX,
            gaps: 0,
            lost: 0,
            was_read: true,
        })
    }

    /// Only what happened in that time.
    pub(super) fn between(self, since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        Self {
            since_ns: since.map_or(0, nanoseconds),
            until_ns: until.map_or(u64::MAX, nanoseconds),
            ..self
        }
    }

    /// Remembers a watch's name.
    pub(super) fn learn(&mut self, watch_id: u64, name: &str) {
        self.renderer.learn(watch_id, name);
    }

    /// Prints until there is no more, or stdout has no reader any more. The exit code tells whether events were missing.
    /// A consumer's batch is acknowledged once it is written.
    pub(super) async fn run(&mut self, feed: &mut Feed, until: Until) -> Outcome {
        let ended = tokio::select! {
            ended = self.print_all(feed, until) => ended,
            () = output::reader_gone() => Err(Failure::silent(0)),
        };
        self.was_read = !matches!(&ended, Err(failure) if failure.is_silent());
        if self.gaps > 1 {
            let (gaps, lost) = (self.gaps, self.lost);
            complain_loudly(format_args!("{gaps} gaps, {lost} events lost in all"));
        }
        match ended {
            Err(failure) if !failure.is_silent() => Err(failure),
            Ok(()) | Err(_) => Ok(self.exit_code()),
        }
    }

    async fn print_all(&mut self, feed: &mut Feed, until: Until) -> Result<(), Failure> {
        loop {
            match feed.next().await? {
                Item::Header(_) => {}
                Item::Batch(batch) => {
                    self.batch(&batch)?;
                    feed.acknowledge().await?;
                    let passed = |event: &Event| event.realtime_ns > self.until_ns;
                    let enough = match until {
                        _ if batch.events.iter().any(passed) => true,
                        Until::Goodbye => false,
                        Until::CaughtUp => batch.caught_up,
                        Until::Closed(id) => closes(&batch, id),
                    };
                    if enough {
                        return Ok(());
                    }
                }
                Item::Goodbye(goodbye) => {
                    let failure = ousted(feed.consumer(), &goodbye);
                    return failure.or_else(|| cut_short(&goodbye)).map_or(Ok(()), Err);
                }
            }
        }
    }

    const fn exit_code(&self) -> u8 {
        if self.gaps > 0 { GAP_MET } else { 0 }
    }

    /// Events and gaps, in the order of their sequence numbers.
    fn batch(&mut self, batch: &Batch) -> Result<(), Failure> {
        let mut gaps = batch.gaps.iter().peekable();
        let mut text = String::new();
        for event in &batch.events {
            while let Some(gap) = gaps.next_if(|gap| gap.from_seq < event.seq) {
                self.print(&mut text)?;
                self.gap(gap)?;
            }
            let line = if self.json {
                json::line(event)
            } else {
                self.renderer.line(event)
            };
            if (self.since_ns..=self.until_ns).contains(&event.realtime_ns) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        self.print(&mut text)?;
        gaps.try_for_each(|gap| self.gap(gap))
    }

    fn print(&self, text: &mut String) -> Result<(), Failure> {
        if text.is_empty() {
            return Ok(());
        }
        let text = std::mem::take(text);
        if self.json {
            output::raw(&text)
        } else {
            output::print(&text)
        }
    }

    fn gap(&mut self, gap: &crate::proto::Gap) -> Result<(), Failure> {
        self.gaps += 1;
        let count = gap.through_seq.saturating_sub(gap.from_seq);
        self.lost = self.lost.saturating_add(count.saturating_add(1));
        complain_gap(gap);
        if self.json {
            output::json_lines([&json::gap(gap)])
        } else {
            Ok(())
        }
    }
}

/// The watch's end is in the batch.
fn closes(batch: &Batch, watch_id: u64) -> bool {
    let ends = |kind: &Option<Kind>| matches!(kind, Some(Kind::Closed(_) | Kind::Removed(_)));
    let mut events = batch.events.iter();
    events.any(|event| event.watch_id == watch_id && ends(&event.kind))
}
