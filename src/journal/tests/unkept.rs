//! Tests without history: events that all readers have are gone, events that some reader has not
//! are there.

use super::*;

const UNKEPT: Limits = Limits {
    events: 1000,
    bytes: 1 << 20,
    history: History::None,
    ..LIMITS
};

fn read(reader: &mut Reader) -> Batch {
    decode(&reader.read(1 << 20, 1 << 20))
}

fn start_after(journal: &Journal, seq: u64, skip: bool) -> Start {
    Start::After {
        cursor: journal.cursor(seq),
        skip,
    }
}

/// Appends as many events.
fn append(outbox: &mut Outbox, events: u64) -> u64 {
    for _ in 0..events {
        outbox.push(Now::sample(), about(1), posted(9));
    }
    outbox.commit();
    outbox.newest()
}

#[test]
fn an_event_goes_once_every_reader_there_is_has_it() {
    let (journal, mut outbox, memory) = journal(UNKEPT);
    append(&mut outbox, 10);
    assert_eq!(journal.status().events, 10, "nobody has read");
    let oldest = || journal.reader(Start::Oldest, Filter::default()).unwrap();
    let (mut quick, mut slow) = (oldest(), oldest());
    assert_eq!(read(&mut quick).events.len(), 10);
    append(&mut outbox, 1);
    assert_eq!(journal.status().events, 11, "one has not read");
    // A reader whose filter leaves out all events counts as having read them.
    let filter = Filter {
        watches: [7].into(),
        ..Filter::default()
    };
    let nothing = journal.reader(Start::Oldest, filter);
    assert_eq!(read(&mut nothing.unwrap()).events, []);
    assert_eq!(slow.read(1 << 20, 4).events, 4);
    read(&mut quick);
    append(&mut outbox, 1);
    assert_eq!((journal.status().oldest, journal.status().events), (5, 8));
    drop(slow);
    read(&mut quick);
    let last = append(&mut outbox, 1);
    assert_eq!((journal.status().oldest, journal.status().events), (13, 1));
    assert_eq!(memory.used(), cost(&journal.status()));

    let late = journal.reader(start_after(&journal, 3, false), Filter::default());
    assert!(matches!(late, Err(Error::CursorOutOfRange { .. })));
    let late = journal.reader(start_after(&journal, 3, true), Filter::default());
    let told = read(&mut late.unwrap());
    let gaps: Vec<_> = told
        .gaps
        .iter()
        .map(|g| (g.from_seq, g.through_seq))
        .collect();
    assert_eq!((gaps, told.events.len()), (vec![(4, 12)], 1));
    drop(quick);
    append(&mut outbox, 10);
    let back = journal.reader(start_after(&journal, last, false), Filter::default());
    assert_eq!(
        read(&mut back.unwrap()).events.len(),
        10,
        "nobody was there"
    );
}

#[test]
fn what_an_answer_told_stays_until_it_is_known_to_have_come() {
    let (journal, mut outbox, _) = journal(UNKEPT);
    append(&mut outbox, 10);
    let mut stream = journal.reader(Start::Oldest, Filter::default()).unwrap();
    for known in [0, 0, 4, 10, 10] {
        journal.returns_after(known);
        let after = start_after(&journal, known, false);
        let mut once = journal.reader(after, Filter::default()).unwrap();
        let expected = journal.status().newest - known;
        assert_eq!(read(&mut once).events.len() as u64, expected);
        drop(once);
        read(&mut stream);
        append(&mut outbox, 1);
        assert_eq!(journal.status().oldest, known + 1);
    }
}

#[test]
fn the_ends_of_watches_stay_and_the_budget_is_as_ever() {
    let (journal, mut outbox, _) = journal(Limits {
        events: 50,
        ..UNKEPT
    });
    let mut reader = journal.reader(Start::Oldest, Filter::default()).unwrap();
    outbox.push(Now::sample(), about(1), Kind::Closed(Closed::default()));
    append(&mut outbox, 10);
    read(&mut reader);
    append(&mut outbox, 1);
    let status = journal.status();
    assert_eq!((status.events, status.islands), (2, 1));
    outbox.push(Now::sample(), about(1), Kind::Removed(Removed::default()));
    read(&mut reader);
    let newest = append(&mut outbox, 80);
    let told = read(&mut reader);
    assert_eq!(told.events.len(), 50, "it was too slow");
    assert_eq!(told.gaps.last().unwrap().through_seq, newest - 50);
}
