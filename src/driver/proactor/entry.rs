//! What is in flight, by name, and what the kernel says of it.

use bytes::Bytes;
use io_uring::cqueue;
use rustix::io::Errno;

use crate::driver::Direction;

/// Names what is in flight: one operation of a source in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token(u64);

impl Token {
    /// The loop's waker is readable.
    pub(super) const WAKER: Self = Self(u64::MAX - 1);
    /// Some source is ready that does not wait in the ring.
    pub(super) const ASIDE: Self = Self(u64::MAX - 3);
    /// A cancellation itself.
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
    /// What the system call would have returned.
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

/// What the kernel said of something in flight.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) token: Token,
    /// What the system call would have returned.
    pub(super) result: Result<usize, Errno>,
    /// What was received.
    pub(super) data: Bytes,
    /// It is not in flight any more.
    pub(super) last: bool,
}
