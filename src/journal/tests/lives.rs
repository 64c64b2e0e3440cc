//! Tests of what a later life finds beside the events.

use super::*;
use crate::event::{Added, Labels, Updated};

const OWNER: u64 = 7;
const ROOMY: Limits = Limits {
    events: 1000,
    bytes: 1 << 20,
    ..LIMITS
};

/// A journal that later lives find.
struct Lives {
    arena: Arc<Arena>,
    memory: Arc<Memory>,
    limits: Limits,
    journal: Arc<Journal>,
    outbox: Outbox,
}

impl Lives {
    fn new(limits: Limits) -> Self {
        let (arena, memory) = (Arena::new().unwrap(), Memory::new(1 << 30));
        let keep = Keep::Kept(Arc::clone(&arena), OWNER);
        let (journal, outbox) = Journal::open(limits, &memory, &keep).unwrap();
        Self {
            arena,
            memory,
            limits,
            journal,
            outbox,
        }
    }

    /// Kills the daemon. The next life finds these watches, each with its first event.
    fn murder(&mut self, watches: &[(u64, u64)], prepare: impl FnOnce(&mut Recovered)) {
        let (next, found) = killed(&self.arena);
        let epoch = self.journal.epoch();
        let (mut recovered, _) = Recovered::sort(&next, OWNER, (found, true)).unwrap();
        prepare(&mut recovered);
        let known = watches.iter().map(|of| (of.0, Labels::default(), of.1));
        let (journal, outbox) = Journal::recover(
            self.limits,
            &self.memory,
            epoch,
            recovered,
            known,
            |_, _| (),
        )
        .unwrap();
        assert_eq!(journal.epoch(), epoch);
        (self.arena, self.journal, self.outbox) = (next, journal, outbox);
    }

    fn push(&mut self, watch: u64, labels: LabelSet, kind: Kind) -> u64 {
        let about = About {
            labels,
            ..about(watch)
        };
        self.outbox.push(Now::default(), about, kind)
    }

    fn labels(&self, of: &str) -> LabelSet {
        self.journal.intern_labels(&labels(of))
    }

    fn marks(&self) -> usize {
        self.journal.monitor.with(|inner| inner.log.marks())
    }

    /// Returns the events that have these labels.
    fn matching(&self, of: &str) -> Vec<u64> {
        let filter = Filter {
            labels: (*labels(of)).clone(),
            ..Filter::default()
        };
        let mut reader = self.journal.reader(Start::Oldest, filter).unwrap();
        let batch = decode(&reader.read(1 << 20, 1 << 20));
        batch.events.iter().map(|event| event.seq).collect()
    }
}

fn labels(of: &str) -> Labels {
    Arc::new([("of".to_owned(), of.to_owned())].into())
}

fn posted_many(lives: &mut Lives, events: u64) {
    for _ in 0..events {
        lives.push(0, LabelSet::NONE, posted(9));
    }
    lives.outbox.commit();
}

#[test]
fn labels_are_kept_as_long_as_events_have_them() {
    let mut lives = Lives::new(Limits {
        events: 20,
        ..ROOMY
    });
    let [a, b] = ["a", "b"].map(|of| lives.labels(of));
    lives.push(1, a, Kind::Added(Added::default()));
    lives.push(2, a, Kind::Added(Added::default()));
    lives.push(3, LabelSet::NONE, Kind::Added(Added::default()));
    lives.push(2, b, Kind::Updated(Updated::default()));
    lives.push(2, b, posted(1));
    lives.push(1, a, Kind::Removed(Removed::default()));
    lives.outbox.commit();
    // This one was never told.
    lives.push(4, a, Kind::Added(Added::default()));
    for _ in 0..2 {
        assert_eq!(lives.marks(), 3);
        assert_eq!(lives.matching("a"), [1, 2, 6]);
        assert_eq!(lives.matching("b"), [4, 5]);
        lives.murder(&[(2, 2), (3, 3)], |_| ());
    }
    posted_many(&mut lives, 30);
    assert_eq!(lives.marks(), 2, "that of the removed watch is gone");
    let b = lives.labels("b");
    lives.push(2, b, Kind::Updated(Updated::default()));
    let c = lives.labels("c");
    lives.push(2, c, Kind::Updated(Updated::default()));
    lives.outbox.commit();
    lives.murder(&[(2, 2), (3, 3)], |_| ());
    assert_eq!(lives.matching("c"), [38]);
    assert_eq!(lives.matching("b"), [37]);
    assert_eq!(lives.marks(), 2, "no event has the first labels");
    lives.push(2, c, Kind::Removed(Removed::default()));
    posted_many(&mut lives, 30);
    assert_eq!(lives.marks(), 0);
}

#[test]
fn a_life_that_is_short_of_memory_gives_back_what_no_consumer_waits_for() {
    for pinned in [None, Some(40)] {
        for watch_keep in [0, 1 << 20] {
            let mut lives = Lives::new(Limits {
                watch_keep,
                ..ROOMY
            });
            lives.push(1, LabelSet::NONE, Kind::Added(Added::default()));
            lives.push(1, LabelSet::NONE, Kind::Closed(Closed::default()));
            posted_many(&mut lives, 98);
            if let Some(seq) = pinned {
                let cursor = lives.journal.cursor(seq);
                lives.journal.ack("a", cursor).unwrap();
            }
            let before = lives.memory.used();
            lives.murder(&[(1, 1)], Recovered::give_history_back);
            let from = pinned.unwrap_or(100) + 1;
            let status = lives.journal.status();
            assert_eq!((status.oldest, status.newest), (from, 100));
            // That of the watch's end is left.
            assert_eq!((status.islands, status.events), (1, 101 - from + 1));
            assert!(lives.memory.used() < before);
            let start = Start::After {
                cursor: lives.journal.cursor(0),
                skip: true,
            };
            let mut reader = lives.journal.reader(start, Filter::default()).unwrap();
            let batch = decode(&reader.read(1 << 20, 1 << 20));
            let gaps = batch.gaps.iter();
            let gaps: Vec<_> = gaps.map(|gap| (gap.from_seq, gap.through_seq)).collect();
            assert_eq!(gaps, [(1, 1), (3, from - 1)]);
            let seqs: Vec<_> = batch.events.iter().map(|event| event.seq).collect();
            let wanted: Vec<_> = [2].into_iter().chain(from..=100).collect();
            assert_eq!(seqs, wanted);
            posted_many(&mut lives, 1);
            assert_eq!(lives.journal.status().newest, 101);
        }
    }
}
