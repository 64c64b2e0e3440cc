//! How long a turn waits, and on which descriptors.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::pressure::CANCELLED_ONLY;
use super::{EventLoop, direct};
use crate::clock::Now;
use crate::driver::Completion;

/// A wait longer than this, in nanoseconds, is shortened; see [`shorten_long_wait`].
const LONG_WAIT_NS: u64 = 10_000_000;

/// Returns how long to wait now, out of a wait in nanoseconds. The kernel may end a wait by poll,
/// select or epoll late by a thousandth of it, or by five thousandths if the process is nice. So
/// the last 1/128 of a long wait is waited for separately.
const fn shorten_long_wait(wait: u64) -> u64 {
    if wait > LONG_WAIT_NS {
        wait - wait / 128
    } else {
        wait
    }
}

impl EventLoop {
    pub(super) fn time_until_next(&self) -> Option<Duration> {
        let now = Now::sample();
        let timer = self.timers.next_in(now).filter(|_| self.is_polled());
        let expiries = [
            self.watches.next_expiry(),
            self.watches.next_lease(),
            self.outbox.next_expiry(),
        ];
        let expiries = expiries.into_iter().flatten();
        timer
            .into_iter()
            .chain(expiries.map(|at| at.saturating_sub(now.monotonic)))
            .min()
            .map(|wait| Duration::from_nanos(shorten_long_wait(wait)))
    }

    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        if self.takes_events() {
            let lends = timeout != Some(Duration::ZERO) && self.check_open().is_ok();
            if lends {
                self.outbox.lend();
            }
            let budget = self.budget();
            if !lends {
                return self.driver.turn(timeout, budget, completions);
            }
            let driver = &mut self.driver;
            let turn = || driver.turn(timeout, budget, completions);
            let waited = direct::Held::unlocked(&mut self.outbox, turn);
            self.outbox.take_back();
            return waited;
        }
        if self.watches.is_cancelling() {
            return self
                .driver
                .turn(Some(Duration::ZERO), CANCELLED_ONLY, completions);
        }
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        let mut fds = [PollFd::new(&self.wakeup, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
