//! How far those have read for whom a journal without history keeps events: once all of them have
//! one, it goes.

use std::collections::BTreeSet;

use super::board::Place;
use super::{Inner, Journal, Room};
use crate::config::History;

/// Of a journal that keeps history nothing is noted.
#[derive(Debug)]
pub(super) struct Progress {
    noted: bool,
    /// The readers there are, by the position that each has read up to.
    readers: BTreeSet<(u64, Place)>,
    /// What somebody who reads now and then has up to, and comes back for the rest.
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

    pub(super) fn join(&mut self, place: Place, after: u64) {
        if self.noted {
            self.readers.insert((after, place));
        }
    }

    pub(super) fn leave(&mut self, place: Place, after: u64) {
        self.readers.remove(&(after, place));
    }

    /// A reader has read on.
    pub(super) fn advance(&mut self, place: Place, from: u64, to: u64) {
        if self.noted && from != to {
            self.leave(place, from);
            self.join(place, to);
        }
    }

    /// Everything up to there is read by all, or history is kept: 0.
    fn read_by_all(&self) -> u64 {
        let slowest = self.readers.first().map(|(after, _)| *after);
        slowest.into_iter().chain(self.returning).min().unwrap_or(0)
    }
}

impl Inner {
    /// Lets go of what need not be kept, beside what is set aside.
    pub(super) fn trim(&mut self, reserved: Room) {
        self.log.reserve(reserved);
        self.log.trim(self.progress.read_by_all(), &mut self.labels);
    }
}

impl Journal {
    /// Somebody who reads now and then has everything up to there, and will come back for what
    /// comes after it: without history, that stays until then.
    pub fn returns_after(&self, seq: u64) {
        self.board.with(|inner| {
            let progress = &mut inner.progress;
            if progress.noted {
                progress.returning = progress.returning.max(Some(seq));
            }
        });
    }

    /// Whether a consumer can be kept: what it has not acknowledged is history.
    #[must_use]
    pub fn keeps_history(&self) -> bool {
        self.board.with(|inner| !inner.progress.noted)
    }
}
