//! How long loops and watches live, and what happens at the end of their lifetime.

use std::sync::Arc;
use std::time::Duration;

use super::command::Command;
use super::commands::WatchName;
use super::sweeps::Sweep;
use super::{EventLoop, Handle};
use crate::access::ClientProcess;
use crate::clock::{Now, nanos};
use crate::error::{Error, Result};
use crate::event::{CloseReason, Kind, LifetimeEnded, LoopState, UpdateCause, Updated, largest};
use crate::journal::Room;
use crate::kinds::WatchKind;
use crate::proto;

/// The shortest lease.
pub const LEASE_MIN: Duration = Duration::from_millis(100);
/// The longest lease.
pub const LEASE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// The room of the event that tells of the end of a lifetime after which the object stays.
pub const KEPT: u32 = largest::KEPT;

/// The lifetime to which a loop or a watch is bound.
#[derive(Debug, Clone, Default)]
pub enum Lifetime {
    /// The lifetime of the daemon.
    #[default]
    Daemon,
    /// Something that can end earlier.
    Bound(Box<Bound>),
}

/// What a lifetime is bound to, and what follows from its end.
#[derive(Debug, Clone)]
pub struct Bound {
    /// What it is bound to.
    pub to: BoundTo,
    /// What happens at its end.
    pub at_end: LifetimeEnd,
}

/// What a lifetime is bound to.
#[derive(Debug, Clone)]
pub enum BoundTo {
    /// The life of a client process.
    Process(Arc<ClientProcess>),
    /// The life of a client process, for a closed watch or loop, which keeps no descriptor of it.
    Released,
    /// A lease.
    Lease(Lease),
}

/// What happens to an object at the end of its lifetime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LifetimeEnd {
    /// It closes. A child is treated as its `at_end` says.
    #[default]
    Close,
    /// It closes, and all children are ended with their descendants.
    KillTree,
    /// It stays, and lives as long as the daemon.
    Keep,
}

/// A lifetime that ends unless it is renewed.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    length: Duration,
    /// When it runs out, in nanoseconds of the monotonic clock.
    expires: u64,
}

impl Lease {
    /// Returns a lease that begins now.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        let mut lease = Self { length, expires: 0 };
        lease.renew(None);
        lease
    }

    /// Returns a lease of an earlier life.
    pub(super) const fn again(length: Duration, expires: u64) -> Self {
        Self { length, expires }
    }

    pub(super) const fn expires(&self) -> u64 {
        self.expires
    }

    /// Begins the lease again. Returns its length.
    pub fn renew(&mut self, length: Option<Duration>) -> Duration {
        self.length = length.unwrap_or(self.length);
        self.expires = Now::sample().monotonic.saturating_add(nanos(self.length));
        self.length
    }

    /// Returns its length.
    #[must_use]
    pub const fn length(&self) -> Duration {
        self.length
    }

    /// Returns how much of it is left.
    #[must_use]
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.expires.saturating_sub(Now::sample().monotonic))
    }
}

impl Lifetime {
    /// Returns the lifetime of a client process, at whose end the object closes.
    #[must_use]
    pub fn of_process(process: Arc<ClientProcess>) -> Self {
        Self::Bound(Box::new(Bound {
            to: BoundTo::Process(process),
            at_end: LifetimeEnd::Close,
        }))
    }

    fn bound(&self) -> Option<&Bound> {
        match self {
            Self::Daemon => None,
            Self::Bound(bound) => Some(bound),
        }
    }

    /// Returns the process that this lifetime is bound to, if any.
    #[must_use]
    pub fn process(&self) -> Option<&Arc<ClientProcess>> {
        match &self.bound()?.to {
            BoundTo::Process(process) => Some(process),
            BoundTo::Released | BoundTo::Lease(_) => None,
        }
    }

    /// Drops the descriptor of the process, if the lifetime is bound to one: what has closed does not
    /// end with it any more.
    pub(super) fn release(&mut self) {
        if let Self::Bound(bound) = self
            && let BoundTo::Process(_) = bound.to
        {
            bound.to = BoundTo::Released;
        }
    }

    /// Returns the lease that this lifetime is bound to, if any.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        match &self.bound()?.to {
            BoundTo::Lease(lease) => Some(lease),
            BoundTo::Process(_) | BoundTo::Released => None,
        }
    }

    pub(super) fn lease_mut(&mut self) -> Option<&mut Lease> {
        match self {
            Self::Bound(bound) => match &mut bound.to {
                BoundTo::Lease(lease) => Some(lease),
                BoundTo::Process(_) | BoundTo::Released => None,
            },
            Self::Daemon => None,
        }
    }

    /// Returns when its lease runs out, in nanoseconds of the monotonic clock.
    pub(super) fn lease_expiry(&self) -> Option<u64> {
        self.lease().map(|lease| lease.expires)
    }

    /// Returns what happens at its end.
    #[must_use]
    pub fn at_end(&self) -> LifetimeEnd {
        self.bound()
            .map_or(LifetimeEnd::Close, |bound| bound.at_end)
    }

    /// Returns whether both are bound to the same, with the same end. All leases are the same.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let process = |of: &Self| of.process().map(|process| process.key());
        process(self) == process(other)
            && self.lease().is_some() == other.lease().is_some()
            && self.at_end() == other.at_end()
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// The lifetime is not a lease.
    pub(super) fn renew(&mut self, length: Option<Duration>) -> Result<Duration> {
        let lease = self.lease_mut();
        let lease = lease.ok_or_else(|| Error::wrong_state("its lifetime is not LEASE"))?;
        Ok(lease.renew(length))
    }

    /// Returns the lifetime, the end of it, and the lease with what is left of it, for clients.
    pub(super) fn to_proto(&self) -> ShownLifetime {
        let lifetime = match self.bound().map(|bound| &bound.to) {
            None => proto::Lifetime::Daemon,
            Some(BoundTo::Process(_) | BoundTo::Released) => proto::Lifetime::Process,
            Some(BoundTo::Lease(_)) => proto::Lifetime::Lease,
        };
        let at_end = match self.bound().map(|bound| bound.at_end) {
            None => proto::LifetimeEnd::Unspecified,
            Some(LifetimeEnd::Close) => proto::LifetimeEnd::Close,
            Some(LifetimeEnd::KillTree) => proto::LifetimeEnd::KillTree,
            Some(LifetimeEnd::Keep) => proto::LifetimeEnd::Keep,
        };
        ShownLifetime {
            lifetime,
            at_end,
            lease: self
                .lease()
                .map(|lease| crate::clock::duration(lease.length)),
            left: self
                .lease()
                .map(|lease| crate::clock::duration(lease.left())),
        }
    }
}

