//! The memory for received bytes: buffers that are provided to the kernel in a separate ring
//! (`IORING_REGISTER_PBUF_RING` of io_uring_register(2)). The kernel takes a buffer only when
//! bytes arrive, so idle sources use none.
//!
//! Where the kernel supports it (see [`Buffers::new`]), it fills a buffer in increments: a
//! thousand sources with one byte each share a buffer. Elsewhere each receive uses a whole small
//! buffer.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, IOU_PBUF_RING_INC};
use io_uring::{IoUring, opcode};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::kept::Kept;
use crate::state;

/// The only group of buffers.
pub(super) const GROUP: u16 = 0;
/// Places in the ring shared with the kernel; a power of 2.
const PLACES: u16 = 256;
/// Memory is mapped in pieces of this many bytes; untouched pages use no memory.
const PIECE: usize = 64 * 1024;
/// Size of a buffer that a single receive uses up, however few bytes arrive.
const WHOLE: usize = 4 * 1024;
/// Bytes provided at first, and at most; a shortage doubles them. A larger maximum would leave
/// the processor's cache between two uses: sockets gave 3 GB/s with 1 MiB, 7 with 256 KiB.
const TARGET_MIN: usize = 64 * 1024;
const TARGET_MAX: usize = 256 * 1024;
/// Most buffers that are filled in increments: more than the target needs, as some are nearly full.
const BITWISE_MAX: usize = 16;

/// Private memory in whole pages, initially zero.
struct Pages {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is ordinary memory and is not tied to a thread.
unsafe impl Send for Pages {}

impl Pages {
    fn new(len: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is requested, so the mapping replaces no memory in use.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE)? };
        let at = NonNull::new(at.cast::<u8>()).ok_or(Errno::NOMEM)?;
        Ok(Self { at, len })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it, and every `Buffer` that points into it has been dropped before
        // it or together with it.
        let _ = unsafe { munmap(self.at.as_ptr().cast::<c_void>(), self.len) };
    }
}

/// A buffer. The kernel owns its bytes from `start` to `end`; it is provided if `end` is not 0.
struct Buffer {
    at: NonNull<u8>,
    /// Bytes that it has room for.
    len: usize,
    /// The bytes before this offset were taken out.
    start: usize,
    /// The bytes from this offset on were not provided to the kernel.
    end: usize,
}

// SAFETY: as for `Pages`, which it points into.
unsafe impl Send for Buffer {}

/// Bytes that the kernel put into a buffer.
pub(super) struct Taken<'a> {
    pub(super) bytes: &'a [u8],
    /// Where in the buffer they begin.
    pub(super) start: usize,
    /// The kernel puts nothing more into the buffer.
    pub(super) is_used_up: bool,
}

/// All buffers of one ring. They must outlive every operation for which the kernel may fill them.
pub(super) struct Buffers {
    places: Pages,
    tail: u16,
    /// Whether `places` is registered with the kernel.
    registered: bool,
    bitwise: bool,
    buffers: Vec<Buffer>,
    /// Numbers of the buffers that are not provided.
    free: Vec<u16>,
    /// Buffers that are used up and whose bytes later lives may need, with the number of the first
    /// receipt after theirs.
    resting: VecDeque<(u16, u64)>,
    pieces: Vec<Pages>,
    /// Memory that later lives find.
    kept: Vec<state::Buffer>,
    exposed: usize,
    target: usize,
}

impl Buffers {
    /// Registers a ring without buffers. With `bitwise`, the kernel fills buffers in increments,
    /// if it can.
    ///
    /// Linux can since 6.12 (`IOU_PBUF_RING_INC`), but kernels before the commit "ensure deferred
    /// completions are flushed for multishot" may report increments in another order than they
    /// were filled. Linux 6.16 and later have that commit, and are recognised by an operation
    /// that 6.16 added.
    pub(super) fn new(
        ring: &IoUring,
        probe: &io_uring::Probe,
        bitwise: bool,
    ) -> Result<Self, Errno> {
        let mut new = Self {
            places: Pages::new(usize::from(PLACES) * size_of::<BufRingEntry>())?,
            tail: 0,
            registered: false,
            bitwise: bitwise && probe.is_supported(opcode::Pipe::CODE),
            buffers: Vec::new(),
            free: Vec::new(),
            resting: VecDeque::new(),
            pieces: Vec::new(),
            kept: Vec::new(),
            exposed: 0,
            target: TARGET_MIN,
        };
        new.register(ring)?;
        Ok(new)
    }

    fn register(&mut self, ring: &IoUring) -> Result<(), Errno> {
        if self.registered {
            return Ok(());
        }
        self.set_tail(0);
        let flags = if self.bitwise { IOU_PBUF_RING_INC } else { 0 };
        let flags = u16::try_from(flags).unwrap_or(0);
        let address = self.places.at.as_ptr().expose_provenance() as u64;
        let submitter = ring.submitter();
        // SAFETY: `places` is page-aligned, has PLACES entries, and stays at its address for as
        // long as `self`, which outlives the ring's use of it.
        unsafe { submitter.register_buf_ring_with_flags(address, PLACES, GROUP, flags) }
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
        self.registered = true;
        Ok(())
    }

    /// Takes all buffers back and frees their memory. No receive may be in flight, and all bytes must be
    /// committed.
    pub(super) fn withdraw(&mut self, ring: &IoUring) {
        if self.exposed == 0 || ring.submitter().unregister_buf_ring(GROUP).is_err() {
            return;
        }
        self.registered = false;
        self.exposed = 0;
        self.target = TARGET_MIN;
        self.free.clear();
        self.resting.clear();
        self.buffers.clear();
        self.pieces.clear();
        self.kept.clear();
    }

