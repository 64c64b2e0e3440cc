//! Timers that fire again and again.

use jiff::Timestamp;

use super::super::{Context, TimeChange};
use super::ZonedCalendar;
use crate::calendar::{Calendar, SET_BACK_MAX};
use crate::clock::{Clock, Jumps, Now, nanos};
use crate::event::{Kind, TimerFired, UpdateCause, Updated};
use crate::proto::state::KeptRecurring;

/// The most missed ticks of a calendar that are counted: counting takes time of the loop's thread
/// in proportion to them.
const MISSED_MAX: u32 = 1000;

/// A timer that fires again and again. All of its times are without `delay`, but for those that it
/// returns.
#[derive(Debug)]
pub(super) struct Recurring {
    pub(super) occurrences: Occurrences,
    /// How much later than its occurrences it fires, in nanoseconds.
    pub(super) delay: u64,
    /// In nanoseconds.
    pub(super) slack: u64,
    /// The number of ticks so far, missed ones included.
    pub(super) count: u64,
    /// The number of events so far.
    pub(super) fired: u64,
    /// Whether a tick waits for room in the journal.
    pub(super) owes: bool,
    /// A change of its zone that waits for room in the journal.
    pub(super) untold: Option<Box<Updated>>,
}

/// The times at which it is due.
#[derive(Debug)]
pub(super) enum Occurrences {
    /// At a fixed rate, in nanoseconds of the boot-time clock.
    Every(Every),
    /// When a calendar is due, in nanoseconds of the realtime clock.
    Calendar(Box<Dates>),
}

#[derive(Debug)]
pub(super) struct Every {
    pub(super) interval: u64,
    pub(super) next: u64,
}

#[derive(Debug)]
pub(super) struct Dates {
    calendar: Calendar,
    /// The name by which its zone is found again.
    zone: String,
    /// When it was due last, or its schedule began.
    last: Timestamp,
    /// When it is due next. `None` once the expression has no further time.
    next: Option<Timestamp>,
}

/// Ticks that are due at once.
struct Ticks {
    /// The latest of them.
    last: u64,
    /// How many came before it.
    missed: u64,
    at_least: bool,
}

pub(super) enum Due {
    Fired(TimerFired),
    /// It is not due: its clock was set back, for example.
    NotYet,
}

fn instant(realtime_ns: u64) -> Timestamp {
    Timestamp::from_nanosecond(realtime_ns.into()).unwrap_or(Timestamp::MAX)
}

fn nanoseconds(instant: Timestamp) -> u64 {
    u64::try_from(instant.as_nanosecond()).unwrap_or(0)
}

impl Occurrences {
    /// Returns the times of a calendar that count from now.
    pub(super) fn calendar(zoned: &ZonedCalendar, now: Now, delay: u64) -> Self {
        // A time that has passed, but not with the delay, is before the schedule began.
        let now = instant(now.realtime.saturating_sub(delay));
        let last = now.max(instant(Now::sample().realtime));
        Self::Calendar(Box::new(Dates {
            calendar: zoned.calendar.clone(),
            zone: zoned.zone.clone(),
            last,
            next: zoned.calendar.next_after(last),
        }))
    }

    const fn clock(&self) -> Clock {
        match self {
            Self::Every(_) => Clock::Boottime,
            Self::Calendar(_) => Clock::Realtime,
        }
    }

    fn next(&self) -> Option<u64> {
        match self {
            Self::Every(every) => Some(every.next),
            Self::Calendar(dates) => dates.next.map(nanoseconds),
        }
    }

    /// Takes all ticks that are due.
    fn take(&mut self, now: u64) -> Option<Ticks> {
        match self {
            Self::Every(every) => {
                let missed = now.checked_sub(every.next)? / every.interval;
                let last = every.next + missed * every.interval;
                every.next = last.saturating_add(every.interval);
                Some(Ticks {
                    last,
                    missed,
                    at_least: false,
                })
            }
            Self::Calendar(dates) => dates.take(instant(now)),
        }
    }
}

impl Dates {
    fn take(&mut self, now: Timestamp) -> Option<Ticks> {
        let first = self.next.filter(|first| *first <= now)?;
        let following = self.calendar.missed(first, now, MISSED_MAX);
        let last = match following.count {
            0 => first,
            _ => self.calendar.latest(first, now).unwrap_or(first),
        };
        self.last = last;
        self.next = self.calendar.next_after(last);
        Some(Ticks {
            last: nanoseconds(last),
            missed: following.count.into(),
            at_least: following.at_least,
        })
    }

    /// Computes the next time anew, after the clock was set back by `back` nanoseconds, if at all. One
    /// that is due already stays.
    fn look_again(&mut self, now: Timestamp, back: u64) {
        if self.next.is_some_and(|next| next <= now) {
            return;
        }
        // A clock that was set back far was wrong before: it begins anew.
        if back > nanos(SET_BACK_MAX) {
            self.last = now;
        }
        self.next = self.calendar.next_after(self.last.max(now));
    }
}

impl Recurring {
    /// Returns its clock, and when it fires next; `None` if it has no further time.
    pub(super) fn due_at(&self) -> Option<(Clock, u64)> {
        let next = self.occurrences.next()?.saturating_add(self.delay);
        Some((self.occurrences.clock(), next))
    }

