//! The forms in which later lives find a watch, and those of an earlier life.

use std::sync::Arc;
use std::time::Duration;

use crate::access::ClientProcess;
use crate::clock::{self, Now};
use crate::driver::Driver;
use crate::event_loop::lifetime::{Bound, BoundTo, Lease, Lifetime, LifetimeEnd};
use crate::event_loop::record::{Ending, Record};
use crate::proto;
use crate::proto::state::{
    KeptEnding, KeptLease, KeptLifetime, KeptProcess, KeptWatch, KeptWatchState, kept_lifetime,
};
use crate::watch::Need;

pub(super) fn kept_watch(record: &Record) -> KeptWatch {
    let rare = record.rare();
    KeptWatch {
        name: record.name_text(),
        labels: record.labels().map(|l| (**l).clone()).unwrap_or_default(),
        user_data: record.control.about.user_data,
        kind: record.kind.name().to_owned(),
        spec: record.spec.decode(),
        lifetime: kept_lifetime_of(&record.lifetime),
        created: record.created,
        added: record.added,
        parent: rare.map_or(0, |rare| rare.parent),
        finished_ttl: record.finished_ttl().map(clock::duration),
    }
}

pub(super) fn kept_state(record: &Record, driver: &dyn Driver) -> KeptWatchState {
    let need = record.need;
    KeptWatchState {
        events: need.events,
        bytes: need.bytes,
        sources: need.sources,
        closing: record.closing,
        ending: record.ending().map(|ending| KeptEnding {
            closed: Some(ending.closed.clone()),
            seq: ending.seq,
            at_realtime: ending.at.realtime,
            at_monotonic: ending.at.monotonic,
            expires: ending.expires,
        }),
        of: record.watch.as_ref().and_then(|watch| watch.keep(driver)),
    }
}

/// Returns how a watch of an earlier life has closed.
pub(in crate::event_loop) fn ending_of(kept: KeptEnding) -> Ending {
    Ending {
        closed: kept.closed.unwrap_or_default(),
        seq: kept.seq,
        at: Now {
            realtime: kept.at_realtime,
            monotonic: kept.at_monotonic,
            ..Now::default()
        },
        expires: kept.expires,
    }
}

/// Returns what a watch of an earlier life still needs.
pub(in crate::event_loop) const fn need_of(kept: &KeptWatchState) -> Need {
    Need {
        sources: kept.sources,
        events: kept.events,
        bytes: kept.bytes,
    }
}

/// Returns a lifetime as later lives find it; `None` if it is that of the daemon.
#[must_use]
pub fn kept_lifetime_of(lifetime: &Lifetime) -> Option<KeptLifetime> {
    let Lifetime::Bound(bound) = lifetime else {
        return None;
    };
    let to = match &bound.to {
        BoundTo::Process(process) => Some(kept_lifetime::To::Process(KeptProcess {
            pid: process.pid(),
            start_time: process.started(),
        })),
        BoundTo::Released => None,
        BoundTo::Lease(lease) => Some(kept_lifetime::To::Lease(KeptLease {
            length: Some(clock::duration(lease.length())),
            expires: lease.expires(),
        })),
    };
    let at_end = match bound.at_end {
        LifetimeEnd::Close => proto::LifetimeEnd::Close,
        LifetimeEnd::KillTree => proto::LifetimeEnd::KillTree,
        LifetimeEnd::Keep => proto::LifetimeEnd::Keep,
    };
    Some(KeptLifetime {
        at_end: at_end.into(),
        to,
    })
}

/// Returns a lifetime of an earlier life, and whether it is over since.
#[must_use]
pub fn lifetime_of(kept: Option<&KeptLifetime>) -> (Lifetime, bool) {
    let Some(kept) = kept else {
        return (Lifetime::Daemon, false);
    };
    let at_end = match kept.at_end() {
        proto::LifetimeEnd::KillTree => LifetimeEnd::KillTree,
        proto::LifetimeEnd::Keep => LifetimeEnd::Keep,
        proto::LifetimeEnd::Close | proto::LifetimeEnd::Unspecified => LifetimeEnd::Close,
    };
    let (to, is_over) = match &kept.to {
        Some(kept_lifetime::To::Process(process)) => {
            match ClientProcess::again(process.pid, process.start_time) {
                Some(process) => (BoundTo::Process(Arc::new(process)), false),
                None => (BoundTo::Released, true),
            }
        }
        Some(kept_lifetime::To::Lease(lease)) => {
            let length = lease
                .length
                .and_then(|length| Duration::try_from(length).ok());
            let lease = Lease::again(length.unwrap_or_default(), lease.expires);
            (BoundTo::Lease(lease), false)
        }
        None => (BoundTo::Released, false),
    };
    (Lifetime::Bound(Box::new(Bound { to, at_end })), is_over)
}
