//! The watches of one loop, and the indexes to find them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::{Index as At, IndexMut as AtMut};
use std::sync::Arc;
use std::time::Duration;

use super::record::Record;
use crate::access::ProcessKey;
use crate::driver::Key;
use crate::error::Result;
use crate::id_map::IdMap;
use crate::paged::Paged;

/// The records of all watches that have not been removed, by slot, and the indexes over them.
///
/// [`insert`](Self::insert), [`closed`](Self::closed) and [`remove`](Self::remove) keep every index
/// up to date: a watch is found by its id and its name until it is removed, by its client process
/// while it is open, and by its expiry once it is closed.
#[derive(Debug, Default)]
pub(super) struct Watches {
    records: Paged<Record>,
    /// The generation of the newest key, so that a slot that is used again gets another key.
    generation: u32,
    /// The newest id; 0 before the first watch.
    last_id: u64,
    /// The slots of the watches.
    by_id: IdMap<u32>,
    by_name: HashMap<Arc<str>, usize>,
    /// Open watches that are bound to a client process.
    bound: HashMap<ProcessKey, HashSet<Key>>,
    /// Open watches with a lease, by the time at which it runs out (monotonic nanoseconds).
    leases: BTreeSet<(u64, Key)>,
    /// Closed watches, by the time at which they are removed (monotonic nanoseconds).
    expiries: BTreeSet<(u64, Key)>,
    /// The number of watches that have ended and whose cancelled operations have not all completed.
    cancelling: usize,
}

impl At<usize> for Watches {
    type Output = Record;

    fn index(&self, slot: usize) -> &Record {
        &self.records[slot]
    }
}

impl AtMut<usize> for Watches {
    fn index_mut(&mut self, slot: usize) -> &mut Record {
        &mut self.records[slot]
    }
}

impl Watches {
    /// Returns the id that the next watch gets. Ids are never reused.
    pub(super) const fn next_id(&self) -> u64 {
        self.last_id + 1
    }

    /// Returns the newest id; 0 before the first watch.
    pub(super) const fn last_id(&self) -> u64 {
        self.last_id
    }

    /// Has no watch get an id up to this one, which an earlier life may have given.
    pub(super) fn used_up_to(&mut self, id: u64) {
        self.last_id = self.last_id.max(id);
    }

    /// Returns the key that the next watch gets.
    pub(super) fn next_key(&self) -> Key {
        Key {
            // The limit on watches keeps slots far below this.
            slot: u32::try_from(self.records.vacant_key()).unwrap_or(u32::MAX),
            generation: self.generation.wrapping_add(1),
        }
    }

    /// Adds a watch that has [`next_id`](Self::next_id) and [`next_key`](Self::next_key). Returns
    /// its slot, and whether it is the first one bound to its client process.
    pub(super) fn insert(&mut self, record: Record) -> (usize, bool) {
        self.last_id = record.id();
        self.generation = record.control.key.generation;
        let (key, name) = (record.control.key, record.name().map(Arc::clone));
        let process = record.lifetime.process().map(|process| process.key());
        if let Some(expires) = record.lifetime.lease_expiry() {
            self.leases.insert((expires, key));
        }
        let slot = self.records.insert(record);
        self.by_id.insert(self.last_id, key.slot);
        if let Some(name) = name {
            self.by_name.insert(name, slot);
        }
        let first = process.is_some_and(|process| match self.bound.entry(process) {
            Entry::Occupied(mut bound) => {
                bound.get_mut().insert(key);
                false
            }
            Entry::Vacant(entry) => {
                entry.insert([key].into());
                true
            }
        });
        (slot, first)
    }

    /// Updates the indexes for a watch that has closed and is to be removed at `expires`, in
    /// nanoseconds of the monotonic clock.
    pub(super) fn closed(&mut self, slot: usize, expires: u64) {
        let record = &self.records[slot];
        let key = record.control.key;
        self.expiries.insert((expires, key));
        if let Some(expires) = record.lifetime.lease_expiry() {
            self.leases.remove(&(expires, key));
        }
        if let Some(process) = record.lifetime.process()
            && let Some(bound) = self.bound.get_mut(&process.key())
        {
            bound.remove(&key);
        }
        self.records[slot].lifetime.release();
    }

