//! What all journals of a daemon hold together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Journal;
use super::awaited::Awaited;
use crate::memory::Budget;

/// A reclaim goes on below the limit by this part of it, so that the next is not at once.
const SLACK: u64 = 64;

/// The budget of all journals. What consumers pin and what is set aside is *committed* and
/// never exceeds it; the rest is history, which gives way.
#[derive(Debug)]
pub struct Memory {
    /// Has the limit, and what is held that is not a journal.
    budget: Arc<Budget>,
    /// Bytes of events that are held.
    used: AtomicU64,
    /// Bytes that must be held: pinned or set aside.
    committed: AtomicU64,
    /// Of those, what attached readers have not read.
    unread: AtomicU64,
    /// Some loop waits for others to let go of memory.
    awaited: Awaited,
    journals: Mutex<Vec<Weak<Journal>>>,
    /// How many those are.
    count: AtomicU64,
}

impl Memory {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            budget: Budget::new(limit),
            used: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            unread: AtomicU64::new(0),
            awaited: Awaited::new(),
            journals: Mutex::default(),
            count: AtomicU64::new(0),
        })
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

    pub(super) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A part of what is committed changes from `was` to `is`.
    pub(super) fn commit(&self, was: u64, is: u64) {
        change(&self.committed, was, is);
    }

    /// As [`Memory::commit`], of what attached readers have not read.
    pub(super) fn hold_unread(&self, was: u64, is: u64) {
        change(&self.unread, was, is);
    }

    /// Bytes that could be committed if all attached readers had read everything.
    pub(super) fn available_without_unread(&self) -> u64 {
        let committed = self.committed.load(Ordering::Acquire);
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
        let available = || {
            let committed = self.committed.load(Ordering::Acquire);
            self.limit().saturating_sub(committed)
        };
        if available() < wanted {
            self.awaited.announce();
        }
        // After the flag: what is let go of from here on is told.
        available()
    }

    /// All hold too much, and a journal of this size more than an equal share of the limit.
    pub(super) fn presses(&self, bytes: u64) -> bool {
        self.is_exceeded() && bytes > self.share()
    }

    pub(super) fn is_exceeded(&self) -> bool {
        self.used() > self.limit()
    }

    /// An equal part of `bytes` for each journal.
    pub(super) fn part(&self, bytes: u64) -> u64 {
        bytes / self.count.load(Ordering::Relaxed).max(1)
    }

    /// Bytes that journals may hold: what is held for anything else is not theirs.
    pub(super) fn limit(&self) -> u64 {
        self.budget.limit().saturating_sub(self.budget.total())
    }

    fn share(&self) -> u64 {
        self.part(self.limit())
    }

    /// Trims the history of journals that hold more than an equal share, until all together
    /// are within the limit. No journal may be locked.
    pub(super) fn reclaim(&self) {
        let share = self.share();
        let limit = self.limit();
        let target = limit - limit / SLACK;
        for journal in self.all() {
            if self.used() <= target {
                return;
            }
            journal.give_way(share, target);
        }
    }

    /// Less is committed than before: tells the loops that wait for it. No journal may be locked.
    pub(super) fn released(&self) {
        if self.awaited.take() {
            self.call_all();
        }
    }

    fn all(&self) -> Vec<Arc<Journal>> {
        let journals = self.journals.lock();
        journals.iter().filter_map(Weak::upgrade).collect()
    }
}

fn change(sum: &AtomicU64, was: u64, is: u64) {
    if is >= was {
        sum.fetch_add(is - was, Ordering::Relaxed);
    } else {
        sum.fetch_sub(was - is, Ordering::Relaxed);
    }
}
