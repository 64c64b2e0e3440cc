//! select(2), over sets as large as the highest descriptor number requires.
//!
//! The C library's `fd_set` ends at descriptor 1023, but the system call accepts higher numbers.
//! Only the number of watched descriptors is limited, see [`SELECT_LIMIT`].
//!
//! select(2) does not report `POLLHUP` in the write set. It stays silent about a hang-up if the
//! write direction is armed on a pipe's reading end, on a full Unix socket that was shut down, or
//! on a terminal. Descriptors that may hang up like this are also added to an epoll(7) instance,
//! without any interest, so that it reports the hang-up; the instance itself is in the read set. So
//! are descriptors that are watched for a hang-up alone, for which select(2) has no set.

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
use crate::driver::wait::timespec;

/// Most hang-ups taken from `Select::hangups` at once; the next wait reports the others.
const HANGUPS_MAX: usize = 64;

/// Marks the events of descriptors whose read direction waits for a hang-up alone. No token is as
/// large.
const HANG_UP: u64 = 1 << 63;

pub(super) struct Select {
    wanted: Sets,
    /// An epoll instance for the hang-ups that select(2) does not report. Created for the first
    /// descriptor that needs it.
    hangups: Option<OwnedFd>,
    /// A copy of `wanted`, which the kernel overwrites with the ready descriptors.
    found: Sets,
    /// Tokens by descriptor number, valid only for descriptors in `wanted`.
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
            hangups: None,
            tokens: Vec::new(),
        };
        new.wait(Some(Duration::ZERO), &mut Vec::new())?;
        Ok(new)
    }

    fn add(&mut self, token: usize, fd: BorrowedFd<'_>, interest: Interest) -> Result<(), Errno> {
        if interest.hang_up {
            self.add_hangup(token, HANG_UP, fd)?;
        } else if interest.write && hides_hangup(fd) {
            // Without epoll on this host, only the read direction reports its hang-up. Descriptors
            // that epoll refuses have none.
            let _ = self.add_hangup(token, 0, fd);
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
        if let Some(hangups) = &self.hangups {
            // Fails for most descriptors, which were never added.
            let _ = epoll::delete(hangups, fd);
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
        // SAFETY: a descriptor is removed from a `Poller` before it is closed, so all in the sets
        // are open.
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
            match &self.hangups {
                Some(hangups) if hangups.as_raw_fd() == fd => take_hangups(hangups, events)?,
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
    /// Enlarges the sets for the descriptor. Returns its number.
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

    /// Adds the descriptor to `hangups`, with a mark for its events.
    fn add_hangup(&mut self, token: usize, mark: u64, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let hangups = match self.hangups.take() {
            Some(hangups) => hangups,
            None => {
                let hangups = epoll::create(CreateFlags::CLOEXEC)?;
                self.place(hangups.as_fd())?;
                fd_set_insert(&mut self.wanted.read, hangups.as_raw_fd());
                hangups
            }
        };
        // epoll reports EPOLLHUP and EPOLLERR even for an empty interest.
        let data = EventData::new_u64(token as u64 | mark);
        epoll::add(self.hangups.insert(hangups), fd, data, EventFlags::empty())
    }
}

/// Returns whether the descriptor may hang up without becoming writable. A pipe's writing end
/// reports an error instead, and an internet socket that was shut down is always writable.
fn hides_hangup(fd: BorrowedFd<'_>) -> bool {
    match sockopt::socket_domain(fd) {
        Ok(AddressFamily::INET | AddressFamily::INET6) => false,
        Ok(_) => true,
        Err(_) => !fcntl_getfl(fd).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::WRONLY),
    }
}

fn take_hangups(hangups: &OwnedFd, events: &mut Vec<Event>) -> Result<(), Errno> {
    let mut buffer = [const { MaybeUninit::uninit() }; HANGUPS_MAX];
    let (found, _) = epoll::wait(hangups, &mut buffer, Some(&timespec(Duration::ZERO)))?;
    events.extend(found.iter().map(|event| {
        let data = event.data.u64();
        Event {
            // A token, converted from `usize` in `add_hangup`.
            token: usize::try_from(data & !HANG_UP).unwrap_or(usize::MAX),
            read: data & HANG_UP != 0,
            write: true,
        }
    }));
    Ok(())
}
