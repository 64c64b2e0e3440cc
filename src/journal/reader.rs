//! Reading: a cursor that walks the log and accounts for every event it passes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use smallvec::SmallVec;

use super::labels::LabelSets;
use super::log::{CLOSED, Log, REMOVED};
use super::outbox::Entry;
use super::{Inner, Journal};
use crate::error::Result;
use crate::event::{Cursor, Gap, GapReason};

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
    fn is_all(&self) -> bool {
        self.watches.is_empty() && self.kinds.is_empty() && self.labels.is_empty()
    }

    fn matches(&self, entry: &Entry, labels: &LabelSets) -> bool {
        (self.watches.is_empty() || self.watches.contains(&entry.watch))
            && (self.kinds.is_empty() || self.kinds.contains(&entry.kind))
            && (self.labels.is_empty() || labels.matches(entry.labels, &self.labels))
    }
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    /// With what is appended from here on.
    Now,
    /// With the oldest event held.
    Oldest,
    /// After a cursor; `skip` turns what is missing into a gap instead of an error.
    After {
        /// Exclusive.
        cursor: Cursor,
        /// Begin with a gap rather than fail.
        skip: bool,
    },
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

/// A cursor into a journal.
pub struct Reader {
    journal: Arc<Journal>,
    id: u64,
    after: u64,
    filter: Filter,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("id", &self.id)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// A reader that begins at `start`.
    ///
    /// # Errors
    /// A cursor that is too old, of another history or from the future, unless it may skip.
    pub fn reader(self: &Arc<Self>, start: Start, filter: Filter) -> Result<Reader> {
        let mut inner = self.inner.lock();
        let after = match start {
            Start::Now => inner.log.newest(),
            Start::Oldest => inner.oldest_position(),
            Start::After { cursor, skip } => self.position(&inner.log, cursor, skip)?,
        };
        inner.readers += 1;
        inner.next_reader += 1;
        Ok(Reader {
            journal: Arc::clone(self),
            id: inner.next_reader,
            after,
            filter,
        })
    }

    fn position(&self, log: &Log, cursor: Cursor, skip: bool) -> Result<u64> {
        if cursor.epoch.is_some_and(|epoch| epoch != self.epoch) {
            return if skip {
                Ok(0)
            } else {
                Err(self.out_of_range(log, cursor, "of another history"))
            };
        }
        if cursor.seq > log.newest() {
            return if skip {
                Ok(log.newest())
            } else {
                Err(self.out_of_range(log, cursor, "from the future"))
            };
        }
        if !skip && log.lost_after(cursor.seq) {
            return Err(self.out_of_range(log, cursor, "too old"));
        }
        Ok(cursor.seq)
    }
}

impl Inner {
    /// Right before the oldest event held: an island, or the ring's first.
    fn oldest_position(&self) -> u64 {
        let island = self.log.islands_from(0).next().map(|(seq, _)| seq);
        island.unwrap_or(self.log.first()) - 1
    }
}

impl Log {
    /// Whether an event after `seq` is gone.
    fn lost_after(&self, seq: u64) -> bool {
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

impl Reader {
    /// The same position, with another filter.
    #[must_use]
    pub fn filtered(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Everything up to here was read.
    #[must_use]
    pub const fn after(&self) -> u64 {
        self.after
    }

    /// The journal it reads.
    #[must_use]
    pub const fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Reads what there is, at most about `max_bytes` and `max_events`; one event
    /// larger than that comes alone. Empty, with `caught_up`, if there is nothing.
    pub fn read(&mut self, max_bytes: usize, max_events: usize) -> Read {
        let journal = Arc::clone(&self.journal);
        let inner = journal.inner.lock();
        self.read_locked(&inner, max_bytes, max_events)
    }

    /// Reads as soon as something lies after the cursor, be it only progress past
    /// events that the filter leaves out; `None` once the journal is closed and read.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        max_bytes: usize,
        max_events: usize,
    ) -> Poll<Option<Read>> {
        let journal = Arc::clone(&self.journal);
        let mut inner = journal.inner.lock();
        if inner.log.newest() > self.after {
            return Poll::Ready(Some(self.read_locked(&inner, max_bytes, max_events)));
        }
        if inner.closed {
            return Poll::Ready(None);
        }
        inner.waiting.insert(self.id, cx.waker().clone());
        Poll::Pending
    }

    fn read_locked(&mut self, inner: &Inner, max_bytes: usize, max_events: usize) -> Read {
        let mut walk = Walk {
            inner,
            filter: &self.filter,
            read: Read {
                after: self.after,
                through: self.after,
                ..Read::default()
            },
            max_bytes,
            max_events,
            scan_end: self.after.saturating_add(SCAN_MAX),
        };
        if walk.islands().is_continue() {
            walk.ring();
        }
        let mut read = walk.read;
        read.caught_up = read.through == inner.log.newest();
        // The end may itself be lost in a gap: a watch that is gone has nothing more to say.
        let mut watches = self.filter.watches.iter();
        read.ended |= self.filter.until_closed
            && read.caught_up
            && !watches.any(|watch| inner.log.is_present(*watch));
        self.after = read.through;
        read
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut inner = self.journal.inner.lock();
        inner.readers -= 1;
        inner.waiting.remove(&self.id);
    }
}

struct Walk<'a> {
    inner: &'a Inner,
    filter: &'a Filter,
    read: Read,
    max_bytes: usize,
    max_events: usize,
    scan_end: u64,
}

impl Walk<'_> {
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

