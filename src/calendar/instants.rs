//! From civil times to instants, in a zone: the rule for gaps and overlaps.
//!
//! Instants and civil times are microseconds since 1970-01-01 00:00:00, in UTC and on the local
//! clock. A zone is a sequence of segments with one offset each. Between two of them the local
//! clock jumps: forward over a gap, or back into an overlap, by up to a day where a country has
//! crossed the date line.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::civil::HOUR;
use super::pattern::{Class, Pattern};

/// No local clock differs from UTC by as much: jiff takes at most 25:59:59.
const OFFSET_MAX: i64 = 26 * HOUR;
/// No two local clocks differ by as much, so that a local clock shows no time again after this.
const SWING: i64 = 2 * OFFSET_MAX;
/// The largest number of segments that a search visits. It skips those that lie before the next
/// matching civil time, so this is needed only if that time lies in a gap each year.
const SEGMENTS_MAX: usize = 4_096;

/// A time with one offset.
#[derive(Debug, Clone, Copy)]
struct Segment {
    /// Local time minus UTC.
    offset: i64,
    /// The first instant that no longer belongs to it.
    end: i64,
}

fn segment(zone: &TimeZone, at: i64) -> Option<Segment> {
    let at = Timestamp::from_microsecond(at).ok()?;
    let next = zone.following(at).next();
    Some(Segment {
        offset: offset(zone, at),
        end: next.map_or(i64::MAX, |next| next.timestamp().as_microsecond()),
    })
}

fn offset(zone: &TimeZone, at: Timestamp) -> i64 {
    i64::from(zone.to_offset(at).seconds()) * 1_000_000
}

/// Returns the first instant after `after` at which the pattern is due.
pub(super) fn next(pattern: &Pattern, zone: &TimeZone, after: i64) -> Option<i64> {
    match pattern.class {
        Class::Elapsed => next_shown(pattern, zone, after + 1),
        Class::Fixed => {
            let civil = pattern.next(latest_shown(zone, after)? + 1)?;
            first_reaching(zone, civil, after)
        }
    }
}

/// Returns the first instant from `at` on at which the local clock shows a matching time.
fn next_shown(pattern: &Pattern, zone: &TimeZone, mut at: i64) -> Option<i64> {
    for _ in 0..SEGMENTS_MAX {
        let segment = segment(zone, at)?;
        // After this the clock shows nothing before what it shows at `at`.
        let settled = segment.end >= at.saturating_add(SWING);
        at = match pattern.next(at + segment.offset) {
            Some(civil) if civil - segment.offset < segment.end => {
                return Some(civil - segment.offset);
            }
            Some(civil) if settled => segment.end.max(civil - OFFSET_MAX),
            None if settled => return None,
            _ => segment.end,
        };
    }
    None
}

/// Returns the latest time that the local clock has shown until `at`, inclusive. It is more than
/// the clock shows at `at` if that is within the second pass of an overlap.
fn latest_shown(zone: &TimeZone, at: i64) -> Option<i64> {
    let instant = Timestamp::from_microsecond(at).ok()?;
    let mut latest = at + offset(zone, instant);
    let until = Timestamp::from_microsecond(at + 1).ok()?;
    for change in zone.preceding(until) {
        let last = change.timestamp().as_microsecond() - 1;
        if last < at - SWING {
            break;
        }
        let before = Timestamp::from_microsecond(last).ok()?;
        latest = latest.max(last + offset(zone, before));
    }
    Some(latest)
}

/// Returns the first instant at which the local clock shows `civil` or a later time. At `after`
/// it has not shown it yet.
pub(super) fn first_reaching(zone: &TimeZone, civil: i64, after: i64) -> Option<i64> {
    let mut at = after.max(civil - OFFSET_MAX);
    loop {
        let segment = segment(zone, at)?;
        let instant = at.max(civil - segment.offset);
        if instant < segment.end {
            return Some(instant);
        }
        at = segment.end;
    }
}

/// Returns the local time at an instant.
pub(super) fn shown(zone: &TimeZone, at: i64) -> Option<i64> {
    Some(at + offset(zone, Timestamp::from_microsecond(at).ok()?))
}

/// Returns the next instant after `instant` at which the local clock shows the same time again.
pub(super) fn shown_again(zone: &TimeZone, instant: i64) -> Option<i64> {
    let civil = shown(zone, instant)?;
    let mut at = segment(zone, instant)?.end;
    while at < instant.saturating_add(SWING) {
        let segment = segment(zone, at)?;
        let again = civil - segment.offset;
        if again >= at && again < segment.end {
            return Some(again);
        }
        at = segment.end;
    }
    None
}

#[cfg(test)]
mod tests;
