//! The state of a turn, which all drivers share.

use std::os::fd::BorrowedFd;

use super::acceptor::Acceptor;
use super::transfer::{self, CallError};
use super::{Budget, Completion, Done, Nonblocking, OpId, Received};
use crate::faults::{self, Point};

/// Most connections accepted for one readiness event, failed attempts included.
const ACCEPTS_MAX: usize = 64;

/// The state of one turn: its remaining budget and its completions.
pub(super) struct TurnState<'a> {
    /// The remaining budget.
    pub(super) budget: Budget,
    out: &'a mut Vec<Completion>,
    /// Whether this turn has reported a completion.
    pub(super) progress: bool,
    /// Bytes that the turn may hand over and leave exposed together.
    bytes: usize,
    /// Bytes that the turn has handed over.
    handed_over: usize,
}

impl<'a> TurnState<'a> {
    pub(super) fn new(budget: Budget, out: &'a mut Vec<Completion>) -> Self {
        Self {
            budget,
            out,
            progress: false,
            bytes: budget.bytes,
            handed_over: 0,
        }
    }

    #[inline]
    pub(super) fn push(&mut self, id: OpId, done: Done, last: bool) {
        self.out.push(Completion { id, done, last });
        self.budget.completions = self.budget.completions.saturating_sub(1);
        self.progress = true;
    }

    #[inline]
    pub(super) fn push_data(&mut self, id: OpId, bytes: Received, last: bool) {
        self.handed_over += bytes.len();
        self.budget.bytes = self.budget.bytes.saturating_sub(bytes.len());
        self.push(id, Done::Data(bytes), last);
    }

    /// Returns how many bytes may be exposed in addition to the `exposed` ones.
    pub(super) const fn room(&self, exposed: usize) -> usize {
        self.bytes
            .saturating_sub(self.handed_over)
            .saturating_sub(exposed)
    }

    #[inline]
    pub(super) fn is_spent(&self) -> bool {
        self.budget.completions == 0 || self.budget.bytes == 0
    }

    /// Accepts connections until none is waiting or the budget is spent. Returns true when the
    /// operation's limit is reached. A failure that concerns one connection is skipped; if there
    /// were only such, the last of them is the result, because it may be one that stays.
    pub(super) fn accept(
        &mut self,
        acceptor: &mut Acceptor,
        fd: BorrowedFd<'_>,
        mode: Nonblocking,
        id: OpId,
        limit: &mut u32,
    ) -> Result<bool, CallError> {
        let mut skipped = 0;
        for attempt in 0..ACCEPTS_MAX {
            let accepted = if mode == Nonblocking::Listener {
                acceptor.accept(fd)
            } else {
                transfer::accept(fd)
            };
            match accepted {
                Ok((connection, peer)) => {
                    faults::point(Point::Accepted);
                    self.push(id, Done::Accepted(connection, peer.map(Box::new)), false);
                    *limit -= 1;
                }
                Err(CallError::Failed(errno)) if transfer::concerns_one_connection(errno) => {
                    skipped += 1;
                    if skipped == ACCEPTS_MAX {
                        return Err(CallError::Failed(errno));
                    }
                }
                Err(CallError::WouldBlock) if attempt > 0 => break,
                Err(refused) => return Err(refused),
            }
            if *limit == 0 {
                return Ok(true);
            }
            if self.is_spent() {
                break;
            }
        }
        Ok(false)
    }
}
