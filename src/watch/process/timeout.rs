//! The time limit of a child, and the end of a child that exceeds it.

use std::time::Duration;

use nix::libc;

use super::Process;
use super::reaper::CHECK_INTERVAL;
use crate::clock::nanos;
use crate::watch::{Alarm, Context};

/// The state of the time limit; times are in nanoseconds of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timeout {
    /// There is no limit.
    None,
    /// The limit, before the child's watch has started.
    In(Duration),
    /// The time at which the limit is reached.
    At(u64),
    /// The limit was reached and the child was asked to end; the time at which it is killed.
    KillAt(u64),
    /// The limit was reached and the child was killed.
    Killed,
}

impl Timeout {
    /// Returns whether the limit was reached.
    pub(super) const fn is_over(self) -> bool {
        matches!(self, Self::KillAt(_) | Self::Killed)
    }

    const fn due(self) -> Option<u64> {
        match self {
            Self::At(at) | Self::KillAt(at) => Some(at),
            Self::None | Self::In(_) | Self::Killed => None,
        }
    }
}

impl Process {
    /// Starts the time limit.
    pub(super) fn begin_timeout(&mut self, cx: &mut Context<'_>) {
        self.started = cx.now.monotonic;
        if let Timeout::In(time) = self.timeout {
            self.timeout = Timeout::At(cx.now.monotonic.saturating_add(nanos(time)));
            self.set_next_alarm(cx);
        }
    }

    /// Schedules a check whether the child has ended, for the case that no watcher reports it.
    pub(super) fn check_exit_later(&mut self, cx: &mut Context<'_>) {
        self.check_at = Some(cx.now.monotonic.saturating_add(nanos(CHECK_INTERVAL)));
        self.set_next_alarm(cx);
    }

    /// Handles the alarm of a running child. If the limit was reached, asks the child to end, and
    /// kills it after `kill_grace`.
    pub(super) fn enforce_timeout(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.monotonic;
        if self.check_at.is_some_and(|at| at <= now) {
            self.check_at = None;
            self.check_exit_later(cx);
        }
        if let (Some(due), Some(child)) = (self.timeout.due(), &self.child)
            && due <= now
        {
            self.killing = true;
            if self.timeout.is_over() {
                child.kill();
                // The child may be in another group by now. ESRCH: it has ended.
                let _ = child.signal(libc::SIGKILL);
                self.timeout = Timeout::Killed;
            } else {
                child.ask_to_end();
                self.timeout = Timeout::KillAt(now.saturating_add(nanos(self.kill_grace)));
            }
        }
        self.set_next_alarm(cx);
    }

    /// Sets the alarm for the next check or the time limit, whichever is first.
    pub(super) fn set_next_alarm(&self, cx: &mut Context<'_>) {
        let first = self.check_at.into_iter().chain(self.timeout.due()).min();
        match first {
            Some(at) => cx.set_alarm(Alarm::Monotonic(at)),
            None => cx.clear_alarm(),
        }
    }
}
