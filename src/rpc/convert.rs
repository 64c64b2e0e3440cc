//! Conversions of request fields to checked values. Every error names the field.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::access::Peer;
use crate::clock;
use crate::config::History;
use crate::error::{Error, Result};
use crate::event::{Cursor, Labels};
use crate::event_loop::{
    Bound, BoundTo, Handle, LEASE_MAX, LEASE_MIN, Lease, Lifetime, LifetimeEnd, WatchName,
};
use crate::journal::{Filter, Start};
use crate::policy::LoopName;
use crate::proto;

/// Most labels of a watch.
const LABELS_MAX: usize = 16;
/// Longest key or value of a label, request id and topic, bytes.
pub(super) const TEXT_MAX: usize = crate::event::largest::TEXT_MAX as usize;
/// Most watches, and most kinds, that a filter names.
const FILTER_MAX: usize = 1024;

pub(super) fn loop_name(reference: Option<proto::LoopRef>) -> LoopName {
    match reference.and_then(|r| r.r#ref) {
        None => LoopName::Context,
        Some(proto::loop_ref::Ref::Name(name)) => LoopName::Name(name),
        Some(proto::loop_ref::Ref::LoopId(id)) => LoopName::Id(id),
    }
}

pub(super) fn watch_name(reference: Option<proto::WatchRef>) -> Result<WatchName> {
    match reference.and_then(|r| r.r#ref) {
        None => Err(Error::invalid(
            "watch",
            "must be set, to a watch_id or a name",
        )),
        Some(proto::watch_ref::Ref::WatchId(id)) => Ok(WatchName::Id(id)),
        Some(proto::watch_ref::Ref::Name(name)) => Ok(WatchName::Name(name)),
    }
}

pub(super) fn cursor(field: &'static str, cursor: &proto::Cursor) -> Result<Cursor> {
    let epoch = match cursor.epoch.as_str() {
        "" => None,
        epoch => {
            let parsed = epoch.parse();
            Some(parsed.map_err(|allowed| Error::invalid(format!("{field}.epoch"), allowed))?)
        }
    };
    Ok(Cursor {
        epoch,
        seq: cursor.seq,
    })
}

/// Converts the start after a cursor, for a call without snapshots.
pub(super) fn after(field: &'static str, cursor: &proto::Cursor, on_gap: i32) -> Result<Start> {
    Ok(Start::After {
        cursor: self::cursor(field, cursor)?,
        skip: skips_gap(on_gap)?,
    })
}

/// Returns whether lost events at the start become a gap instead of an error, for a call without
/// snapshots.
pub(super) fn skips_gap(value: i32) -> Result<bool> {
    match on_gap(value)? {
        OnGap::Fail => Ok(false),
        OnGap::Skip => Ok(true),
        OnGap::Snapshot => Err(Error::invalid(
            "on_gap",
            "must be FAIL or SKIP: this call sends no snapshots",
        )),
    }
}

/// What happens if some events after the start are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnGap {
    Fail,
    Skip,
    Snapshot,
}

pub(super) fn on_gap(value: i32) -> Result<OnGap> {
    match proto::OnGap::try_from(value) {
        Ok(proto::OnGap::Unspecified | proto::OnGap::Fail) => Ok(OnGap::Fail),
        Ok(proto::OnGap::Skip) => Ok(OnGap::Skip),
        Ok(proto::OnGap::Snapshot) => Ok(OnGap::Snapshot),
        Err(_) => Err(Error::invalid("on_gap", "must be FAIL, SKIP or SNAPSHOT")),
    }
}

/// Checks that a duration is within bounds. Returns `absent` if none is given.
pub(super) fn duration(
    field: &'static str,
    given: Option<prost_types::Duration>,
    absent: Duration,
    bounds: std::ops::RangeInclusive<Duration>,
) -> Result<Duration> {
    match given {
        None => Ok(absent),
        Some(given) => within(field, &given, bounds),
    }
}

/// Checks a duration that is given.
pub(super) fn within(
    field: impl Into<Cow<'static, str>>,
    given: &prost_types::Duration,
    bounds: std::ops::RangeInclusive<Duration>,
) -> Result<Duration> {
    let duration = clock::span(given);
    duration.filter(|d| bounds.contains(d)).ok_or_else(|| {
        let (least, most) = (bound(*bounds.start()), bound(*bounds.end()));
        Error::invalid(field, format!("must be {least} to {most}"))
    })
}

