//! The system calls that transfer bytes and connections. None of them blocks.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, SocketFlags, sockopt};

use super::wait::timespec;
use super::{Direction, Nonblocking, Readiness, Received};

/// Most bytes of one read.
pub(super) const READ_MAX: usize = 256 * 1024;
/// Results of at most this many bytes share an allocation.
const SMALL_MAX: usize = 16 * 1024;
/// Size of a shared allocation.
const CHUNK: usize = 64 * 1024;

/// Why a system call did not succeed.
pub(super) enum CallError {
    /// It would have blocked, or a signal interrupted it.
    WouldBlock,
    /// It failed.
    Failed(Errno),
}

impl From<Errno> for CallError {
    fn from(errno: Errno) -> Self {
        match errno {
            // After EINTR the source is still ready and is reported again.
            Errno::AGAIN | Errno::INTR => Self::WouldBlock,
            errno => Self::Failed(errno),
        }
    }
}

/// The outcome of a system call that must not block.
pub(super) type Attempt<T> = Result<T, CallError>;

/// Copies received bytes out of a buffer that the next read reuses. Small copies share an
/// allocation.
#[derive(Default)]
pub(super) struct Chunk(BytesMut);

impl Chunk {
    /// Copies the first `len` bytes.
    #[inline]
    pub(super) fn copy(&mut self, memory: &[u8], len: usize) -> Received {
        match Received::few(memory, len) {
            Some(few) => few,
            None => self.share(&memory[..len]),
        }
    }

    fn share(&mut self, bytes: &[u8]) -> Received {
        if bytes.len() > SMALL_MAX {
            return Bytes::copy_from_slice(bytes).into();
        }
        if self.0.capacity() < bytes.len() {
            self.0 = BytesMut::with_capacity(CHUNK);
        }
        self.0.extend_from_slice(bytes);
        self.0.split().freeze().into()
    }
}

/// A read buffer: every read uses the same memory, and only the bytes read are copied out.
#[derive(Default)]
pub(super) struct Intake {
    /// Allocated at the first read: some loops never read.
    scratch: Box<[u8]>,
    pub(super) chunk: Chunk,
}

impl Intake {
    /// Reads once, at most `max` bytes. Empty bytes mean end of file.
    pub(super) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        mode: Nonblocking,
        max: usize,
    ) -> Attempt<Received> {
        if self.scratch.is_empty() {
            self.scratch = vec![0; READ_MAX].into_boxed_slice();
        }
        let read = read(fd, mode, &mut self.scratch[..max.min(READ_MAX)]);
        match read {
            Ok(len) => Ok(self.chunk.copy(&self.scratch, len)),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Reads once.
pub(super) fn read(
    fd: BorrowedFd<'_>,
    mode: Nonblocking,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    match mode {
        Nonblocking::Socket => {
            rustix::net::recv(fd, buffer, RecvFlags::DONTWAIT).map(|(read, _)| read)
        }
        Nonblocking::Pipe => rustix::io::preadv2(
            fd,
            &mut [IoSliceMut::new(buffer)],
            u64::MAX,
            ReadWriteFlags::NOWAIT,
        ),
        Nonblocking::Terminal => still_nonblocking(fd).and_then(|()| rustix::io::read(fd, buffer)),
        Nonblocking::Own => rustix::io::read(fd, buffer),
        Nonblocking::Listener | Nonblocking::ReadinessOnly | Nonblocking::File => Err(Errno::INVAL),
    }
}

/// Fails with `EINVAL` if a client has cleared `O_NONBLOCK`.
fn still_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::fs::fcntl_getfl(fd)?.contains(OFlags::NONBLOCK) {
        true => Ok(()),
        false => Err(Errno::INVAL),
    }
}

/// Sends as many of the bytes as the kernel takes now.
pub(super) fn send(fd: BorrowedFd<'_>, mode: Nonblocking, bytes: &[u8]) -> Attempt<usize> {
    let sent = match mode {
        Nonblocking::Socket => {
            rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        }
        Nonblocking::Pipe => {
            rustix::io::pwritev2(fd, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT)
        }
        Nonblocking::Terminal => still_nonblocking(fd).and_then(|()| rustix::io::write(fd, bytes)),
        Nonblocking::Own => rustix::io::write(fd, bytes),
        Nonblocking::Listener | Nonblocking::ReadinessOnly | Nonblocking::File => Err(Errno::INVAL),
    };
    Ok(sent?)
}

/// Accepts one connection from a listener whose `O_NONBLOCK` is set.
pub(super) fn accept(fd: BorrowedFd<'_>) -> Attempt<(OwnedFd, Option<SocketAddrAny>)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::acceptfrom_with(fd, flags)?)
}

/// Returns whether an error of accept(2) concerns the connection and not the listener. The man
/// page says to try again after such errors, or names them as those of some kernels.
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
            | Errno::NOSR
            | Errno::SOCKTNOSUPPORT
            | Errno::PROTONOSUPPORT
            | Errno::TIMEDOUT
    )
}

/// Begins to connect.
pub(super) fn connect(fd: BorrowedFd<'_>, address: &SocketAddrAny) -> Attempt<()> {
    match rustix::net::connect(fd, address) {
        Ok(()) => Ok(()),
        // An interrupted connect goes on in the kernel like one in progress.
        Err(Errno::INPROGRESS | Errno::INTR) => Err(CallError::WouldBlock),
        // EAGAIN means that the backlog of a Unix listener is full: no connect is in progress.
        Err(errno) => Err(CallError::Failed(errno)),
    }
}

/// Returns `Ok` if the socket is connected, and the error with which connecting failed otherwise.
pub(super) fn connected(fd: BorrowedFd<'_>) -> Attempt<()> {
    readiness(fd, Direction::Write)?;
    sockopt::socket_error(fd)?.map_err(CallError::Failed)
}

/// Calls poll(2) on one descriptor without waiting.
pub(super) fn poll(fd: BorrowedFd<'_>, direction: Direction) -> Attempt<PollFlags> {
    poll_for(
        fd,
        match direction {
            Direction::Read => PollFlags::IN | PollFlags::RDHUP,
            Direction::Write => PollFlags::OUT,
        },
    )
}

fn poll_for(fd: BorrowedFd<'_>, wanted: PollFlags) -> Attempt<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
    if rustix::event::poll(&mut fds, Some(&timespec(Duration::ZERO)))? == 0 {
        return Err(CallError::WouldBlock);
    }
    Ok(fds[0].revents())
}

/// Returns the readiness of one descriptor according to poll(2). So the answer is the same on
/// every backend, and is not older than this call.
pub(super) fn readiness(fd: BorrowedFd<'_>, direction: Direction) -> Attempt<Readiness> {
    let found = poll(fd, direction)?;
    // As with select(2): a descriptor that has reached its end or failed does not block either.
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

/// Returns whether the descriptor has hung up or failed, whatever else it is ready for.
pub(super) fn hang_up(fd: BorrowedFd<'_>) -> Attempt<Readiness> {
    let found = poll_for(fd, PollFlags::empty())?;
    Ok(Readiness {
        hangup: found.contains(PollFlags::HUP),
        error: found.intersects(PollFlags::ERR | PollFlags::NVAL),
        ..Readiness::default()
    })
}

/// Called when a source was reported ready but the operation would block. Returns `None` if that
/// was a spurious report. Returns an error if the source has an error or hang-up that no operation
/// clears (such as a queue of error messages, see `MSG_ERRQUEUE` of recv(2)): waiting for it again
/// would return at once, for ever.
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
