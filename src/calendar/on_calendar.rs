//! Calendar events of systemd.time(7), the values of `OnCalendar=`.

mod component;

use std::str::FromStr;

use self::component::{DAY, DAY_FROM_END, HOUR, MINUTE, MONTH, SECOND, Span, YEAR};
use super::civil::{self, YEAR_MAX, date_of};
use super::error::{ExpressionError, Field, excerpt};
use super::pattern::{
    Class, Combined, DAYS, Dates, MONTHS, Part, Pattern, Seconds, Times, WEEKDAYS, Years,
};

/// The longest calendar event, in bytes.
pub const ON_CALENDAR_MAX: usize = 1_024;

/// A calendar event of systemd: `[WEEKDAYS] [[YEAR-]MONTH-DAY] [HOUR:MINUTE[:SECOND]] [ZONE]`.
///
/// A component is `*` or a list of `N`, `N..M`, `N/STEP` and `N..M/STEP`; weekdays are names and
/// ranges of them. `~` before the day counts it from the end of the month. A second may have a
/// fraction, of which six digits count. Without a date it is each day, without a time 00:00:00.
/// A word such as `daily` stands for a whole expression, and `@N`, after which no zone but UTC may
/// stand, for the instant N seconds after 1970 began. Years are 1970 to 2199, and two digits of one are 1970 to 2069.
///
/// If the minute or the hour begins with `*`, elapsed time counts when the clock is changed, else
/// it is due once per civil time: see [`Class`]. systemd itself skips gaps and repeated hours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnCalendar {
    text: String,
    zone: Option<String>,
    pattern: Pattern,
}

impl OnCalendar {
    /// Returns the text from which it was read, without space around it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the name of the zone at the end of the expression, as it was written.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    pub(super) const fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

/// The words, and what they stand for.
const WORDS: [(&str, &str); 12] = [
    ("minutely", "*:*:00"),
    ("hourly", "*:00:00"),
    ("daily", "00:00:00"),
    ("weekly", "Mon 00:00:00"),
    ("monthly", "*-01 00:00:00"),
    ("quarterly", "01,04,07,10-01 00:00:00"),
    ("semiannually", "01,07-01 00:00:00"),
    ("semi-annually", "01,07-01 00:00:00"),
    ("biannually", "01,07-01 00:00:00"),
    ("bi-annually", "01,07-01 00:00:00"),
    ("yearly", "01-01 00:00:00"),
    ("annually", "01-01 00:00:00"),
];

const WEEKDAY_NAMES: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];
/// The zone of an instant.
const UTC: &str = "UTC";
/// The length of the short names.
const SHORT: usize = 3;

impl FromStr for OnCalendar {
    type Err = ExpressionError;

    /// Reads an expression. One that never comes, such as 30 February, is refused. The name of a
    /// zone is not looked up.
    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        if text.len() > ON_CALENDAR_MAX {
            let (bytes, max) = (text.len(), ON_CALENDAR_MAX);
            return Err(ExpressionError::TooLong { bytes, max });
        }
        let text = text.trim_ascii();
        let (pattern, zone) = read(text)?;
        if pattern.next(0).is_none() {
            let text = excerpt(text);
            return Err(ExpressionError::NeverComes { text });
        }
        Ok(Self {
            text: text.to_owned(),
            zone: zone.map(str::to_owned),
            pattern,
        })
    }
}

/// Reads an expression, and the name of its zone.
fn read(text: &str) -> Result<(Pattern, Option<&str>), ExpressionError> {
    let (expression, zone) = split_zone(text);
    let Some(seconds) = expression.strip_prefix('@') else {
        return Ok((pattern(expression)?, zone));
    };
    if let Some(zone) = zone.filter(|zone| !zone.eq_ignore_ascii_case(UTC)) {
        let allowed = "the seconds after @ are the same in each zone: no zone but UTC may follow";
        return Err(ExpressionError::field(Field::Time, zone, allowed));
    }
    Ok((instant(seconds)?, Some(UTC)))
}

/// Splits the name of a zone from the end: a last word that begins with a letter, and is not the
/// only one.
fn split_zone(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once([' ', '\t']) {
        Some((rest, zone)) if zone.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            (rest.trim_ascii_end(), Some(zone))
        }
        _ => (text, None),
    }
}

fn pattern(text: &str) -> Result<Pattern, ExpressionError> {
    let mut words = WORDS.iter();
    let meant = words.find(|(word, _)| word.eq_ignore_ascii_case(text));
    let text = meant.map_or(text, |(_, meant)| meant);
    let mut rest = text.split_ascii_whitespace().peekable();
    let Some(first) = rest.peek() else {
        let example = "Mon..Fri *-*-* 02:30";
        return Err(ExpressionError::Empty { example });
    };
    let mut weekdays = WEEKDAYS;
    if first.starts_with(|c: char| c.is_alphabetic()) {
        weekdays = read_weekdays(first)?;
        rest.next();
    }
    let mut date = "*-*";
    let mut time = "00:00:00";
    if let Some(word) = rest.next_if(|word| !word.contains(':')) {
        date = word;
    }
    if let Some(word) = rest.next() {
        time = word;
    }
    if let Some(word) = rest.next() {
        let allowed = "nothing but the name of a zone may follow the time";
        return Err(ExpressionError::field(Field::Time, word, allowed));
    }
    let (times, class) = read_time(time)?;
    Ok(Pattern {
        dates: read_date(date, weekdays)?,
        times,
        class,
    })
}

