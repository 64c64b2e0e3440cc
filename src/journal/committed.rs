//! The sum of the bytes that cannot give way, and a mark that a loop waits for the sum to fall.

use crate::sync::{AtomicU8, AtomicU64, Ordering, fence};

/// A sum of bytes, and a mark. A thread that finds too few bytes left sets the mark; a thread that
/// frees bytes reads it afterwards. Even if both act at the same time, at least one of them sees
/// the change of the other.
#[derive(Debug)]
pub(super) struct Committed {
    bytes: AtomicU64,
    /// The mark: not 0 if some loop waits until other loops free memory.
    awaited: AtomicU8,
}

impl Committed {
    pub(super) fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            awaited: AtomicU8::new(0),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Changes one summand from `was` to `is`.
    pub(super) fn change(&self, was: u64, is: u64) {
        if is >= was {
            self.bytes.fetch_add(is - was, Ordering::AcqRel);
        } else {
            self.bytes.fetch_sub(was - is, Ordering::AcqRel);
        }
    }

    /// Returns what `left` computes from the sum. If that is less than `wanted`, sets the mark, so
    /// that the next thread that frees bytes calls the waiting loops.
    pub(super) fn look(&self, wanted: u64, left: impl Fn(u64) -> u64) -> u64 {
        let found = left(self.bytes());
        if found >= wanted {
            return found;
        }
        self.awaited.store(1, Ordering::Relaxed);
        // A store followed by a load of another variable: only a sequentially consistent fence
        // keeps that order.
        fence(Ordering::SeqCst);
        left(self.bytes())
    }

    /// Takes the mark and returns whether it was set. Called after bytes were freed.
    pub(super) fn take_awaited(&self) -> bool {
        fence(Ordering::SeqCst);
        self.awaited.load(Ordering::Relaxed) != 0 && self.awaited.swap(0, Ordering::AcqRel) != 0
    }
}
