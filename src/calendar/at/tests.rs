//! Tests of single times.

use super::*;
use crate::calendar::tests::{instant, zones};

fn read(text: &str, now: &str) -> Result<At, TimeError> {
    let zone = zones().get("Europe/Berlin").unwrap();
    read_time(text, instant(now), &zone)
}

fn exact(text: &str, now: &str) -> Timestamp {
    let at = read(text, now).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(at.meaning, Meaning::Exact, "{text}");
    at.instant
}

/// A Thursday.
const NOW: &str = "2026-01-01T12:00:00+01:00";

#[test]
fn times_are_read_as_people_write_them() {
    for (text, meant) in [
        ("13:00", "2026-01-01T13:00:00+01:00"),
        ("02:00", "2026-01-02T02:00:00+01:00"),
        ("2:00", "2026-01-02T02:00:00+01:00"),
        ("12:00", "2026-01-02T12:00:00+01:00"),
        ("02:00:30", "2026-01-02T02:00:30+01:00"),
        ("02:00:30.123456789", "2026-01-02T02:00:30.123456789+01:00"),
        ("2026-12-01 02:00", "2026-12-01T02:00:00+01:00"),
        ("2026-07-01 02:00:30", "2026-07-01T02:00:30+02:00"),
        ("2026-12-01T02:00", "2026-12-01T02:00:00+01:00"),
        ("2026-12-01", "2026-12-01T00:00:00+01:00"),
        ("2026-12-01T02:00:00+02:00", "2026-12-01T02:00:00+02:00"),
        ("2026-12-01T02:00Z", "2026-12-01T02:00:00+00:00"),
        ("2026-12-01 02:00:00-05:30", "2026-12-01T02:00:00-05:30"),
        ("today 23:00", "2026-01-01T23:00:00+01:00"),
        ("tomorrow 02:00", "2026-01-02T02:00:00+01:00"),
        ("Tomorrow", "2026-01-02T00:00:00+01:00"),
        ("monday 02:00", "2026-01-05T02:00:00+01:00"),
        ("mon", "2026-01-05T00:00:00+01:00"),
        ("thursday 13:00", "2026-01-01T13:00:00+01:00"),
        ("Thu 11:00", "2026-01-08T11:00:00+01:00"),
        ("+90s", "2026-01-01T12:01:30+01:00"),
        ("in 5m", "2026-01-01T12:05:00+01:00"),
        ("in 1h 30m", "2026-01-01T13:30:00+01:00"),
        ("+1h30m", "2026-01-01T13:30:00+01:00"),
        ("+250ms", "2026-01-01T12:00:00.25+01:00"),
        ("in 2 days", "2026-01-03T12:00:00+01:00"),
        ("+1w", "2026-01-08T12:00:00+01:00"),
        (" 13:00 ", "2026-01-01T13:00:00+01:00"),
    ] {
        assert_eq!(exact(text, NOW), instant(meant), "{text}");
    }
}

/// A day is 24 hours, so that the local time differs after a change of the clock.
#[test]
fn a_duration_is_elapsed_time() {
    let now = "2026-03-28T12:00:00+01:00";
    assert_eq!(exact("+1d", now), instant("2026-03-29T13:00:00+02:00"));
    assert_eq!(
        exact("tomorrow 12:00", now),
        instant("2026-03-29T12:00:00+02:00")
    );
}

#[test]
fn a_time_in_a_gap_is_the_first_instant_after_it_and_told() {
    let now = "2026-03-28T12:00:00+01:00";
    for text in [
        "02:30",
        "tomorrow 02:30",
        "2026-03-29 02:30:00",
        "sunday 02:30",
    ] {
        let at = read(text, now).unwrap();
        assert_eq!(at.instant, instant("2026-03-29T03:00:00+02:00"), "{text}");
        assert_eq!(at.local.to_string(), "2026-03-29T03:00:00");
        let asked = "2026-03-29T02:30:00".parse().unwrap();
        assert_eq!(at.meaning, Meaning::AfterGap { asked }, "{text}");
    }
}

