//! Descriptors that an earlier life has left open.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

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
            accepted: BTreeMap::new(),
        }
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
