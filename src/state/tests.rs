use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::arena::{HEADER, PLACE, RUN_MAX, file};
use super::memory::{Mapping, WORD};
use super::*;
use crate::sys;

/// Copies a file of memory, as it is at this instant.
fn copy(of: &OwnedFd) -> OwnedFd {
    let len = usize::try_from(rustix::fs::fstat(of).unwrap().st_size).unwrap();
    let copy = file("copy", len).unwrap();
    let mut bytes = vec![0; len];
    assert_eq!(rustix::io::pread(of, &mut bytes, 0), Ok(len));
    assert_eq!(rustix::io::pwrite(&copy, &bytes, 0), Ok(len));
    copy
}

/// What the next life finds if this one is killed now.
pub(crate) fn killed(arena: &Arena) -> (Arc<Arena>, Vec<Found>) {
    let table = copy(arena.file());
    let numbers = Arena::descriptors(arena.file()).unwrap();
    let len = usize::try_from(rustix::fs::fstat(&table).unwrap().st_size).unwrap();
    let mapping = Mapping::new(table.try_clone().unwrap(), len).unwrap();
    let mut place = HEADER;
    for number in numbers {
        let registered = |place| mapping.word(place).load(Ordering::Relaxed);
        while registered(place) != u64::from(number.unsigned_abs()) + 1 {
            place += PLACE;
        }
        let original = sys::keeper::own(number);
        let memory = copy(&original);
        sys::keeper::leave(original);
        let (dev, ino) = sys::keeper::identity_of(memory.as_raw_fd()).unwrap();
        let number = u64::from(memory.as_raw_fd().unsigned_abs());
        for (word, value) in [number + 1, dev, ino].into_iter().enumerate() {
            mapping
                .word(place + word * WORD)
                .store(value, Ordering::Relaxed);
        }
        sys::keeper::leave(memory);
    }
    let recovered = Arena::recover(table, None).unwrap();
    assert!(recovered.is_whole);
    (recovered.arena, recovered.found)
}

#[test]
fn runs_do_not_overlap_and_their_memory_is_used_again() {
    let arena = Arena::new().unwrap();
    let sizes = [1, 4_000, 4_100, 30_000, 40_000, 300_000, RUN_MAX];
    let mut most = 0;
    for round in 0..50 {
        let mut writers = Vec::new();
        for (owner, size) in sizes.into_iter().cycle().take(40).enumerate() {
            let mut writer = Writer::new(Arc::clone(&arena), owner as u64, 0);
            writer.room(size, || 0).fill(u8::try_from(owner).unwrap());
            writers.push(writer);
        }
        for (owner, writer) in writers.iter_mut().enumerate() {
            let mut pieces = 0;
            writer.commit(|bytes| {
                assert!(bytes.iter().all(|byte| usize::from(*byte) == owner));
                pieces += 1;
            });
            assert_eq!(pieces, 1);
        }
        if round == 0 {
            most = arena.bytes();
        }
    }
    assert_eq!(arena.bytes(), most);
    // Regions that nobody uses go back to the system when memory is taken next.
    let mut writer = Writer::new(Arc::clone(&arena), 1, 0);
    writer.room(1, || 0);
    writer.room(60_000, || 0);
    assert!(arena.bytes() < most, "{} of {most}", arena.bytes());
    assert!(writer.is_whole());
    writer.room(RUN_MAX + 1, || 0);
    assert!(!writer.is_whole());
}

fn committed(found: Vec<Found>, owner: u64) -> Option<Vec<u8>> {
    let mut runs: Vec<_> = found.into_iter().filter(|f| f.owner == owner).collect();
    runs.sort_by_key(Found::ordinal);
    let pieces: Option<Vec<_>> = runs.into_iter().map(Found::into_piece).collect();
    let pieces = pieces?.into_iter().map(|piece| piece.cut(usize::MAX));
    Some(pieces.collect::<Vec<_>>().concat())
}

