//! A single time, as people write it: `02:00`, `tomorrow 02:00`, `in 5m`.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time, Weekday};

use super::civil::YEAR_MAX;
use super::error::{Field, TimeError, excerpt};
use super::instants;
use super::zones::Zone;

/// The longest text of a time, in bytes.
pub const TIME_MAX: usize = 128;

/// A time that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// When it is.
    pub instant: Timestamp,
    /// What the local clock shows then.
    pub local: DateTime,
    /// Whether it is the time that was asked for.
    pub meaning: Meaning,
}

/// How a local time became an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It is the only instant of that time.
    Exact,
    /// The local clock does not show the time that was asked for: it is set forward over it. The
    /// instant is the first one after the gap.
    AfterGap {
        /// The time that was asked for.
        asked: DateTime,
    },
    /// The local clock shows the time twice: it is set back in between. The instant is the first
    /// one.
    FirstPass {
        /// The other one.
        second: Timestamp,
    },
}

/// Reads a time after `now`.
///
/// Allowed are a time of day, the next one, as `02:00` or `02:00:30`; a date and time, as
/// `2026-12-01 02:00` or `2026-12-01T02:00`; `today`, `tomorrow` or a weekday before a time of day;
/// a time with an offset, as `2026-12-01T02:00:00+02:00` or with `Z`; a duration from now, as `+90s`,
/// `in 5m` or `in 1h 30m`, with the units ms, s, m, h, d (24 hours) and w. A date or day alone is
/// its midnight. A weekday is the next one on which the time has not passed.
///
/// # Errors
/// If the text is none of these, or the time is not after `now`, or after [`YEAR_MAX`].
pub fn read_time(text: &str, now: Timestamp, zone: &Zone) -> Result<At, TimeError> {
    if text.len() > TIME_MAX {
        return Err(TimeError::TooLong {
            bytes: text.len(),
            max: TIME_MAX,
        });
    }
    let reader = Reader {
        text: text.trim_ascii(),
        now,
        zone,
    };
    let at = reader.read()?;
    if at.instant <= now {
        return Err(TimeError::Past {
            text: excerpt(reader.text),
            instant: at.instant,
            now,
        });
    }
    if i32::from(at.local.year()) > YEAR_MAX {
        return Err(reader.too_far());
    }
    Ok(at)
}

struct Reader<'a> {
    text: &'a str,
    now: Timestamp,
    zone: &'a Zone,
}

