//! Whether some loop waits for others to let go of memory: those that do must not miss it.

use crate::sync::{AtomicU8, Ordering, fence};

/// One side announces that it waits, then looks whether there is memory; the other lets go of
/// some, then looks whether anybody waits. Each needs its two steps in that order in the eyes of
/// the other, or both look too early: hence the fences.
#[derive(Debug)]
pub(super) struct Awaited(AtomicU8);

impl Awaited {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// Whoever lets go of memory that is not seen after this tells.
    pub(super) fn announce(&self) {
        self.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// After letting go: somebody waits, and it is the caller who tells.
    pub(super) fn take(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.swap(0, Ordering::Relaxed) == 1
    }
}
