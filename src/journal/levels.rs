//! How much of its newest history each watch keeps, so that all together keep no more than they may.

/// Sizes are counted by their power of two.
const CLASSES: usize = u64::BITS as usize + 1;

/// What each watch holds, counted by size: enough to say up to which level all of them can be kept.
#[derive(Debug)]
pub(super) struct Levels {
    /// Most that one watch keeps.
    keep: u64,
    /// Most that all keep together.
    most: u64,
    /// By class: how many watches, and what they hold together.
    watches: [u64; CLASSES],
    held: [u64; CLASSES],
}

/// A class holds sizes of as many bits.
const fn class(size: u64) -> usize {
    (u64::BITS - size.leading_zeros()) as usize
}

impl Levels {
    pub(super) const fn new(keep: u64, most: u64) -> Self {
        Self {
            keep,
            most,
            watches: [0; CLASSES],
            held: [0; CLASSES],
        }
    }

    /// Most that all keep together.
    pub(super) const fn most(&self) -> u64 {
        self.most
    }

    /// A watch holds this much from here on.
    pub(super) const fn add(&mut self, size: u64) {
        self.watches[class(size)] += 1;
        self.held[class(size)] += size;
    }

    /// A watch that held this much does not any longer.
    pub(super) const fn sub(&mut self, size: u64) {
        self.watches[class(size)] -= 1;
        self.held[class(size)] -= size;
    }

    /// The most that every watch can keep of its newest: the configured size, or a power of two
    /// below it where there are too many of them.
    pub(super) fn level(&self) -> u64 {
        let halves = (0..class(self.keep)).rev().map(|bits| 1 << bits);
        let mut levels = [self.keep].into_iter().chain(halves);
        levels
            .find(|level| self.kept(*level) <= self.most)
            .unwrap_or(0)
    }

    /// What all keep together if none keeps more than `level`; at most a little too much.
    fn kept(&self, level: u64) -> u64 {
        let classes = self.watches.iter().zip(self.held).enumerate();
        let kept = classes.map(|(index, (watches, held))| {
            if index < class(level) {
                held
            } else {
                held.min(watches.saturating_mul(level))
            }
        });
        kept.fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_keep_all_that_they_may_and_many_keep_equal_parts() {
        let mut levels = Levels::new(100, 1000);
        assert_eq!(levels.level(), 100);
        // A noisy one takes no more than what one may keep.
        levels.add(1 << 40);
        levels.add(7);
        assert_eq!(levels.level(), 100);
        for _ in 0..10 {
            levels.add(5000);
        }
        assert_eq!(levels.level(), 64);
        for _ in 0..2000 {
            levels.add(5000);
        }
        assert_eq!(levels.level(), 0);
        for _ in 0..2000 {
            levels.sub(5000);
        }
        assert_eq!(levels.level(), 64);
    }
}
