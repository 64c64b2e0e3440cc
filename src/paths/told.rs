//! What a subscriber is told.

use std::sync::Arc;

use super::limits::EVENT_BYTES;
use super::refused::Refused;
use super::spec::Kinds;

/// One event of a subscription. Paths are bytes relative to the root; the empty path is the root.
///
/// A reader that keeps a picture of the tree follows these rules, and then misses nothing:
/// - `Synced`: from here on every change is told. List what the Rescans before it named, or all of it
///   the first time, and take no further events before that is done.
/// - `Changed` with `CREATED` or `MOVED_HERE` of a directory: forget what you knew below it; what is in
///   it is told after it.
/// - `DELETED`, `MOVED_AWAY` or `Moved` of a directory: all below it goes along.
/// - A `Rescan` of the root stands for all that was to be read before it.
/// - A change may be told twice when it happens while its directory is scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something changed.
    Changed(Change),
    /// An entry was renamed within what is watched. What was at `to` is replaced; if the two were
    /// exchanged, a second rename leads back and a `Rescan` of both names follows.
    Moved(Move),
    /// Everything that exists is watched: from here on nothing is missed. Told once at the start, after
    /// each appearance of the root and after each run of Rescans.
    Synced(Synced),
    /// What you know of `path`, whether it is there too, and below may be stale: look after the `Synced`
    /// that follows.
    Rescan {
        /// Why.
        reason: RescanReason,
        /// Where.
        path: Vec<u8>,
    },
    /// The root is there: at first sight if it was not, after a `RootGone` otherwise.
    RootAppeared {
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// What was the root is no longer reached by the path. A new one is waited for.
    RootGone {
        /// Why.
        reason: GoneReason,
    },
    /// The subscription has ended. Nothing comes after it.
    Failed {
        /// Why.
        error: Arc<Refused>,
    },
}

/// A change of one path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    /// Relative to the root.
    pub path: Vec<u8>,
    /// What happened.
    pub kinds: Kinds,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// How many equal changes this one stands for, at least: the kernel merges neighbours too.
    pub count: u64,
}

/// A rename.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The old path.
    pub from: Vec<u8>,
    /// The new path.
    pub to: Vec<u8>,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// What the last look at the tree found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Synced {
    /// Directories watched.
    pub directories: u64,
    /// Entries seen by the scans so far that ran since the last `Synced`.
    pub entries: u64,
    /// Directories that exist and are not watched; each was named by a Rescan. They are tried again, those
    /// that are too deep when they come nearer to the root. What is below them is not counted.
    pub unwatched: u64,
}

/// Why a reader has to look itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RescanReason {
    /// The kernel's queue was full (`fs.inotify.max_queued_events`).
    QueueOverflow,
    /// The inbox was full; what it held is dropped.
    ReaderTooSlow,
    /// `path` is not watched: a limit on watches was reached.
    TooManyWatches(Arc<Refused>),
    /// `path` is not watched: it cannot be opened or read.
    ScanFailed {
        /// The error number.
        errno: i32,
    },
    /// `path` is not watched: its file system tells nothing.
    Silent {
        /// The name of the file system's type.
        file_system: &'static str,
    },
    /// `path` is not watched, nor what is below it: it is deeper than the limit.
    TooDeep {
        /// The limit, in directories.
        limit: usize,
    },
    /// A file system was mounted over `path`.
    Mounted,
    /// A file system was unmounted at `path`.
    Unmounted,
    /// Names below `path` changed faster than they could be followed.
    Raced,
    /// `path` could not be watched before and is now.
    WatchedAgain,
    /// `path` and another name were exchanged, in one step or as good as that.
    Exchanged,
    /// The reader asks for something else from here on. Told by whoever changes the subscription.
    Updated,
    /// An earlier life of the process has watched, and nobody since. Told by whoever goes on.
    Recovered,
}

/// Why a root is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// The path leads nowhere: removed, renamed, or a link on its way dangles.
    Missing,
    /// Something else is there now: told before its `RootAppeared`.
    Replaced,
    /// The path cannot be followed; tried again.
    Unreachable {
        /// The error number.
        errno: i32,
    },
}

impl Told {
    /// What it counts in an inbox, in bytes.
    pub(super) fn bytes(&self) -> usize {
        EVENT_BYTES
            + match self {
                Self::Changed(change) => change.path.len(),
                Self::Moved(moved) => moved.from.len() + moved.to.len(),
                Self::Rescan { path, .. } => path.len(),
                _ => 0,
            }
    }
}
