//! The contract between watches and backends.
//!
//! A watch never polls and never reads: it *starts an operation* on a source and is
//! told of its completions. A backend carries operations out: by readiness
//! (`selector`), or by completion (`proactor`). Watches are written once, against this
//! file; a backend is one more implementation of [`Driver`].
//!
//! # To add a backend
//! 1. By readiness (kqueue): one file in `selector/` with a `Poller`: to make one, to add,
//!    modify and remove a descriptor under a token, and to wait, level-triggered. All else is
//!    there. By completion (iocp): one module with a [`Driver`] that starts what the system
//!    does by itself, keeps its memory until the system is done with it, and tells results
//!    in their order within a turn's budget.
//! 2. Its name, class and availability in [`backend`], what it can do in [`capability`], its
//!    arm in [`open`], and its name among the configuration's.
//! 3. Its line in `tests`: the suite is the contract, random programs are compared across all
//!    backends; and its line in `tests/conformance`.
//!
//! # The rules
//!
//! 1. An operation is named by an [`OpId`]: a watch and one of its lanes. A lane has at
//!    most one live operation, and a source at most one in each [`Direction`].
//! 2. [`Driver::start`] neither blocks nor completes inline. What it starts is seen in a later
//!    [`Driver::turn`], a failure included.
//! 3. Every operation ends in exactly one [`Completion`] with `last`. Before that,
//!    operations that repeat ([`Op::Recv`], [`Op::Accept`]) complete any number of times.
//! 4. [`Driver::cancel`] is asynchronous. Bytes and connections that were already taken
//!    arrive before `last`, which may be the operation's own ending if that came first.
//!    Cancelling what is not live does nothing.
//! 5. A source is detached only without live operations. Nothing completes for it after that.
//! 6. An operation that is not live costs nothing and reports nothing, hang-up
//!    included: epoll and poll report `HUP` even for an empty interest, so "no
//!    interest" means "not registered".
//! 7. The driver owns all memory in flight.
//! 8. The driver never changes a file status flag ([`Nonblocking`] says how it avoids blocking).
//! 9. The bytes that a turn hands over and those that are [exposed](Driver::exposed) after it
//!    are together at most its `budget.bytes`, or what was exposed before it if that was more:
//!    buffers that the kernel may fill are replenished only from the budget. A turn with a
//!    budget of nothing hands over what was cancelled, waits as any other, and loses nothing.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::SocketAddrAny;

#[allow(unsafe_code)]
mod acceptor;
pub mod backend;
mod broken;
pub mod capability;
pub mod file;
mod proactor;
mod selector;
mod transfer;
mod turn;

#[cfg(test)]
mod tests;

pub use backend::{Backend, LoopClass};
pub use capability::Capability;
pub use file::{Claim, FileKind, Nonblocking, Purpose, Refusal};

/// Names a watch on its loop: a slot that is reused, and a generation that is not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Index into the loop's table.
    pub slot: u32,
    /// Tells apart the watches that were in the slot one after the other.
    pub generation: u32,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// One of a watch's operations; each kind of watch numbers its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u8);

/// Names an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpId {
    /// Whose it is.
    pub watch: Key,
    /// Which of the watch's.
    pub lane: Lane,
}

/// A file descriptor in a driver's care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceId(u32);

impl SourceId {
    /// By its place in a driver's table. There are fewer descriptors than numbers.
    fn at(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which way an operation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards the loop.
    Read,
    /// Away from it.
    Write,
}

/// An operation on a source.
#[derive(Debug, Clone)]
pub enum Op {
    /// Reports readiness in one direction, once: [`Done::Ready`].
    Ready(Direction),
    /// Receives again and again until end of file, failure or cancellation, at most
    /// `max` bytes a time: [`Done::Data`], then [`Done::Eof`].
    Recv {
        /// Bytes, at least 1.
        max: usize,
    },
    /// Reads once of a regular file, at most `max` bytes, in memory or not:
    /// [`Done::Data`], whose last piece is the operation's last, or [`Done::Eof`]. By
    /// readiness it cannot be done: it fails with `EOPNOTSUPP`.
    ReadAt {
        /// From the start of the file, bytes; at most `i64::MAX`.
        offset: u64,
        /// Bytes, at least 1.
        max: usize,
    },
    /// Takes up to `limit` connections: [`Done::Accepted`].
    Accept {
        /// At least 1.
        limit: u32,
    },
    /// Connects a socket: [`Done::Connected`].
    Connect(Box<SocketAddrAny>),
    /// Sends, once, at least one byte and perhaps not all: [`Done::Sent`]. In a box, as the
    /// addresses: every source has place for two operations.
    Send(Box<Bytes>),
}

impl Op {
    /// Which way it goes.
    #[must_use]
    pub const fn direction(&self) -> Direction {
        match self {
            Self::Ready(direction) => *direction,
            Self::Recv { .. } | Self::ReadAt { .. } | Self::Accept { .. } => Direction::Read,
            Self::Connect(_) | Self::Send(_) => Direction::Write,
        }
    }
}

/// What [`Op::Ready`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Reading will not block; of [`Direction::Read`].
    pub readable: bool,
    /// Writing will not block; of [`Direction::Write`].
    pub writable: bool,
    /// Both directions have ended, or the other end is gone: `POLLHUP`.
    pub hangup: bool,
    /// The peer sends nothing any more: `POLLRDHUP`; of [`Direction::Read`].
    pub half_closed: bool,
    /// An error is pending.
    pub error: bool,
}

