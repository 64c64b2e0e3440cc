//! An index of watches by id. It stores slots only: each record knows its own id.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use hashbrown::HashTable;
use slab::Slab;

use super::record::Record;

/// The slots by id, and the ids in ascending order.
#[derive(Debug, Default)]
pub(super) struct Index {
    slots: HashTable<u32>,
    ids: Ids,
}

/// The ids in ascending order: a map from `id / 64` to a word with one bit for each of 64 ids. As
/// ids are dense, this takes little more than one bit for each.
#[derive(Debug, Default)]
struct Ids(BTreeMap<u64, u64>);

/// Returns the key of the word in [`Ids`] and the bit in it for an id.
const fn place(id: u64) -> (u64, u64) {
    (id / 64, 1 << (id % 64))
}

impl Ids {
    fn insert(&mut self, id: u64) {
        let (block, bit) = place(id);
        *self.0.entry(block).or_default() |= bit;
    }

    fn remove(&mut self, id: u64) {
        let (block, bit) = place(id);
        if let Entry::Occupied(mut entry) = self.0.entry(block) {
            *entry.get_mut() &= !bit;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn next_after(&self, after: u64) -> Option<u64> {
        let (block, bit) = place(after.checked_add(1)?);
        let lowest = |block: u64, bits: u64| block * 64 + u64::from(bits.trailing_zeros());
        let here = self.0.get(&block).map_or(0, |bits| bits & !(bit - 1));
        if here != 0 {
            return Some(lowest(block, here));
        }
        let mut later = self.0.range(block + 1..);
        later.next().map(|(block, bits)| lowest(*block, *bits))
    }
}

/// Hashes an id by multiplication, which is enough as ids are dense (Knuth, "The Art of Computer
/// Programming", 6.4).
const fn hash(id: u64) -> u64 {
    id.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn id(records: &Slab<Record>, slot: u32) -> u64 {
    records.get(slot as usize).map_or(0, Record::id)
}

impl Index {
    /// Adds the watch in that slot.
    pub(super) fn insert(&mut self, records: &Slab<Record>, slot: u32) {
        let hash_of = |slot: &u32| hash(id(records, *slot));
        self.slots.insert_unique(hash_of(&slot), slot, hash_of);
        self.ids.insert(id(records, slot));
    }

    pub(super) fn get(&self, records: &Slab<Record>, wanted: u64) -> Option<usize> {
        let found = |slot: &u32| id(records, *slot) == wanted;
        let slot = self.slots.find(hash(wanted), found)?;
        Some(*slot as usize)
    }

    /// Removes the watch of that id. Its record must still be in its slot.
    pub(super) fn remove(&mut self, records: &Slab<Record>, gone: u64) {
        let found = |slot: &u32| id(records, *slot) == gone;
        if let Ok(entry) = self.slots.find_entry(hash(gone), found) {
            entry.remove();
        }
        self.ids.remove(gone);
    }

    /// Returns the lowest id above `after`.
    pub(super) fn next_after(&self, after: u64) -> Option<u64> {
        self.ids.next_after(after)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_come_in_their_order(
            steps in prop::collection::vec((any::<bool>(), 1..300u64), 1..200),
        ) {
            let (mut ids, mut known) = (Ids::default(), BTreeSet::new());
            for (there, id) in steps {
                if there {
                    ids.insert(id);
                    known.insert(id);
                } else {
                    ids.remove(id);
                    known.remove(&id);
                }
            }
            let next = |after: &u64| ids.next_after(*after);
            let told: Vec<u64> = std::iter::successors(next(&0), next).collect();
            prop_assert_eq!(told, known.into_iter().collect::<Vec<u64>>());
            prop_assert!(ids.0.values().all(|bits| *bits != 0));
        }
    }
}
