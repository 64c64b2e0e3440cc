//! Hands out runs of blocks of shared memory, and finds them again.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;

use super::memory::{Mapping, Part, WORD};
use crate::sys;

/// Whose a run is: the id of a loop, or 0 for the daemon.
pub type Owner = u64;

/// The daemon itself.
pub const DAEMON: Owner = 0;

/// What a run is for. The numbers stand in memory that later versions read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Appended bytes: encoded events.
    Events = 1,
    /// Entries of [`Records`](super::Records).
    Records = 2,
    /// [`Turns`](super::Turns).
    Turns = 3,
    /// Entries of a journal's [`Records`](super::Records).
    JournalRecords = 4,
    /// [`Receipts`](super::Receipts).
    Receipts = 5,
    /// [`Arrivals`](super::Arrivals).
    Arrivals = 6,
    /// A [`Buffer`](super::Buffer); the ordinal is its number.
    Buffers = 7,
    /// [`Starts`](super::Starts).
    Starts = 8,
    /// Entries of the daemon's [`Records`](super::Records) of requests.
    Requests = 9,
}

impl Kind {
    const fn from_number(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Events),
            2 => Some(Self::Records),
            3 => Some(Self::Turns),
            4 => Some(Self::JournalRecords),
            5 => Some(Self::Receipts),
            6 => Some(Self::Arrivals),
            7 => Some(Self::Buffers),
            8 => Some(Self::Starts),
            9 => Some(Self::Requests),
            _ => None,
        }
    }
}

/// Blocks of a region, one bit each in a word. The first holds the region's own header.
const BLOCKS: usize = 64;
/// The sizes of blocks, bytes. Of each size there are regions.
const UNITS: [usize; 2] = [4 << 10, 64 << 10];
/// A run of at most this many bytes is made of small blocks.
const SMALL_MAX: usize = 32 << 10;
/// The most bytes that a run can hold.
pub(super) const RUN_MAX: usize = (BLOCKS - 1) * UNITS[1] - HEADER;

/// Bytes of a run's header: eight words.
pub(super) const HEADER: usize = 8 * WORD;
/// The words of a header, by offset.
const MARK: usize = 0;
const OWNER: usize = WORD;
const ORDINAL: usize = 2 * WORD;
const COUNT: usize = 3 * WORD;
const COMMITTED: usize = 4 * WORD;
const SIZE: usize = 5 * WORD;
/// The upper half of the mark of a run that is in use.
const LIVE: u64 = 0x6576_6c70 << 32;

/// The regions that an arena can have: 64 GiB with large blocks.
const REGIONS: usize = 16 << 10;
/// The first word of the table of regions; the lower half is the version.
const TABLE: u64 = 0x6576_6c74 << 32 | 1;
/// The words of a place in the table: the number of the file descriptor plus one, the device and
/// the inode of its file, and the size of its blocks.
pub(super) const PLACE: usize = 4 * WORD;
const TABLE_LEN: usize = HEADER + REGIONS * PLACE;

/// Blocks in one file of memory.
struct Region {
    mapping: Arc<Mapping>,
    unit: usize,
    place: usize,
    /// The blocks in use.
    used: AtomicU64,
}

impl Region {
    /// Takes `count` blocks that follow each other. Only one thread may take at a time.
    fn take(&self, count: usize) -> Option<usize> {
        let mut fits = !self.used.load(Ordering::Acquire);
        // Bit i stays if blocks i to i + count - 1 are free.
        for _ in 1..count {
            fits &= fits >> 1;
        }
        let first = fits.trailing_zeros() as usize;
        (fits != 0).then(|| {
            self.used.fetch_or(bits(first, count), Ordering::AcqRel);
            first
        })
    }

    fn is_idle(&self) -> bool {
        self.used.load(Ordering::Acquire) == 1
    }
}

const fn bits(first: usize, count: usize) -> u64 {
    (u64::MAX >> (BLOCKS - count)) << first
}

/// Memory that one owner has. It is given back when the last use of it ends.
pub(super) struct Run {
    region: Arc<Region>,
    first: usize,
    count: usize,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("kind", &self.kind())
            .field("owner", &self.owner())
            .field("ordinal", &self.ordinal())
            .finish_non_exhaustive()
    }
}

impl Run {
    fn start(&self) -> usize {
        self.first * self.region.unit
    }

    /// Returns the bytes that it can hold.
    pub(super) fn len(&self) -> usize {
        self.count * self.region.unit - HEADER
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        self.region.mapping.word(self.start() + offset)
    }

