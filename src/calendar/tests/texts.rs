//! Texts from outside: no panic, and errors that name what is wrong.

use super::instant;
use super::random::Random;
use crate::calendar::{
    CRON_MAX, Cron, ExpressionError, ON_CALENDAR_MAX, OnCalendar, TIME_MAX, TimeError, read_time,
};

/// What an error must name: a field, or the whole.
const NAMED: [&str; 13] = [
    "second",
    "minute",
    "hour",
    "day of month",
    "month",
    "day of week",
    "year",
    "date",
    "time",
    "duration",
    "the expression",
    "the time",
    "zone",
];

fn named(error: &dyn std::fmt::Display, text: &str) {
    let said = error.to_string();
    assert!(
        NAMED.iter().any(|name| said.starts_with(name)),
        "{text:?}: {said}"
    );
    assert!(said.len() < 800, "{text:?}: {said}");
    assert!(!said.contains(char::is_control), "{text:?}: {said}");
}

fn try_all(text: &str) {
    if let Err(error) = text.parse::<Cron>() {
        named(&error, text);
    }
    if let Err(error) = text.parse::<OnCalendar>() {
        named(&error, text);
    }
    let zone = super::zones().get("Europe/Berlin").unwrap();
    if let Err(error) = read_time(text, instant("2026-03-28T00:00:00Z"), &zone) {
        named(&error, text);
    }
}

/// Valid texts, from which others are made.
const VALID: [&str; 22] = [
    "30 2 * * *",
    "*/10 0-59/7 1,2 1-31 JAN-MAR,12 MON-FRI",
    "@weekly",
    "@reboot",
    "@1767225600",
    "Mon..Fri,Sun 2026..2030/2-1/3~5,7 0/6:15..45/5:10.5/3.25 Europe/Berlin",
    "*-02~01 00:00 UTC",
    "quarterly",
    "05:40:23.4200004/3.1700005",
    "Wed, 17:48",
    "02:00",
    "02:00:30.123456789",
    "2026-12-01 02:00",
    "2026-12-01T02:00:00+02:00",
    "2026-12-01T02:00:00Z",
    "tomorrow 02:00",
    "monday 02:00",
    "+90s",
    "in 1h 30m",
    "2199-12-31 23:59",
    "9999-12-31 23:59:59.999999999",
    "in 4294967295w",
];

#[test]
fn no_text_makes_a_parser_panic_and_each_error_names_a_field() {
    const BYTES: &[u8] = b"0123456789*/-~.,:@ \t+TZabMonUTC\0\x7f\xc3\xa9\xff";
    let mut random = Random::new(5);
    for round in 0..6_000 {
        let mut bytes = if round % 3 == 0 {
            Vec::new()
        } else {
            VALID[random.within(0, VALID.len() - 1)].as_bytes().to_vec()
        };
        for _ in 0..random.within(1, if round % 3 == 0 { 40 } else { 4 }) {
            let at = random.within(0, bytes.len());
            let byte = BYTES[random.within(0, BYTES.len() - 1)];
            match random.within(0, 2) {
                0 if at < bytes.len() => drop(bytes.remove(at)),
                1 if at < bytes.len() => bytes[at] = byte,
                _ => bytes.insert(at, byte),
            }
        }
        try_all(&String::from_utf8_lossy(&bytes));
    }
    for text in VALID {
        for end in 0..=text.len() {
            try_all(&text[..end]);
            try_all(&text[end..]);
        }
    }
}

#[test]
fn a_text_of_any_length_is_refused_at_its_bound() {
    let long = "0,".repeat(5_000);
    let bytes = long.len();
    let error = long.parse::<Cron>().unwrap_err();
    assert_eq!(
        error,
        ExpressionError::TooLong {
            bytes,
            max: CRON_MAX
        }
    );
    let error = long.parse::<OnCalendar>().unwrap_err();
    assert_eq!(
        error,
        ExpressionError::TooLong {
            bytes,
            max: ON_CALENDAR_MAX
        }
    );
    let zone = super::zones().get("UTC").unwrap();
    let error = read_time(&long, instant("2026-01-01T00:00:00Z"), &zone).unwrap_err();
    assert_eq!(
        error,
        TimeError::TooLong {
            bytes,
            max: TIME_MAX
        }
    );
    // The longest lists fit.
    let list = |from: u32, to: u32| {
        let numbers: Vec<_> = (from..=to).map(|number| number.to_string()).collect();
        numbers.join(",")
    };
    let (minutes, hours) = (list(0, 59), list(0, 23));
    let whole = format!(
        "{minutes} {minutes} {hours} {} {} {}",
        list(1, 31),
        list(1, 12),
        list(0, 7)
    );
    assert!(whole.parse::<Cron>().is_ok());
    assert_eq!(whole.len(), 528);
}
