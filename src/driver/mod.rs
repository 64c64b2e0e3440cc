//! The contract between watches and backends.
//!
//! A watch never polls and never reads. It *starts an operation* on a source and later receives
//! the operation's completions. A backend carries operations out, by readiness (`selector`) or by
//! completion (`proactor`). Each kind of watch is written once, against this file; each backend
//! implements [`Driver`].
//!
//! # To add a backend
//! 1. For a backend by readiness (kqueue), add one file to `selector/` that implements `Poller`:
//!    it adds, modifies and removes a descriptor under a token, and waits, level-triggered. The
//!    rest of the selector is shared. For a backend by completion (iocp), add one module that
//!    implements [`Driver`]: it starts the system's asynchronous operations, keeps their memory
//!    until the system is done with it, and reports results in order within a turn's budget.
//! 2. Add its name, class and availability to [`backend`], its capabilities to [`capability`],
//!    an arm to [`open`], and its name to the configuration.
//! 3. Add a line to `tests`, which checks the contract and compares random programs across all
//!    backends, and a line to `tests/conformance`.
//!
//! # The rules
//!
//! 1. An operation is named by an [`OpId`]: a watch and one of its lanes. A lane has at
//!    most one live operation, and a source at most one in each [`Direction`].
//! 2. [`Driver::start`] neither blocks nor completes inline. The result, a failure included,
//!    comes from a later [`Driver::turn`].
//! 3. Every operation ends in exactly one [`Completion`] with `last`. Before that,
//!    operations that repeat ([`Op::Recv`], [`Op::Accept`]) complete any number of times.
//! 4. [`Driver::cancel`] is asynchronous. Bytes and connections that were already taken
//!    arrive before `last`, which may be the operation's own ending if that came first.
//!    Cancelling an operation that is not live does nothing.
//! 5. A source is detached only without live operations. Nothing completes for it after that.
//! 6. A source without a live operation costs nothing and reports nothing, not even a hang-up.
//!    epoll and poll report `HUP` even for an empty interest, so such a source must not be
//!    registered with them.
//! 7. The driver owns all memory in flight.
//! 8. The driver never changes a file status flag ([`Nonblocking`] says how it avoids blocking).
//! 9. The bytes that a turn hands over, plus the bytes that are [exposed](Driver::exposed) after
//!    it, are at most `budget.bytes`, or the bytes exposed before the turn if those were more:
//!    buffers that the kernel may fill are replenished only from the budget. A turn with a
//!    budget of zero reports the ends of cancelled operations (with the bytes they had already
//!    taken), waits like any other turn, and loses nothing.

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::SocketAddrAny;

use crate::state::{self, Arrivals, Found, Keep, Receipts, Uncommitted};

#[allow(unsafe_code)]
mod acceptor;
pub mod backend;
mod broken;
pub mod capability;
pub mod file;
mod proactor;
mod received;
mod recorded;
mod selector;
mod transfer;
mod turn;
mod wait;

#[cfg(test)]
mod tests;

pub use backend::{Backend, LoopClass};
pub use capability::Capability;
pub use file::{Claim, FileKind, Nonblocking, Purpose, Refusal};
pub use received::Received;
pub use recorded::Relays;

/// Names a watch on its loop: a slot that is reused, and a generation that is not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Index into the loop's table.
    pub slot: u32,
    /// Distinguishes the watches that used the slot one after the other.
    pub generation: u32,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// The number of one of a watch's operations; each kind of watch numbers its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u8);

/// Names an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpId {
    /// The watch that started it.
    pub watch: Key,
    /// Which of the watch's operations it is.
    pub lane: Lane,
}

/// Names a file descriptor that a driver owns: its index in the driver's table, plus one, so that
/// `Option<SourceId>` is as small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceId(NonZeroU32);

impl SourceId {
    /// Returns the source at this index of a driver's table. A process cannot have so many
    /// descriptors that the index exceeds `u32::MAX`.
    fn at(index: usize) -> Self {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        Self(NonZeroU32::MIN.saturating_add(number))
    }

    const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Whether an operation reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Bytes or connections come to the loop.
    Read,
    /// Bytes or connection requests go out from the loop.
    Write,
}

