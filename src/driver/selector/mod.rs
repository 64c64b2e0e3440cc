//! The driver of the selector class: waits until an operation would not block, then
//! does it.
//!
//! epoll, poll and select differ only in their `Poller`, which reports the sources that may be
//! ready. They share all other code, so the same script gives the same completions on each.
//!
//! - The interest of a source is the union of its live operations' directions. The kernel is
//!   told of changes once a turn, for the sources that [`Driver::start`], [`Driver::cancel`] or
//!   the end of an operation marked.
//! - Readiness is level-triggered and only a hint: an operation whose system call would block
//!   stays live. So an event may be out of date when it is served.
//! - All events of one wait are served before the next wait, over several turns if their
//!   budgets require it. So every ready source is served once before any is served twice.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::{Backend, Driver};
use crate::state::Keep;
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
/// The backend is not of the selector class, or a system call failed.
pub(super) fn open(
    backend: Backend,
    waker: Arc<OwnedFd>,
    keep: &Keep,
) -> io::Result<Box<dyn Driver>> {
    fn boxed<P: Poller + 'static>(waker: Arc<OwnedFd>, keep: &Keep) -> io::Result<Box<dyn Driver>> {
        Ok(Box::new(Selector::<P>::new(waker, keep)?))
    }
    match backend {
        Backend::Epoll => boxed::<epoll::Epoll>(waker, keep),
        Backend::Poll => boxed::<poll::Poll>(waker, keep),
        Backend::Select => boxed::<select::Select>(waker, keep),
        Backend::IoUring | Backend::Kqueue | Backend::Iocp => {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

/// Checks that the system allows this way of waiting.
pub(super) fn probe(backend: Backend) -> Result<(), Errno> {
    match backend {
        Backend::Epoll => epoll::Epoll::new().map(drop),
        Backend::Poll => poll::Poll::new().map(drop),
        Backend::Select => select::Select::new().map(drop),
        Backend::IoUring | Backend::Kqueue | Backend::Iocp => Err(Errno::NOSYS),
    }
}

/// The directions in which a source is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Interest {
    read: bool,
    write: bool,
    /// Hang-ups and errors alone, in the read direction. Any other interest reports them too.
    hang_up: bool,
}

impl Interest {
    const NONE: Self = Self {
        read: false,
        write: false,
        hang_up: false,
    };
    const READ: Self = Self {
        read: true,
        ..Self::NONE
    };
}

/// The directions in which a source may be ready; hang-up and errors count for both.
#[derive(Debug, Clone, Copy)]
struct Event {
    token: usize,
    read: bool,
    write: bool,
}

/// A way to wait for many file descriptors.
///
/// A descriptor stays open from `add` to `remove`; `modify` and `remove` are called only for a
/// descriptor that was added. Interest is never empty.
trait Poller: fmt::Debug + Send + Sized {
    /// Most sources that can be added, the waker not counted.
    const LIMIT: usize = usize::MAX;

    fn new() -> Result<Self, Errno>;
    fn add(&mut self, token: usize, fd: BorrowedFd<'_>, interest: Interest) -> Result<(), Errno>;
    fn modify(&mut self, token: usize, fd: BorrowedFd<'_>, interest: Interest)
    -> Result<(), Errno>;
    fn remove(&mut self, token: usize, fd: BorrowedFd<'_>) -> Result<(), Errno>;
    /// Waits for at most `timeout` and appends at most one event for each token. Without an event
    /// it returns early only after a signal or after the longest wait that the system supports.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> Result<(), Errno>;
}
