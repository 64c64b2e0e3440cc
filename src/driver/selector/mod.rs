//! The driver of the selector class: waits until an operation would not block, then
//! does it.
//!
//! What differs between epoll, poll and select is a `Poller`: it says who to look at.
//! All else is the same code, so that the same script gives the same completions on each.
//!
//! - Interest is the union of a source's live operations. It is told to the kernel once a
//!   turn, for the sources that [`Driver::start`], [`Driver::cancel`] or an ending marked.
//! - Readiness is level-triggered and a mere hint: every operation can find that there
//!   was nothing to do, and stays live. So nothing depends on an event being fresh.
//! - What one wait found is served to its end before the next wait, over as many turns
//!   as their budgets make of it. So no source is served twice before all are once.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::{Backend, Driver};
use driver::Selector;

mod driver;
mod epoll;
#[allow(unsafe_code)]
mod poll;
#[allow(unsafe_code)]
mod select;

/// Opens a selector backend.
///
/// # Errors
/// The backend is not of the selector class, or the system's.
pub(super) fn open(backend: Backend, waker: Arc<OwnedFd>) -> io::Result<Box<dyn Driver>> {
    fn boxed<P: Poller + 'static>(waker: Arc<OwnedFd>) -> io::Result<Box<dyn Driver>> {
        Ok(Box::new(Selector::<P>::new(waker)?))
    }
    match backend {
        Backend::Epoll => boxed::<epoll::Epoll>(waker),
        Backend::Poll => boxed::<poll::Poll>(waker),
        Backend::Select => boxed::<select::Select>(waker),
        Backend::IoUring | Backend::Kqueue | Backend::Iocp => {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

/// Whether the system lets us wait in this way.
pub(super) fn probe(backend: Backend) -> Result<(), Errno> {
    match backend {
        Backend::Epoll => epoll::Epoll::new().map(drop),
        Backend::Poll => poll::Poll::new().map(drop),
        Backend::Select => select::Select::new().map(drop),
        Backend::IoUring | Backend::Kqueue | Backend::Iocp => Err(Errno::NOSYS),
    }
}

/// Directions in which a source is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Interest {
    read: bool,
    write: bool,
}

impl Interest {
    const NONE: Self = Self {
        read: false,
        write: false,
    };
    const READ: Self = Self {
        read: true,
        write: false,
    };
}

/// Directions in which something may have happened; hang-up and errors count for both.
#[derive(Debug, Clone, Copy)]
struct Event {
    token: usize,
    read: bool,
    write: bool,
}

/// A way to wait for many file descriptors.
///
/// A descriptor stays open from `add` to `remove`; `modify` and `remove` name one that is
/// added. Interest is never empty.
trait Poller: fmt::Debug + Send + Sized {
    /// Most sources it takes, the waker not counted.
    const LIMIT: usize = usize::MAX;

    fn new() -> Result<Self, Errno>;
    fn add(&mut self, token: usize, fd: BorrowedFd<'_>, interest: Interest) -> Result<(), Errno>;
    fn modify(&mut self, token: usize, fd: BorrowedFd<'_>, interest: Interest)
    -> Result<(), Errno>;
    fn remove(&mut self, token: usize, fd: BorrowedFd<'_>) -> Result<(), Errno>;
    /// Appends at most one event a token. Never waits less than `timeout` for nothing,
    /// but for the longest the system waits and signals.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> Result<(), Errno>;
}
