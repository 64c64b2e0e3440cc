//! Small pieces of state by kind and id.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::arena::{Arena, Found, Kind, Owner, RUN_MAX, Run};
use super::cell::Cell;
use super::memory::{Part, WORD};
use crate::faults::{self, Point};

/// The sizes of entries, bytes, headers included. A larger one has a run of its own.
const SIZES: [usize; 7] = [64, 128, 256, 512, 1024, 2048, 4000];
/// A slab is a small block until a size has as many entries, then a large one.
const MANY: usize = 256;
/// The bytes of large slabs and small ones.
const SLABS: [usize; 2] = [60 << 10, 4000];

/// Bytes of an entry's header: four words.
const HEADER: usize = 4 * WORD;
/// When it was written: the turn, or a number with [`AT_ONCE`]. 0: it is free.
const WRITTEN: usize = 0;
/// The turn in which it was freed; [`NEVER`].
const FREED: usize = WORD;
/// The kind in the upper byte, and the id.
const KEY: usize = 2 * WORD;
/// The length of what it holds, and its checksum in the lower half.
const LENGTH: usize = 3 * WORD;
const AT_ONCE: u64 = 1 << 63;
const NEVER: u64 = u64::MAX;
const ID_MAX: u64 = (1 << 56) - 1;
/// One piece of state. Dropped, it stays for later lives: give it to [`Records::free`].
#[derive(Debug)]
pub struct Entry {
    _slab: Arc<Run>,
    part: Part,
}

impl Entry {
    fn header(&self, offset: usize) -> &AtomicU64 {
        self.part.word(offset)
    }

    fn load(&self, offset: usize) -> u64 {
        self.header(offset).load(Ordering::Acquire)
    }

    fn store(&self, offset: usize, value: u64) {
        self.header(offset).store(value, Ordering::Release);
    }

    /// Returns a word of what it holds.
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        self.part.word(HEADER + offset)
    }

    /// Returns its kind.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.load(KEY).to_be_bytes()[0]
    }

    /// Returns its id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.load(KEY) & ID_MAX
    }

    /// Returns what it holds. Empty for a cell.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let len = usize::try_from(self.load(LENGTH) >> 32).unwrap_or(usize::MAX);
        let bytes = &self.part.bytes()[HEADER..];
        &bytes[..len.min(bytes.len())]
    }

    fn is_whole(&self) -> bool {
        let checksum = self.load(LENGTH) & 0xffff_ffff;
        u64::from(crc32fast::hash(self.bytes())) == checksum
    }

    fn fill(&mut self, kind: u8, id: u64, bytes: &[u8]) {
        self.part.bytes_mut()[HEADER..HEADER + bytes.len()].copy_from_slice(bytes);
        let length = (bytes.len() as u64) << 32 | u64::from(crc32fast::hash(bytes));
        self.store(LENGTH, length);
        self.store(KEY, u64::from(kind) << 56 | id & ID_MAX);
        self.store(FREED, NEVER);
    }
}

/// The entries of one owner.
#[derive(Debug)]
pub struct Records {
    arena: Arc<Arena>,
    owner: Owner,
    /// What its runs are for.
    runs: Kind,
    /// The number of the next entry that counts at once.
    at_once: u64,
    free: [Vec<Entry>; SIZES.len()],
    made: [usize; SIZES.len()],
    /// What was freed in this turn.
    freed: Vec<Entry>,
}

impl Records {
    /// Makes records without any entry, in runs of this kind.
    #[must_use]
    pub fn new(arena: Arc<Arena>, owner: Owner, runs: Kind) -> Self {
        Self {
            arena,
            owner,
            runs,
            at_once: 0,
            free: Default::default(),
            made: [0; SIZES.len()],
            freed: Vec::new(),
        }
    }

