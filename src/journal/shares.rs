//! How much of the pinned bytes belongs to each watch, so that a noisy watch pauses alone.

use std::collections::{HashMap, HashSet};

/// Pinned bytes of `Data`, by watch.
#[derive(Debug)]
pub(super) struct Shares {
    /// Most pinned bytes of one watch before it pauses.
    share: u64,
    bytes: HashMap<u64, u64>,
    over: HashSet<u64>,
    /// Watches that went over their share, or came back to half of it, since the loop last took
    /// these changes.
    wait_changes: Vec<u64>,
}

impl Shares {
    pub(super) fn new(share: u64) -> Self {
        Self {
            share,
            bytes: HashMap::new(),
            over: HashSet::new(),
            wait_changes: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, watch: u64, bytes: u64) {
        let held = self.bytes.entry(watch).or_default();
        *held += bytes;
        if *held > self.share && self.over.insert(watch) {
            self.wait_changes.push(watch);
        }
    }

    pub(super) fn sub(&mut self, watch: u64, bytes: u64) {
        let Some(held) = self.bytes.get_mut(&watch) else {
            return;
        };
        *held = held.saturating_sub(bytes);
        let left = *held;
        if left == 0 {
            self.bytes.remove(&watch);
        }
        if left <= self.share / 2 && self.over.remove(&watch) {
            self.wait_changes.push(watch);
        }
    }

    /// Returns whether some watch is paused until it is back at half of its share.
    pub(super) fn is_any_over(&self) -> bool {
        !self.over.is_empty()
    }

    pub(super) fn is_over(&self, watch: u64) -> bool {
        self.over.contains(&watch)
    }

    #[cfg(test)]
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }

    pub(super) fn take_wait_changes(&mut self, into: &mut Vec<u64>) {
        into.append(&mut self.wait_changes);
    }
}
