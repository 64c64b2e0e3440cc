//! Interned sets of labels: an event carries the number of a set instead of a map.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use slab::Slab;

use crate::event::Labels;

/// The number of a set of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LabelSet(u32);

impl LabelSet {
    /// No labels.
    pub const NONE: Self = Self(0);
}

/// All sets that a watch or a held event uses, with their use counts.
#[derive(Debug, Default)]
pub(super) struct LabelSets {
    sets: Slab<(Labels, u64)>,
    numbers: HashMap<Labels, usize>,
}

impl LabelSets {
    pub(super) fn intern(&mut self, labels: &Labels) -> LabelSet {
        if labels.is_empty() {
            return LabelSet::NONE;
        }
        let index = match self.numbers.get(labels) {
            Some(&index) => index,
            None => {
                let index = self.sets.insert((Arc::clone(labels), 0));
                self.numbers.insert(Arc::clone(labels), index);
                index
            }
        };
        self.sets[index].1 += 1;
        // 4 billion sets would need more memory than there is.
        LabelSet(u32::try_from(index + 1).unwrap_or(0))
    }

    pub(super) fn hold(&mut self, set: LabelSet) {
        if let Some((_, uses)) = self.get_mut(set) {
            *uses += 1;
        }
    }

    pub(super) fn release(&mut self, set: LabelSet) {
        let Some((_, uses)) = self.get_mut(set) else {
            return;
        };
        *uses -= 1;
        if *uses == 0 {
            let (labels, _) = self.sets.remove(set.0 as usize - 1);
            self.numbers.remove(&labels);
        }
    }

    /// Returns the labels of a set.
    pub(super) fn get(&self, set: LabelSet) -> BTreeMap<String, String> {
        let index = (set.0 as usize).checked_sub(1);
        let labels = index.and_then(|index| self.sets.get(index));
        labels.map_or_else(BTreeMap::new, |(labels, _)| (**labels).clone())
    }

    /// Returns whether the set has all of the wanted labels.
    pub(super) fn matches(&self, set: LabelSet, wanted: &BTreeMap<String, String>) -> bool {
        let Some(index) = (set.0 as usize).checked_sub(1) else {
            return wanted.is_empty();
        };
        let Some((labels, _)) = self.sets.get(index) else {
            return wanted.is_empty();
        };
        wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
    }

    fn get_mut(&mut self, set: LabelSet) -> Option<&mut (Labels, u64)> {
        self.sets.get_mut((set.0 as usize).checked_sub(1)?)
    }
}