/// An operation on a source.
#[derive(Debug, Clone)]
pub enum Op {
    /// Reports readiness in one direction, once: [`Done::Ready`].
    Ready(Direction),
    /// Reports a hang-up or an error, once, and nothing else that the source may be ready for:
    /// [`Done::Ready`]. An operation of the read direction. On a pidfd this waits until the process
    /// was reaped, where the kernel tells that.
    HangUp,
    /// Receives repeatedly until end of file, failure or cancellation, at most `max` bytes at a
    /// time: any number of [`Done::Data`], then [`Done::Eof`].
    Recv {
        /// Bytes, at least 1.
        max: u32,
        /// Bytes of the stream that were received before: later lives know by it which bytes that were
        /// received are recorded.
        offset: Offset,
    },
    /// Reads a regular file once, at most `max` bytes, from the page cache or from storage:
    /// one or more [`Done::Data`], the last of which ends the operation, or [`Done::Eof`].
    /// Selector backends cannot do it: it fails with `EOPNOTSUPP`.
    ReadAt {
        /// From the start of the file, bytes; at most `i64::MAX`.
        offset: u64,
        /// Bytes, at least 1.
        max: u32,
    },
    /// Accepts up to `limit` connections: [`Done::Accepted`] for each.
    Accept {
        /// Connections, at least 1.
        limit: u32,
    },
    /// Connects a socket: [`Done::Connected`].
    Connect(Box<SocketAddrAny>),
    /// Sends once, at least one byte and perhaps not all: [`Done::Sent`]. Boxed, like the
    /// address above, to keep `Op` small: every source has space for two operations.
    Send(Box<Outbound>),
}

/// Bytes to be sent.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// At least one.
    pub bytes: Bytes,
    /// Bytes of the stream that were sent before.
    pub offset: Offset,
}

/// How many bytes of a stream were transferred before, if later lives go on with it. As large as the
/// number alone, since every source has space for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset(u64);

impl Offset {
    /// No later life goes on with the stream.
    pub const NONE: Self = Self(u64::MAX);

    /// Returns that many bytes.
    #[must_use]
    pub const fn at(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns how many bytes, `None` for [`Offset::NONE`].
    const fn get(self) -> Option<u64> {
        match self.0 {
            u64::MAX => None,
            bytes => Some(bytes),
        }
    }

    /// Adds bytes that were transferred.
    const fn advance(&mut self, bytes: usize) {
        if self.0 != u64::MAX {
            self.0 += bytes as u64;
        }
    }
}

impl Op {
    /// Returns how many bytes of the stream were transferred before, if later lives go on with it.
    fn offset(&self) -> Option<u64> {
        match self {
            Self::Recv { offset, .. } => offset.get(),
            Self::Send(outbound) => outbound.offset.get(),
            _ => None,
        }
    }

    /// Returns whether the operation reads or writes.
    #[must_use]
    pub const fn direction(&self) -> Direction {
        match self {
            Self::Ready(direction) => *direction,
            Self::HangUp | Self::Recv { .. } | Self::ReadAt { .. } | Self::Accept { .. } => {
                Direction::Read
            }
            Self::Connect(_) | Self::Send(_) => Direction::Write,
        }
    }
}

/// What [`Op::Ready`] or [`Op::HangUp`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Reading will not block. Set only for [`Direction::Read`].
    pub readable: bool,
    /// Writing will not block. Set only for [`Direction::Write`].
    pub writable: bool,
    /// Both directions have ended, or the other end is closed: `POLLHUP`.
    pub hangup: bool,
    /// The peer has shut down its sending side: `POLLRDHUP`. Set only for [`Direction::Read`].
    pub half_closed: bool,
    /// An error is pending.
    pub error: bool,
}

/// A result of an operation.
#[derive(Debug)]
pub enum Done {
    /// The source is ready in the direction asked for, or has hung up or failed.
    Ready(Readiness),
    /// Received bytes, at least one.
    Data(Received),
    /// The end of the incoming bytes.
    Eof,
    /// A new connection (close-on-exec and non-blocking, since no other process shares it), and
    /// the peer's address if known. The address is large and rare; the box keeps `Done` small.
    Accepted(OwnedFd, Option<Box<SocketAddrAny>>),
    /// The connection is established.
    Connected,
    /// The number of bytes that the kernel took.
    Sent(usize),
    /// The system call failed, or the operation could not be started.
    Failed(Errno),
    /// The operation was cancelled before anything else ended it, or (`Accept`) reached its
    /// limit.
    Cancelled,
}

/// One result of one operation.
#[derive(Debug)]
pub struct Completion {
    /// The operation.
    pub id: OpId,
    /// The result.
    pub done: Done,
    /// Whether the operation has ended: no completion follows.
    pub last: bool,
}

/// How much one turn may report. The rest is kept for a later turn.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Completions. Only those of cancelled and refused operations may exceed it.
    pub completions: usize,
    /// Received bytes, including bytes that stay [exposed](Driver::exposed).
    pub bytes: usize,
}