#[test]
fn what_was_committed_is_found_whole_and_nothing_else() {
    let arena = Arena::new().unwrap();
    let mut writer = Writer::new(Arc::clone(&arena), 7, 0);
    let (mut all, mut kept) = (Vec::new(), Vec::new());
    for turn in 0..200_usize {
        for size in [turn, 3, 900 * (turn % 11)] {
            let piece = vec![u8::try_from(turn).unwrap(); size];
            writer.room(size, || 4 << 10).copy_from_slice(&piece);
            all.extend(piece);
        }
        let pending: Vec<u8> = writer.pending().flatten().copied().collect();
        assert_eq!(pending, all[all.len() - pending.len()..]);
        if turn % 9 == 0 {
            let before = all.len() - pending.len();
            assert_eq!(
                committed(killed(&arena).1, 7).as_deref(),
                Some(&all[..before])
            );
        }
        writer.commit(|bytes| kept.push(bytes));
        if turn % 7 == 0 {
            assert_eq!(committed(killed(&arena).1, 7).as_deref(), Some(&all[..]));
        }
    }
    assert_eq!(kept.concat(), all);
    // What nobody has any more is not found again.
    kept.truncate(1);
    assert!(committed(killed(&arena).1, 7).unwrap().len() < all.len());
    drop((writer, kept));
    assert!(killed(&arena).1.is_empty());
}

#[test]
fn what_is_cut_off_is_not_found_again() {
    let arena = Arena::new().unwrap();
    let mut writer = Writer::new(Arc::clone(&arena), 7, 0);
    writer.room(3, || 0).copy_from_slice(b"abc");
    let mut kept = Vec::new();
    writer.commit(|bytes| kept.push(bytes));
    let (next, mut found) = killed(&arena);
    let cut = found.remove(0).into_piece().unwrap().cut(2);
    assert_eq!(committed(killed(&next).1, 7).unwrap(), b"ab");
    assert_eq!(cut, "ab");
}

#[test]
fn damage_is_noticed() {
    let arena = Arena::new().unwrap();
    let mut writer = Writer::new(Arc::clone(&arena), 7, 0);
    writer.room(100, || 0).fill(1);
    let mut kept = None;
    writer.commit(|bytes| kept = Some(bytes));
    let (_other, mut found) = killed(&arena);
    let run = &mut found[0].run;
    run.part().bytes_mut()[99] ^= 1;
    assert!(committed(found, 7).is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Put(u64, usize),
    PutNow(u64, usize),
    Set(u64, u64),
    Free(u64),
    Commit,
    Kill,
}

fn a_step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![0..100_usize, 0..5_000_usize, 6_000..80_000_usize];
    prop_oneof![
        4 => (0..6_u64, size.clone()).prop_map(|(id, size)| Step::Put(id, size)),
        2 => (6..9_u64, size).prop_map(|(id, size)| Step::PutNow(id, size)),
        4 => (9..12_u64, any::<u64>()).prop_map(|(id, number)| Step::Set(id, number)),
        2 => (0..12_u64).prop_map(Step::Free),
        3 => Just(Step::Commit),
        2 => Just(Step::Kill),
    ]
}

/// What an id has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Bytes(Vec<u8>),
    Number(u64),
}

#[derive(Default)]
struct Handles {
    entries: BTreeMap<u64, Entry>,
    cells: BTreeMap<u64, Cell<2>>,
}

