//! Tests with random histories: one that obeys the grammar passes, and any single change to it is
//! found.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const KINDS: [&str; 6] = [
    "fd",
    "timer",
    "process",
    "connection",
    "read_pipe",
    "signal",
];

/// An open watch of a generated history.
#[derive(Debug, Default)]
struct Live {
    id: u64,
    kind: &'static str,
    bytes: u64,
    ticks: u64,
    paused: bool,
}

/// Writes a random history.
#[derive(Default)]
struct Author {
    facts: Vec<Fact>,
    live: Vec<Live>,
    last_id: u64,
}

impl Author {
    fn tell(&mut self, watch_id: u64, kind: Kind) {
        self.facts.push(fact(watch_id, kind));
    }

    fn open(&mut self, kind: &'static str) {
        self.last_id += 1;
        let id = self.last_id;
        self.tell(id, added(kind, 0));
        match kind {
            "process" => self.tell(id, Kind::Started(Started { pid: 1 })),
            "connection" => self.tell(id, Kind::Connected(Connected::default())),
            _ => {}
        }
        self.live.push(Live {
            id,
            kind,
            ..Live::default()
        });
    }

    fn work(&mut self, which: usize, roll: u8) {
        if self.live.is_empty() {
            return;
        }
        let at = which % self.live.len();
        let watch = &mut self.live[at];
        let id = watch.id;
        let kind = match watch.kind {
            "fd" => ready(),
            "signal" => signal(1 + u64::from(roll)),
            "timer" => {
                let missed = u64::from(roll % 3);
                watch.ticks += 1 + missed;
                fired(watch.ticks, missed)
            }
            "read_pipe" => watch.receive(Stream::Input, roll),
            "connection" if roll.is_multiple_of(2) => watch.receive(Stream::Input, roll),
            "process" if roll.is_multiple_of(2) => watch.receive(Stream::Stdout, roll),
            _ => {
                watch.paused = !watch.paused;
                if watch.paused { paused() } else { resumed() }
            }
        };
        self.tell(id, kind);
    }

    fn close(&mut self, which: usize, remove: bool) {
        if self.live.is_empty() {
            return;
        }
        let watch = self.live.swap_remove(which % self.live.len());
        let (id, bytes) = (watch.id, watch.bytes);
        let reason = match watch.kind {
            "process" => {
                self.tell(id, stream_end(Stream::Stdout, bytes));
                self.tell(id, exited());
                CloseReason::Completed
            }
            "connection" | "read_pipe" => {
                self.tell(id, eof(bytes));
                CloseReason::Completed
            }
            _ => CloseReason::Removed,
        };
        self.tell(id, closed(reason));
        if remove {
            self.tell(id, removed());
        }
    }
}

impl Live {
    fn receive(&mut self, stream: Stream, roll: u8) -> Kind {
        let len = 1 + usize::from(roll);
        let at = self.bytes;
        self.bytes += 1 + u64::from(roll);
        data(stream, at, len)
    }
}

fn histories() -> impl Strategy<Value = Vec<Fact>> {
    let die = (0..10_u8, 0..1000_usize, any::<u8>());
    prop::collection::vec(die, 4..60).prop_map(|dice| {
        let mut author = Author::default();
        author.open("process");
        author.work(0, 2);
        for (act, which, roll) in dice {
            match act {
                0..=2 => author.open(KINDS[which % KINDS.len()]),
                3..=7 => author.work(which, roll),
                8 => author.close(which, roll % 2 == 0),
                _ => author.tell(0, Kind::Posted(Posted::default())),
            }
        }
        author.close(0, true);
        author.facts
    })
}

/// A change to a history that the checker must find.
#[derive(Debug, Clone, Copy)]
enum Change {
    Drop,
    Duplicate,
    Swap,
    ShiftThrough,
    ShiftAfter,
    ShiftOffset,
    /// Leaves out an event that the grammar requires; later events move up, so that there is no
    /// hole.
    Forget,
}

