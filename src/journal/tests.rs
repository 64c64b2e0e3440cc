//! Tests of the journal against a model: a list of everything ever appended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::event::{self, Closed, Data, Kind, Posted, Removed, Scanned};
use crate::proto::Batch;
use crate::state::tests::killed;
use crate::state::{Arena, Keep};

const LIMITS: Limits = Limits {
    events: 12,
    bytes: 1500,
    watch_bytes: 400,
    history: History::Kept,
    watch_keep: 0,
    attached_bytes: 200,
    attached_patience: Duration::from_secs(60),
    when_full: WhenFull::Pause,
    consumers: 3,
    consumer_ttl: Duration::from_secs(60),
};

mod attached;
mod lives;
mod memory;
mod single;
mod unkept;

fn journal(limits: Limits) -> (Arc<Journal>, Outbox, Arc<Memory>) {
    let memory = Memory::new(1 << 30);
    let journal = Journal::new(limits, &memory).unwrap();
    let outbox = Outbox::new(Arc::clone(&journal));
    (journal, outbox, memory)
}

/// Returns what the journal takes of the memory of all journals.
fn cost(status: &Status) -> u64 {
    status.bytes + status.events * ENTRY_BYTES
}

fn about(watch: u64) -> About {
    About {
        watch,
        ..About::default()
    }
}

fn posted(size: u8) -> Kind {
    Kind::Posted(Posted {
        payload: vec![size; usize::from(size)].into(),
        ..Posted::default()
    })
}

fn decode(read: &Read) -> Batch {
    let mut buf = BytesMut::new();
    event::encode_batch_header(read.after, read.through, &read.gaps, false, &mut buf);
    for slice in &read.slices {
        buf.extend_from_slice(slice);
    }
    Batch::decode(buf.freeze()).unwrap()
}

impl Journal {
    fn is_present(&self, watch: u64) -> bool {
        self.monitor
            .with(|inner| inner.log.watches().is_present(watch))
    }
}

fn poll(reader: &mut Reader) -> Poll<Result<Read, End>> {
    let cx = Context::from_waker(Waker::noop());
    reader.poll_read(&cx, 1 << 20, 1 << 20)
}

#[derive(Debug, Clone)]
enum Step {
    Post(u64, u8),
    Data(u64, u8),
    Close(u64),
    Remove(u64),
    Commit,
    Read {
        who: usize,
        max_bytes: usize,
        max_events: usize,
    },
    Resume {
        who: usize,
        seq: u64,
    },
    /// Reads as this consumer, and takes it over if another reader holds it.
    Hold {
        who: usize,
        consumer: usize,
    },
    Ack {
        consumer: usize,
        back: u64,
    },
    Delete(usize),
    /// The daemon is killed, and the next life goes on.
    Kill,
    /// Attaches this reader to a watch.
    Attach {
        who: usize,
        watch: u64,
    },
}

const READERS: usize = 3;
const CONSUMERS: [&str; 3] = ["a", "b", "c"];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4u64, 0..200u8).prop_map(|(w, n)| Step::Post(w, n)),
        3 => (1..4u64, 1..200u8).prop_map(|(w, n)| Step::Data(w, n)),
        2 => (1..4u64).prop_map(Step::Close),
        1 => (1..4u64).prop_map(Step::Remove),
        5 => Just(Step::Commit),
        5 => (0..READERS, 1..600usize, 1..10usize)
            .prop_map(|(who, max_bytes, max_events)| Step::Read { who, max_bytes, max_events }),
        1 => (0..READERS, 0..60u64).prop_map(|(who, seq)| Step::Resume { who, seq }),
        2 => (0..READERS, 0..3usize).prop_map(|(who, consumer)| Step::Hold { who, consumer }),
        4 => (0..3usize, 0..8u64).prop_map(|(consumer, back)| Step::Ack { consumer, back }),
        1 => (0..3usize).prop_map(Step::Delete),
        1 => Just(Step::Kill),
        2 => (0..READERS, 1..4u64).prop_map(|(who, watch)| Step::Attach { who, watch }),
    ]
}

/// Everything that was ever appended, and what follows from it.
#[derive(Default)]
struct Model {
    all: Vec<(u64, Kind)>,
    committed: u64,
    /// Terminal facts of watches that are not removed.
    kept: BTreeSet<(u64, u64)>,
    /// What each consumer has acknowledged, and which reader holds it.
    consumers: BTreeMap<usize, (u64, Option<usize>)>,
    /// The watch that each reader is attached to, and the sequence number up to which its events
    /// may be gone.
    attached: [Option<(u64, u64)>; READERS],
    /// How often each watch was removed: then its number stands for another watch.
    lives: [u64; 4],
}

