//! The kernel's watches of a hub, shared by all its subscriptions.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::tree::NodeId;

/// Number of a subscription in its hub.
pub(super) type SubId = u64;

/// A kernel's watch descriptor.
pub(super) type Wd = i32;

/// For what a subscription watches a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// A directory on the way to the root, for a name in it.
    Way,
    /// A directory of the tree.
    Node(NodeId),
}

/// One of those for whom a directory is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) sub: SubId,
    pub(super) place: Place,
}

/// Why a watch was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddError {
    /// The hub's own limit.
    Full,
    /// The kernel's answer.
    Kernel(Errno),
}

#[derive(Debug)]
struct Entry {
    mask: WatchFlags,
    owners: Vec<(Owner, WatchFlags)>,
}

impl Entry {
    fn wanted(&self) -> WatchFlags {
        self.owners
            .iter()
            .fold(WatchFlags::empty(), |union, (_, mask)| union | *mask)
    }
}

/// The kernel has one watch for an inode, whoever asks: owners are counted, their masks united.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: Arc<OwnedFd>,
    entries: HashMap<Wd, Entry>,
    /// Removed here while events of theirs may still wait in the queue, up to their `IN_IGNORED`.
    leaving: HashSet<Wd>,
    limit: usize,
}

impl Watches {
    pub(super) fn new(limit: usize) -> Result<Self, Errno> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            inotify: Arc::new(inotify),
            entries: HashMap::new(),
            leaving: HashSet::new(),
            limit,
        })
    }

    /// The descriptor that the kernel's queue is read from.
    pub(super) fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.inotify)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Watches the directory that `fd` has open, so that it is surely the one that is then read.
    pub(super) fn add(
        &mut self,
        fd: impl AsFd,
        owner: Owner,
        mask: WatchFlags,
    ) -> Result<Wd, AddError> {
        if self.entries.len() >= self.limit {
            return Err(AddError::Full);
        }
        let flags = mask | WatchFlags::MASK_ADD | WatchFlags::EXCL_UNLINK;
        let wd = inotify::add_watch(&self.inotify, link(fd), flags).map_err(AddError::Kernel)?;
        let entry = self.entries.entry(wd).or_insert_with(|| Entry {
            mask: WatchFlags::empty(),
            owners: Vec::new(),
        });
        entry.mask |= mask;
        match entry.owners.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, known)) => *known |= mask,
            None => entry.owners.push((owner, mask)),
        }
        Ok(wd)
    }

    /// Ends `owner`'s part in a watch. True: others remain, who want less than the kernel tells.
    pub(super) fn release(&mut self, wd: Wd, owner: Owner) -> bool {
        let Some(entry) = self.entries.get_mut(&wd) else {
            return false;
        };
        entry.owners.retain(|(known, _)| *known != owner);
        if !entry.owners.is_empty() {
            return entry.wanted() != entry.mask;
        }
        self.entries.remove(&wd);
        // Fails only if the kernel has just removed it by itself; then `IN_IGNORED` is on its way too.
        let _ = inotify::remove_watch(&self.inotify, wd);
        self.leaving.insert(wd);
        false
    }

    /// Asks the kernel for no more than the owners of `wd` want; `fd` has opened what should be it.
    pub(super) fn narrow(&mut self, wd: Wd, fd: impl AsFd) {
        let Some(entry) = self.entries.get_mut(&wd) else {
            return;
        };
        let (path, wanted) = (link(fd), entry.wanted());
        // First an addition that changes nothing, to see whether it is that inode.
        let same = WatchFlags::MASK_ADD | WatchFlags::EXCL_UNLINK | wanted;
        let Ok(found) = inotify::add_watch(&self.inotify, &path, same) else {
            return;
        };
        let exact = wanted | WatchFlags::EXCL_UNLINK;
        if found == wd && inotify::add_watch(&self.inotify, &path, exact).is_ok() {
            entry.mask = wanted;
        } else if !self.entries.contains_key(&found) {
            let _ = inotify::remove_watch(&self.inotify, found);
            self.leaving.insert(found);
        }
    }

    /// One of those for whom `wd` is watched.
    pub(super) fn an_owner(&self, wd: Wd) -> Option<Owner> {
        Some(self.entries.get(&wd)?.owners.first()?.0)
    }

    /// Copies the owners of `wd` into `owners`. None for one that is leaving.
    pub(super) fn owners(&self, wd: Wd, owners: &mut Vec<Owner>) {
        owners.clear();
        if !self.leaving.contains(&wd) {
            owners.extend(
                self.entries
                    .get(&wd)
                    .iter()
                    .flat_map(|entry| &entry.owners)
                    .map(|(owner, _)| *owner),
            );
        }
    }

    /// The kernel has removed `wd`, by itself or as it was told to: its number may be given again.
    pub(super) fn ignored(&mut self, wd: Wd) {
        if !self.leaving.remove(&wd) {
            self.entries.remove(&wd);
        }
    }

    /// Events were lost: an `IN_IGNORED` may be among them.
    pub(super) fn overflowed(&mut self) {
        self.leaving.clear();
    }
}

fn link(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}