impl Handles {
    fn recovered(all: Vec<Entry>, turn: u64) -> (Self, BTreeMap<u64, Value>) {
        let (mut handles, mut values) = (Self::default(), BTreeMap::new());
        for entry in all {
            let id = entry.id();
            if entry.kind() == 2 {
                let cell = Cell::recover(entry, turn);
                let [number, same] = cell.get();
                assert_eq!(number, same);
                values.insert(id, Value::Number(number));
                handles.cells.insert(id, cell);
            } else {
                values.insert(id, Value::Bytes(entry.bytes().to_vec()));
                handles.entries.insert(id, entry);
            }
        }
        (handles, values)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_of_a_turn_counts_or_nothing(steps in prop::collection::vec(a_step(), 1..80)) {
        let mut arena = Arena::new().unwrap();
        let mut records = Records::new(Arc::clone(&arena), 3, Kind::Records);
        let mut turns = Turns::new(&arena, 3).unwrap();
        let mut handles = Handles::default();
        let mut now: BTreeMap<u64, Value> = BTreeMap::new();
        let (mut kept, mut newest) = (now.clone(), 0);
        for (at, step) in steps.into_iter().enumerate() {
            let bytes = |size| vec![u8::try_from(at).unwrap(); size];
            match step {
                Step::Put(id, size) => {
                    match handles.entries.get_mut(&id) {
                        Some(entry) => records.replace(turns.current(), entry, &bytes(size)).unwrap(),
                        None => drop(handles.entries.insert(id, records.put(turns.current(), 1, id, &bytes(size)).unwrap())),
                    }
                    now.insert(id, Value::Bytes(bytes(size)));
                }
                Step::PutNow(id, size) => {
                    match handles.entries.get_mut(&id) {
                        Some(entry) => records.replace_now(entry, &bytes(size)).unwrap(),
                        None => drop(handles.entries.insert(id, records.put_now(1, id, &bytes(size)).unwrap())),
                    }
                    now.insert(id, Value::Bytes(bytes(size)));
                    kept.insert(id, Value::Bytes(bytes(size)));
                }
                Step::Set(id, number) => {
                    match handles.cells.get(&id) {
                        Some(cell) => cell.set(turns.current(), [number; 2]),
                        None => drop(handles.cells.insert(id, records.cell(turns.current(), 2, id, [number; 2]).unwrap())),
                    }
                    now.insert(id, Value::Number(number));
                }
                Step::Free(id) => {
                    let entry = handles.entries.remove(&id);
                    let entry = entry.or_else(|| handles.cells.remove(&id).map(Cell::into_entry));
                    if let Some(entry) = entry {
                        now.remove(&id);
                        if (6..9).contains(&id) {
                            records.free_now(entry);
                            kept.remove(&id);
                        } else {
                            records.free(turns.current(), entry);
                        }
                    }
                }
                Step::Commit => {
                    turns.commit(at as u64);
                    newest = at as u64;
                    records.committed();
                    kept = now.clone();
                }
                Step::Kill => {
                    let (next, found) = killed(&arena);
                    arena = next;
                    let (mut heads, slabs): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| found.kind == Kind::Turns);
                    let (recovered, seq) = Turns::recover(heads.remove(0)).unwrap();
                    turns = recovered;
                    prop_assert_eq!(seq, newest);
                    let committed = turns.current() - 1;
                    let (recovered, entries, damaged) = Records::recover(Arc::clone(&arena), 3, Kind::Records, slabs, committed);
                    prop_assert_eq!(damaged, []);
                    records = recovered;
                    (handles, now) = Handles::recovered(entries, committed);
                    prop_assert_eq!(&now, &kept);
                }
            }
        }
    }
}

/// A kernel that fills buffers and completes into a queue.
struct Ring {
    arrivals: Arrivals,
    buffers: Vec<Buffer>,
    filled: [usize; 2],
    queue: Vec<Completed>,
}

impl Ring {
    fn new(arena: &Arc<Arena>) -> Self {
        let arrivals = Arrivals::new(Arc::clone(arena), 1, 9, 0).unwrap();
        let buffers = [0, 1].map(|n| arrivals.buffer(n, 4000).unwrap()).into();
        for buffer in [0, 1] {
            arrivals.provided(buffer);
        }
        Self {
            arrivals,
            buffers,
            filled: [0; 2],
            queue: Vec::new(),
        }
    }

