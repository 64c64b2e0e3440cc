//! How a terminal is read and typed into, so that a later life of the daemon knows which bytes were
//! taken in either direction.
//!
//! A terminal does not tell how many bytes it has. So what it has is moved to a pipe, and read from there
//! as from any pipe. What is typed comes from a file, whose offset the kernel advances by what the
//! terminal took (sendfile(2)).

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom, memfd_create};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::driver::Relays;
use crate::faults::{self, Point};

/// The most bytes that are moved at once: the kernel has no more to read of a terminal.
const AT_ONCE: usize = 4096;
/// The bytes of the file that are kept behind its offset, until more than twice as many are.
const TYPED_KEPT: usize = 64 * 1024;

/// The pipe and the file of a terminal.
#[derive(Debug)]
pub struct Relay {
    /// The end of the pipe that is read.
    pub output: OwnedFd,
    /// The end that is written.
    pub input: OwnedFd,
    /// The file from which is typed.
    pub typed: OwnedFd,
    /// Bytes that were read of the pipe.
    pub(super) read: u64,
    /// Whether the pipe may have bytes that an earlier life has moved.
    is_filled: bool,
}

impl Relay {
    pub(super) fn new() -> Result<Self, Errno> {
        let (output, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self {
            output,
            input,
            typed: memfd_create("evloopd-typed", MemfdFlags::CLOEXEC)?,
            read: 0,
            is_filled: false,
        })
    }

    /// Returns that of an earlier life. Without `typed` nobody types any more.
    ///
    /// # Errors
    /// The system refuses a file.
    pub fn of_earlier_life(
        output: OwnedFd,
        input: OwnedFd,
        typed: Option<OwnedFd>,
    ) -> Result<Self, Errno> {
        Ok(Self {
            output,
            input,
            typed: match typed {
                Some(typed) => typed,
                None => memfd_create("evloopd-typed", MemfdFlags::CLOEXEC)?,
            },
            read: 0,
            is_filled: true,
        })
    }

    /// Reads one packet of the terminal, as readv(2) would: its first byte, and the others.
    ///
    /// # Errors
    /// Those of splice(2) and read(2); `AGAIN` also if there is no room before the next commit.
    pub(super) fn read(
        &mut self,
        relays: &mut Relays,
        control: &OwnedFd,
        report: &mut [u8; 1],
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        // A packet that was moved is read as a whole.
        let most = AT_ONCE.min(buffer.len() + 1);
        if relays.room() < AT_ONCE || (self.is_filled && buffer.len() + 1 < AT_ONCE) {
            return Err(Errno::AGAIN);
        }
        if !std::mem::take(&mut self.is_filled) {
            let flags = SpliceFlags::NONBLOCK;
            if rustix::pipe::splice(control, None, &self.input, None, most, flags)? == 0 {
                return Ok(0);
            }
            faults::point(Point::PacketMoved);
        }
        let packet = relays.read(self.output.as_fd(), self.read, AT_ONCE)?;
        let packet = packet.ok_or(Errno::AGAIN)?;
        self.read += packet.len() as u64;
        if let Some((first, data)) = packet.split_first() {
            report[0] = *first;
            buffer[..data.len()].copy_from_slice(data);
        }
        Ok(packet.len())
    }

    /// Types as many of the bytes as the terminal takes.
    ///
    /// # Errors
    /// Those of sendfile(2) and pwrite(2).
    pub(super) fn type_from_file(&self, control: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
        let at = self.typed_bytes();
        let put = rustix::io::pwrite(&self.typed, bytes, at)?;
        faults::point(Point::TypedWritten);
        let typed = rustix::fs::sendfile(control, &self.typed, None, put)?;
        faults::point(Point::Typed);
        let kept = TYPED_KEPT as u64;
        if at % kept > (at + typed as u64) % kept && at > 2 * kept {
            // It only gives memory back.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(&self.typed, hole, 0, at - kept);
        }
        Ok(typed)
    }

    /// Returns its descriptors.
    pub(super) fn into_files(self) -> [OwnedFd; 3] {
        [self.output, self.input, self.typed]
    }

    /// Returns how many bytes were typed.
    pub(super) fn typed_bytes(&self) -> u64 {
        rustix::fs::seek(&self.typed, SeekFrom::Current(0)).unwrap_or(0)
    }

    /// Returns the bytes that were typed between these offsets.
    pub(super) fn typed_since(&self, from: u64, to: u64) -> Vec<u8> {
        let len = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        let mut bytes = vec![0; len.min(TYPED_KEPT)];
        let len = rustix::io::pread(&self.typed, &mut bytes, from).unwrap_or(0);
        bytes.truncate(len);
        bytes
    }
}
