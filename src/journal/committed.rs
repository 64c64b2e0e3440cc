//! What must be held of a budget, and who waits for it to become less.

use crate::sync::{AtomicU8, AtomicU64, Ordering, fence};

/// A sum of bytes. Whoever finds too little left leaves a mark, and whoever lets go of some
/// finds it: one of the two sees what the other did, also if both do it at once.
#[derive(Debug)]
pub(super) struct Committed {
    bytes: AtomicU64,
    /// Not 0: some loop waits for others to let go of memory.
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

    /// A part of the sum changes from `was` to `is`.
    pub(super) fn change(&self, was: u64, is: u64) {
        if is >= was {
            self.bytes.fetch_add(is - was, Ordering::AcqRel);
        } else {
            self.bytes.fetch_sub(was - is, Ordering::AcqRel);
        }
    }

    /// What `left` says of the sum. Less than `wanted`: whoever lets go of some from here on finds
    /// the mark.
    pub(super) fn look(&self, wanted: u64, left: impl Fn(u64) -> u64) -> u64 {
        let found = left(self.bytes());
        if found >= wanted {
            return found;
        }
        self.awaited.store(1, Ordering::Relaxed);
        // Between a store and a load of another variable nothing weaker keeps the order.
        fence(Ordering::SeqCst);
        left(self.bytes())
    }

    /// After some was let go of: whether anybody waits for it. The mark is gone then.
    pub(super) fn take_awaited(&self) -> bool {
        fence(Ordering::SeqCst);
        self.awaited.load(Ordering::Relaxed) != 0 && self.awaited.swap(0, Ordering::AcqRel) != 0
    }
}
