//! What an expression means once it is read: sets of dates and times of day, and the search for
//! the next civil time in them. Zones are not known here.

use super::civil::{
    DAY, Date, HOUR, MINUTE, SECOND, YEAR_MAX, YEAR_MIN, date_of, days_to, month_length, weekday,
};

/// How an expression treats the days on which the clock on the wall is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The minute or the hour begins with `*`: elapsed time counts. It is due at each instant at
    /// which the local clock shows a matching time: twice in an overlap, never in a gap.
    Elapsed,
    /// It is due once per civil time: at the first instant at which the local clock shows it or
    /// a later time. That is the first instant after a gap, and the first pass of an overlap.
    Fixed,
}

/// The civil times of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) dates: Dates,
    pub(super) times: Times,
    pub(super) class: Class,
}

/// How the days of the month and of the week are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Combined {
    /// A date must have both.
    Both,
    /// A date must have at least one of them.
    Either,
}

/// A set of dates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dates {
    pub(super) years: Years,
    /// Bit 1 is January.
    pub(super) months: u16,
    /// Bit 1 is the first day of the month, or the last one if `from_end`.
    pub(super) days: u32,
    pub(super) from_end: bool,
    /// Bit 0 is Monday.
    pub(super) weekdays: u8,
    pub(super) combined: Combined,
}

/// All months, weekdays, and days of a month.
pub(super) const MONTHS: u16 = 0b1_1111_1111_1110;
pub(super) const WEEKDAYS: u8 = 0b111_1111;
pub(super) const DAYS: u32 = u32::MAX - 1;

impl Dates {
    /// All dates.
    pub(super) const ALL: Self = Self {
        years: Years::ALL,
        months: MONTHS,
        days: DAYS,
        from_end: false,
        weekdays: WEEKDAYS,
        combined: Combined::Both,
    };

    /// Returns the first day at or after `day`, both in days since 1970-01-01. Looks at each month
    /// up to the last year at most once: 2,760 at most.
    fn next(&self, day: i64) -> Option<i64> {
        let start = date_of(day.max(0));
        let mut from = start.day;
        let mut month = start.month;
        for year in start.year..=YEAR_MAX {
            if self.years.contains(year) {
                while month <= 12 {
                    if let Some(day) = self.next_in_month(year, month, from) {
                        return Some(days_to(Date { year, month, day }));
                    }
                    (month, from) = (month + 1, 1);
                }
            }
            (month, from) = (1, 1);
        }
        None
    }

    fn next_in_month(&self, year: i32, month: u32, from: u32) -> Option<u32> {
        if self.months & (1 << month) == 0 {
            return None;
        }
        let length = month_length(year, month);
        let all = (DAYS << (31 - length)) >> (31 - length);
        let by_day = if self.from_end {
            // Bit k counts from the end, so that it is day `length + 1 - k`.
            u64::from(self.days.reverse_bits()) << 1 >> (31 - length)
        } else {
            self.days.into()
        };
        let first = weekday(days_to(Date {
            year,
            month,
            day: 1,
        }));
        // Bit 0 becomes the weekday of the first day of the month, and the week is repeated.
        let week = u64::from(self.weekdays);
        let weeks = week | week << 7 | week << 14 | week << 21 | week << 28 | week << 35;
        let by_week = weeks >> first << 1;
        let days = match self.combined {
            Combined::Both => by_day & by_week,
            Combined::Either => by_day | by_week,
        };
        lowest(days & u64::from(all), from)
    }
}

/// A set of years from [`YEAR_MIN`] to [`YEAR_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Years([u64; 4]);

impl Years {
    pub(super) const ALL: Self = Self([u64::MAX; 4]);
    pub(super) const NONE: Self = Self([0; 4]);

    pub(super) fn insert(&mut self, year: i32) {
        if let Some((word, bit)) = Self::place(year) {
            self.0[word] |= 1 << bit;
        }
    }

    fn contains(self, year: i32) -> bool {
        Self::place(year).is_some_and(|(word, bit)| self.0[word] & (1 << bit) != 0)
    }

    fn place(year: i32) -> Option<(usize, usize)> {
        let at = usize::try_from(year - YEAR_MIN).ok()?;
        (year <= YEAR_MAX).then_some((at / 64, at % 64))
    }
}

/// A set of times of day. No part of it is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Times {
    /// Bit 0 is midnight.
    pub(super) hours: u32,
    pub(super) minutes: u64,
    pub(super) seconds: Seconds,
}

/// A set of times within a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seconds {
    /// Whole seconds; bit 0 is the first.
    Whole(u64),
    /// Times with fractions.
    Parts(Vec<Part>),
}

/// A time within a minute that is repeated, all in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) first: i64,
    /// The last possible time, less than a minute.
    pub(super) last: i64,
    /// At least 1.
    pub(super) step: i64,
}

impl Seconds {
    fn next(&self, from: i64) -> Option<i64> {
        match self {
            Self::Whole(seconds) => {
                let second = u32::try_from((from + SECOND - 1) / SECOND).ok()?;
                lowest(*seconds, second).map(|second| i64::from(second) * SECOND)
            }
            Self::Parts(parts) => parts.iter().filter_map(|part| part.next(from)).min(),
        }
    }

    /// Whether there is more than one in a minute.
    pub(super) fn several(&self) -> bool {
        let first = self.next(0).unwrap_or(0);
        self.next(first + 1).is_some()
    }
}

impl Part {
    fn next(self, from: i64) -> Option<i64> {
        let steps = (from - self.first + self.step - 1) / self.step;
        let time = self.first + steps.max(0) * self.step;
        (time <= self.last).then_some(time)
    }
}

impl Times {
    /// Returns the first time of day at or after `from`, in microseconds since midnight.
    fn next(&self, from: i64) -> Option<i64> {
        let (hour, minute) = (part(from, HOUR, 24)?, part(from, MINUTE, 60)?);
        let at = |hour: u32, minute: u32, rest: i64| {
            i64::from(hour) * HOUR + i64::from(minute) * MINUTE + rest
        };
        if lowest(self.hours.into(), hour) == Some(hour) {
            if lowest(self.minutes, minute) == Some(minute)
                && let Some(rest) = self.seconds.next(from % MINUTE)
            {
                return Some(at(hour, minute, rest));
            }
            if let Some(minute) = lowest(self.minutes, minute + 1) {
                return Some(at(hour, minute, self.seconds.next(0)?));
            }
        }
        let hour = lowest(self.hours.into(), hour + 1)?;
        Some(at(hour, lowest(self.minutes, 0)?, self.seconds.next(0)?))
    }
}

fn part(time: i64, unit: i64, of: i64) -> Option<u32> {
    u32::try_from(time / unit % of).ok()
}

/// Returns the lowest bit that is set, from the bit `from` on.
fn lowest(bits: u64, from: u32) -> Option<u32> {
    let bits = bits.checked_shr(from)?;
    (bits != 0).then(|| bits.trailing_zeros() + from)
}

impl Pattern {
    /// Returns the first matching civil time at or after `from`, up to the end of [`YEAR_MAX`].
    pub(super) fn next(&self, from: i64) -> Option<i64> {
        let from = from.max(0);
        let (day, time) = (from / DAY, from % DAY);
        let next = self.dates.next(day)?;
        if next == day
            && let Some(time) = self.times.next(time)
        {
            return Some(day * DAY + time);
        }
        let next = if next == day {
            self.dates.next(day + 1)?
        } else {
            next
        };
        Some(next * DAY + self.times.next(0)?)
    }
}

#[cfg(test)]
mod tests;
