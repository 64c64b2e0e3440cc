//! Checks that batches account for every sequence number, and checks the events of the loop itself.

use std::collections::{BTreeMap, HashMap};

use crate::kinds::event_kind_name;
use crate::proto::event::Kind;
use crate::proto::{Batch, Event, Gap, GapReason, LoopState};

use super::coverage::Coverage;
use super::grammar::{self, Origin};
use super::violation::require;
use super::watch::WatchHistory;
use super::{Rule, Summary, View, Violation};

/// Verifies one subscription as its batches arrive.
///
/// Its memory grows with the number of open watches, not with the length of the history.
#[derive(Debug)]
pub struct Checker {
    coverage: Coverage,
    through: u64,
    monotonic_ns: u64,
    state: Option<(u64, LoopState)>,
    accepted: Option<Accepted>,
    watches: HashMap<u64, WatchHistory>,
    removed: IdSet,
    summary: Summary,
}

/// An `Accepted` event. The next event must be the `Added` of its connection.
#[derive(Debug, Clone, Copy)]
struct Accepted {
    seq: u64,
    listener: u64,
    connection: u64,
}

impl Checker {
    /// Makes a checker for a subscription whose first batch comes after `start`. The other
    /// arguments are as in [`Recording`](super::Recording).
    #[must_use]
    pub fn new(start: u64, view: View, from_birth: bool) -> Self {
        Self {
            coverage: Coverage {
                view,
                from_birth,
                last_lost: 0,
            },
            through: start,
            monotonic_ns: 0,
            state: None,
            accepted: None,
            watches: HashMap::new(),
            removed: IdSet::default(),
            summary: Summary::default(),
        }
    }

    /// Returns the last sequence number accounted for.
    #[must_use]
    pub const fn through(&self) -> u64 {
        self.through
    }

    /// Checks the next batch.
    ///
    /// # Errors
    /// The first violation in the batch. The checker must not be used after that.
    pub fn push(&mut self, batch: &Batch) -> Result<(), Violation> {
        let (after, through) = (batch.after, batch.through);
        require(after == self.through, Rule::BatchAfter, || {
            format!(
                "a batch begins after {after}, but the batch before it ends at {}",
                self.through
            )
        })?;
        require(through >= after, Rule::BatchThrough, || {
            format!("a batch goes from {after} back to {through}")
        })?;
        let mut gaps = batch.gaps.iter().peekable();
        for event in &batch.events {
            while let Some(gap) = gaps.next_if(|gap| gap.from_seq <= event.seq) {
                self.gap(gap, batch)?;
            }
            self.event(event, batch)?;
        }
        for gap in gaps {
            self.gap(gap, batch)?;
        }
        self.account(through)?;
        self.through = through;
        Ok(())
    }

    /// Returns a summary of all batches.
    #[must_use]
    pub fn finish(self) -> Summary {
        let open = self.watches.values().filter(|watch| watch.is_open());
        Summary {
            open_watches: u64::try_from(open.count()).unwrap_or(u64::MAX),
            through: self.through,
            ..self.summary
        }
    }

    /// Checks that every sequence number up to `last` has been delivered, or need not be.
    fn account(&self, last: u64) -> Result<(), Violation> {
        let filtered = self.coverage.view != View::All;
        require(filtered || last <= self.through, Rule::Unaccounted, || {
            format!(
                "{} to {last} are neither delivered nor lost",
                self.through + 1
            )
        })
    }

    fn gap(&mut self, gap: &Gap, batch: &Batch) -> Result<(), Violation> {
        let (from, through) = (gap.from_seq, gap.through_seq);
        let has_reason = gap.reason() != GapReason::Unspecified;
        require(from <= through && has_reason, Rule::GapShape, || {
            format!("the gap {from} to {through} is empty or has no reason")
        })?;
        require(
            from > batch.after && through <= batch.through,
            Rule::Outside,
            || {
                format!(
                    "the gap {from} to {through} is outside its batch, ({}, {}]",
                    batch.after, batch.through
                )
            },
        )?;
        require(from > self.through, Rule::Overlap, || {
            format!(
                "the gap {from} to {through} overlaps what precedes it, up to {}",
                self.through
            )
        })?;
        self.account(from - 1)?;
        self.through = through;
        self.coverage.last_lost = through;
        self.summary.gaps += 1;
        self.summary.lost += through - from + 1;
        Ok(())
    }

    fn event(&mut self, event: &Event, batch: &Batch) -> Result<(), Violation> {
        let seq = event.seq;
        require(
            seq > batch.after && seq <= batch.through,
            Rule::Outside,
            || {
                format!(
                    "event {seq} is outside its batch, ({}, {}]",
                    batch.after, batch.through
                )
            },
        )?;
        let in_gap = self.coverage.last_lost >= seq && self.through == self.coverage.last_lost;
        require(!in_gap, Rule::Overlap, || {
            format!("event {seq} is inside a gap")
        })?;
        require(seq > self.through, Rule::EventOrder, || {
            format!("event {seq} comes after event {}", self.through)
        })?;
        self.account(seq - 1)?;
        self.through = seq;

        let now = event.monotonic_ns;
        require(now >= self.monotonic_ns, Rule::Clock, || {
            format!(
                "at event {seq} the monotonic clock goes back from {} to {now}",
                self.monotonic_ns
            )
        })?;
        self.monotonic_ns = now;

        self.summary.events += 1;
        let Some(kind) = &event.kind else {
            return Ok(()); // a kind newer than this checker
        };
        *self.summary.kinds.entry(event_kind_name(kind)).or_default() += 1;
        self.loop_rules(event, kind)?;
        self.follow_accepted(event, kind)?;
        if event.watch_id == 0 {
            return require(
                grammar::of_event(kind) == Origin::Loop,
                Rule::ForeignKind,
                || {
                    let name = event_kind_name(kind);
                    format!("event {seq}, {name}, names no watch")
                },
            );
        }
        self.watch_rules(event, kind)
    }

