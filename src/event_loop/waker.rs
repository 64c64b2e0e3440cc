//! Wakes a loop's thread while it waits on its backend: through one eventfd, which is written at
//! most once until the thread has woken.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::event::EventfdFlags;

use crate::sync::{AtomicU8, Ordering};

/// The thread is working, and will check its mailbox before it waits.
const AWAKE: u8 = 0;
/// The thread waits, or is about to wait.
const ASLEEP: u8 = 1;
/// The thread must wake, or must not wait.
const KICKED: u8 = 2;

/// The sender's side, shared by the loop's thread and all senders. It may outlive the thread, and
/// then does nothing.
#[derive(Debug)]
pub(super) struct Waker {
    eventfd: Weak<OwnedFd>,
    state: AtomicU8,
}

/// The receiver's side, owned by the thread: the eventfd that becomes readable when the thread is
/// to wake. A backend waits for it like for any other descriptor.
#[derive(Debug)]
pub(super) struct WakeupFd(Arc<OwnedFd>);

impl Waker {
    /// Returns a waker in the state "awake", and its eventfd.
    ///
    /// # Errors
    /// As eventfd(2).
    pub(super) fn new() -> rustix::io::Result<(Self, WakeupFd)> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wakeup = WakeupFd(Arc::new(rustix::event::eventfd(0, flags)?));
        let waker = Self {
            eventfd: Arc::downgrade(&wakeup.0),
            state: AtomicU8::new(AWAKE),
        };
        Ok((waker, wakeup))
    }

    /// Makes the thread check its mailbox: wakes it if it waits.
    pub(super) fn kick(&self) {
        if self.state.swap(KICKED, Ordering::AcqRel) == ASLEEP
            && let Some(eventfd) = self.eventfd.upgrade()
        {
            // The write fails only if the counter is full; then the eventfd is readable anyway.
            let _ = rustix::io::write(&eventfd, &1u64.to_ne_bytes());
        }
    }

    /// Marks the thread as about to wait. Returns false if it was kicked and so must check its
    /// mailbox first.
    pub(super) fn sleep(&self) -> bool {
        self.state
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Marks the thread as awake. Returns true if it was kicked; after a successful
    /// [`Waker::sleep`], the eventfd then was written or is about to be, so that [`WakeupFd::drain`]
    /// has something to read.
    pub(super) fn awake(&self) -> bool {
        self.state.swap(AWAKE, Ordering::AcqRel) == KICKED
    }
}

impl WakeupFd {
    /// Reads the eventfd. Returns the number of kicks that wrote to it.
    pub(super) fn drain(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Returns the eventfd for the backend to wait on.
    #[must_use]
    pub(super) fn eventfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }
}

impl AsFd for WakeupFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
