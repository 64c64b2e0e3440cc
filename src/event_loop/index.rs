//! Watches by their ids. Only slots are kept: each watch knows its id itself.

use hashbrown::HashTable;
use slab::Slab;

use super::record::Record;

/// Slots by id.
#[derive(Debug, Default)]
pub(super) struct Index(HashTable<u32>);

/// Ids are dense: to spread them is enough (Knuth, "The Art of Computer Programming", 6.4).
const fn hash(id: u64) -> u64 {
    id.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn id(records: &Slab<Record>, slot: u32) -> u64 {
    records.get(slot as usize).map_or(0, Record::id)
}

impl Index {
    /// The watch in that slot is there.
    pub(super) fn insert(&mut self, records: &Slab<Record>, slot: u32) {
        let hash_of = |slot: &u32| hash(id(records, *slot));
        self.0.insert_unique(hash_of(&slot), slot, hash_of);
    }

    pub(super) fn get(&self, records: &Slab<Record>, wanted: u64) -> Option<usize> {
        let found = |slot: &u32| id(records, *slot) == wanted;
        let slot = self.0.find(hash(wanted), found)?;
        Some(*slot as usize)
    }

    /// The watch of that id will go.
    pub(super) fn remove(&mut self, records: &Slab<Record>, gone: u64) {
        let found = |slot: &u32| id(records, *slot) == gone;
        if let Ok(entry) = self.0.find_entry(hash(gone), found) {
            entry.remove();
        }
    }
}
