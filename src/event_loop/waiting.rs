//! How long a turn waits, and for what.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::EventLoop;
use super::pressure::NOTHING;
use crate::clock::Now;
use crate::driver::Completion;

/// Waits longer than this end early, nanoseconds; see [`ahead`].
const LONG_WAIT_NS: u64 = 10_000_000;

/// How long to wait now of so many nanoseconds. The kernel may end a wait by poll, select or
/// epoll late by a thousandth of it, by five if the process is nice: of a long one the rest is
/// waited for by itself.
const fn ahead(wait: u64) -> u64 {
    if wait > LONG_WAIT_NS {
        wait - wait / 128
    } else {
        wait
    }
}

impl EventLoop {
    pub(super) fn until_next(&self) -> Option<Duration> {
        let now = Now::sample();
        let timer = self.timers.next_in(now).filter(|_| self.is_polled());
        let expiry = self.watches.next_expiry();
        let expiries = expiry.into_iter().chain(self.outbox.next_expiry());
        timer
            .into_iter()
            .chain(expiries.map(|at| at.saturating_sub(now.monotonic)))
            .min()
            .map(|wait| Duration::from_nanos(ahead(wait)))
    }

    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        if self.takes_in() {
            let budget = self.budget();
            return self.driver.turn(timeout, budget, completions);
        }
        if self.watches.is_cancelling() {
            return self.driver.turn(Some(Duration::ZERO), NOTHING, completions);
        }
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
