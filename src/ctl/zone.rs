//! Time zones and calendar expressions on the command line.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::failure::{Failure, USAGE, complain};
use super::units::span;
use crate::calendar::{Calendar, Cron, Expression, Meaning, OnCalendar, Zone, Zones, read_time};

/// The host's database of zones.
const DATABASE: &str = "/usr/share/zoneinfo";
/// What is one word short of it.
const ALMOST_CRON: usize = CRON_WORDS - 1;
/// Fewer words than an expression of cron has are one of systemd.
const CRON_WORDS: usize = 5;
/// The name of the host's own zone.
pub(super) const LOCAL: &str = "local";

fn refused(error: &dyn std::fmt::Display) -> Failure {
    Failure::plain(error.to_string()).code(USAGE)
}

/// Opens the databases of zones.
pub(super) fn zones() -> Zones {
    Zones::open(Path::new(DATABASE))
}

/// Returns the zone of the command line, else of the environment, else of the host.
pub(super) fn zone(name: Option<&str>, zones: &Zones) -> Result<Zone, Failure> {
    let zone = match (name, std::env::var("TZ")) {
        (Some(name), _) => zones.get(name),
        (None, Ok(variable)) => zones.from_variable(&variable),
        (None, Err(_)) => zones.get(LOCAL),
    };
    zone.map_err(|error| refused(&error))
}

/// Returns the name by which the daemon finds a zone: one that the command line has, else that of the
/// zone of the environment or the host, else `local`.
pub(super) fn name_for_daemon(given: Option<&str>, zone: &Zone, zones: &Zones) -> String {
    match given {
        Some(given) => given.to_owned(),
        None if zones.get(zone.name()).is_ok() => zone.name().to_owned(),
        None => LOCAL.to_owned(),
    }
}

/// Reads an expression of either kind.
pub(super) fn expression(text: &str) -> Result<Expression, Failure> {
    let is_cron =
        text.trim_start().starts_with('@') || text.split_whitespace().count() >= CRON_WORDS;
    let read = if is_cron {
        text.parse::<Cron>().map(Expression::from)
    } else {
        text.parse::<OnCalendar>().map(Expression::from)
    };
    let expression = read.map_err(|error| match is_almost_cron(text) {
        true => refused(&error).advice("cron has five fields, or six with the second first"),
        false => refused(&error),
    })?;
    if expression.is_more_than_once_a_minute() {
        complain("it is due more than once a minute: six fields begin with the second");
    }
    Ok(expression)
}

/// Whether the words look like fields of cron, but are too few.
fn is_almost_cron(text: &str) -> bool {
    let of_cron = |word: &str| {
        let is_of = |c: char| c.is_ascii_digit() || "*/,-?".contains(c);
        word.chars().all(is_of)
    };
    text.split_whitespace().count() == ALMOST_CRON && text.split_whitespace().all(of_cron)
}

/// Returns the calendar of an expression, in its own zone or in `zone`. It is due at least once more.
pub(super) fn calendar(
    expression: Expression,
    zone: Zone,
    zones: &Zones,
    after: Timestamp,
) -> Result<Calendar, Failure> {
    let calendar = match expression.zone() {
        Some(name) => Calendar::new(expression.clone(), name, zones),
        None => Ok(Calendar::in_zone(expression, zone)),
    };
    let calendar = calendar.map_err(|error| refused(&error))?;
    calendar
        .first_after(after)
        .map_err(|error| refused(&error))?;
    Ok(calendar)
}

/// Reads a time from now on. Says so if the local clock does not show it, or shows it twice.
pub(super) fn time(text: &str, zone: &Zone) -> Result<Timestamp, Failure> {
    let at = read_time(text, Timestamp::now(), zone).map_err(|error| refused(&error))?;
    match at.meaning {
        Meaning::Exact => {}
        Meaning::AfterGap { asked } => complain(format!(
            "the clock is set forward over {asked}: it becomes {}",
            at.local
        )),
        Meaning::FirstPass { second } => complain(format!(
            "the clock shows {} twice: it is the first time, not {}",
            at.local,
            shown(second, zone)
        )),
    }
    Ok(at.instant)
}

/// Returns a time on the clock of a zone, with its offset and the zone's name.
pub(super) fn shown(at: Timestamp, zone: &Zone) -> String {
    let local = zone.time_zone().to_datetime(at);
    let offset = zone.time_zone().to_offset(at);
    let local = local.strftime("%a %Y-%m-%d %H:%M:%S");
    format!("{local} {offset} {}", zone.name())
}

/// As [`shown`], with how long it is until then.
pub(super) fn shown_with_wait(at: Timestamp, zone: &Zone, now: Timestamp) -> String {
    let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
    let wait = if wait.is_zero() {
        String::new()
    } else {
        format!("  in {}", span(wait))
    };
    format!("{}{wait}", shown(at, zone))
}
