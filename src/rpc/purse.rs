//! Counts the daemon's memory that the calls of one connection hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::places::Party;
use crate::error::{Error, Result};
use crate::memory::{Budget, Taken, Use};

/// Bytes that the calls of a connection may hold whatever other connections hold, so that small
/// calls go on when all other memory is taken.
const FREE_MAX: u64 = 64 * 1024;
/// Such bytes of all connections together are at most one part in this many of the limit.
const ASIDE: u64 = 8;
/// A principal may take at most one part in this many of the budget that others have left, and a
/// connection the same part of what its principal's other connections have left of that.
const SHARE: u64 = 2;
/// Bytes that a stream may always send at a time, whatever others hold; or one event, if it is
/// larger.
pub(super) const LEAST: usize = 1024;

/// The memory budget, as it is shared between connections.
#[derive(Debug, Clone)]
pub struct Treasury {
    budget: Arc<Budget>,
    /// Bytes that each connection may hold whatever others hold.
    free: u64,
}

impl Treasury {
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

    /// Makes the account of one of the principal's connections. It holds nothing yet.
    pub(super) fn purse(&self, party: &Arc<Party>) -> Arc<Purse> {
        Arc::new(Purse {
            treasury: self.clone(),
            party: Arc::clone(party),
            free: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        })
    }
}

/// The account of one connection.
#[derive(Debug)]
pub(super) struct Purse {
    treasury: Treasury,
    party: Arc<Party>,
    /// Bytes held that are the connection's own.
    free: AtomicU64,
    /// Bytes held that were taken from the shared budget.
    taken: AtomicU64,
}

impl Purse {
    /// Makes the account of one call. It holds nothing yet.
    pub(super) fn open(self: &Arc<Self>, by: Use) -> Held {
        Held {
            purse: Arc::clone(self),
            by,
            free: 0,
            taken: None,
        }
    }

    /// # Errors
    /// The same as of [`Held::grow`].
    pub(super) fn hold(self: &Arc<Self>, by: Use, bytes: u64) -> Result<Held> {
        let mut held = self.open(by);
        held.grow(bytes)?;
        Ok(held)
    }

    /// Returns how many bytes of the shared budget this connection may still take.
    fn left(&self) -> u64 {
        let share = |left: u64, taken: &AtomicU64| {
            let taken = taken.load(Ordering::Relaxed);
            ((left + taken) / SHARE).saturating_sub(taken)
        };
        let left = share(self.treasury.budget.left(), &self.party.taken);
        share(left, &self.taken)
    }

    /// Returns how many of `bytes` may be read at once in order to send them.
    pub(super) fn readable(&self, bytes: usize) -> usize {
        let left = usize::try_from(self.left()).unwrap_or(usize::MAX);
        bytes.min(left.max(LEAST))
    }
}

/// The account of one call. Dropping it gives everything back.
#[derive(Debug)]
pub(super) struct Held {
    purse: Arc<Purse>,
    by: Use,
    /// Bytes of the connection's own.
    free: u64,
    /// Bytes of the shared budget.
    taken: Option<Taken>,
}

impl Held {
    /// # Errors
    /// [`Error::Limit`] if the connection would hold too large a part of what is left. Then nothing
    /// has changed.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<()> {
        let purse = &self.purse;
        let Treasury { budget, free, .. } = &purse.treasury;
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| sum <= free);
        let order = Ordering::Relaxed;
        if purse.free.fetch_update(order, order, fits).is_ok() {
            budget.lend(self.by, bytes);
            self.free += bytes;
            return Ok(());
        }
        if bytes > purse.left() {
            return Err(Error::limit("limits.memory", budget.limit()));
        }
        match &mut self.taken {
            Some(taken) => taken.grow(bytes)?,
            None => self.taken = Some(budget.take(self.by, bytes)?),
        }
        purse.taken.fetch_add(bytes, order);
        purse.party.taken.fetch_add(bytes, order);
        Ok(())
    }

    /// Gives bytes back; everything, if the call holds less.
    pub(super) fn shrink(&mut self, mut bytes: u64) {
        if let Some(taken) = &mut self.taken {
            let part = bytes.min(taken.bytes());
            taken.shrink(part);
            self.purse.taken.fetch_sub(part, Ordering::Relaxed);
            self.purse.party.taken.fetch_sub(part, Ordering::Relaxed);
            bytes -= part;
        }
        let part = bytes.min(self.free);
        if part > 0 {
            self.free -= part;
            self.purse.free.fetch_sub(part, Ordering::Relaxed);
            self.purse.treasury.budget.give_back(self.by, part);
        }
    }

    /// Gives everything back.
    pub(super) fn clear(&mut self) {
        self.shrink(u64::MAX);
    }

    /// Returns the same as [`Purse::readable`].
    pub(super) fn readable(&self, bytes: usize) -> usize {
        self.purse.readable(bytes)
    }
}

impl Drop for Held {
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
        let treasury = Treasury::new(&budget, 128);
        let (ours, theirs) = (Arc::default(), Arc::default());
        let greedy: Vec<_> = (0..8).map(|_| treasury.purse(&ours)).collect();
        let mut held = Vec::new();
        for purse in &greedy {
            while let Ok(part) = purse.hold(Use::Requests, 1 << 20) {
                held.push(part);
            }
        }
        assert!(budget.total() + budget.for_rest() <= LIMIT);
        assert!(budget.for_rest() >= LIMIT / 2);
        // A new connection gets its own bytes, and half of what is left.
        let newcomer = treasury.purse(&ours);
        held.push(newcomer.hold(Use::Requests, FREE_MAX).unwrap());
        held.push(newcomer.hold(Use::Polls, 64 << 10).unwrap());
        assert!(newcomer.hold(Use::Requests, 1 << 20).is_err());
        assert_eq!(budget.held(Use::Polls), 64 << 10);
        // The connection that holds most has all of its share.
        held[0].shrink(1 << 10);
        assert!(held[0].grow(1 << 20).is_err());
        // Another principal gets as much as if the first one had only one connection.
        let other = treasury.purse(&theirs);
        held.push(other.hold(Use::Requests, 3 << 20).unwrap());
        drop(held);
        assert_eq!(budget.total(), 0);
        assert_eq!(newcomer.free.load(Ordering::Relaxed), 0);
        let taken = [&ours, &theirs].map(|party| party.taken.load(Ordering::Relaxed));
        assert_eq!(taken, [0, 0]);
    }
}
