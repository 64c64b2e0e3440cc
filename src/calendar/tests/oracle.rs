//! The search against a scan of each minute or second, which is written for the test.
//!
//! The scan knows nothing of gaps and overlaps. It goes from instant to instant and looks at the
//! local clock: if elapsed time counts, an instant is due if the clock matches. Else it is due if
//! any time matches that the clock reaches or passes for the first time then.

use jiff::civil::DateTime;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

use super::random::{self, Meaning, Random};
use super::{instant, zones};
use crate::calendar::{Calendar, Cron, ExpressionError, OnCalendar};

/// Instants at the same distance, with what the local clock shows.
struct Scan {
    step: i64,
    shown: Vec<(Timestamp, DateTime)>,
}

impl Scan {
    fn new(zone: &TimeZone, from: Timestamp, to: Timestamp, step: i64) -> Self {
        let mut shown = Vec::new();
        let mut at = from;
        while at <= to {
            shown.push((at, zone.to_datetime(at)));
            at += SignedDuration::from_secs(step);
        }
        Self { step, shown }
    }

    /// Returns the instants after `after` that are due.
    fn due(&self, meaning: &Meaning, after: Timestamp) -> Vec<Timestamp> {
        let mut due = Vec::new();
        let mut reached = self.shown[0].1;
        for (at, clock) in &self.shown {
            let matches = if meaning.fixed {
                let mut any = false;
                while reached < *clock {
                    reached += SignedDuration::from_secs(self.step);
                    any |= meaning.matches(reached);
                }
                any
            } else {
                meaning.matches(*clock)
            };
            if matches && *at > after {
                due.push(*at);
            }
        }
        due
    }
}

/// Returns a random expression and its calendar. One that never comes is left out.
fn expression(random: &mut Random, seconds: bool, zone: &str) -> (Meaning, Calendar) {
    let zones = zones();
    loop {
        let (meaning, made) = if random.one_in(2) {
            let meaning = random::event(random, seconds);
            let event = meaning.text.parse::<OnCalendar>();
            let made = event.and_then(|event| Calendar::new(event, zone, &zones));
            (meaning, made)
        } else {
            let meaning = random::cron(random, seconds);
            let cron = meaning.text.parse::<Cron>();
            let made = cron.and_then(|cron| Calendar::new(cron, zone, &zones));
            (meaning, made)
        };
        match made {
            Ok(calendar) => return (meaning, calendar),
            Err(ExpressionError::NeverComes { .. }) => {}
            Err(error) => panic!("{}: {error}", meaning.text),
        }
    }
}

/// Compares so many expressions from some hours before a change of the clock until after it.
/// Returns the number of due times.
fn compare(
    random: &mut Random,
    name: &str,
    change: Timestamp,
    count: usize,
    seconds: bool,
) -> usize {
    let zone = TimeZoneDatabase::bundled().get(name).unwrap();
    let (before, after, step) = if seconds { (1, 4, 1) } else { (6, 30, 60) };
    let hours = SignedDuration::from_hours;
    let to = change + hours(after);
    let scan = Scan::new(&zone, change - hours(before), to, step);
    let mut all = 0;
    for _ in 0..count {
        let (meaning, calendar) = expression(random, seconds, name);
        // Also from within the gap or overlap on.
        let minutes = i64::try_from(random.within(0, 9 * 60)).unwrap();
        let start = change - hours(before) + SignedDuration::from_mins(minutes);
        let expected = scan.due(&meaning, start);
        let found = calendar.upcoming(start).take_while(|due| *due <= to);
        let found: Vec<_> = found.collect();
        let mut pairs = found.iter().zip(&expected);
        let differs = pairs.find(|(found, expected)| found != expected);
        assert!(
            found == expected,
            "{} in {name} after {start}: {} found, {} expected, at first {differs:?}",
            meaning.text,
            found.len(),
            expected.len(),
        );
        all += found.len();
    }
    all
}

