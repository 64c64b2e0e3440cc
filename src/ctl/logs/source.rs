//! Reads the output of one process as lines: first the lines that exist when `logs` begins, then new lines.

use std::collections::VecDeque;

use super::super::failure::Failure;
use super::super::feed::{Feed, Item, cut_short};
use super::super::ledger::Ledger;
use super::lines::{Line, Lines};
use crate::proto::event::Kind;
use crate::proto::{Batch, Event, Gap, Stream, Watch};

/// Which lines are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Range {
    /// How many of the last lines that exist when `logs` begins; `None` means all of them.
    pub(super) tail: Option<usize>,
    /// The time, in ns since 1970, at or after which a line began.
    pub(super) since_ns: Option<u64>,
    /// The time, in ns since 1970, at or before which bytes were read from the process.
    pub(super) until_ns: Option<u64>,
}

impl Range {
    /// Returns whether all of the output is asked for.
    pub(super) const fn is_whole(&self) -> bool {
        self.tail.is_none() && self.since_ns.is_none() && self.until_ns.is_none()
    }
}

/// Reads the output of one process.
pub(super) struct Source {
    pub(super) watch: Watch,
    feed: Feed,
    range: Range,
    ledger: Ledger,
    /// Lines whose end has not been received.
    begun: Lines,
    /// Lines that were received and not taken by `next` yet.
    ready: VecDeque<Line>,
    /// The number of lines received so far, without those before `since_ns`.
    count: usize,
    /// The number of the last line that is not whole, or before which bytes are gone; 0 if there is none.
    damaged: usize,
    /// What `count` was at the last gap.
    gap_at: usize,
    /// The first sequence number of the last gap.
    gap_seq: u64,
    /// The streams of which bytes are gone and no line was received since. Their next line may be a fragment.
    torn: Vec<Stream>,
    /// All output that existed when `logs` began has been received.
    pub(super) caught_up: bool,
    /// No more lines will be received.
    pub(super) done: bool,
    /// An event after `until_ns` was received: output from there on is ignored.
    pub(super) cut: bool,
    /// New lines are read too.
    follow: bool,
}

impl Source {
    pub(super) fn new(watch: Watch, feed: Feed, range: Range, follow: bool) -> Self {
        Self {
            watch,
            feed,
            range,
            ledger: Ledger::default(),
            begun: Lines::default(),
            ready: VecDeque::new(),
            count: 0,
            damaged: 0,
            gap_at: 0,
            gap_seq: 0,
            torn: Vec::new(),
            caught_up: false,
            done: false,
            cut: false,
            follow,
        }
    }

    /// Waits for the next line of those that existed when `logs` began; `None` after the last of them. Cancelling it loses
    /// nothing.
    pub(super) async fn peek(&mut self) -> Result<Option<&Line>, Failure> {
        let enough = |source: &Self| match source.range.tail {
            // Which lines are the last ones is known only after all lines were received.
            Some(_) => source.caught_up,
            None => !source.ready.is_empty() || source.caught_up,
        };
        while !enough(self) && !self.done {
            self.fill().await?;
        }
        Ok(self.ready.front())
    }

    /// Takes the next line that was received.
    pub(super) fn next(&mut self) -> Option<Line> {
        self.ready.pop_front()
    }

    /// Waits for the next message of the stream and processes it. Cancelling it loses nothing.
    pub(super) async fn fill(&mut self) -> Result<(), Failure> {
        match self.feed.next().await? {
            Item::Header(_) => {}
            Item::Batch(batch) => self.batch(&batch),
            Item::Goodbye(goodbye) => {
                self.end();
                return cut_short(&goodbye).map_or(Ok(()), Err);
            }
        }
        Ok(())
    }

    fn batch(&mut self, batch: &Batch) {
        let mut gaps = batch.gaps.iter().peekable();
        for event in &batch.events {
            while let Some(gap) = gaps.next_if(|gap| gap.from_seq < event.seq) {
                self.gap(gap);
            }
            self.event(event);
        }
        gaps.for_each(|gap| self.gap(gap));
        // After `until_ns`, reading goes on only while an event in the journal may show that output is missing.
        let enough = self.caught_up || batch.caught_up || !self.ledger.output_is_incomplete();
        if self.cut && enough {
            self.end();
        } else if batch.caught_up {
            if !self.follow {
                self.finish_lines();
            }
            self.caught_up = true;
        }
    }

