//! The system calls that move bytes and connections, none of which blocks.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, SocketFlags, sockopt};

use super::turn::timespec;
use super::{Direction, Nonblocking, Readiness};

/// Most bytes of one read.
pub(super) const READ_MAX: usize = 256 * 1024;
/// Reads up to this size share an allocation with others.
const SMALL_MAX: usize = 16 * 1024;
/// Size of such an allocation.
const CHUNK: usize = 64 * 1024;

/// Why an attempt came to nothing.
pub(super) enum Refused {
    /// It would have blocked.
    ForNow,
    /// The system does not do it.
    ForGood(Errno),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        match errno {
            // A signal came first: the source is still ready, and will be reported again.
            Errno::AGAIN | Errno::INTR => Self::ForNow,
            errno => Self::ForGood(errno),
        }
    }
}

/// What an attempt came to.
pub(super) type Attempt<T> = Result<T, Refused>;

/// Copies what was read out of memory that will be read into again. Small copies share
/// an allocation.
#[derive(Default)]
pub(super) struct Chunk(BytesMut);

impl Chunk {
    pub(super) fn copy(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.len() > SMALL_MAX {
            return Bytes::copy_from_slice(bytes);
        }
        if self.0.capacity() < bytes.len() {
            self.0 = BytesMut::with_capacity(CHUNK);
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze()
    }
}

/// Where reads go: every read into the same memory, of which only what was read is copied.
pub(super) struct Intake {
    scratch: Box<[u8]>,
    chunk: Chunk,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").finish_non_exhaustive()
    }
}

impl Intake {
    pub(super) fn new() -> Self {
        Self {
            // A loop may never read anything.
            scratch: Box::default(),
            chunk: Chunk::default(),
        }
    }

    /// Reads once, at most `max` bytes; no bytes mean the end.
    pub(super) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        mode: Nonblocking,
        max: usize,
    ) -> Attempt<Bytes> {
        if self.scratch.is_empty() {
            self.scratch = vec![0; READ_MAX].into_boxed_slice();
        }
        let buffer = &mut self.scratch[..max.min(READ_MAX)];
        let read = match mode {
            Nonblocking::Socket => {
                rustix::net::recv(fd, buffer, RecvFlags::DONTWAIT).map(|(read, _)| read)
            }
            Nonblocking::Pipe => rustix::io::preadv2(
                fd,
                &mut [IoSliceMut::new(buffer)],
                u64::MAX,
                ReadWriteFlags::NOWAIT,
            ),
            Nonblocking::Own => rustix::io::read(fd, buffer),
            Nonblocking::Listener | Nonblocking::ReadinessOnly | Nonblocking::File => {
                Err(Errno::INVAL)
            }
        };
        match read {
            Ok(len) => Ok(self.chunk.copy(&self.scratch[..len])),
            // The other side of a pseudoterminal is gone, see ioctl_tty(2).
            Err(Errno::IO) if rustix::termios::isatty(fd) => Ok(Bytes::new()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Sends what the kernel takes now.
pub(super) fn send(fd: BorrowedFd<'_>, mode: Nonblocking, bytes: &[u8]) -> Attempt<usize> {
    let sent = match mode {
        Nonblocking::Socket => {
            rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        }
        Nonblocking::Pipe => {
            rustix::io::pwritev2(fd, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT)
        }
        Nonblocking::Own => rustix::io::write(fd, bytes),
        Nonblocking::Listener | Nonblocking::ReadinessOnly | Nonblocking::File => Err(Errno::INVAL),
    };
    Ok(sent?)
}

/// Accepts one connection, of a listener that nobody else has.
pub(super) fn accept(fd: BorrowedFd<'_>) -> Attempt<(OwnedFd, Option<SocketAddrAny>)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::acceptfrom_with(fd, flags)?)
}

/// Errors of the connection that was to be accepted, not of the listener: accept(2) says
/// to go on with the next.
pub(super) const fn concerns_one_connection(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::CONNABORTED
            | Errno::NETDOWN
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
            | Errno::PERM
    )
}

/// Begins to connect.
pub(super) fn connect(fd: BorrowedFd<'_>, address: &SocketAddrAny) -> Attempt<()> {
    match rustix::net::connect(fd, address) {
        Ok(()) => Ok(()),
        // Interrupted, it goes on by itself like one in progress.
        Err(Errno::INPROGRESS | Errno::INTR) => Err(Refused::ForNow),
        // EAGAIN, of a Unix socket whose peer's backlog is full, is not in progress.
        Err(errno) => Err(Refused::ForGood(errno)),
    }
}

/// Whether it is connected by now.
pub(super) fn connected(fd: BorrowedFd<'_>) -> Attempt<()> {
    readiness(fd, Direction::Write)?;
    sockopt::socket_error(fd)?.map_err(Refused::ForGood)
}

/// What poll(2) says of one descriptor now.
fn poll(fd: BorrowedFd<'_>, direction: Direction) -> Attempt<PollFlags> {
    let wanted = match direction {
        Direction::Read => PollFlags::IN | PollFlags::RDHUP,
        Direction::Write => PollFlags::OUT,
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
    if rustix::event::poll(&mut fds, Some(&timespec(Duration::ZERO)))? == 0 {
        return Err(Refused::ForNow);
    }
    Ok(fds[0].revents())
}

/// Asks for the readiness of one descriptor, in the words of poll(2): the same answer
/// on every backend, and one that is not older than this call.
pub(super) fn readiness(fd: BorrowedFd<'_>, direction: Direction) -> Attempt<Readiness> {
    let found = poll(fd, direction)?;
    // As select(2) has it: what has ended or failed does not block either.
    let (reads, writes) = match direction {
        Direction::Read => (
            PollFlags::IN | PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR,
            PollFlags::empty(),
        ),
        Direction::Write => (PollFlags::empty(), PollFlags::OUT | PollFlags::ERR),
    };
    Ok(Readiness {
        readable: found.intersects(reads),
        writable: found.intersects(writes),
        hangup: found.contains(PollFlags::HUP),
        half_closed: found.contains(PollFlags::RDHUP),
        error: found.intersects(PollFlags::ERR | PollFlags::NVAL),
    })
}

/// Tells a source that was reported for nothing, which happens, from one whose error or
/// hang-up stays but no operation takes it (a queue of error messages, see `MSG_ERRQUEUE`
/// of recv(2)): to wait on would be to spin.
pub(super) fn stuck(fd: BorrowedFd<'_>, direction: Direction) -> Option<Errno> {
    let found = poll(fd, direction).ok()?;
    if found.intersects(PollFlags::IN | PollFlags::OUT) {
        return None;
    }
    match sockopt::socket_error(fd) {
        Ok(Err(errno)) => Some(errno),
        _ => Some(Errno::IO),
    }
}
