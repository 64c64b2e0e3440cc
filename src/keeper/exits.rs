//! Exits of children of dead lives, which the keeper reaps, in memory that all lives share.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;
use rustix::io::Errno;

use crate::faults::{self, Point};
use crate::sys::{self, Waited};

/// The most exits that wait until a life has recorded them. Further zombies wait.
const EXITS: usize = 256;
/// Whether it is in use, the pid, when it was reaped, how it ended, and eleven numbers of its usage.
const WORDS: usize = 16;
const STATE: usize = 0;
const PID: usize = 1;
const AT: usize = 2;
const CODE: usize = 3;
const STATUS: usize = 4;
const USAGE: usize = 5;

/// The exits. Each side bears any value that the other may have left there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exits(&'static [AtomicU64; EXITS * WORDS]);

/// An exit of a child of a dead life.
#[derive(Debug, Clone, Copy)]
pub struct OrphanExit {
    /// Its pid.
    pub pid: i32,
    /// When it was reaped, clock ticks since the boot. A process that has the pid and was started before
    /// is the one that has ended, as no other had its pid until then.
    pub at: u64,
    /// How it ended.
    pub(crate) waited: Waited,
}

impl OrphanExit {
    /// Returns whether it is that of the process with this pid and start time, in clock ticks since the
    /// boot.
    #[must_use]
    pub const fn is_of(&self, pid: i32, start: u64) -> bool {
        self.pid == pid && self.at >= start
    }
}

impl Exits {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self(sys::keeper::shared_numbers()?))
    }

    fn word(self, exit: usize, word: usize) -> &'static AtomicU64 {
        &self.0[exit * WORDS + word]
    }

    /// Records an exit. False: there is no room.
    pub(super) fn record(self, exit: &OrphanExit) -> bool {
        let is_free = |at: &usize| self.word(*at, STATE).load(Ordering::Acquire) == 0;
        let Some(at) = (0..EXITS).find(is_free) else {
            return false;
        };
        let set = |word: usize, value: i64| {
            self.word(at, word)
                .store(value.cast_unsigned(), Ordering::Relaxed);
        };
        set(PID, exit.pid.into());
        self.word(at, AT).store(exit.at, Ordering::Relaxed);
        set(CODE, exit.waited.code.into());
        set(STATUS, exit.waited.status.into());
        for (word, value) in (USAGE..).zip(numbers(&exit.waited.usage)) {
            set(word, value);
        }
        faults::point(Point::KeeperWritten);
        self.word(at, STATE).store(1, Ordering::Release);
        true
    }

    /// Returns all exits, each with its place.
    pub(super) fn all(self) -> impl Iterator<Item = (usize, OrphanExit)> {
        (0..EXITS).filter_map(move |at| Some((at, self.exit(at)?)))
    }

    fn exit(self, at: usize) -> Option<OrphanExit> {
        if self.word(at, STATE).load(Ordering::Acquire) == 0 {
            return None;
        }
        let get = |word: usize| self.word(at, word).load(Ordering::Relaxed).cast_signed();
        let small = |word: usize| i32::try_from(get(word)).unwrap_or_default();
        Some(OrphanExit {
            pid: small(PID),
            at: get(AT).cast_unsigned(),
            waited: Waited {
                code: small(CODE),
                status: small(STATUS),
                usage: usage(std::array::from_fn(|index| get(USAGE + index))),
            },
        })
    }

    /// Frees the place of an exit.
    pub(super) fn free(self, at: usize) {
        self.word(at, STATE).store(0, Ordering::Release);
    }
}

const fn numbers(usage: &libc::rusage) -> [i64; 11] {
    [
        usage.ru_utime.tv_sec,
        usage.ru_utime.tv_usec,
        usage.ru_stime.tv_sec,
        usage.ru_stime.tv_usec,
        usage.ru_maxrss,
        usage.ru_minflt,
        usage.ru_majflt,
        usage.ru_inblock,
        usage.ru_oublock,
        usage.ru_nvcsw,
        usage.ru_nivcsw,
    ]
}

fn usage(numbers: [i64; 11]) -> libc::rusage {
    let mut usage = sys::no_usage();
    [
        usage.ru_utime.tv_sec,
        usage.ru_utime.tv_usec,
        usage.ru_stime.tv_sec,
        usage.ru_stime.tv_usec,
        usage.ru_maxrss,
        usage.ru_minflt,
        usage.ru_majflt,
        usage.ru_inblock,
        usage.ru_oublock,
        usage.ru_nvcsw,
        usage.ru_nivcsw,
    ] = numbers;
    usage
}
