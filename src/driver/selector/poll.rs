//! poll(2), over an array that is kept between turns.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::{Event, Interest, Poller};
use crate::driver::wait::timespec;

#[derive(Debug)]
pub(super) struct Poll {
    fds: Vec<PollFd<'static>>,
    /// The token of each entry of `fds`.
    tokens: Vec<usize>,
    /// The index in `fds` of each token that was added.
    places: Vec<Option<usize>>,
}

impl Poll {
    fn place(&self, token: usize) -> Result<usize, Errno> {
        self.places
            .get(token)
            .copied()
            .flatten()
            .ok_or(Errno::NOENT)
    }
}

impl Poller for Poll {
    fn new() -> Result<Self, Errno> {
        rustix::event::poll(&mut [], Some(&timespec(Duration::ZERO)))?;
        Ok(Self {
            fds: Vec::new(),
            tokens: Vec::new(),
            places: Vec::new(),
        })
    }

    fn add(&mut self, token: usize, fd: BorrowedFd<'_>, interest: Interest) -> Result<(), Errno> {
        if self.place(token).is_ok() {
            return Err(Errno::EXIST);
        }
        if self.places.len() <= token {
            self.places.resize(token + 1, None);
        }
        self.places[token] = Some(self.fds.len());
        self.tokens.push(token);
        self.fds.push(entry(fd, interest));
        Ok(())
    }

    fn modify(
        &mut self,
        token: usize,
        fd: BorrowedFd<'_>,
        interest: Interest,
    ) -> Result<(), Errno> {
        let place = self.place(token)?;
        self.fds[place] = entry(fd, interest);
        Ok(())
    }

    fn remove(&mut self, token: usize, _fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let place = self.place(token)?;
        self.places[token] = None;
        self.fds.swap_remove(place);
        self.tokens.swap_remove(place);
        if let Some(&moved) = self.tokens.get(place) {
            self.places[moved] = Some(place);
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> Result<(), Errno> {
        let ready = rustix::event::poll(&mut self.fds, timeout.map(timespec).as_ref())?;
        let found = self
            .fds
            .iter()
            .zip(&self.tokens)
            .filter(|(fd, _)| !fd.revents().is_empty())
            .take(ready)
            .map(|(fd, &token)| {
                let flags = fd.revents();
                let broken = flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
                Event {
                    token,
                    read: broken || flags.contains(PollFlags::IN),
                    write: broken || flags.contains(PollFlags::OUT),
                }
            });
        events.extend(found);
        Ok(())
    }
}

fn entry(fd: BorrowedFd<'_>, interest: Interest) -> PollFd<'static> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.read);
    flags.set(PollFlags::OUT, interest.write);
    // SAFETY: a descriptor is removed from a `Poller` before it is closed.
    let fd = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&fd)) };
    PollFd::from_borrowed_fd(fd, flags)
}