    fn watch_rules(&mut self, event: &Event, kind: &Kind) -> Result<(), Violation> {
        let (seq, id) = (event.seq, event.watch_id);
        require(!self.removed.contains(id), Rule::AfterRemoved, || {
            format!("event {seq} is of watch {id}, which was removed before")
        })?;
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.next(event, kind, self.coverage)?;
        } else {
            self.summary.watches += 1;
            let watch = WatchHistory::first(event, kind, self.coverage)?;
            self.watches.insert(id, watch);
        }
        if matches!(kind, Kind::Removed(_)) {
            self.watches.remove(&id);
            self.removed.insert(id);
        }
        Ok(())
    }

    fn loop_rules(&mut self, event: &Event, kind: &Kind) -> Result<(), Violation> {
        let seq = event.seq;
        let closed = matches!(self.state, Some((_, LoopState::Closed)));
        require(!closed, Rule::LoopClosed, || {
            format!("event {seq} follows the closing of the loop")
        })?;
        if let Kind::LoopStateChanged(change) = kind {
            let new = change.state();
            if let Some((since, old)) = self.state
                && !self.coverage.lossy_since(since)
            {
                require(may_become(old, new), Rule::LoopState, || {
                    format!("at event {seq} the loop goes from {old:?} to {new:?}")
                })?;
            }
            self.state = Some((seq, new));
            return Ok(());
        }
        let idle = self.state.is_some_and(|(since, state)| {
            state != LoopState::Running && !self.coverage.lossy_since(since)
        });
        let polled = grammar::of_event(kind) == Origin::Polling;
        require(!(idle && polled), Rule::LoopIdle, || {
            format!(
                "event {seq} is {}, but the loop does not run",
                event_kind_name(kind)
            )
        })
    }

    fn follow_accepted(&mut self, event: &Event, kind: &Kind) -> Result<(), Violation> {
        let accepted = self.accepted.take();
        if self.coverage.view != View::All {
            return Ok(());
        }
        let seq = event.seq;
        let parent = match kind {
            Kind::Added(added) => added.parent_watch_id,
            _ => 0,
        };
        match accepted.filter(|accepted| accepted.seq == seq - 1) {
            Some(accepted) => require(
                parent == accepted.listener && event.watch_id == accepted.connection,
                Rule::AcceptedAdded,
                || {
                    format!(
                        "event {} accepts connection {}, but event {seq} does not add it",
                        accepted.seq, accepted.connection
                    )
                },
            )?,
            None => require(
                parent == 0 || self.unseen_before(seq),
                Rule::AcceptedAdded,
                || {
                    format!(
                        "event {seq} adds a connection of listener {parent}, but no Accepted precedes it"
                    )
                },
            )?,
        }
        if let Kind::Accepted(of) = kind {
            self.accepted = Some(Accepted {
                seq,
                listener: event.watch_id,
                connection: of.watch_id,
            });
        }
        Ok(())
    }

    /// Returns whether the event before `seq` was lost, or was before the recording.
    fn unseen_before(&self, seq: u64) -> bool {
        let recording_begins = self.summary.events == 1 && self.coverage.lossy_from_start();
        recording_begins || self.coverage.last_lost == seq - 1
    }
}

/// Returns whether a loop may change from the state `old` to `new`.
const fn may_become(old: LoopState, new: LoopState) -> bool {
    use LoopState::{Closed, Created, Running, Stopped};
    matches!(
        (old, new),
        (Created | Stopped, Running) | (Running, Stopped) | (Created | Running | Stopped, Closed)
    )
}

/// A set of ids, kept as ranges: ids are given out in order and most watches are removed, so it
/// stays small.
#[derive(Debug, Default)]
struct IdSet {
    /// The first and last id of each range, both included; ranges are disjoint and not adjacent.
    ranges: BTreeMap<u64, u64>,
}

impl IdSet {
    fn contains(&self, id: u64) -> bool {
        let below = self.ranges.range(..=id).next_back();
        below.is_some_and(|(_, last)| *last >= id)
    }

    fn insert(&mut self, id: u64) {
        let (mut first, mut last) = (id, id);
        if let Some(end) = id.checked_add(1).and_then(|next| self.ranges.remove(&next)) {
            last = end;
        }
        if let Some((&start, &end)) = self.ranges.range(..id).next_back()
            && end == id - 1
        {
            first = start;
        }
        self.ranges.insert(first, last);
    }
}
