//! Sources of the proactor, and the state of their operations.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::entry::Token;
use crate::driver::{Direction, Done, Nonblocking, Op, OpId, Received};

#[derive(Debug)]
pub(super) struct Source {
    pub(super) fd: OwnedFd,
    pub(super) mode: Nonblocking,
    pub(super) socket: bool,
    /// Whether multishot receives or reads work on it.
    pub(super) reads_many: bool,
    pub(super) read: Option<Live>,
    pub(super) write: Option<Live>,
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: OpId,
    pub(super) op: Op,
    pub(super) stage: Stage,
    pub(super) cancelling: bool,
    /// Whether to wait until the source is ready before the operation is submitted.
    pub(super) poll_first: bool,
    /// Whether a poll has reported the source as ready.
    pub(super) polled: bool,
    /// Whether connect(2) was called and goes on outside the ring.
    pub(super) begun: bool,
    /// Its latest place in `Proactor::waiting_receives`.
    pub(super) place: u64,
}

/// The stage of an operation. In the stages `Submitted` and `Polling`, it has one entry of the
/// ring in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for the next turn, or for a buffer.
    Queued,
    /// The kernel carries the operation out.
    Submitted,
    /// The ring polls its source.
    Polling,
    /// Its source waits in the epoll instance of `EpollSet`.
    InEpoll,
    /// The kernel is done with it; `Proactor::reports` has a result that was not reported yet.
    Done,
}

impl Live {
    pub(super) const fn new(id: OpId, op: Op, poll_first: bool) -> Self {
        Self {
            id,
            op,
            stage: Stage::Queued,
            cancelling: false,
            poll_first,
            polled: false,
            begun: false,
            place: 0,
        }
    }

    /// Returns whether the kernel transfers the bytes once the source is ready.
    pub(super) const fn waits_to_transfer(&self) -> bool {
        matches!(self.op, Op::Recv { .. } | Op::Send(_))
    }

    pub(super) const fn is_in_kernel(&self) -> bool {
        matches!(self.stage, Stage::Submitted | Stage::Polling)
    }
}

impl Source {
    pub(super) fn lane(&mut self, direction: Direction) -> &mut Option<Live> {
        match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }

    /// Returns the descriptor and the live operation in that direction.
    pub(super) fn parts(&mut self, direction: Direction) -> Option<(BorrowedFd<'_>, &mut Live)> {
        let lane = match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        };
        lane.as_mut().map(|live| (self.fd.as_fd(), live))
    }
}

/// A result that waits to be reported.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) token: Token,
    pub(super) what: Report,
    /// The number of its receipt, or a smaller one.
    pub(super) receipt: u64,
}

/// A result of an operation that is to be reported.
#[derive(Debug)]
pub(super) enum Report {
    Data(Received),
    End(Done),
    /// The source is ready. The system call is made when there is budget to report its result.
    Ready,
}
