//! The mapped memory itself: the only place that reads and writes it by address.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// Bytes of a word.
pub(super) const WORD: usize = size_of::<u64>();

/// A file in memory, mapped as a whole and shared with later lives.
pub(super) struct Mapping {
    at: NonNull<u8>,
    len: usize,
    file: OwnedFd,
}

// SAFETY: the memory is mapped until the drop, whichever thread uses it. Words are atomic; all other
// bytes are reached through `Part`s, which do not overlap.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Mapping {
    /// Maps the first `len` bytes of a file that has at least as many and never less. They are left out
    /// of core dumps.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub(super) fn new(file: OwnedFd, len: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place, so nothing that exists is mapped over.
        let at = unsafe {
            mm::mmap(
                ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )?
        };
        let at = NonNull::new(at.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let mapping = Self { at, len, file };
        // A kernel without it writes more into a dump.
        let _ = mapping.advise(Advice::LinuxDontDump);
        Ok(mapping)
    }

    fn advise(&self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: neither advice that is given changes what the memory holds.
        unsafe { mm::madvise(self.at.as_ptr().cast(), self.len, advice) }
    }

    /// Has the kernel provide all pages now, so that no later store waits for one.
    ///
    /// # Errors
    /// There is no memory, or the kernel is older than 5.14.
    pub(super) fn populate(&self) -> Result<(), Errno> {
        self.advise(Advice::LinuxPopulateWrite)
    }

    pub(super) const fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Returns the word at this offset.
    ///
    /// # Panics
    /// It is not aligned, or not within the memory.
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(WORD) && offset <= self.len - WORD);
        // SAFETY: it is within the memory and aligned, as a mapping begins at a page. A `Part` never
        // has a word that is used so as plain bytes.
        unsafe { AtomicU64::from_ptr(self.at.as_ptr().add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from it any more.
        let _ = unsafe { mm::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// A part of a mapping that one owner has for itself.
#[derive(Debug)]
pub(super) struct Part {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Part {
    /// Returns a part of the mapping. The caller sees to it that no other part overlaps it.
    ///
    /// # Panics
    /// It is not within the mapping.
    pub(super) fn new(mapping: Arc<Mapping>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= mapping.len);
        Self {
            mapping,
            start: range.start,
            len: range.len(),
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset < self.len);
        self.mapping.word(self.start + offset)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: it is within the memory. Whoever writes to this part borrows it mutably.
        unsafe { std::slice::from_raw_parts(self.at(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: it is within the memory, and this is the only part that has these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.at(), self.len) }
    }

    fn at(&self) -> *mut u8 {
        // SAFETY: `new` has checked that it is within the memory.
        unsafe { self.mapping.at.as_ptr().add(self.start) }
    }

    /// Splits off what begins at this offset.
    ///
    /// # Panics
    /// It is beyond the end.
    pub(super) fn split_off(&mut self, offset: usize) -> Self {
        assert!(offset <= self.len);
        let rest = Self {
            mapping: Arc::clone(&self.mapping),
            start: self.start + offset,
            len: self.len - offset,
        };
        self.len = offset;
        rest
    }
}

/// Bytes that are not written any more, with the owner that keeps their memory.
struct Written<O> {
    part: Part,
    _owner: O,
}

impl<O> AsRef<[u8]> for Written<O> {
    fn as_ref(&self) -> &[u8] {
        self.part.bytes()
    }
}

/// Makes bytes of a part. They keep `owner` until the last of them is gone.
pub(super) fn into_bytes<O: Send + 'static>(part: Part, owner: O) -> Bytes {
    Bytes::from_owner(Written {
        part,
        _owner: owner,
    })
}