    pub(super) fn keep(&self) -> KeptRecurring {
        KeptRecurring {
            at: match &self.occurrences {
                Occurrences::Every(every) => every.next,
                Occurrences::Calendar(dates) => nanoseconds(dates.last),
            },
            delay: self.delay,
            count: self.count,
            fired: self.fired,
        }
    }

    /// Goes on as an earlier life has kept it.
    pub(super) fn resume(&mut self, kept: &KeptRecurring) {
        match &mut self.occurrences {
            Occurrences::Every(every) => every.next = kept.at,
            Occurrences::Calendar(dates) => {
                dates.last = instant(kept.at);
                dates.next = dates.calendar.next_after(dates.last);
            }
        }
        (self.delay, self.count, self.fired) = (kept.delay, kept.count, kept.fired);
    }

    /// Returns the name of its time zone, if it has one.
    pub(super) fn zone(&self) -> Option<&str> {
        match &self.occurrences {
            Occurrences::Every(_) => None,
            Occurrences::Calendar(dates) => Some(dates.calendar.zone().name()),
        }
    }

    /// Takes the ticks that are due, and makes one event of them.
    pub(super) fn due(&mut self, now: Now, jumps: &Jumps) -> Due {
        let clock = self.occurrences.clock();
        let now = now.of(clock);
        let Some(ticks) = self.occurrences.take(now.saturating_sub(self.delay)) else {
            return Due::NotYet;
        };
        self.count += ticks.missed + 1;
        self.fired += 1;
        let scheduled = ticks.last.saturating_add(self.delay);
        Due::Fired(TimerFired {
            scheduled_ns: scheduled,
            late_ns: now.saturating_sub(scheduled),
            missed: ticks.missed,
            tick: self.count,
            missed_at_least: ticks.at_least,
            caught_up: jumps.skipped(clock, scheduled),
            clock: super::shown(clock).into(),
        })
    }

    /// Goes on after a pause, before which that much time was `left` until its next tick.
    pub(super) fn go_on(&mut self, now: Now, left: Option<u64>) {
        match &mut self.occurrences {
            Occurrences::Every(every) => {
                let left = left.unwrap_or(every.interval).saturating_sub(self.delay);
                every.next = now.boottime.saturating_add(left);
            }
            Occurrences::Calendar(dates) => {
                let now = instant(now.realtime.saturating_sub(self.delay));
                dates.last = dates.last.max(now);
                dates.next = dates.calendar.next_after(dates.last);
            }
        }
    }

    /// Looks when it is due next, after a clock was set or a zone was replaced. Returns whether its
    /// alarm must be set again.
    pub(super) fn time_changed(&mut self, cx: &mut Context<'_>, change: TimeChange) -> bool {
        let Occurrences::Calendar(dates) = &mut self.occurrences else {
            return false;
        };
        let now = instant(cx.now.realtime.saturating_sub(self.delay));
        let before = (dates.calendar.zone().name().to_owned(), dates.next);
        if change == TimeChange::Zones {
            // A zone that is no longer there keeps the rules that it had.
            let Some(zone) = cx.services.time_zones.current(&dates.zone) else {
                return false;
            };
            let expression = dates.calendar.expression().clone();
            dates.calendar = Calendar::in_zone(expression, zone);
        }
        let back = match change {
            TimeChange::ClockSet { back } => back,
            TimeChange::Zones => 0,
        };
        dates.look_again(now, back);
        if change == TimeChange::Zones
            && before != (dates.calendar.zone().name().to_owned(), dates.next)
        {
            self.untold = Some(Box::new(Updated {
                request_id: String::new(),
                cause: UpdateCause::TimeZone.into(),
                fields: vec!["spec.timer.time_zone".to_owned()],
                next_ns: self.due_at().map_or(0, |(_, at)| at),
                time_zone: self.zone().unwrap_or_default().to_owned(),
            }));
            self.tell_zone(cx);
        }
        true
    }

    /// Tells that its zone was replaced, if that was not told and there is room.
    pub(super) fn tell_zone(&mut self, cx: &mut Context<'_>) {
        if self.untold.is_some()
            && cx.has_room()
            && let Some(updated) = self.untold.take()
        {
            cx.emit(Kind::Updated(*updated));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::{Cron, Zones};

    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn a_clock_set_back_by_hours_repeats_nothing_and_by_more_begins_anew() {
        let nowhere = std::path::Path::new("/nonexistent");
        let zone = Zones::open(nowhere).get("UTC").unwrap();
        let cron: Cron = "0 * * * *".parse().unwrap();
        let at = |hours: u64| instant(hours * HOUR);
        let dates = || Dates {
            calendar: Calendar::in_zone(cron.clone(), zone.clone()),
            zone: "UTC".to_owned(),
            last: at(100),
            next: Some(at(101)),
        };
        let half = HOUR / 2;
        for (back, next) in [
            (half, 101),
            (3 * HOUR, 101),
            // Twelve o'clock is less than three hours ahead, but the clock was wrong before.
            (3 * HOUR + 1, 98),
            (90 * HOUR, 11),
        ] {
            let mut dates = dates();
            let now = instant(100 * HOUR + half - back);
            dates.look_again(now, back);
            assert_eq!(dates.next, Some(at(next)), "{back}");
            // A second look, after a step that changed nothing, repeats nothing either.
            dates.look_again(now, 0);
            assert_eq!(dates.next, Some(at(next)), "{back}");
        }
        let mut dates = dates();
        dates.look_again(at(200), 0);
        assert_eq!(dates.next, Some(at(101)), "it is due and stays");
    }
}
