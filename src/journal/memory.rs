//! What all journals of a daemon hold together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Journal;
use super::committed::Committed;
use crate::memory::{Budget, Rest};

/// A reclaim goes on below the limit by this part of it, so that the next is not at once.
const SLACK: u64 = 64;
/// How often one commit looks for history that can give way: others may fill what it made free.
const RECLAIMS: usize = 4;

/// The budget of all journals. What consumers pin and what is set aside is *committed* and
/// never exceeds it; the rest is history, which gives way.
#[derive(Debug)]
pub struct Memory {
    /// Has the limit, and what is held that is not a journal.
    budget: Arc<Budget>,
    /// Bytes that events cost that are held.
    used: AtomicU64,
    /// Bytes that must be held: pinned or set aside.
    committed: Committed,
    /// Of those, what attached readers have not read.
    unread: AtomicU64,
    journals: Mutex<Vec<Weak<Journal>>>,
    /// How many those are.
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

    /// What else the limit is for.
    #[must_use]
    pub const fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Bytes held now.
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

    /// Counts bytes that are about to be appended, and lets history give way to them. No journal
    /// may be locked.
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

    /// A part of what is committed changes from `was` to `is`.
    pub(super) fn commit(&self, was: u64, is: u64) {
        self.committed.change(was, is);
    }

    /// As [`Memory::commit`], of what attached readers have not read.
    pub(super) fn hold_unread(&self, was: u64, is: u64) {
        if is >= was {
            self.unread.fetch_add(is - was, Ordering::Relaxed);
        } else {
            self.unread.fetch_sub(was - is, Ordering::Relaxed);
        }
    }

    /// Bytes that could be committed if all attached readers had read everything.
    pub(super) fn available_without_unread(&self) -> u64 {
        let committed = self.committed.bytes();
        let unread = self.unread.load(Ordering::Relaxed);
        self.limit()
            .saturating_sub(committed.saturating_sub(unread))
    }

    /// All loops look whom they let go of.
    pub(super) fn call_all(&self) {
        for journal in self.all() {
            journal.call();
        }
    }

    /// Bytes that can still be committed. Less than `wanted`: whoever commits less later tells.
    pub(super) fn available(&self, wanted: u64) -> u64 {
        self.committed
            .look(wanted, |committed| self.limit().saturating_sub(committed))
    }

    /// An equal part of `bytes` for each journal.
    pub(super) fn part(&self, bytes: u64) -> u64 {
        bytes / self.count.load(Ordering::Relaxed).max(1)
    }

    /// Bytes that journals may hold: what is held for anything else is not theirs.
    pub(super) fn limit(&self) -> u64 {
        self.budget.for_rest()
    }

    /// Trims the history of the journals that hold most, so that there is room for `bytes` more.
    /// Says whether anything gave way. No journal may be locked.
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

    /// Less is committed than before: tells the loops that wait for it. No journal may be locked.
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

/// What a journal takes, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) held: u64,
    /// Of those, what cannot give way.
    pub(super) kept: u64,
}

/// The most that each may hold so that all are within `target`; 0 if they cannot be.
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
