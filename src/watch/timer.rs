//! Timers: once after a delay or at a time, or again and again at a fixed rate.

use std::time::Duration;

use super::{Alarm, Context, Need, Watch};
use crate::clock::{Now, nanos};
use crate::driver::{Done, Lane};
use crate::event::{CloseReason, Kind, TimerFired};
use crate::proto;

/// Shortest interval of a repeating timer.
pub const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// When a timer fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Once, this long from now.
    After(Duration),
    /// Once, at a time of `CLOCK_MONOTONIC`, nanoseconds.
    AtMonotonic(u64),
    /// Once, at a time of `CLOCK_REALTIME`, nanoseconds.
    AtRealtime(u64),
    /// Every interval, first one interval from now; at least [`INTERVAL_MIN`].
    Every(Duration),
}

/// A timer as asked for.
#[derive(Debug, Clone, Copy)]
pub struct TimerOrder(pub Schedule);

impl TimerOrder {
    /// What the watch takes. The ticks of a repeating timer come when there is room for them.
    #[must_use]
    pub const fn need(self) -> Need {
        let once = !matches!(self.0, Schedule::Every(_));
        Need::sources(0).and_events(once as u64)
    }

    /// The watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        Box::new(Timer {
            schedule: self.0,
            next: Alarm::Monotonic(0),
            ticks: 0,
            fired: 0,
            done: false,
        })
    }
}

#[derive(Debug)]
struct Timer {
    schedule: Schedule,
    next: Alarm,
    /// Ticks so far, missed ones counted.
    ticks: u64,
    /// Events so far.
    fired: u64,
    done: bool,
}

impl Watch for Timer {
    fn start(&mut self, cx: &mut Context<'_>) {
        // Not the turn's time, which may lie before the request.
        let now = Now::sample().monotonic;
        self.next = match self.schedule {
            Schedule::After(delay) | Schedule::Every(delay) => {
                Alarm::Monotonic(now.saturating_add(nanos(delay)))
            }
            Schedule::AtMonotonic(at) => Alarm::Monotonic(at),
            Schedule::AtRealtime(at) => Alarm::Realtime(at),
        };
        cx.set_alarm(self.next);
    }

    fn complete(&mut self, _cx: &mut Context<'_>, _lane: Lane, _done: Done) {}

    fn alarm(&mut self, cx: &mut Context<'_>) {
        let (scheduled, now) = match self.next {
            Alarm::Monotonic(at) => (at, cx.now.monotonic),
            Alarm::Realtime(at) => (at, cx.now.realtime),
        };
        let mut last = scheduled;
        let mut missed = 0;
        if let Schedule::Every(interval) = self.schedule {
            let interval = nanos(interval);
            missed = (now - scheduled) / interval;
            last = scheduled + missed * interval;
            let next = Alarm::Monotonic(last.saturating_add(interval));
            cx.set_alarm(next);
            if !cx.has_room() {
                // A later tick counts this one as missed.
                return;
            }
            self.next = next;
        } else {
            self.done = true;
            cx.close(CloseReason::Completed);
        }
        self.ticks += missed + 1;
        self.fired += 1;
        cx.emit(Kind::TimerFired(TimerFired {
            scheduled_ns: last,
            late_ns: now - last,
            missed,
            tick: self.ticks,
        }));
    }

    fn status(&self) -> Option<proto::watch::Status> {
        let next_ns = match self.next {
            _ if self.done => 0,
            Alarm::Monotonic(at) | Alarm::Realtime(at) => at,
        };
        Some(proto::watch::Status::Timer(proto::TimerStatus {
            next_ns,
            fired: self.fired,
        }))
    }
}