/// Why a file descriptor could not be attached; the descriptor is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachError {
    /// The backend already watches this many sources, its maximum.
    Limit(usize),
    /// A system call failed.
    System(Errno),
}

/// A backend at work for one loop, on that loop's thread.
pub trait Driver: Send + fmt::Debug {
    /// Takes ownership of a file descriptor.
    ///
    /// # Errors
    /// The backend's limit, or a failed system call. Neither leaves anything behind.
    fn attach(&mut self, fd: OwnedFd, mode: Nonblocking) -> Result<SourceId, AttachError>;

    /// Returns how many more sources can be attached.
    fn room(&self) -> usize;

    /// Says that all that was handed over is committed: it needs no receipts any more.
    fn committed(&mut self) {}

    /// Returns whether something was transferred without a receipt, for want of memory.
    fn is_lossy(&self) -> bool {
        false
    }

    /// Starts an operation.
    fn start(&mut self, id: OpId, source: SourceId, op: Op);

    /// Asks that an operation end.
    fn cancel(&mut self, id: OpId, source: SourceId);

    /// Removes a source and returns its file descriptor. The source must have no live operation.
    fn detach(&mut self, source: SourceId) -> Option<OwnedFd>;

    /// Returns the file descriptor, for calls such as `getsockname` and `shutdown`.
    fn fd(&self, source: SourceId) -> Option<BorrowedFd<'_>>;

    /// Returns whether another process may share the open file description.
    fn is_shared(&self, source: SourceId) -> bool;

    /// Returns the number of bytes that may still be handed over regardless of the next budget:
    /// space in buffers that the kernel may fill, and bytes that were received but not reported.
    fn exposed(&self) -> usize {
        0
    }

    /// Returns whether the last turn examined every source: no live operation is ready and
    /// unreported.
    fn has_polled_all(&self) -> bool {
        true
    }

    /// Carries operations out and appends their completions, in the order in which the system
    /// reported them.
    ///
    /// Waits for at most `timeout` until there is a completion or the loop's waker is readable.
    /// `None` waits without limit, zero not at all; a timeout finer than the system's resolution
    /// is rounded up.
    ///
    /// # Errors
    /// Only if waiting itself fails: the loop cannot go on.
    fn turn(
        &mut self,
        timeout: Option<Duration>,
        budget: Budget,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()>;
}

/// Returns a driver to replace one whose [`Driver::turn`] failed. Dropping the failed driver closes
/// its sources; every operation started on the replacement fails.
#[must_use]
pub fn broken(waker: Arc<OwnedFd>) -> Box<dyn Driver> {
    Box::new(broken::Broken::new(waker))
}

/// Opens a backend. The loop's `waker`, an eventfd, ends every wait for as long as it is
/// readable; the driver does not read it. Later lives find with [`uncommitted`] what it transfers.
///
/// # Errors
/// The backend is not available on this host, or a system call failed.
pub fn open(backend: Backend, waker: Arc<OwnedFd>, keep: &Keep) -> io::Result<Box<dyn Driver>> {
    match backend {
        Backend::Epoll | Backend::Poll | Backend::Select => selector::open(backend, waker, keep),
        Backend::IoUring => proactor::open(waker, keep),
        Backend::Kqueue | Backend::Iocp => {
            let reason = backend::availability(backend).err().unwrap_or_default();
            Err(io::Error::new(io::ErrorKind::Unsupported, reason))
        }
    }
}

/// Returns the number of the descriptor that [`uncommitted`] needs of an earlier life's driver, if it
/// needs one. It is still open.
#[must_use]
pub fn needed(found: &Found) -> Option<RawFd> {
    Receipts::relay(found).or_else(|| Arrivals::ring(found))
}

/// Returns what an earlier life's driver of a loop has transferred last. Some of it may be committed.
///
/// # Errors
/// It cannot be known.
pub fn uncommitted(found: &[Found], needed: Option<BorrowedFd<'_>>) -> Result<Uncommitted, Errno> {
    let mut all = Uncommitted::default();
    for one in found {
        let more = match one.kind {
            state::Kind::Receipts => {
                let relay = needed.filter(|_| Receipts::relay(one).is_some());
                let relayed = relay.map(rustix::io::ioctl_fionread).transpose()?;
                Receipts::recover(one, relayed)
            }
            state::Kind::Arrivals => proactor::uncommitted(one, found, needed.ok_or(Errno::BADF)?)?,
            _ => continue,
        };
        all.taken.extend(more.taken);
        all.sent.extend(more.sent);
    }
    let place = |offset: Option<u64>| offset.unwrap_or(u64::MAX);
    all.taken.sort_by_key(|one| (one.number, place(one.offset)));
    Ok(all)
}
