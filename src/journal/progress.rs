//! How far each reader of a journal without history has read. Such a journal drops an event once all
//! readers have read it.

use std::collections::BTreeSet;

use super::monitor::WaiterId;
use super::{Inner, Journal, Room};
use crate::config::History;

/// Positions are noted only for a journal without history.
#[derive(Debug)]
pub(super) struct Progress {
    noted: bool,
    /// The readers, ordered by the sequence number up to which each has read.
    readers: BTreeSet<(u64, WaiterId)>,
    /// The sequence number up to which occasional readers (clients that poll) have read. Later
    /// events stay for them.
    returning: Option<u64>,
}

impl Progress {
    pub(super) const fn new(history: History) -> Self {
        Self {
            noted: matches!(history, History::None),
            readers: BTreeSet::new(),
            returning: None,
        }
    }

    pub(super) fn join(&mut self, waiter: WaiterId, after: u64) {
        if self.noted {
            self.readers.insert((after, waiter));
        }
    }

    pub(super) fn leave(&mut self, waiter: WaiterId, after: u64) {
        self.readers.remove(&(after, waiter));
    }

    /// Records that a reader has read on.
    pub(super) fn advance(&mut self, waiter: WaiterId, from: u64, to: u64) {
        if self.noted && from != to {
            self.leave(waiter, from);
            self.join(waiter, to);
        }
    }

    /// Returns the sequence number up to which all readers have read; 0 if history is kept.
    fn read_by_all(&self) -> u64 {
        let slowest = self.readers.first().map(|(after, _)| *after);
        slowest.into_iter().chain(self.returning).min().unwrap_or(0)
    }
}

impl Inner {
    /// Trims what need not be kept, with `reserved` set aside.
    pub(super) fn trim(&mut self, reserved: Room) {
        self.log.reserve(reserved);
        self.log.trim(self.progress.read_by_all(), &mut self.labels);
    }
}

impl Journal {
    /// Records that an occasional reader (a client that polls) has everything up to `seq` and will
    /// come back: without history, later events stay until then.
    pub fn returns_after(&self, seq: u64) {
        self.monitor.with(|inner| {
            let progress = &mut inner.progress;
            if progress.noted {
                progress.returning = progress.returning.max(Some(seq));
            }
        });
    }

    /// Returns whether consumers are possible: they need history, because the events that a consumer
    /// has not acknowledged must stay.
    #[must_use]
    pub fn keeps_history(&self) -> bool {
        self.monitor.with(|inner| !inner.progress.noted)
    }
}
