//! One read: a walk over islands and ring that accounts for every sequence number it passes.

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

/// Most gaps that one read returns.
const GAPS_MAX: usize = 1024;

/// Which events a reader wants. An empty field matches everything.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Events of any of these watches (0 means the loop itself).
    pub watches: BTreeSet<u64>,
    /// Events of any of these kinds, by number.
    pub kinds: BTreeSet<u8>,
    /// Events of watches with all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Stop reading at the end of a watch that matches.
    pub until_closed: bool,
}

impl Filter {
    /// Matches all events of one watch, and stops at its end.
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

/// The result of one read: each sequence number in (after, through] is an event, or in a gap, or
/// left out by the reader's filter.
#[derive(Debug, Clone, Default)]
pub struct Read {
    /// The sequence number up to which was read before; exclusive.
    pub after: u64,
    /// The sequence number up to which is read now; inclusive.
    pub through: u64,
    /// Encoded events, in order, back to back.
    pub slices: SmallVec<[Bytes; 4]>,
    /// The number of events in `slices`.
    pub events: usize,
    /// The bytes of those events.
    pub bytes: usize,
    /// The ranges of events that are lost.
    pub gaps: Vec<Gap>,
    /// The journal has no event after `through`.
    pub caught_up: bool,
    /// The last event was the end of a watch that matches, and the filter says to stop there.
    pub ended: bool,
}

impl Log {
    /// Returns the newest lost event of the filter's watches. `None` if that is not known: the
    /// filter names no watch, or one that is gone.
    fn lost_through(&self, filter: &Filter) -> Option<u64> {
        let lost = filter
            .watches
            .iter()
            .map(|w| self.watches().lost_through(*w));
        lost.max_by_key(|lost| lost.unwrap_or(u64::MAX)).flatten()
    }

    /// Returns whether a lost event after `seq` could have matched the filter.
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

/// A read while it walks through the log.
pub(super) struct Walk<'a> {
    inner: &'a Inner,
    filter: &'a Filter,
    /// See [`Log::lost_through`].
    lost: Option<u64>,
    /// The cost of the watch's events up to the last that matched.
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

    /// Walks. Returns the read, and the cost of the watch's events up to the last that matched.
    pub(super) fn take(mut self) -> (Read, Option<u64>) {
        if self.islands().is_continue() {
            self.ring();
        }
        let (inner, mut read) = (self.inner, self.read);
        read.caught_up = read.through == inner.log.newest();
        // The end of the watch may itself be lost: once the watch is gone, no event of it follows.
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

    /// Returns whether this event is where the filter says to stop.
    fn ends(&mut self, entry: &Entry) -> bool {
        let end = self.filter.until_closed && matches!(entry.kind, CLOSED | REMOVED);
        self.read.ended |= end;
        end
    }

    /// Records a gap. If it is known that no wanted event after `lost` is lost, the gap ends there.
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

    /// Reads what lies before the ring: islands, and the gaps between them.
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

    /// Reads the ring for a reader that wants every event, without a look at each of them.
    fn all_of_ring(&mut self) {
        let log = &self.inner.log;
        let from = self.read.through + 1;
        let room = self.max_bytes.saturating_sub(self.read.bytes) as u64;
        let most = self.max_events.saturating_sub(self.read.events) as u64;
        let alone = u64::from(self.read.events == 0);
        let end = log.end_within(from, room).max(from + alone.min(most));
        let end = end.min(from + most).min(log.newest() + 1);
        if end > from {
            // The events are in memory: their number and size fit into a `usize`.
            let fit = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            self.read.events += fit(end - from);
            self.read.bytes += fit(log.len_of(from..end));
            log.slices(from..end, &mut |slice| self.read.slices.push(slice));
        }
        self.read.through = end - 1;
    }

    /// Reads the ring: runs of matching events become slices.
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
