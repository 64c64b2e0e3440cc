//! Waiting until a source is writable where a poll of the ring cannot.
//!
//! The kernel adds `RDHUP` to the events of every poll of the ring (`IO_POLL_UNMASK`). If the peer
//! has shut down its sending side, a poll for writing therefore ends at once, every time. epoll(7)
//! reports `RDHUP` only on request, so such sources wait in an epoll instance, which the ring
//! polls.

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use super::entry::Token;
use crate::driver::wait::timespec;

/// Most sources taken from epoll at once; the next poll reports the others.
const EVENTS_MAX: usize = 64;

/// The sources that wait in an epoll instance instead of the ring.
#[derive(Debug, Default)]
pub(super) struct EpollSet {
    /// The epoll instance, created for the first source that needs it.
    epoll: Option<OwnedFd>,
    /// Number of sources in it.
    waiting: usize,
    /// Whether a poll of it is in the ring.
    pub(super) polled: bool,
}

impl EpollSet {
    /// Makes a source wait until it is writable.
    pub(super) fn add(&mut self, token: Token, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let epoll = match self.epoll.take() {
            Some(epoll) => epoll,
            None => epoll::create(CreateFlags::CLOEXEC)?,
        };
        let data = EventData::new_u64(token.number());
        let added = epoll::add(self.epoll.insert(epoll), fd, data, EventFlags::OUT);
        self.waiting += usize::from(added.is_ok());
        added
    }

    /// Makes a source wait no longer.
    pub(super) fn remove(&mut self, fd: BorrowedFd<'_>) {
        if let Some(epoll) = &self.epoll
            && epoll::delete(epoll, fd).is_ok()
        {
            self.waiting -= 1;
        }
    }

    /// Returns the epoll instance if the ring should poll it and does not yet.
    pub(super) fn unpolled(&self) -> Option<&OwnedFd> {
        let wanted = self.waiting > 0 && !self.polled;
        self.epoll.as_ref().filter(|_| wanted)
    }

    /// Returns the operations whose sources are ready.
    pub(super) fn ready(&self) -> Vec<Token> {
        let Some(epoll) = &self.epoll else {
            return Vec::new();
        };
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let now = timespec(std::time::Duration::ZERO);
        let found = epoll::wait(epoll, &mut buffer, Some(&now));
        // After a failure the sources are still ready, and the next poll reports them.
        let found = found.map(|(found, _)| found).unwrap_or_default();
        let tokens = found.iter().map(|event| Token::numbered(event.data.u64()));
        tokens.collect()
    }
}
