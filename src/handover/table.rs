//! The table of slots: their owners, and the requests that wait for a slot.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

use super::kept::Keeping;
use super::slots::Slot;
use crate::access::{ClientProcess, Peer, Principal, ProcessKey};
use crate::state;

/// One principal may not use one part in `LEFT_TO_OTHERS` of the slots: a quarter.
const LEFT_TO_OTHERS: usize = 4;

/// The owner of slots that a client has chosen. No other client can take one of these slots, or
/// occupy its number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Giver {
    /// A client process.
    Process(Principal, ProcessKey),
    /// A principal, if the daemon cannot see the client process.
    Principal(Principal),
}

/// The key of a slot in the table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    /// A slot that the daemon has chosen.
    Issued(Slot),
    /// A slot that the client has chosen.
    Own(Giver, Slot),
}

impl Name {
    /// Returns the key of a slot that the peer has chosen.
    pub(super) fn own(peer: &Peer, slot: Slot) -> Self {
        let principal = peer.principal.clone();
        let giver = match &peer.process {
            Some(process) => Giver::Process(principal, process.key()),
            None => Giver::Principal(principal),
        };
        Self::Own(giver, slot)
    }
}

pub(super) struct Held {
    pub(super) owner: Principal,
    pub(super) giver: Option<Arc<ClientProcess>>,
    pub(super) deadline: Instant,
    /// The descriptor. `None` if it is claimed but may still be put back, or if it is still to
    /// come; the slot stays taken meanwhile.
    pub(super) fd: Option<OwnedFd>,
    /// Where later lives find it.
    pub(super) kept: Option<state::Entry>,
}

/// The requests that wait for one slot.
#[derive(Debug, Default)]
struct Awaited {
    waiters: usize,
    came: Arc<Notify>,
}

#[derive(Default)]
pub(super) struct Table {
    held: HashMap<Name, Held>,
    /// The number of slots of each principal.
    shares: HashMap<Principal, usize>,
    awaited: HashMap<Name, Awaited>,
    /// `None` if no later life goes on.
    keeping: Option<Keeping>,
}

impl Table {
    /// Makes a table without slots that is kept for later lives.
    pub(super) fn kept_by(keeping: Keeping) -> Self {
        Self {
            keeping: Some(keeping),
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Checks whether `owner` may have `more` slots, where `all` is the limit on all slots. Returns
    /// the limit that would be exceeded, or `None`.
    pub(super) fn exceeded(&self, owner: &Principal, more: usize, all: usize) -> Option<usize> {
        let share = all - all / LEFT_TO_OTHERS;
        let theirs = self.shares.get(owner).copied().unwrap_or(0);
        if more > share.saturating_sub(theirs) {
            return Some(share);
        }
        (more > all.saturating_sub(self.len())).then_some(all)
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        self.held.contains_key(name)
    }

    pub(super) fn get_mut(&mut self, name: &Name) -> Option<&mut Held> {
        self.held.get_mut(name)
    }

    pub(super) fn held(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    pub(super) fn insert(&mut self, name: Name, held: Held) {
        *self.shares.entry(held.owner.clone()).or_default() += 1;
        if let Some(awaited) = self.awaited.get(&name) {
            awaited.came.notify_waiters();
        }
        self.held.insert(name, held);
    }

    pub(super) fn remove(&mut self, name: &Name) -> Option<Held> {
        self.forget(name);
        let held = self.held.remove(name)?;
        self.release(&held.owner);
        Some(held)
    }

    /// Has later lives find a slot with its descriptor.
    pub(super) fn keep(&mut self, name: &Name) {
        if let (Some(keeping), Some(held)) = (&mut self.keeping, self.held.get_mut(name))
            && held.kept.is_none()
        {
            held.kept = keeping.put(name, held);
        }
    }

    /// Has later lives find a slot no more. Call it before its descriptor is closed or passed on.
    pub(super) fn forget(&mut self, name: &Name) {
        if let Some(held) = self.held.get_mut(name)
            && let (Some(keeping), Some(kept)) = (&mut self.keeping, held.kept.take())
        {
            keeping.free(kept);
        }
    }

    /// Takes up what an earlier life has kept under that entry; `None`: nothing comes of it.
    pub(super) fn take_up(&mut self, entry: state::Entry, slot: Option<(Name, Held)>) {
        match slot {
            Some((name, held)) if !self.contains(&name) => {
                let kept = Some(entry);
                self.insert(name, Held { kept, ..held });
            }
            _ => {
                if let Some(keeping) = &mut self.keeping {
                    keeping.free(entry);
                }
            }
        }
    }

    /// Removes the slots that have expired, and returns their descriptors.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<OwnedFd> {
        let due = |_: &Name, held: &mut Held| held.fd.is_some() && held.deadline <= now;
        let mut expired: Vec<Held> = self.held.extract_if(due).map(|(_, held)| held).collect();
        for held in &mut expired {
            self.release(&held.owner);
            if let (Some(keeping), Some(kept)) = (&mut self.keeping, held.kept.take()) {
                keeping.free(kept);
            }
        }
        expired.into_iter().filter_map(|held| held.fd).collect()
    }

    fn release(&mut self, owner: &Principal) {
        if let Entry::Occupied(mut share) = self.shares.entry(owner.clone()) {
            *share.get_mut() -= 1;
            if *share.get() == 0 {
                share.remove();
            }
        }
    }

    /// Registers a request that waits for a slot. The returned future completes when the slot
    /// arrives after this call.
    pub(super) fn wait_for(&mut self, name: &Name) -> OwnedNotified {
        let awaited = self.awaited.entry(name.clone()).or_default();
        awaited.waiters += 1;
        Arc::clone(&awaited.came).notified_owned()
    }

    /// Unregisters a request that `wait_for` has registered.
    pub(super) fn wait_no_more(&mut self, name: &Name) {
        if let Some(awaited) = self.awaited.get_mut(name) {
            awaited.waiters -= 1;
            if awaited.waiters == 0 {
                self.awaited.remove(name);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn awaited(&self) -> usize {
        self.awaited.len()
    }
}
