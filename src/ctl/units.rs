//! Formats times, sizes and counts for people.

use std::fmt::Write as _;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::Timestamp;
use jiff::tz::TimeZone;

pub(super) use crate::text::grouped;

/// Returns a number with the word for one thing or for many: `1 watch`, `2 watches`.
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    let what = if number == 1 { one } else { many };
    format!("{} {what}", grouped(number))
}

/// Returns a number of bytes with its unit: `0 B`, `1.5 KiB`, `64.0 MiB`.
pub(super) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// Returns a length of time in its two largest units: `850 ms`, `42 s`, `3 min 20 s`, `2 h 5 min`, `4 days 1 h`.
pub(super) fn span(time: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "days"), (3_600, "h"), (60, "min"), (1, "s")];
    let seconds = time.as_secs();
    if seconds == 0 {
        return format!("{} ms", time.as_millis());
    }
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, name) in UNITS {
        let count = rest / unit;
        rest %= unit;
        if count == 0 && text.is_empty() {
            continue;
        }
        let second = !text.is_empty();
        if count > 0 {
            let name = if (count, name) == (1, "days") {
                "day"
            } else {
                name
            };
            let gap = if second { " " } else { "" };
            let _ = write!(text, "{gap}{count} {name}");
        }
        if second {
            break;
        }
    }
    text
}

/// Returns how long before `now` a time was, in its largest unit: `now`, `5 s ago`, `3 min ago`, `2 h ago`, `4 days ago`.
pub(super) fn ago(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(time).as_secs();
    match seconds {
        ..1 => "now".to_owned(),
        1..60 => format!("{seconds} s ago"),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Returns how long ago a message's time was, by this host's clock; empty if there is no time.
pub(super) fn age(time: Option<prost_types::Timestamp>) -> String {
    moment(time).map_or_else(String::new, |time| ago(time, Timestamp::now()))
}

/// Returns a message's time as date and time in the local zone, and how long ago it was; empty if there is no time.
pub(super) fn date_and_age(time: Option<prost_types::Timestamp>) -> String {
    let Some(time) = moment(time) else {
        return String::new();
    };
    let date = time.to_zoned_datetime(TimeZone::system());
    let date = date.strftime("%Y-%m-%d %H:%M:%S");
    let now = Timestamp::now();
    if time > now {
        return format!("{date}, in {}", span(between(now, time)));
    }
    format!("{date}, {}", ago(time, now))
}

/// Returns how long after `from` the time `to` is; `None` if one of them is absent.
pub(super) fn lasted(
    from: Option<prost_types::Timestamp>,
    to: Option<prost_types::Timestamp>,
) -> Option<Duration> {
    Some(between(moment(from)?, moment(to)?))
}

/// Returns how long ago a message's time was, by this host's clock; `None` if there is no time.
pub(super) fn since(time: Option<prost_types::Timestamp>) -> Option<Duration> {
    Some(between(moment(time)?, Timestamp::now()))
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    // The result is negative, and becomes 0, if the clock was set back in between.
    to.duration_since(from).try_into().unwrap_or_default()
}

/// Converts a message's time; `None` if there is none, or if it is out of range.
pub(super) fn moment(time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_groups() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(counted(1, "watch", "watches"), "1 watch");
        assert_eq!(counted(0, "watch", "watches"), "0 watches");
    }

    #[test]
    fn sizes_have_units() {
        for (bytes, text) in [(0, "0 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_time_is_told_by_its_two_largest_units() {
        for (ms, text) in [
            (850, "850 ms"),
            (42_999, "42 s"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 5 min"),
            (7_205_000, "2 h"),
            (90_000_000, "1 day 1 h"),
            (345_600_000, "4 days"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn an_age_is_told_by_its_largest_unit() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        for (seconds, text) in [
            (0, "now"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3_599, "59 min ago"),
            (7_200, "2 h ago"),
            (172_800, "2 days ago"),
            // The clock was set back in between.
            (-5, "now"),
        ] {
            assert_eq!(ago(at(1000), at(1000 + seconds)), text);
        }
    }
}
