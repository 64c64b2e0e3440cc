//! The memory that received bytes go to: buffers provided to the kernel in a ring of
//! their own (`IORING_REGISTER_PBUF_RING` of io_uring_register(2)), from which it takes
//! one when there are bytes. So idle sources have none.
//!
//! Where the kernel can (see [`Buffers::new`]), it fills a buffer bit by bit: a thousand
//! sources with a byte each share one. Else each receive takes a small buffer of its own.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, IOU_PBUF_RING_INC};
use io_uring::{IoUring, opcode};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The one group of buffers.
pub(super) const GROUP: u16 = 0;
/// Places in the ring shared with the kernel; a power of 2.
const PLACES: u16 = 256;
/// Memory is taken from the system in such pieces; what is not written to takes none.
const PIECE: usize = 64 * 1024;
/// Size of a buffer that is used as a whole, however little comes.
const WHOLE: usize = 4 * 1024;
/// Bytes provided at first, and at most; a shortage doubles them. More than this leaves the
/// processor's cache between two uses: sockets gave 3 GB/s with 1 MiB, 7 with 256 KiB.
const TARGET_MIN: usize = 64 * 1024;
const TARGET_MAX: usize = 256 * 1024;
/// Most buffers filled bit by bit: more than the target needs, as some are nearly full.
const BITWISE_MAX: usize = 16;

/// Memory of our own, in whole pages, all zero at first.
struct Pages {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory like any other; nothing about it belongs to a thread.
unsafe impl Send for Pages {}

impl Pages {
    fn new(len: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so no memory in use is replaced.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE)? };
        let at = NonNull::new(at.cast::<u8>()).ok_or(Errno::NOMEM)?;
        Ok(Self { at, len })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it, and whoever has a pointer into it has been dropped with
        // it or before.
        let _ = unsafe { munmap(self.at.as_ptr().cast::<c_void>(), self.len) };
    }
}

/// A buffer; it is provided if `end` is not 0.
struct Buffer {
    at: NonNull<u8>,
    /// Bytes before this one were taken out.
    start: usize,
    /// Bytes from this one on are not the kernel's.
    end: usize,
}

// SAFETY: as for `Pages`, which it points into.
unsafe impl Send for Buffer {}

/// All buffers of one ring. They must outlive whatever the kernel may fill them for.
pub(super) struct Buffers {
    places: Pages,
    tail: u16,
    /// The kernel knows of the places.
    registered: bool,
    bitwise: bool,
    buffers: Vec<Buffer>,
    /// Those not provided, by their numbers.
    free: Vec<u16>,
    pieces: Vec<Pages>,
    exposed: usize,
    target: usize,
}

impl Buffers {
    /// Registers a ring without buffers. `bitwise`: buffers are filled bit by bit, if the
    /// kernel can.
    ///
    /// It can since Linux 6.12, but some that can tell the bits in another order than they
    /// fill them (until "ensure deferred completions are flushed for multishot"). Those of
    /// 6.16 and later do not, and they are known by an operation that came with 6.16.
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
            pieces: Vec::new(),
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
        // SAFETY: the places are page-aligned, as many as is said, and stay where they are
        // for as long as `self`, which outlives the ring's use of them.
        unsafe { submitter.register_buf_ring_with_flags(address, PLACES, GROUP, flags) }
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
        self.registered = true;
        Ok(())
    }

    /// Takes all buffers back and gives their memory up. Nothing in flight receives.
    pub(super) fn withdraw(&mut self, ring: &IoUring) {
        if self.exposed == 0 || ring.submitter().unregister_buf_ring(GROUP).is_err() {
            return;
        }
        self.registered = false;
        self.exposed = 0;
        self.target = TARGET_MIN;
        self.free.clear();
        self.buffers.clear();
        self.pieces.clear();
    }

    /// Whether buffers are filled bit by bit.
    pub(super) const fn are_bitwise(&self) -> bool {
        self.bitwise
    }

    /// Bytes that the kernel may fill without asking again.
    pub(super) const fn exposed(&self) -> usize {
        self.exposed
    }

    /// There were not enough.
    pub(super) fn grow(&mut self) {
        // A shortage of room, not of the target, is no reason.
        if self.exposed * 2 < self.target {
            self.target = (self.target * 2).min(TARGET_MAX);
        }
    }

    /// Provides buffers, for at most `room` bytes more than are exposed already.
    ///
    /// Not for a few bytes: what is provided late is provided in one go.
    pub(super) fn replenish(&mut self, ring: &IoUring, room: usize) {
        let most = self.target.min(self.exposed.saturating_add(room));
        // If it cannot be registered, what receives waits, as if there was no room.
        if self.exposed > most / 2 || self.register(ring).is_err() {
            return;
        }
        let size = if self.bitwise { PIECE } else { WHOLE };
        while self.exposed < most {
            let Some(number) = self.free.pop().or_else(|| self.make()) else {
                return;
            };
            self.provide(number, size.min(most - self.exposed));
        }
    }

    /// A new buffer, unless there are as many as may be or memory is short: those there
    /// are come back.
    fn make(&mut self) -> Option<u16> {
        let (size, most) = if self.bitwise {
            (PIECE, BITWISE_MAX)
        } else {
            (WHOLE, usize::from(PLACES))
        };
        if self.buffers.len() >= most {
            return None;
        }
        let piece = Pages::new(PIECE).ok()?;
        for offset in (0..PIECE).step_by(size) {
            let number = u16::try_from(self.buffers.len()).ok()?;
            self.buffers.push(Buffer {
                // SAFETY: within the piece.
                at: unsafe { piece.at.add(offset) },
                start: 0,
                end: 0,
            });
            self.free.push(number);
        }
        self.pieces.push(piece);
        self.free.pop()
    }

    fn provide(&mut self, number: u16, len: usize) {
        let Some(buffer) = self.buffers.get_mut(usize::from(number)) else {
            return;
        };
        (buffer.start, buffer.end) = (0, len);
        self.exposed += len;
        let places = self.places.at.cast::<BufRingEntry>();
        // SAFETY: the index is below PLACES, for which there is memory. The kernel reads a
        // place only between its head and the tail; this one is beyond, because there
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
        // SAFETY: it points to the first place, whose memory is initialized. The tail in it is
        // written by us only, and read by the kernel: atomically by both.
        unsafe {
            let tail = BufRingEntry::tail(places.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    /// The `len` bytes that the kernel put into that buffer. `more`: it will put others
    /// behind them; else the buffer is ours again. None: the kernel says what cannot be.
    ///
    /// That holds of what can be polled only. Of anything else the kernel uses a buffer up
    /// before it reads (`io_should_commit` in its io_uring/kbuf.c), by more than it reads and
    /// in another order than it tells.
    pub(super) fn take(&mut self, number: u16, len: usize, more: bool) -> Option<&[u8]> {
        let buffer = self.buffers.get_mut(usize::from(number))?;
        let start = buffer.start;
        let end = start.checked_add(len).filter(|end| *end <= buffer.end)?;
        if self.bitwise && more {
            buffer.start = end;
            self.exposed -= len;
        } else {
            self.exposed -= buffer.end - start;
            (buffer.start, buffer.end) = (0, 0);
            self.free.push(number);
        }
        // SAFETY: the bytes are within the buffer, initialized, and the kernel is done with
        // them: it goes on behind them, or gets the buffer back by `provide`, which needs
        // `self` too.
        Some(unsafe { std::slice::from_raw_parts(buffer.at.add(start).as_ptr(), len) })
    }
}
