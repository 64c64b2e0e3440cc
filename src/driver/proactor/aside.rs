//! Waiting for room to write where a poll of the ring cannot.
//!
//! The kernel adds `RDHUP` to whatever a poll of the ring asks for (`IO_POLL_UNMASK`). Where the
//! peer has shut down its side, one that waits for room to write ends at once, as often as it is
//! asked for. epoll(7) reports `RDHUP` only to those who ask: such sources wait in an instance of
//! it, which the ring polls.

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use super::driver::Proactor;
use super::entry::Token;
use super::operation::{Stage, What};
use crate::driver::Done;
use crate::driver::turn::timespec;

/// Most sources heard of at once; the others are still ready after that.
const EVENTS_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// Made for the first that needs it.
    epoll: Option<OwnedFd>,
    /// Sources in it.
    waiting: usize,
    /// The ring polls it.
    pub(super) polled: bool,
}

impl Aside {
    fn add(&mut self, token: Token, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let epoll = match self.epoll.take() {
            Some(epoll) => epoll,
            None => epoll::create(CreateFlags::CLOEXEC)?,
        };
        let data = EventData::new_u64(token.number());
        let added = epoll::add(self.epoll.insert(epoll), fd, data, EventFlags::OUT);
        self.waiting += usize::from(added.is_ok());
        added
    }

    fn remove(&mut self, fd: BorrowedFd<'_>) {
        if let Some(epoll) = &self.epoll
            && epoll::delete(epoll, fd).is_ok()
        {
            self.waiting -= 1;
        }
    }

    /// What the ring is to poll, if it does not.
    pub(super) fn unpolled(&self) -> Option<&OwnedFd> {
        let wanted = self.waiting > 0 && !self.polled;
        self.epoll.as_ref().filter(|_| wanted)
    }

    /// Those that are ready.
    fn ready(&self) -> Vec<Token> {
        let Some(epoll) = &self.epoll else {
            return Vec::new();
        };
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let now = timespec(std::time::Duration::ZERO);
        let found = epoll::wait(epoll, &mut buffer, Some(&now));
        // What is not told now is told by the next poll.
        let found = found.map(|(found, _)| found).unwrap_or_default();
        let tokens = found.iter().map(|event| Token::numbered(event.data.u64()));
        tokens.collect()
    }
}

impl Proactor {
    /// The poll of the ring ended for nothing that it was asked for: waits aside.
    pub(super) fn set_aside(&mut self, token: Token) {
        let Some(source) = self.sources.get_mut(token.source()) else {
            return;
        };
        let Some((fd, live)) = source.parts(token.direction()) else {
            return;
        };
        if live.cancelling {
            return self.end(token, Done::Cancelled);
        }
        match self.aside.add(token, fd) {
            Ok(()) => live.stage = Stage::Aside,
            Err(errno) => self.end(token, Done::Failed(errno)),
        }
    }

    /// It waits no more.
    pub(super) fn leave_aside(&mut self, token: Token) {
        if let Some(source) = self.sources.get_mut(token.source())
            && let Some((fd, _)) = source.parts(token.direction())
        {
            self.aside.remove(fd);
        }
    }

    /// The ring's poll of those aside has ended.
    pub(super) fn look_aside(&mut self) {
        self.aside.polled = false;
        for token in self.aside.ready() {
            self.leave_aside(token);
            if let Some(live) = self.live(token)
                && live.stage == Stage::Aside
            {
                if live.waits_to_transfer() {
                    (live.poll_first, live.polled) = (false, true);
                    self.again(token);
                } else {
                    live.stage = Stage::Found;
                    self.find(token, What::Ready);
                }
            }
        }
    }
}
