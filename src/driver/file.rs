//! File descriptors that come from elsewhere: what they are, and how to use them
//! without blocking. One rule, applied once, whatever the backend.
//!
//! The file status flags of a descriptor, `O_NONBLOCK` among them, are shared with
//! whoever else holds it: a client whose own reads suddenly fail with `EAGAIN` would be
//! right to complain. So they are never changed; see [`Nonblocking`].

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::event::epoll;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, FdFlags, ReadWriteFlags};
use rustix::net::SocketType;

use super::Op;
use crate::error::SystemError;
pub use kind::FileKind;

mod kind;

/// Device number of /dev/tty: whoever opens it gets its own terminal.
const DEV_TTY: (u32, u32) = (5, 0);

fn device(stat: &rustix::fs::Stat) -> (u32, u32) {
    (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    )
}

fn link(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// How reads and writes avoid blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nonblocking {
    /// `MSG_DONTWAIT` of recv(2) and send(2).
    Socket,
    /// `RWF_NOWAIT` of preadv2(2) and pwritev2(2).
    Pipe,
    /// `O_NONBLOCK` is set, by the daemon: nobody else has the open file description.
    Own,
    /// A listening socket of a client's, whose flags are the client's: see `acceptor`. Only
    /// [`Op::Accept`] is possible.
    Listener,
    /// They do not: only [`Op::Ready`] is possible.
    ReadinessOnly,
    /// It is a regular file: always ready, whose reads take as long as its storage. Only
    /// [`Op::ReadAt`] is possible.
    File,
}

impl Nonblocking {
    const fn is_stream(self) -> bool {
        matches!(self, Self::Socket | Self::Pipe | Self::Own)
    }

    /// Whether an operation can be carried out without blocking.
    pub(super) fn allows(self, op: &Op) -> bool {
        match op {
            Op::Ready(_) => !matches!(self, Self::File | Self::Listener),
            Op::Send(_) => self.is_stream(),
            Op::Recv { max } => self.is_stream() && *max > 0,
            Op::ReadAt { offset, max } => {
                self == Self::File && *max > 0 && i64::try_from(*offset).is_ok()
            }
            Op::Accept { limit } => matches!(self, Self::Own | Self::Listener) && *limit > 0,
            Op::Connect(_) => self == Self::Own,
        }
    }
}

/// What a file descriptor is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To watch its readiness.
    Readiness,
    /// To read a stream of bytes from it.
    Reader,
    /// To write a stream of bytes to it.
    Writer,
    /// As a connection: bytes both ways.
    Connection,
    /// To accept connections.
    Listener,
}

/// Why a file descriptor is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is of a kind, or in a state, that will not do.
    #[error("{what}: {reason}")]
    Unfit {
        /// What it is: `a regular file`.
        what: &'static str,
        /// What is wrong with that.
        reason: &'static str,
    },
    /// The system refused, which may say nothing about the descriptor: `EMFILE`.
    #[error(transparent)]
    System(#[from] SystemError),
}

impl Refusal {
    const fn new(what: &'static str, reason: &'static str) -> Self {
        Self::Unfit { what, reason }
    }

    fn system(what: &'static str, step: &'static str, errno: Errno) -> Self {
        Self::System(SystemError::new(errno, step, what))
    }
}

/// A file descriptor fit for [`Driver::attach`](super::Driver::attach).
#[derive(Debug)]
pub struct Claim {
    /// The descriptor, close-on-exec; not always the one that came.
    pub fd: OwnedFd,
    /// What it is.
    pub kind: FileKind,
    /// How to use it.
    pub mode: Nonblocking,
}

/// How a file descriptor that [`fit`] has looked at is taken.
#[derive(Debug)]
pub struct Fit {
    kind: FileKind,
    mode: Nonblocking,
    /// To be used in its place.
    anew: Option<OwnedFd>,
}

impl Fit {
    /// Takes it. `fd` has to be the one that was looked at.
    #[must_use]
    pub fn claim(self, fd: OwnedFd) -> Claim {
        Claim {
            fd: self.anew.unwrap_or(fd),
            kind: self.kind,
            mode: self.mode,
        }
    }
}

