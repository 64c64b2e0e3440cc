//! What later lives of the daemon find of a ring: its [`Arrivals`], and how they are read.

use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::cqueue;
use rustix::io::Errno;

use super::entry::{Entry, Token};
use super::left::left_in;
use crate::driver::Direction;
use crate::state::{Arena, Arrival, Arrivals, Buffer, Completed, Found, Keep, Owner, Uncommitted};

/// As many receipts as one call of io_uring_enter(2) may need.
const SPARE: usize = 4096;

/// The receipts of a ring.
#[derive(Debug)]
pub(super) struct Kept {
    arena: Arc<Arena>,
    owner: Owner,
    ring: RawFd,
    /// Completions that were processed; the count wraps around.
    seen: u32,
    /// `None` before the first transfer that needs a receipt, as many loops have none.
    arrivals: Option<Arrivals>,
    /// Something was transferred without a receipt.
    is_lossy: bool,
}

impl Kept {
    pub(super) fn new(keep: &Keep, ring: RawFd) -> Option<Self> {
        match keep {
            Keep::Own => None,
            Keep::Kept(arena, owner) => Some(Self {
                arena: Arc::clone(arena),
                owner: *owner,
                ring,
                seen: 0,
                arrivals: None,
                is_lossy: false,
            }),
        }
    }

    pub(super) const fn is_lossy(&self) -> bool {
        self.is_lossy
    }

    fn arrivals(&mut self) -> Option<&mut Arrivals> {
        if self.arrivals.is_none() {
            let arena = Arc::clone(&self.arena);
            self.arrivals = Arrivals::new(arena, self.owner, self.ring, self.seen).ok();
        }
        self.is_lossy |= self.arrivals.is_none();
        self.arrivals.as_mut()
    }

    /// Says that something is about to be transferred: a later life finds the ring from here on.
    pub(super) fn expect(&mut self) {
        self.arrivals();
    }

    /// Makes memory for a buffer. Returns it with its place and length.
    pub(super) fn buffer(
        &mut self,
        number: u16,
        most: usize,
    ) -> Option<(Buffer, NonNull<u8>, usize)> {
        let len = most - Arrivals::OVERHEAD;
        let buffer = self.arrivals()?.buffer(number, len);
        self.is_lossy |= buffer.is_err();
        let mut buffer = buffer.ok()?;
        let at = buffer.at();
        Some((buffer, at, len))
    }

    /// Says that the kernel fills a buffer from its beginning.
    pub(super) fn provided(&self, buffer: u16) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.provided(buffer);
        }
    }

    /// Says that a completion without bytes was processed.
    pub(super) fn saw(&mut self) {
        self.seen = self.seen.wrapping_add(1);
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.saw();
        }
    }

    /// As [`Arrivals::took`].
    pub(super) fn took(&mut self, arrival: &Arrival, offset: Option<u64>, start: usize) {
        self.seen = self.seen.wrapping_add(1);
        let arrivals = self.arrivals.as_mut();
        let written = arrivals.is_some_and(|arrivals| arrivals.took(arrival, offset, start));
        self.is_lossy |= !written;
    }

    /// As [`Arrivals::sent`].
    pub(super) fn sent(&mut self, number: RawFd, offset: u64, len: usize) {
        let arrivals = self.arrivals();
        let written = arrivals.is_some_and(|arrivals| arrivals.sent(number, offset, len));
        self.is_lossy |= !written;
        self.seen = self.seen.wrapping_add(1);
    }

    /// Returns the number of the next receipt.
    pub(super) fn next(&self) -> u64 {
        self.arrivals.as_ref().map_or(0, Arrivals::next)
    }

    /// Says that all is committed that has receipts with smaller numbers.
    pub(super) fn committed(&mut self, first: u64) {
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.committed(first);
        }
    }

    /// Returns whether no receipt is of use any more.
    pub(super) fn is_committed(&self) -> bool {
        let arrivals = self.arrivals.as_ref();
        arrivals.is_none_or(Arrivals::is_committed)
    }

    /// Returns whether there may be too little room for the receipts of the next results.
    pub(super) fn is_crowded(&self) -> bool {
        let arrivals = self.arrivals.as_ref();
        arrivals.is_some_and(|arrivals| arrivals.room() < SPARE)
    }
}

/// Returns what the ring of an earlier life has transferred last. `all` are the receipts and buffers
/// that were found of the loop.
///
/// # Errors
/// It cannot be known.
pub(in crate::driver) fn uncommitted(
    found: &Found,
    all: &[Found],
    ring: BorrowedFd<'_>,
) -> Result<Uncommitted, Errno> {
    Arrivals::recover(found, all, |seen| {
        let left = left_in(ring, seen)?;
        match left.is_whole {
            true => Ok(left.entries.iter().map(completed).collect()),
            false => Err(Errno::OVERFLOW),
        }
    })
}

fn completed(entry: &Entry) -> Completed {
    let own = [Token::WAKER, Token::EPOLL, Token::CANCELLATION];
    match entry.result {
        // A poll has no number, and returns what it has found.
        Ok(len) if entry.number > 0 && len > 0 && !own.contains(&entry.token) => {
            let number = entry.number;
            match (cqueue::buffer_select(entry.flags), entry.token.direction()) {
                (Some(buffer), _) => Completed::Arrived(Arrival {
                    number,
                    buffer,
                    len,
                }),
                (None, Direction::Write) => Completed::Sent { number, len },
                // A read of a file, which can be read again.
                (None, Direction::Read) => Completed::Other,
            }
        }
        _ => Completed::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;
    use std::os::fd::{AsFd as _, AsRawFd as _};
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::driver::Offset;
    use crate::driver::proactor::ring::Ring;
    use crate::state::Sent;

    #[test]
    fn the_first_send_of_a_life_is_known_before_anything_was_processed() {
        const LOOP: Owner = 5;
        let arena = Arena::new().unwrap();
        // As a killed life leaves it.
        let mut ring =
            ManuallyDrop::new(Ring::new(true, &Keep::Kept(Arc::clone(&arena), LOOP)).unwrap());
        ring.enable().unwrap();
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let token = Token::new(0, Direction::Write);
        let bytes = Bytes::from_static(b"hello");
        ring.send(token, writer.as_fd(), false, bytes, Offset::at(7))
            .unwrap();
        ring.enter(Some(Duration::from_secs(20)), false).unwrap();
        let table = arena.file().try_clone().unwrap();
        let found = Arena::recover(table, None).unwrap().found;
        let found: Vec<_> = found.into_iter().filter(|f| f.owner == LOOP).collect();
        assert_eq!(Arrivals::ring(&found[0]), Some(ring.fd().as_raw_fd()));
        let left = crate::driver::uncommitted(&found, Some(ring.fd())).unwrap();
        let sent = Sent {
            number: writer.as_raw_fd(),
            offset: None,
            len: Some(5),
        };
        assert_eq!(left.sent, [sent]);
    }
}
