//! How much of its newest history each watch keeps, so that all watches together stay within a
//! limit.

/// The number of size classes, one for each bit length of a size.
const CLASSES: usize = u64::BITS as usize + 1;

/// What the watches hold, counted by size class: enough to compute how much each of them may keep.
#[derive(Debug)]
pub(super) struct Levels {
    /// Most that one watch keeps.
    keep: u64,
    /// Most that all watches keep together.
    most: u64,
    /// By class: the number of watches, and the sum of what they hold.
    watches: [u64; CLASSES],
    held: [u64; CLASSES],
}

/// Returns the class of a size: the number of its bits.
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

    /// Returns the most that all watches keep together.
    pub(super) const fn most(&self) -> u64 {
        self.most
    }

    /// Counts a watch that holds `size` from now on.
    pub(super) const fn add(&mut self, size: u64) {
        self.watches[class(size)] += 1;
        self.held[class(size)] += size;
    }

    /// Uncounts a watch that held `size`.
    pub(super) const fn sub(&mut self, size: u64) {
        self.watches[class(size)] -= 1;
        self.held[class(size)] -= size;
    }

    /// Returns how much of its newest events every watch can keep: the configured size, or a power
    /// of two below it where there are too many watches.
    pub(super) fn level(&self) -> u64 {
        let halves = (0..class(self.keep)).rev().map(|bits| 1 << bits);
        let mut levels = [self.keep].into_iter().chain(halves);
        levels
            .find(|level| self.kept(*level) <= self.most)
            .unwrap_or(0)
    }

    /// Returns an upper bound of what all watches keep together if none keeps more than `level`.
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
        // A noisy watch counts no more than what one watch may keep.
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