    /// Returns whether the kernel fills buffers in increments.
    pub(super) const fn are_bitwise(&self) -> bool {
        self.bitwise
    }

    /// Returns the number of bytes that the kernel may fill without asking again.
    pub(super) const fn exposed(&self) -> usize {
        self.exposed
    }

    /// Doubles the target after a receive has found no buffer.
    pub(super) fn grow(&mut self) {
        // If the budget and not the target caused the shortage, a larger target would not help.
        if self.exposed * 2 < self.target {
            self.target = (self.target * 2).min(TARGET_MAX);
        }
    }

    /// Provides buffers for at most `room` bytes more than are exposed already.
    ///
    /// Does nothing while more than half of that is exposed, so that few calls provide many bytes.
    pub(super) fn replenish(&mut self, ring: &IoUring, room: usize, mut kept: Option<&mut Kept>) {
        let most = self.target.min(self.exposed.saturating_add(room));
        // If the ring cannot be registered, receives wait as if there were no room.
        if self.exposed > most / 2 || self.register(ring).is_err() {
            return;
        }
        while self.exposed < most {
            let free = self.free.pop();
            let Some(number) = free.or_else(|| self.make(kept.as_deref_mut())) else {
                return;
            };
            // Before the kernel may fill it.
            if let Some(kept) = &kept {
                kept.provided(number);
            }
            self.provide(number, most - self.exposed);
        }
    }

    /// Creates buffers and returns the number of one. Returns `None` at the maximum or without
    /// memory; the existing buffers become free again later.
    fn make(&mut self, kept: Option<&mut Kept>) -> Option<u16> {
        let (size, most) = if self.bitwise {
            (PIECE, BITWISE_MAX)
        } else {
            (WHOLE, usize::from(PLACES))
        };
        if self.buffers.len() >= most {
            return None;
        }
        if let Some(kept) = kept {
            let number = u16::try_from(self.buffers.len()).ok()?;
            if let Some((memory, at, len)) = kept.buffer(number, size) {
                self.kept.push(memory);
                self.buffers.push(Buffer {
                    at,
                    len,
                    start: 0,
                    end: 0,
                });
                return Some(number);
            }
        }
        let piece = Pages::new(PIECE).ok()?;
        for offset in (0..PIECE).step_by(size) {
            let number = u16::try_from(self.buffers.len()).ok()?;
            self.buffers.push(Buffer {
                // SAFETY: `offset` is within the piece.
                at: unsafe { piece.at.add(offset) },
                len: size,
                start: 0,
                end: 0,
            });
            self.free.push(number);
        }
        self.pieces.push(piece);
        self.free.pop()
    }

    /// Provides a buffer, at most `most` bytes of it.
    fn provide(&mut self, number: u16, most: usize) {
        let Some(buffer) = self.buffers.get_mut(usize::from(number)) else {
            return;
        };
        let len = buffer.len.min(most);
        (buffer.start, buffer.end) = (0, len);
        self.exposed += len;
        let places = self.places.at.cast::<BufRingEntry>();
        // SAFETY: the index is below PLACES, for which there is memory. The kernel reads a
        // place only between its head and the tail; this place is outside, because there
        // are at most as many buffers as places.
        let place = unsafe { places.add(usize::from(self.tail % PLACES)).as_mut() };
        place.set_addr(buffer.at.as_ptr().expose_provenance() as u64);
        place.set_len(u32::try_from(len).unwrap_or(0));
        place.set_bid(number);
        self.set_tail(self.tail.wrapping_add(1));
    }

    fn set_tail(&mut self, tail: u16) {
        self.tail = tail;
        let places = self.places.at.cast::<BufRingEntry>();
        // SAFETY: the pointer is to the first place, whose memory is initialized. Only this
        // function writes the tail in it, and the kernel reads it; both do so atomically.
        unsafe {
            let tail = BufRingEntry::tail(places.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    /// Returns the `len` bytes that the kernel put into that buffer, and where they begin in it. With
    /// `more`, the kernel will put further bytes behind them; otherwise the buffer is used up. Returns
    /// `None` if the kernel's result is impossible.
    ///
    /// This accounting is right only for descriptors that can be polled. For others the kernel
    /// consumes the buffer before it reads (`io_should_commit` in its io_uring/kbuf.c), by more
    /// bytes than it then reads and in another order than it reports.
    pub(super) fn take(&mut self, number: u16, len: usize, more: bool) -> Option<Taken<'_>> {
        let buffer = self.buffers.get_mut(usize::from(number))?;
        let start = buffer.start;
        let end = start.checked_add(len).filter(|end| *end <= buffer.end)?;
        let is_used_up = !(self.bitwise && more);
        if is_used_up {
            self.exposed -= buffer.end - start;
            (buffer.start, buffer.end) = (0, 0);
        } else {
            buffer.start = end;
            self.exposed -= len;
        }
        // SAFETY: the bytes are within the buffer and initialized, and the kernel is done with
        // them: it continues behind them, or gets the buffer again from `provide`, which cannot
        // run while this slice borrows `self`.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.at.add(start).as_ptr(), len) };
        Some(Taken {
            bytes,
            start,
            is_used_up,
        })
    }

    /// Makes a buffer free that is used up: at once, or when all receipts before that number are of no
    /// more use.
    pub(super) fn give_back(&mut self, number: u16, after: Option<u64>) {
        match after {
            None => self.free.push(number),
            Some(receipt) => self.resting.push_back((number, receipt)),
        }
    }

    /// Makes the buffers free that have waited for all receipts before that number.
    pub(super) fn committed(&mut self, first: u64) {
        while let Some((number, after)) = self.resting.front().copied()
            && after <= first
        {
            self.resting.pop_front();
            self.free.push(number);
        }
    }
}
