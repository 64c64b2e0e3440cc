//! Writes the output of a process to stdout and stderr of evloopctl, byte for byte.

use std::cell::Cell;
use std::io::{self, IsTerminal as _};
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
use crate::screen::Quiet;

/// When writing stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// When the daemon ends the stream, because the process has ended.
    Done,
    /// When all output that exists by then is written.
    CaughtUp,
}

/// Writes the output of a process, and counts in a [`Ledger`] which bytes were received and which are gone.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    json: bool,
    pub(super) ledger: Ledger,
    /// stdout and stderr; `None` before the first write.
    sinks: [Option<Sink>; 2],
    /// For stdout and stderr, what leaves out what a terminal would answer; `None` if all is written.
    quiet: [Option<Quiet>; 2],
}

/// Consecutive bytes of one stream.
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

    /// Leaves out what a terminal would answer or take away from its user, where the output goes to one.
    pub(super) fn without_questions(mut self) -> Self {
        let terminals = [io::stdout().is_terminal(), io::stderr().is_terminal()];
        self.quiet = terminals.map(|is_terminal| is_terminal.then(Quiet::new));
        self
    }

    /// Writes output until the stream ends or `until` is reached. Updates `output_state` meanwhile.
    ///
    /// # Errors
    /// The feed fails, or writing to stdout or stderr fails.
    pub(super) async fn run(
        &mut self,
        feed: &mut Feed,
        until: Until,
        output_state: &OutputState,
    ) -> Result<(), Failure> {
        loop {
            match feed.next().await? {
                Item::Header(_) => {}
                Item::Batch(batch) => {
                    self.batch(&batch, output_state).await?;
                    if batch.caught_up && until == Until::CaughtUp {
                        return Ok(());
                    }
                }
                Item::Goodbye(goodbye) => return cut_short(&goodbye).map_or(Ok(()), Err),
            }
        }
    }

    async fn batch(&mut self, batch: &Batch, output_state: &OutputState) -> Result<(), Failure> {
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
                        self.write(before, output_state).await?;
                        stretch.is_stderr = is_stderr;
                    }
                    stretch.pieces.push(data.data.slice_ref(fresh));
                }
                (Some(Kind::WriteResumed(_)), _) => output_state.resumed.notify_one(),
                _ => {}
            }
        }
        self.write(stretch, output_state).await
    }

    async fn write(&mut self, stretch: Stretch, output_state: &OutputState) -> Result<(), Failure> {
        if stretch.pieces.is_empty() {
            return Ok(());
        }
        let waits = || output_state.writing.set(Some(Instant::now()));
        waits();
        let written = self.pass_on(stretch, waits).await;
        output_state.writing.set(None);
        written.map_err(|error| Failure::output(&error))
    }

    async fn pass_on(&mut self, mut stretch: Stretch, taken: impl Fn()) -> io::Result<()> {
        if let Some(quiet) = &mut self.quiet[usize::from(stretch.is_stderr)] {
            for piece in &mut stretch.pieces {
                *piece = quiet.filter(piece).into();
            }
        }
        let sink = &mut self.sinks[usize::from(stretch.is_stderr)];
        let sink = match sink {
            Some(sink) => sink,
            None if stretch.is_stderr => sink.insert(Sink::new(io::stderr())?),
            None => sink.insert(Sink::new(io::stdout())?),
        };
        sink.write(stretch.pieces, taken).await
    }
}

/// The state of the output, for the tasks that send input and signals at the same time.
#[derive(Debug, Default)]
pub(super) struct OutputState {
    /// Notified of each `WriteResumed` event of the process.
    pub(super) resumed: Notify,
    /// Since when the reader of stdout or stderr has taken no bytes although some wait; `None` if no bytes wait.
    writing: Cell<Option<Instant>>,
}

impl OutputState {
    /// Waits until no bytes wait to be written, and returns false; or until the reader has taken none for `bound`, and
    /// returns true.
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

/// Reports on stderr that events are missing.
pub(super) fn complain_gap(gap: &Gap) {
    let reason = json::word(gap.reason().as_str_name(), "GAP_REASON_");
    let (from, through) = (gap.from_seq, gap.through_seq);
    let count = through.saturating_sub(from).saturating_add(1);
    complain_loudly(format_args!(
        "gap: {count} events lost, {from} to {through} ({reason})"
    ));
}