/// Takes a file descriptor that came from a client.
///
/// # Errors
/// As [`fit`]; it is closed.
pub fn claim(fd: OwnedFd, purpose: Purpose) -> Result<Claim, Refusal> {
    Ok(fit(fd.as_fd(), purpose)?.claim(fd))
}

/// Looks whether a file descriptor that came from a client can be taken, and makes it
/// close-on-exec.
///
/// # Errors
/// It cannot be watched, or not be used for that purpose without blocking; or the system has no
/// room for what that takes.
pub fn fit(fd: BorrowedFd<'_>, purpose: Purpose) -> Result<Fit, Refusal> {
    let kind = inspect(fd)?;
    let flags = rustix::fs::fcntl_getfl(fd)
        .map_err(|errno| Refusal::system(kind.phrase(), "fcntl", errno))?;
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)
        .map_err(|errno| Refusal::system(kind.phrase(), "fcntl", errno))?;

    let mode = match purpose {
        Purpose::Readiness => Nonblocking::ReadinessOnly,
        Purpose::Reader | Purpose::Writer => return stream(fd, kind, purpose, flags),
        Purpose::Connection => match kind {
            FileKind::Socket {
                kind: SocketType::STREAM,
                listening: false,
            } => Nonblocking::Socket,
            _ => {
                return Err(Refusal::new(
                    kind.phrase(),
                    "only stream sockets that are connected",
                ));
            }
        },
        Purpose::Listener => match kind {
            FileKind::Socket {
                kind: SocketType::STREAM,
                listening: true,
            } if flags.contains(OFlags::NONBLOCK) => Nonblocking::Listener,
            // Unlike recv(2), accept(2) takes no flag for it.
            FileKind::Socket {
                kind: SocketType::STREAM,
                listening: true,
            } => {
                return Err(Refusal::new(
                    kind.phrase(),
                    "accepting could block: set O_NONBLOCK before handing it over",
                ));
            }
            _ => {
                return Err(Refusal::new(
                    kind.phrase(),
                    "only stream sockets that listen",
                ));
            }
        },
    };
    Ok(Fit {
        kind,
        mode,
        anew: None,
    })
}

/// What it is, if it can be watched at all.
///
/// # Errors
/// It cannot: it is always ready, or has no readiness.
pub fn inspect(fd: BorrowedFd<'_>) -> Result<FileKind, Refusal> {
    let system = |step: &'static str| move |errno| Refusal::system("the descriptor", step, errno);
    // A descriptor with O_PATH needed no permission to open the file; reopening it would
    // lend the daemon's.
    if rustix::fs::fcntl_getfl(fd)
        .map_err(system("fcntl"))?
        .contains(OFlags::PATH)
    {
        return Err(Refusal::new(
            "a descriptor opened with O_PATH",
            "it can be neither watched nor read",
        ));
    }
    let kind = FileKind::of(fd).map_err(system("fstat"))?;
    let unwatchable = Refusal::new(
        kind.phrase(),
        "it has no readiness to watch; epoll_ctl(2) refuses it with EPERM",
    );
    if matches!(
        kind,
        FileKind::Regular | FileKind::Directory | FileKind::BlockDevice
    ) {
        return Err(unwatchable);
    }
    if kind == FileKind::SignalFd {
        return Err(Refusal::new(
            kind.phrase(),
            "whoever polls it is told of signals to itself, here to the daemon; watch the signal",
        ));
    }
    // These always have one; the others take a descriptor to ask with.
    if matches!(
        kind,
        FileKind::Socket { .. } | FileKind::Pipe | FileKind::Fifo
    ) {
        return Ok(kind);
    }
    let scratch = match epoll::create(epoll::CreateFlags::CLOEXEC) {
        Ok(scratch) => scratch,
        // Where there is no epoll, the kind alone decides.
        Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => return Ok(kind),
        Err(errno) => return Err(Refusal::system(kind.phrase(), "epoll_create", errno)),
    };
    let data = epoll::EventData::new_u64(0);
    match epoll::add(scratch, fd, data, epoll::EventFlags::IN) {
        Ok(()) => Ok(kind),
        Err(Errno::PERM) => Err(unwatchable),
        Err(errno) => Err(Refusal::system(kind.phrase(), "epoll_ctl", errno)),
    }
}

