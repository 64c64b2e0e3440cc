//! Sources and their operations.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;

use crate::driver::{Direction, Done, Nonblocking, Op, OpId};

#[derive(Debug)]
pub(super) struct Source {
    pub(super) fd: OwnedFd,
    pub(super) mode: Nonblocking,
    pub(super) socket: bool,
    /// One read brings bytes again and again.
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
    /// Try it only when the source is ready.
    pub(super) poll_first: bool,
    /// The source was said to be ready.
    pub(super) polled: bool,
    /// It was tried, and is under way outside the ring (connect).
    pub(super) begun: bool,
    /// Its place in `Proactor::starved`.
    pub(super) place: u64,
}

/// Where an operation is. In the kernel, it has one entry of the ring in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for the next turn, or for a buffer.
    Queued,
    /// In the kernel.
    Submitted,
    /// In the kernel is a poll for it.
    Polling,
    /// It waits where the ring's poll cannot.
    Aside,
    /// The kernel is done; there is something about it in `Proactor::found`.
    Found,
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

    /// Once its source is ready, the kernel is to move the bytes.
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

    /// The descriptor beside the operation.
    pub(super) fn parts(&mut self, direction: Direction) -> Option<(BorrowedFd<'_>, &mut Live)> {
        let lane = match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        };
        lane.as_mut().map(|live| (self.fd.as_fd(), live))
    }
}

/// What is to be told of an operation.
#[derive(Debug)]
pub(super) enum What {
    Data(Bytes),
    End(Done),
    /// The source is ready: what comes of it is found out when there is budget to tell.
    Ready,
}
