//! What the calls of one connection hold of the daemon's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::places::Party;
use crate::error::{Error, Result};
use crate::memory::{Budget, Taken, Use};

/// A connection's calls hold so many bytes without asking, so that small calls go on where others
/// have taken all there is.
const FREE_MAX: u64 = 64 * 1024;
/// What all connections hold without asking is at most this part of the limit.
const ASIDE: u64 = 8;
/// A principal has at most this part of what others left of the budget, and a connection of what
/// the others of its principal left of that.
const SHARE: u64 = 2;
/// A stream goes on with so many bytes at a time, or with one event, whatever others hold.
pub(super) const LEAST: usize = 1024;

/// The daemon's memory, as its connections have it.
#[derive(Debug, Clone)]
pub struct Treasury {
    budget: Arc<Budget>,
    /// Bytes that each connection holds without asking.
    free: u64,
}

impl Treasury {
    /// For so many connections at most.
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

    /// What the calls of one of the principal's connections hold: nothing yet.
    pub(super) fn purse(&self, party: &Arc<Party>) -> Arc<Purse> {
        Arc::new(Purse {
            treasury: self.clone(),
            party: Arc::clone(party),
            free: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        })
    }
}

/// Of one connection.
#[derive(Debug)]
pub(super) struct Purse {
    treasury: Treasury,
    party: Arc<Party>,
    /// Bytes that are held without asking.
    free: AtomicU64,
    /// Bytes of the budget that are held.
    taken: AtomicU64,
}

impl Purse {
    /// Nothing yet, to grow.
    pub(super) fn open(self: &Arc<Self>, by: Use) -> Held {
        Held {
            purse: Arc::clone(self),
            by,
            free: 0,
            taken: None,
        }
    }

    /// # Errors
    /// As [`Held::grow`].
    pub(super) fn hold(self: &Arc<Self>, by: Use, bytes: u64) -> Result<Held> {
        let mut held = self.open(by);
        held.grow(bytes)?;
        Ok(held)
    }

    /// Bytes of the budget that can still be taken.
    fn left(&self) -> u64 {
        let share = |left: u64, taken: &AtomicU64| {
            let taken = taken.load(Ordering::Relaxed);
            ((left + taken) / SHARE).saturating_sub(taken)
        };
        let left = share(self.treasury.budget.left(), &self.party.taken);
        share(left, &self.taken)
    }

    /// How many of `bytes` may be read at once to be sent.
    pub(super) fn readable(&self, bytes: usize) -> usize {
        let left = usize::try_from(self.left()).unwrap_or(usize::MAX);
        bytes.min(left.max(LEAST))
    }
}

/// What one call holds, given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    purse: Arc<Purse>,
    by: Use,
    /// Without asking.
    free: u64,
    /// Of the budget.
    taken: Option<Taken>,
}

impl Held {
    /// # Errors
    /// [`Error::Limit`]: the connection would hold too large a part of what is left. Nothing has
    /// changed then.
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

    /// Gives so many bytes back; all, if it is not that many.
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

    /// Gives all back.
    pub(super) fn clear(&mut self) {
        self.shrink(u64::MAX);
    }

    /// As [`Purse::readable`].
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
        // A newcomer has what is small, and half of what is left.
        let newcomer = treasury.purse(&ours);
        held.push(newcomer.hold(Use::Requests, FREE_MAX).unwrap());
        held.push(newcomer.hold(Use::Polls, 64 << 10).unwrap());
        assert!(newcomer.hold(Use::Requests, 1 << 20).is_err());
        assert_eq!(budget.held(Use::Polls), 64 << 10);
        // The greediest has its share.
        held[0].shrink(1 << 10);
        assert!(held[0].grow(1 << 20).is_err());
        // Another principal has as much as if nobody of the first had more than one connection.
        let other = treasury.purse(&theirs);
        held.push(other.hold(Use::Requests, 3 << 20).unwrap());
        drop(held);
        assert_eq!(budget.total(), 0);
        assert_eq!(newcomer.free.load(Ordering::Relaxed), 0);
        let taken = [&ours, &theirs].map(|party| party.taken.load(Ordering::Relaxed));
        assert_eq!(taken, [0, 0]);
    }
}
