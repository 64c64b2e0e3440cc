//! Timers, which fire once after a delay or at a time, or repeatedly: at a fixed rate, or when a
//! calendar expression is due.

use std::time::Duration;

use super::{Alarm, Change, Context, Need, Resumption, TimeChange, Watch};
use crate::calendar::Calendar;
use crate::clock::{self, Clock, Now, nanos};
use crate::driver::{Done, Driver, Lane};
use crate::error::{Error, Result};
use crate::event::{CloseReason, Kind, TimerFired, largest};
use crate::proto::state::kept_watch_state::Of;
use crate::proto::state::{KeptOnce, KeptTimer, kept_timer};
use crate::proto::{self, TimerClock};

mod recurring;
mod slack;

use recurring::{Due, Every, Occurrences, Recurring};

/// The shortest interval of a repeating timer.
pub const INTERVAL_MIN: Duration = Duration::from_millis(1);

const MS: u64 = 1_000_000;

/// The times at which a timer fires.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// Once, this long from now, the time included while the host is suspended.
    After(Duration),
    /// Once, at a time of `CLOCK_MONOTONIC`, in nanoseconds.
    AtMonotonic(u64),
    /// Once, at a time of `CLOCK_REALTIME`, in nanoseconds.
    AtRealtime(u64),
    /// At a fixed interval, the first time one interval from now. The interval is at least
    /// [`INTERVAL_MIN`].
    Every(Duration),
    /// Whenever a calendar is due.
    Calendar(Box<ZonedCalendar>),
}

/// A calendar, and the name of the zone that was asked for.
#[derive(Debug, Clone)]
pub struct ZonedCalendar {
    /// When it is due.
    pub calendar: Calendar,
    /// The name under which its zone is found again after the database of zones was replaced.
    pub zone: String,
}

/// The checked order of a timer.
#[derive(Debug, Clone)]
pub struct TimerOrder {
    /// When it fires.
    pub schedule: Schedule,
    /// How much later it may fire, to fire together with others.
    pub slack: Duration,
    /// How much later it fires, always the same: its part of a splay.
    pub delay: Duration,
    /// Whether it fires at all.
    pub paused: bool,
}

/// What UpdateWatch changes of a timer.
#[derive(Debug)]
pub struct TimerChange {
    /// The whole order after the change.
    pub order: TimerOrder,
    /// Whether its schedule is another one, which counts from now.
    pub reschedules: bool,
    /// The [delay](TimerOrder::delay) before the change.
    pub delay_before: Duration,
}

impl TimerOrder {
    /// Returns what a timer needs. For the ticks of a recurring one no room is reserved: they are
    /// appended when there is room. One that becomes a timer that fires once reserves room then.
    #[must_use]
    pub const fn need(recurring: bool) -> Need {
        if recurring {
            Need::sources(0)
        } else {
            Need::sources(0).and(largest::TIMER_FIRED)
        }
    }

    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        Box::new(Timer::New(Box::new(self)))
    }
}

impl Schedule {
    const fn is_recurring(&self) -> bool {
        matches!(self, Self::Every(_) | Self::Calendar(_))
    }

    /// Returns the clock that it goes by.
    const fn clock(&self) -> Clock {
        match self {
            Self::After(_) | Self::Every(_) => Clock::Boottime,
            Self::AtMonotonic(_) => Clock::Monotonic,
            Self::AtRealtime(_) | Self::Calendar(_) => Clock::Realtime,
        }
    }
}

const fn shown(clock: Clock) -> TimerClock {
    match clock {
        Clock::Monotonic => TimerClock::Monotonic,
        Clock::Boottime => TimerClock::Boottime,
        Clock::Realtime => TimerClock::Realtime,
    }
}

const fn clock_of(shown: TimerClock) -> Clock {
    match shown {
        TimerClock::Realtime => Clock::Realtime,
        TimerClock::Boottime => Clock::Boottime,
        TimerClock::Monotonic | TimerClock::Unspecified => Clock::Monotonic,
    }
}