    fn get(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Acquire)
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        Kind::from_number(self.get(MARK) & 0xff)
    }

    pub(super) fn owner(&self) -> Owner {
        self.get(OWNER)
    }

    pub(super) fn ordinal(&self) -> u64 {
        self.get(ORDINAL)
    }

    /// Returns the word that says how much of it is committed.
    pub(super) fn committed(&self) -> &AtomicU64 {
        self.word(COMMITTED)
    }

    /// Returns the word that says how large its entries are.
    pub(super) fn size(&self) -> &AtomicU64 {
        self.word(SIZE)
    }

    /// Returns all of its memory. Call it once.
    pub(super) fn part(&self) -> Part {
        let start = self.start() + HEADER;
        Part::new(Arc::clone(&self.region.mapping), start..start + self.len())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.word(MARK).store(0, Ordering::Release);
        let kept = !bits(self.first, self.count);
        self.region.used.fetch_and(kept, Ordering::AcqRel);
    }
}

/// A run of an earlier life. Dropped, it is given back.
#[derive(Debug)]
pub struct Found {
    pub(super) run: Run,
    /// What it is for.
    pub kind: Kind,
    /// Whose it is.
    pub owner: Owner,
}

impl Found {
    /// Says that what it tells is used once that turn of its owner is committed.
    pub fn use_in(&self, turn: u64) {
        self.run.committed().store(turn, Ordering::Release);
    }

    /// Returns the turn that [`Found::use_in`] was called with; 0 without a call.
    #[must_use]
    pub fn used_in(&self) -> u64 {
        self.run.committed().load(Ordering::Acquire)
    }
}

/// All memory that outlives a life.
pub struct Arena {
    table: Mapping,
    /// For each size of blocks.
    regions: Mutex<[Vec<Arc<Region>>; UNITS.len()]>,
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").finish_non_exhaustive()
    }
}

impl Arena {
    /// Makes an arena without any runs.
    ///
    /// # Errors
    /// The system refuses a file in memory.
    pub fn new() -> Result<Arc<Self>, Errno> {
        let table = Mapping::new(file("evloopd-state", TABLE_LEN)?, TABLE_LEN)?;
        table.word(0).store(TABLE, Ordering::Release);
        Ok(Arc::new(Self {
            table,
            regions: Mutex::default(),
        }))
    }