    fn gap(&mut self, gap: &Gap) {
        if !self.cut {
            self.ledger.gap();
            (self.gap_at, self.gap_seq) = (self.count, gap.from_seq);
        }
    }

    fn event(&mut self, event: &Event) {
        let Range {
            since_ns, until_ns, ..
        } = self.range;
        self.cut |= until_ns.is_some_and(|until| event.realtime_ns > until);
        if self.cut {
            self.ledger.end_before(event);
            return;
        }
        let gone = self.ledger.gone();
        let fresh = self.ledger.event(event);
        let lost = self.ledger.gone() > gone;
        if since_ns.is_some_and(|since| event.realtime_ns < since) {
            // Output before `since_ns` was not asked for, so its loss is not reported.
            self.ledger.ignore_losses();
        }
        match (&event.kind, fresh) {
            (Some(Kind::Data(data)), Some(fresh)) => {
                if lost {
                    self.break_line(data.stream());
                    self.torn.push(data.stream());
                }
                let at = (event.seq, event.realtime_ns);
                let mut ended = Vec::new();
                self.begun
                    .push(at, data.stream(), fresh, |line| ended.push(line));
                self.take(ended);
            }
            (Some(Kind::StreamEnd(end)), _) if lost => self.break_line(end.stream()),
            _ => {}
        }
    }

    /// Ends the incomplete line of a stream after bytes of the stream were lost: later bytes do not belong to it.
    fn break_line(&mut self, stream: Stream) {
        self.damaged = self.damaged.max(self.gap_at);
        if let Some(line) = self.begun.take(stream) {
            self.take(vec![line]);
            self.damaged = self.count;
        }
    }

    /// Appends lines to those that were received. Lines that began before `since_ns` are left out. Of the lines that existed
    /// when `logs` began, only the last `tail` are kept.
    fn take(&mut self, lines: Vec<Line>) {
        let tail = self.range.tail.filter(|_| !self.caught_up);
        for line in lines {
            let torn = self.torn.iter().position(|stream| *stream == line.stream);
            let torn = torn.map(|at| self.torn.swap_remove(at)).is_some();
            if self.range.since_ns.is_some_and(|s| line.realtime_ns < s) {
                continue;
            }
            self.count += 1;
            if torn {
                self.damaged = self.count;
            }
            self.ready.push_back(line);
            if tail.is_some_and(|tail| self.ready.len() > tail) {
                self.ready.pop_front();
            }
        }
    }

    /// Takes the incomplete lines without waiting for their ends.
    fn finish_lines(&mut self) {
        let rest: Vec<_> = self.begun.rest().collect();
        let spans_gap = rest.iter().any(|line| line.seq < self.gap_seq);
        self.take(rest);
        if spans_gap {
            self.gap_at = self.count;
        }
    }

    fn end(&mut self) {
        self.finish_lines();
        self.done = true;
        self.caught_up = true;
    }

    /// With `tail`, ignores output that is gone before the last lines that were asked for.
    pub(super) fn ignore_losses_before_tail(&mut self) {
        let damaged = if self.ledger.is_incomplete() {
            self.damaged.max(self.gap_at)
        } else {
            self.damaged
        };
        if let Some(tail) = self.range.tail
            && self.count.saturating_sub(damaged) >= tail
        {
            self.ledger.ignore_losses();
        }
    }

    /// Returns whether bytes may be gone that no received event shows.
    pub(super) const fn is_incomplete(&self) -> bool {
        if self.cut {
            self.ledger.output_is_incomplete()
        } else {
            self.ledger.is_incomplete()
        }
    }

    /// Counts what is gone by the daemon's totals; see [`Ledger::compare_with_totals`].
    pub(super) fn compare_with_totals(&mut self, watch: Option<&Watch>) {
        self.ledger.compare_with_totals(watch);
    }

    /// Reports on stderr how many bytes of the output that was asked for are gone. Returns true if none are.
    pub(super) fn report(&self) -> bool {
        self.ledger.report(&self.watch.name)
    }
}
