//! Expressions of cron: five fields, or six with the second first, or a word such as `@daily`.

use std::str::FromStr;

use super::error::{ExpressionError, Field, excerpt};
use super::pattern::{Class, Combined, Dates, Pattern, Seconds, Times, Years};

/// The longest cron expression, in bytes. All six fields as full lists have 528.
pub const CRON_MAX: usize = 1_024;

/// An expression of cron.
///
/// The fields are minute (0-59), hour (0-23), day of month (1-31), month (1-12 or JAN-DEC) and day
/// of week (0-7 or SUN-SAT, 0 and 7 are Sunday), as in crontab(5) of Vixie's cron; a sixth field
/// before them is the second (0-59), which is 0 otherwise. A field is a list of `*`, `N`, `N-M`,
/// `*/STEP` and `N-M/STEP`.
///
/// Days are combined as Vixie's cron does: if the day of month or the day of week begins with `*`
/// (`*/2` too), a date must match both, else it must match at least one.
///
/// If the minute or the hour begins with `*`, elapsed time counts when the clock is changed, else
/// it is due once per civil time: see [`Class`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    pattern: Pattern,
}

impl Cron {
    /// Returns the text from which it was read, without space around it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) const fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

/// The words, and what they stand for.
const WORDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

impl FromStr for Cron {
    type Err = ExpressionError;

    /// Reads an expression. One that never comes, such as 30 February, is refused.
    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        if text.len() > CRON_MAX {
            let bytes = text.len();
            return Err(ExpressionError::TooLong {
                bytes,
                max: CRON_MAX,
            });
        }
        let text = text.trim_ascii();
        let pattern = pattern(if text.starts_with('@') {
            meant(text)?
        } else {
            text
        })?;
        if pattern.next(0).is_none() {
            let text = excerpt(text);
            return Err(ExpressionError::NeverComes { text });
        }
        let text = text.to_owned();
        Ok(Self { text, pattern })
    }
}

fn meant(word: &str) -> Result<&'static str, ExpressionError> {
    if word.eq_ignore_ascii_case("@reboot") {
        return Err(ExpressionError::Reboot);
    }
    let known = WORDS
        .iter()
        .find(|(known, _)| word.eq_ignore_ascii_case(known));
    let known = known.map(|(_, meant)| *meant);
    known.ok_or_else(|| ExpressionError::Word {
        word: excerpt(word),
        known: WORDS.map(|(known, _)| known).join(", ").into(),
    })
}

fn pattern(text: &str) -> Result<Pattern, ExpressionError> {
    let mut fields = text.split_ascii_whitespace();
    let found = fields.clone().count();
    let seconds = match found {
        0 => {
            let example = "30 2 * * *";
            return Err(ExpressionError::Empty { example });
        }
        5 => 1,
        6 => SECOND.read(fields.next().unwrap_or_default())?,
        _ => return Err(ExpressionError::FieldCount { found }),
    };
    let mut next = || fields.next().unwrap_or_default();
    let (minute, hour, day, month, week) = (next(), next(), next(), next(), next());
    let wild = |field: &str| field.starts_with('*');
    let days = DAY.read(day)?;
    let months = MONTH.read(month)?;
    let week_days = WEEK.read(week)?;
    Ok(Pattern {
        dates: Dates {
            years: Years::ALL,
            months: u16::try_from(months).unwrap_or(0),
            days: u32::try_from(days).unwrap_or(0),
            from_end: false,
            // From Sunday as 0 and 7 to Monday as 0.
            weekdays: u8::try_from((week_days >> 1 | week_days << 6) & 0b111_1111).unwrap_or(0),
            combined: if wild(day) || wild(week) {
                Combined::Both
            } else {
                Combined::Either
            },
        },
        times: Times {
            hours: u32::try_from(HOUR.read(hour)?).unwrap_or(0),
            minutes: MINUTE.read(minute)?,
            seconds: Seconds::Whole(seconds),
        },
        class: if wild(minute) || wild(hour) {
            Class::Elapsed
        } else {
            Class::Fixed
        },
    })
}

/// What is allowed in a field.
struct Kind {
    field: Field,
    min: u32,
    max: u32,
    /// The names of the numbers from `min` on.
    names: &'static [&'static str],
    allowed: &'static str,
}

