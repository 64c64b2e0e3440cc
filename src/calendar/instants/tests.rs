//! Tests of zones that no database contains, with changes close to each other.

use super::*;
use crate::calendar::civil::{DAY, MINUTE};
use crate::calendar::pattern::{Dates, Seconds, Times};

/// A zone that is set back by a day and an hour each spring, and forward again in autumn.
fn back_by_a_day() -> TimeZone {
    TimeZone::posix("XST-13YST12,M4.1.0/2,M10.1.0/2").unwrap()
}

fn pattern(hour: u32, class: Class) -> Pattern {
    Pattern {
        dates: Dates::ALL,
        times: Times {
            hours: 1 << hour,
            minutes: 1,
            seconds: Seconds::Whole(1),
        },
        class,
    }
}

fn micros(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_microsecond()
}

/// The date line is crossed to the east: the 4th and the 5th are lived twice.
#[test]
fn a_day_that_is_lived_twice_has_its_jobs_once_or_by_elapsed_time_twice() {
    let zone = back_by_a_day();
    let mut at = micros("2026-04-03T12:00:00+13:00");
    let mut due = Vec::new();
    for _ in 0..4 {
        at = next(&pattern(12, Class::Fixed), &zone, at).unwrap();
        due.push(at);
    }
    // Local 2026-04-05 02:00 +13 becomes 2026-04-04 01:00 -12.
    assert_eq!(
        due,
        [
            micros("2026-04-04T12:00:00+13:00"),
            micros("2026-04-05T12:00:00-12:00"),
            micros("2026-04-06T12:00:00-12:00"),
            micros("2026-04-07T12:00:00-12:00"),
        ]
    );
    at = micros("2026-04-03T12:00:00+13:00");
    due.clear();
    for _ in 0..4 {
        at = next(&pattern(12, Class::Elapsed), &zone, at).unwrap();
        due.push(at);
    }
    assert_eq!(
        due,
        [
            micros("2026-04-04T12:00:00+13:00"),
            micros("2026-04-04T12:00:00-12:00"),
            micros("2026-04-05T12:00:00-12:00"),
            micros("2026-04-06T12:00:00-12:00"),
        ]
    );
}

#[test]
fn the_latest_time_shown_is_that_before_the_clock_was_set_back() {
    let zone = back_by_a_day();
    let change = micros("2026-04-05T02:00:00+13:00");
    let reached = micros("2026-04-05T02:00:00Z");
    assert_eq!(latest_shown(&zone, change - 1), Some(reached - 1));
    assert_eq!(latest_shown(&zone, change), Some(reached - 1));
    assert_eq!(latest_shown(&zone, change + DAY), Some(reached - 1));
    assert_eq!(latest_shown(&zone, change + DAY + HOUR), Some(reached));
    assert_eq!(
        latest_shown(&zone, change + 3 * DAY),
        Some(reached + 2 * DAY - HOUR)
    );
}

#[test]
fn a_time_is_shown_again_only_in_an_overlap() {
    let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    let first = micros("2026-10-25T02:30:00+02:00");
    assert_eq!(shown_again(&zone, first), Some(first + HOUR));
    assert_eq!(shown_again(&zone, first + HOUR), None);
    assert_eq!(shown_again(&zone, first - 31 * MINUTE), None);
    assert_eq!(shown_again(&TimeZone::UTC, first), None);
    let day = micros("2026-04-04T12:00:00+13:00");
    assert_eq!(shown_again(&back_by_a_day(), day), Some(day + DAY + HOUR));
}
