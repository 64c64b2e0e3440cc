//! Limits and counts the daemon's memory that the calls of a connection hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::connection_limits::PrincipalUsage;
use crate::error::{Error, Result};
use crate::memory::{Budget, Taken, Use};

/// Bytes that the calls of a connection may hold whatever other connections hold, so that small
/// calls go on when all other memory is taken.
const FREE_MAX: u64 = 64 * 1024;
/// The bytes of `FREE_MAX` of all connections together are at most one part in this many of the
/// limit.
const ASIDE: u64 = 8;
/// A principal may take at most one part in this many of the budget that other principals have left.
/// One of its connections may take at most the same part of what its other connections have left.
const SHARE: u64 = 2;
/// Bytes that a stream may always send at a time, whatever others hold; or one event, if it is
/// larger.
pub(super) const LEAST: usize = 1024;

/// Divides the memory budget between connections.
#[derive(Debug, Clone)]
pub struct MemoryQuotas {
    budget: Arc<Budget>,
    /// Bytes that each connection may hold whatever others hold.
    free: u64,
}

impl MemoryQuotas {
    /// Divides the budget for at most this many connections.
    #[must_use]
    pub fn new(budget: &Arc<Budget>, connections: usize) -> Self {
        let connections = connections.max(1) as u64;
        let free = (budget.limit() / ASIDE / connections).min(FREE_MAX);
        budget.set_aside(free * connections);
        Self {
            budget: Arc::clone(budget),
            free,
        }
    }

    /// Makes the quota of one of the principal's connections. It holds nothing yet.
    pub(super) fn quota(&self, usage: &Arc<PrincipalUsage>) -> Arc<MemoryQuota> {
        Arc::new(MemoryQuota {
            quotas: self.clone(),
            usage: Arc::clone(usage),
            free: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        })
    }
}

/// The memory that one connection holds, and may hold.
#[derive(Debug)]
pub(super) struct MemoryQuota {
    quotas: MemoryQuotas,
    usage: Arc<PrincipalUsage>,
    /// Bytes held that are the connection's own.
    free: AtomicU64,
    /// Bytes held that were taken from the shared budget.
    taken: AtomicU64,
}

impl MemoryQuota {
    /// Makes the charge of one call. It holds nothing yet.
    pub(super) fn empty_charge(self: &Arc<Self>, by: Use) -> Charge {
        Charge {
            quota: Arc::clone(self),
            by,
            free: 0,
            taken: None,
        }
    }

    /// Makes the charge of one call, which holds `bytes`.
    ///
    /// # Errors
    /// The same as of [`Charge::grow`].
    pub(super) fn charge(self: &Arc<Self>, by: Use, bytes: u64) -> Result<Charge> {
        let mut held = self.empty_charge(by);
        held.grow(bytes)?;
        Ok(held)
    }

    /// Returns how many bytes of the shared budget this connection may still take.
    fn left(&self) -> u64 {
        let share = |left: u64, taken: &AtomicU64| {
            let taken = taken.load(Ordering::Relaxed);
            ((left + taken) / SHARE).saturating_sub(taken)
        };
        let left = share(self.quotas.budget.left(), &self.usage.taken);
        share(left, &self.taken)
    }

    /// Returns how many of `bytes` may be read at once in order to send them.
    pub(super) fn readable(&self, bytes: usize) -> usize {
        let left = usize::try_from(self.left()).unwrap_or(usize::MAX);
        bytes.min(left.max(LEAST))
    }
}

/// The memory that one call holds. Dropping it gives everything back.
#[derive(Debug)]
pub(super) struct Charge {
    quota: Arc<MemoryQuota>,
    by: Use,
    /// Bytes of the connection's own.
    free: u64,
    /// Bytes of the shared budget.
    taken: Option<Taken>,
}

impl Charge {
    /// Holds more bytes.
    ///
    /// # Errors
    /// [`Error::Limit`] if the connection would hold too large a part of what is left. Then nothing
    /// has changed.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<()> {
        let quota = &self.quota;
        let MemoryQuotas { budget, free, .. } = &quota.quotas;
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| sum <= free);
        let order = Ordering::Relaxed;
        if quota.free.fetch_update(order, order, fits).is_ok() {
            budget.lend(self.by, bytes);
            self.free += bytes;
            return Ok(());
        }
        if bytes > quota.left() {
            return Err(Error::limit("limits.memory", budget.limit()));
        }
        match &mut self.taken {
            Some(taken) => taken.grow(bytes)?,
            None => self.taken = Some(budget.take(self.by, bytes)?),
        }
        quota.taken.fetch_add(bytes, order);
        quota.usage.taken.fetch_add(bytes, order);
        Ok(())
    }

    /// Gives bytes back; everything, if the call holds less.
    pub(super) fn shrink(&mut self, mut bytes: u64) {
        if let Some(taken) = &mut self.taken {
            let part = bytes.min(taken.bytes());
            taken.shrink(part);
            self.quota.taken.fetch_sub(part, Ordering::Relaxed);
            self.quota.usage.taken.fetch_sub(part, Ordering::Relaxed);
            bytes -= part;
        }
        let part = bytes.min(self.free);
        if part > 0 {
            self.free -= part;
            self.quota.free.fetch_sub(part, Ordering::Relaxed);
            self.quota.quotas.budget.give_back(self.by, part);
        }
    }

    /// Gives everything back.
    pub(super) fn clear(&mut self) {
        self.shrink(u64::MAX);
    }

    /// Returns the same as [`MemoryQuota::readable`].
    pub(super) fn readable(&self, bytes: usize) -> usize {
        self.quota.readable(bytes)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_and_all_is_given_back() {
        const LIMIT: u64 = 64 << 20;
        let budget = Budget::new(LIMIT);
        let quotas = MemoryQuotas::new(&budget, 128);
        let (ours, theirs) = (Arc::default(), Arc::default());
        let greedy: Vec<_> = (0..8).map(|_| quotas.quota(&ours)).collect();
        let mut held = Vec::new();
        for quota in &greedy {
            while let Ok(part) = quota.charge(Use::Requests, 1 << 20) {
                held.push(part);
            }
        }
        assert!(budget.total() + budget.for_rest() <= LIMIT);
        assert!(budget.for_rest() >= LIMIT / 2);
        // A new connection gets its own bytes, and half of what is left.
        let newcomer = quotas.quota(&ours);
        held.push(newcomer.charge(Use::Requests, FREE_MAX).unwrap());
        held.push(newcomer.charge(Use::Polls, 64 << 10).unwrap());
        assert!(newcomer.charge(Use::Requests, 1 << 20).is_err());
        assert_eq!(budget.held(Use::Polls), 64 << 10);
        // The connection that holds most has all of its share.
        held[0].shrink(1 << 10);
        assert!(held[0].grow(1 << 20).is_err());
        // Another principal gets as much as if the first one had only one connection.
        let other = quotas.quota(&theirs);
        held.push(other.charge(Use::Requests, 3 << 20).unwrap());
        drop(held);
        assert_eq!(budget.total(), 0);
        assert_eq!(newcomer.free.load(Ordering::Relaxed), 0);
        let taken = [&ours, &theirs].map(|usage| usage.taken.load(Ordering::Relaxed));
        assert_eq!(taken, [0, 0]);
    }
}
