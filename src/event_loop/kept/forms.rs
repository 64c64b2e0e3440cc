//! The forms in which later lives find a watch, and those of an earlier life.

use std::collections::HashMap;
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
            watch: Some(proto::Watch {
                status: record.status(driver),
                ..proto::Watch::default()
            }),
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
        status: kept.watch.and_then(|watch| watch.status).map(Box::new),
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

/// Client processes of an earlier life that have been looked for: each is opened once, however many
/// watches are bound to it.
#[derive(Debug, Default)]
pub struct Clients(HashMap<(i32, u64), (BoundTo, bool)>);

impl Clients {
    /// Returns what is bound to a process, and whether that has ended.
    fn find(&mut self, of: KeptProcess) -> (BoundTo, bool) {
        let known = self.0.entry((of.pid, of.start_time));
        let found = known.or_insert_with(|| match ClientProcess::again(of.pid, of.start_time) {
            Ok(Some(process)) => (BoundTo::Process(Arc::new(process)), false),
            Ok(None) => (BoundTo::Released, true),
            Err(error) => {
                tracing::error!(pid = of.pid, %error, "the end of a client would not be noticed");
                (BoundTo::Released, false)
            }
        });
        found.clone()
    }
}

/// Returns a lifetime of an earlier life, and whether it is over since.
#[must_use]
pub fn lifetime_of(kept: Option<&KeptLifetime>, clients: &mut Clients) -> (Lifetime, bool) {
    let Some(kept) = kept else {
        return (Lifetime::Daemon, false);
    };
    let at_end = match kept.at_end() {
        proto::LifetimeEnd::KillTree => LifetimeEnd::KillTree,
        proto::LifetimeEnd::Keep => LifetimeEnd::Keep,
        proto::LifetimeEnd::Close | proto::LifetimeEnd::Unspecified => LifetimeEnd::Close,
    };
    let (to, is_over) = match &kept.to {
        Some(kept_lifetime::To::Process(process)) => clients.find(*process),
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
