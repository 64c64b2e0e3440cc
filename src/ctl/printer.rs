//! Prints events on stdout, one per line.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::failure::{Failure, GAP_MET, Outcome, complain_loudly};
use super::feed::{Feed, Item, consumer_lost, cut_short};
use super::json;
use super::lookup;
use super::output;
use super::parse::nanoseconds;
use super::render::Renderer;
use super::session::Session;
use super::transcript::complain_gap;
use crate::proto::event::Kind;
use crate::proto::{Batch, Closed, Event, FileChangeKind, ListWatchesRequest};

/// When printing stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// When the daemon ends the stream.
    Goodbye,
    /// When all events that exist by then are printed.
    CaughtUp,
    /// When the watch with this id is closed or removed.
    Closed(u64),
}

/// Prints a feed.
#[derive(Debug)]
pub(super) struct Printer {
    json: bool,
    /// Whether bytes are printed as they are, and other events on stderr.
    bytes: bool,
    renderer: Renderer,
    /// Only events at or after this time are printed, in ns since 1970.
    since_ns: u64,
    /// Only events at or before this time are printed, in ns since 1970.
    until_ns: u64,
    /// The number of gaps so far.
    gaps: u64,
    /// The number of events that are missing in the gaps.
    lost: u64,
    /// How the watch closed until whose end events were printed.
    pub(super) closed: Option<Closed>,
    /// Whether stdout still had a reader when printing ended.
    pub(super) was_read: bool,
}

impl Printer {
    /// Makes a printer that knows the names of the watches of the session's loop.
    pub(super) async fn new(session: &Session) -> Result<Self, Failure> {
        let mut renderer = Renderer::new(TimeZone::system());
        if !session.json {
            for watch in lookup::watches(session, ListWatchesRequest::default()).await? {
                renderer.learn(watch.watch_id, &watch.name);
            }
        }
        Ok(Self {
            json: session.json,
            bytes: false,
            renderer,
            since_ns: 0,
            until_ns: u64::MAX,
            gaps: 0,
            lost: 0,
            closed: None,
            was_read: true,
        })
    }

    /// Prints only events from `since` to `until`.
    pub(super) fn between(self, since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        Self {
            since_ns: since.map_or(0, nanoseconds),
            until_ns: until.map_or(u64::MAX, nanoseconds),
            ..self
        }
    }

    /// Prints the bytes of Data as they are, and other events but the first and the last on stderr.
    pub(super) fn of_bytes(self) -> Self {
        let bytes = !self.json;
        Self { bytes, ..self }
    }

    /// Remembers a watch's name.
    pub(super) fn learn(&mut self, watch_id: u64, name: &str) {
        self.renderer.learn(watch_id, name);
    }

    /// Prints events as far as `until` says, or until the reader of stdout closes it. A consumer's batch is acknowledged after
    /// it was written. Returns the exit code: [`GAP_MET`] if events are missing.
    ///
    /// # Errors
    /// The stream of events broke, or stdout cannot be written.
    pub(super) async fn run(&mut self, feed: &mut Feed, until: Until) -> Outcome {
        let ended = tokio::select! {
            ended = self.print_all(feed, until) => ended,
            () = output::reader_gone() => Err(Failure::silent(0)),
        };
        self.was_read = !matches!(&ended, Err(failure) if failure.is_silent());
        if self.gaps > 1 {
            let (gaps, lost) = (self.gaps, self.lost);
            complain_loudly(format_args!("{gaps} gaps, {lost} events lost in total"));
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
                        Until::Closed(id) => {
                            let end = end(&batch, id);
                            if let Some(Kind::Closed(closed)) = end {
                                self.closed = Some(closed.clone());
                            }
                            end.is_some()
                        }
                    };
                    if enough {
                        return Ok(());
                    }
                }
                Item::Goodbye(goodbye) => {
                    let failure = consumer_lost(feed.consumer(), &goodbye);
                    return failure.or_else(|| cut_short(&goodbye)).map_or(Ok(()), Err);
                }
            }
        }
    }

    const fn exit_code(&self) -> u8 {
        if self.gaps > 0 { GAP_MET } else { 0 }
    }

    /// Prints events and gaps in the order of their sequence numbers.
    fn batch(&mut self, batch: &Batch) -> Result<(), Failure> {
        let mut gaps = batch.gaps.iter().peekable();
        let mut text = String::new();
        for event in &batch.events {
            while let Some(gap) = gaps.next_if(|gap| gap.from_seq < event.seq) {
                self.print(&mut text)?;
                self.gap(gap)?;
            }
            if self.bytes {
                match &event.kind {
                    Some(Kind::Data(data)) => output::bytes(&data.data)?,
                    Some(Kind::Added(_) | Kind::Eof(_)) => {}
                    Some(Kind::FileChanged(changed)) if is_quiet(changed.change()) => {}
                    // The caller says how it closed.
                    Some(Kind::Closed(_)) => {}
                    _ => output::note(&self.renderer.line(event)),
                }
                continue;
            }
            if !(self.since_ns..=self.until_ns).contains(&event.realtime_ns) {
                self.renderer.skip(event);
                continue;
            }
            let line = if self.json {
                json::line(event)
            } else {
                self.renderer.line(event)
            };
            text.push_str(&line);
            text.push('\n');
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

/// Returns whether a change of a file goes without saying when its bytes are printed.
const fn is_quiet(kind: FileChangeKind) -> bool {
    matches!(kind, FileChangeKind::Reading)
}

/// Returns the end of the watch, if the batch holds it.
fn end(batch: &Batch, watch_id: u64) -> Option<&Kind> {
    let of_watch = batch.events.iter().filter(|e| e.watch_id == watch_id);
    let mut kinds = of_watch.filter_map(|event| event.kind.as_ref());
    kinds.find(|kind| matches!(kind, Kind::Closed(_) | Kind::Removed(_)))
}