impl Model {
    /// Returns the id of the watch that the number stands for now. Ids of watches are never used
    /// again.
    fn watch(&self, number: u64) -> u64 {
        number + 4 * self.lives[usize::try_from(number).unwrap()]
    }

    fn push(&mut self, watch: u64, kind: &Kind) {
        self.all.push((watch, kind.clone()));
        let seq = self.all.len() as u64;
        match kind {
            Kind::Closed(_) => drop(self.kept.insert((watch, seq))),
            Kind::Removed(_) => self.kept.retain(|(of, _)| *of != watch),
            _ => {}
        }
    }

    /// Forgets what was not committed, and who reads.
    fn killed(&mut self) {
        self.all.truncate(usize::try_from(self.committed).unwrap());
        self.attached = [None; READERS];
        for (_, holder) in self.consumers.values_mut() {
            *holder = None;
        }
        self.lives = [0; 4];
        self.kept.clear();
        for (at, (watch, kind)) in self.all.iter().enumerate() {
            match kind {
                Kind::Closed(_) => drop(self.kept.insert((*watch, at as u64 + 1))),
                Kind::Removed(_) => {
                    self.kept.retain(|(of, _)| of != watch);
                    self.lives[usize::try_from(watch % 4).unwrap()] += 1;
                }
                _ => {}
            }
        }
    }

    /// Returns the watches that are not removed, each with its first event.
    fn watches(&self) -> BTreeMap<u64, u64> {
        let mut watches = BTreeMap::new();
        for (at, (watch, kind)) in self.all.iter().enumerate() {
            match kind {
                Kind::Removed(_) => drop(watches.remove(watch)),
                _ => drop(watches.entry(*watch).or_insert(at as u64 + 1)),
            }
        }
        watches
    }

    fn floor(&self) -> Option<u64> {
        self.consumers.values().map(|(acked, _)| *acked).min()
    }

    /// Checks that a read accounts for every sequence number it passes by an event, a gap or the
    /// filter, that what it delivers is what was appended, and that it lost nothing that must be
    /// held.
    fn check(
        &self,
        read: &Read,
        watches: &BTreeSet<u64>,
        pinned_from: Option<u64>,
    ) -> Result<(), TestCaseError> {
        let batch = decode(read);
        prop_assert_eq!(read.caught_up, read.through == self.committed);
        let mut events = batch.events.iter().peekable();
        let mut gaps = batch.gaps.iter().peekable();
        let mut seq = read.after + 1;
        while seq <= read.through {
            if let Some(gap) = gaps.next_if(|gap| gap.from_seq == seq) {
                for (watch, at) in &self.kept {
                    let lost = (gap.from_seq..=gap.through_seq).contains(at);
                    prop_assert!(!lost, "lost the end of watch {}", watch);
                }
                for (watch, after) in self.attached.iter().flatten() {
                    for seq in gap.from_seq.max(after + 1)..=gap.through_seq {
                        let of = self.all[usize::try_from(seq).unwrap() - 1].0;
                        prop_assert!(of != *watch, "lost what a reader waits for: {:?}", gap);
                    }
                }
                if let Some(from) = pinned_from {
                    prop_assert!(gap.through_seq < from, "lost what was pinned: {:?}", gap);
                }
                seq = gap.through_seq + 1;
                continue;
            }
            let (watch, kind) = &self.all[usize::try_from(seq).unwrap() - 1];
            if watches.is_empty() || watches.contains(watch) {
                let event = events.next().unwrap();
                prop_assert_eq!(event.seq, seq);
                prop_assert_eq!(event.kind.as_ref(), Some(kind));
            }
            seq += 1;
        }
        prop_assert!(events.next().is_none() && gaps.next().is_none());
        Ok(())
    }
}

/// The owner of the journal's memory that outlives a life.
const OWNER: u64 = 5;