const fn alarm(clock: Clock, at: u64) -> Alarm {
    match clock {
        Clock::Monotonic => Alarm::Monotonic(at),
        Clock::Boottime => Alarm::Boottime(at),
        Clock::Realtime => Alarm::Realtime(at),
    }
}

/// A timer watch. A loop may have a million of them, so it is small: what is rare is in a box.
#[derive(Debug)]
enum Timer {
    New(Box<TimerOrder>),
    Once {
        clock: Clock,
        at: u64,
    },
    Recurring(Box<Recurring>),
    Paused(Box<Paused>),
    Fired,
    /// It closed before.
    Closed(Box<Closed>),
}

/// What is left of a timer that closed.
#[derive(Debug)]
struct Closed {
    fired: u64,
    zone: String,
    paused: bool,
}

/// A paused timer.
#[derive(Debug)]
struct Paused {
    /// What it is once it goes on.
    timer: Timer,
    /// The time that was left of `after` or `every`, in nanoseconds.
    left: Option<u64>,
    slack: u64,
}

impl Timer {
    /// Returns a timer whose schedule counts from now, not paused.
    fn begun(order: &TimerOrder, now: Now) -> Self {
        let delay = nanos(order.delay);
        let from_now = |wait: Duration| now.boottime.saturating_add(nanos(wait));
        let at = |at: u64| Self::Once {
            clock: order.schedule.clock(),
            at: at.saturating_add(delay),
        };
        let occurrences = match &order.schedule {
            Schedule::After(wait) => return at(from_now(*wait)),
            Schedule::AtMonotonic(time) | Schedule::AtRealtime(time) => return at(*time),
            Schedule::Every(interval) => Occurrences::Every(Every {
                interval: nanos(*interval),
                next: from_now(*interval),
            }),
            Schedule::Calendar(zoned) => Occurrences::calendar(zoned, now, delay),
        };
        Self::Recurring(Box::new(Recurring {
            occurrences,
            delay,
            slack: nanos(order.slack),
            count: 0,
            fired: 0,
            owes: false,
            untold: None,
        }))
    }

    /// Returns the clock that it goes by, and when it is due; `None` if it does not fire again or
    /// is paused.
    fn due_at(&self) -> Option<(Clock, u64)> {
        match self {
            Self::Once { clock, at } => Some((*clock, *at)),
            Self::Recurring(recurring) => recurring.due_at(),
            Self::New(_) | Self::Paused(_) | Self::Fired | Self::Closed(_) => None,
        }
    }

    /// Sets the alarm for the next time, or ends the timer if there is none.
    fn arm(&self, cx: &mut Context<'_>, slack: u64) {
        match self.due_at() {
            Some((clock, at)) => {
                let at = cx.at_tick(slack::within(at, slack));
                cx.set_alarm(alarm(clock, at));
            }
            None => {
                cx.clear_alarm();
                if matches!(self, Self::Recurring(_)) {
                    cx.close(CloseReason::Completed);
                }
            }
        }
    }

    fn pause(&mut self, cx: &mut Context<'_>, slack: u64) {
        let now = Now::sample();
        let left = match self.due_at() {
            Some((Clock::Boottime, at)) => Some(at.saturating_sub(now.boottime)),
            _ => None,
        };
        let timer = std::mem::replace(self, Self::Fired);
        *self = Self::Paused(Box::new(Paused { timer, left, slack }));
        cx.clear_alarm();
    }

    fn go_on(&mut self, cx: &mut Context<'_>) {
        let Self::Paused(paused) = self else { return };
        let now = Now::sample();
        let (left, slack) = (paused.left, paused.slack);
        *self = std::mem::replace(&mut paused.timer, Self::Fired);
        match (&mut *self, left) {
            (Self::Once { at, .. }, Some(left)) => *at = now.boottime.saturating_add(left),
            (Self::Recurring(recurring), left) => recurring.go_on(now, left),
            _ => {}
        }
        self.arm(cx, slack);
    }

