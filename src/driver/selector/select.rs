//! select(2), over sets that are as large as the descriptors' numbers ask for.
//!
//! The C library's `fd_set` ends at number 1023, the system call does not. The limit
//! that remains is on how many are watched, see [`SELECT_LIMIT`].

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{
    FdSetElement, FdSetIter, fd_set_bound, fd_set_insert, fd_set_num_elements, fd_set_remove,
    select,
};
use rustix::io::Errno;

use super::{Event, Interest, Poller};
use crate::driver::capability::SELECT_LIMIT;
use crate::driver::turn::timespec;

pub(super) struct Select {
    wanted: Sets,
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
            tokens: Vec::new(),
        };
        new.wait(Some(Duration::ZERO), &mut Vec::new())?;
        Ok(new)
    }

    fn add(&mut self, token: usize, fd: BorrowedFd<'_>, interest: Interest) -> Result<(), Errno> {
        let fd = fd.as_raw_fd();
        let number = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        if self.tokens.len() <= number {
            self.tokens.resize(number + 1, 0);
            let elements = fd_set_num_elements(SELECT_LIMIT, fd + 1);
            self.wanted.read.resize_with(elements, Default::default);
            self.wanted.write.resize_with(elements, Default::default);
        }
        self.tokens[number] = token;
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
            events.push(Event {
                token: self.tokens[number],
                read: reads.next_if_eq(&fd).is_some(),
                write: writes.next_if_eq(&fd).is_some(),
            });
        }
        Ok(())
    }
}