fn changes() -> impl Strategy<Value = Change> {
    prop::sample::select(vec![
        Change::Drop,
        Change::Duplicate,
        Change::Swap,
        Change::ShiftThrough,
        Change::ShiftAfter,
        Change::ShiftOffset,
        Change::Forget,
    ])
}

const fn essential(kind: &Kind) -> bool {
    matches!(kind, Kind::Added(_) | Kind::Started(_) | Kind::Exited(_))
}

fn changed(facts: &[Fact], per_batch: usize, change: Change, which: Index) -> Recording {
    if matches!(change, Change::Forget) {
        let places: Vec<usize> = (0..facts.len())
            .filter(|i| essential(&facts[*i].kind) && has_more(facts, *i))
            .collect();
        let mut facts = facts.to_vec();
        facts.remove(*which.get(&places));
        return record(&facts, per_batch);
    }
    let mut recording = record(facts, per_batch);
    let number = which.index(recording.batches.len());
    let batch = &mut recording.batches[number];
    let at = which.index(batch.events.len());
    match change {
        Change::Drop => drop(batch.events.remove(at)),
        Change::Duplicate => batch.events.insert(at, batch.events[at].clone()),
        Change::Swap => {
            let other = (at + 1) % batch.events.len();
            if other == at {
                batch.events.clear();
            } else {
                batch.events.swap(at, other);
            }
        }
        Change::ShiftThrough => batch.through += 1,
        Change::ShiftAfter => batch.after += 1,
        Change::ShiftOffset | Change::Forget => {
            let all = recording.batches.iter_mut().flat_map(|b| &mut b.events);
            let mut all: Vec<&mut Data> = all
                .filter_map(|event| match &mut event.kind {
                    Some(Kind::Data(data)) => Some(data),
                    _ => None,
                })
                .collect();
            let at = which.index(all.len());
            all[at].offset += 1;
        }
    }
    recording
}

/// Returns whether the watch has a later event, so that the absence of this one shows.
fn has_more(facts: &[Fact], at: usize) -> bool {
    let id = facts[at].watch_id;
    facts[at + 1..].iter().any(|fact| fact.watch_id == id)
}

proptest! {
    #[test]
    fn a_valid_history_passes(facts in histories(), per_batch in 1..9_usize) {
        let summary = check(&record(&facts, per_batch)).unwrap();
        prop_assert_eq!(summary.events, u64::try_from(facts.len()).unwrap());
    }

    #[test]
    fn a_valid_history_with_losses_passes(
        facts in histories(),
        per_batch in 1..9_usize,
        from in any::<Index>(),
        len in 0..9_u64,
    ) {
        let mut recording = record(&facts, per_batch);
        let from = 1 + u64::try_from(from.index(facts.len())).unwrap();
        let through = (from + len).min(recording.through());
        lose(&mut recording, from, through);
        check(&recording).unwrap();
    }

    #[test]
    fn any_one_change_is_found(
        facts in histories(),
        per_batch in 1..9_usize,
        change in changes(),
        which in any::<Index>(),
    ) {
        let recording = changed(&facts, per_batch, change, which);
        prop_assert!(check(&recording).is_err(), "{change:?} went unnoticed");
    }

    #[test]
    fn subscriptions_resumed_anywhere_make_the_whole(
        facts in histories(),
        cuts in prop::collection::vec((any::<Index>(), 0..5_usize), 0..5),
    ) {
        let whole = record(&facts, 1);
        let mut ends: Vec<_> = cuts.iter().map(|(c, back)| (c.index(facts.len()), *back)).collect();
        ends.sort_unstable();
        ends.push((facts.len(), 0));
        let mut subscriptions = Vec::new();
        let mut start = 0;
        for (end, back) in ends {
            let mut subscription = Recording::new("e", u64::try_from(start).unwrap());
            subscription.batches = whole.batches[start..end.max(start)].to_vec();
            subscriptions.push(subscription);
            start = end.saturating_sub(back);
        }
        prop_assert_eq!(check_resumed(&subscriptions).unwrap(), check(&whole).unwrap());
    }
}
