//! The names of operations in flight, and their results from the kernel.

use io_uring::cqueue;
use rustix::io::Errno;

use crate::driver::{Direction, Received};

/// Names an operation in flight by its source and direction; used as `user_data` of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token(u64);

impl Token {
    /// The poll of the loop's waker.
    pub(super) const WAKER: Self = Self(u64::MAX - 1);
    /// The poll of the epoll instance of `EpollSet`.
    pub(super) const EPOLL: Self = Self(u64::MAX - 3);
    /// Any cancellation.
    pub(super) const CANCELLATION: Self = Self(u64::MAX);

    pub(super) const fn new(source: usize, direction: Direction) -> Self {
        Self((source as u64) << 1 | matches!(direction, Direction::Write) as u64)
    }

    pub(super) const fn number(self) -> u64 {
        self.0
    }

    pub(super) const fn numbered(number: u64) -> Self {
        Self(number)
    }

    pub(super) fn source(self) -> usize {
        usize::try_from(self.0 >> 1).unwrap_or(usize::MAX)
    }

    pub(super) const fn direction(self) -> Direction {
        if self.0 & 1 == 0 {
            Direction::Read
        } else {
            Direction::Write
        }
    }
}

/// An entry of the completion queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) token: Token,
    /// The result that the system call would have returned.
    pub(super) result: Result<usize, Errno>,
    pub(super) flags: u32,
}

impl Entry {
    pub(super) fn new(entry: &cqueue::Entry) -> Self {
        Self {
            token: Token::numbered(entry.user_data()),
            result: usize::try_from(entry.result())
                .map_err(|_| Errno::from_raw_os_error(entry.result().saturating_neg())),
            flags: entry.flags(),
        }
    }
}

/// A result of an operation in flight.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) token: Token,
    /// The result that the system call would have returned.
    pub(super) result: Result<usize, Errno>,
    /// The received bytes.
    pub(super) data: Received,
    /// Whether the operation is no longer in flight.
    pub(super) last: bool,
}
