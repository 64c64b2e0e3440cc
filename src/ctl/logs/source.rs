//! One process's output as lines: first those that are there, then those that come.

use std::collections::VecDeque;

use super::super::failure::Failure;
use super::super::feed::{Feed, Item, cut_short};
use super::super::ledger::Ledger;
use super::lines::{Line, Lines};
use crate::proto::event::Kind;
use crate::proto::{Batch, Event, Watch};

/// Which lines are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Range {
    /// Only so many of the last lines that are there.
    pub(super) tail: Option<usize>,
    /// Only what came at or after it, ns since 1970.
    pub(super) since_ns: Option<u64>,
    /// Only what came at or before it.
    pub(super) until_ns: Option<u64>,
}

/// Reads one process.
pub(super) struct Source {
    pub(super) watch: Watch,
    feed: Feed,
    range: Range,
    ledger: Ledger,
    begun: Lines,
    ready: VecDeque<Line>,
    /// Lines received so far.
    count: usize,
    /// What `count` was when bytes were last found to be gone.
    gone_before: usize,
    /// Lines left out, because only the last ones are asked for.
    passed: usize,
    /// Everything that was there at the beginning has been received.
    pub(super) caught_up: bool,
    /// It gives no more lines.
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
            gone_before: 0,
            passed: 0,
            caught_up: false,
            done: false,
            cut: false,
            follow,
        }
    }

    /// The next line of what was there at the beginning, read if it has to be; none after the last. Cancelling it
    /// loses nothing.
    pub(super) async fn peek(&mut self) -> Result<Option<&Line>, Failure> {
        let enough = |source: &Self| match source.range.tail {
            // Which the last ones are is known once all have come.
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

    /// Reads once more, waiting for that. Cancelling it loses nothing.
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
        if !batch.gaps.is_empty() {
            self.ledger.gap();
        }
        for event in &batch.events {
            self.event(event);
        }
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
        if since_ns.is_some_and(|since| event.realtime_ns < since) {
            // What is gone up to here was not asked for.
            self.ledger.forgive();
            return;
        }
        if self.ledger.gone() > gone {
            self.gone_before = self.count;
        }
        let (Some(Kind::Data(data)), Some(fresh)) = (&event.kind, fresh) else {
            return;
        };
        let at = (event.seq, event.realtime_ns);
        let mut ended = Vec::new();
        self.begun
            .push(at, data.stream(), fresh, |line| ended.push(line));
        self.take(ended);
    }

    /// Adds lines to those that were read. Of what was there at the beginning only the last `tail` are kept.
    fn take(&mut self, lines: Vec<Line>) {
        let tail = self.range.tail.filter(|_| !self.caught_up);
        for line in lines {
            self.count += 1;
            self.ready.push_back(line);
            if tail.is_some_and(|tail| self.ready.len() > tail) {
                self.ready.pop_front();
                self.passed += 1;
            }
        }
    }

    /// Lines that have begun and not ended are taken as they are: their end is not waited for.
    fn finish_lines(&mut self) {
        let rest = self.begun.rest().collect();
        self.take(rest);
    }

    fn end(&mut self) {
        self.finish_lines();
        self.done = true;
        self.caught_up = true;
    }

    /// With `tail`, what is gone before the lines that were kept was not asked for.
    pub(super) fn settle_tail(&mut self) {
        if self.passed > self.gone_before {
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
