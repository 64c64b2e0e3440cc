//! Room set aside: what a watch will need is taken before it exists, so that its
//! terminal events always fit and its sources can always be attached.

use crate::error::{Error, Result};
use std::sync::Arc;

use crate::watch::{Count, Grants, Need, TERMINAL_EVENT_BYTES};

/// The share of a journal that promises may take, so that some history is left: 3 of 4.
const PROMISED_OF_4: u64 = 3;

/// What a loop can take on, and what it has promised.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) sources_max: usize,
    pub(super) watches_max: usize,
    pub(super) journal_events: u64,
    pub(super) journal_bytes: u64,
    pub(super) sources: usize,
    pub(super) watches: usize,
    pub(super) events: u64,
    /// Watches of all loops.
    pub(super) everywhere: Arc<Count>,
}

impl Ledger {
    /// Sets room aside for one watch.
    ///
    /// # Errors
    /// The limit that is reached. Nothing is set aside then.
    pub(super) fn take(&mut self, need: Need) -> Result<()> {
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
        let events_max = self.journal_events / 4 * PROMISED_OF_4;
        let events = self.events + need.events;
        if events > events_max {
            return Err(Error::JournalFull {
                unit: "events",
                needed: need.events,
                available: events_max.saturating_sub(self.events),
            });
        }
        let bytes_max = self.journal_bytes / 4 * PROMISED_OF_4;
        if events.saturating_mul(TERMINAL_EVENT_BYTES) > bytes_max {
            return Err(Error::JournalFull {
                unit: "bytes",
                needed: need.events * TERMINAL_EVENT_BYTES,
                available: bytes_max.saturating_sub(self.events * TERMINAL_EVENT_BYTES),
            });
        }
        self.everywhere.acquire()?;
        self.watches += 1;
        self.sources += need.sources;
        self.events = events;
        Ok(())
    }

    /// Gives back all of one watch.
    pub(super) fn release(&mut self, need: Need) {
        self.everywhere.release();
        self.watches -= 1;
        self.sources -= need.sources;
        self.events -= need.events;
    }

    /// A watch has closed: its sources are free, the rest when it is removed.
    pub(super) fn release_sources(&mut self, need: &mut Need) {
        self.sources -= std::mem::take(&mut need.sources);
    }
}

impl Grants for Ledger {
    fn grant(&mut self, need: Need, count: u32) -> Result<u32> {
        for granted in 0..count {
            match self.take(need) {
                Err(error) if granted == 0 => return Err(error),
                Err(_) => return Ok(granted),
                Ok(()) => {}
            }
        }
        Ok(count)
    }

    fn give_back(&mut self, need: Need, count: u32) {
        for _ in 0..count {
            self.release(need);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        for _ in 0..self.watches {
            self.everywhere.release();
        }
    }
}
