//! Hands out runs of blocks of shared memory, and finds them again.

use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;

use super::ahead::Ahead;
use super::directory::Directory;
use super::memory::{Mapping, Part, WORD};
use super::origin::Origin;
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
    /// Entries of the daemon's [`Records`](super::Records) of slots.
    Slots = 10,
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
            10 => Some(Self::Slots),
            _ => None,
        }
    }
}

/// What becomes of memory when the keeper ends together with a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Class {
    /// It is in files of the directory, if there is one: what exists has to be known again.
    Control,
    /// It is in files if they are memory and have room: nothing that is appended may wait for a disk.
    Bulk,
}

impl Class {
    const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Records
            | Kind::Turns
            | Kind::JournalRecords
            | Kind::Starts
            | Kind::Requests
            | Kind::Slots => Self::Control,
            Kind::Events | Kind::Receipts | Kind::Arrivals | Kind::Buffers => Self::Bulk,
        }
    }
}

/// Memory of one class in blocks of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sort {
    class: Class,
    /// Which of [`UNITS`] its blocks have.
    unit: usize,
}

impl Sort {
    /// How many there are.
    pub(super) const COUNT: usize = 2 * UNITS.len();

    const fn unit(self) -> usize {
        UNITS[self.unit]
    }

    /// Returns its number, less than [`Sort::COUNT`].
    pub(super) const fn index(self) -> usize {
        self.class as usize * UNITS.len() + self.unit
    }

    /// Returns how it stands in the table: units are multiples of two.
    const fn to_word(self) -> u64 {
        (self.unit() | self.class as usize) as u64
    }

    fn from_word(word: u64) -> Option<Self> {
        let class = match word & 1 {
            0 => Class::Control,
            _ => Class::Bulk,
        };
        let unit = UNITS.iter().position(|unit| *unit as u64 == word & !1)?;
        Some(Self { class, unit })
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
/// The words of the [`Origin`] in the header of the table.
const ORIGIN: usize = WORD;
/// The words of the instance in it, the upper half first; 0 is none.
const INSTANCE: usize = ORIGIN + Origin::WORDS * WORD;
/// The words of a place in the table: the number of the file descriptor plus one, the device and
/// the inode of its file, and its [`Sort`].
pub(super) const PLACE: usize = 4 * WORD;
/// The number in a place whose region is being made.
const RESERVED: u64 = u64::MAX;
const TABLE_LEN: usize = HEADER + REGIONS * PLACE;

/// Blocks in one file of memory.
#[derive(Debug)]
pub(super) struct Region {
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
    directory: Option<Arc<Directory>>,
    /// By [`Sort::index`].
    regions: Mutex<[Vec<Arc<Region>>; Sort::COUNT]>,
    ahead: Ahead,
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").finish_non_exhaustive()
    }
}

/// What was found of an arena.
#[derive(Debug)]
pub struct Recovered {
    /// The arena.
    pub arena: Arc<Arena>,
    /// All runs that were in use.
    pub found: Vec<Found>,
    /// Whether no memory is missing.
    pub is_whole: bool,
}

/// Why nothing can be found in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another daemon uses it.
    InUse,
    /// Its table is of another version, or damaged.
    Unknown,
    /// The system refuses something.
    System(Errno),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::WOULDBLOCK => Self::InUse,
            errno => Self::System(errno),
        }
    }
}

impl Arena {
    /// Makes an arena without any runs, whose memory ends with the last process that has it.
    ///
    /// # Errors
    /// The system refuses a file in memory.
    pub fn new() -> Result<Arc<Self>, Errno> {
        let table = file("evloopd-state", TABLE_LEN)?;
        Ok(Arc::new(Self::empty(table, None)?))
    }

    fn with(table: Mapping, directory: Option<Arc<Directory>>) -> Self {
        Self {
            table,
            directory,
            regions: Mutex::default(),
            ahead: Ahead::default(),
        }
    }

    /// Makes an arena whose table is all zeros.
    fn empty(table: OwnedFd, directory: Option<Arc<Directory>>) -> Result<Self, Errno> {
        let arena = Self::with(Mapping::new(table, TABLE_LEN)?, directory);
        arena.set_origin(Origin::here());
        arena.table.word(0).store(TABLE, Ordering::Release);
        Ok(arena)
    }

