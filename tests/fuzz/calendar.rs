//! Calendar expressions and times, from texts that are nearly right and from any other.

use std::path::Path;
use std::time::{Duration, Instant};

use evloopd::calendar::{
    Calendar, Cron, Expression, ExpressionError, Meaning, OnCalendar, TimeError, YEAR_MAX,
    YEAR_MIN, Zones, read_time,
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use crate::fuzz;

/// The longest that reading a text and searching some times may take. A search takes less than a
/// millisecond; the rest is for a machine that is busy.
const SEARCH_MAX: Duration = Duration::from_secs(2);
/// Due times that are looked at.
const TIMES: usize = 12;
/// What an error must begin with: a field, or the whole.
const NAMED: [&str; 13] = [
    "second: ",
    "minute: ",
    "hour: ",
    "day of month: ",
    "month: ",
    "day of week: ",
    "year: ",
    "date: ",
    "time: ",
    "duration: ",
    "zone: ",
    "the expression ",
    "the time ",
];
/// Zones with the usual changes of the clock and with rare ones.
const ZONES: [&str; 8] = [
    "UTC",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "America/Santiago",
    "Pacific/Apia",
    "Africa/Casablanca",
    "Africa/Monrovia",
];

fn words(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(words).prop_map(str::to_owned)
}

/// Numbers within the field, and some beyond.
fn number(low: u32, high: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        80 => (low..=high).prop_map(|number| number.to_string()),
        12 => (low..=high).prop_map(|number| format!("{number:02}")),
        1 => words(&["0", "60", "99", "2200", "4294967295", "4294967296", "99999999999999999999", "-1", "+1", ""]),
    ]
}

/// A list of `*`, numbers, ranges and repetitions.
fn field(low: u32, high: u32, range: &'static str) -> impl Strategy<Value = String> {
    let step = || number(1, (high - low).min(20));
    let ordered = (low..=high).prop_flat_map(move |first| (Just(first), first..=high));
    let ordered = ordered.prop_map(move |(first, last)| format!("{first}{range}{last}"));
    let item = prop_oneof![
        20 => number(low, high),
        12 => ordered.clone(),
        8 => (ordered, step()).prop_map(|(range, step)| format!("{range}/{step}")),
        4 => (words(&["*"]), step()).prop_map(|(star, step)| format!("{star}/{step}")),
        4 => (number(low, high), step()).prop_map(|(first, step)| format!("{first}/{step}")),
        1 => (number(low, high), number(low, high)).prop_map(move |(a, b)| format!("{a}{range}{b}")),
        1 => words(&["*", "**", "?", "L", "1.5", "0.25", "1..2", "1-2"]),
    ];
    let list = prop::collection::vec(item, 1..4).prop_map(|items| items.join(","));
    prop_oneof![1 => Just("*".to_owned()), 1 => list]
}

fn cron() -> impl Strategy<Value = String> {
    let month =
        prop_oneof![3 => field(1, 12, "-"), 1 => words(&["JAN", "feb-APR", "DEC,1", "FOO"])];
    let week =
        prop_oneof![3 => field(0, 7, "-"), 1 => words(&["SUN", "mon-FRI", "FRI-SUN", "SUN-7"])];
    let five = (
        field(0, 59, "-"),
        field(0, 23, "-"),
        field(1, 31, "-"),
        month,
        week,
    );
    let five = five.prop_map(|(minute, hour, day, month, week)| [minute, hour, day, month, week]);
    let six = (prop::option::weighted(0.3, field(0, 59, "-")), five);
    let fields = six.prop_map(|(second, five)| {
        let fields: Vec<String> = second.into_iter().chain(five).collect();
        fields.join(" ")
    });
    let word = words(&[
        "@hourly", "@DAILY", "@weekly", "@reboot", "@yearly", "@", "@1",
    ]);
    prop_oneof![12 => fields, 1 => word]
}

