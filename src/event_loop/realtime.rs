//! The realtime clock being set, which timers at a time of day follow.

use super::EventLoop;
use crate::driver::{Direction, Key, Lane, Nonblocking, Op, OpId, SourceId};

/// Names the loop's own source, which sees the realtime clock being set.
pub(super) const CLOCK: OpId = OpId {
    watch: Key {
        slot: u32::MAX,
        generation: u32::MAX,
    },
    lane: Lane(0),
};

/// The loop's own source that becomes ready when the realtime clock is set.
#[derive(Debug, Default)]
pub(super) struct RealtimeClock {
    source: Option<SourceId>,
    /// Following it was tried: one warning is enough.
    followed: bool,
}

impl RealtimeClock {
    pub(super) const fn is_followed(&self) -> bool {
        self.followed
    }

    /// The backend that had the source is gone.
    pub(super) fn forget(&mut self) {
        self.source = None;
    }
}

impl EventLoop {
    /// Watches for the realtime clock being set: a timer that is cancelled by it
    /// (`TFD_TIMER_CANCEL_ON_SET`, timerfd_create(2)) becomes readable.
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
            // Deadlines still hold; only a clock that is set while the loop sleeps is seen late.
            None => tracing::warn!(on = self.shared.full_name, "cannot follow clock changes"),
        }
    }

    /// The turn has begun with fresh times, so due alarms fire in it; go on watching.
    pub(super) fn clock_was_set(&mut self) {
        let Some(source) = self.realtime.source.take() else {
            return;
        };
        drop(self.driver.detach(source));
        self.follow_clock();
    }
}
