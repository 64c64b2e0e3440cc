//! A few numbers that change together and often.

use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::WORD;
use super::records::Entry;
use crate::faults::{self, Point};

/// Numbers, each change of which counts once the turn in which it was made is committed. There are two
/// versions of them, each with its turn: the older one is overwritten.
#[derive(Debug)]
pub struct Cell<const N: usize> {
    entry: Entry,
}

impl Cell<1> {
    /// As [`Cell::set`], but the number of a turn is replaced by one store: whenever this life is killed,
    /// the next one finds the number before or the new one.
    pub fn set_one(&self, turn: u64, number: u64) {
        let newest = self.newest();
        if self.turn(newest) == turn {
            self.word(newest, 1).store(number, Ordering::Release);
        } else {
            self.set(turn, [number]);
        }
    }
}

impl<const N: usize> Cell<N> {
    /// The bytes that it takes of an entry.
    pub(super) const BYTES: usize = 2 * (N + 1) * WORD;

    pub(super) const fn new(entry: Entry) -> Self {
        Self { entry }
    }

    fn word(&self, version: usize, word: usize) -> &AtomicU64 {
        self.entry.word((version * (N + 1) + word) * WORD)
    }

    fn turn(&self, version: usize) -> u64 {
        self.word(version, 0).load(Ordering::Acquire)
    }

    fn newest(&self) -> usize {
        usize::from(self.turn(1) > self.turn(0))
    }

    /// Changes the numbers in this turn.
    pub fn set(&self, turn: u64, numbers: [u64; N]) {
        let newest = self.newest();
        let version = if self.turn(newest) == turn {
            newest
        } else {
            1 - newest
        };
        // Half written numbers must not be taken for those of the turn that stands there.
        self.word(version, 0).store(0, Ordering::Release);
        for (at, number) in numbers.into_iter().enumerate() {
            self.word(version, at + 1).store(number, Ordering::Release);
        }
        faults::point(Point::CellHalfWritten);
        self.word(version, 0).store(turn, Ordering::Release);
    }

    /// Returns the numbers as they are now.
    #[must_use]
    pub fn get(&self) -> [u64; N] {
        let newest = self.newest();
        std::array::from_fn(|at| self.word(newest, at + 1).load(Ordering::Acquire))
    }

    /// Takes an entry of an earlier life that was a cell of as many numbers. Changes of turns after
    /// `committed` are undone.
    #[must_use]
    pub fn recover(entry: Entry, committed: u64) -> Self {
        let cell = Self { entry };
        for version in 0..2 {
            if cell.turn(version) > committed {
                cell.word(version, 0).store(0, Ordering::Release);
            }
        }
        cell
    }

    /// Takes an entry of an earlier life as [`Cell::recover`] does, but undoes nothing. Returns the cell
    /// with the numbers of a turn that was not committed, if there are any.
    #[must_use]
    pub fn with_uncommitted(entry: Entry, committed: u64) -> (Self, Option<[u64; N]>) {
        let cell = Self { entry };
        let is_committed = cell.turn(cell.newest()) <= committed;
        let numbers = (!is_committed).then(|| cell.get());
        (cell, numbers)
    }

    /// Returns the entry that holds it.
    #[must_use]
    pub fn into_entry(self) -> Entry {
        self.entry
    }
}