fn event() -> impl Strategy<Value = String> {
    let week = words(&[
        "Mon ",
        "fri..Sun ",
        "Sat,Sun ",
        "Monday,Wed..Thu, ",
        "Sun..Mon ",
        "Tue-Wed ",
        "x ",
    ]);
    let year = prop_oneof![field(1970, 2199, ".."), field(0, 99, "..")];
    let day = (words(&["-", "~", ""]), field(1, 31, ".."))
        .prop_map(|(mark, day)| format!("{mark}{day} "));
    let date = (prop::option::of(year), field(1, 12, ".."), day);
    let date = date.prop_map(|(year, month, day)| match year {
        Some(year) => format!("{year}-{month}{day}"),
        None => format!("{month}{day}"),
    });
    let fraction = (field(0, 59, ".."), 0..100_000_000_u32, 0..3_000_000_u32);
    let fraction =
        fraction.prop_map(|(second, part, step)| format!("{second}.{part},0/{step}.{part}"));
    let second = prop_oneof![3 => field(0, 59, ".."), 1 => fraction];
    let time = (
        field(0, 23, ".."),
        field(0, 59, ".."),
        prop::option::of(second),
    );
    let time = time.prop_map(|(hour, minute, second)| match second {
        Some(second) => format!("{hour}:{minute}:{second}"),
        None => format!("{hour}:{minute}"),
    });
    let zone = words(&[
        "",
        "",
        "",
        " UTC",
        " Europe/Berlin",
        " local",
        " Nowhere/Land",
        " \u{e9}",
    ]);
    let parts = (
        prop::option::of(week),
        prop::option::of(date),
        prop::option::weighted(0.9, time),
        zone,
    );
    let whole = parts.prop_map(|(week, date, time, zone)| {
        let parts = [week, date, time, Some(zone)];
        parts.into_iter().flatten().collect::<String>()
    });
    let word = words(&[
        "daily",
        "Hourly",
        "quarterly UTC",
        "fortnightly",
        "@0",
        "@7258118399",
        "@7258118400",
    ]);
    prop_oneof![12 => whole, 1 => word]
}

fn time() -> impl Strategy<Value = String> {
    let second = (
        number(0, 60),
        words(&["", "", "", ".5", ".123456789", ".1234567890", ".", ".-1"]),
    );
    let second = second.prop_map(|(second, fraction)| format!(":{second:0>2}{fraction}"));
    let clock = (number(0, 23), number(0, 59), prop::option::of(second));
    let clock = clock.prop_map(|(hour, minute, second)| {
        format!("{hour}:{minute:0>2}{}", second.unwrap_or_default())
    });
    let clock = clock.boxed();
    let days = words(&["", "", "today ", "Tomorrow ", "mon ", "Sunday ", "weekday "]);
    let date = (number(2011, 2040), number(1, 12), number(1, 29));
    let date = date.prop_map(|(year, month, day)| format!("{year}-{month:0>2}-{day:0>2}"));
    let rare = words(&[
        "2026-03-29",
        "2011-12-30",
        "2199-12-31",
        "9999-12-31",
        "1969-12-31",
        "2026-02-30",
    ]);
    let offset = words(&["", "", "Z", "+02:00", "-11:30", "+26:00", "+0200"]);
    let dated = (
        prop_oneof![3 => date, 1 => rare],
        words(&[" ", "T", "t", ""]),
        clock.clone(),
        offset,
    );
    let dated = dated.prop_map(|(date, mark, clock, offset)| [date, mark, clock, offset].concat());
    let at = (days, clock).prop_map(|(day, clock)| day + &clock);
    let unit = words(&["ms", "s", "m", "h", "d", "w", "min ", " weeks ", "y", ""]);
    let count = prop_oneof![9 => number(0, 100), 1 => any::<u32>().prop_map(|n| n.to_string())];
    let lengths = prop::collection::vec((count, unit), 0..4);
    let later = (words(&["+", "in ", "IN\t", "in"]), lengths).prop_map(|(start, lengths)| {
        let lengths = lengths.into_iter().map(|(number, unit)| number + &unit);
        start + &lengths.collect::<String>()
    });
    prop_oneof![3 => at, 2 => dated, 2 => later]
}

