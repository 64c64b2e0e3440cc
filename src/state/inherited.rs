//! Descriptors that an earlier life has left open.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::proto::state::KeptDescriptor;
use crate::sys;

/// Returns how later lives find an open file.
#[must_use]
pub fn descriptor(fd: BorrowedFd<'_>) -> Option<KeptDescriptor> {
    let (device, inode) = sys::keeper::identity_of(fd.as_raw_fd())?;
    Some(KeptDescriptor {
        number: fd.as_raw_fd(),
        device,
        inode,
    })
}

/// The descriptors of an earlier life that nobody has taken yet. The rest is closed with it.
#[derive(Debug, Default)]
pub struct Inherited {
    open: BTreeMap<RawFd, OwnedFd>,
    /// The keeper has ended with the life before: nothing was left open.
    is_alone: bool,
    /// The pids that the life before has noted have a meaning here.
    has_same_pids: bool,
    /// The numbers of sockets with the address of a listening socket, by the number of that.
    accepted: BTreeMap<RawFd, Vec<RawFd>>,
}

impl Inherited {
    /// Owns the descriptors of these numbers. Each must be open, and nothing else may own it.
    #[must_use]
    pub fn own(numbers: impl IntoIterator<Item = RawFd>) -> Self {
        // Each once: owned twice, it would be closed.
        let numbers: BTreeSet<_> = numbers.into_iter().collect();
        let owned = numbers.into_iter();
        Self {
            open: owned
                .map(|number| (number, sys::keeper::own(number)))
                .collect(),
            is_alone: false,
            has_same_pids: true,
            accepted: BTreeMap::new(),
        }
    }

    /// Owns nothing: the keeper has ended, too. `has_same_pids` says whether the pids that the life before
    /// has noted are those that this process sees.
    #[must_use]
    pub const fn of_dead_keeper(has_same_pids: bool) -> Self {
        Self {
            open: BTreeMap::new(),
            is_alone: true,
            has_same_pids,
            accepted: BTreeMap::new(),
        }
    }

    /// Returns whether the keeper has ended with the life before.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Returns whether the pids that earlier lives have noted are those that this process sees.
    #[must_use]
    pub const fn has_same_pids(&self) -> bool {
        self.has_same_pids
    }

    /// Opens the pidfd of a process that an earlier life knew, if it was not reaped since; `kept` is the
    /// pidfd that the earlier life had.
    #[must_use]
    pub fn pidfd(&self, pid: i32, start_time: u64, kept: &KeptDescriptor) -> Option<OwnedFd> {
        if !self.has_same_pids {
            return None;
        }
        // Opened first: what is found afterwards is of the process that it names.
        let pidfd = sys::pidfd::open(pid).ok()?;
        let is_same = crate::access::start_ticks(pid) == Some(start_time)
            // Since Linux 6.9 the inode of a pidfd is that of one process alone.
            && sys::keeper::identity_of(pidfd.as_raw_fd()) == Some((kept.device, kept.inode))
            && sys::pidfd::is_there(pidfd.as_fd());
        is_same.then_some(pidfd)
    }

    /// Says which of them may have been accepted from which listening socket.
    #[must_use]
    pub fn with_accepted(mut self, accepted: BTreeMap<RawFd, Vec<RawFd>>) -> Self {
        self.accepted = accepted;
        self
    }

    /// Takes those that may have been accepted from the listening socket of that number and that nobody
    /// has taken.
    pub fn take_accepted(&mut self, listener: RawFd) -> Vec<OwnedFd> {
        let numbers = self.accepted.remove(&listener).unwrap_or_default();
        let numbers = numbers.into_iter();
        numbers
            .filter_map(|number| self.open.remove(&number))
            .collect()
    }

    /// Takes the descriptor of that number, if nobody has taken it before.
    pub fn take_number(&mut self, number: RawFd) -> Option<OwnedFd> {
        self.open.remove(&number)
    }

    /// Takes an open file; `None` if it is another one, or was taken before.
    pub fn take(&mut self, kept: &KeptDescriptor) -> Option<OwnedFd> {
        let found = sys::keeper::identity_of(kept.number)?;
        if found != (kept.device, kept.inode) {
            return None;
        }
        self.open.remove(&kept.number)
    }
}
