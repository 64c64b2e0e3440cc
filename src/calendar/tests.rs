//! Tests of whole calendars: the rules by name, the oracle, and texts from outside.

mod bounds;
mod oracle;
mod random;
mod rules;
mod texts;

use std::path::Path;

use jiff::Timestamp;

use super::{Calendar, Cron, OnCalendar, Zones};

pub(super) use self::random::Random;

/// The zones of the bundled database alone, so that results do not depend on the host.
pub(super) fn zones() -> Zones {
    Zones::open_with(Path::new("/nonexistent"), Path::new("/nonexistent"))
}

pub(super) fn cron(text: &str, zone: &str) -> Calendar {
    let cron: Cron = text
        .parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    Calendar::new(cron, zone, &zones()).unwrap()
}

pub(super) fn event(text: &str, zone: &str) -> Calendar {
    let event: OnCalendar = text
        .parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    Calendar::new(event, zone, &zones()).unwrap()
}

/// Reads a local time with its offset.
pub(super) fn instant(text: &str) -> Timestamp {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The next times after one, as local times with offsets.
pub(super) fn upcoming(calendar: &Calendar, after: &str, count: usize) -> Vec<String> {
    let due = calendar.upcoming(instant(after)).take(count);
    let shown = |due: Timestamp| {
        let offset = calendar.zone().time_zone().to_offset(due);
        format!("{}{offset}", offset.to_datetime(due))
    };
    due.map(shown).collect()
}