    /// Returns the arena of a directory: the one that a daemon without any process left there since the
    /// host was started, or an empty one.
    ///
    /// # Errors
    /// See [`Refusal`]. Nothing was changed then.
    pub fn in_directory(directory: &Arc<Directory>) -> Result<Recovered, Refusal> {
        let table = directory.table()?;
        let mut first = [0; WORD];
        let is_new = rustix::io::pread(&table, &mut first, 0)? < WORD || first == [0; WORD];
        if is_new {
            return Ok(Self::anew(table, directory)?);
        }
        let len = usize::try_from(rustix::fs::fstat(&table)?.st_size).unwrap_or(0);
        if u64::from_ne_bytes(first) != TABLE || len < TABLE_LEN {
            return Err(Refusal::Unknown);
        }
        let same = rustix::io::fcntl_dupfd_cloexec(&table, 3)?;
        let arena = Self::with(Mapping::new(same, TABLE_LEN)?, Some(Arc::clone(directory)));
        if arena.origin().is_of_this_boot() {
            return Ok(arena.find()?);
        }
        drop(arena);
        Ok(Self::anew(table, directory)?)
    }

    fn anew(table: OwnedFd, directory: &Arc<Directory>) -> Result<Recovered, Errno> {
        directory.clean(|_| false);
        // Whatever it held reads as zeros afterwards.
        ftruncate(&table, 0)?;
        super::directory::allocate(&table, TABLE_LEN)?;
        Ok(Recovered {
            arena: Arc::new(Self::empty(table, Some(Arc::clone(directory)))?),
            found: Vec::new(),
            is_whole: true,
        })
    }

