//! Reads the completion queue of a ring whose life has ended: the ring goes on to exist for as long as
//! its descriptor is open.
//!
//! Nobody but the thread that enabled the ring may enter it, so the memory of the queue is mapped and
//! read. Where its parts are is told by a ring that is made for that: it depends on the kernel only.

use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::io_uring::{IORING_OFF_CQ_RING, IoringSqFlags, io_uring_params, io_uring_setup};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::entry::Entry;

/// Bytes of an entry: user data, result and flags.
const ENTRY: usize = 16;
/// The part of a queue that tells how long it is lies within the first page.
const PAGE: usize = 4096;

/// What a ring has completed that was not processed.
#[derive(Debug)]
pub(super) struct Left {
    /// In the order in which the kernel has reported it.
    pub(super) entries: Vec<Entry>,
    /// Whether that is everything; entries that found no room in the queue, which the kernel holds
    /// until there is room, are lost.
    pub(super) is_whole: bool,
}

/// Returns what a ring has completed after its first `seen` entries, a count that wraps around.
///
/// # Errors
/// The descriptor is no ring, or the system refuses to map it.
pub(super) fn left_in(ring: BorrowedFd<'_>, seen: u32) -> Result<Left, Errno> {
    let params = params()?;
    let at = params.cq_off;
    let first = Queue::map(ring, PAGE)?;
    let places = first.number(at.ring_entries)?.load(Ordering::Acquire);
    if !places.is_power_of_two() {
        return Err(Errno::PROTO);
    }
    let entries = index(at.cqes)?;
    let queue = Queue::map(ring, entries + index(places)? * ENTRY)?;
    let tail = queue.number(at.tail)?.load(Ordering::Acquire);
    let missed = queue.number(at.overflow)?.load(Ordering::Acquire);
    // Both queues have one mapping, see IORING_FEAT_SINGLE_MMAP of io_uring_setup(2).
    let flags = queue.number(params.sq_off.flags)?.load(Ordering::Acquire);
    let held = IoringSqFlags::from_bits_retain(flags).contains(IoringSqFlags::CQ_OVERFLOW);
    let count = tail.wrapping_sub(seen);
    let mut left = Left {
        entries: Vec::new(),
        is_whole: count <= places && missed == 0 && !held,
    };
    for number in count.saturating_sub(places)..count {
        let place = entries + index(seen.wrapping_add(number) % places)? * ENTRY;
        let result = queue.long(place + 8)?.load(Ordering::Relaxed);
        // The lower half is the result, the upper half the flags, as both are of 32 bits.
        let [r0, r1, r2, r3, f0, f1, f2, f3] = result.to_ne_bytes();
        left.entries.push(Entry::of(
            queue.long(place)?.load(Ordering::Relaxed),
            i32::from_ne_bytes([r0, r1, r2, r3]),
            u32::from_ne_bytes([f0, f1, f2, f3]),
        ));
    }
    Ok(left)
}

/// Returns where the parts of the queues are.
fn params() -> Result<io_uring_params, Errno> {
    let mut params = io_uring_params::default();
    // SAFETY: the ring is closed at once; nothing is ever submitted to it.
    let ring = unsafe { io_uring_setup(1, &mut params)? };
    drop(ring);
    Ok(params)
}

fn index(number: u32) -> Result<usize, Errno> {
    usize::try_from(number).map_err(|_| Errno::OVERFLOW)
}

/// The mapped memory of a queue.
struct Queue {
    at: NonNull<u8>,
    len: usize,
}

impl Queue {
    fn map(ring: BorrowedFd<'_>, len: usize) -> Result<Self, Errno> {
        let (read, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: the kernel chooses the place, so nothing that exists is mapped over.
        let at = unsafe { mmap(ptr::null_mut(), len, read, flags, ring, IORING_OFF_CQ_RING)? };
        let at = NonNull::new(at.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { at, len })
    }

    fn place<T>(&self, offset: usize) -> Result<*mut T, Errno> {
        let end = offset.checked_add(size_of::<T>()).ok_or(Errno::OVERFLOW)?;
        if end > self.len || !offset.is_multiple_of(align_of::<T>()) {
            return Err(Errno::PROTO);
        }
        // SAFETY: it is within the memory.
        Ok(unsafe { self.at.as_ptr().add(offset) }.cast())
    }

    fn number(&self, offset: u32) -> Result<&AtomicU32, Errno> {
        let place = self.place(index(offset)?)?;
        // SAFETY: it is aligned and within the memory, which is mapped for as long as `self`.
        Ok(unsafe { AtomicU32::from_ptr(place) })
    }

    fn long(&self, offset: usize) -> Result<&AtomicU64, Errno> {
        let place = self.place(offset)?;
        // SAFETY: as above.
        Ok(unsafe { AtomicU64::from_ptr(place) })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from it any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::driver::Direction;
    use crate::driver::proactor::entry::Token;
    use crate::driver::proactor::ring::Ring;
    use crate::state::Keep;

    #[test]
    fn what_was_completed_and_not_seen_is_found() {
        let mut ring = Ring::new(true, &Keep::Own).unwrap();
        ring.enable().unwrap();
        let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let poll = |ring: &mut Ring, source| {
            let token = Token::new(source, Direction::Read);
            ring.poll(token, ready.as_fd()).unwrap();
            ring.enter(Some(Duration::from_secs(20)), false).unwrap();
        };
        // More often than the queue has places.
        for round in 0..600 {
            poll(&mut ring, round);
            let left = left_in(ring.fd(), u32::try_from(round).unwrap()).unwrap();
            assert!(left.is_whole);
            let [entry] = &left.entries[..] else {
                panic!("{left:?}");
            };
            assert_eq!(entry.token, Token::new(round, Direction::Read));
            assert_eq!(entry.number, 0);
            assert!(entry.result.is_ok());
            for entry in ring.take_results() {
                ring.read(&entry, None).unwrap();
            }
        }
        let left = left_in(ring.fd(), 595).unwrap();
        let tokens = left.entries.iter().map(|entry| entry.token.source());
        assert_eq!(tokens.collect::<Vec<_>>(), [595, 596, 597, 598, 599]);
        assert!(!left_in(ring.fd(), 0).unwrap().is_whole);
        assert_eq!(left_in(ready.as_fd(), 0).unwrap_err(), Errno::NODEV);
    }
}
