//! The directories of a subscription that exist and are not watched.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::tree::NodeId;

/// Each was named by a `Rescan`. What is below them is not known.
#[derive(Debug, Default)]
pub(super) struct Unwatched {
    /// Those for which another attempt may succeed.
    failed: BTreeSet<NodeId>,
    /// Those that only a move can help.
    too_deep: BTreeSet<NodeId>,
    /// The last one that was tried again.
    tried: NodeId,
}

impl Unwatched {
    /// False: it is known.
    pub(super) fn insert(&mut self, id: NodeId, too_deep: bool) -> bool {
        let known = self.remove(id);
        let these = if too_deep {
            &mut self.too_deep
        } else {
            &mut self.failed
        };
        these.insert(id);
        !known
    }

    /// False: it was not known.
    pub(super) fn remove(&mut self, id: NodeId) -> bool {
        self.failed.remove(&id) || self.too_deep.remove(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.failed.len() + self.too_deep.len()
    }

    /// The next ones to be tried again, at most `most`, each in its turn. True: there are more.
    pub(super) fn retry(&mut self, most: usize) -> (Vec<NodeId>, bool) {
        let later = (Bound::Excluded(self.tried), Bound::Unbounded);
        let ids: Vec<_> = self
            .failed
            .range(later)
            .chain(self.failed.range(..=self.tried))
            .copied()
            .take(most)
            .collect();
        self.tried = ids.last().copied().unwrap_or(self.tried);
        (ids, self.failed.len() > most)
    }

    /// Those that were too deep, as far as `is_near` says that they are not now.
    pub(super) fn no_longer_deep(&self, is_near: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let ids = self.too_deep.iter().copied();
        ids.filter(|id| is_near(*id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_tried_in_its_turn() {
        let mut unwatched = Unwatched::default();
        for id in 1..=5 {
            assert!(unwatched.insert(id, false));
        }
        assert!(unwatched.insert(6, true) && !unwatched.insert(6, true));
        assert_eq!(unwatched.retry(2), (vec![1, 2], true));
        assert_eq!(unwatched.retry(2), (vec![3, 4], true));
        assert_eq!(unwatched.retry(2), (vec![5, 1], true));
        assert_eq!(unwatched.retry(9), (vec![2, 3, 4, 5, 1], false));
        assert_eq!(unwatched.no_longer_deep(|_| true), [6]);
        assert_eq!(unwatched.len(), 6);
    }
}