/// Returns the changes of a zone that have no other one near, so that a scan sees one only.
fn changes(zone: &TimeZone, from: &str, to: &str) -> Vec<Timestamp> {
    let to = instant(to);
    let all = zone
        .following(instant(from))
        .map(|change| change.timestamp());
    let all: Vec<_> = all.take_while(|change| *change < to).collect();
    let far = |a: &Timestamp, b: &Timestamp| (b.as_second() - a.as_second()).abs() > 4 * 86_400;
    let alone = |at: usize| {
        (at == 0 || far(&all[at - 1], &all[at]))
            && (at + 1 == all.len() || far(&all[at + 1], &all[at]))
    };
    (0..all.len())
        .filter(|at| alone(*at))
        .map(|at| all[at])
        .collect()
}

#[test]
fn around_a_change_of_each_zone_the_search_finds_what_a_scan_of_minutes_finds() {
    let mut random = Random::new(1);
    let database = TimeZoneDatabase::bundled();
    let (mut compared, mut due) = (0, 0);
    for name in database.available() {
        let zone = database.get(name.as_str()).unwrap();
        // Offsets have been whole minutes since 1973.
        let changes = changes(&zone, "1973-01-01T00:00:00Z", "2199-01-01T00:00:00Z");
        if changes.is_empty() {
            continue;
        }
        let change = changes[random.within(0, changes.len() - 1)];
        due += compare(&mut random, name.as_str(), change, 6, false);
        compared += 1;
    }
    assert!(compared > 400 && due > 20_000, "{compared} {due}");
}

/// Zones with unusual changes: half an hour, two hours, three, at midnight, four a year.
const UNUSUAL: [&str; 9] = [
    "Europe/Berlin",
    "Australia/Sydney",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Africa/Cairo",
    "America/Santiago",
    "Antarctica/Casey",
    "Pacific/Apia",
    "Africa/Casablanca",
];

#[test]
fn around_unusual_changes_the_search_finds_what_a_scan_of_minutes_finds() {
    let mut random = Random::new(2);
    for name in UNUSUAL {
        let zone = TimeZoneDatabase::bundled().get(name).unwrap();
        for change in changes(&zone, "2008-01-01T00:00:00Z", "2013-01-01T00:00:00Z") {
            compare(&mut random, name, change, 5, false);
        }
    }
    // Three hours, and a day that there was not.
    for (name, change) in [
        ("Antarctica/Casey", "2020-10-03T16:01:00Z"),
        ("Pacific/Apia", "2011-12-30T10:00:00Z"),
        ("Pacific/Kwajalein", "1993-08-21T12:00:00Z"),
        ("Pacific/Kanton", "1994-12-31T11:00:00Z"),
    ] {
        let zone = TimeZoneDatabase::bundled().get(name).unwrap();
        let change = instant(change);
        let before = change - SignedDuration::from_hours(30);
        let next = zone.following(before).next().unwrap().timestamp();
        assert_eq!(next, change, "{name}");
        compare(&mut random, name, change, 30, false);
    }
}

#[test]
fn around_a_change_the_search_finds_what_a_scan_of_seconds_finds() {
    let mut random = Random::new(3);
    for name in UNUSUAL {
        let zone = TimeZoneDatabase::bundled().get(name).unwrap();
        let changes = changes(&zone, "2010-01-01T00:00:00Z", "2026-01-01T00:00:00Z");
        let change = changes[random.within(0, changes.len() - 1)];
        compare(&mut random, name, change, 6, true);
    }
    // The last change of an offset with seconds.
    let change = instant("1972-01-07T00:44:30Z");
    compare(&mut random, "Africa/Monrovia", change, 10, true);
}

#[test]
fn rare_dates_are_found_as_a_scan_of_days_finds_them() {
    let mut random = Random::new(4);
    for _ in 0..300 {
        let (meaning, calendar) = expression(&mut random, false, "UTC");
        let start = instant("2026-01-01T00:00:00Z");
        let first = TimeZone::UTC.to_datetime(calendar.next_after(start).unwrap());
        // A time of day that is due on one date is due on each.
        let mut day = TimeZone::UTC
            .to_datetime(start)
            .date()
            .to_datetime(first.time());
        while day < first {
            let before = TimeZone::UTC.to_timestamp(day).unwrap() <= start;
            assert!(before || !meaning.matches(day), "{} on {day}", meaning.text);
            day = day.tomorrow().unwrap();
        }
        assert!(meaning.matches(day), "{} on {day}", meaning.text);
    }
}
