//! Why a path is not watched.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

use super::limits::UserLimit;

/// Why a subscription is refused, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The path cannot be one.
    #[error("path: {0}")]
    Path(PathFault),
    /// Nothing was asked for.
    #[error("kinds: none given, at least one is needed")]
    NoKinds,
    /// An ignore pattern cannot be read.
    #[error("ignore[{index}]: `{pattern}`: {fault}")]
    Pattern {
        /// Which of the patterns, from 0.
        index: usize,
        /// Its text.
        pattern: String,
        /// What is wrong with it.
        fault: String,
    },
    /// More patterns than allowed.
    #[error("ignore: {given} patterns, at most {limit} are allowed")]
    TooManyPatterns {
        /// How many were given.
        given: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// The interval of polling is too short.
    #[error("poll: {given:?} is too short, at least {least:?} is allowed")]
    PollInterval {
        /// What was given.
        given: Duration,
        /// What is allowed.
        least: Duration,
    },
    /// Polling tells none of the kinds.
    #[error(
        "kinds: polling tells created, deleted, modified and attributes only, none of them is given"
    )]
    PollKinds,
    /// There is more than can be polled.
    #[error("more than the limit of {limit} entries to poll")]
    PollEntries {
        /// The limit.
        limit: usize,
    },
    /// A bound that leaves room for nothing.
    #[error("inbox.{field}: 0, at least 1 is needed")]
    InboxTooSmall {
        /// Which bound.
        field: &'static str,
    },
    /// The file system does not tell of changes, and no interval to poll it was given.
    #[error("{}: the file system ({file_system}) tells nothing of changes; give an interval to poll it", path.display())]
    Silent {
        /// Where it is mounted or below.
        path: PathBuf,
        /// The name of its type.
        file_system: &'static str,
    },
    /// A directory on the way or the root may not be read.
    #[error("{}: permission denied (to watch a directory, it must be readable)", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
    },
    /// The user's watches are used up.
    #[error(
        "{} = {} is reached: {used} watches are used here, {needed} more are needed at least",
        .limit.name, number(.limit.value)
    )]
    KernelWatches {
        /// The limit now.
        limit: UserLimit,
        /// Watches of this hub; other programs of the user count too.
        used: usize,
        /// Directories that are known to wait for a watch.
        needed: usize,
    },
    /// The hub's own limit on watches.
    #[error(
        "the limit of {limit} watches of this daemon is reached, {needed} more are needed at least"
    )]
    HubWatches {
        /// The limit.
        limit: usize,
        /// Directories that are known to wait for a watch.
        needed: usize,
    },
    /// The user's inotify instances are used up.
    #[error("{} = {} is reached", .limit.name, number(.limit.value))]
    Instances {
        /// The limit now.
        limit: UserLimit,
    },
    /// The process may open no further descriptor.
    #[error("no file descriptor is left (RLIMIT_NOFILE)")]
    Descriptors,
    /// The hub's own limit on subscriptions.
    #[error("the limit of {limit} path subscriptions is reached")]
    Subscriptions {
        /// The limit.
        limit: usize,
    },
    /// Anything else that the kernel says.
    #[error("{}: {source}", path.display())]
    Kernel {
        /// Where.
        path: PathBuf,
        /// What.
        source: io::Error,
    },
    /// The hub has ended.
    #[error("path watching has ended")]
    Ended,
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It is empty.
    #[error("empty, an absolute path is needed")]
    Empty,
    /// It does not begin with `/`.
    #[error("not absolute, it must begin with `/`")]
    NotAbsolute,
    /// It holds a NUL byte.
    #[error("holds a NUL byte")]
    Nul,
    /// It is longer than the kernel takes.
    #[error("longer than {PATH_BYTES_MAX} bytes")]
    TooLong,
}

/// The kernel's `PATH_MAX` without its NUL byte.
pub(super) const PATH_BYTES_MAX: usize = 4_095;

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "(not readable)".to_owned(), |value| value.to_string())
}

impl Refused {
    /// The error of an `inotify_add_watch` or of opening what it is for.
    pub(super) fn watch(errno: Errno, path: PathBuf, used: usize, needed: usize) -> Self {
        match errno {
            Errno::NOSPC => Self::KernelWatches {
                limit: UserLimit::watches(),
                used,
                needed,
            },
            Errno::ACCESS | Errno::PERM => Self::Unreadable { path },
            Errno::MFILE | Errno::NFILE => Self::Descriptors,
            other => Self::Kernel {
                path,
                source: other.into(),
            },
        }
    }

    /// The error of an `inotify_init1`, which has one number for two limits.
    pub(super) fn instance(errno: Errno) -> Self {
        use rustix::event::{EventfdFlags, eventfd};
        if errno == Errno::MFILE && eventfd(0, EventfdFlags::CLOEXEC).is_ok() {
            return Self::Instances {
                limit: UserLimit::instances(),
            };
        }
        Self::watch(errno, PathBuf::from("inotify"), 0, 1)
    }
}

impl PartialEq for Refused {
    /// By what it says: `io::Error` has no equality of its own.
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Refused {}
