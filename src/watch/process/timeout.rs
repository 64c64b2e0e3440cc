//! A child that may run only so long, and how one that runs longer is ended.

use std::time::Duration;

use nix::libc;

use super::Process;
use super::reaper::LOOK_AGAIN;
use crate::clock::nanos;
use crate::watch::{Alarm, Context};

/// How far it has come; times are ns of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timeout {
    /// It may run as long as it likes.
    None,
    /// It has not started yet.
    In(Duration),
    /// It is over then.
    At(u64),
    /// It is over, and the child was asked to end; it is killed then.
    KillAt(u64),
    /// It is over, and the child was killed.
    Killed,
}

impl Timeout {
    /// The child is being ended for it.
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
    /// Its time begins.
    pub(super) fn begin_timeout(&mut self, cx: &mut Context<'_>) {
        if let Timeout::In(time) = self.timeout {
            self.timeout = Timeout::At(cx.now.monotonic.saturating_add(nanos(time)));
            self.wake(cx);
        }
    }

    /// Looks some time later, although nobody says that it has ended.
    pub(super) fn look_later(&mut self, cx: &mut Context<'_>) {
        self.look_at = Some(cx.now.monotonic.saturating_add(nanos(LOOK_AGAIN)));
        self.wake(cx);
    }

    /// It runs, and something is due. Ends it if its time is over: it is asked to end, and killed after `kill_grace`.
    pub(super) fn end_late(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.monotonic;
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = None;
            self.look_later(cx);
        }
        if let (Some(due), Some(child)) = (self.timeout.due(), &self.child)
            && due <= now
        {
            self.killing = true;
            if self.timeout.is_over() {
                child.kill();
                // In case it is in another group by now. ESRCH: it has ended.
                let _ = child.signal(libc::SIGKILL);
                self.timeout = Timeout::Killed;
            } else {
                child.ask_to_end();
                self.timeout = Timeout::KillAt(now.saturating_add(nanos(self.kill_grace)));
            }
        }
        self.wake(cx);
    }

    /// Sets the alarm for what is due first while the child runs.
    fn wake(&self, cx: &mut Context<'_>) {
        let first = self.look_at.into_iter().chain(self.timeout.due()).min();
        match first {
            Some(at) => cx.set_alarm(Alarm::Monotonic(at)),
            None => cx.clear_alarm(),
        }
    }
}
