//! The memory that all journals of a daemon hold together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Journal;
use super::committed::Committed;
use crate::memory::{Budget, Rest};

/// A reclaim goes below the limit by one part in this many, so that the next one is not due at
/// once.
const SLACK: u64 = 64;
/// How often one commit reclaims history at most. It may have to repeat that, because other journals
/// may use what it has freed.
const RECLAIMS: usize = 4;

/// The budget of all journals. The part that cannot give way (pinned events, facts, room that is set
/// aside, events that attached readers have not read) is *committed* and never exceeds the budget;
/// the rest is history, which gives way.
#[derive(Debug)]
pub struct Memory {
    /// The limit, and what the daemon holds for other things than journals.
    budget: Arc<Budget>,
    /// The cost of all held events, bytes.
    used: AtomicU64,
    /// The bytes that cannot give way.
    committed: Committed,
    /// Of the committed bytes, those that attached readers have not read.
    unread: AtomicU64,
    journals: Mutex<Vec<Weak<Journal>>>,
    /// The length of `journals`.
    count: AtomicU64,
}

impl Memory {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        let budget = Budget::new(limit);
        let memory = Arc::new(Self {
            budget: Arc::clone(&budget),
            used: AtomicU64::new(0),
            committed: Committed::new(),
            unread: AtomicU64::new(0),
            journals: Mutex::default(),
            count: AtomicU64::new(0),
        });
        let rest: Weak<Self> = Arc::downgrade(&memory);
        budget.set_rest(rest);
        memory
    }

    /// Returns the budget that journals share with all else that clients make the daemon hold.
    #[must_use]
    pub const fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Returns the bytes that journals hold now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn join(&self, journal: &Arc<Journal>) {
        let mut journals = self.journals.lock();
        journals.retain(|journal| journal.strong_count() > 0);
        journals.push(Arc::downgrade(journal));
        self.count.store(journals.len() as u64, Ordering::Relaxed);
    }

    /// Counts bytes that are about to be appended, and trims history to make room for them. The
    /// caller must hold no journal's lock.
    pub(super) fn add(&self, bytes: u64) {
        for _ in 0..RECLAIMS {
            let limit = self.limit();
            let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
            let order = Ordering::Relaxed;
            if self.used.fetch_update(order, order, more).is_ok() {
                return;
            }
            if !self.reclaim(bytes) {
                break;
            }
        }
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Changes a part of the committed bytes from `was` to `is`.
    pub(super) fn commit(&self, was: u64, is: u64) {
        self.committed.change(was, is);
    }

    /// Changes a part of the bytes that attached readers have not read from `was` to `is`.
    pub(super) fn hold_unread(&self, was: u64, is: u64) {
        if is >= was {
            self.unread.fetch_add(is - was, Ordering::Relaxed);
        } else {
            self.unread.fetch_sub(was - is, Ordering::Relaxed);
        }
    }

    /// Returns the bytes that could be committed if all attached readers had read everything.
    pub(super) fn available_without_unread(&self) -> u64 {
        let committed = self.committed.bytes();
        let unread = self.unread.load(Ordering::Relaxed);
        self.limit()
            .saturating_sub(committed.saturating_sub(unread))
    }

    /// Calls all loops, so that each of them checks whether it can give up attached readers.
    pub(super) fn call_all(&self) {
        for journal in self.all() {
            journal.call();
        }
    }

    /// Returns the bytes that can still be committed. If they are less than `wanted`, the journal
    /// that next commits less calls all loops.
    pub(super) fn available(&self, wanted: u64) -> u64 {
        self.committed
            .look(wanted, |committed| self.limit().saturating_sub(committed))
    }

    /// Returns an equal part of `bytes` for each journal.
    pub(super) fn part(&self, bytes: u64) -> u64 {
        bytes / self.count.load(Ordering::Relaxed).max(1)
    }

    /// Returns the bytes that journals may hold: the limit, less what the daemon holds for other
    /// things.
    pub(super) fn limit(&self) -> u64 {
        self.budget.for_rest()
    }

    /// Trims the history of the journals that hold most, to make room for `bytes` more. Returns
    /// whether anything was trimmed. The caller must hold no journal's lock.
    fn reclaim(&self, bytes: u64) -> bool {
        let limit = self.limit();
        let target = limit.saturating_sub(limit / SLACK).saturating_sub(bytes);
        let journals = self.all();
        let sizes: Vec<Size> = journals.iter().map(|journal| journal.size()).collect();
        let level = level(&sizes, target);
        let mut gave = false;
        for (journal, size) in journals.iter().zip(sizes) {
            if self.used() <= target {
                break;
            }
            if size.held > level.max(size.kept) {
                journal.give_way(level, target);
                gave = true;
            }
        }
        gave
    }

    /// Calls the loops that wait for memory, after less is committed than before. The caller must
    /// hold no journal's lock.
    pub(super) fn released(&self) {
        if self.committed.take_awaited() {
            self.call_all();
        }
    }

    fn all(&self) -> Vec<Arc<Journal>> {
        let journals = self.journals.lock();
        journals.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Rest for Memory {
    fn give_way(&self) -> bool {
        let limit = self.limit();
        if self.committed.bytes() > limit {
            return false;
        }
        if self.used() > limit {
            self.reclaim(0);
        }
        true
    }

    fn released(&self) {
        Self::released(self);
    }
}

/// The size of a journal, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) held: u64,
    /// The part of `held` that cannot give way.
    pub(super) kept: u64,
}

/// Returns the most that each journal may hold so that all are within `target`; 0 if that is
/// impossible.
fn level(sizes: &[Size], target: u64) -> u64 {
    let all = |level: u64| {
        let sizes = sizes.iter();
        sizes.map(|size| size.held.min(level.max(size.kept))).sum()
    };
    let fits = |level| -> bool {
        let sum: u64 = all(level);
        sum <= target
    };
    let (mut low, mut high) = (0, sizes.iter().map(|size| size.held).max().unwrap_or(0));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}