    /// Removes a watch from all indexes.
    pub(super) fn remove(&mut self, slot: usize) -> Record {
        let record = self.records.remove(slot);
        self.by_id.remove(record.id());
        if let Some(name) = record.name() {
            self.by_name.remove(name);
        }
        if let Some(ending) = record.ending() {
            self.expiries.remove(&(ending.expires, record.control.key));
        }
        record
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Record> {
        self.records.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Record> {
        self.records.get_mut(slot)
    }

    pub(super) fn contains(&self, slot: usize) -> bool {
        self.records.contains(slot)
    }

    /// Returns the slot of the watch with that key, unless it was removed.
    pub(super) fn slot(&self, key: Key) -> Option<usize> {
        let slot = key.slot as usize;
        let record = self.records.get(slot)?;
        (record.control.key == key).then_some(slot)
    }

    /// Returns the slot of the watch with that id.
    pub(super) fn by_id(&self, id: u64) -> Option<usize> {
        Some(*self.by_id.get(id)? as usize)
    }

    /// Returns the slot of the watch with that name.
    pub(super) fn by_name(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Returns the lowest id above `id`.
    pub(super) fn next_after(&self, id: u64) -> Option<u64> {
        self.by_id.next_after(id)
    }

    /// Returns a bound that all slots are below.
    pub(super) fn slots(&self) -> usize {
        self.records.capacity()
    }

    /// Returns the number of watches that have not been removed.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the number of watches that have not closed.
    pub(super) fn open(&self) -> usize {
        self.records.len() - self.expiries.len()
    }

    /// Renews the lease of the watch in that slot. Returns its length.
    ///
    /// # Errors
    /// Its lifetime is not a lease.
    pub(super) fn renew_lease(
        &mut self,
        slot: usize,
        length: Option<Duration>,
    ) -> Result<Duration> {
        let record = &mut self.records[slot];
        let (before, key) = (record.lifetime.lease_expiry(), record.control.key);
        let length = record.lifetime.renew(length)?;
        self.leases.remove(&(before.unwrap_or(0), key));
        self.leases
            .extend(record.lifetime.lease_expiry().map(|at| (at, key)));
        Ok(length)
    }

    /// Returns when the next lease runs out, in nanoseconds of the monotonic clock.
    pub(super) fn next_lease(&self) -> Option<u64> {
        self.leases.first().map(|(at, _)| *at)
    }

    /// Removes a watch whose lease has run out by `now` from those with a lease. Returns its slot.
    pub(super) fn expired_lease(&mut self, now: u64) -> Option<usize> {
        let (_, key) = self.leases.first().filter(|(at, _)| *at <= now)?;
        let slot = self.slot(*key);
        self.leases.pop_first();
        slot
    }

    /// Returns when the next closed watch is to be removed, in nanoseconds of the monotonic clock.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Returns the slot of the closed watch that is to be removed next.
    pub(super) fn next_to_expire(&self) -> Option<usize> {
        self.slot(self.expiries.first()?.1)
    }

    /// Removes up to `most` watches from those bound to a client process and returns them, and
    /// whether there are more.
    pub(super) fn unbind(&mut self, process: ProcessKey, most: usize) -> (Vec<Key>, bool) {
        let Some(bound) = self.bound.get_mut(&process) else {
            return (Vec::new(), false);
        };
        let taken: Vec<Key> = bound.iter().take(most).copied().collect();
        for key in &taken {
            bound.remove(key);
        }
        let more = !bound.is_empty();
        if !more {
            self.bound.remove(&process);
        }
        (taken, more)
    }

    /// Records whether the operations of the ended watch in that slot are being cancelled.
    pub(super) fn set_cancelling(&mut self, slot: usize, cancelling: bool) {
        let before = std::mem::replace(&mut self.records[slot].control.cancelling, cancelling);
        self.cancelling -= usize::from(before);
        self.cancelling += usize::from(cancelling);
    }

    /// Returns whether operations of ended watches are being cancelled.
    pub(super) fn is_cancelling(&self) -> bool {
        self.cancelling > 0
    }
}