/// Takes the end of a stream of bytes.
fn stream(
    fd: BorrowedFd<'_>,
    kind: FileKind,
    purpose: Purpose,
    flags: OFlags,
) -> Result<Fit, Refusal> {
    let (wrong, fault) = match purpose {
        Purpose::Writer => (OFlags::RDONLY, "it is open for reading only"),
        _ => (OFlags::WRONLY, "it is open for writing only"),
    };
    if flags & OFlags::RWMODE == wrong {
        return Err(Refusal::new(kind.phrase(), fault));
    }
    let mode = match kind {
        FileKind::Socket {
            kind: SocketType::STREAM,
            listening: false,
        } => Nonblocking::Socket,
        FileKind::Pipe if pipes_take_nowait() => Nonblocking::Pipe,
        FileKind::Pipe | FileKind::Fifo | FileKind::Tty | FileKind::CharDevice => {
            return reopen(fd, kind, flags & OFlags::RWMODE);
        }
        FileKind::PtyMaster => {
            return Err(Refusal::new(
                kind.phrase(),
                "it cannot be read without blocking its other holders; hand over the terminal",
            ));
        }
        _ => {
            return Err(Refusal::new(
                kind.phrase(),
                "only pipes, FIFOs, stream sockets and character devices are streams of bytes",
            ));
        }
    };
    Ok(Fit {
        kind,
        mode,
        anew: None,
    })
}

/// Opens the FIFO at `path` for [`Purpose::Reader`] or [`Purpose::Writer`].
///
/// # Errors
/// The system's: for a writer, `ENXIO` where nobody has it open for reading. `EINVAL` for
/// anything but a FIFO, which is left unopened.
pub fn open_fifo(path: &Path, purpose: Purpose) -> Result<Claim, Errno> {
    // Found before opened: opening a device may have effects.
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::Fifo {
        return Err(Errno::INVAL);
    }
    let access = match purpose {
        Purpose::Writer => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    Ok(Claim {
        fd: open_own(found.as_fd(), access)?,
        kind: FileKind::Fifo,
        mode: Nonblocking::Own,
    })
}

/// Makes an open file description of our own, where `O_NONBLOCK` bothers nobody else.
fn reopen(fd: BorrowedFd<'_>, kind: FileKind, access: OFlags) -> Result<Fit, Refusal> {
    let system = |step| move |errno| Refusal::system(kind.phrase(), step, errno);
    let stat = rustix::fs::fstat(fd).map_err(system("fstat"))?;
    if device(&stat) == DEV_TTY {
        return Err(Refusal::new(
            "/dev/tty",
            "it is another terminal for every process; hand over the terminal itself",
        ));
    }
    Ok(Fit {
        kind,
        mode: Nonblocking::Own,
        anew: Some(open_own(fd, access).map_err(system("open"))?),
    })
}

fn open_own(fd: BorrowedFd<'_>, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(link(fd), flags, Mode::empty())
}

/// Whether pipes of this kernel take `RWF_NOWAIT` (since Linux 6.4).
fn pipes_take_nowait() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    if let Some(&answer) = ANSWER.get() {
        return answer;
    }
    let Ok((reader, _writer)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) else {
        // Not an answer to keep; and reopening does as well.
        return false;
    };
    let mut byte = [0];
    let read = rustix::io::preadv2(
        &reader,
        &mut [IoSliceMut::new(&mut byte)],
        u64::MAX,
        ReadWriteFlags::NOWAIT,
    );
    *ANSWER.get_or_init(|| read == Err(Errno::AGAIN))
}

#[cfg(test)]
mod tests;
