//! Wakes a loop's thread out of its backend: one eventfd, kicked at most once until
//! the thread has woken.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::event::EventfdFlags;

use crate::sync::{AtomicU8, Ordering};

/// The thread works and will look at its mailbox before it waits.
const AWAKE: u8 = 0;
/// The thread waits, or is about to.
const ASLEEP: u8 = 1;
/// Somebody wants it awake.
const KICKED: u8 = 2;

/// Shared by the loop's thread and all who send to it. It outlives the thread, and then does nothing.
#[derive(Debug)]
pub(super) struct Waker {
    eventfd: Weak<OwnedFd>,
    state: AtomicU8,
}

/// What rings when the thread is kicked out of its sleep: the thread's own, gone with it.
#[derive(Debug)]
pub(super) struct Bell(Arc<OwnedFd>);

impl Waker {
    /// A waker whose thread is awake.
    ///
    /// # Errors
    /// eventfd(2)'s.
    pub(super) fn new() -> rustix::io::Result<(Self, Bell)> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = Bell(Arc::new(rustix::event::eventfd(0, flags)?));
        let waker = Self {
            eventfd: Arc::downgrade(&bell.0),
            state: AtomicU8::new(AWAKE),
        };
        Ok((waker, bell))
    }

    /// Makes the thread look at its mailbox: now, if it waits.
    pub(super) fn kick(&self) {
        if self.state.swap(KICKED, Ordering::AcqRel) == ASLEEP
            && let Some(eventfd) = self.eventfd.upgrade()
        {
            // Only fails when the counter is full: then it is readable anyway.
            let _ = rustix::io::write(&eventfd, &1u64.to_ne_bytes());
        }
    }

    /// The thread is about to wait. False: it was kicked, and must look first.
    pub(super) fn sleep(&self) -> bool {
        self.state
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The thread has waited. Whoever kicked it out of its sleep has written, or is
    /// about to: true means that [`Bell::drain`] has something to do.
    pub(super) fn awake(&self) -> bool {
        self.state.swap(AWAKE, Ordering::AcqRel) == KICKED
    }
}

impl Bell {
    /// Takes out of the eventfd what is there: how many kicks.
    pub(super) fn drain(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// For the backend to wait on.
    #[must_use]
    pub(super) fn eventfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
