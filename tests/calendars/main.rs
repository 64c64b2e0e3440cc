//! Answers questions about calendars, for the comparison with croniter and with systemd in
//! `tests/system/test_calendars.py`, which starts it as `calendars answer ZONEINFO`. ZONEINFO is a
//! directory of zones, which is asked if its data are newer than those of the program.
//!
//! A question is one line: `cron` or `event`, a zone, a start in seconds since 1970, a number and
//! the expression, with tabs between them. The answer is a line of so many due times after the
//! start, in seconds with six digits of fraction, or `refused: ` and the reason.
//!
//! Started in any other way, as by `cargo test`, it checks some answers. The scan of minutes is in
//! the unit tests of the module.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::fmt::Display;
use std::io::{self, BufRead as _, Write as _};
use std::path::Path;

use evloopd::calendar::{Calendar, Cron, Expression, OnCalendar, Zones};
use jiff::Timestamp;

/// The most due times of one answer.
const TIMES_MAX: usize = 1_000;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [verb, zoneinfo] if verb == "answer" => answer_all(&Zones::open(Path::new(zoneinfo))),
        _ => {
            check();
            println!("calendars: answers questions, see tests/system/test_calendars.py");
            Ok(())
        }
    }
}

fn answer_all(zones: &Zones) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in io::stdin().lock().lines() {
        let answer = answer(zones, &line?);
        let answer = answer.unwrap_or_else(|reason| format!("refused: {reason}"));
        writeln!(out, "{answer}")?;
    }
    out.flush()
}

fn answer(zones: &Zones, question: &str) -> Result<String, String> {
    let mut parts = question.splitn(5, '\t');
    let mut part = || parts.next().ok_or("a question has five parts");
    let (kind, zone, start, count, text) = (part()?, part()?, part()?, part()?, part()?);
    let start = Timestamp::from_second(start.parse().map_err(shown)?).map_err(shown)?;
    let count: usize = count.parse().map_err(shown)?;
    let expression: Expression = match kind {
        "cron" => text.parse::<Cron>().map_err(shown)?.into(),
        "event" => text.parse::<OnCalendar>().map_err(shown)?.into(),
        _ => return Err(format!("`{kind}` is not `cron` or `event`")),
    };
    let calendar = Calendar::new(expression, zone, zones).map_err(shown)?;
    let due = calendar.upcoming(start).take(count.min(TIMES_MAX));
    let due = due.map(|due| format!("{}.{:06}", due.as_second(), due.subsec_microsecond()));
    Ok(due.collect::<Vec<_>>().join(" "))
}

fn shown(error: impl Display) -> String {
    error.to_string()
}

/// Compares some answers with times that were computed by hand.
fn check() {
    let zones = Zones::open(Path::new("/nonexistent"));
    // From 2026-03-28 00:00 on, Berlin's time of that day and of the next, when 02:30 is a gap.
    for (question, expected) in [
        (
            "cron\tEurope/Berlin\t1774656000\t2\t30 2 * * *",
            Ok("1774661400.000000 1774746000.000000"),
        ),
        (
            "event\tUTC\t1774656000\t2\t*:*:0.5",
            Ok("1774656000.500000 1774656060.500000"),
        ),
        (
            "cron\tUTC\t1774656000\t1\t60 2 * * *",
            Err("minute: `60` is refused"),
        ),
        ("cron\tUTC", Err("a question has five parts")),
    ] {
        let found = answer(&zones, question);
        let as_expected = match (&found, expected) {
            (Ok(found), Ok(expected)) => found == expected,
            (Err(found), Err(expected)) => found.starts_with(expected),
            _ => false,
        };
        assert!(as_expected, "{question:?}: {found:?}");
    }
}
