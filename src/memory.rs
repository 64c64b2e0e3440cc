//! The one budget of memory that clients can make the daemon hold: what is not a journal takes
//! its part here, and journals have the rest.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::error::{Error, Result};

/// What is not a journal has at most this part of the limit, all uses together.
const PART: u64 = 2;

/// What memory is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Calls: requests half received, or not answered yet, and answers that are not taken yet.
    Requests,
    /// Answers kept for mutations that are repeated.
    Answers,
    /// Snapshots that were asked for and not read yet.
    Snapshots,
    /// Calls that wait for events: Poll.
    Polls,
    /// Commands that wait in loops' mailboxes.
    Commands,
}

impl Use {
    const COUNT: usize = 5;
}

/// Who has the rest of the limit. It is called with nothing locked.
pub trait Rest: fmt::Debug + Send + Sync {
    /// Lets go of what there is no room for any more. False: it has to keep more than is left.
    fn give_way(&self) -> bool;

    /// There is more room than before.
    fn released(&self);
}

/// Counts what is held, against one limit.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    held: [AtomicU64; Use::COUNT],
    /// Bytes taken.
    total: AtomicU64,
    /// Bytes for what is small, used or not.
    aside: AtomicU64,
    /// Of those, bytes in use.
    lent: AtomicU64,
    rest: OnceLock<Weak<dyn Rest>>,
}

impl Budget {
    /// A budget of `limit` bytes, journals included.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: Default::default(),
            total: AtomicU64::new(0),
            aside: AtomicU64::new(0),
            lent: AtomicU64::new(0),
            rest: OnceLock::new(),
        })
    }

    /// Says who has the rest: once, before anything is taken.
    pub(crate) fn set_rest(&self, rest: Weak<dyn Rest>) {
        // Once: there is one.
        let _ = self.rest.set(rest);
    }

    /// Sets so many bytes aside for what is small: it is counted, and never refused for want of
    /// memory. Once, before anything is taken; whoever lends them bounds them.
    pub fn set_aside(&self, bytes: u64) {
        self.aside.store(bytes, Ordering::Relaxed);
    }

    /// Uses bytes of what was set aside, until they are given back.
    pub(crate) fn lend(&self, by: Use, bytes: u64) {
        self.held[by as usize].fetch_add(bytes, Ordering::Relaxed);
        self.lent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, by: Use, bytes: u64) {
        self.held[by as usize].fetch_sub(bytes, Ordering::Relaxed);
        self.lent.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that the rest may hold.
    #[must_use]
    pub fn for_rest(&self) -> u64 {
        let gone = self.taken() + self.aside.load(Ordering::Relaxed);
        self.limit.saturating_sub(gone)
    }

    fn taken(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes that can be taken in all.
    fn most(&self) -> u64 {
        (self.limit / PART).saturating_sub(self.aside.load(Ordering::Relaxed))
    }

    fn rest(&self) -> Option<Arc<dyn Rest>> {
        self.rest.get().and_then(Weak::upgrade)
    }

    /// Bytes that all may hold, journals included.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes held for one use.
    #[must_use]
    pub fn held(&self, by: Use) -> u64 {
        self.held[by as usize].load(Ordering::Relaxed)
    }

    /// Bytes held for all uses; what journals hold is not among them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.taken() + self.lent.load(Ordering::Relaxed)
    }

    /// Bytes that can still be taken, as far as the uses go.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.most().saturating_sub(self.taken())
    }

    /// Takes so many bytes, until what is answered is dropped.
    ///
    /// # Errors
    /// [`Error::Limit`] where all uses together would hold more than their part, or where
    /// journals have to keep more than what would be left.
    pub fn take(self: &Arc<Self>, by: Use, bytes: u64) -> Result<Taken> {
        let mut taken = Taken {
            budget: Arc::clone(self),
            by,
            bytes: 0,
        };
        taken.grow(bytes)?;
        Ok(taken)
    }
}

/// A part of the [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Taken {
    budget: Arc<Budget>,
    by: Use,
    bytes: u64,
}

impl Taken {
    /// Bytes of it.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes so many bytes more.
    ///
    /// # Errors
    /// As [`Budget::take`]; nothing has changed then.
    pub fn grow(&mut self, bytes: u64) -> Result<()> {
        let budget = &self.budget;
        let most = budget.most();
        let more = |total: u64| total.checked_add(bytes).filter(|sum| *sum <= most);
        budget
            .total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| Error::limit("limits.memory", budget.limit))?;
        if budget.rest().is_some_and(|rest| !rest.give_way()) {
            budget.total.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::limit("limits.memory", budget.limit));
        }
        budget.held[self.by as usize].fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        Ok(())
    }

    /// Gives so many bytes back; all, if it is not that many.
    pub fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        if bytes == 0 {
            return;
        }
        self.bytes -= bytes;
        self.budget.held[self.by as usize].fetch_sub(bytes, Ordering::Relaxed);
        self.budget.total.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(rest) = self.budget.rest() {
            rest.released();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}
