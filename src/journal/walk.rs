//! One read: a walk over islands and ring that accounts for every event it passes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Inner;
use super::labels::LabelSets;
use super::log::{CLOSED, Log, REMOVED};
use super::outbox::Entry;
use crate::event::{Gap, GapReason};

/// Most events that one read looks at, so that a filter that matches nothing
/// does not hold the lock for long.
const SCAN_MAX: u64 = 16 * 1024;

/// Most gaps of one read.
const GAPS_MAX: usize = 1024;

/// Which events a reader wants; all if nothing is set.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of any of these watches (0: the loop itself).
    pub watches: BTreeSet<u64>,
    /// Of any of these kinds, by number.
    pub kinds: BTreeSet<u8>,
    /// Of watches with all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Read no further than the end of a watch that matches.
    pub until_closed: bool,
}

impl Filter {
    /// Everything of one watch, and nothing behind its end.
    #[must_use]
    pub fn life_of(watch: u64) -> Self {
        Self {
            watches: [watch].into(),
            until_closed: true,
            ..Self::default()
        }
    }

    fn is_all(&self) -> bool {
        self.watches.is_empty() && self.kinds.is_empty() && self.labels.is_empty()
    }

    fn matches(&self, entry: &Entry, labels: &LabelSets) -> bool {
        (self.watches.is_empty() || self.watches.contains(&entry.watch))
            && (self.kinds.is_empty() || self.kinds.contains(&entry.kind))
            && (self.labels.is_empty() || labels.matches(entry.labels, &self.labels))
    }
}

/// A stretch of the log: all of (after, through] is an event in it, a gap, or
/// not matched by the reader's filter.
#[derive(Debug, Clone, Default)]
pub struct Read {
    /// Exclusive.
    pub after: u64,
    /// Inclusive.
    pub through: u64,
    /// Encoded events, in order, back to back.
    pub slices: SmallVec<[Bytes; 4]>,
    /// How many events those are.
    pub events: usize,
    /// Their size.
    pub bytes: usize,
    /// What is lost.
    pub gaps: Vec<Gap>,
    /// Nothing lies behind `through`.
    pub caught_up: bool,
    /// A matching event was the end of a watch: nothing is read behind it.
    pub ended: bool,
}

impl Log {
    /// The newest event that is lost to a reader of these watches; none if that is not known:
    /// of all watches, or of one that is gone.
    fn lost_through(&self, filter: &Filter) -> Option<u64> {
        let lost = filter
            .watches
            .iter()
            .map(|w| self.watches().lost_through(*w));
        lost.max_by_key(|lost| lost.unwrap_or(u64::MAX)).flatten()
    }

    /// Whether an event after `seq` is gone that the filter may have let through.
    pub(super) fn has_lost_after(&self, seq: u64, filter: &Filter) -> bool {
        if let Some(lost) = self.lost_through(filter) {
            return lost > seq;
        }
        let mut next = seq + 1;
        for (island, _) in self.islands_from(next) {
            if island != next {
                break;
            }
            next += 1;
        }
        next < self.first()
    }
}

