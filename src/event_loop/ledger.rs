//! Reserves what a watch will need before the watch exists, so that its terminal events always fit
//! and its sources can always be attached.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::journal::{Outbox, Room, full};
use crate::watch::{Count, Grants, Need};

/// The share of a journal, in quarters, that may be reserved. The rest is for all other events.
const RESERVED_QUARTERS: u64 = 3;

/// The limits of a loop, and how much of them its watches use.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) sources_max: usize,
    pub(super) watches_max: usize,
    /// The largest room in the journal that may be reserved.
    pub(super) reserved_max: Room,
    pub(super) sources: usize,
    pub(super) watches: usize,
    /// The count of the watches of all loops.
    pub(super) everywhere: Arc<Count>,
}

impl Ledger {
    /// Returns how much may be reserved in a journal of that size.
    pub(super) const fn reserved_max(events: u64, bytes: u64) -> Room {
        Room {
            events: events / 4 * RESERVED_QUARTERS,
            bytes: bytes / 4 * RESERVED_QUARTERS,
        }
    }

    /// Reserves everything that one watch needs.
    ///
    /// # Errors
    /// A limit is reached. Then nothing is reserved.
    pub(super) fn take(&mut self, outbox: &mut Outbox, need: Need) -> Result<()> {
        if self.watches >= self.watches_max {
            return Err(Error::Limit {
                limit: "max_watches",
                value: self.watches_max as u64,
                hint: "remove watches; closed ones count until their finished_ttl has passed"
                    .into(),
            });
        }
        if self.sources + need.sources as usize > self.sources_max {
            return Err(Error::Limit {
                limit: "watched_fds",
                value: self.sources_max as u64,
                hint: "the policy or its backend watches no more sources at once; epoll has no such limit".into(),
            });
        }
        let available = self.reserved_max.less(outbox.reserved());
        if !available.holds(need.room()) {
            return Err(full(available, need.room()));
        }
        outbox.reserve(need.room())?;
        if let Err(full) = self.everywhere.acquire() {
            outbox.unreserve(need.room());
            return Err(full);
        }
        self.watches += 1;
        self.sources += need.sources as usize;
        Ok(())
    }

    /// Reserves what a watch of an earlier life had reserved, also beyond the limits of this loop.
    ///
    /// # Errors
    /// The daemon has no room for a further watch.
    pub(super) fn take_again(&mut self, outbox: &mut Outbox, need: Need) -> Result<()> {
        self.everywhere.acquire()?;
        outbox.reserve_again(need.room());
        self.watches += 1;
        self.sources += need.sources as usize;
        Ok(())
    }

    /// Releases everything that one watch still has reserved.
    pub(super) fn release(&mut self, outbox: &mut Outbox, need: Need) {
        self.everywhere.release();
        outbox.unreserve(need.room());
        self.watches -= 1;
        self.sources -= need.sources as usize;
    }

    /// Releases everything that a closed watch has reserved, except the room for its `Removed`.
    pub(super) fn release_closed(&mut self, outbox: &mut Outbox, need: &mut Need) {
        self.sources -= need.sources as usize;
        outbox.unreserve(need.room() - Need::REMOVAL.room());
        *need = Need::REMOVAL;
    }
}

impl Grants for Ledger {
    fn grant(&mut self, outbox: &mut Outbox, need: Need, count: u32) -> Result<u32> {
        for granted in 0..count {
            match self.take(outbox, need) {
                Err(error) if granted == 0 => return Err(error),
                Err(_) => return Ok(granted),
                Ok(()) => {}
            }
        }
        Ok(count)
    }

    fn give_back(&mut self, outbox: &mut Outbox, need: Need, count: u32) {
        for _ in 0..count {
            self.release(outbox, need);
        }
    }

    fn grant_source(&mut self) -> bool {
        let granted = self.sources < self.sources_max;
        self.sources += usize::from(granted);
        granted
    }

    fn give_back_sources(&mut self, count: u32) {
        self.sources -= count as usize;
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        for _ in 0..self.watches {
            self.everywhere.release();
        }
    }
}