/// Returns a bound in the largest unit of which it is a whole number; a year has 365 days.
fn bound(bound: Duration) -> String {
    const UNITS: [(&str, u128); 6] = [
        (" days", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("min", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
    ];
    let nanos = bound.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let whole = |(_, unit): &&(&str, u128)| nanos.is_multiple_of(*unit);
    match UNITS.iter().find(whole) {
        Some((" days", day)) if nanos == *day => "1 day".to_owned(),
        Some((" days", day)) if nanos.is_multiple_of(day * 365) => {
            format!("{} years", nanos / day / 365)
        }
        Some((name, unit)) => format!("{}{name}", nanos / unit),
        None => format!("{nanos}ns"),
    }
}

/// Does the same as [`duration`] from 0 on, but returns `None` if none is given.
pub(super) fn optional_duration(
    field: &'static str,
    given: Option<prost_types::Duration>,
    most: Duration,
) -> Result<Option<Duration>> {
    optional_within(field, given, Duration::ZERO..=most)
}

/// Does the same as [`within`], but returns `None` if none is given.
pub(super) fn optional_within(
    field: &'static str,
    given: Option<prost_types::Duration>,
    bounds: std::ops::RangeInclusive<Duration>,
) -> Result<Option<Duration>> {
    given.map(|given| within(field, &given, bounds)).transpose()
}

pub(super) fn labels(field: &'static str, labels: BTreeMap<String, String>) -> Result<Labels> {
    let long = |text: &String| text.len() > TEXT_MAX;
    if labels.len() > LABELS_MAX {
        return Err(Error::invalid(field, "must be at most 16 labels"));
    }
    if labels
        .iter()
        .any(|(k, v)| k.is_empty() || long(k) || long(v))
    {
        let allowed = "must have keys of 1 to 128 bytes and values of at most 128 bytes";
        return Err(Error::invalid(field, allowed));
    }
    Ok(Arc::new(labels))
}

pub(super) fn short_text(field: impl Into<Cow<'static, str>>, text: String) -> Result<String> {
    if text.len() > TEXT_MAX {
        return Err(Error::invalid(field, "must be at most 128 bytes"));
    }
    Ok(text)
}

/// Checks the name of a new watch. Returns `None` if it is empty.
pub(super) fn new_watch_name(field: &'static str, name: &str) -> Result<Option<Arc<str>>> {
    if name.is_empty() {
        return Ok(None);
    }
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"._:/@-".contains(&b);
    let first = name.as_bytes()[0].is_ascii_alphanumeric();
    if !first || name.len() > TEXT_MAX || !name.bytes().all(rest) || names_a_run(name) {
        let allowed = "must match [A-Za-z0-9][A-Za-z0-9._:/@-]{0,127} and not end in @ and digits";
        return Err(Error::invalid(field, allowed));
    }
    Ok(Some(name.into()))
}

/// Returns whether the name ends in `@` and digits, as the names of a series' runs do.
fn names_a_run(name: &str) -> bool {
    let number = name.rsplit_once('@').map_or("", |(_, number)| number);
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

pub(super) fn if_exists(value: i32) -> Result<bool> {
    match proto::IfExists::try_from(value) {
        Ok(proto::IfExists::Unspecified | proto::IfExists::Fail) => Ok(false),
        Ok(proto::IfExists::Return) => Ok(true),
        Err(_) => Err(Error::invalid("if_exists", "must be FAIL or RETURN")),
    }
}

/// Converts whether a new loop keeps its events; `None` leaves it to the policy.
pub(super) fn history(value: i32) -> Result<Option<History>> {
    match proto::History::try_from(value) {
        Ok(proto::History::Unspecified) => Ok(None),
        Ok(proto::History::Kept) => Ok(Some(History::Kept)),
        Ok(proto::History::None) => Ok(Some(History::None)),
        Err(_) => Err(Error::invalid("history", "must be KEPT or NONE")),
    }
}

/// Converts the lifetime of a loop or watch. If none is given it is `usual`, or the daemon's.
pub(super) fn lifetime(
    value: i32,
    lease: Option<prost_types::Duration>,
    at_end: i32,
    peer: &Peer,
    usual: Option<Lifetime>,
) -> Result<Lifetime> {
    let given = proto::Lifetime::try_from(value);
    let length = lease_length(lease)?;
    if (given == Ok(proto::Lifetime::Lease)) != length.is_some() {
        let allowed = "must be set with the lifetime LEASE, and absent with another";
        return Err(Error::invalid("lease", allowed));
    }
    let to = match given {
        Ok(proto::Lifetime::Unspecified) => match usual {
            Some(Lifetime::Bound(bound)) => Some(bound.to),
            _ => None,
        },
        Ok(proto::Lifetime::Daemon) => None,
        Ok(proto::Lifetime::Process) => {
            let unseen = || {
                Error::invalid(
                    "lifetime",
                    "must be DAEMON or LEASE: the daemon cannot see your process",
                )
            };
            Some(BoundTo::Process(peer.process.clone().ok_or_else(unseen)?))
        }
        Ok(proto::Lifetime::Lease) => length.map(|length| BoundTo::Lease(Lease::new(length))),
        Err(_) => {
            let allowed = "must be DAEMON, PROCESS or LEASE";
            return Err(Error::invalid("lifetime", allowed));
        }
    };
    let field = "at_lifetime_end";
    let at_end = match proto::LifetimeEnd::try_from(at_end) {
        Ok(proto::LifetimeEnd::Unspecified) => None,
        Ok(proto::LifetimeEnd::Close) => Some(LifetimeEnd::Close),
        Ok(proto::LifetimeEnd::KillTree) => Some(LifetimeEnd::KillTree),
        Ok(proto::LifetimeEnd::Keep) => Some(LifetimeEnd::Keep),
        Err(_) => return Err(Error::invalid(field, "must be CLOSE, KILL_TREE or KEEP")),
    };
    match (to, at_end) {
        (Some(to), at_end) => Ok(Lifetime::Bound(Box::new(Bound {
            to,
            at_end: at_end.unwrap_or_default(),
        }))),
        (None, None) => Ok(Lifetime::Daemon),
        (None, Some(_)) => Err(Error::invalid(
            field,
            "must be unspecified with the lifetime DAEMON",
        )),
    }
}

/// Converts the length of a lease.
pub(super) fn lease_length(given: Option<prost_types::Duration>) -> Result<Option<Duration>> {
    optional_within("lease", given, LEASE_MIN..=LEASE_MAX)
}

/// Checks that a loop can have consumers: it must keep the events that a consumer has not
/// acknowledged.
pub(super) fn can_consume(field: &'static str, on: &Handle) -> Result<()> {
    if on.journal().keeps_history() {
        return Ok(());
    }
    let allowed = "must not be set on a loop without history: such a loop has no consumers";
    Err(Error::invalid(field, allowed))
}

pub(super) fn filter(filter: Option<proto::Filter>) -> Result<Filter> {
    let filter = filter.unwrap_or_default();
    if filter.watch_ids.len() > FILTER_MAX || filter.kinds.len() > FILTER_MAX {
        return Err(Error::invalid(
            "filter",
            "must name at most 1024 watches and 1024 kinds",
        ));
    }
    // The values of EventKind are field numbers and fit into a byte.
    let number = |kind| u8::try_from(i32::from(kind)).unwrap_or(0);
    let kind = |kind: &i32| match proto::EventKind::try_from(*kind) {
        Ok(proto::EventKind::Unspecified) | Err(_) => Err(Error::invalid(
            "filter.kinds",
            "must be values of EventKind",
        )),
        Ok(kind) => Ok(number(kind)),
    };
    let kinds = filter.kinds.iter().map(kind);
    let mut kinds = kinds.collect::<Result<BTreeSet<u8>>>()?;
    if kinds.contains(&number(proto::EventKind::Ready)) {
        // A client that waits for a watch to be ready has to learn that the watch is closed.
        kinds.insert(number(proto::EventKind::Closed));
    }
    Ok(Filter {
        watches: filter.watch_ids.into_iter().collect(),
        kinds,
        labels: (*labels("filter.labels", filter.labels)?).clone(),
        until_closed: false,
    })
}

/// Returns the size of a page and the id after which the page begins.
pub(super) fn page(size: u32, token: &str) -> Result<(usize, u64)> {
    let size = match size {
        0 => 100,
        1..=1000 => size as usize,
        _ => return Err(Error::invalid("page_size", "must be at most 1000")),
    };
    if token.is_empty() {
        return Ok((size, 0));
    }
    let after = token.parse();
    let after = after.map_err(|_| {
        Error::invalid(
            "page_token",
            "must be the next_page_token of an earlier answer",
        )
    })?;
    Ok((size, after))
}

/// Converts a signal, given by name or number, to its number.
pub(super) fn signal(field: &'static str, text: &str) -> Result<i32> {
    let number = text
        .parse::<i32>()
        .ok()
        .filter(|n| (1..=64).contains(n))
        .or_else(|| crate::config::signal_number(text));
    number.ok_or_else(|| {
        let allowed =
            format!("`{text}` must be a name as in signal(7), SIGRTMIN+n or a number from 1 to 64");
        Error::invalid(field, allowed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_shown_in_its_largest_whole_unit() {
        let day = Duration::from_secs(86_400);
        for (given, shown) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(1), "1ns"),
            (Duration::from_micros(1), "1us"),
            (Duration::from_millis(10), "10ms"),
            (Duration::from_millis(1500), "1500ms"),
            (Duration::from_secs(1), "1s"),
            (Duration::from_secs(300), "5min"),
            (Duration::from_secs(3600), "1h"),
            (day, "1 day"),
            (day * 30, "30 days"),
            (day * 365 * 100, "100 years"),
        ] {
            assert_eq!(bound(given), shown);
        }
    }
}
