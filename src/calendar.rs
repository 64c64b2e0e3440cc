//! Calendar expressions: when they are due, in a zone, also on the bad days of the year.
//!
//! An [`Expression`] is read from the text of cron or of systemd's `OnCalendar=`. Together with a
//! [`Zone`] it is a [`Calendar`], which tells the next instant. [`Zones`] finds zones by name in the
//! newer of the host's and the bundled database. [`read_time`] reads a single local time, and
//! [`splay()`] spreads jobs of one time over hosts.
//!
//! Where the local clock is changed, an expression whose minute or hour begins with `*` counts
//! elapsed time, and any other is due once per civil time: at the first instant at which the local
//! clock shows it or a later time. See [`Class`].

mod at;
mod civil;
mod cron;
mod error;
mod instants;
mod on_calendar;
mod pattern;
mod splay;
mod zones;

use std::time::Duration;

use jiff::Timestamp;

pub use self::at::{At, Meaning, TIME_MAX, read_time};
pub use self::civil::{YEAR_MAX, YEAR_MIN};
pub use self::cron::{CRON_MAX, Cron};
pub use self::error::{ExpressionError, Field, TimeError, ZoneError};
pub use self::on_calendar::{ON_CALENDAR_MAX, OnCalendar};
pub use self::pattern::Class;
pub use self::splay::splay;
pub use self::zones::{Reloaded, Source, Zone, Zones};

use self::error::excerpt;
use self::pattern::Pattern;

/// An expression of either kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Of cron.
    Cron(Cron),
    /// Of systemd.
    OnCalendar(OnCalendar),
}

impl Expression {
    /// Returns the text from which it was read.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Cron(cron) => cron.text(),
            Self::OnCalendar(event) => event.text(),
        }
    }

    /// Returns the name of the zone that the expression itself contains.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        match self {
            Self::Cron(_) => None,
            Self::OnCalendar(event) => event.zone(),
        }
    }

    /// Returns how it treats changes of the local clock.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.pattern().class
    }

    /// Whether it is due more than once within a minute: six fields by mistake, perhaps.
    #[must_use]
    pub fn is_more_than_once_a_minute(&self) -> bool {
        self.pattern().times.seconds.several()
    }

    const fn pattern(&self) -> &Pattern {
        match self {
            Self::Cron(cron) => cron.pattern(),
            Self::OnCalendar(event) => event.pattern(),
        }
    }
}

impl From<Cron> for Expression {
    fn from(cron: Cron) -> Self {
        Self::Cron(cron)
    }
}

impl From<OnCalendar> for Expression {
    fn from(event: OnCalendar) -> Self {
        Self::OnCalendar(event)
    }
}

/// An expression in a zone.
#[derive(Debug, Clone)]
pub struct Calendar {
    expression: Expression,
    zone: Zone,
}

/// The number of occurrences that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// How many were counted.
    pub count: u32,
    /// Whether there are more: the count reached its bound.
    pub at_least: bool,
}

impl Calendar {
    /// Creates a calendar in the zone that the expression contains, else in the one called
    /// `zone`.
    ///
    /// # Errors
    /// If the zone is unknown.
    pub fn new(
        expression: impl Into<Expression>,
        zone: &str,
        zones: &Zones,
    ) -> Result<Self, ExpressionError> {
        let expression = expression.into();
        let zone = zones.get(expression.zone().unwrap_or(zone))?;
        Ok(Self { expression, zone })
    }

    /// Creates a calendar in this zone, whatever zone the expression contains.
    #[must_use]
    pub fn in_zone(expression: impl Into<Expression>, zone: Zone) -> Self {
        let expression = expression.into();
        Self { expression, zone }
    }

    /// Returns the expression.
    #[must_use]
    pub const fn expression(&self) -> &Expression {
        &self.expression
    }

    /// Returns the zone.
    #[must_use]
    pub const fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Returns the first instant after `after` at which it is due, in whole microseconds. None if
    /// that is not before the end of [`YEAR_MAX`].
    ///
    /// The result is always later than `after`, whatever the zone's data say: a caller that goes
    /// from one to the next never spins.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let pattern = self.expression.pattern();
        let micros = after.as_nanosecond().div_euclid(1_000);
        let next = instants::next(pattern, self.zone.time_zone(), i64::try_from(micros).ok()?)?;
        let next = Timestamp::from_microsecond(next).ok();
        next.filter(|next| *next > after)
    }

    /// Like [`next_after`](Self::next_after), for a timer that is about to be made.
    ///
    /// # Errors
    /// If it is never due again.
    pub fn first_after(&self, after: Timestamp) -> Result<Timestamp, ExpressionError> {
        let next = self.next_after(after);
        next.ok_or_else(|| ExpressionError::NeverComesAgain {
            text: excerpt(self.expression.text()),
            after,
            zone: self.zone.name().to_owned(),
        })
    }

    /// Returns the instants after `after` at which it is due.
    pub fn upcoming(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.next_after(after), |last| self.next_after(*last))
    }

    /// Returns the last instant after `after`, until `until` inclusive, at which it is due. However
    /// many there are, it looks at no more than about 60 of them.
    #[must_use]
    pub fn latest(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let due_by = |from: Timestamp| self.next_after(from).filter(|due| *due <= until);
        let mut latest = due_by(after)?;
        // It is due at `latest`, and not after `end` until `until`.
        let mut end = until;
        while latest < end {
            let halfway = end.duration_since(latest) / 2;
            match latest.checked_add(halfway).ok().and_then(due_by) {
                Some(later) => latest = later,
                None if halfway.is_zero() => break,
                None => end = latest.checked_add(halfway).unwrap_or(latest),
            }
        }
        Some(latest)
    }

    /// Counts the instants after `after`, until `until` inclusive, at which it is due. Counts no
    /// more than `bound`, in time proportional to it.
    #[must_use]
    pub fn missed(&self, after: Timestamp, until: Timestamp, bound: u32) -> Missed {
        let mut missed = Missed {
            count: 0,
            at_least: false,
        };
        for _ in self.upcoming(after).take_while(|due| *due <= until) {
            if missed.count == bound {
                missed.at_least = true;
                break;
            }
            missed.count += 1;
        }
        missed
    }
}

/// A clock that is set back by at most this much repeats nothing: each occurrence is due once. One that
/// is set back further was wrong before: the count begins anew.
pub const SET_BACK_MAX: Duration = Duration::from_secs(3 * 60 * 60);

#[cfg(test)]
mod tests;
