//! The rules for the bad days of the year, each named after what it prevents.

use super::{cron, event, instant, upcoming, zones};
use crate::calendar::{Calendar, Class, Missed, OnCalendar};

/// Asserts the next local times after one.
macro_rules! due {
    ($calendar:expr, $after:literal, $($next:literal),+) => {
        let expected = [$($next),+];
        assert_eq!(upcoming(&$calendar, $after, expected.len()), expected);
    };
}

#[test]
fn half_past_two_is_not_lost_for_a_day_in_spring() {
    due!(
        cron("30 2 * * *", "Europe/Berlin"),
        "2026-03-28T12:00:00+01:00",
        "2026-03-29T03:00:00+02",
        "2026-03-30T02:30:00+02"
    );
    due!(
        event("02:30", "Europe/Berlin"),
        "2026-03-28T12:00:00+01:00",
        "2026-03-29T03:00:00+02",
        "2026-03-30T02:30:00+02"
    );
    due!(
        cron("30 2 * * *", "Australia/Sydney"),
        "2026-10-03T12:00:00+10:00",
        "2026-10-04T03:00:00+11",
        "2026-10-05T02:30:00+11"
    );
    // Half an hour.
    due!(
        cron("15 2 * * *", "Australia/Lord_Howe"),
        "2026-10-03T12:00:00+10:30",
        "2026-10-04T02:30:00+11",
        "2026-10-05T02:15:00+11"
    );
    // Two hours.
    due!(
        cron("30 1 * * *", "Antarctica/Troll"),
        "2026-03-28T12:00:00+00:00",
        "2026-03-29T03:00:00+02",
        "2026-03-30T01:30:00+02"
    );
    // Three hours, once.
    due!(
        cron("30 1 * * *", "Antarctica/Casey"),
        "2020-10-03T12:00:00+08:00",
        "2020-10-04T03:01:00+11",
        "2020-10-05T01:30:00+11"
    );
}

#[test]
fn midnight_is_not_lost_where_the_clock_is_changed_then() {
    due!(
        cron("0 0 * * *", "Africa/Cairo"),
        "2026-04-23T12:00:00+02:00",
        "2026-04-24T01:00:00+03",
        "2026-04-25T00:00:00+03"
    );
    due!(
        cron("@daily", "America/Santiago"),
        "2026-09-05T12:00:00-04:00",
        "2026-09-06T01:00:00-03",
        "2026-09-07T00:00:00-03"
    );
    due!(
        event("daily", "America/Santiago"),
        "2026-09-05T12:00:00-04:00",
        "2026-09-06T01:00:00-03",
        "2026-09-07T00:00:00-03"
    );
    // Back from 24:00 to 23:00: midnight is shown once, after both passes.
    due!(
        cron("@daily", "America/Santiago"),
        "2026-04-04T12:00:00-03:00",
        "2026-04-05T00:00:00-04",
        "2026-04-06T00:00:00-04"
    );
}

#[test]
fn a_day_that_there_was_not_is_made_good_once() {
    due!(
        cron("30 12 * * *", "Pacific/Apia"),
        "2011-12-29T00:00:00-10:00",
        "2011-12-29T12:30:00-10",
        "2011-12-31T00:00:00+14",
        "2011-12-31T12:30:00+14"
    );
    due!(
        cron("30 12 30 12 *", "Pacific/Apia"),
        "2011-01-01T00:00:00-10:00",
        "2011-12-31T00:00:00+14",
        "2012-12-30T12:30:00+14"
    );
    due!(
        cron("0 * 30 12 *", "Pacific/Apia"),
        "2011-01-01T00:00:00-10:00",
        "2012-12-30T00:00:00+14"
    );
}

#[test]
fn several_times_in_one_gap_become_one() {
    due!(
        cron("0,10,20,30,40,50 2 * * *", "Europe/Berlin"),
        "2026-03-29T00:00:00+01:00",
        "2026-03-29T03:00:00+02",
        "2026-03-30T02:00:00+02"
    );
    // Also with a time that is due then anyway.
    due!(
        cron("0,30 2,3 * * *", "Europe/Berlin"),
        "2026-03-29T00:00:00+01:00",
        "2026-03-29T03:00:00+02",
        "2026-03-29T03:30:00+02",
        "2026-03-30T02:00:00+02"
    );
    due!(
        cron("*/20 30 2 * * *", "Europe/Berlin"),
        "2026-03-29T00:00:00+01:00",
        "2026-03-29T03:00:00+02",
        "2026-03-30T02:30:00+02"
    );
}