    /// Returns the file by which the next life finds the arena.
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        self.table.file()
    }

    /// Returns the directory that its files are in.
    #[must_use]
    pub fn directory(&self) -> Option<&Directory> {
        self.directory.as_deref()
    }

    fn origin(&self) -> Origin {
        let word = |index| {
            self.table
                .word(ORIGIN + index * WORD)
                .load(Ordering::Acquire)
        };
        Origin::from_words(std::array::from_fn(word))
    }

    fn set_origin(&self, origin: Origin) {
        for (index, word) in origin.to_words().into_iter().enumerate() {
            let at = ORIGIN + index * WORD;
            self.table.word(at).store(word, Ordering::Release);
        }
    }

    /// Returns the random number that all lives have to which it belongs. The first one draws it.
    ///
    /// # Errors
    /// Those of `draw`.
    pub fn instance<E>(&self, draw: impl FnOnce() -> Result<u128, E>) -> Result<u128, E> {
        let words = [INSTANCE, INSTANCE + WORD].map(|at| self.table.word(at));
        let [upper, lower] = words.map(|word| u128::from(word.load(Ordering::Acquire)));
        match upper << 64 | lower {
            0 => draw().inspect(|number| {
                for (word, half) in words.into_iter().zip([number >> 64, *number]) {
                    let half = half & u128::from(u64::MAX);
                    word.store(u64::try_from(half).unwrap_or_default(), Ordering::Release);
                }
            }),
            number => Ok(number),
        }
    }

    /// Returns whether the pids that an earlier life has noted are those that this process sees.
    #[must_use]
    pub fn has_same_pids(&self) -> bool {
        self.origin() == Origin::here()
    }

    /// Takes over the arena of an earlier life, whose descriptors are still open.
    ///
    /// # Errors
    /// The system refuses to map a file, or this is not the table of an arena of this version.
    pub fn recover(table: OwnedFd, directory: Option<Arc<Directory>>) -> Result<Recovered, Errno> {
        let table = Mapping::new(table, TABLE_LEN)?;
        if table.word(0).load(Ordering::Acquire) != TABLE {
            return Err(Errno::PROTO);
        }
        Self::with(table, directory).find()
    }

    /// Finds all regions: by their descriptors, or else by their names.
    fn find(self) -> Result<Recovered, Errno> {
        // After an error they are not given back: another life may find them.
        let (mut found, mut is_whole) = (ManuallyDrop::new(Vec::new()), true);
        for place in 0..REGIONS {
            let number = self.place(place)[0].load(Ordering::Acquire);
            if number == 0 {
                continue;
            }
            if let Some((file, sort)) = self.region_file(place) {
                let mapping = Mapping::new(file, BLOCKS * sort.unit())?;
                let region = Arc::new(Region {
                    mapping: Arc::new(mapping),
                    unit: sort.unit(),
                    place,
                    used: AtomicU64::new(1),
                });
                runs_in(&region, &mut found);
                self.enter(place, &region);
                self.regions.lock()[sort.index()].push(region);
            } else {
                is_whole &= number == RESERVED;
                self.place(place)[0].store(0, Ordering::Release);
            }
        }
        if let Some(directory) = &self.directory {
            directory.clean(|name| {
                let place = name.parse().ok().filter(|place| *place < REGIONS);
                place.is_some_and(|place: usize| self.place(place)[0].load(Ordering::Acquire) != 0)
            });
            self.set_origin(Origin::here());
        }
        Ok(Recovered {
            arena: Arc::new(self),
            found: ManuallyDrop::into_inner(found),
            is_whole,
        })
    }

    /// Returns the file of a region that was registered.
    fn region_file(&self, place: usize) -> Option<(OwnedFd, Sort)> {
        if let Some((number, sort)) = self.registered(place) {
            return Some((sys::keeper::own(number), sort));
        }
        let [_, dev, ino, sort] = self.place(place).map(|word| word.load(Ordering::Acquire));
        let sort = Sort::from_word(sort)?;
        let file = self.directory.as_ref()?.existing(&place.to_string()).ok()?;
        let found = rustix::fs::fstat(&file).ok()?;
        let is_it = (found.st_dev, found.st_ino) == (dev, ino);
        let is_long = usize::try_from(found.st_size).is_ok_and(|len| len >= BLOCKS * sort.unit());
        (is_it && is_long).then_some((file, sort))
    }

    /// Returns the numbers of the descriptors of its memory. Those of the table's own file are not
    /// among them.
    pub fn descriptors(table: &OwnedFd) -> Result<Vec<RawFd>, Errno> {
        let table = rustix::io::fcntl_dupfd_cloexec(table, 3)?;
        let table = Self::with(Mapping::new(table, TABLE_LEN)?, None);
        let places = 0..REGIONS;
        let numbers = places.filter_map(|place| Some(table.registered(place)?.0));
        Ok(numbers.collect())
    }

    fn place(&self, place: usize) -> [&AtomicU64; 4] {
        let at = HEADER + place * PLACE;
        [0, 1, 2, 3].map(|word| self.table.word(at + word * WORD))
    }

    /// Returns the descriptor of a region, if it is still that file.
    fn registered(&self, place: usize) -> Option<(RawFd, Sort)> {
        let [number, dev, ino, sort] = self.place(place).map(|word| word.load(Ordering::Acquire));
        let number = RawFd::try_from(number.checked_sub(1)?).ok()?;
        let sort = Sort::from_word(sort)?;
        (sys::keeper::identity_of(number) == Some((dev, ino))).then_some((number, sort))
    }

    /// Enters a region's descriptor in the table.
    fn enter(&self, place: usize, region: &Region) {
        let number = region.mapping.file().as_raw_fd();
        let number = u64::from(number.unsigned_abs()) + 1;
        self.place(place)[0].store(number, Ordering::Release);
    }

    /// Takes a run that holds at least that many bytes. They are not all zero.
    ///
    /// # Errors
    /// There is no memory, or no run is so large.
    pub(super) fn take(
        self: &Arc<Self>,
        kind: Kind,
        owner: Owner,
        ordinal: u64,
        bytes: usize,
    ) -> Result<Run, Errno> {
        if bytes > RUN_MAX {
            return Err(Errno::NOMEM);
        }
        let sort = Sort {
            class: Class::of(kind),
            unit: usize::from(bytes > SMALL_MAX),
        };
        let count = (bytes + HEADER).div_ceil(sort.unit());
        let (region, first) = match self.take_blocks(sort, count) {
            Some(taken) => taken,
            None => {
                let region = Arc::new(self.make(sort)?);
                let first = region.take(count).ok_or(Errno::NOMEM)?;
                self.regions.lock()[sort.index()].push(Arc::clone(&region));
                (region, first)
            }
        };
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

    /// Takes blocks of the regions that there are.
    fn take_blocks(self: &Arc<Self>, sort: Sort, count: usize) -> Option<(Arc<Region>, usize)> {
        let mut regions = self.regions.lock();
        let regions = &mut regions[sort.index()];
        let taken = regions
            .iter()
            .rev()
            .find_map(|region| Some((Arc::clone(region), region.take(count)?)));
        self.give_back(regions);
        if taken.is_some() && !has_spare(regions) {
            self.ahead.ask(self, sort);
        }
        taken
    }

    /// Makes a region before it is needed.
    pub(super) fn make_ahead(&self, sort: Sort) {
        self.ahead.is_done(sort);
        if has_spare(&self.regions.lock()[sort.index()]) {
            return;
        }
        // Without it, whoever needs it makes it, or learns why there is none.
        if let Ok(region) = self.make(sort) {
            self.regions.lock()[sort.index()].push(Arc::new(region));
        }
    }

    /// Makes a region whose memory is there.
    fn make(&self, sort: Sort) -> Result<Region, Errno> {
        let reserve = |place: &usize| {
            let (before, after) = (Ordering::AcqRel, Ordering::Relaxed);
            let word = self.place(*place)[0];
            word.compare_exchange(0, RESERVED, before, after).is_ok()
        };
        let place = (0..REGIONS).find(reserve).ok_or(Errno::NOMEM)?;
        self.make_at(place, sort).inspect_err(|_| {
            self.place(place)[0].store(0, Ordering::Release);
        })
    }

    fn make_at(&self, place: usize, sort: Sort) -> Result<Region, Errno> {
        let len = BLOCKS * sort.unit();
        let mapping = match self.in_file(place, sort) {
            Some(mapping) => mapping,
            None => {
                let mapping = Mapping::new(file("evloopd-memory", len)?, len)?;
                mapping.populate()?;
                mapping
            }
        };
        let (dev, ino) = sys::keeper::identity_of(mapping.file().as_raw_fd()).ok_or(Errno::BADF)?;
        let [_, device, inode, word] = self.place(place);
        device.store(dev, Ordering::Relaxed);
        inode.store(ino, Ordering::Relaxed);
        word.store(sort.to_word(), Ordering::Relaxed);
        let region = Region {
            mapping: Arc::new(mapping),
            unit: sort.unit(),
            place,
            used: AtomicU64::new(1),
        };
        self.enter(place, &region);
        Ok(region)
    }

    /// Makes the memory of a region as a file of the directory, if such a one is to be there and can.
    fn in_file(&self, place: usize, sort: Sort) -> Option<Mapping> {
        let directory = self.directory.as_ref()?;
        let len = BLOCKS * sort.unit();
        // Control state is little: it takes what is left.
        let fits = match sort.class {
            Class::Control => true,
            Class::Bulk => directory.is_memory() && directory.has_room(len as u64),
        };
        if !fits {
            return None;
        }
        let name = place.to_string();
        let mapping = Mapping::new(directory.create(&name, len).ok()?, len).ok()?;
        let populated = mapping.populate().inspect_err(|_| directory.remove(&name));
        populated.is_ok().then_some(mapping)
    }

    /// Gives regions without runs back to the system, but for one.
    fn give_back(&self, regions: &mut Vec<Arc<Region>>) {
        let mut spare = 0;
        regions.retain(|region| {
            spare += usize::from(region.is_idle());
            let kept = spare < 2 || !region.is_idle();
            if !kept {
                self.place(region.place)[0].store(0, Ordering::Release);
                if let Some(directory) = &self.directory {
                    directory.remove(&region.place.to_string());
                }
            }
            kept
        });
    }

    /// Gives memory that nothing is in back to the system, but for a spare part of each size. It is also
    /// given back whenever memory is taken.
    pub fn give_idle_back(&self) {
        for regions in &mut *self.regions.lock() {
            self.give_back(regions);
        }
    }

    /// Returns the bytes of memory that it has from the system.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let regions = self.regions.lock();
        let all = regions.iter().flatten();
        all.map(|region| region.mapping.len() as u64).sum()
    }

    /// Returns whether all of it, also what is made next, is in files that another daemon would find.
    #[must_use]
    pub fn is_in_files(&self) -> bool {
        let is_named =
            |file: &OwnedFd| rustix::fs::fstat(file).is_ok_and(|found| found.st_nlink > 0);
        let takes_all = self
            .directory
            .as_ref()
            .is_some_and(|directory| directory.is_memory());
        let regions = self.regions.lock();
        let mut all = regions.iter().flatten();
        takes_all
            && is_named(self.table.file())
            && all.all(|region| is_named(region.mapping.file()))
    }

    /// Removes the directory and its files: no daemon is to find anything.
    pub fn remove_files(&self) {
        if let Some(directory) = &self.directory {
            directory.remove_all();
        }
    }
}

/// Returns whether a run of any size fits into one of the regions, or at least many small ones.
fn has_spare(regions: &[Arc<Region>]) -> bool {
    let free = |region: &Arc<Region>| region.used.load(Ordering::Acquire).count_zeros();
    regions.iter().map(free).sum::<u32>() as usize >= BLOCKS / 2
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