fn read_weekdays(text: &str) -> Result<u8, ExpressionError> {
    let mut bits = 0;
    // systemd allows a comma at the end.
    for item in text.strip_suffix(',').unwrap_or(text).split(',') {
        let range = item.split_once("..").or_else(|| item.split_once('-'));
        let (first, last) = match range {
            Some((first, last)) => (read_weekday(first, text)?, read_weekday(last, text)?),
            None => (read_weekday(item, text)?, read_weekday(item, text)?),
        };
        if first > last {
            let allowed = "a range of weekdays must not go beyond Sunday: write two, with a comma";
            return Err(ExpressionError::field(Field::DayOfWeek, item, allowed));
        }
        bits |= (first..=last).fold(0, |bits, day| bits | 1 << day);
    }
    Ok(bits)
}

fn read_weekday(name: &str, text: &str) -> Result<usize, ExpressionError> {
    let found = WEEKDAY_NAMES.iter().position(|known| {
        name.eq_ignore_ascii_case(known) || name.eq_ignore_ascii_case(&known[..SHORT])
    });
    found.ok_or_else(|| {
        if text.bytes().any(|byte| matches!(byte, b',' | b'.')) {
            let allowed = "allowed are Mon to Sun and Monday to Sunday, ranges as `Mon..Fri`, and \
                           lists of these";
            return ExpressionError::field(Field::DayOfWeek, name, allowed);
        }
        let known = WORDS.map(|(word, _)| word).join(", ");
        ExpressionError::Word {
            word: excerpt(text),
            known: format!("{known}, and the weekdays as `Mon..Fri` or `Mon,Wed`").into(),
        }
    })
}

fn read_date(text: &str, weekdays: u8) -> Result<Dates, ExpressionError> {
    let refused = || {
        let allowed = "allowed is YEAR-MONTH-DAY or MONTH-DAY, or `~` before DAY to count from the \
                       end of the month; a time has a colon";
        ExpressionError::field(Field::Date, text, allowed)
    };
    let (rest, day) = text.rsplit_once(['-', '~']).ok_or_else(refused)?;
    let (year, month) = rest.split_once('-').unwrap_or(("*", rest));
    if month.contains(['-', '~']) {
        return Err(refused());
    }
    let from_end = text[rest.len()..].starts_with('~') && day != "*";
    let mut dates = Dates {
        from_end,
        weekdays,
        combined: Combined::Both,
        ..Dates::ALL
    };
    if let Some(spans) = YEAR.read(year)? {
        dates.years = Years::NONE;
        for year in spans.into_iter().flat_map(Span::numbers) {
            dates.years.insert(i32::try_from(year).unwrap_or(0));
        }
    }
    dates.months = bits(MONTH.read(month)?).map_or(MONTHS, low);
    let kind = if from_end { &DAY_FROM_END } else { &DAY };
    dates.days = bits(kind.read(day)?).map_or(DAYS, low);
    Ok(dates)
}

fn read_time(text: &str) -> Result<(Times, Class), ExpressionError> {
    let mut parts = text.split(':');
    let (Some(hour), Some(minute), second, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        let allowed = "allowed is HOUR:MINUTE or HOUR:MINUTE:SECOND";
        return Err(ExpressionError::field(Field::Time, text, allowed));
    };
    let times = Times {
        hours: bits(HOUR.read(hour)?).map_or((1 << 24) - 1, low),
        minutes: bits(MINUTE.read(minute)?).unwrap_or((1 << 60) - 1),
        seconds: match SECOND.read(second.unwrap_or("0"))? {
            Some(spans) => seconds(spans),
            None => Seconds::Whole((1 << 60) - 1),
        },
    };
    let wild = hour.starts_with('*') || minute.starts_with('*');
    let class = if wild { Class::Elapsed } else { Class::Fixed };
    Ok((times, class))
}

fn seconds(spans: Vec<Span>) -> Seconds {
    let whole = |time: i64| time % civil::SECOND == 0;
    if spans
        .iter()
        .all(|span| whole(span.first) && whole(span.step))
    {
        let times = spans.into_iter().flat_map(Span::numbers);
        return Seconds::Whole(times.fold(0, |bits, time| bits | 1 << (time / civil::SECOND)));
    }
    let part = |span: Span| Part {
        first: span.first,
        last: span.last,
        step: span.step,
    };
    Seconds::Parts(spans.into_iter().map(part).collect())
}

/// Returns the set of all numbers of the spans.
fn bits(spans: Option<Vec<Span>>) -> Option<u64> {
    let numbers = spans?.into_iter().flat_map(Span::numbers);
    Some(numbers.fold(0, |bits, number| bits | 1 << number))
}

/// Narrows a set of bits to the type that holds the numbers of its field.
fn low<T: TryFrom<u64> + Default>(bits: u64) -> T {
    T::try_from(bits).unwrap_or_default()
}

/// Reads the digits of `@N`.
fn instant(digits: &str) -> Result<Pattern, ExpressionError> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds: Option<i64> = digits.parse().ok().filter(|_| plain);
    let days = seconds.map(|seconds| seconds / 86_400);
    // No date of a larger number of days is looked at.
    let date = days.filter(|days| *days < 100_000).map(date_of);
    let (Some(seconds), Some(date)) = (seconds, date.filter(|date| date.year <= YEAR_MAX)) else {
        let allowed =
            format!("after @ a number of seconds is allowed, until the end of {YEAR_MAX}");
        return Err(ExpressionError::field(Field::Time, digits, allowed));
    };
    let mut years = Years::NONE;
    years.insert(date.year);
    Ok(Pattern {
        dates: Dates {
            years,
            months: 1 << date.month,
            days: 1 << date.day,
            ..Dates::ALL
        },
        times: Times {
            hours: 1 << (seconds / 3_600 % 24),
            minutes: 1 << (seconds / 60 % 60),
            seconds: Seconds::Whole(1 << (seconds % 60)),
        },
        class: Class::Fixed,
    })
}

#[cfg(test)]
mod tests;
