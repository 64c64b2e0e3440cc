//! Tests of readers attached to a watch, and of what every watch keeps.

use super::*;
use crate::event::{Added, Exited, Gap, Started, StreamEnd};

const ROOMY: Limits = Limits {
    events: 16_384,
    bytes: 1 << 20,
    watch_bytes: 1 << 18,
    history: History::Kept,
    watch_keep: 16 << 10,
    attached_bytes: 8 << 10,
    ..LIMITS
};

fn data(size: usize) -> Kind {
    Kind::Data(Data {
        data: vec![7; size].into(),
        ..Data::default()
    })
}

fn push(outbox: &mut Outbox, watch: u64, kind: Kind) -> u64 {
    outbox.push(Now::default(), about(watch), kind)
}

/// Appends more than the journal holds, by one watch.
fn noise(outbox: &mut Outbox, watch: u64) {
    for _ in 0..2000 {
        push(outbox, watch, data(1000));
        outbox.commit();
    }
}

/// Returns all that a reader of these watches gets.
fn read_all(journal: &Arc<Journal>, watches: &[u64], after: u64) -> (Vec<u64>, Vec<Gap>) {
    let filter = Filter {
        watches: watches.iter().copied().collect(),
        ..Filter::default()
    };
    let cursor = journal.cursor(after);
    let start = Start::After { cursor, skip: true };
    let mut reader = journal.reader(start, filter).unwrap();
    let (mut seqs, mut gaps) = (Vec::new(), Vec::new());
    loop {
        let read = reader.read(1 << 20, 1 << 20);
        let batch = decode(&read);
        seqs.extend(batch.events.iter().map(|event| event.seq));
        gaps.extend(batch.gaps);
        if read.caught_up {
            return (seqs, gaps);
        }
    }
}

#[test]
fn a_noisy_neighbour_does_not_erase_a_quiet_process() {
    let (journal, mut outbox, _) = journal(ROOMY);
    let quiet = [
        Kind::Added(Added::default()),
        Kind::Started(Started::default()),
        data(20),
        data(20),
        Kind::StreamEnd(StreamEnd::default()),
        Kind::Exited(Exited::default()),
        Kind::Closed(Closed::default()),
    ];
    let quiet: Vec<u64> = quiet.map(|kind| push(&mut outbox, 1, kind)).into();
    noise(&mut outbox, 2);
    assert_eq!(read_all(&journal, &[1], 0), (quiet.clone(), Vec::new()));
    // A cursor of this watch stays valid.
    let after = |seq| Start::After {
        cursor: journal.cursor(seq),
        skip: false,
    };
    assert!(journal.reader(after(3), Filter::life_of(1)).is_ok());
    assert!(journal.reader(after(3), Filter::life_of(2)).is_err());
    // A reader of all watches is told what the neighbour lost.
    let (seqs, gaps) = read_all(&journal, &[], 0);
    assert_eq!(seqs[..quiet.len()], quiet);
    assert_eq!(gaps.len(), 1);
    assert!(journal.status().bytes <= ROOMY.bytes);
    // A removed watch is history like any other.
    push(&mut outbox, 1, Kind::Removed(Removed::default()));
    outbox.commit();
    let (seqs, gaps) = read_all(&journal, &[1], 0);
    assert_eq!((seqs.len(), gaps.len()), (1, 1));
}

#[test]
fn of_its_own_noise_a_watch_keeps_the_newest_and_its_start() {
    let (journal, mut outbox, _) = journal(ROOMY);
    push(&mut outbox, 1, Kind::Started(Started::default()));
    noise(&mut outbox, 1);
    let newest = outbox.newest();
    noise(&mut outbox, 2);
    let (seqs, gaps) = read_all(&journal, &[1], 0);
    assert_eq!(seqs[0], 1);
    // 16 KiB in events of about 1,020 bytes each, and the one that reaches beyond.
    assert_eq!(seqs[1..], ((newest - 16)..=newest).collect::<Vec<_>>());
    assert_eq!((gaps[0].from_seq, gaps[0].through_seq), (2, newest - 17));
    assert_eq!(gaps.len(), 1);
}

#[test]
fn many_watches_keep_half_of_the_budget_together_in_fair_parts() {
    let (journal, mut outbox, memory) = journal(ROOMY);
    let watches = 200;
    for watch in 1..=watches {
        for _ in 0..12 {
            push(&mut outbox, watch, data(1000));
        }
        outbox.commit();
    }
    noise(&mut outbox, 500);
    let kept: Vec<usize> = (1..=watches)
        .map(|watch| read_all(&journal, &[watch], 0).0.len())
        .collect();
    let all: usize = kept.iter().sum();
    assert!((400..=530).contains(&all), "{kept:?}");
    assert!(kept.iter().all(|kept| (1..=4).contains(kept)), "{kept:?}");
    // Once these are removed, the other watches keep more.
    for watch in 1..=watches {
        push(&mut outbox, watch, Kind::Removed(Removed::default()));
    }
    for _ in 0..12 {
        push(&mut outbox, 600, data(1000));
    }
    noise(&mut outbox, 500);
    assert_eq!(read_all(&journal, &[600], 0).0.len(), 12);
    assert_eq!(memory.used(), cost(&journal.status()));
}

