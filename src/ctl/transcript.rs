//! What a process wrote, on our own stdout and stderr, byte for byte.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use super::failure::{Failure, complain_loudly};
use super::feed::{Feed, Item, cut_short};
use super::json;
use super::ledger::Ledger;
use super::output::{json_lines, messages};
use super::sink::Sink;
use crate::proto::event::Kind;
use crate::proto::{Batch, Gap, Stream};

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The process is done.
    Done,
    /// Nothing more is there now.
    CaughtUp,
}

/// Writes a process's streams through and keeps the account of them.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    json: bool,
    pub(super) ledger: Ledger,
    /// stdout and stderr; `None` before the first write.
    sinks: [Option<Sink>; 2],
}

/// Bytes of one stream that follow each other.
#[derive(Debug, Default)]
struct Stretch {
    is_stderr: bool,
    pieces: Vec<Bytes>,
}

impl Transcript {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            ..Self::default()
        }
    }

    /// Takes what comes, until there is no more. `links` hears of what others wait for.
    pub(super) async fn run(
        &mut self,
        feed: &mut Feed,
        until: Until,
        links: &Links,
    ) -> Result<(), Failure> {
        loop {
            match feed.next().await? {
                Item::Header(_) => {}
                Item::Batch(batch) => {
                    self.batch(&batch, links).await?;
                    if batch.caught_up && until == Until::CaughtUp {
                        return Ok(());
                    }
                }
                Item::Goodbye(goodbye) => return cut_short(&goodbye).map_or(Ok(()), Err),
            }
        }
    }

    async fn batch(&mut self, batch: &Batch, links: &Links) -> Result<(), Failure> {
        for gap in &batch.gaps {
            self.ledger.gap();
            if self.json {
                json_lines([&json::gap(gap)])?;
            }
        }
        let mut stretch = Stretch::default();
        for event in &batch.events {
            if self.json {
                messages([event])?;
            }
            match (&event.kind, self.ledger.event(event)) {
                (Some(Kind::Data(data)), Some(fresh)) if !self.json => {
                    let is_stderr = data.stream() == Stream::Stderr;
                    if stretch.is_stderr != is_stderr {
                        let before = std::mem::take(&mut stretch);
                        self.write(before, links).await?;
                        stretch.is_stderr = is_stderr;
                    }
                    stretch.pieces.push(data.data.slice_ref(fresh));
                }
                (Some(Kind::WriteResumed(_)), _) => links.resumed.notify_one(),
                _ => {}
            }
        }
        self.write(stretch, links).await
    }

    async fn write(&mut self, stretch: Stretch, links: &Links) -> Result<(), Failure> {
        if stretch.pieces.is_empty() {
            return Ok(());
        }
        let waits = || links.writing.set(Some(Instant::now()));
        waits();
        let written = self.pass_on(stretch, waits).await;
        links.writing.set(None);
        written.map_err(|error| Failure::output(&error))
    }

    async fn pass_on(&mut self, stretch: Stretch, taken: impl Fn()) -> io::Result<()> {
        let sink = &mut self.sinks[usize::from(stretch.is_stderr)];
        let sink = match sink {
            Some(sink) => sink,
            None if stretch.is_stderr => sink.insert(Sink::new(io::stderr())?),
            None => sink.insert(Sink::new(io::stdout())?),
        };
        sink.write(stretch.pieces, taken).await
    }
}

/// What the output side tells those who send input and signals meanwhile.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Hears of every `WriteResumed`.
    pub(super) resumed: Notify,
    /// Since when bytes wait to be taken from us.
    writing: Cell<Option<Instant>>,
}

impl Links {
    /// Waits until nothing waits to be taken from us, or the same bytes have for `bound`;
    /// whether that is so.
    pub(super) async fn is_stuck(&self, bound: Duration) -> bool {
        loop {
            let Some(since) = self.writing.get() else {
                return false;
            };
            let Some(rest) = bound.checked_sub(since.elapsed()) else {
                return true;
            };
            tokio::time::sleep(rest).await;
        }
    }
}

/// Says that events are missing.
pub(super) fn complain_gap(gap: &Gap) {
    let reason = json::word(gap.reason().as_str_name(), "GAP_REASON_");
    let (from, through) = (gap.from_seq, gap.through_seq);
    let count = through.saturating_sub(from).saturating_add(1);
    complain_loudly(format_args!(
        "gap: {count} events lost, {from} to {through} ({reason})"
    ));
}
