//! A driver that replaces one whose backend failed: the loop can watch nothing any more, but needs
//! turns until it is closed.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::wait::wait;
use super::{AttachError, Budget, Completion, Done, Driver, Nonblocking, Op, OpId, SourceId};

/// A driver on which every operation fails with `EIO`.
#[derive(Debug)]
pub(super) struct Broken {
    waker: Arc<OwnedFd>,
    refused: Vec<Completion>,
}

impl Broken {
    pub(super) const fn new(waker: Arc<OwnedFd>) -> Self {
        Self {
            waker,
            refused: Vec::new(),
        }
    }
}

impl Driver for Broken {
    fn attach(&mut self, _: OwnedFd, _: Nonblocking) -> Result<SourceId, AttachError> {
        Err(AttachError::System(Errno::IO))
    }

    fn room(&self) -> usize {
        0
    }

    fn start(&mut self, id: OpId, _: SourceId, _: Op) {
        self.refused.push(Completion {
            id,
            done: Done::Failed(Errno::IO),
            last: true,
        });
    }

    fn cancel(&mut self, _: OpId, _: SourceId) {}

    fn detach(&mut self, _: SourceId) -> Option<OwnedFd> {
        None
    }

    fn fd(&self, _: SourceId) -> Option<BorrowedFd<'_>> {
        None
    }

    fn is_shared(&self, _: SourceId) -> bool {
        false
    }

    fn turn(
        &mut self,
        timeout: Option<Duration>,
        _: Budget,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        if self.refused.is_empty() {
            return Ok(wait(&self.waker, timeout)?);
        }
        completions.append(&mut self.refused);
        Ok(())
    }
}