#[test]
fn a_watch_waits_for_its_slowest_attached_reader_and_nobody_else_does() {
    let (journal, mut outbox, _) = journal(ROOMY);
    let mut slow = journal.reader_from_birth(1, outbox.newest());
    push(&mut outbox, 1, Kind::Added(Added::default()));
    outbox.commit();
    let fast = journal.reader(Start::Oldest, Filter::life_of(1)).unwrap();
    let mut fast = fast.attached(1);
    for _ in 0..9 {
        push(&mut outbox, 1, data(1000));
    }
    outbox.commit();
    assert_eq!(outbox.take_wait_changes().collect::<Vec<_>>(), [1]);
    assert_eq!(outbox.waits_for(1), Some(WaitsFor::Readers));
    assert_eq!(fast.read(1 << 20, 100).events, 10);
    outbox.refresh();
    assert_eq!(outbox.waits_for(1), Some(WaitsFor::Readers));
    // Events that the reader has not read stay, whatever other watches do.
    noise(&mut outbox, 2);
    assert_eq!(outbox.waits_for(2), None);
    let mut events = 0;
    let mut caught_up = false;
    while !caught_up {
        let read = slow.read(1 << 20, 100);
        assert!(read.gaps.is_empty(), "{:?}", read.gaps);
        events += read.events;
        caught_up = read.caught_up;
    }
    assert_eq!(events, 10);
    outbox.refresh();
    assert_eq!(outbox.waits_for(1), None);
    assert_eq!(journal.status().unread, Room::default());
}

#[test]
fn an_attached_reader_loses_nothing_when_the_watch_is_removed_before_it_has_read() {
    let (journal, mut outbox, memory) = journal(ROOMY);
    let mut reader = journal.reader_from_birth(1, outbox.newest());
    push(&mut outbox, 1, Kind::Added(Added::default()));
    for _ in 0..4 {
        push(&mut outbox, 1, data(1000));
    }
    push(&mut outbox, 1, Kind::Closed(Closed::default()));
    push(&mut outbox, 1, Kind::Removed(Removed::default()));
    noise(&mut outbox, 2);
    let read = reader.read(1 << 20, 100);
    assert_eq!((read.events, read.gaps.len()), (6, 0));
    drop(reader);
    assert_eq!(journal.status().islands, 0);
    assert_eq!(memory.used(), cost(&journal.status()));
}

#[test]
fn a_reader_that_reads_nothing_is_let_go_after_a_while() {
    let (journal, mut outbox, _) = journal(ROOMY);
    let mut stuck = journal.reader_from_birth(1, outbox.newest());
    push(&mut outbox, 1, Kind::Added(Added::default()));
    for _ in 0..9 {
        push(&mut outbox, 1, data(1000));
    }
    outbox.commit();
    let at = outbox.next_expiry().unwrap();
    let now = |monotonic| Now {
        monotonic,
        ..Now::default()
    };
    outbox.expire(now(at - 1));
    assert_eq!(outbox.waits_for(1), Some(WaitsFor::Readers));
    // The patience counts from the reader's last read.
    assert_eq!(stuck.read(1, 1).events, 1);
    outbox.refresh();
    let later = outbox.next_expiry().unwrap();
    outbox.expire(now(later));
    let until = outbox.next_expiry().unwrap();
    assert!(until > later);
    assert_eq!(outbox.waits_for(1), Some(WaitsFor::Readers));
    outbox.expire(now(until));
    assert_eq!(outbox.waits_for(1), None);
    assert_eq!(journal.status().readers_let_go, 1);
    assert_eq!(outbox.next_expiry(), None);
    // The reader reads on, and is told what it has missed.
    noise(&mut outbox, 1);
    assert_eq!(stuck.read(1 << 20, 1 << 20).gaps.len(), 1);
}

