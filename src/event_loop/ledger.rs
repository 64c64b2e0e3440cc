//! Room set aside: what a watch will need is taken before it exists, so that its
//! terminal events always fit and its sources can always be attached.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::journal::{Outbox, Room, full};
use crate::watch::{Count, Grants, Need};

/// The share of a journal that may be set aside, so that some is left for what happens: 3 of 4.
const SET_ASIDE_OF_4: u64 = 3;

/// What a loop can take on, and what it has promised.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) sources_max: usize,
    pub(super) watches_max: usize,
    /// Most that may be set aside.
    pub(super) set_aside_max: Room,
    pub(super) sources: usize,
    pub(super) watches: usize,
    /// Watches of all loops.
    pub(super) everywhere: Arc<Count>,
}

impl Ledger {
    /// How much may be set aside in a journal of that size.
    pub(super) const fn set_aside_max(events: u64, bytes: u64) -> Room {
        Room {
            events: events / 4 * SET_ASIDE_OF_4,
            bytes: bytes / 4 * SET_ASIDE_OF_4,
        }
    }

    /// Sets room aside for one watch.
    ///
    /// # Errors
    /// The limit that is reached. Nothing is set aside then.
    pub(super) fn take(&mut self, outbox: &mut Outbox, need: Need) -> Result<()> {
        if self.watches >= self.watches_max {
            return Err(Error::Limit {
                limit: "max_watches",
                value: self.watches_max as u64,
                hint: "remove watches; closed ones count until their finished_ttl is over",
            });
        }
        if self.sources + need.sources > self.sources_max {
            return Err(Error::Limit {
                limit: "watched_fds",
                value: self.sources_max as u64,
                hint: "the backend or policy watches no more at once; epoll does",
            });
        }
        let available = self.set_aside_max.less(outbox.reserved());
        if !available.holds(need.room()) {
            return Err(full(available, need.room()));
        }
        outbox.reserve(need.room())?;
        if let Err(full) = self.everywhere.acquire() {
            outbox.unreserve(need.room());
            return Err(full);
        }
        self.watches += 1;
        self.sources += need.sources;
        Ok(())
    }

    /// Gives back all that one watch still has.
    pub(super) fn release(&mut self, outbox: &mut Outbox, need: Need) {
        self.everywhere.release();
        outbox.unreserve(need.room());
        self.watches -= 1;
        self.sources -= need.sources;
    }

    /// A watch has closed: only its removal is left to tell.
    pub(super) fn release_closed(&mut self, outbox: &mut Outbox, need: &mut Need) {
        self.sources -= need.sources;
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

    fn give_back_sources(&mut self, count: usize) {
        self.sources -= count;
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        for _ in 0..self.watches {
            self.everywhere.release();
        }
    }
}