    /// Returns the file by which the next life finds the arena.
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        self.table.file()
    }

    /// Takes over the arena of an earlier life. Returns it with all runs that were in use.
    ///
    /// # Errors
    /// The system refuses to map a file, or this is not the table of an arena of this version.
    pub fn recover(table: OwnedFd) -> Result<(Arc<Self>, Vec<Found>), Errno> {
        let table = Mapping::new(table, TABLE_LEN)?;
        if table.word(0).load(Ordering::Acquire) != TABLE {
            return Err(Errno::PROTO);
        }
        let arena = Self {
            table,
            regions: Mutex::default(),
        };
        let mut found = Vec::new();
        for place in 0..REGIONS {
            let Some((number, unit)) = arena.registered(place) else {
                continue;
            };
            let mapping = Mapping::new(sys::keeper::own(number), BLOCKS * UNITS[unit])?;
            let region = Arc::new(Region {
                mapping: Arc::new(mapping),
                unit: UNITS[unit],
                place,
                used: AtomicU64::new(1),
            });
            runs_in(&region, &mut found);
            arena.regions.lock()[unit].push(region);
        }
        Ok((Arc::new(arena), found))
    }

    /// Returns the numbers of the descriptors of its memory. Those of the table's own file are not
    /// among them.
    pub fn descriptors(table: &OwnedFd) -> Result<Vec<RawFd>, Errno> {
        let table = Self {
            table: Mapping::new(rustix::io::fcntl_dupfd_cloexec(table, 3)?, TABLE_LEN)?,
            regions: Mutex::default(),
        };
        let places = 0..REGIONS;
        let numbers = places.filter_map(|place| Some(table.registered(place)?.0));
        Ok(numbers.collect())
    }

    fn place(&self, place: usize) -> [&AtomicU64; 4] {
        let at = HEADER + place * PLACE;
        [0, 1, 2, 3].map(|word| self.table.word(at + word * WORD))
    }

    /// Returns the descriptor of a region, if it is still that file, and which of [`UNITS`] it has.
    fn registered(&self, place: usize) -> Option<(RawFd, usize)> {
        let [number, dev, ino, unit] = self.place(place).map(|word| word.load(Ordering::Acquire));
        let number = RawFd::try_from(number.checked_sub(1)?).ok()?;
        let unit = UNITS.iter().position(|known| *known as u64 == unit)?;
        (sys::keeper::identity_of(number) == Some((dev, ino))).then_some((number, unit))
    }

    /// Takes a run that holds at least that many bytes. They are not all zero.
    ///
    /// # Errors
    /// There is no memory, or no run is so large.
    pub(super) fn take(
        &self,
        kind: Kind,
        owner: Owner,
        ordinal: u64,
        bytes: usize,
    ) -> Result<Run, Errno> {
        if bytes > RUN_MAX {
            return Err(Errno::NOMEM);
        }
        let unit = usize::from(bytes > SMALL_MAX);
        let count = (bytes + HEADER).div_ceil(UNITS[unit]);
        let mut regions = self.regions.lock();
        let regions = &mut regions[unit];
        let taken = regions
            .iter()
            .rev()
            .find_map(|region| Some((Arc::clone(region), region.take(count)?)));
        let (region, first) = match taken {
            Some(taken) => taken,
            None => {
                let region = Arc::new(self.region(unit)?);
                regions.push(Arc::clone(&region));
                let first = region.take(count).ok_or(Errno::NOMEM)?;
                (region, first)
            }
        };
        self.give_back(regions);
        let run = Run {
            region,
            first,
            count,
        };
        for (offset, value) in [
            (OWNER, owner),
            (ORDINAL, ordinal),
            (COUNT, count as u64),
            (COMMITTED, 0),
            (SIZE, 0),
        ] {
            run.word(offset).store(value, Ordering::Relaxed);
        }
        run.word(MARK).store(LIVE | kind as u64, Ordering::Release);
        Ok(run)
    }

    fn region(&self, unit: usize) -> Result<Region, Errno> {
        let len = BLOCKS * UNITS[unit];
        let place = (0..REGIONS)
            .find(|place| self.place(*place)[0].load(Ordering::Acquire) == 0)
            .ok_or(Errno::NOMEM)?;
        let mapping = Mapping::new(file("evloopd-memory", len)?, len)?;
        mapping.populate()?;
        let number = mapping.file().as_raw_fd();
        let (dev, ino) = sys::keeper::identity_of(number).ok_or(Errno::BADF)?;
        let [word, device, inode, size] = self.place(place);
        device.store(dev, Ordering::Relaxed);
        inode.store(ino, Ordering::Relaxed);
        size.store(UNITS[unit] as u64, Ordering::Relaxed);
        word.store(u64::from(number.unsigned_abs()) + 1, Ordering::Release);
        Ok(Region {
            mapping: Arc::new(mapping),
            unit: UNITS[unit],
            place,
            used: AtomicU64::new(1),
        })
    }

    /// Gives regions without runs back to the system, but for one.
    fn give_back(&self, regions: &mut Vec<Arc<Region>>) {
        let mut spare = 0;
        regions.retain(|region| {
            spare += usize::from(region.is_idle());
            let kept = spare < 2 || !region.is_idle();
            if !kept {
                self.place(region.place)[0].store(0, Ordering::Release);
            }
            kept
        });
    }

    /// Returns the bytes of memory that it has from the system.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let regions = self.regions.lock();
        let all = regions.iter().flatten();
        all.map(|region| region.mapping.len() as u64).sum()
    }
}

/// Finds the runs of a region that are in use.
fn runs_in(region: &Arc<Region>, found: &mut Vec<Found>) {
    let mut at = 1;
    while at < BLOCKS {
        let word = |offset| region.mapping.word(at * region.unit + offset);
        let mark = word(MARK).load(Ordering::Acquire);
        let count = usize::try_from(word(COUNT).load(Ordering::Acquire)).unwrap_or(0);
        let kind = Kind::from_number(mark & 0xff).filter(|kind| mark == LIVE | *kind as u64);
        let Some(kind) = kind.filter(|_| (1..=BLOCKS - at).contains(&count)) else {
            at += 1;
            continue;
        };
        region.used.fetch_or(bits(at, count), Ordering::AcqRel);
        let run = Run {
            region: Arc::clone(region),
            first: at,
            count,
        };
        let owner = run.owner();
        found.push(Found { run, kind, owner });
        at += count;
    }
}

/// Makes a file in memory that never gets longer or shorter.
pub(super) fn file(name: &str, len: usize) -> Result<OwnedFd, Errno> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, len as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file)
}