impl Reader<'_> {
    fn read(&self) -> Result<At, TimeError> {
        if let Some(duration) = self.text.strip_prefix('+') {
            return self.later(duration);
        }
        let (first, rest) = match self.text.split_once([' ', '\t']) {
            Some((first, rest)) => (first, Some(rest.trim_ascii_start())),
            None => (self.text, None),
        };
        if first.eq_ignore_ascii_case("in") {
            return self.later(rest.unwrap_or(""));
        }
        let today = self.zone.time_zone().to_datetime(self.now).date();
        if first.eq_ignore_ascii_case("today") {
            return self.on(today, self.time_or_midnight(rest)?);
        }
        if first.eq_ignore_ascii_case("tomorrow") {
            let date = today.tomorrow().map_err(|_| self.too_far())?;
            return self.on(date, self.time_or_midnight(rest)?);
        }
        if let Some(weekday) = weekday(first) {
            let ahead = today.weekday().until(weekday);
            let date = today.checked_add(jiff::Span::new().days(ahead));
            let date = date.map_err(|_| self.too_far())?;
            return self.next(date, 7, self.time_or_midnight(rest)?);
        }
        if first.contains('-') && !first.starts_with('-') {
            return self.dated(first, rest);
        }
        match rest {
            None => self.next(today, 1, self.time(first)?),
            Some(_) => Err(self.refused(Field::Date, first, DATES)),
        }
    }

    /// Reads a date and time.
    fn dated(&self, first: &str, rest: Option<&str>) -> Result<At, TimeError> {
        let date_end = first.find(['T', 't']);
        let (date, time) = match (date_end, rest) {
            (Some(end), None) => (&first[..end], Some(&first[end + 1..])),
            (_, rest) => (first, rest),
        };
        let parsed = strict(date, "dddd-dd-dd").and_then(|date| date.parse::<Date>().ok());
        let date = parsed.ok_or_else(|| self.refused(Field::Date, date, DATES))?;
        let Some(time) = time else {
            return self.on(date, Time::midnight());
        };
        let offset = time.find(['Z', 'z', '+', '-']);
        let Some(offset) = offset else {
            return self.on(date, self.time(time)?);
        };
        let time_of_day = self.time(&time[..offset])?;
        let offset = &time[offset..];
        let forms = ["Z", "z", "+dd:dd", "-dd:dd"];
        let known = forms.iter().any(|form| strict(offset, form).is_some());
        let instant = format!("{date}T{time_of_day}{offset}").parse::<Timestamp>();
        let instant = instant.ok().filter(|_| known).ok_or_else(|| {
            let allowed = "allowed offsets are `Z`, and hours and minutes as `+02:00`";
            self.refused(Field::Time, offset, allowed)
        })?;
        Ok(self.exact(instant))
    }

    fn later(&self, text: &str) -> Result<At, TimeError> {
        let duration = duration(text).ok_or_else(|| {
            let allowed =
                "allowed are numbers with the units ms, s, m, h, d and w, as `90s` or `1h 30m`";
            self.refused(Field::Duration, text, allowed)
        })?;
        let instant = self.now.checked_add(duration);
        Ok(self.exact(instant.map_err(|_| self.too_far())?))
    }

    fn exact(&self, instant: Timestamp) -> At {
        At {
            instant,
            local: self.zone.time_zone().to_datetime(instant),
            meaning: Meaning::Exact,
        }
    }

    fn time_or_midnight(&self, text: Option<&str>) -> Result<Time, TimeError> {
        text.map_or(Ok(Time::midnight()), |text| self.time(text))
    }

    fn time(&self, text: &str) -> Result<Time, TimeError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let short = text.len() == whole.len()
            && (strict(whole, "dd:dd").is_some() || strict(whole, "d:dd").is_some());
        let long = strict(whole, "dd:dd:dd").is_some() || strict(whole, "d:dd:dd").is_some();
        let plain =
            (1..=9).contains(&fraction.len()) && fraction.bytes().all(|byte| byte.is_ascii_digit());
        // The library reads a second of 60 as 59.
        let leap = long && whole.ends_with(":60");
        let padded = if whole.find(':') == Some(1) {
            format!("0{text}")
        } else {
            text.to_owned()
        };
        let time = padded.parse().ok();
        let time = time.filter(|_| (short || long) && plain && !leap);
        time.ok_or_else(|| {
            let allowed = "allowed are `02:00`, `02:00:30` and `02:00:30.5`, 00:00 to 23:59";
            self.refused(Field::Time, text, allowed)
        })
    }

    /// Returns this time on the date, or so many days later if it has passed.
    fn next(&self, date: Date, days: i32, time: Time) -> Result<At, TimeError> {
        let at = self.on(date, time)?;
        if at.instant > self.now {
            return Ok(at);
        }
        let later = date.checked_add(jiff::Span::new().days(days));
        self.on(later.map_err(|_| self.too_far())?, time)
    }

    /// Returns this local time, by the rule for gaps and overlaps.
    fn on(&self, date: Date, time: Time) -> Result<At, TimeError> {
        let asked = date.to_datetime(time);
        let zone = self.zone.time_zone();
        let far = |_| self.too_far();
        let civil = jiff::tz::Offset::UTC.to_timestamp(asked).map_err(far)?;
        let (micros, nanos) = (civil.as_microsecond(), civil.as_nanosecond() % 1_000);
        let rest = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
        let stamp = |instant| {
            let instant = Timestamp::from_microsecond(instant);
            instant.and_then(|instant| instant.checked_add(rest))
        };
        let reached = instants::first_reaching(zone, micros, i64::MIN);
        let reached = reached.ok_or_else(|| self.too_far())?;
        if instants::shown(zone, reached) != Some(micros) {
            let after = Timestamp::from_microsecond(reached).map_err(far)?;
            let meaning = Meaning::AfterGap { asked };
            return Ok(At {
                meaning,
                ..self.exact(after)
            });
        }
        let mut at = self.exact(stamp(reached).map_err(far)?);
        if let Some(again) = instants::shown_again(zone, reached) {
            let second = stamp(again).map_err(far)?;
            at.meaning = Meaning::FirstPass { second };
        }
        Ok(at)
    }

    fn refused(&self, field: Field, text: &str, allowed: &'static str) -> TimeError {
        let text = if text.is_empty() { self.text } else { text };
        TimeError::Field {
            field,
            text: excerpt(text),
            allowed,
        }
    }

    fn too_far(&self) -> TimeError {
        TimeError::TooFar {
            text: excerpt(self.text),
        }
    }
}

const DATES: &str = "allowed are `02:00`, `2026-12-01 02:00`, `2026-12-01T02:00:00+02:00`, \
                     `tomorrow 02:00`, `monday 02:00`, `+90s` and `in 5m`";

/// Returns the text if it has the form, in which `d` is a digit.
fn strict<'a>(text: &'a str, form: &str) -> Option<&'a str> {
    let mut pairs = text.bytes().zip(form.bytes());
    let fits = pairs.all(|(byte, form)| match form {
        b'd' => byte.is_ascii_digit(),
        _ => byte == form,
    });
    (fits && text.len() == form.len()).then_some(text)
}

/// The weekdays by name.
const WEEKDAYS: [(&str, Weekday); 7] = [
    ("monday", Weekday::Monday),
    ("tuesday", Weekday::Tuesday),
    ("wednesday", Weekday::Wednesday),
    ("thursday", Weekday::Thursday),
    ("friday", Weekday::Friday),
    ("saturday", Weekday::Saturday),
    ("sunday", Weekday::Sunday),
];

fn weekday(name: &str) -> Option<Weekday> {
    let mut days = WEEKDAYS.into_iter();
    let found = days.find(|(known, _)| {
        name.eq_ignore_ascii_case(known) || name.eq_ignore_ascii_case(&known[..3])
    });
    found.map(|(_, day)| day)
}

/// Reads numbers with units, the sum of which is a length of time.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim_ascii();
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_ascii_start();
        let end = rest.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, after) = rest.split_at(end.unwrap_or(rest.len()));
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" | "sec" => Duration::from_secs(1),
            "m" | "min" => Duration::from_secs(60),
            "h" | "hour" | "hours" => Duration::from_secs(3_600),
            "d" | "day" | "days" => Duration::from_secs(86_400),
            "w" | "week" | "weeks" => Duration::from_secs(604_800),
            _ => return None,
        };
        sum = sum.checked_add(unit.checked_mul(number)?)?;
        rest = after.trim_ascii_start();
    }
    Some(sum)
}

#[cfg(test)]
mod tests;