    fn gap(&mut self, from: u64, through: u64) {
        self.read.gaps.push(Gap {
            from_seq: from,
            through_seq: through,
            reason: GapReason::Trimmed.into(),
        });
        self.read.through = through;
    }

    /// What lies before the ring: islands, and gaps between them.
    fn islands(&mut self) -> ControlFlow<()> {
        let first = self.inner.log.first();
        if self.read.through + 1 >= first {
            return ControlFlow::Continue(());
        }
        for (seq, island) in self.inner.log.islands_from(self.read.through + 1) {
            let wanted = self.filter.matches(&island.entry, &self.inner.labels);
            if self.read.gaps.len() >= GAPS_MAX || (wanted && self.full_with(island.bytes.len())) {
                return ControlFlow::Break(());
            }
            if seq > self.read.through + 1 {
                self.gap(self.read.through + 1, seq - 1);
            }
            self.read.through = seq;
            if wanted {
                self.read.events += 1;
                self.read.bytes += island.bytes.len();
                self.read.slices.push(island.bytes.clone());
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

    /// What lies in the ring: runs of matching events become slices.
    fn ring(&mut self) {
        let log = &self.inner.log;
        let newest = log.newest().min(self.scan_end.max(log.first()));
        let all = self.filter.is_all();
        let mut run = self.read.through + 1;
        let mut seq = run;
        while seq <= newest {
            let Some(entry) = log.entry(seq) else { break };
            if all || self.filter.matches(entry, &self.inner.labels) {
                let len = usize::try_from(log.len_of(seq..seq + 1)).unwrap_or(usize::MAX);
                if self.full_with(len) {
                    break;
                }
                self.read.events += 1;
                self.read.bytes += len;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::BytesMut;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::clock::Now;
    use crate::event::{self, Closed, Kind, Posted, Removed};
    use crate::journal::{About, Limits, Memory, Outbox};
    use crate::proto::Batch;

    fn decode(read: &Read) -> Batch {
        let mut buf = BytesMut::new();
        event::encode_batch_header(read.after, read.through, &read.gaps, false, &mut buf);
        for slice in &read.slices {
            buf.extend_from_slice(slice);
        }
        Batch::decode(buf.freeze()).unwrap()
    }

    fn journal(events: u64, bytes: u64) -> (Arc<Journal>, Outbox, Arc<Memory>) {
        let memory = Memory::new(1 << 30);
        let journal = Journal::new(Limits { events, bytes }, Arc::clone(&memory)).unwrap();
        let outbox = Outbox::new(Arc::clone(&journal));
        (journal, outbox, memory)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Post(u64, u8),
        Close(u64),
        Remove(u64),
        Commit,
        Read { max_bytes: usize, max_events: usize },
        Resume(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..4u64, 0..200u8).prop_map(|(w, n)| Step::Post(w, n)),
            2 => (1..4u64).prop_map(Step::Close),
            1 => (1..4u64).prop_map(Step::Remove),
            4 => Just(Step::Commit),
            4 => (1..600usize, 1..10usize)
                .prop_map(|(max_bytes, max_events)| Step::Read { max_bytes, max_events }),
            1 => (0..40u64).prop_map(Step::Resume),
        ]
    }

    proptest! {
        /// Against a list of everything ever appended: each read begins where the last
        /// one ended and accounts for every number by an event, a gap or the filter; what is
        /// delivered is what was appended; no fact of a closed watch is lost before it is removed.
        #[test]
        fn every_read_accounts_for_every_event(
            steps in prop::collection::vec(step(), 1..200),
            watches in prop::collection::btree_set(0..4u64, 0..3),
        ) {
            let (journal, mut outbox, memory) = journal(12, 1500);
            let filter = Filter { watches: watches.clone(), ..Filter::default() };
            let mut reader = journal.reader(Start::Oldest, filter.clone()).unwrap();
            let mut all: Vec<(u64, Kind)> = Vec::new();
            let mut committed = 0;
            let mut kept = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Post(watch, size) => {
                        let kind = Kind::Posted(Posted {
                            payload: vec![size; usize::from(size)].into(),
                            ..Posted::default()
                        });
                        all.push((watch, kind));
                    }
                    Step::Close(watch) => {
                        all.push((watch, Kind::Closed(Closed::default())));
                        kept.insert((watch, all.len() as u64));
                    }
                    Step::Remove(watch) => {
                        all.push((watch, Kind::Removed(Removed::default())));
                        kept.retain(|(of, _)| *of != watch);
                    }
                    Step::Commit => {
                        outbox.commit();
                        committed = all.len() as u64;
                        continue;
                    }
                    Step::Read { max_bytes, max_events } => {
                        let from = reader.after();
                        let read = reader.read(max_bytes, max_events);
                        let batch = decode(&read);
                        prop_assert_eq!(read.after, from);
                        prop_assert_eq!(read.caught_up, read.through == committed);
                        let mut events = batch.events.iter().peekable();
                        let mut gaps = batch.gaps.iter().peekable();
                        let mut seq = read.after + 1;
                        while seq <= read.through {
                            if let Some(gap) = gaps.next_if(|gap| gap.from_seq == seq) {
                                for (watch, at) in &kept {
                                    let lost = (gap.from_seq..=gap.through_seq).contains(at);
                                    prop_assert!(!lost, "lost the end of watch {}", watch);
                                }
                                seq = gap.through_seq + 1;
                                continue;
                            }
                            let (watch, kind) = &all[usize::try_from(seq).unwrap() - 1];
                            if watches.is_empty() || watches.contains(watch) {
                                let event = events.next().unwrap();
                                prop_assert_eq!(event.seq, seq);
                                prop_assert_eq!(event.kind.as_ref(), Some(kind));
                            }
                            seq += 1;
                        }
                        prop_assert!(events.next().is_none() && gaps.next().is_none());
                        continue;
                    }
                    Step::Resume(seq) => {
                        let cursor = Cursor { epoch: None, seq };
                        let start = Start::After { cursor, skip: false };
                        match journal.reader(start, filter.clone()) {
                            Ok(resumed) => {
                                prop_assert!(seq <= committed);
                                reader = resumed;
                                let mut first = journal.reader(start, filter.clone()).unwrap();
                                prop_assert!(first.read(1, 1).gaps.is_empty());
                            }
                            Err(error) => {
                                let oldest = journal.status().oldest;
                                prop_assert!(seq > committed || seq + 1 < oldest, "{}", error);
                            }
                        }
                        continue;
                    }
                }
                let (watch, kind) = all.last().cloned().unwrap();
                let about = About { watch, ..About::default() };
                prop_assert_eq!(outbox.push(Now::default(), about, kind), all.len() as u64);
            }
            outbox.commit();
            let status = journal.status();
            prop_assert!(status.events - status.islands == 0 || status.events <= 12);
            prop_assert_eq!(memory.used(), status.bytes);
            drop((reader, outbox, journal));
            prop_assert_eq!(memory.used(), 0);
        }
    }

    #[test]
    fn labels_filter_until_their_last_event_is_gone() {
        let (journal, mut outbox, _) = journal(4, 1 << 20);
        let labels: event::Labels = Arc::new([("job".to_owned(), "a".to_owned())].into());
        let set = journal.intern_labels(&labels);
        let about = About {
            watch: 1,
            user_data: 0,
            labels: set,
        };
        outbox.push(Now::default(), about, Kind::Posted(Posted::default()));
        outbox.push(
            Now::default(),
            About::default(),
            Kind::Posted(Posted::default()),
        );
        outbox.release_labels(set);
        outbox.commit();
        let filter = Filter {
            labels: (*labels).clone(),
            ..Filter::default()
        };
        let mut reader = journal.reader(Start::Oldest, filter).unwrap();
        let read = reader.read(1 << 20, 100);
        assert_eq!((read.events, read.through), (1, 2));
        for _ in 0..4 {
            outbox.push(
                Now::default(),
                About::default(),
                Kind::Posted(Posted::default()),
            );
        }
        outbox.commit();
        // The set is free for another use now that nothing refers to it.
        let other: event::Labels = Arc::new([("job".to_owned(), "b".to_owned())].into());
        assert_eq!(journal.intern_labels(&other), set);
    }
}
