//! What a subscriber asks for.

use std::ffi::OsString;
use std::time::Duration;

use bitflags::bitflags;
use rustix::fs::inotify::{ReadFlags, WatchFlags};

use super::limits::InboxLimits;

bitflags! {
    /// Kinds of changes, as asked for and as told. Their bits are the kernel's.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Kinds: u32 {
        /// An entry is new (`IN_CREATE`, or found where it was not before).
        const CREATED = WatchFlags::CREATE.bits();
        /// An entry was removed (`IN_DELETE`).
        const DELETED = WatchFlags::DELETE.bits();
        /// Content was written or cut (`IN_MODIFY`). A write through a memory map is not told, nor, as
        /// for all kinds, what is done through a hard link whose directory is not watched.
        const MODIFIED = WatchFlags::MODIFY.bits();
        /// A file that was open for writing was closed (`IN_CLOSE_WRITE`).
        const WRITE_ENDED = WatchFlags::CLOSE_WRITE.bits();
        /// Mode, owner, times, links or extended attributes changed (`IN_ATTRIB`).
        const ATTRIBUTES = WatchFlags::ATTRIB.bits();
        /// An entry went out of what is watched by a rename (`IN_MOVED_FROM` alone).
        const MOVED_AWAY = WatchFlags::MOVED_FROM.bits();
        /// An entry came into what is watched by a rename (`IN_MOVED_TO` alone).
        const MOVED_HERE = WatchFlags::MOVED_TO.bits();
        /// Renames, those within the watched tree too.
        const MOVED = Self::MOVED_AWAY.bits() | Self::MOVED_HERE.bits();
        /// Something was opened (`IN_OPEN`), by the hub's own scans of directories too.
        const OPENED = WatchFlags::OPEN.bits();
        /// Something was read (`IN_ACCESS`).
        const ACCESSED = WatchFlags::ACCESS.bits();
        /// Something that was not open for writing was closed (`IN_CLOSE_NOWRITE`).
        const CLOSED_UNWRITTEN = WatchFlags::CLOSE_NOWRITE.bits();
    }
}

impl Kinds {
    /// What a subscriber usually wants: all but opens, reads and closes after reading.
    pub const USUAL: Self = Self::CREATED
        .union(Self::DELETED)
        .union(Self::MODIFIED)
        .union(Self::WRITE_ENDED)
        .union(Self::ATTRIBUTES)
        .union(Self::MOVED);

    /// Kinds that say that an entry came or went.
    pub(super) const STRUCTURE: Self = Self::CREATED.union(Self::DELETED).union(Self::MOVED);

    /// The mask that makes the kernel tell these.
    pub(super) fn mask(self) -> WatchFlags {
        WatchFlags::from_bits_retain(self.bits())
    }

    /// The kinds in an event of the kernel.
    pub(super) fn of(event: ReadFlags) -> Self {
        Self::from_bits_truncate(event.bits())
    }
}

/// What to watch and how it is told.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Absolute path of a directory or file. It is watched by name: it need not exist yet, links on
    /// the way are followed, and what takes its place is watched in its stead.
    pub path: OsString,
    /// Whether directories below the root are watched too. Links inside are never followed.
    pub recursive: bool,
    /// What is told. Opens and reads are asked of the kernel only if they are in it.
    pub kinds: Kinds,
    /// Patterns as in a `.gitignore` file, relative to the root: see [`Ignore`](super::ignore::Ignore).
    /// They hold before anything is watched: a directory that matches is never opened.
    pub ignore: Vec<String>,
    /// How long a change may be held back so that equal ones become one with a count. Zero: not at all.
    pub window: Duration,
    /// The interval of a scan, for file systems that tell nothing. None: those are refused. Others are
    /// never polled.
    pub poll: Option<Duration>,
    /// Bounds of what waits for the reader.
    pub inbox: InboxLimits,
    /// It was watched before: what stands in the way of watching it now is told and tried again, as if
    /// it had come up meanwhile, and is not refused. But for file systems that tell nothing.
    pub again: bool,
}

impl Spec {
    /// The usual kinds of `path`, at once, not recursive.
    pub fn new(path: impl Into<OsString>) -> Self {
        Self {
            path: path.into(),
            recursive: false,
            kinds: Kinds::USUAL,
            ignore: Vec::new(),
            window: Duration::ZERO,
            poll: None,
            inbox: InboxLimits::default(),
            again: false,
        }
    }
}
