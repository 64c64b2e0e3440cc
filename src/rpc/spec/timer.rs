//! Checks of specifications of timers.

use std::time::Duration;

use jiff::Timestamp;

use super::{Checks, Plan, Specification, update};
use crate::calendar::{Calendar, Cron, Expression, ExpressionError, OnCalendar};
use crate::error::{Error, Result};
use crate::proto::{self, timer_spec::Schedule as Given, watch_spec::Spec};
use crate::rpc::convert;
use crate::watch::{
    Change, INTERVAL_MIN, Order, Schedule, Services, TimerChange, TimerOrder, ZonedCalendar,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
const SLACK_MAX: Duration = DAY;
const SPLAY_MAX: Duration = DAY.saturating_mul(7);
const CENTURY: Duration = DAY.saturating_mul(100 * 365);
/// The most seconds of a Duration, see `google/protobuf/duration.proto`.
const SECONDS_MAX: i64 = 315_576_000_000;
/// When a timer may fire, in seconds since the Unix epoch: not before the first time that a Timestamp
/// can be, and as long as nanoseconds fit into 64 bits, in whole centuries.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800..=16_725_225_600;

/// The name of the host's own zone.
const LOCAL: &str = "local";

/// A checked timer, whose zone is not known yet.
pub(super) struct Checked {
    when: When,
    slack: Duration,
    splay: Option<(String, Duration)>,
    paused: bool,
}

enum When {
    Known(Schedule),
    Calendar {
        expression: Expression,
        zone: String,
    },
}

impl Checked {
    /// Finds the zone. May block: it reads files.
    pub(super) fn order(self, services: &Services) -> Result<TimerOrder> {
        let zones = &services.time_zones;
        let schedule = match self.when {
            When::Known(schedule) => schedule,
            When::Calendar { expression, zone } => {
                let field = field(&expression);
                let refused = |at: &'static str, error: &dyn std::fmt::Display| {
                    Error::invalid(at, error.to_string())
                };
                let zone_field = match expression.zone() {
                    Some(_) => field,
                    None => "spec.timer.time_zone",
                };
                let found = zones.zone(&zone);
                let found = found.map_err(|error| refused(zone_field, &error))?;
                let calendar = Calendar::in_zone(expression, found);
                let first = calendar.first_after(Timestamp::now());
                first.map_err(|error| refused(field, &error))?;
                Schedule::Calendar(Box::new(ZonedCalendar { calendar, zone }))
            }
        };
        let splay = self.splay;
        Ok(TimerOrder {
            schedule,
            slack: self.slack,
            delay: splay.map_or(Duration::ZERO, |(name, max)| zones.splay(&name, max)),
            paused: self.paused,
        })
    }
}

const fn field(expression: &Expression) -> &'static str {
    match expression {
        Expression::Cron(_) => "spec.timer.cron",
        Expression::OnCalendar(_) => "spec.timer.on_calendar",
    }
}

