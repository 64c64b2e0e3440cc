//! Tests of many journals within one limit.

use super::*;
use crate::memory::Use;

const LIMIT: u64 = 1 << 20;

fn journals(memory: &Arc<Memory>, count: usize) -> Vec<(Outbox, Arc<Journal>)> {
    let limits = Limits {
        events: 1_000_000,
        bytes: LIMIT,
        history: History::Kept,
        watch_keep: 64 << 10,
        ..LIMITS
    };
    let journal = |_| {
        let journal = Journal::new(limits, memory).unwrap();
        (Outbox::new(Arc::clone(&journal)), journal)
    };
    (0..count).map(journal).collect()
}

/// Pushes small events: most of their cost is not their bytes.
fn fill(outbox: &mut Outbox, memory: &Memory, events: u64) {
    for event in 0..events {
        outbox.push(Now::default(), about(1 + event % 3), posted(8));
        outbox.commit();
        assert!(memory.used() <= memory.limit(), "the limit is a limit");
    }
}

fn all(journals: &[(Outbox, Arc<Journal>)]) -> u64 {
    journals.iter().map(|(_, j)| cost(&j.status())).sum()
}

#[test]
fn what_one_pins_is_taken_from_the_history_of_all_others() {
    let memory = Memory::new(LIMIT);
    let mut journals = journals(&memory, 64);
    let (outbox, journal) = &mut journals[0];
    journal.create_consumer("a", Start::Oldest, None).unwrap();
    outbox.refresh();
    while cost(&journal.status()) < LIMIT * 3 / 4 {
        fill(outbox, &memory, 1);
    }
    let pinned = journal.status().pinned;
    // One after the other, so that there is always an idle journal that holds most.
    for (outbox, _) in &mut journals[1..] {
        fill(outbox, &memory, 1500);
    }
    assert!(all(&journals) <= LIMIT);
    assert_eq!(journals[0].1.status().pinned, pinned);
    // A journal that holds nothing gets a part of the memory that is not pinned, and no journal
    // loses all of its history.
    let fair = LIMIT / 4 / 63;
    for (_, journal) in &journals[1..] {
        assert!(cost(&journal.status()) > fair / 2, "{:?}", journal.status());
    }
}

#[test]
fn history_gives_way_to_what_is_not_a_journal_and_what_is_pinned_does_not() {
    let memory = Memory::new(LIMIT);
    let mut journals = journals(&memory, 8);
    for (outbox, _) in &mut journals {
        fill(outbox, &memory, 2000);
    }
    let taken = memory.budget().take(Use::Requests, LIMIT / 2).unwrap();
    assert!(memory.used() + memory.budget().total() <= LIMIT);
    assert!(memory.budget().take(Use::Polls, 1).is_err(), "half is all");
    drop(taken);
    let (outbox, journal) = &mut journals[0];
    journal.create_consumer("a", Start::Oldest, None).unwrap();
    outbox.refresh();
    while cost(&journal.status()) < LIMIT * 3 / 4 {
        fill(outbox, &memory, 1);
    }
    let pinned = journal.status().pinned;
    assert!(memory.budget().take(Use::Requests, LIMIT / 2).is_err());
    assert_eq!(memory.budget().total(), 0, "nothing is left of it");
    assert_eq!(journal.status().pinned, pinned);
}

#[test]
fn a_loop_that_waits_for_memory_is_told_when_it_is_given_back() {
    let memory = Memory::new(LIMIT);
    let journals = journals(&memory, 2);
    let called = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&called);
    journals[0].1.call_on_change(move || {
        calls.fetch_add(1, Ordering::Relaxed);
    });
    let taken = memory.budget().take(Use::Commands, LIMIT / 2).unwrap();
    assert!(memory.available(LIMIT) < LIMIT);
    drop(taken);
    assert_eq!(called.load(Ordering::Relaxed), 1);
}
