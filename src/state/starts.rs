//! Starts of children: the next life knows each child, also one that this life has started and not
//! recorded.
//!
//! A start has a word in memory that the child shares. It is there before the child is, and the child
//! puts its pid there before it executes its program, unless a later life has abandoned the start by
//! then. So whoever comes second knows of the other. A second word says when the start began, by which a
//! child is known whose parent is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::arena::{Arena, Found, Kind, Run};
use super::memory::{Part, WORD};

/// The most starts at once.
const STARTS: usize = 2048;
/// The values of a word. A larger one is [`STARTED`] more than the pid of the child.
const FREE: u64 = 0;
const INTENDED: u64 = 1;
const ABANDONED: u64 = 2;
const STARTED: u64 = 3;

/// The starts of the daemon.
#[derive(Debug)]
pub struct Starts {
    _run: Run,
    words: Part,
    free: Mutex<Vec<usize>>,
}

/// A start that is not recorded. Dropped, it counts as recorded, or as not made.
#[derive(Debug)]
pub struct Start {
    starts: Arc<Starts>,
    at: usize,
}

impl Starts {
    /// Makes memory for starts.
    ///
    /// # Errors
    /// There is none.
    pub fn new(arena: &Arc<Arena>) -> Result<Arc<Self>, Errno> {
        let run = arena.take(Kind::Starts, 0, 0, 2 * STARTS * WORD)?;
        let words = run.part();
        for at in 0..STARTS {
            words.word(at * WORD).store(FREE, Ordering::Release);
        }
        Ok(Arc::new(Self {
            _run: run,
            words,
            free: Mutex::new((0..STARTS).collect()),
        }))
    }

    /// Begins a start. `None`: there are too many at once.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Option<Start> {
        let at = self.free.lock().pop()?;
        self.words
            .word((STARTS + at) * WORD)
            .store(crate::clock::boot_ticks(), Ordering::Release);
        self.words
            .word(at * WORD)
            .store(INTENDED, Ordering::Release);
        Some(Start {
            starts: Arc::clone(self),
            at,
        })
    }

    /// Abandons the starts of an earlier life that have no child yet. Returns the children of the others.
    #[must_use]
    pub fn abandon(found: &Found) -> Vec<Stray> {
        match found.kind {
            Kind::Starts => abandon(&found.run.part()),
            _ => Vec::new(),
        }
    }
}

/// A child whose start nobody has recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray {
    /// Its pid.
    pub pid: i32,
    /// When its start began, clock ticks since the boot: it was started soon afterwards.
    pub since: u64,
}

fn abandon(words: &Part) -> Vec<Stray> {
    let count = STARTS.min(words.len() / WORD / 2);
    (0..count)
        .filter_map(|at| {
            let word = words.word(at * WORD);
            let (before, after) = (Ordering::AcqRel, Ordering::Acquire);
            let value = match word.compare_exchange(INTENDED, ABANDONED, before, after) {
                Ok(_) => return None,
                Err(value) => value,
            };
            let since = words.word((STARTS + at) * WORD);
            Some(Stray {
                pid: i32::try_from(value.checked_sub(STARTED)?).ok()?,
                since: since.load(Ordering::Acquire),
            })
        })
        .filter(|stray| stray.pid > 0)
        .collect()
}

impl Start {
    /// Returns its word, for [`has_started`].
    #[must_use]
    pub fn word(&self) -> &AtomicU64 {
        self.starts.words.word(self.at * WORD)
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.word().store(FREE, Ordering::Release);
        self.starts.free.lock().push(self.at);
    }
}

/// Says in the child that it has this pid. Returns false if its start was abandoned, so that it must
/// end. Only stores to the word.
#[must_use]
pub fn has_started(word: &AtomicU64, pid: i32) -> bool {
    let started = STARTED + u64::from(pid.unsigned_abs());
    let (before, after) = (Ordering::AcqRel, Ordering::Acquire);
    word.compare_exchange(INTENDED, started, before, after)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::killed;

    #[test]
    fn either_the_child_or_the_next_life_knows_of_the_other() {
        let arena = Arena::new().unwrap();
        let starts = Starts::new(&arena).unwrap();
        let [before, after, recorded] = [(); 3].map(|()| starts.begin().unwrap());
        assert!(has_started(before.word(), 77));
        assert!(has_started(recorded.word(), 78));
        drop(recorded);
        let (_next, found) = killed(&arena);
        let strays: Vec<_> = found.iter().flat_map(Starts::abandon).collect();
        assert_eq!(
            strays.iter().map(|stray| stray.pid).collect::<Vec<_>>(),
            [77]
        );
        // The memory that was found is a copy.
        assert_eq!(abandon(&starts.words), strays);
        assert!(!has_started(after.word(), 79));
        let more: Vec<_> = std::iter::from_fn(|| starts.begin()).collect();
        assert_eq!(more.len(), STARTS - 2);
    }
}