    fn receive(&mut self, number: RawFd, buffer: u16, bytes: &[u8]) -> Arrival {
        let filled = &mut self.filled[usize::from(buffer)];
        self.buffers[usize::from(buffer)].write(*filled, bytes);
        *filled += bytes.len();
        let arrival = Arrival {
            number,
            buffer,
            len: bytes.len(),
        };
        self.queue.push(Completed::Arrived(arrival.clone()));
        arrival
    }

    /// Returns what the next life finds, as text: where in its stream each part begins, if that is known.
    fn found(self, arena: &Arena) -> Vec<(RawFd, Option<u64>, String)> {
        let Self {
            arrivals,
            buffers,
            queue,
            ..
        } = self;
        let (_arena, found) = killed(arena);
        drop((arrivals, buffers));
        let (log, buffers): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|f| f.kind == Kind::Arrivals);
        assert_eq!(Arrivals::ring(&log[0]), Some(9));
        let left = |seen: u32| Ok(queue[usize::try_from(seen).unwrap()..].to_vec());
        let found = Arrivals::recover(&log[0], &buffers, left).unwrap();
        let text = |one: &Unrecorded| String::from_utf8(one.after(0).unwrap().to_vec()).unwrap();
        let taken = found.taken.iter();
        taken
            .map(|one| (one.number, one.offset, text(one)))
            .chain(
                (found.sent.iter())
                    .map(|one| (one.number, one.offset, one.len.unwrap().to_string())),
            )
            .collect()
    }
}

#[test]
fn what_a_ring_has_received_is_found_whether_it_was_processed_or_not() {
    let arena = Arena::new().unwrap();
    let mut ring = Ring::new(&arena);
    let one = ring.receive(4, 0, b"one");
    assert!(ring.arrivals.took(&one, Some(0), 0));
    ring.queue.push(Completed::Other);
    ring.arrivals.saw();
    let two = ring.receive(4, 0, b"two!");
    assert!(ring.arrivals.took(&two, Some(3), 3));
    let other = ring.receive(5, 1, b"other");
    assert!(ring.arrivals.took(&other, Some(70), 0));
    // Nobody goes on with this stream, but it moves the place in the buffer.
    let fleeting = ring.receive(8, 1, b"fleeting");
    assert!(ring.arrivals.took(&fleeting, None, 5));
    ring.queue.push(Completed::Sent { number: 4, len: 10 });
    assert!(ring.arrivals.sent(4, 90, 10));
    // The first is committed.
    ring.arrivals.committed(1);
    ring.receive(4, 0, b"three");
    ring.queue.push(Completed::Other);
    ring.queue.push(Completed::Sent { number: 4, len: 7 });
    ring.queue.push(Completed::Sent { number: 5, len: 6 });
    ring.receive(6, 1, b"new");
    ring.receive(4, 1, b"four");
    let found = ring.found(&arena);
    let expected = [
        (4, Some(3), "two!"),
        (5, Some(70), "other"),
        (4, Some(7), "three"),
        (6, None, "new"),
        (4, Some(12), "four"),
        (4, Some(90), "10"),
        (4, Some(100), "7"),
        (5, None, "6"),
    ];
    assert_eq!(
        found,
        expected.map(|(n, at, text)| (n, at, text.to_owned()))
    );
}

#[test]
fn a_log_that_is_full_says_so_and_goes_on_after_a_commit() {
    let arena = Arena::new().unwrap();
    let mut ring = Ring::new(&arena);
    let mut took = 0;
    while took < 1_000_000 {
        let one = ring.receive(4, 0, b"");
        if !ring.arrivals.took(&one, Some(took), 0) {
            break;
        }
        took += 1;
    }
    assert_eq!(took, ring.arrivals.next());
    ring.arrivals.committed(took);
    let more = ring.receive(4, 0, b"more");
    assert!(ring.arrivals.took(&more, Some(12), 0));
    let found = ring.found(&arena);
    assert_eq!(found, [(4, Some(12), "more".to_owned())]);
}
