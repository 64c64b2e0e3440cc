//! What the keeper and its lives tell each other, in one page of memory that they share.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::Ended;
use crate::sys;

/// How far a life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It does not serve yet.
    Starting,
    Serving,
    /// It was asked to end, and ends in order.
    Ending,
}

/// A descriptor that the next life takes over by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The socket of the service.
    Service,
    /// The socket on which descriptors are handed over.
    Handover,
    /// The lock of the path of [`Kept::Service`].
    ServiceLock,
    /// The lock of the path of [`Kept::Handover`].
    HandoverLock,
    /// The configuration in force.
    Configuration,
    /// The memory that lives leave to each other.
    State,
    /// The directory that has files of it.
    StateDirectory,
    /// The directory of the children's cgroups, which is locked.
    Cgroups,
}

impl Kept {
    const ALL: [Self; 8] = [
        Self::Service,
        Self::Handover,
        Self::ServiceLock,
        Self::HandoverLock,
        Self::Configuration,
        Self::State,
        Self::StateDirectory,
        Self::Cgroups,
    ];
}

/// The lives that are remembered.
const LIVES: usize = 16;

const KEEPER: usize = 0;
const LIFE: usize = 1;
const PHASE: usize = 2;
const RESTARTS_MAX: usize = 3;
const DELAY_MAX: usize = 4;
const KEPT: usize = 5;
/// The number of a descriptor plus one, the device and the inode of its file.
const KEPT_WORDS: usize = 3;
const ENDED: usize = KEPT + KEPT_WORDS * Kept::ALL.len();
/// When the life ended, nanoseconds of CLOCK_REALTIME, and how.
const ENDED_WORDS: usize = 2;
/// The number of [`Page::oom_kills`] plus one.
const OOM_KILLS: usize = ENDED + ENDED_WORDS * LIVES;
const WORDS: usize = OOM_KILLS + 1;

/// The page. Each side bears any value that the other may have left there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page(&'static [AtomicU64; WORDS]);

impl Page {
    pub(super) fn new() -> Result<Self, Errno> {
        let page = Self(sys::keeper::shared_numbers()?);
        page.set(KEEPER, u64::from(std::process::id()));
        Ok(page)
    }

    fn get(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Acquire)
    }

    fn set(self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Release);
    }

    /// Returns the pid of the keeper.
    pub(super) fn keeper(self) -> i32 {
        i32::try_from(self.get(KEEPER)).unwrap_or_default()
    }

    /// Returns the number of the present life, from 1 on.
    pub(super) fn life(self) -> u64 {
        self.get(LIFE)
    }

    /// Returns the number that was set last; `None` before that.
    pub(super) fn oom_kills(self) -> Option<u64> {
        self.get(OOM_KILLS).checked_sub(1)
    }

    pub(super) fn set_oom_kills(self, number: u64) {
        self.set(OOM_KILLS, number.saturating_add(1));
    }

    /// Begins the next life.
    pub(super) fn begin(self) {
        self.set_phase(Phase::Starting);
        self.set(LIFE, self.life() + 1);
    }

    pub(super) fn phase(self) -> Phase {
        match self.get(PHASE) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Ending,
        }
    }

    pub(super) fn set_phase(self, phase: Phase) {
        self.set(PHASE, phase as u64);
    }

    pub(super) fn set_restarts(self, max: u32, delay_max: Duration) {
        let delay_max = u64::try_from(delay_max.as_millis()).unwrap_or(u64::MAX);
        self.set(RESTARTS_MAX, max.into());
        self.set(DELAY_MAX, delay_max);
    }

    pub(super) fn restarts_max(self) -> u64 {
        self.get(RESTARTS_MAX)
    }

    /// Returns the longest time between two lives, at most `limit`.
    pub(super) fn delay_max(self, limit: Duration) -> Duration {
        Duration::from_millis(self.get(DELAY_MAX)).min(limit)
    }

    /// Remembers that the present life has just ended, and how.
    pub(super) fn ended(self, ended: Ended) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
        let word = Self::ended_word(self.life());
        self.set(
            word,
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(nanoseconds),
        );
        self.set(word + 1, ended.to_word());
    }

    /// Returns the numbers of earlier lives that are remembered, when they ended and how; the newest
    /// first.
    pub(super) fn earlier(self) -> impl Iterator<Item = (u64, u64, Ended)> {
        let numbers = (1..self.life()).rev().take(LIVES);
        numbers.map(move |number| {
            let word = Self::ended_word(number);
            (number, self.get(word), Ended::from_word(self.get(word + 1)))
        })
    }

    fn ended_word(life: u64) -> usize {
        let slot = usize::try_from(life % LIVES as u64).unwrap_or(0);
        ENDED + ENDED_WORDS * slot
    }

    fn kept_word(kept: Kept) -> usize {
        KEPT + KEPT_WORDS * kept as usize
    }

    /// Has the next life take this descriptor over.
    pub(super) fn keep(self, kept: Kept, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let identity = rustix::fs::fstat(fd)?;
        let number = u64::try_from(fd.as_raw_fd()).unwrap_or_default();
        let word = Self::kept_word(kept);
        self.set(word + 1, identity.st_dev);
        self.set(word + 2, identity.st_ino);
        self.set(word, number + 1);
        Ok(())
    }

    /// Returns the number of a descriptor that an earlier life kept, if it still is of the same file.
    pub(super) fn kept(self, kept: Kept) -> Option<RawFd> {
        let word = Self::kept_word(kept);
        let number = RawFd::try_from(self.get(word).checked_sub(1)?).ok()?;
        let identity = sys::keeper::identity_of(number)?;
        (identity == (self.get(word + 1), self.get(word + 2))).then_some(number)
    }

    /// Returns the numbers of all descriptors that an earlier life kept.
    pub(super) fn all_kept(self) -> impl Iterator<Item = RawFd> {
        Kept::ALL
            .into_iter()
            .filter_map(move |kept| self.kept(kept))
    }
}