/// One read on its way through the log.
pub(super) struct Walk<'a> {
    inner: &'a Inner,
    filter: &'a Filter,
    /// See [`Log::lost_through`].
    lost: Option<u64>,
    /// Cost of the watch's events up to the last that matched.
    upto: Option<u64>,
    read: Read,
    max_bytes: usize,
    max_events: usize,
    scan_end: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        inner: &'a Inner,
        filter: &'a Filter,
        after: u64,
        max_bytes: usize,
        max_events: usize,
    ) -> Self {
        Self {
            inner,
            filter,
            lost: inner.log.lost_through(filter),
            upto: None,
            read: Read {
                after,
                through: after,
                ..Read::default()
            },
            max_bytes,
            max_events,
            scan_end: after.saturating_add(SCAN_MAX),
        }
    }

    /// What is read, and what the events of its watch cost up to the last that matched.
    pub(super) fn take(mut self) -> (Read, Option<u64>) {
        if self.islands().is_continue() {
            self.ring();
        }
        let (inner, mut read) = (self.inner, self.read);
        read.caught_up = read.through == inner.log.newest();
        // The end may itself be lost in a gap: a watch that is gone has nothing more to say.
        let mut watches = self.filter.watches.iter();
        read.ended |= self.filter.until_closed
            && read.caught_up
            && !watches.any(|watch| inner.log.watches().is_present(*watch));
        (read, self.upto)
    }

    fn full_with(&self, more: usize) -> bool {
        self.read.events >= self.max_events
            || (self.read.events > 0 && self.read.bytes + more > self.max_bytes)
    }

    /// Whether this is the end that the reader waits for.
    fn ends(&mut self, entry: &Entry) -> bool {
        let end = self.filter.until_closed && matches!(entry.kind, CLOSED | REMOVED);
        self.read.ended |= end;
        end
    }

    /// These events are gone. Where it is known that none after `lost` was wanted, the gap ends there.
    fn gap(&mut self, from: u64, through: u64) {
        let lost = self.lost.map_or(through, |lost| lost.min(through));
        if from <= lost {
            self.read.gaps.push(Gap {
                from_seq: from,
                through_seq: lost,
                reason: GapReason::Trimmed.into(),
            });
        }
        self.read.through = through;
    }

    /// What lies before the ring: islands, and gaps between them.
    fn islands(&mut self) -> ControlFlow<()> {
        let first = self.inner.log.first();
        if self.read.through + 1 >= first {
            return ControlFlow::Continue(());
        }
        let islands = self.inner.log.islands_from(self.read.through + 1);
        for ((seq, island), scanned) in islands.zip(0..) {
            let wanted = self.filter.matches(&island.entry, &self.inner.labels);
            if self.read.gaps.len() >= GAPS_MAX
                || scanned >= SCAN_MAX
                || (wanted && self.full_with(island.bytes.len()))
            {
                return ControlFlow::Break(());
            }
            if seq > self.read.through + 1 {
                self.gap(self.read.through + 1, seq - 1);
            }
            self.read.through = seq;
            if wanted {
                self.read.events += 1;
                self.read.bytes += island.bytes.len();
                let bytes = Bytes::copy_from_slice(&island.bytes);
                self.read.slices.push(bytes);
                self.upto = Some(island.entry.upto);
                if self.ends(&island.entry) {
                    return ControlFlow::Break(());
                }
            }
        }
        if self.read.through + 1 < first {
            self.gap(self.read.through + 1, first - 1);
        }
        ControlFlow::Continue(())
    }

    /// What lies in the ring, for a reader who wants all of it: nobody looks at each event.
    fn all_of_ring(&mut self) {
        let log = &self.inner.log;
        let from = self.read.through + 1;
        let room = self.max_bytes.saturating_sub(self.read.bytes) as u64;
        let most = self.max_events.saturating_sub(self.read.events) as u64;
        let alone = u64::from(self.read.events == 0);
        let end = log.end_within(from, room).max(from + alone.min(most));
        let end = end.min(from + most).min(log.newest() + 1);
        if end > from {
            // They are in memory: their number and size fit.
            let fit = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            self.read.events += fit(end - from);
            self.read.bytes += fit(log.len_of(from..end));
            log.slices(from..end, &mut |slice| self.read.slices.push(slice));
        }
        self.read.through = end - 1;
    }

    /// What lies in the ring: runs of matching events become slices.
    fn ring(&mut self) {
        let log = &self.inner.log;
        if self.filter.is_all() && !self.filter.until_closed {
            return self.all_of_ring();
        }
        let newest = log.newest().min(self.scan_end.max(log.first()));
        let mut run = self.read.through + 1;
        let mut seq = run;
        while seq <= newest {
            let Some(entry) = log.entry(seq) else { break };
            if self.filter.matches(entry, &self.inner.labels) {
                let len = usize::try_from(log.len_of(seq..seq + 1)).unwrap_or(usize::MAX);
                if self.full_with(len) {
                    break;
                }
                self.read.events += 1;
                self.read.bytes += len;
                self.upto = Some(entry.upto);
                if self.ends(entry) {
                    seq += 1;
                    break;
                }
            } else {
                log.slices(run..seq, &mut |slice| self.read.slices.push(slice));
                run = seq + 1;
            }
            seq += 1;
        }
        log.slices(run..seq, &mut |slice| self.read.slices.push(slice));
        self.read.through = seq - 1;
    }
}