const SECOND: Kind = Kind {
    field: Field::Second,
    min: 0,
    max: 59,
    names: &[],
    allowed: "allowed are 0 to 59, as `0`, `0-30`, `*/10`, `0-30/10`, or a list of these",
};
const MINUTE: Kind = Kind {
    field: Field::Minute,
    min: 0,
    max: 59,
    names: &[],
    allowed: "allowed are 0 to 59, as `0`, `0-30`, `*/15`, `0-30/10`, or a list of these",
};
const HOUR: Kind = Kind {
    field: Field::Hour,
    min: 0,
    max: 23,
    names: &[],
    allowed: "allowed are 0 to 23, as `2`, `9-17`, `*/6`, `8-18/2`, or a list of these",
};
const DAY: Kind = Kind {
    field: Field::DayOfMonth,
    min: 1,
    max: 31,
    names: &[],
    allowed: "allowed are 1 to 31, as `1`, `1-7`, `*/2`, `1-15/3`, or a list of these",
};
const MONTH: Kind = Kind {
    field: Field::Month,
    min: 1,
    max: 12,
    names: &[
        "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
    ],
    allowed: "allowed are 1 to 12 and JAN to DEC, as `1`, `JAN-MAR`, `*/3`, or a list of these",
};
const WEEK: Kind = Kind {
    field: Field::DayOfWeek,
    min: 0,
    max: 7,
    names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
    allowed: "allowed are 0 to 7 (0 and 7 are Sunday) and SUN to SAT, as `1`, `MON-FRI`, `*/2`, \
              or a list of these",
};

impl Kind {
    /// Reads a field to a set of bits.
    fn read(&self, text: &str) -> Result<u64, ExpressionError> {
        let mut bits = 0;
        for item in text.split(',') {
            bits |= self.item(item)?;
        }
        Ok(bits)
    }

    fn item(&self, item: &str) -> Result<u64, ExpressionError> {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (item, None),
        };
        let (first, last) = if range == "*" {
            (self.min, self.max)
        } else if let Some((first, last)) = range.split_once('-') {
            let first = self.number(first, item)?;
            (first, self.end(last, first, item)?)
        } else {
            let number = self.number(range, item)?;
            if step.is_some() {
                let reason = "a step needs a range: write `*/STEP` or `FIRST-LAST/STEP`";
                return Err(self.refused(item, reason));
            }
            (number, number)
        };
        if first > last {
            let reason = "the range ends before it begins: write two ranges, with a comma";
            return Err(self.refused(item, reason));
        }
        let step = step.map_or(Ok(1), |step| self.step(step, item))?;
        let numbers = (first..=last).step_by(step);
        Ok(numbers.fold(0, |bits, number| bits | 1 << number))
    }

    /// Reads the last number of a range. `SUN` is 7 there, unless the range begins with it.
    fn end(&self, last: &str, first: u32, item: &str) -> Result<u32, ExpressionError> {
        let number = self.number(last, item)?;
        let sunday = self.max == 7 && number == 0 && first > 0 && last != "0";
        Ok(if sunday { self.max } else { number })
    }

    fn number(&self, text: &str, item: &str) -> Result<u32, ExpressionError> {
        let mut names = self.names.iter();
        if let Some(at) = names.position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(self.min + u32::try_from(at).unwrap_or(0));
        }
        let number = digits(text).filter(|number| (self.min..=self.max).contains(number));
        number.ok_or_else(|| self.refused(item, self.allowed))
    }

    fn step(&self, text: &str, item: &str) -> Result<usize, ExpressionError> {
        let step = digits(text).filter(|step| (1..=self.max).contains(step));
        let step = step.and_then(|step| usize::try_from(step).ok());
        step.ok_or_else(|| {
            let allowed = format!("the step must be 1 to {}", self.max);
            ExpressionError::field(self.field, item, allowed)
        })
    }

    fn refused(&self, item: &str, reason: &'static str) -> ExpressionError {
        ExpressionError::field(self.field, item, reason)
    }
}

/// Reads a number of digits only, without a sign.
fn digits(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests;
