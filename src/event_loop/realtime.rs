//! The realtime clock being set, which timers at a time of day follow.

use super::EventLoop;
use crate::driver::{Direction, Key, Lane, Nonblocking, Op, OpId};

/// Names the loop's own source, which sees the realtime clock being set.
pub(super) const CLOCK: OpId = OpId {
    watch: Key {
        slot: u32::MAX,
        generation: u32::MAX,
    },
    lane: Lane(0),
};

impl EventLoop {
    /// Watches for the realtime clock being set: a timer that is cancelled by it
    /// (`TFD_TIMER_CANCEL_ON_SET`, timerfd_create(2)) becomes readable.
    pub(super) fn follow_clock(&mut self) {
        self.clock_followed = true;
        let attached = crate::sys::clock_set_fd()
            .ok()
            .and_then(|fd| self.driver.attach(fd, Nonblocking::ReadinessOnly).ok());
        match attached {
            Some(source) => {
                self.clock_source = Some(source);
                self.driver.start(CLOCK, source, Op::Ready(Direction::Read));
            }
            // Deadlines still hold; only a clock that is set while the loop sleeps is seen late.
            None => tracing::warn!(on = self.shared.full_name, "cannot follow clock changes"),
        }
    }

    /// The turn has begun with fresh times, so due alarms fire in it; go on watching.
    pub(super) fn clock_was_set(&mut self) {
        let Some(source) = self.clock_source.take() else {
            return;
        };
        drop(self.driver.detach(source));
        self.follow_clock();
    }
}
