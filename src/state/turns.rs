//! What is done together counts together.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::arena::{Arena, Found, Kind, Owner, Run};
use super::memory::{Part, WORD};
use crate::faults::{self, Point};

/// The turns of an owner, such as a loop: all that is written in one counts once it is committed, by
/// one store.
#[derive(Debug)]
pub struct Turns {
    run: Run,
    /// For turns with an even number and those with an odd one, the newest event.
    newest: Part,
    /// The turn that is being done.
    turn: u64,
}

impl Turns {
    /// Begins with turn 1; no event is committed.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(arena: &Arc<Arena>, owner: Owner) -> Result<Self, Errno> {
        let run = arena.take(Kind::Turns, owner, 0, 3 * WORD)?;
        let newest = run.part();
        for word in [0, WORD, TRIES] {
            newest.word(word).store(0, Ordering::Release);
        }
        Ok(Self {
            run,
            newest,
            turn: 1,
        })
    }

    /// Takes over the turns of an earlier life. Returns them with the newest event of the last turn that
    /// was committed; `None` if it is something else.
    #[must_use]
    pub fn recover(found: Found) -> Option<(Self, u64)> {
        let run = (found.kind == Kind::Turns).then_some(found.run)?;
        let committed = run.committed().load(Ordering::Acquire);
        let newest = run.part();
        let seq = newest.word(at(committed)).load(Ordering::Acquire);
        let turns = Self {
            run,
            newest,
            turn: committed + 1,
        };
        Some((turns, seq))
    }

    /// Returns the number of the turn that is being done.
    #[must_use]
    pub const fn current(&self) -> u64 {
        self.turn
    }

    /// Returns how many lives of the daemon have tried to go on with it in vain.
    #[must_use]
    pub fn tries(&self) -> u64 {
        self.newest.word(TRIES).load(Ordering::Acquire)
    }

    /// Sets what [`Turns::tries`] returns.
    pub fn set_tries(&self, tries: u64) {
        self.newest.word(TRIES).store(tries, Ordering::Release);
    }

    /// Says that something which was or will be committed is not kept.
    pub fn lose(&self) {
        self.run.size().store(1, Ordering::Release);
    }

    /// Returns whether something that was committed may be missing although nothing is damaged.
    #[must_use]
    pub fn is_lossy(&self) -> bool {
        self.run.size().load(Ordering::Acquire) != 0
    }

    /// Makes all count that was done in this turn; `newest` is the newest event in it.
    pub fn commit(&mut self, newest: u64) {
        let place = at(self.turn);
        self.newest.word(place).store(newest, Ordering::Release);
        faults::point(Point::TurnNumbered);
        self.run.committed().store(self.turn, Ordering::Release);
        faults::point(Point::TurnCommitted);
        self.turn += 1;
    }
}

/// The word for [`Turns::tries`].
const TRIES: usize = 2 * WORD;

const fn at(turn: u64) -> usize {
    if turn.is_multiple_of(2) { 0 } else { WORD }
}