#[test]
fn half_past_two_does_not_run_twice_in_autumn() {
    due!(
        cron("30 2 * * *", "Europe/Berlin"),
        "2026-10-24T12:00:00+02:00",
        "2026-10-25T02:30:00+02",
        "2026-10-26T02:30:00+01"
    );
    due!(
        cron("0 2-4 * * *", "Europe/Berlin"),
        "2026-10-24T12:00:00+02:00",
        "2026-10-25T02:00:00+02",
        "2026-10-25T03:00:00+01",
        "2026-10-25T04:00:00+01"
    );
    due!(
        cron("45 1 * * *", "Australia/Lord_Howe"),
        "2026-04-04T12:00:00+11:00",
        "2026-04-05T01:45:00+11",
        "2026-04-06T01:45:00+10:30"
    );
    due!(
        cron("30 2 * * *", "Antarctica/Troll"),
        "2026-10-24T12:00:00+02:00",
        "2026-10-25T02:30:00+02",
        "2026-10-26T02:30:00+00"
    );
    // Neither if the search begins between both, or within the second.
    due!(
        cron("30 2 * * *", "Europe/Berlin"),
        "2026-10-25T02:45:00+02:00",
        "2026-10-26T02:30:00+01"
    );
    due!(
        cron("30 2 * * *", "Europe/Berlin"),
        "2026-10-25T02:15:00+01:00",
        "2026-10-26T02:30:00+01"
    );
    due!(
        cron("30 2 * * *", "Europe/Berlin"),
        "2026-10-25T02:00:00+01:00",
        "2026-10-26T02:30:00+01"
    );
}

#[test]
fn the_repeated_hour_is_not_silent_if_elapsed_time_counts() {
    due!(
        cron("*/30 * * * *", "Europe/Berlin"),
        "2026-10-25T01:59:00+02:00",
        "2026-10-25T02:00:00+02",
        "2026-10-25T02:30:00+02",
        "2026-10-25T02:00:00+01",
        "2026-10-25T02:30:00+01",
        "2026-10-25T03:00:00+01"
    );
    due!(
        event("hourly", "Europe/Berlin"),
        "2026-10-25T01:59:00+02:00",
        "2026-10-25T02:00:00+02",
        "2026-10-25T02:00:00+01",
        "2026-10-25T03:00:00+01"
    );
    due!(
        cron("*/20 2 * * *", "Europe/Berlin"),
        "2026-10-25T01:59:00+02:00",
        "2026-10-25T02:00:00+02",
        "2026-10-25T02:20:00+02",
        "2026-10-25T02:40:00+02",
        "2026-10-25T02:00:00+01"
    );
    // The date is over after the first pass: the second one is still found.
    due!(
        event("2026-10-25 02:*:00", "Europe/Berlin"),
        "2026-10-25T02:58:00+02:00",
        "2026-10-25T02:59:00+02",
        "2026-10-25T02:00:00+01"
    );
}

#[test]
fn nothing_is_made_up_for_a_gap_if_elapsed_time_counts() {
    due!(
        cron("*/30 * * * *", "Europe/Berlin"),
        "2026-03-29T01:00:00+01:00",
        "2026-03-29T01:30:00+01",
        "2026-03-29T03:00:00+02",
        "2026-03-29T03:30:00+02"
    );
    due!(
        cron("*/20 2 * * *", "Europe/Berlin"),
        "2026-03-28T12:00:00+01:00",
        "2026-03-30T02:00:00+02"
    );
    due!(
        cron("15 * * * *", "Australia/Lord_Howe"),
        "2026-10-04T01:00:00+10:30",
        "2026-10-04T01:15:00+10:30",
        "2026-10-04T03:15:00+11"
    );
}

#[test]
fn days_of_month_and_week_are_combined_as_vixie_does() {
    // Both, since one begins with `*`.
    due!(
        cron("0 0 */2 * 1", "UTC"),
        "2026-01-01T00:00:00Z",
        "2026-01-05T00:00:00+00",
        "2026-01-19T00:00:00+00",
        "2026-02-09T00:00:00+00"
    );
    due!(
        cron("0 0 1 * */6", "UTC"),
        "2026-01-01T00:00:00Z",
        "2026-02-01T00:00:00+00",
        "2026-03-01T00:00:00+00",
        "2026-08-01T00:00:00+00"
    );
    // Either, also if all days are written out.
    due!(
        cron("0 0 1-31 * 1", "UTC"),
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00+00",
        "2026-01-03T00:00:00+00"
    );
    due!(
        cron("0 0 13 * FRI", "UTC"),
        "2026-01-08T00:00:00Z",
        "2026-01-09T00:00:00+00",
        "2026-01-13T00:00:00+00",
        "2026-01-16T00:00:00+00"
    );
    // A calendar event must have both.
    due!(
        event("Fri *-*-13", "UTC"),
        "2026-01-01T00:00:00Z",
        "2026-02-13T00:00:00+00",
        "2026-03-13T00:00:00+00",
        "2026-11-13T00:00:00+00"
    );
}

