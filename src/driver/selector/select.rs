//! select(2), over sets that are as large as the descriptors' numbers ask for.
//!
//! The C library's `fd_set` ends at number 1023, the system call does not. The limit
//! that remains is on how many are watched, see [`SELECT_LIMIT`].
//!
//! select(2) does not count `POLLHUP` as room to write, so that it says nothing of a reading end
//! that is watched for it and whose writers are gone, of a full Unix socket that was shut down, or
//! of a terminal. What may hang up so is also in an instance of epoll(7), for its hang-up alone,
//! which is in the set of those to read from.

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{
    FdSetElement, FdSetIter, fd_set_bound, fd_set_insert, fd_set_num_elements, fd_set_remove,
    select,
};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};

use super::{Event, Interest, Poller};
use crate::driver::capability::SELECT_LIMIT;
use crate::driver::turn::timespec;

/// Most descriptors heard of from aside at once; the others are still ready after that.
const ASIDE_MAX: usize = 64;

pub(super) struct Select {
    wanted: Sets,
    /// Waits for hang-ups of which select(2) says nothing. Made for the first that may.
    aside: Option<OwnedFd>,
    /// What the kernel found, written over a copy of `wanted`.
    found: Sets,
    /// Tokens by descriptor number; only those of numbers in `wanted` mean anything.
    tokens: Vec<usize>,
}

#[derive(Clone, Default)]
struct Sets {
    read: Vec<FdSetElement>,
    write: Vec<FdSetElement>,
}

impl fmt::Debug for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Select")
            .field("read", &FdSetIter::new(&self.wanted.read).count())
            .field("write", &FdSetIter::new(&self.wanted.write).count())
            .finish_non_exhaustive()
    }
}

impl Poller for Select {
    const LIMIT: usize = SELECT_LIMIT;

    fn new() -> Result<Self, Errno> {
        let mut new = Self {
            wanted: Sets::default(),
            found: Sets::default(),
            aside: None,
            tokens: Vec::new(),
        };
        new.wait(Some(Duration::ZERO), &mut Vec::new())?;
        Ok(new)
    }

    fn add(&mut self, token: usize, fd: BorrowedFd<'_>, interest: Interest) -> Result<(), Errno> {
        if interest.write && hides_hangup(fd) {
            self.set_aside(token, fd);
        }
        let number = self.place(fd)?;
        self.tokens[number] = token;
        let fd = fd.as_raw_fd();
        if interest.read {
            fd_set_insert(&mut self.wanted.read, fd);
        }
        if interest.write {
            fd_set_insert(&mut self.wanted.write, fd);
        }
        Ok(())
    }

    fn modify(
        &mut self,
        token: usize,
        fd: BorrowedFd<'_>,
        interest: Interest,
    ) -> Result<(), Errno> {
        self.remove(token, fd)?;
        self.add(token, fd, interest)
    }

    fn remove(&mut self, _token: usize, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        if let Some(aside) = &self.aside {
            // Most are not there.
            let _ = epoll::delete(aside, fd);
        }
        let fd = fd.as_raw_fd();
        if usize::try_from(fd).is_ok_and(|number| number < self.tokens.len()) {
            fd_set_remove(&mut self.wanted.read, fd);
            fd_set_remove(&mut self.wanted.write, fd);
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> Result<(), Errno> {
        self.found.clone_from(&self.wanted);
        let Sets { read, write } = &mut self.found;
        let bound = fd_set_bound(read).max(fd_set_bound(write));
        let timeout = timeout.map(timespec);
        // SAFETY: a `Poller` is told to remove a descriptor before it is closed, so all
        // in the sets are open.
        unsafe { select(bound, Some(read), Some(write), None, timeout.as_ref())? };

        let mut reads = FdSetIter::new(read).peekable();
        let mut writes = FdSetIter::new(write).peekable();
        while let Some(fd) = match (reads.peek(), writes.peek()) {
            (Some(&read), Some(&write)) => Some(read.min(write)),
            (read, write) => read.or(write).copied(),
        } {
            let number = usize::try_from(fd).map_err(|_| Errno::BADF)?;
            let (read, write) = (
                reads.next_if_eq(&fd).is_some(),
                writes.next_if_eq(&fd).is_some(),
            );
            match &self.aside {
                Some(aside) if aside.as_raw_fd() == fd => look_aside(aside, events)?,
                _ => events.push(Event {
                    token: self.tokens[number],
                    read,
                    write,
                }),
            }
        }
        Ok(())
    }
}

impl Select {
    /// Makes room for the descriptor in the sets. Answers its number.
    fn place(&mut self, fd: BorrowedFd<'_>) -> Result<usize, Errno> {
        let fd = fd.as_raw_fd();
        let number = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        if self.tokens.len() <= number {
            self.tokens.resize(number + 1, 0);
            let elements = fd_set_num_elements(SELECT_LIMIT, fd + 1);
            self.wanted.read.resize_with(elements, Default::default);
            self.wanted.write.resize_with(elements, Default::default);
        }
        Ok(number)
    }

    /// Waits for its hang-up. Where there is no epoll, the reading direction alone tells of that.
    fn set_aside(&mut self, token: usize, fd: BorrowedFd<'_>) {
        if self.aside.is_none() {
            let Ok(aside) = epoll::create(CreateFlags::CLOEXEC) else {
                return;
            };
            if self.place(aside.as_fd()).is_err() {
                return;
            }
            fd_set_insert(&mut self.wanted.read, aside.as_raw_fd());
            self.aside = Some(aside);
        }
        if let Some(aside) = &self.aside {
            // POLLHUP and POLLERR are told unasked. What epoll does not take has neither.
            let data = EventData::new_u64(token as u64);
            let _ = epoll::add(aside, fd, data, EventFlags::empty());
        }
    }
}

/// What may hang up without room to write. A writing end fails instead, and an internet socket
/// that was shut down takes all that is written.
fn hides_hangup(fd: BorrowedFd<'_>) -> bool {
    match sockopt::socket_domain(fd) {
        Ok(AddressFamily::INET | AddressFamily::INET6) => false,
        Ok(_) => true,
        Err(_) => !fcntl_getfl(fd).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::WRONLY),
    }
}

fn look_aside(aside: &OwnedFd, events: &mut Vec<Event>) -> Result<(), Errno> {
    let mut buffer = [const { MaybeUninit::uninit() }; ASIDE_MAX];
    let (found, _) = epoll::wait(aside, &mut buffer, Some(&timespec(Duration::ZERO)))?;
    events.extend(found.iter().map(|event| Event {
        // It was one before it went there.
        token: usize::try_from(event.data.u64()).unwrap_or(usize::MAX),
        read: false,
        write: true,
    }));
    Ok(())
}
