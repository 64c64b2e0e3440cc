//! Tests of one promise each.

use super::*;

#[test]
fn labels_filter_until_their_last_event_is_gone() {
    let (journal, mut outbox, _) = journal(Limits {
        events: 4,
        bytes: 1 << 20,
        ..LIMITS
    });
    let labels: Labels = Arc::new([("job".to_owned(), "a".to_owned())].into());
    let set = journal.intern_labels(&labels);
    let now = Now::default();
    outbox.push(
        now,
        About {
            labels: set,
            ..about(1)
        },
        posted(0),
    );
    outbox.push(now, About::default(), posted(0));
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
        outbox.push(now, About::default(), posted(0));
    }
    outbox.commit();
    // Nothing refers to the set now: its number is free for another.
    let other: Labels = Arc::new([("job".to_owned(), "b".to_owned())].into());
    assert_eq!(journal.intern_labels(&other), set);
}

/// Fills a journal that a consumer holds, until a source would pause.
fn fill(outbox: &mut Outbox) -> u64 {
    while outbox.room().holds(Room::unreserved(1)) {
        outbox.push(Now::default(), about(1), posted(100));
        outbox.commit();
    }
    outbox.newest()
}

#[test]
fn a_full_journal_calls_its_loop_when_somebody_makes_room() {
    let limits = Limits {
        events: 1000,
        bytes: 64 * 1024,
        ..LIMITS
    };
    let (journal, mut outbox, _) = journal(limits);
    let calls = Arc::new(AtomicUsize::new(0));
    let called = Arc::clone(&calls);
    journal.call_on_change(move || {
        called.fetch_add(1, Ordering::Relaxed);
    });
    journal.create_consumer("a", Start::Now, None).unwrap();
    let newest = fill(&mut outbox);
    let low = Room::unreserved(2);
    assert_eq!(outbox.level(low), Level::Full);
    outbox.set_sources_paused(true);
    outbox.commit();
    let before = calls.load(Ordering::Relaxed);
    journal.ack("a", journal.cursor(newest)).unwrap();
    assert!(calls.load(Ordering::Relaxed) > before);
    outbox.refresh();
    assert_eq!(outbox.level(low), Level::Ample);
    // The events that had room set aside have not replaced pinned ones.
    assert!(journal.status().bytes <= limits.bytes);
}

#[test]
fn one_noisy_watch_goes_over_its_share_and_comes_back_at_half_of_it() {
    let (journal, mut outbox, _) = journal(Limits {
        events: 1000,
        bytes: 1 << 20,
        ..LIMITS
    });
    journal.create_consumer("a", Start::Now, None).unwrap();
    let data = || {
        Kind::Data(Data {
            data: vec![0; 100].into(),
            ..Data::default()
        })
    };
    for watch in [1, 1, 2, 1, 1] {
        outbox.push(Now::default(), about(watch), data());
    }
    outbox.commit();
    assert_eq!(outbox.take_wait_changes().collect::<Vec<_>>(), [1]);
    assert_eq!(outbox.waits_for(1), Some(WaitsFor::Consumers));
    journal.ack("a", journal.cursor(2)).unwrap();
    outbox.refresh();
    assert_eq!(
        outbox.take_wait_changes().count(),
        0,
        "it is not back at half yet"
    );
    journal.ack("a", journal.cursor(4)).unwrap();
    journal.changed.store(true, Ordering::Relaxed);
    outbox.refresh();
    assert_eq!(outbox.take_wait_changes().collect::<Vec<_>>(), [1]);
    assert_eq!(outbox.waits_for(1), None);
}

#[test]
fn a_forgotten_consumer_lets_go_after_its_ttl() {
    let (journal, mut outbox, _) = journal(LIMITS);
    let ttl = Some(Duration::from_secs(5));
    drop(journal.hold("a", None, ttl, Filter::default()).unwrap());
    outbox.push(Now::default(), about(1), posted(1));
    outbox.commit();
    outbox.refresh();
    let at = outbox.next_expiry().unwrap();
    let now = |monotonic| Now {
        monotonic,
        ..Now::default()
    };
    outbox.expire(now(at - 1));
    assert_eq!(journal.status().pinned.events, 1);
    outbox.expire(now(at));
    assert_eq!(journal.status().pinned.events, 0);
    assert!(journal.consumer("a").is_err());
    let held = journal.hold("a", None, ttl, Filter::default()).unwrap();
    outbox.refresh();
    assert_eq!(outbox.next_expiry(), None, "it is held");
    drop(held);
}

#[test]
fn all_journals_together_stay_within_the_memory() {
    let memory = Memory::new(1 << 20);
    let limits = Limits {
        events: 1_000_000,
        bytes: 1 << 20,
        ..LIMITS
    };
    let mut journals = Vec::new();
    for _ in 0..8 {
        let journal = Journal::new(limits, &memory).unwrap();
        journals.push((Outbox::new(Arc::clone(&journal)), journal));
    }
    // The first journal takes everything, then each of the others wants its part.
    for round in 0..3 {
        for (outbox, journal) in &mut journals {
            for _ in 0..10_000 >> round {
                outbox.push(Now::default(), about(1), posted(200));
                outbox.commit();
                assert!(memory.used() <= 1 << 20);
            }
            assert!(cost(&journal.status()) > 100_000, "it has a part");
        }
    }
    // Pinned events do not give way to the history of other journals.
    let (outbox, journal) = &mut journals[0];
    journal.create_consumer("a", Start::Oldest, None).unwrap();
    outbox.refresh();
    let pinned = journal.status().pinned;
    for (outbox, _) in &mut journals[1..] {
        for _ in 0..10_000 {
            outbox.push(Now::default(), about(1), posted(200));
            outbox.commit();
        }
    }
    assert_eq!(journals[0].1.status().pinned, pinned);
}
