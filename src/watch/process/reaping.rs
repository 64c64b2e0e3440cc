//! The end of a child for the daemon, which comes after it is recorded: until then a later life has to
//! find its exit in the kernel.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::reaper::Reaper;
use crate::cgroup::Group;
use crate::faults::{self, Point};
use crate::sys;
use crate::watch::services::Permit;

/// A child that is to be reaped, or else left to the reaper.
#[derive(Debug)]
pub struct Reaping {
    pub(super) pid: i32,
    pub(super) pidfd: Option<Arc<OwnedFd>>,
    /// Whether nobody else reaps it.
    pub(super) is_due: bool,
    /// Of a child of a dead life, which the keeper reaps: when it was started.
    pub(super) born: Option<u64>,
    /// What is held until it has ended.
    pub(super) rest: (Option<Permit>, Option<Arc<Group>>),
    pub(super) reaper: Reaper,
}

impl Reaping {
    /// Reaps the child, or leaves it to the reaper.
    pub fn run(self) {
        let Some(pidfd) = self.pidfd.filter(|_| self.is_due) else {
            return;
        };
        faults::point(Point::BeforeReap);
        if let Some(born) = self.born {
            self.reaper.forget_orphan(self.pid, born);
        } else if sys::reap(pidfd.as_fd()) == Ok(false) {
            self.reaper.take(self.pid, pidfd, self.rest);
        } else {
            faults::point(Point::Reaped);
            self.reaper.reaped(self.pid);
        }
    }
}
