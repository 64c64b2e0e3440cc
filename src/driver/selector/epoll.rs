//! epoll(7), level-triggered.

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::{Event, Interest, Poller};
use crate::driver::wait::timespec;

/// Most events taken from the kernel at once. The kernel reports ready descriptors in rotation, so
/// a smaller number only means more calls.
const EVENTS_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Epoll {
    epoll: OwnedFd,
}

impl Epoll {
    /// Waits once and appends the events. Returns their number.
    fn collect(&self, timeout: Option<Duration>, events: &mut Vec<Event>) -> Result<usize, Errno> {
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let timeout = timeout.map(timespec);
        let (found, _) = epoll::wait(&self.epoll, &mut buffer, timeout.as_ref())?;
        events.extend(found.iter().map(|event| {
            let flags = event.flags;
            let broken = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            Event {
                token: usize::try_from(event.data.u64()).unwrap_or(usize::MAX),
                read: broken || flags.contains(EventFlags::IN),
                write: broken || flags.contains(EventFlags::OUT),
            }
        }));
        Ok(found.len())
    }
}

impl Poller for Epoll {
    fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    fn add(&mut self, token: usize, fd: BorrowedFd<'_>, interest: Interest) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, data(token), flags(interest))
    }

    fn modify(
        &mut self,
        token: usize,
        fd: BorrowedFd<'_>,
        interest: Interest,
    ) -> Result<(), Errno> {
        epoll::modify(&self.epoll, fd, data(token), flags(interest))
    }

    fn remove(&mut self, _token: usize, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        epoll::delete(&self.epoll, fd)
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> Result<(), Errno> {
        // epoll_wait(2) always exists but counts milliseconds; epoll_pwait2(2) counts nanoseconds
        // but may be missing or forbidden. So epoll waits for the whole milliseconds, and then
        // ppoll(2) on the epoll instance waits for the rest.
        let rest = timeout.map_or(Duration::ZERO, |timeout| {
            Duration::from_nanos(u64::from(timeout.subsec_nanos() % 1_000_000))
        });
        let found = self.collect(timeout.map(|timeout| timeout - rest), events)?;
        if found == 0 && !rest.is_zero() {
            let mut own = [PollFd::new(&self.epoll, PollFlags::IN)];
            if rustix::event::poll(&mut own, Some(&timespec(rest)))? > 0 {
                self.collect(Some(Duration::ZERO), events)?;
            }
        }
        Ok(())
    }
}

fn data(token: usize) -> EventData {
    EventData::new_u64(token as u64)
}

fn flags(interest: Interest) -> EventFlags {
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::IN, interest.read);
    flags.set(EventFlags::OUT, interest.write);
    flags
}