fn run(
    limits: Limits,
    steps: Vec<Step>,
    watches: &BTreeSet<u64>,
    kept: bool,
) -> Result<(), TestCaseError> {
    let pauses = limits.when_full == WhenFull::Pause;
    let memory = Memory::new(1 << 30);
    let mut arena = kept.then(|| Arena::new().unwrap());
    let keep = match &arena {
        Some(arena) => Keep::Kept(Arc::clone(arena), OWNER),
        None => Keep::Own,
    };
    let (mut journal, mut outbox) = Journal::open(limits, &memory, &keep).unwrap();
    let filter = || Filter {
        watches: watches.clone(),
        ..Filter::default()
    };
    let observer = |journal: &Arc<Journal>| journal.reader(Start::Oldest, filter()).unwrap();
    let mut readers: Vec<Reader> = (0..READERS).map(|_| observer(&journal)).collect();
    let mut holds: Vec<Option<usize>> = vec![None; READERS];
    let mut model = Model::default();
    // The sequence number from where on nothing may be lost, as of the last change of the
    // consumers.
    let mut pinned_from = None;
    for step in steps {
        if let Step::Hold { consumer, .. } | Step::Ack { consumer, .. } = step
            && !model.consumers.contains_key(&consumer)
        {
            // These events were pushed while nothing was pinned: they may exceed the budget.
            outbox.commit();
            model.committed = model.all.len() as u64;
        }
        let pushed = match step {
            Step::Post(watch, size) => Some((watch, posted(size))),
            Step::Data(watch, size) => {
                let data = vec![size; usize::from(size)].into();
                Some((
                    watch,
                    Kind::Data(Data {
                        data,
                        ..Data::default()
                    }),
                ))
            }
            Step::Close(watch) => Some((watch, Kind::Closed(Closed::default()))),
            Step::Remove(watch) => Some((watch, Kind::Removed(Removed::default()))),
            Step::Commit => {
                outbox.commit();
                model.committed = model.all.len() as u64;
                continue;
            }
            Step::Kill => {
                let Some(before) = &mut arena else { continue };
                let (next, found) = killed(before);
                let (epoch, newest) = (journal.epoch(), journal.status().newest);
                *before = next;
                holds = vec![None; READERS];
                readers.clear();
                model.killed();
                prop_assert_eq!(newest, model.committed);
                let (recovered, rest) = Recovered::sort(before, OWNER, (found, true)).unwrap();
                prop_assert!(rest.is_empty());
                let known = model.watches();
                let known = known
                    .into_iter()
                    .map(|(id, added)| (id, Labels::default(), added));
                let mut seen = Vec::new();
                let each = |event: &Scanned, _: &[u8]| seen.push(event.seq);
                // What is left of the dead life counts no more.
                let other = Journal::open(limits, &Memory::new(1 << 30), &Keep::Own).unwrap();
                drop((
                    std::mem::replace(&mut journal, other.0),
                    std::mem::replace(&mut outbox, other.1),
                ));
                (journal, outbox) =
                    Journal::recover(limits, &memory, epoch, recovered, known, each).unwrap();
                prop_assert_eq!(journal.epoch(), epoch);
                prop_assert_eq!(outbox.newest(), newest);
                prop_assert!(seen.is_sorted() && seen.last().is_none_or(|last| *last <= newest));
                readers.extend((0..READERS).map(|_| observer(&journal)));
                continue;
            }
            Step::Read {
                who,
                max_bytes,
                max_events,
            } => {
                let ousted = holds[who].filter(|of| {
                    model
                        .consumers
                        .get(of)
                        .is_none_or(|(_, holder)| *holder != Some(who))
                });
                if let Some(of) = ousted {
                    let over = match model.consumers.get(&of) {
                        None => End::Deleted,
                        Some(_) => End::TakenOver,
                    };
                    prop_assert_eq!(
                        poll(&mut readers[who]).map(Result::err),
                        Poll::Ready(Some(over))
                    );
                    readers[who] = observer(&journal);
                    model.attached[who] = None;
                    holds[who] = None;
                    continue;
                }
                let from = readers[who].after();
                let read = readers[who].read(max_bytes, max_events);
                prop_assert_eq!(read.after, from);
                model.check(&read, watches, pinned_from.filter(|_| pauses))?;
                if let Some((_, after)) = &mut model.attached[who] {
                    *after = (*after).max(read.through);
                }
                continue;
            }
            Step::Attach { who, watch } => {
                let watch = model.watch(watch);
                if model.attached[who].is_none() && journal.is_present(watch) {
                    let observing = std::mem::replace(&mut readers[who], observer(&journal));
                    let from = observing.after().max(model.committed);
                    readers[who] = observing.attached(watch);
                    model.attached[who] = Some((watch, from));
                }
                continue;
            }
            Step::Resume { who, seq } => {
                let start = Start::After {
                    cursor: Cursor { epoch: None, seq },
                    skip: false,
                };
                match journal.reader(start, filter()) {
                    Ok(resumed) => {
                        prop_assert!(seq <= model.committed);
                        let mut first = journal.reader(start, filter()).unwrap();
                        prop_assert!(first.read(1, 1).gaps.is_empty());
                        if let Some(of) = holds[who].take()
                            && let Some((_, holder)) = model.consumers.get_mut(&of)
                            && *holder == Some(who)
                        {
                            *holder = None;
                        }
                        readers[who] = resumed;
                        model.attached[who] = None;
                    }
                    Err(error) => {
                        let oldest = journal.status().oldest;
                        prop_assert!(seq > model.committed || seq + 1 < oldest, "{}", error);
                    }
                }
                continue;
            }
            Step::Hold { who, consumer } => {
                let held = journal
                    .hold(CONSUMERS[consumer], None, None, filter())
                    .unwrap();
                if let Some(of) = holds[who].replace(consumer)
                    && let Some((_, holder)) = model.consumers.get_mut(&of)
                    && *holder == Some(who)
                {
                    *holder = None;
                }
                let committed = model.committed;
                let known = model.consumers.entry(consumer).or_insert((committed, None));
                known.1 = Some(who);
                prop_assert_eq!(held.after(), known.0);
                readers[who] = held;
                model.attached[who] = None;
                None
            }
            Step::Ack { consumer, back } => {
                let seq = model.committed.saturating_sub(back);
                let cursor = journal.cursor(seq);
                let acked = journal.ack(CONSUMERS[consumer], cursor).unwrap();
                let known = model.consumers.entry(consumer).or_insert((seq, None));
                known.0 = known.0.max(seq);
                prop_assert_eq!(acked, known.0);
                None
            }
            Step::Delete(consumer) => {
                let deleted = journal.delete_consumer(CONSUMERS[consumer]);
                let known = model.consumers.remove(&consumer);
                prop_assert_eq!(deleted.ok(), known.map(|(acked, _)| acked));
                None
            }
        };
        let Some((watch, kind)) = pushed else {
            let held_from = journal.status().oldest;
            pinned_from = model.floor().map(|floor| held_from.max(floor + 1));
            continue;
        };
        // A source asks for room before it pushes; terminal events had room set aside.
        let wanted = Room::unreserved(1);
        outbox.refresh();
        let waits =
            (pauses && model.floor().is_some()) || model.attached.iter().any(Option::is_some);
        if waits && !outbox.room().holds(wanted) {
            continue;
        }
        let number = watch;
        let watch = model.watch(number);
        model.push(watch, &kind);
        if matches!(kind, Kind::Removed(_)) {
            model.lives[usize::try_from(number).unwrap()] += 1;
        }
        prop_assert_eq!(
            outbox.push(Now::default(), about(watch), kind),
            model.all.len() as u64
        );
    }
    outbox.commit();
    let status = journal.status();
    let within = status.events <= limits.events;
    prop_assert!(within || status.islands > 0, "{:?}", status);
    let floor = model.floor().unwrap_or(status.newest);
    let ring = status.newest + 1 - status.oldest.max(floor + 1);
    prop_assert!(status.pinned.events >= ring);
    prop_assert_eq!(memory.used(), cost(&status));
    // The accounts are what the entries say.
    journal.monitor.with(|inner| inner.log.check_accounts());
    drop((readers, outbox, journal));
    prop_assert_eq!(memory.used(), 0);
    prop_assert_eq!(memory.available(u64::MAX), 1 << 30);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Mixes observers, consumers at different speeds, take-overs, deletions, resumptions and
    /// filters, in a journal that is always full.
    #[test]
    fn every_read_accounts_for_every_event_and_what_is_pinned_is_held(
        steps in prop::collection::vec(step(), 1..150),
        watches in prop::collection::btree_set(0..4u64, 0..3),
        drops in any::<bool>(),
        roomy in any::<bool>(),
        watch_keep in prop_oneof![Just(0), Just(300), Just(1 << 20)],
    ) {
        let when_full = if drops { WhenFull::DropOldest } else { WhenFull::Pause };
        let bytes = if roomy { 64 * 1024 } else { LIMITS.bytes };
        run(Limits { when_full, bytes, watch_keep, ..LIMITS }, steps, &watches, false)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// The same, and the daemon is killed now and then.
    #[test]
    fn what_was_committed_is_there_in_the_next_life(
        steps in prop::collection::vec(step(), 1..150),
        watches in prop::collection::btree_set(0..4u64, 0..3),
        drops in any::<bool>(),
        roomy in any::<bool>(),
        watch_keep in prop_oneof![Just(0), Just(300), Just(1 << 20)],
    ) {
        let when_full = if drops { WhenFull::DropOldest } else { WhenFull::Pause };
        let bytes = if roomy { 64 * 1024 } else { LIMITS.bytes };
        run(Limits { when_full, bytes, watch_keep, ..LIMITS }, steps, &watches, true)?;
    }
}