    /// Takes over the entries of an earlier life, as they were after the turn `committed`. The last value
    /// are the kinds and ids of entries that are damaged.
    #[must_use]
    pub fn recover(
        arena: Arc<Arena>,
        owner: Owner,
        runs: Kind,
        found: impl IntoIterator<Item = Found>,
        committed: u64,
    ) -> (Self, Vec<Entry>, Vec<(u8, u64)>) {
        let mut records = Self::new(arena, owner, runs);
        let mut live: HashMap<u64, Entry> = HashMap::new();
        let mut damaged = Vec::new();
        for Found { run: slab, .. } in found {
            let size = usize::try_from(slab.size().load(Ordering::Acquire)).unwrap_or(usize::MAX);
            for entry in entries(slab, size) {
                let (written, freed) = (entry.load(WRITTEN), entry.load(FREED));
                let counts = written & AT_ONCE != 0 || (1..=committed).contains(&written);
                if !counts || freed <= committed {
                    records.give_back(entry);
                } else if entry.is_whole() {
                    entry.store(FREED, NEVER);
                    if written & AT_ONCE != 0 {
                        records.at_once = records.at_once.max(written & !AT_ONCE);
                    }
                    let key = entry.load(KEY);
                    match live.remove(&key) {
                        Some(other) if other.load(WRITTEN) > written => {
                            records.give_back(entry);
                            live.insert(key, other);
                        }
                        Some(other) => {
                            records.give_back(other);
                            live.insert(key, entry);
                        }
                        None => drop(live.insert(key, entry)),
                    }
                } else {
                    damaged.push((entry.kind(), entry.id()));
                    records.give_back(entry);
                }
            }
        }
        (records, live.into_values().collect(), damaged)
    }

    /// Adds an entry. It counts once that turn is committed.
    ///
    /// # Errors
    /// There is no memory.
    pub fn put(&mut self, turn: u64, kind: u8, id: u64, bytes: &[u8]) -> Result<Entry, Errno> {
        let mut entry = self.take(HEADER + bytes.len())?;
        entry.fill(kind, id, bytes);
        entry.store(WRITTEN, turn);
        Ok(entry)
    }

    /// Adds an entry that counts at once.
    ///
    /// # Errors
    /// There is no memory.
    pub fn put_now(&mut self, kind: u8, id: u64, bytes: &[u8]) -> Result<Entry, Errno> {
        let mut entry = self.take(HEADER + bytes.len())?;
        entry.fill(kind, id, bytes);
        faults::point(Point::RecordWritten);
        self.at_once += 1;
        entry.store(WRITTEN, AT_ONCE | self.at_once);
        Ok(entry)
    }

    /// Adds a cell, which counts once that turn is committed.
    ///
    /// # Errors
    /// There is no memory.
    pub fn cell<const N: usize>(
        &mut self,
        turn: u64,
        kind: u8,
        id: u64,
        numbers: [u64; N],
    ) -> Result<Cell<N>, Errno> {
        let entry = self.empty_cell(kind, id, turn, numbers)?;
        entry.store(WRITTEN, turn);
        Ok(Cell::new(entry))
    }

    /// Adds a cell that counts at once. Its versions are told apart by the numbers given as turns.
    ///
    /// # Errors
    /// There is no memory.
    pub fn cell_now<const N: usize>(
        &mut self,
        turn: u64,
        kind: u8,
        id: u64,
        numbers: [u64; N],
    ) -> Result<Cell<N>, Errno> {
        let entry = self.empty_cell(kind, id, turn, numbers)?;
        self.at_once += 1;
        entry.store(WRITTEN, AT_ONCE | self.at_once);
        Ok(Cell::new(entry))
    }

    fn empty_cell<const N: usize>(
        &mut self,
        kind: u8,
        id: u64,
        turn: u64,
        numbers: [u64; N],
    ) -> Result<Entry, Errno> {
        let mut entry = self.take(HEADER + Cell::<N>::BYTES)?;
        entry.part.bytes_mut()[HEADER..HEADER + Cell::<N>::BYTES].fill(0);
        entry.fill(kind, id, &[]);
        let cell = Cell::new(entry);
        cell.set(turn, numbers);
        Ok(cell.into_entry())
    }

    /// Frees an entry. It counts until that turn is committed.
    pub fn free(&mut self, turn: u64, entry: Entry) {
        entry.store(FREED, turn);
        self.freed.push(entry);
    }

    /// Frees an entry at once.
    pub fn free_now(&mut self, entry: Entry) {
        self.give_back(entry);
    }

