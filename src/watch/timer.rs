//! Timers, which fire once after a delay or at a time, or repeatedly at a fixed rate.

use std::time::Duration;

use super::{Alarm, Context, Need, Watch};
use crate::clock::{Now, nanos};
use crate::driver::{Done, Lane};
use crate::event::{CloseReason, Kind, TimerFired, largest};
use crate::proto;

/// The shortest interval of a repeating timer.
pub const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// The times at which a timer fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Once, this long from now.
    After(Duration),
    /// Once, at a time of `CLOCK_MONOTONIC`, in nanoseconds.
    AtMonotonic(u64),
    /// Once, at a time of `CLOCK_REALTIME`, in nanoseconds.
    AtRealtime(u64),
    /// At a fixed interval, the first time one interval from now. The interval is at least
    /// [`INTERVAL_MIN`].
    Every(Duration),
}

/// The checked order of a timer.
#[derive(Debug, Clone, Copy)]
pub struct TimerOrder(pub Schedule);

impl TimerOrder {
    /// Returns what the watch needs. For the ticks of a repeating timer no room is reserved: they
    /// are appended when there is room.
    #[must_use]
    pub const fn need(self) -> Need {
        match self.0 {
            Schedule::Every(_) => Need::sources(0),
            _ => Need::sources(0).and(largest::TIMER_FIRED),
        }
    }

    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        Box::new(Timer::New(self.0))
    }
}

/// A timer watch. A loop may have a million of them, so it is small.
#[derive(Debug)]
enum Timer {
    New(Schedule),
    Once(Alarm),
    Every(Box<Ticks>),
    Fired,
}

#[derive(Debug)]
struct Ticks {
    /// The interval in nanoseconds.
    interval: u64,
    /// When the next tick is due, in nanoseconds of the monotonic clock.
    next: u64,
    /// The number of ticks so far, missed ones included.
    count: u64,
    /// The number of events so far.
    fired: u64,
}

impl Ticks {
    /// Returns the event for the ticks that are due, and sets the alarm for the next tick. Returns
    /// `None` if the journal has no room; the next event then counts these ticks as missed.
    fn due(&mut self, cx: &mut Context<'_>) -> Option<TimerFired> {
        let now = cx.now.monotonic;
        let missed = (now - self.next) / self.interval;
        let last = self.next + missed * self.interval;
        let next = last.saturating_add(self.interval);
        cx.set_alarm(Alarm::Monotonic(next));
        if !cx.has_room() {
            return None;
        }
        self.next = next;
        self.count += missed + 1;
        self.fired += 1;
        Some(TimerFired {
            scheduled_ns: last,
            late_ns: now - last,
            missed,
            tick: self.count,
        })
    }
}

impl Watch for Timer {
    fn start(&mut self, cx: &mut Context<'_>) {
        let Self::New(schedule) = *self else { return };
        // The time of the turn may be before the request, so it is not used.
        let now = Now::sample().monotonic;
        let first = match schedule {
            Schedule::After(delay) | Schedule::Every(delay) => {
                Alarm::Monotonic(now.saturating_add(nanos(delay)))
            }
            Schedule::AtMonotonic(at) => Alarm::Monotonic(at),
            Schedule::AtRealtime(at) => Alarm::Realtime(at),
        };
        *self = match (schedule, first) {
            (Schedule::Every(interval), Alarm::Monotonic(next)) => Self::Every(Box::new(Ticks {
                interval: nanos(interval),
                next,
                count: 0,
                fired: 0,
            })),
            _ => Self::Once(first),
        };
        cx.set_alarm(first);
    }

    fn complete(&mut self, _cx: &mut Context<'_>, _lane: Lane, _done: Done) {}

    fn alarm(&mut self, cx: &mut Context<'_>) {
        let fired = match self {
            Self::New(_) | Self::Fired => None,
            Self::Every(ticks) => ticks.due(cx),
            Self::Once(alarm) => {
                let (scheduled, now) = match *alarm {
                    Alarm::Monotonic(at) => (at, cx.now.monotonic),
                    Alarm::Realtime(at) => (at, cx.now.realtime),
                };
                *self = Self::Fired;
                cx.close(CloseReason::Completed);
                Some(TimerFired {
                    scheduled_ns: scheduled,
                    late_ns: now - scheduled,
                    missed: 0,
                    tick: 1,
                })
            }
        };
        if let Some(fired) = fired {
            cx.emit(Kind::TimerFired(fired));
        }
    }

    fn status(&self) -> Option<proto::watch::Status> {
        let (next_ns, fired) = match self {
            Self::New(_) => (0, 0),
            Self::Once(Alarm::Monotonic(at) | Alarm::Realtime(at)) => (*at, 0),
            Self::Every(ticks) => (ticks.next, ticks.fired),
            Self::Fired => (0, 1),
        };
        Some(proto::watch::Status::Timer(proto::TimerStatus {
            next_ns,
            fired,
        }))
    }
}