    fn change_schedule(&mut self, cx: &mut Context<'_>, order: &TimerOrder) -> Result<()> {
        let was_once = !matches!(self.unpaused(), Self::Recurring(_));
        let is_once = !order.schedule.is_recurring();
        // Room for the one event of a timer that fires once is set aside from its start.
        match (was_once, is_once) {
            (false, true) => cx.reserve_event(largest::TIMER_FIRED)?,
            (true, false) => cx.release_event(largest::TIMER_FIRED),
            _ => {}
        }
        let mut timer = Self::begun(order, Now::sample());
        if let (Self::Recurring(before), Self::Recurring(after)) = (self.unpaused(), &mut timer) {
            after.fired = before.fired;
        }
        *self = timer;
        Ok(())
    }

    fn unpaused(&self) -> &Self {
        match self {
            Self::Paused(paused) => &paused.timer,
            timer => timer,
        }
    }

    fn unpaused_mut(&mut self) -> &mut Self {
        match self {
            Self::Paused(paused) => &mut paused.timer,
            timer => timer,
        }
    }

    /// Returns what of it does not change when it closes.
    fn facts(&self) -> Closed {
        let (fired, zone) = match self.unpaused() {
            Self::Closed(closed) => (closed.fired, closed.zone.clone()),
            Self::Recurring(recurring) => (
                recurring.fired,
                recurring.zone().unwrap_or_default().to_owned(),
            ),
            Self::Fired => (1, String::new()),
            _ => (0, String::new()),
        };
        let paused = match self {
            Self::Closed(closed) => closed.paused,
            timer => matches!(timer, Self::Paused(_)),
        };
        Closed {
            fired,
            zone,
            paused,
        }
    }
}

impl Watch for Timer {
    fn start(&mut self, cx: &mut Context<'_>) {
        let Self::New(order) = self else { return };
        // The time of the turn may be before the request, so it is not used.
        let (timer, paused) = (Self::begun(order, Now::sample()), order.paused);
        let slack = nanos(order.slack);
        *self = timer;
        if paused {
            self.pause(cx, slack);
        } else {
            self.arm(cx, slack);
        }
        cx.changed();
    }

    fn keep(&self, _driver: &dyn Driver) -> Option<Of> {
        let (slack, paused, left) = match self {
            Self::Paused(paused) => (paused.slack, true, paused.left),
            Self::Recurring(recurring) => (recurring.slack, false, None),
            _ => (0, false, None),
        };
        let timer = match self.unpaused() {
            Self::Once { clock, at } => kept_timer::Timer::Once(KeptOnce {
                clock: shown(*clock).into(),
                at: *at,
            }),
            Self::Recurring(recurring) => kept_timer::Timer::Recurring(recurring.keep()),
            _ => return None,
        };
        Some(Of::Timer(KeptTimer {
            slack,
            paused,
            left,
            timer: Some(timer),
        }))
    }

    fn resume(&mut self, cx: &mut Context<'_>, kept: Resumption) -> Result<()> {
        let (Of::Timer(kept), Self::New(order)) = (kept.of, &*self) else {
            return Err(Error::Internal("the timer was started before"));
        };
        let mut timer = Self::begun(order, cx.now);
        match (&mut timer, &kept.timer) {
            (Self::Once { clock, at }, Some(kept_timer::Timer::Once(once))) => {
                (*clock, *at) = (clock_of(once.clock()), once.at);
            }
            (Self::Recurring(recurring), Some(kept_timer::Timer::Recurring(kept))) => {
                recurring.resume(kept);
            }
            _ => return Err(Error::Internal("what was kept is another timer")),
        }
        *self = if kept.paused {
            Self::Paused(Box::new(Paused {
                timer,
                left: kept.left,
                slack: kept.slack,
            }))
        } else {
            timer
        };
        if !kept.paused {
            self.arm(cx, kept.slack);
        }
        Ok(())
    }