#[test]
fn a_time_in_an_overlap_is_the_first_of_both_and_told() {
    let at = read("2026-10-25 02:30:00.5", NOW).unwrap();
    assert_eq!(at.instant, instant("2026-10-25T02:30:00.5+02:00"));
    let second = instant("2026-10-25T02:30:00.5+01:00");
    assert_eq!(at.meaning, Meaning::FirstPass { second });
    // Within the second pass, the first one has passed.
    let between = "2026-10-25T02:15:00+01:00";
    assert!(matches!(
        read("2026-10-25 02:30", between),
        Err(TimeError::Past { .. })
    ));
    assert_eq!(
        exact("02:30", between),
        instant("2026-10-26T02:30:00+01:00")
    );
    assert_eq!(
        exact("2026-10-25T02:30+01:00", between),
        instant("2026-10-25T02:30:00+01:00")
    );
}

#[test]
fn a_time_that_has_passed_is_an_error() {
    for text in [
        "2025-12-01 02:00",
        "2026-01-01 12:00",
        "2026-01-01T11:00:00Z",
        "today 11:59",
        "today",
        "+0s",
        "0001-01-01 00:00",
    ] {
        let error = read(text, NOW).unwrap_err();
        assert!(matches!(error, TimeError::Past { .. }), "{text}: {error}");
        assert!(
            error.to_string().contains("2026-01-01T11:00:00Z"),
            "{error}"
        );
    }
}

#[test]
fn an_error_names_the_part_the_text_and_what_is_allowed() {
    for (text, begins, contains) in [
        ("", "time: `` is refused: ", "02:00"),
        ("25:00", "time: `25:00` is refused: ", "00:00 to 23:59"),
        ("02:60", "time: `02:60` is refused: ", "00:00 to 23:59"),
        (
            "02:00:60",
            "time: `02:00:60` is refused: ",
            "00:00 to 23:59",
        ),
        ("02", "time: `02` is refused: ", "02:00:30"),
        ("0200", "time: `0200` is refused: ", "02:00:30"),
        ("02:00.5", "time: `02:00.5` is refused: ", "02:00:30"),
        ("02:00:00.", "time: `02:00:00.` is refused: ", "02:00:30"),
        (
            "2026-02-29 02:00",
            "date: `2026-02-29` is refused: ",
            "2026-12-01",
        ),
        (
            "2026-2-1 02:00",
            "date: `2026-2-1` is refused: ",
            "2026-12-01",
        ),
        ("2026-12-01 02:00+2", "time: `+2` is refused: ", "+02:00"),
        (
            "2026-12-01 02:00+99:00",
            "time: `+99:00` is refused: ",
            "+02:00",
        ),
        (
            "2026-12-01 02:00Z[Europe/Berlin]",
            "time: `Z[Europe/Berlin]` is",
            "+02:00",
        ),
        (
            "2026-12-01T02:00 03:00",
            "date: `2026-12-01T02:00` is refused: ",
            "2026-12-01",
        ),
        ("tomorrow 25:00", "time: `25:00` is refused: ", "02:00"),
        ("someday 02:00", "date: `someday` is refused: ", "tomorrow"),
        ("in", "duration: `in` is refused: ", "units"),
        ("+", "duration: `+` is refused: ", "units"),
        ("+90", "duration: `90` is refused: ", "units"),
        (
            "in 5 parsecs",
            "duration: `5 parsecs` is refused: ",
            "units",
        ),
        ("+-5s", "duration: `-5s` is refused: ", "units"),
        (
            "2200-01-01 00:00",
            "time: `2200-01-01 00:00` is refused: ",
            "2199",
        ),
        ("+99999999w", "time: `+99999999w` is refused: ", "2199"),
        (
            "in 4000000000w",
            "time: `in 4000000000w` is refused: ",
            "2199",
        ),
        ("-9999-01-01", "time: `-9999-01-01` is refused: ", "02:00"),
    ] {
        let said = read(text, NOW).unwrap_err().to_string();
        assert!(
            said.starts_with(begins) && said.contains(contains),
            "{text}: {said}"
        );
    }
}
