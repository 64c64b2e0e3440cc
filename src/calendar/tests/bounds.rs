//! What must not grow: the time of a search, and its distance.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{cron, event, instant};

/// The longest that a search may take, on a slow machine and without optimisation. The calls below
/// take less than a tenth of it.
const SEARCH_MAX: Duration = Duration::from_millis(50);

#[test]
fn no_search_is_long() {
    for (calendar, found) in [
        (cron("0 0 29 2 *", "Europe/Berlin"), true),
        (event("Mon *-02-29 12:00", "Europe/Berlin"), true),
        (event("Mon 2199-12-30 12:00", "Europe/Berlin"), true),
        (event("2180..2199/3-02~2/1 *:00", "Europe/Berlin"), true),
        // In a gap each year.
        (event("Sun *-03-25..31 02:*", "Europe/Berlin"), false),
        (event("Sun *-10-1..7 02:0/1:0.5", "Australia/Sydney"), true),
        // Four changes a year.
        (event("2190-*-* *:00", "Africa/Casablanca"), true),
        (event("1971-*-* *:00", "Africa/Casablanca"), false),
    ] {
        let start = Instant::now();
        let next = calendar.next_after(instant("2026-01-01T00:00:00Z"));
        let taken = start.elapsed();
        assert_eq!(next.is_some(), found, "{}", calendar.expression().text());
        assert!(
            taken < SEARCH_MAX,
            "{}: {taken:?}",
            calendar.expression().text()
        );
    }
}

#[test]
fn nothing_is_due_after_the_last_year() {
    let calendar = cron("@yearly", "Europe/Berlin");
    let last = calendar.next_after(instant("2198-06-01T00:00:00Z"));
    assert_eq!(last, Some(instant("2199-01-01T00:00:00+01:00")));
    assert_eq!(calendar.next_after(last.unwrap()), None);
    let minutely = cron("* * * * *", "America/New_York");
    let last = instant("2199-12-31T23:59:00-05:00");
    assert_eq!(
        minutely.next_after(instant("2199-12-31T23:58:30-05:00")),
        Some(last)
    );
    assert_eq!(minutely.next_after(last), None);
    assert_eq!(minutely.next_after(Timestamp::MAX), None);
}

#[test]
fn a_clock_before_1970_is_no_error() {
    let calendar = cron("0 0 * * *", "UTC");
    let first = Some(instant("1970-01-01T00:00:00Z"));
    assert_eq!(calendar.next_after(instant("1969-06-01T00:00:00Z")), first);
    assert_eq!(calendar.next_after(Timestamp::MIN), first);
    let just_before = instant("1969-12-31T23:59:30Z");
    assert_eq!(calendar.next_after(just_before), first);
}