/// A text, in some cases damaged, or any text.
fn text(good: impl Strategy<Value = String> + 'static) -> impl Strategy<Value = String> {
    let good = good.boxed();
    let pieces = &[
        "", "*", "/", "-", ",", ".", "..", "~", ":", "@", " ", "  ", "\t", "0", "1", "9", "T",
        "\n", "\0", "\x1b[31m", "\u{202e}", "日",
    ];
    let damage = (any::<prop::sample::Index>(), 0..2_usize, words(&pieces[..]));
    let damaged = (good.clone(), prop::collection::vec(damage, 1..4));
    let damaged = damaged.prop_map(|(text, damages)| {
        let mut characters: Vec<String> = text.chars().map(String::from).collect();
        for (at, removed, put) in damages {
            let at = at.index(characters.len() + 1);
            let end = (at + removed).min(characters.len());
            characters.splice(at..end, [put]).for_each(drop);
        }
        characters.concat()
    });
    let long = (good.clone(), words(&[" ", ",0", ",*", "0"]), 1..600_usize);
    let long = long.prop_map(|(text, more, count)| text + &more.repeat(count));
    let any = prop_oneof![any::<String>(), "[0-9*/,.~:@ MonT-]{0,40}"];
    prop_oneof![6 => good, 3 => damaged, 1 => long, 1 => any]
}

fn instant() -> impl Strategy<Value = Timestamp> {
    // Before 1970 and after the last year too, and some hours around changes of the clock.
    let any = (Timestamp::MIN.as_microsecond()..=Timestamp::MAX.as_microsecond())
        .prop_map(|micros| Timestamp::from_microsecond(micros).expect("within its range"));
    let within = (0..7_300_000_000_000_000_i64)
        .prop_map(|micros| Timestamp::from_microsecond(micros).expect("within its range"));
    let changes = prop::sample::select(
        &[
            "2026-03-29T01:00:00Z",
            "2026-10-25T01:00:00Z",
            "2026-04-04T15:00:00Z",
            "2011-12-30T10:00:00Z",
            "2026-09-06T04:00:00Z",
            "1972-01-07T00:44:30Z",
            "2199-12-31T23:00:00Z",
        ][..],
    );
    let near = (changes, -40_000_000_i64..40_000_000).prop_map(|(change, millis)| {
        let change: Timestamp = change.parse().expect("a time");
        change + SignedDuration::from_millis(millis)
    });
    prop_oneof![1 => any, 4 => within, 8 => near]
}

fn named(error: &dyn std::fmt::Display, text: &str) -> Result<(), TestCaseError> {
    let said = error.to_string();
    prop_assert!(
        NAMED.iter().any(|name| said.starts_with(name)),
        "{:?}: {}",
        text,
        said
    );
    prop_assert!(!said.contains(char::is_control), "{:?}: {:?}", text, said);
    prop_assert!(said.len() < 1_000, "{:?}: {}", text, said);
    Ok(())
}

/// Reads a text as an expression, which tells the same when what it says of itself is read again.
fn read<T>(text: &str, said: impl Fn(&T) -> &str) -> Result<Option<T>, TestCaseError>
where
    T: std::str::FromStr<Err = ExpressionError> + PartialEq + std::fmt::Debug,
{
    match text.parse::<T>() {
        Ok(expression) => {
            let again = said(&expression).parse::<T>();
            prop_assert_eq!(again.as_ref(), Ok(&expression), "{:?}", text);
            Ok(Some(expression))
        }
        Err(error) => {
            named(&error, text)?;
            Ok(None)
        }
    }
}

/// The times of a calendar: each after the one before, within its years, and the same from anywhere
/// between two of them.
fn times(calendar: &Calendar, from: Timestamp) -> Result<(), TestCaseError> {
    let text = calendar.expression().text();
    let mut last = from;
    for _ in 0..TIMES {
        let begin = Instant::now();
        let next = calendar.next_after(last);
        prop_assert!(begin.elapsed() < SEARCH_MAX, "{:?} after {}", text, last);
        let Some(next) = next else {
            let never = matches!(
                calendar.first_after(last),
                Err(ExpressionError::NeverComesAgain { .. })
            );
            prop_assert!(never, "{:?} after {}", text, last);
            let later = last.checked_add(SignedDuration::from_secs(1));
            let later = later.ok().and_then(|later| calendar.next_after(later));
            prop_assert_eq!(later, None, "{:?} after {}", text, last);
            return Ok(());
        };
        prop_assert!(next > last, "{:?} after {}: {}", text, last, next);
        let local = calendar.zone().time_zone().to_datetime(next);
        // A gap at the end of the last year ends in the next one.
        prop_assert!(
            (YEAR_MIN..=YEAR_MAX + 1).contains(&i32::from(local.year())),
            "{:?}: {}",
            text,
            local
        );
        prop_assert_eq!(calendar.first_after(last), Ok(next));
        let half = (next.as_microsecond() - last.as_microsecond()) / 2;
        let between = last + SignedDuration::from_micros(half);
        if between < next {
            prop_assert_eq!(
                calendar.next_after(between),
                Some(next),
                "{:?} after {}",
                text,
                between
            );
        }
        let before = next - SignedDuration::from_micros(1);
        prop_assert_eq!(calendar.next_after(before), Some(next), "{:?}", text);
        let missed = calendar.missed(last, next, 10);
        prop_assert_eq!(
            (missed.count, missed.at_least),
            (1, false),
            "{:?} after {}",
            text,
            last
        );
        last = next;
    }
    Ok(())
}