/// A lifetime as clients see it.
pub(super) struct ShownLifetime {
    pub(super) lifetime: proto::Lifetime,
    pub(super) at_end: proto::LifetimeEnd,
    pub(super) lease: Option<prost_types::Duration>,
    pub(super) left: Option<prost_types::Duration>,
}

impl Handle {
    /// Returns the lifetime that it is bound to.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        self.shared().lifetime.lock().clone()
    }

    /// Renews its lease. Returns the lease's length.
    ///
    /// # Errors
    /// The loop is closed, or its lifetime is not a lease.
    pub fn renew_lease(&self, length: Option<Duration>) -> Result<Duration> {
        if self.state() == LoopState::Closed {
            let name = self.full_name().to_owned();
            return Err(Error::LoopClosed { name });
        }
        self.shared().lifetime.lock().renew(length)
    }

    /// Renews the lease of a watch. Returns the lease's length.
    ///
    /// # Errors
    /// The watch is unknown or closed, or its lifetime is not a lease.
    pub async fn keep_alive(&self, name: WatchName, length: Option<Duration>) -> Result<Duration> {
        self.call(|reply| Command::KeepAlive {
            name,
            length,
            reply,
        })
        .await
    }

    /// Makes the loop live as long as the daemon, after its lifetime has ended, and tells its readers.
    ///
    /// # Errors
    /// The loop is closed.
    pub async fn keep(&self, reason: CloseReason) -> Result<()> {
        self.call_internal(|reply| Command::KeepLoop { reason, reply })
            .await
    }
}

impl EventLoop {
    /// Renews the lease of a watch.
    pub(super) fn keep_alive(
        &mut self,
        name: &WatchName,
        length: Option<Duration>,
    ) -> Result<Duration> {
        let slot = self.find_open(name)?;
        let renewed = self.watches.renew_lease(slot, length);
        self.keep_watch_as_it_is(slot);
        renewed
    }

    /// Ends the lifetimes of watches whose lease has run out.
    pub(super) fn expire_leases(&mut self) {
        for _ in 0..self.limits.turn_events {
            let Some(slot) = self.watches.expired_lease(self.now.monotonic) else {
                return;
            };
            self.lifetime_over(slot, CloseReason::LeaseExpired);
        }
    }

    /// Does to a watch whose lifetime has ended what it asked for.
    pub(super) fn lifetime_over(&mut self, slot: usize, reason: CloseReason) {
        let Some(record) = self.watches.get(slot) else {
            return;
        };
        if record.closing || record.is_closed() {
            return;
        }
        let at_end = record.lifetime.at_end();
        if reason == CloseReason::LeaseExpired
            && at_end != LifetimeEnd::Keep
            && record.kind == WatchKind::Listener
        {
            self.sweep(Sweep::Accepted(record.id(), reason));
        }
        match at_end {
            LifetimeEnd::Close => self.end(slot, reason),
            LifetimeEnd::KillTree => {
                self.with_watch(slot, |watch, _| watch.kill_at_end());
                self.end(slot, reason);
            }
            LifetimeEnd::Keep => self.keep_watch(slot, reason),
        }
    }

    fn keep_watch(&mut self, slot: usize, reason: CloseReason) {
        self.keep_for_snapshots(slot);
        let record = &mut self.watches[slot];
        record.lifetime = Lifetime::Daemon;
        record.need = record.need.without(KEPT);
        self.outbox.unreserve(Room::event(KEPT));
        let cause = match reason {
            CloseReason::LeaseExpired => UpdateCause::LeaseExpired,
            _ => UpdateCause::ProcessEnded,
        };
        let updated = Updated {
            cause: cause.into(),
            fields: vec!["lifetime".to_owned()],
            ..Updated::default()
        };
        let about = record.control.about;
        self.outbox.push(self.now, about, Kind::Updated(updated));
        self.keep_watch_as_it_is(slot);
    }

    /// Records that the loop's own lifetime has ended and that it stays.
    pub(super) fn keep_loop(&mut self, reason: CloseReason) -> Result<()> {
        self.check_open()?;
        let lifetime = std::mem::take(&mut *self.shared.lifetime.lock());
        if lifetime.at_end() == LifetimeEnd::Keep {
            self.outbox.unreserve(Room::event(KEPT));
            let ended = LifetimeEnded {
                reason: reason.into(),
            };
            self.emit(Kind::LifetimeEnded(ended));
        }
        Ok(())
    }
}
