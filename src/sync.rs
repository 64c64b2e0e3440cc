//! The primitives of the few hand-offs between threads that are tested in every
//! interleaving: `tests/interleavings.rs` compiles those files against loom's.

use std::ops::{Deref, DerefMut};

pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use crate::poison::Critical;

/// A lock of a loop: a panic of whoever holds it ends the daemon, see [`crate::poison`].
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(parking_lot::Mutex<T>);

/// Holds a [`Mutex`].
#[derive(Debug)]
pub(crate) struct Guard<'a, T> {
    // Released before the thread may panic again.
    held: parking_lot::MutexGuard<'a, T>,
    _critical: Critical,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        let held = self.0.lock();
        Guard {
            held,
            _critical: Critical::new(),
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.held
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.held
    }
}