fn expression<T>(field: &'static str, text: &str) -> Result<Expression>
where
    T: std::str::FromStr<Err = ExpressionError>,
    Expression: From<T>,
{
    let parsed = text.parse::<T>();
    parsed
        .map(Expression::from)
        .map_err(|error| Error::invalid(field, error.to_string()))
}

fn calendar(expression: Expression, zone: &str) -> When {
    let own = expression.zone().map(str::to_owned);
    let zone = match zone {
        "" => LOCAL,
        zone => zone,
    };
    When::Calendar {
        zone: own.unwrap_or_else(|| zone.to_owned()),
        expression,
    }
}

fn when(spec: &proto::TimerSpec) -> Result<When> {
    let known = match &spec.schedule {
        None => {
            let allowed =
                "must have after, at_monotonic_ns, at_realtime, every, cron or on_calendar";
            return Err(Error::invalid("spec.timer", allowed));
        }
        Some(Given::Cron(text)) => {
            let expression = expression::<Cron>("spec.timer.cron", text)?;
            return Ok(calendar(expression, &spec.time_zone));
        }
        Some(Given::OnCalendar(text)) => {
            let expression = expression::<OnCalendar>("spec.timer.on_calendar", text)?;
            return Ok(calendar(expression, &spec.time_zone));
        }
        // As in asyncio's `call_later`, a negative delay means now.
        Some(Given::After(after)) if is_past(after) => Schedule::After(Duration::ZERO),
        Some(Given::After(after)) => {
            let bounds = Duration::ZERO..=CENTURY;
            let field = "spec.timer.after";
            Schedule::After(convert::duration(field, Some(*after), CENTURY, bounds)?)
        }
        Some(Given::AtMonotonicNs(at)) => Schedule::AtMonotonic(*at),
        Some(Given::AtRealtime(at)) => {
            let field = "spec.timer.at_realtime";
            let nanos = u64::try_from(at.nanos).ok().filter(|n| *n < 1_000_000_000);
            let nanos = nanos
                .ok_or_else(|| Error::invalid(field, "must have nanos from 0 to 999999999"))?;
            if !TIMES.contains(&at.seconds) {
                let allowed = "must be from 0001-01-01T00:00:00Z to 2500-01-01T00:00:00Z";
                return Err(Error::invalid(field, allowed));
            }
            let seconds = u64::try_from(at.seconds).unwrap_or(0);
            Schedule::AtRealtime(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
        }
        Some(Given::Every(every)) => {
            let bounds = INTERVAL_MIN..=CENTURY;
            let field = "spec.timer.every";
            Schedule::Every(convert::duration(field, Some(*every), CENTURY, bounds)?)
        }
    };
    if !spec.time_zone.is_empty() {
        let allowed = "must be empty: only cron and on_calendar have a time zone";
        return Err(Error::invalid("spec.timer.time_zone", allowed));
    }
    Ok(When::Known(known))
}

/// Checks what can be checked without reading files.
pub(super) fn check(spec: &proto::TimerSpec, name: &str) -> Result<Checked> {
    let up_to = |field, given, max| convert::optional_duration(field, given, max);
    let slack = up_to("spec.timer.slack", spec.slack, SLACK_MAX)?;
    let splay = up_to("spec.timer.splay", spec.splay, SPLAY_MAX)?;
    let splay = splay.filter(|splay| !splay.is_zero());
    if splay.is_some() && name.is_empty() {
        let allowed = "must be absent for a watch without a name: its part depends on the name";
        return Err(Error::invalid("spec.timer.splay", allowed));
    }
    Ok(Checked {
        when: when(spec)?,
        slack: slack.unwrap_or_default(),
        splay: splay.map(|splay| (name.to_owned(), splay)),
        paused: spec.paused,
    })
}

impl Specification for proto::TimerSpec {
    fn normalize(&mut self) {
        for duration in [&mut self.slack, &mut self.splay] {
            *duration = duration.filter(|given| (given.seconds, given.nanos) != (0, 0));
        }
    }

    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        let checked = check(&self, checks.name)?;
        let is_calendar = matches!(checked.when, When::Calendar { .. });
        let need = TimerOrder::need(is_calendar || matches!(self.schedule, Some(Given::Every(_))));
        let services = std::sync::Arc::clone(checks.api.registry.services());
        let order = if is_calendar {
            Order::Later(Box::new(move |services| {
                Ok(checked.order(services)?.build())
            }))
        } else {
            Order::Now(Box::new(move || Ok(checked.order(&services)?.build())))
        };
        Ok(Plan {
            need,
            order,
            claimed_from: None,
            spec: Spec::Timer(self),
        })
    }

    fn changeable(&self) -> &'static [&'static str] {
        &[
            "after",
            "at_monotonic_ns",
            "at_realtime",
            "every",
            "cron",
            "on_calendar",
            "time_zone",
            "slack",
            "splay",
            "paused",
        ]
    }

    fn change(self, before: Spec, checks: &Checks<'_>) -> Result<update::Prepare> {
        let Spec::Timer(before) = before else {
            return Err(Error::Internal("a timer was something else"));
        };
        let checked = check(&self, checks.name)?;
        let splay = check(&before, checks.name)?.splay;
        let reschedules = self.schedule != before.schedule || self.time_zone != before.time_zone;
        Ok(Box::new(move |services| {
            let delay = |(name, max): (String, _)| services.time_zones.splay(&name, max);
            Ok(Change::Timer(Box::new(TimerChange {
                order: checked.order(services)?,
                reschedules,
                delay_before: splay.map_or(Duration::ZERO, delay),
            })))
        }))
    }
}

/// Returns whether a duration is 0 or negative, as protobuf has negative ones.
fn is_past(after: &prost_types::Duration) -> bool {
    (-SECONDS_MAX..=0).contains(&after.seconds) && (-999_999_999..=0).contains(&after.nanos)
}
