//! What a step of a `Follower` tells.

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

use super::error::Error;
use super::position::Standing;

/// What one step did, and when the next is due.
#[derive(Debug)]
pub struct Step {
    /// In order.
    pub told: Vec<Told>,
    /// When to call again.
    pub next: Next,
    /// How far it is told after so many of `told`, wherever a caller that cannot tell all at once may
    /// stop: before and after everything that is no `Data`.
    pub marks: Vec<(usize, Standing)>,
    /// How far it is told after all of them.
    pub standing: Standing,
    /// Files that were read to their end or given up. Until that is recorded, a later life of the
    /// process needs them.
    pub released: Vec<OwnedFd>,
}

/// When to call [`step`](super::Follower::step) again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// At once: there is more to read.
    More,
    /// At a path event of the name, and after this time at the latest.
    Wake {
        /// At most the `check_every` of the `Spec`.
        after: Duration,
    },
    /// Never: the file is read to its end. Only without `follow`.
    Done,
}

/// One thing that happened.
///
/// A *generation* is one file that the name led to, numbered from 1. Offsets count the bytes of all
/// generations together, in the order told: the first `Data` or `Hole` begins at the offset of the
/// first file where reading began, and each begins where the one before ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Bytes, told once.
    Data {
        /// The file they were in.
        generation: u64,
        /// The offset of the first of them.
        offset: u64,
        /// Never empty.
        bytes: Bytes,
    },
    /// Something else happened to a file.
    Changed {
        /// The file.
        generation: u64,
        /// What happened.
        change: Change,
    },
    /// Something failed; it is tried again at each step, and told again only if it fails in
    /// another way or after it has worked.
    Failed(Error),
    /// The end of the file. Only without `follow`.
    Eof {
        /// The offset of the end.
        offset: u64,
    },
}

/// What happened to a file, or to its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The name leads to this file; before, it led to nothing.
    Appeared,
    /// The name leads to this file; before, it led to another, which is still read to its end.
    Rotated,
    /// The name, which led to this file, leads to nothing. The file is still read to its end.
    Removed,
    /// The file was cut. It is read from its start again, unless what is before the place of
    /// reading is unchanged and was not cut.
    Truncated {
        /// The offset up to which was told before.
        at: u64,
        /// How many bytes are known to be cut off that were not told. There may be more: those
        /// which were written and cut off between two looks.
        lost_at_least: u64,
    },
    /// A hole, which reads as NULs, was skipped. NULs that follow it in the same block belong to it.
    /// What is written into it later is not told.
    Hole {
        /// Where it begins.
        offset: u64,
        /// How many bytes it has; they count in the offset.
        length: u64,
    },
    /// The file was closed although it is not read to its end, or something may still be written
    /// to it.
    GaveUp {
        /// How many bytes of it were not told, as of the last look. More may be written.
        unread_at_least: u64,
        /// Why.
        reason: GaveUp,
    },
}

/// Why a file that lost its name was closed early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GaveUp {
    /// More files would have been kept open than `keep_generations`.
    TooMany,
    /// Deleted files would have held more disk space than `keep_bytes`.
    TooManyBytes,
    /// The kernel does not tell whether a writer is left, and nothing was written to the file for
    /// `rotated_wait`.
    WritersUnknown,
    /// It could not be read for `rotated_wait`, or it had lost its name before it was seen and could
    /// not be opened.
    ReadFailed(Errno),
    /// It lost its name while nobody followed it, or between two looks, and is not in the directory
    /// of the path under another one. A generation that was never told before stands for all those
    /// that may have lost the name between two looks, as not all of the directory could be looked
    /// through.
    NotFound,
}

/// Figures of a `Follower`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// The newest generation; 0: the name never led to a file.
    pub generation: u64,
    /// The offset up to which was told.
    pub offset: u64,
    /// How many files are open.
    pub open: usize,
    /// How many of them have lost the name, so that no path event tells of a change.
    pub rotated: usize,
    /// How many bytes of the open files are not told yet, as of the last look.
    pub unread_bytes: u64,
    /// How much disk space is held by files that are deleted but kept open, in bytes.
    pub deleted_bytes: u64,
    /// How many files were given up.
    pub given_up: u64,
    /// How many of their bytes were not told: at least.
    pub given_up_bytes: u64,
}
