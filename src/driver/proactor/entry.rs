//! The names of operations in flight, and their results from the kernel.

use std::os::fd::RawFd;

use io_uring::cqueue;
use rustix::io::Errno;

use crate::driver::{Direction, Received};

/// Names an operation in flight by its source and direction; the lower half of `user_data` of the
/// ring. The upper half of an operation that transfers bytes is the number of the descriptor, by which
/// a later life knows the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token(u64);

/// The largest number of a token. There are far fewer descriptors than that, so far fewer sources.
const MOST: u64 = u32::MAX as u64;

impl Token {
    /// The poll of the loop's waker.
    pub(super) const WAKER: Self = Self(MOST - 1);
    /// The poll of the epoll instance of `EpollSet`.
    pub(super) const EPOLL: Self = Self(MOST - 3);
    /// Any cancellation.
    pub(super) const CANCELLATION: Self = Self(MOST);

    pub(super) const fn new(source: usize, direction: Direction) -> Self {
        Self((source as u64) << 1 | matches!(direction, Direction::Write) as u64)
    }

    pub(super) const fn number(self) -> u64 {
        self.0
    }

    pub(super) const fn numbered(number: u64) -> Self {
        Self(number & MOST)
    }

    /// Returns the `user_data` of an operation that transfers bytes on that descriptor; 0 for any other.
    pub(super) fn user_data(self, number: RawFd) -> u64 {
        u64::from(number.unsigned_abs()) << 32 | self.0
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
    /// The number of the descriptor; 0 if the operation transfers no bytes.
    pub(super) number: RawFd,
    /// The result that the system call would have returned.
    pub(super) result: Result<usize, Errno>,
    pub(super) flags: u32,
}

impl Entry {
    pub(super) fn new(entry: &cqueue::Entry) -> Self {
        Self::of(entry.user_data(), entry.result(), entry.flags())
    }

    pub(super) fn of(user_data: u64, result: i32, flags: u32) -> Self {
        Self {
            token: Token::numbered(user_data),
            // Numbers of descriptors are not negative.
            number: RawFd::try_from(user_data >> 32).unwrap_or(RawFd::MAX),
            result: usize::try_from(result)
                .map_err(|_| Errno::from_raw_os_error(result.saturating_neg())),
            flags,
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