/// Makes as many watches, each with an attached reader that stops after so many bytes.
fn stopped(journal: &Arc<Journal>, outbox: &mut Outbox, watches: u64, bytes: usize) -> Vec<Reader> {
    let readers = (1..=watches).map(|watch| {
        let reader = journal.reader_from_birth(watch, outbox.newest());
        push(outbox, watch, Kind::Added(Added::default()));
        for _ in 0..bytes / 1000 {
            push(outbox, watch, data(1000));
        }
        outbox.commit();
        reader
    });
    readers.collect()
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn readers_that_hold_up_a_loop_together_are_let_go_though_none_is_far_behind() {
    let (journal, mut outbox, _) = journal(ROOMY);
    let low = Room::unreserved(8);
    let readers = stopped(&journal, &mut outbox, 146, 7000);
    assert!((1..=146).all(|watch| outbox.waits_for(watch).is_none()));
    assert_eq!(outbox.level(low), Level::Full);
    outbox.set_sources_paused(true);
    outbox.commit();
    let at = |outbox: &Outbox| Now {
        monotonic: outbox
            .next_expiry()
            .unwrap()
            .max(Now::sample().monotonic + SECOND),
        ..Now::default()
    };
    outbox.expire(at(&outbox));
    let let_go = journal.status().readers_let_go;
    assert!((1..=80).contains(&let_go), "{let_go}");
    assert_eq!(outbox.level(low), Level::Ample);
    outbox.set_sources_paused(false);
    outbox.commit();
    drop(readers);
    assert_eq!(journal.status().unread, Room::default());
}

#[test]
fn a_reader_is_not_let_go_because_a_consumer_fills_the_journal() {
    let (journal, mut outbox, _) = journal(ROOMY);
    journal.create_consumer("stuck", Start::Now, None).unwrap();
    let _reader = stopped(&journal, &mut outbox, 1, 5000);
    fill(&mut outbox);
    assert_eq!(outbox.level(Room::unreserved(8)), Level::Full);
    outbox.set_sources_paused(true);
    outbox.commit();
    let now = Now {
        monotonic: Now::sample().monotonic + 2 * SECOND,
        ..Now::default()
    };
    outbox.expire(now);
    assert_eq!(journal.status().readers_let_go, 0);
    // Nor once the consumer is deleted, before the loop has called `refresh`.
    journal.delete_consumer("stuck").unwrap();
    outbox.refresh();
    outbox.expire(now);
    assert_eq!(journal.status().readers_let_go, 0);
}

fn fill(outbox: &mut Outbox) {
    while outbox.room().holds(Room::unreserved(3)) {
        push(outbox, 9, data(1000));
        outbox.commit();
    }
}

#[test]
fn what_a_consumer_begins_with_stays_for_it_though_its_neighbours_are_gone() {
    let (journal, mut outbox, _) = journal(ROOMY);
    for watch in 1..=8 {
        push(&mut outbox, watch, Kind::Added(Added::default()));
        for _ in 0..12 {
            push(&mut outbox, watch, data(1000));
        }
    }
    noise(&mut outbox, 9);
    let cursor = journal.cursor(0);
    let start = Start::After { cursor, skip: true };
    journal.create_consumer("late", start, None).unwrap();
    outbox.refresh();
    let lost = journal.consumer("late").unwrap().lost_events;
    fill(&mut outbox);
    // Its own watches have newer events to keep by now, and the journal is full.
    for watch in 1..=8 {
        push(&mut outbox, watch, data(2));
    }
    outbox.commit();
    assert_eq!(journal.consumer("late").unwrap().lost_events, lost);
    assert_eq!(journal.status().dropped, 0);
    journal.monitor.with(|inner| inner.log.check_accounts());
}

#[test]
fn quiet_watches_keep_all_they_have_among_noisy_ones_with_large_events() {
    let (journal, mut outbox, _) = journal(Limits {
        bytes: 4 << 20,
        history: History::Kept,
        watch_keep: 64 << 10,
        ..ROOMY
    });
    for watch in 1..=25 {
        push(&mut outbox, watch, data(150));
    }
    for _ in 0..12 {
        for watch in 100..128 {
            push(&mut outbox, watch, data(60_000));
            outbox.commit();
        }
    }
    for watch in 1..=25 {
        assert_eq!(read_all(&journal, &[watch], 0), (vec![watch], Vec::new()));
    }
}

#[test]
fn giving_way_is_done_in_steps() {
    let (journal, mut outbox, _) = journal(Limits {
        events: 200_000,
        bytes: 16 << 20,
        ..ROOMY
    });
    for watch in 1..=100_000 {
        push(&mut outbox, watch, Kind::Added(Added::default()));
    }
    outbox.commit();
    let mut commits = 0;
    for _ in 0..16 {
        push(&mut outbox, 0, posted_bytes(1 << 20));
        outbox.commit();
        while outbox.is_behind() {
            assert_eq!(outbox.next_expiry(), Some(0));
            outbox.expire(Now::sample());
            commits += 1;
        }
    }
    assert!(commits >= 5, "{commits}");
    assert!(journal.status().bytes <= 16 << 20);
    assert!(journal.status().islands > 90_000);
}

fn posted_bytes(size: usize) -> Kind {
    Kind::Posted(Posted {
        payload: vec![1; size].into(),
        ..Posted::default()
    })
}

#[test]
fn readers_of_a_journal_that_is_closed_take_no_memory_from_others() {
    let (journal, mut outbox, memory) = journal(ROOMY);
    let _readers = stopped(&journal, &mut outbox, 5, 5000);
    assert!(memory.available(u64::MAX) < 1 << 30);
    journal.close();
    assert_eq!(memory.available(u64::MAX), 1 << 30);
}