/// What came of an operation.
#[derive(Debug)]
pub enum Done {
    /// Ready, in the direction asked for or by hang-up or error.
    Ready(Readiness),
    /// Bytes, at least one.
    Data(Bytes),
    /// The end of the bytes.
    Eof,
    /// A connection (close-on-exec, non-blocking: nobody else has it), and who it is from.
    /// The address is large and rare: in a box, it does not make every result large.
    Accepted(OwnedFd, Option<Box<SocketAddrAny>>),
    /// The connection is established.
    Connected,
    /// So many bytes were taken by the kernel.
    Sent(usize),
    /// The system refused.
    Failed(Errno),
    /// Cancelled before anything else ended it, or (Accept) the limit was reached.
    Cancelled,
}

/// One result of one operation.
#[derive(Debug)]
pub struct Completion {
    /// The operation.
    pub id: OpId,
    /// What came of it.
    pub done: Done,
    /// It has ended: nothing more comes of it.
    pub last: bool,
}

/// How much one turn may do. What does not fit is there for a later one.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Completions; exceeded by those of cancelled and refused operations only.
    pub completions: usize,
    /// Bytes received, those that stay exposed included.
    pub bytes: usize,
}

/// Why a file descriptor was not taken; the descriptor is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachError {
    /// The backend watches as many as it can.
    Limit(usize),
    /// The system refused.
    System(Errno),
}

/// A backend at work for one loop, on that loop's thread.
pub trait Driver: Send + fmt::Debug {
    /// Takes a file descriptor into its care.
    ///
    /// # Errors
    /// The backend's limit, or the system's. Neither leaves anything behind.
    fn attach(&mut self, fd: OwnedFd, mode: Nonblocking) -> Result<SourceId, AttachError>;

    /// How many more sources it can take.
    fn room(&self) -> usize;

    /// Starts an operation.
    fn start(&mut self, id: OpId, source: SourceId, op: Op);

    /// Asks for an operation's end.
    fn cancel(&mut self, id: OpId, source: SourceId);

    /// Gives the file descriptor back. It must have no live operation.
    fn detach(&mut self, source: SourceId) -> Option<OwnedFd>;

    /// The file descriptor, to ask it things (`getsockname`) or to shut it down.
    fn fd(&self, source: SourceId) -> Option<BorrowedFd<'_>>;

    /// Whether somebody else may have the open file description.
    fn is_shared(&self, source: SourceId) -> bool;

    /// Bytes that may still be handed over whatever the next budget says: room in buffers
    /// that the kernel may fill, and what was taken but not told yet.
    fn exposed(&self) -> usize {
        0
    }

    /// Whether the last turn got to everything: nothing that was started is ready and still to be told.
    fn has_looked(&self) -> bool {
        true
    }

    /// Carries operations out and appends what came of them, in the order the
    /// system gave them.
    ///
    /// Waits for at most `timeout` (`None`: for ever, zero: not at all; rounded up, never
    /// down, where the system is coarser) until there is a completion or the loop's
    /// waker is kicked.
    ///
    /// # Errors
    /// Only when waiting itself fails: the loop cannot go on.
    fn turn(
        &mut self,
        timeout: Option<Duration>,
        budget: Budget,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()>;
}

/// In place of a backend whose [`Driver::turn`] failed: it ends with it, its sources are closed, and
/// whatever is started fails.
#[must_use]
pub fn broken(waker: Arc<OwnedFd>) -> Box<dyn Driver> {
    Box::new(broken::Broken::new(waker))
}

/// Opens a backend. The loop's `waker`, an eventfd, ends its waits for as long as it is
/// readable; the driver does not read it.
///
/// # Errors
/// The backend cannot be had here, or the system's.
pub fn open(backend: Backend, waker: Arc<OwnedFd>) -> io::Result<Box<dyn Driver>> {
    match backend {
        Backend::Epoll | Backend::Poll | Backend::Select => selector::open(backend, waker),
        Backend::IoUring => proactor::open(waker),
        Backend::Kqueue | Backend::Iocp => {
            let reason = backend::availability(backend).err().unwrap_or_default();
            Err(io::Error::new(io::ErrorKind::Unsupported, reason))
        }
    }
}
