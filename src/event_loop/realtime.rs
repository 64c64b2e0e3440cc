//! Detects when the realtime clock is set and when the host was suspended, for timers that go by
//! another clock than a sleep of the loop.

use super::EventLoop;
use crate::driver::{Direction, Key, Lane, Nonblocking, Op, OpId, SourceId};
use crate::watch::TimeChange;

/// The name of the loop's own operation, which completes when the realtime clock is set.
pub(super) const CLOCK: OpId = OpId {
    watch: Key {
        slot: u32::MAX,
        generation: u32::MAX,
    },
    lane: Lane(0),
};

/// The loop's own source, which becomes ready when the realtime clock is set.
#[derive(Debug, Default)]
pub(super) struct RealtimeClock {
    source: Option<SourceId>,
    /// Whether following the clock was tried. If it failed, it is not tried again, so there is one
    /// warning.
    followed: bool,
}

impl RealtimeClock {
    pub(super) const fn is_followed(&self) -> bool {
        self.followed
    }

    /// Forgets the source after the backend that had it is gone.
    pub(super) fn forget(&mut self) {
        self.source = None;
    }
}

impl EventLoop {
    /// Starts to watch for changes of the realtime clock: a timer that such a change cancels
    /// (`TFD_TIMER_CANCEL_ON_SET`, timerfd_create(2)) becomes readable. The end of a suspension is
    /// such a change.
    pub(super) fn follow_clock(&mut self) {
        self.realtime.followed = true;
        let attached = crate::sys::clock_set_fd()
            .ok()
            .and_then(|fd| self.driver.attach(fd, Nonblocking::ReadinessOnly).ok());
        match attached {
            Some(source) => {
                self.realtime.source = Some(source);
                self.driver.start(CLOCK, source, Op::Ready(Direction::Read));
            }
            // Timers still fire; but a change of the clock while the loop sleeps is noticed late.
            None => tracing::warn!(on = self.shared.full_name, "cannot follow clock changes"),
        }
    }

    /// Starts to watch again after a change, and samples the clocks after that: a further change
    /// ends the next wait. Due alarms fire in this turn, by the sample by which the watches are told.
    pub(super) fn clock_was_set(&mut self) {
        let Some(source) = self.realtime.source.take() else {
            return;
        };
        drop(self.driver.detach(source));
        self.follow_clock();
        self.sample_clocks();
        let back = self.jumps.take_set_back();
        self.sweep_time(TimeChange::ClockSet { back });
    }
}