#[test]
fn no_text_of_cron_or_of_a_calendar_event_breaks_the_parser_or_the_search() {
    let zones = Zones::open_with(Path::new("/nonexistent"), Path::new("/nonexistent"));
    let texts = prop_oneof![text(cron()), text(event())];
    let zone = prop::sample::select(&ZONES[..]);
    let accepted = std::cell::Cell::new(0);
    fuzz(4_000, &(texts, zone, instant()), |(text, zone, from)| {
        let begin = Instant::now();
        let cron = read::<Cron>(&text, Cron::text)?.map(Expression::from);
        let event = read::<OnCalendar>(&text, OnCalendar::text)?.map(Expression::from);
        prop_assert!(begin.elapsed() < SEARCH_MAX, "{:?}", text);
        for expression in cron.into_iter().chain(event) {
            match Calendar::new(expression, zone, &zones) {
                Ok(calendar) => times(&calendar, from)?,
                Err(error) => named(&error, &text)?,
            }
            accepted.set(accepted.get() + 1);
        }
        Ok(())
    });
    assert!(accepted.get() > 800, "only {} are accepted", accepted.get());
}

#[test]
fn no_text_of_a_time_breaks_its_reader_and_what_it_reads_is_after_now() {
    let zones = Zones::open_with(Path::new("/nonexistent"), Path::new("/nonexistent"));
    let zone = prop::sample::select(&ZONES[..]);
    let accepted = std::cell::Cell::new(0);
    fuzz(
        6_000,
        &(text(time()), zone, instant()),
        |(text, zone, now)| {
            let zone = zones.get(zone).expect("a zone of the database");
            let at = match read_time(&text, now, &zone) {
                Ok(at) => at,
                Err(error) => return named(&error, &text),
            };
            accepted.set(accepted.get() + 1);
            prop_assert!(at.instant > now, "{:?} at {}: {:?}", text, now, at);
            prop_assert_eq!(zone.time_zone().to_datetime(at.instant), at.local);
            match at.meaning {
                Meaning::Exact => {}
                Meaning::AfterGap { asked } => {
                    prop_assert!(at.local > asked, "{:?}: {:?}", text, at);
                }
                Meaning::FirstPass { second } => {
                    prop_assert!(second > at.instant);
                    prop_assert_eq!(zone.time_zone().to_datetime(second), at.local);
                }
            }
            // What it means is read to the same.
            let offset = zone.time_zone().to_offset(at.instant);
            if offset.seconds() % 60 == 0 && (1..=9_999).contains(&at.local.year()) {
                let sign = if offset.seconds() < 0 { '-' } else { '+' };
                let minutes = offset.seconds().abs() / 60;
                let (hours, minutes) = (minutes / 60, minutes % 60);
                let whole = format!("{}{sign}{hours:02}:{minutes:02}", at.local);
                let again = read_time(&whole, now, &zone);
                prop_assert_eq!(again.map(|at| at.instant), Ok(at.instant), "{}", whole);
                let passed = read_time(&whole, at.instant, &zone);
                let passed = matches!(passed, Err(TimeError::Past { .. }));
                prop_assert!(passed, "{}", whole);
            }
            Ok(())
        },
    );
    assert!(
        accepted.get() > 1_000,
        "only {} are accepted",
        accepted.get()
    );
}
