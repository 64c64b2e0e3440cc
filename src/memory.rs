//! The budget of the memory that clients can make the daemon hold. Uses other than journals take
//! their bytes from it, and the journals get the rest.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::error::{Error, Result};

/// All uses other than journals together get at most one part in `PART` of the limit: a half.
const PART: u64 = 2;

/// A use of memory, other than journals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Requests that are partly received or not answered yet, and answers that clients have not
    /// read.
    Requests,
    /// Answers kept for clients that repeat a mutation.
    Answers,
    /// Snapshots that readers have not read yet.
    Snapshots,
    /// Poll calls that wait for events.
    Polls,
    /// Commands that wait in loops' mailboxes.
    Commands,
    /// Screens of terminals.
    Screens,
}

impl Use {
    const COUNT: usize = 6;
}

/// The holder of the rest of the limit: all journals. Its methods are called without any lock held.
pub trait Rest: fmt::Debug + Send + Sync {
    /// Frees memory until it holds at most [`Budget::for_rest`]. Returns false if it must keep
    /// more.
    fn give_way(&self) -> bool;

    /// Reports that [`Budget::for_rest`] has grown.
    fn released(&self);
}

/// The count of bytes that are held for each use, against one limit.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    held: [AtomicU64; Use::COUNT],
    /// The bytes taken with [`Budget::take`], for all uses.
    total: AtomicU64,
    /// The bytes set aside with [`Budget::set_aside`], in use or not.
    aside: AtomicU64,
    /// The part of `aside` that is in use.
    lent: AtomicU64,
    rest: OnceLock<Weak<dyn Rest>>,
}

impl Budget {
    /// Makes a budget of `limit` bytes, journals included.
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

    /// Sets the holder of the rest. Must be called once, before anything is taken.
    pub(crate) fn set_rest(&self, rest: Weak<dyn Rest>) {
        // An error means that it is set already; the first one stays.
        let _ = self.rest.set(rest);
    }

    /// Sets `bytes` aside for small uses, which are counted but never refused for lack of memory.
    /// Must be called once, before anything is taken. The callers of `lend` must stay within
    /// `bytes`.
    pub fn set_aside(&self, bytes: u64) {
        self.aside.store(bytes, Ordering::Relaxed);
    }

    /// Uses bytes that were set aside, until `give_back`.
    pub(crate) fn lend(&self, by: Use, bytes: u64) {
        self.held[by as usize].fetch_add(bytes, Ordering::Relaxed);
        self.lent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, by: Use, bytes: u64) {
        self.held[by as usize].fetch_sub(bytes, Ordering::Relaxed);
        self.lent.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes that the journals may hold.
    #[must_use]
    pub fn for_rest(&self) -> u64 {
        let gone = self.taken() + self.aside.load(Ordering::Relaxed);
        self.limit.saturating_sub(gone)
    }

    fn taken(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Returns the bytes that all uses may take together.
    fn most(&self) -> u64 {
        (self.limit / PART).saturating_sub(self.aside.load(Ordering::Relaxed))
    }

    fn rest(&self) -> Option<Arc<dyn Rest>> {
        self.rest.get().and_then(Weak::upgrade)
    }

    /// Returns the whole budget in bytes, journals included.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the bytes held for one use.
    #[must_use]
    pub fn held(&self, by: Use) -> u64 {
        self.held[by as usize].load(Ordering::Relaxed)
    }

    /// Returns the bytes held for all uses; journals are not included.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.taken() + self.lent.load(Ordering::Relaxed)
    }

    /// Returns the bytes that the uses may still take; what the journals must keep is not
    /// considered.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.most().saturating_sub(self.taken())
    }

    /// Takes `bytes`. They are given back when the returned value is dropped.
    ///
    /// # Errors
    /// [`Error::Limit`] if all uses together would hold more than their part, or if the
    /// journals must keep more than would be left for them.
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

/// Bytes taken from a [`Budget`]. Dropping it gives them back.
#[derive(Debug)]
pub struct Taken {
    budget: Arc<Budget>,
    by: Use,
    bytes: u64,
}

impl Taken {
    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// As [`Budget::take`]; then nothing has changed.
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

    /// Gives `bytes` back, or all if there are fewer.
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