    /// Puts a new version in the place of an entry. It counts once that turn is committed, and the
    /// earlier one until then.
    ///
    /// # Errors
    /// There is no memory; the entry stays as it was.
    pub fn replace(&mut self, turn: u64, entry: &mut Entry, bytes: &[u8]) -> Result<(), Errno> {
        let new = self.put(turn, entry.kind(), entry.id(), bytes)?;
        let old = std::mem::replace(entry, new);
        self.free(turn, old);
        Ok(())
    }

    /// As [`Records::replace`], but at once.
    ///
    /// # Errors
    /// As for [`Records::replace`].
    pub fn replace_now(&mut self, entry: &mut Entry, bytes: &[u8]) -> Result<(), Errno> {
        let new = self.put_now(entry.kind(), entry.id(), bytes)?;
        faults::point(Point::RecordDoubled);
        let old = std::mem::replace(entry, new);
        self.give_back(old);
        Ok(())
    }

    /// Uses again what was freed in turns that are committed by now: all before.
    pub fn committed(&mut self) {
        for entry in std::mem::take(&mut self.freed) {
            self.give_back(entry);
        }
    }

    fn give_back(&mut self, entry: Entry) {
        entry.store(WRITTEN, 0);
        if let Some(size) = SIZES.iter().position(|size| *size == entry.part.len()) {
            self.free[size].push(entry);
        }
    }

    fn take(&mut self, bytes: usize) -> Result<Entry, Errno> {
        let Some(class) = SIZES.iter().position(|size| *size >= bytes) else {
            let len = bytes.next_multiple_of(WORD);
            if len > RUN_MAX {
                return Err(Errno::NOMEM);
            }
            let run = self.arena.take(self.runs, self.owner, 1, len)?;
            run.part().word(WRITTEN).store(0, Ordering::Release);
            run.size().store(len as u64, Ordering::Release);
            return entries(run, len).next().ok_or(Errno::NOMEM);
        };
        if let Some(entry) = self.free[class].pop() {
            return Ok(entry);
        }
        let size = SIZES[class];
        let bytes = SLABS[usize::from(self.made[class] < MANY)].max(size);
        let run = self.arena.take(self.runs, self.owner, 1, bytes)?;
        // A recycled run: what stands there must not be taken for entries.
        let part = run.part();
        for at in (0..part.len() / size).map(|at| at * size) {
            part.word(at + WRITTEN).store(0, Ordering::Release);
        }
        run.size().store(size as u64, Ordering::Release);
        let before = self.free[class].len();
        self.free[class].extend(entries(run, size));
        self.made[class] += self.free[class].len() - before;
        self.free[class].pop().ok_or(Errno::NOMEM)
    }
}

impl Found {
    /// Passes the kinds and bytes of all entries that may count to `take`, also of turns that were not
    /// committed.
    pub fn peek(&self, mut take: impl FnMut(u8, &[u8])) {
        let size = usize::try_from(self.run.size().load(Ordering::Acquire)).unwrap_or(usize::MAX);
        let has_files = matches!(self.kind, Kind::Records | Kind::Slots);
        if !has_files || size <= HEADER || !size.is_multiple_of(WORD) {
            return;
        }
        let mut rest = self.run.part();
        while rest.len() >= size {
            let after = rest.split_off(size);
            let entry = Look(std::mem::replace(&mut rest, after));
            if entry.0.word(WRITTEN).load(Ordering::Acquire) != 0 {
                take(entry.kind(), entry.bytes());
            }
        }
    }
}

/// An entry that is looked at.
struct Look(Part);

impl Look {
    fn kind(&self) -> u8 {
        self.0.word(KEY).load(Ordering::Acquire).to_be_bytes()[0]
    }

    fn bytes(&self) -> &[u8] {
        let len = self.0.word(LENGTH).load(Ordering::Acquire) >> 32;
        let bytes = &self.0.bytes()[HEADER..];
        &bytes[..usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len())]
    }
}

/// Cuts a slab into its entries.
fn entries(slab: Run, size: usize) -> impl Iterator<Item = Entry> {
    let mut rest = slab.part();
    let slab = Arc::new(slab);
    let sane = size.is_multiple_of(WORD) && size > HEADER;
    std::iter::from_fn(move || {
        (sane && rest.len() >= size).then(|| {
            let after = rest.split_off(size);
            Entry {
                _slab: Arc::clone(&slab),
                part: std::mem::replace(&mut rest, after),
            }
        })
    })
}