    fn complete(&mut self, _cx: &mut Context<'_>, _lane: Lane, _done: Done) {}

    fn alarm(&mut self, cx: &mut Context<'_>) {
        let fired = match self {
            Self::New(_) | Self::Paused(_) | Self::Fired | Self::Closed(_) => return,
            Self::Once { clock, at } => {
                let fired = TimerFired {
                    scheduled_ns: *at,
                    late_ns: cx.now.of(*clock).saturating_sub(*at),
                    missed: 0,
                    tick: 1,
                    missed_at_least: false,
                    caught_up: cx.jumps.skipped(*clock, *at),
                    clock: shown(*clock).into(),
                };
                *self = Self::Fired;
                cx.close(CloseReason::Completed);
                Some(fired)
            }
            Self::Recurring(recurring) if !cx.has_room() => {
                recurring.owes = true;
                return;
            }
            Self::Recurring(recurring) => {
                let fired = match recurring.due(cx.now, cx.jumps) {
                    Due::Fired(fired) => Some(fired),
                    Due::NotYet => None,
                };
                let slack = recurring.slack;
                self.arm(cx, slack);
                fired
            }
        };
        if let Some(fired) = fired {
            cx.emit(Kind::TimerFired(fired));
        }
        cx.changed();
    }

    /// A tick that found no room is told as soon as there is room, as is a change of its zone.
    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        let paused = matches!(self, Self::Paused(_));
        let Self::Recurring(recurring) = self.unpaused_mut() else {
            return false;
        };
        let owes = recurring.owes || recurring.untold.is_some();
        if !hold && owes {
            recurring.tell_zone(cx);
            recurring.owes = false;
            let slack = recurring.slack;
            if !paused {
                self.arm(cx, slack);
            }
        }
        owes
    }

    fn time_changed(&mut self, cx: &mut Context<'_>, change: TimeChange) {
        let paused = matches!(self, Self::Paused(_));
        if let Self::Recurring(recurring) = self.unpaused_mut()
            && recurring.time_changed(cx, change)
            && !paused
        {
            let slack = recurring.slack;
            self.arm(cx, slack);
        }
        cx.changed();
    }

    fn change(&mut self, cx: &mut Context<'_>, change: Change) -> Result<()> {
        let Change::Timer(change) = change else {
            return Err(super::unsupported("what is to be changed"));
        };
        let TimerChange {
            order,
            reschedules,
            delay_before,
        } = *change;
        let slack = nanos(order.slack);
        if reschedules {
            self.change_schedule(cx, &order)?;
        } else {
            let (before, after) = (nanos(delay_before), nanos(order.delay));
            match self.unpaused_mut() {
                Self::Once { at, .. } => *at = at.saturating_sub(before).saturating_add(after),
                Self::Recurring(recurring) => {
                    (recurring.delay, recurring.slack) = (after, slack);
                }
                _ => {}
            }
            if let Self::Paused(paused) = self {
                paused.slack = slack;
            }
        }
        let is_paused = matches!(self, Self::Paused(_));
        match (is_paused, order.paused) {
            (false, true) => self.pause(cx, slack),
            (true, false) => self.go_on(cx),
            (true, true) => {}
            (false, false) => self.arm(cx, slack),
        }
        cx.changed();
        Ok(())
    }

    fn closed(&mut self, _cx: &mut Context<'_>) -> u64 {
        if !matches!(self, Self::Fired) {
            *self = Self::Closed(Box::new(self.facts()));
        }
        0
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        let now = Now::sample();
        let due = self.due_at();
        let next = due.map(|(clock, at)| {
            if clock == Clock::Realtime {
                return clock::timestamp(at);
            }
            let wait = i128::from(at) - i128::from(now.of(clock));
            let at = u64::try_from((i128::from(now.realtime) + wait).max(0)).unwrap_or(u64::MAX);
            // The clocks are read one after the other, so the rest is not the same each time.
            clock::timestamp(at.saturating_add(MS / 2) / MS * MS)
        });
        let Closed {
            fired,
            zone: time_zone,
            paused,
        } = self.facts();
        Some(proto::watch::Status::Timer(proto::TimerStatus {
            next_ns: due.map_or(0, |(_, at)| at),
            fired,
            next,
            time_zone,
            paused,
        }))
    }
}