#[test]
fn six_fields_by_mistake_can_be_warned_of() {
    for (text, often) in [
        ("* * * * *", false),
        ("0 * * * * *", false),
        ("* * * * * *", true),
        ("0,30 0 0 * * *", true),
    ] {
        let calendar = cron(text, "UTC");
        assert_eq!(
            calendar.expression().is_more_than_once_a_minute(),
            often,
            "{text}"
        );
    }
    assert!(
        event("*:*:0/30", "UTC")
            .expression()
            .is_more_than_once_a_minute()
    );
    assert!(
        event("*:*:0.5,0.7", "UTC")
            .expression()
            .is_more_than_once_a_minute()
    );
    assert!(
        !event("*:*:0.5", "UTC")
            .expression()
            .is_more_than_once_a_minute()
    );
}

#[test]
fn the_class_is_decided_by_the_first_character() {
    for (text, class) in [
        ("* 2 * * *", Class::Elapsed),
        ("0 * * * *", Class::Elapsed),
        ("*/5,7 2 * * *", Class::Elapsed),
        ("0 */2 * * *", Class::Elapsed),
        ("* 0 2 * * *", Class::Fixed),
        ("0-59 0-23 * * *", Class::Fixed),
        ("15,45 2 * * *", Class::Fixed),
    ] {
        assert_eq!(cron(text, "UTC").expression().class(), class, "{text}");
    }
    for (text, class) in [
        ("*:0/15", Class::Elapsed),
        ("02:*", Class::Elapsed),
        ("minutely", Class::Elapsed),
        ("00/1:00:*", Class::Fixed),
        ("daily", Class::Fixed),
    ] {
        assert_eq!(event(text, "UTC").expression().class(), class, "{text}");
    }
}

#[test]
fn a_year_without_a_date_does_not_hide_the_first_days_of_the_next() {
    due!(
        event("2030-01-01", "UTC"),
        "2026-06-20T00:00:00Z",
        "2030-01-01T00:00:00+00"
    );
}

#[test]
fn the_zone_of_an_expression_is_used_and_never_replaced_by_another() {
    due!(
        event("daily Asia/Tokyo", "Europe/Berlin"),
        "2026-06-20T12:00:00+09:00",
        "2026-06-21T00:00:00+09"
    );
    let unknown: OnCalendar = "daily Asia/Tokio".parse().unwrap();
    let error = Calendar::new(unknown, "Europe/Berlin", &zones()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("zone: `Asia/Tokio` is unknown"),
        "{error}"
    );
}

/// In Berlin the time from 02:00 to 03:00 of this Sunday never is.
#[test]
fn what_is_in_a_gap_each_year_never_comes_and_does_not_spin() {
    let calendar = event("Sun *-03-25..31 02:*:00", "Europe/Berlin");
    let error = calendar
        .first_after(instant("2026-01-01T00:00:00Z"))
        .unwrap_err();
    assert!(error.to_string().contains("never comes after"), "{error}");
    assert!(error.to_string().contains("Europe/Berlin"), "{error}");
    due!(
        event("Sun *-03-25..31 02:15..45:00", "Europe/Berlin"),
        "2026-01-01T00:00:00Z",
        "2026-03-29T03:00:00+02",
        "2027-03-28T03:00:00+02"
    );
}

#[test]
fn ten_missed_years_of_seconds_are_not_enumerated() {
    let calendar = cron("* * * * * *", "Europe/Berlin");
    let (from, to) = (
        instant("2026-01-01T00:00:00Z"),
        instant("2036-01-01T00:00:00Z"),
    );
    let missed = calendar.missed(from, to, 1_000);
    assert_eq!(
        missed,
        Missed {
            count: 1_000,
            at_least: true
        }
    );
    let daily = cron("@daily", "UTC");
    let missed = daily.missed(from, to, 3_652);
    assert_eq!(
        missed,
        Missed {
            count: 3_652,
            at_least: false
        }
    );
    let missed = daily.missed(from, to, 3_651);
    assert_eq!(
        missed,
        Missed {
            count: 3_651,
            at_least: true
        }
    );
    // The first bound is exclusive, the last inclusive.
    let day = instant("2026-01-02T00:00:00Z");
    assert_eq!(daily.missed(from, day, 5).count, 1);
    assert_eq!(
        daily.missed(day, day, 5),
        Missed {
            count: 0,
            at_least: false
        }
    );
    assert_eq!(
        daily.missed(day, from, 5),
        Missed {
            count: 0,
            at_least: false
        }
    );
}

#[test]
fn fractions_of_a_second_are_due_and_next_is_never_the_same() {
    let calendar = event("*:*:01.5/29.25", "UTC");
    let due: Vec<_> = calendar
        .upcoming(instant("2026-01-01T00:00:00Z"))
        .take(3)
        .collect();
    assert_eq!(
        due,
        [
            instant("2026-01-01T00:00:01.5Z"),
            instant("2026-01-01T00:00:30.75Z"),
            instant("2026-01-01T00:01:01.5Z"),
        ]
    );
    // Not whole microseconds: what is due in the same one has passed.
    let next = calendar.next_after(instant("2026-01-01T00:00:01.500000001Z"));
    assert_eq!(next, Some(due[1]));
    let next = calendar.next_after(instant("2026-01-01T00:00:01.499999999Z"));
    assert_eq!(next, Some(due[0]));
}
