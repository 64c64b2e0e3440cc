//! Accepting from a listening socket that a client shares.
//!
//! accept4(2) blocks when no connection is waiting, unless `O_NONBLOCK` is set. The client can
//! clear that flag at any moment, and another process can take the connection that poll(2)
//! reported. io_uring first tries an accept without blocking, whatever the flags; if it would
//! block, it is cancelled, and its result says for certain whether it accepted a connection.
//! Where there is no io_uring, a listener whose flag was cleared is refused.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags};

use super::transfer::{self, Attempt, CallError};

/// `user_data` of the accept and of its cancellation.
const ACCEPT: u64 = 1;
const CANCEL: u64 = 2;
/// Entries of the ring: one accept and its cancellation.
const ENTRIES: u32 = 2;

/// A separate ring for one loop, created for the first listener that needs it.
#[derive(Default)]
pub(super) struct Acceptor(Option<IoUring>);

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acceptor").field(&self.0.is_some()).finish()
    }
}

impl Acceptor {
    /// Accepts one connection without blocking.
    pub(super) fn accept(
        &mut self,
        fd: BorrowedFd<'_>,
    ) -> Attempt<(OwnedFd, Option<SocketAddrAny>)> {
        let ring = match self.0.take() {
            Some(ring) => ring,
            None => match IoUring::new(ENTRIES) {
                Ok(ring) => ring,
                Err(error) => return without_ring(fd, &error),
            },
        };
        // The ring is kept only if nothing is in flight. On failure it is closed, which ends the
        // accept.
        let (ring, result) = accept(ring, fd).map_err(|error| CallError::from(errno(&error)))?;
        self.0 = Some(ring);
        match u32::try_from(result) {
            Ok(_) => {
                // SAFETY: the kernel has just created this descriptor for the accept.
                let connection = unsafe { OwnedFd::from_raw_fd(result) };
                let peer = rustix::net::getpeername(&connection).ok().flatten();
                Ok((connection, peer))
            }
            Err(_) => Err(match Errno::from_raw_os_error(result.saturating_neg()) {
                Errno::CANCELED => CallError::WouldBlock,
                errno => CallError::from(errno),
            }),
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Accepts one connection where no ring could be created. Fails with the error if that may pass
/// (too few descriptors, too little memory), and with `ENOSYS` if accept4(2) could block.
fn without_ring(
    fd: BorrowedFd<'_>,
    error: &io::Error,
) -> Attempt<(OwnedFd, Option<SocketAddrAny>)> {
    let errno = errno(error);
    if matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM) {
        return Err(errno.into());
    }
    if !rustix::fs::fcntl_getfl(fd)?.contains(OFlags::NONBLOCK) {
        return Err(CallError::Failed(Errno::NOSYS));
    }
    transfer::accept(fd)
}

/// Submits one accept. Returns the ring and the kernel's result.
fn accept(mut ring: IoUring, fd: BorrowedFd<'_>) -> io::Result<(IoUring, i32)> {
    let flags = (SocketFlags::NONBLOCK | SocketFlags::CLOEXEC).bits();
    let accept = opcode::Accept::new(Fd(fd.as_raw_fd()), ptr::null_mut(), ptr::null_mut())
        .flags(flags.cast_signed())
        .build()
        .user_data(ACCEPT);
    push(&mut ring, &accept)?;
    enter(&ring, 0)?;
    if let Some(result) = said(&mut ring) {
        return Ok((ring, result));
    }
    let cancel = opcode::AsyncCancel::new(ACCEPT)
        .build()
        .flags(squeue::Flags::SKIP_SUCCESS)
        .user_data(CANCEL);
    push(&mut ring, &cancel)?;
    loop {
        // The cancelled accept completes at once.
        enter(&ring, 1)?;
        if let Some(result) = said(&mut ring) {
            return Ok((ring, result));
        }
    }
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    // SAFETY: neither operation names any memory.
    let pushed = unsafe { ring.submission().push(entry) };
    pushed.map_err(|_| Errno::BUSY.into())
}

fn enter(ring: &IoUring, wanted: usize) -> io::Result<()> {
    loop {
        match ring.submit_and_wait(wanted) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            entered => return entered.map(drop),
        }
    }
}

/// Returns the result of the accept, if the kernel has reported it.
fn said(ring: &mut IoUring) -> Option<i32> {
    let mut entries = ring.completion();
    entries
        .find(|entry| entry.user_data() == ACCEPT)
        .map(|entry| entry.result())
}
