//! One component of a calendar event: `*`, or a list of numbers, ranges and repetitions.

use crate::calendar::civil::{MINUTE as MINUTE_LENGTH, SECOND as SECOND_LENGTH};
use crate::calendar::civil::{YEAR_MAX, YEAR_MIN};
use crate::calendar::error::{ExpressionError, Field};

/// The largest number of items in a list, as in systemd.
const ITEMS_MAX: usize = 240;
/// The shortest repetition of seconds, in microseconds. systemd allows one microsecond.
const STEP_MIN: i64 = 1_000;
/// The digits of a fraction that count. One more rounds them.
const FRACTION_DIGITS: usize = 6;

/// Numbers from `first` to `last`, each `step` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: i64,
    pub(super) last: i64,
    /// At least 1.
    pub(super) step: i64,
}

impl Span {
    /// Returns all numbers.
    pub(super) fn numbers(self) -> impl Iterator<Item = i64> {
        let step = usize::try_from(self.step).unwrap_or(1);
        (self.first..=self.last).step_by(step.max(1))
    }
}

/// What is allowed in a component. Seconds are in microseconds.
pub(super) struct Kind {
    field: Field,
    min: i64,
    max: i64,
    /// One unit of the numbers that are written.
    unit: i64,
    from_end: bool,
    allowed: &'static str,
}

const fn kind(field: Field, min: i64, max: i64, allowed: &'static str) -> Kind {
    Kind {
        field,
        min,
        max,
        unit: 1,
        from_end: false,
        allowed,
    }
}

pub(super) const YEAR: Kind = kind(
    Field::Year,
    YEAR_MIN as i64,
    YEAR_MAX as i64,
    "allowed are `*` and 1970 to 2199, as `2030`, `2030..2035`, `2030/2`, or a list of these",
);
pub(super) const MONTH: Kind = kind(
    Field::Month,
    1,
    12,
    "allowed are `*` and 1 to 12, as `3`, `1..6`, `1/3`, or a list of these",
);
pub(super) const DAY: Kind = kind(
    Field::DayOfMonth,
    1,
    31,
    "allowed are `*` and 1 to 31, as `1`, `1..7`, `1/2`, or a list of these",
);
pub(super) const DAY_FROM_END: Kind = Kind {
    from_end: true,
    ..kind(
        Field::DayOfMonth,
        1,
        28,
        "allowed after `~` are 1 (the last day) to 28, as `1`, `1..7`, `7/1`, or a list of these",
    )
};
pub(super) const HOUR: Kind = kind(
    Field::Hour,
    0,
    23,
    "allowed are `*` and 0 to 23, as `2`, `9..17`, `0/6`, or a list of these",
);
pub(super) const MINUTE: Kind = kind(
    Field::Minute,
    0,
    59,
    "allowed are `*` and 0 to 59, as `30`, `0..29`, `0/15`, or a list of these",
);
pub(super) const SECOND: Kind = Kind {
    unit: SECOND_LENGTH,
    ..kind(
        Field::Second,
        0,
        MINUTE_LENGTH - 1,
        "allowed are `*` and 0 to less than 60, as `0`, `0..29`, `0/10`, `0.5`, or a list of these",
    )
};

impl Kind {
    /// Reads a component. None is `*`.
    pub(super) fn read(&self, text: &str) -> Result<Option<Vec<Span>>, ExpressionError> {
        if text == "*" {
            return Ok(None);
        }
        if text.starts_with("*/") {
            return Err(self.refused(text, "write the first value instead of `*`, as `0/15`"));
        }
        if text.split(',').count() > ITEMS_MAX {
            let allowed = format!("a list has at most {ITEMS_MAX} items");
            return Err(ExpressionError::field(self.field, text, allowed));
        }
        let spans = text.split(',').map(|item| self.item(item));
        spans.collect::<Result<Vec<_>, _>>().map(Some)
    }

    fn item(&self, item: &str) -> Result<Span, ExpressionError> {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(self.step(step, item)?)),
            None => (item, None),
        };
        if let Some((first, last)) = range.split_once("..") {
            let (first, last) = (self.value(first, item)?, self.value(last, item)?);
            let step = step.unwrap_or(self.unit);
            if first > last {
                let reason = "the range ends before it begins: write two ranges, with a comma";
                return Err(self.refused(item, reason));
            }
            return Ok(Span { first, last, step });
        }
        let value = self.value(range, item)?;
        let Some(step) = step else {
            let (first, last, step) = (value, value, self.unit);
            return Ok(Span { first, last, step });
        };
        // A repetition goes forward in time: from the end of a month that is towards 1.
        let (first, last) = if self.from_end {
            ((value - self.min) % step + self.min, value)
        } else {
            (value, self.max)
        };
        if first + step > last {
            let reason = "the repetition is too long: the second value is out of range";
            return Err(self.refused(item, reason));
        }
        Ok(Span { first, last, step })
    }

    fn step(&self, text: &str, item: &str) -> Result<i64, ExpressionError> {
        let step = self.number(text).filter(|step| *step > 0);
        let step = step.filter(|step| *step <= self.max - self.min);
        let step = step.ok_or_else(|| {
            let reason = "the repetition must be a number from 1 on that fits into the range";
            self.refused(item, reason)
        })?;
        if self.unit > 1 && step < STEP_MIN {
            let reason = "the shortest repetition is 0.001 seconds";
            return Err(self.refused(item, reason));
        }
        Ok(step)
    }

    fn value(&self, text: &str, item: &str) -> Result<i64, ExpressionError> {
        let value = self.number(text).map(|value| match (self.field, value) {
            (Field::Year, 0..=69) => value + 2_000,
            (Field::Year, 70..=99) => value + 1_900,
            _ => value,
        });
        let value = value.filter(|value| (self.min..=self.max).contains(value));
        value.ok_or_else(|| self.refused(item, self.allowed))
    }

    /// Reads a number of digits, with a fraction if the unit is larger than 1.
    fn number(&self, text: &str) -> Option<i64> {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        let (whole, fraction) = match text.split_once('.') {
            Some((whole, fraction)) if self.unit > 1 => (whole, fraction),
            Some(_) => return None,
            None => (text, "0"),
        };
        if !digits(whole) || !digits(fraction) {
            return None;
        }
        let whole = whole.parse::<u32>().ok()?;
        // Parsed as digits: 0.5 is 500000 microseconds, and the seventh digit rounds.
        let mut scaled = 0;
        for digit in fraction
            .bytes()
            .chain(std::iter::repeat(b'0'))
            .take(FRACTION_DIGITS)
        {
            scaled = scaled * 10 + i64::from(digit - b'0');
        }
        let up = fraction
            .as_bytes()
            .get(FRACTION_DIGITS)
            .is_some_and(|digit| *digit >= b'5');
        Some(i64::from(whole) * self.unit + scaled + i64::from(up))
    }

    fn refused(&self, item: &str, reason: &'static str) -> ExpressionError {
        ExpressionError::field(self.field, item, reason)
    }
}
