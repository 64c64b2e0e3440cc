//! The output of one process as lines: first those that are there at the beginning, then those that come.

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
    /// The number of last lines, of those that are there at the beginning; absent: all of them.
    pub(super) tail: Option<usize>,
    /// The time, in ns since 1970, at or after which a line began.
    pub(super) since_ns: Option<u64>,
    /// The time, in ns since 1970, at or before which bytes were read from the process.
    pub(super) until_ns: Option<u64>,
}

impl Range {
    /// Whether all of the output is asked for.
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
    begun: Lines,
    ready: VecDeque<Line>,
    /// Lines received so far, those before `since_ns` apart.
    count: usize,
    /// Of so many of the first lines some are not whole, or bytes before them are gone.
    damaged: usize,
    /// What `count` was at the last gap.
    gap_at: usize,
    /// The first sequence number of the last gap.
    gap_seq: u64,
    /// Bytes of these streams are gone, and the line that was received next may be a fragment.
    torn: Vec<Stream>,
    /// Everything that was there at the beginning has been received.
    pub(super) caught_up: bool,
    /// There will be no more lines.
    pub(super) done: bool,
    /// An event after `until_ns` has come: from there on no output is taken.
    pub(super) cut: bool,
    /// What comes after the beginning is read too.
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

    /// Returns the next line of those that were there at the beginning, and reads until there is one; none after the
    /// last. Cancelling it loses nothing.
    pub(super) async fn peek(&mut self) -> Result<Option<&Line>, Failure> {
        let enough = |source: &Self| match source.range.tail {
            // All must have come before the last ones are known.
            Some(_) => source.caught_up,
            None => !source.ready.is_empty() || source.caught_up,
        };
        while !enough(self) && !self.done {
            self.fill().await?;
        }
        Ok(self.ready.front())
    }

    /// Takes the next line that has been read.
    pub(super) fn next(&mut self) -> Option<Line> {
        self.ready.pop_front()
    }

    /// Waits for the next message of the stream and takes it. Cancelling it loses nothing.
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
        // After `until_ns`, what is held is read on only while it may tell of missing output.
        let enough = self.caught_up || batch.caught_up || !self.ledger.output_is_open();
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
            self.ledger.pass(event);
            return;
        }
        let gone = self.ledger.gone();
        let fresh = self.ledger.event(event);
        let lost = self.ledger.gone() > gone;
        if since_ns.is_some_and(|since| event.realtime_ns < since) {
            // What is gone up to here was not asked for.
            self.ledger.forgive();
        }
        match (&event.kind, fresh) {
            (Some(Kind::Data(data)), Some(fresh)) => {
                if lost {
                    self.tear(data.stream());
                    self.torn.push(data.stream());
                }
                let at = (event.seq, event.realtime_ns);
                let mut ended = Vec::new();
                self.begun
                    .push(at, data.stream(), fresh, |line| ended.push(line));
                self.take(ended);
            }
            (Some(Kind::StreamEnd(end)), _) if lost => self.tear(end.stream()),
            _ => {}
        }
    }

    /// Bytes of the stream are gone: the line that had begun does not go on with what comes after them.
    fn tear(&mut self, stream: Stream) {
        self.damaged = self.damaged.max(self.gap_at);
        if let Some(line) = self.begun.take(stream) {
            self.take(vec![line]);
            self.damaged = self.count;
        }
    }

    /// Adds lines to those that were read. Of what was there at the beginning only the last `tail` are kept. A line
    /// counts at the time when it began: those that began before `since_ns` are left out.
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

    /// Takes lines that have begun and not ended as they are: their end is not waited for.
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

    /// With `tail`, forgets what is gone before the last lines that were asked for.
    pub(super) fn settle_tail(&mut self) {
        let damaged = if self.ledger.is_open() {
            self.damaged.max(self.gap_at)
        } else {
            self.damaged
        };
        if let Some(tail) = self.range.tail
            && self.count.saturating_sub(damaged) >= tail
        {
            self.ledger.forgive();
        }
    }

    /// Whether only the daemon knows what is gone at the end.
    pub(super) const fn is_open(&self) -> bool {
        if self.cut {
            self.ledger.output_is_open()
        } else {
            self.ledger.is_open()
        }
    }

    /// Takes into account what the daemon says of the process; see [`Ledger::settle`].
    pub(super) fn settle(&mut self, watch: Option<&Watch>) {
        self.ledger.settle(watch);
    }

    /// Reports on stderr how much of what was asked for is gone. Returns true if nothing is.
    pub(super) fn report(&self) -> bool {
        self.ledger.report(&self.watch.name)
    }
}
