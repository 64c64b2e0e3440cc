//! File descriptors that clients hand over: what they refer to, and how to use them without
//! blocking. The same rules hold for all backends and are applied once, when a descriptor is
//! claimed.
//!
//! The file status flags of a descriptor, `O_NONBLOCK` among them, belong to the open file
//! description, which the client shares: setting `O_NONBLOCK` would make the client's own reads
//! fail with `EAGAIN`. So the flags are never changed; see [`Nonblocking`].

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::event::epoll;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, FdFlags, ReadWriteFlags};
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

use super::Op;
use crate::error::SystemError;
pub use kind::FileKind;

mod kind;

/// Device number of /dev/tty: each process that opens it gets its own controlling terminal.
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
    /// The daemon set `O_NONBLOCK`: no other process shares the open file description.
    Own,
    /// The master side of a client's pseudoterminal, which cannot be opened a second time. Its
    /// `O_NONBLOCK` is looked at before each call, because the client can clear it.
    Terminal,
    /// A client's listening socket, whose flags the client can change: see `acceptor`. Only
    /// [`Op::Accept`] is possible.
    Listener,
    /// Reads and writes could block: only [`Op::Ready`] is possible.
    ReadinessOnly,
    /// A regular file: it is always ready, but reads wait for its storage. Only [`Op::ReadAt`]
    /// is possible.
    File,
}

impl Nonblocking {
    const fn is_stream(self) -> bool {
        matches!(self, Self::Socket | Self::Pipe | Self::Own | Self::Terminal)
    }

    /// Returns whether an operation is valid and can be carried out without blocking the loop.
    pub(super) fn allows(self, op: &Op) -> bool {
        match op {
            Op::Ready(_) | Op::HangUp => !matches!(self, Self::File | Self::Listener),
            Op::Send(_) => self.is_stream(),
            Op::Recv { max, .. } => self.is_stream() && *max > 0,
            Op::ReadAt { offset, max } => {
                self == Self::File && *max > 0 && i64::try_from(*offset).is_ok()
            }
            Op::Accept { limit } => matches!(self, Self::Own | Self::Listener) && *limit > 0,
            Op::Connect(_) => self == Self::Own,
        }
    }
}

/// The purpose for which a file descriptor is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To watch its readiness.
    Readiness,
    /// To read a stream of bytes from it.
    Reader,
    /// To write a stream of bytes to it.
    Writer,
    /// To read and write a stream of bytes.
    Connection,
    /// To accept connections.
    Listener,
    /// To receive and send datagrams.
    Datagram,
}

/// Why a file descriptor is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its kind or state does not allow the purpose.
    #[error("{what}: {reason}")]
    Unfit {
        /// What the descriptor refers to, such as `a regular file`.
        what: &'static str,
        /// Why that does not allow the purpose.
        reason: &'static str,
    },
    /// A system call failed, not necessarily because of the descriptor (`EMFILE`).
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

/// A file descriptor that can be passed to [`Driver::attach`](super::Driver::attach).
#[derive(Debug)]
pub struct Claim {
    /// The descriptor, close-on-exec. It may replace the one that the client handed over.
    pub fd: OwnedFd,
    /// What the descriptor refers to.
    pub kind: FileKind,
    /// How reads and writes avoid blocking.
    pub mode: Nonblocking,
    /// Whether reads and writes of the descriptor that was handed over block. If so, whoever takes
    /// this one out gets it blocking.
    pub blocks: bool,
}

/// The result of [`fit`]: how to use a file descriptor that can be claimed.
#[derive(Debug)]
pub struct Fit {
    kind: FileKind,
    mode: Nonblocking,
    /// A reopened descriptor to use in place of the client's, and whether the client's blocks.
    reopened: Option<(OwnedFd, bool)>,
}

impl Fit {
    /// Claims the descriptor. `fd` must be the one that was passed to [`fit`].
    #[must_use]
    pub fn claim(self, fd: OwnedFd) -> Claim {
        let (fd, blocks) = self.reopened.unwrap_or((fd, false));
        Claim {
            fd,
            kind: self.kind,
            mode: self.mode,
            blocks,
        }
    }
}

/// Claims a file descriptor that a client handed over.
///
/// # Errors
/// As [`fit`]; the descriptor is closed.
pub fn claim(fd: OwnedFd, purpose: Purpose) -> Result<Claim, Refusal> {
    Ok(fit(fd.as_fd(), purpose)?.claim(fd))
}

/// Checks whether a file descriptor that a client handed over can be claimed, and makes it
/// close-on-exec.
///
/// # Errors
/// The descriptor cannot be watched, or cannot be used for that purpose without blocking, or a
/// system call failed (such as for lack of descriptors).
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
                    "a connection must be a connected stream socket",
                ));
            }
        },
        Purpose::Datagram => match kind {
            FileKind::Socket {
                kind: SocketType::DGRAM,
                ..
            } if has_datagrams(fd) => Nonblocking::Socket,
            _ => {
                return Err(Refusal::new(
                    kind.phrase(),
                    "a datagram watch takes a UDP socket or a Unix datagram socket",
                ));
            }
        },
        Purpose::Listener => match kind {
            FileKind::Socket {
                kind: SocketType::STREAM,
                listening: true,
            } if flags.contains(OFlags::NONBLOCK) => Nonblocking::Listener,
            // accept(2), unlike recv(2), has no flag that keeps one call from blocking.
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
                    "a listener must be a listening stream socket",
                ));
            }
        },
    };
    Ok(Fit {
        kind,
        mode,
        reopened: None,
    })
}

/// Returns whether a socket of type DGRAM is one of UDP or Unix.
fn has_datagrams(fd: BorrowedFd<'_>) -> bool {
    match sockopt::socket_domain(fd) {
        Ok(AddressFamily::UNIX) => true,
        Ok(AddressFamily::INET | AddressFamily::INET6) => {
            sockopt::socket_protocol(fd) == Ok(Some(ipproto::UDP))
        }
        _ => false,
    }
}

/// Returns what the descriptor refers to, if it can be watched.
///
/// # Errors
/// It cannot be watched because it is always ready or has no readiness, or a system call failed.
pub fn inspect(fd: BorrowedFd<'_>) -> Result<FileKind, Refusal> {
    let system = |step: &'static str| move |errno| Refusal::system("the descriptor", step, errno);
    // open(2) with O_PATH needs no permission on the file: reopening the descriptor would use the
    // daemon's permissions for the client.
    if rustix::fs::fcntl_getfl(fd)
        .map_err(system("fcntl"))?
        .contains(OFlags::PATH)
    {
        return Err(Refusal::new(
            "a descriptor opened with O_PATH",
            "it can be neither watched nor read: open the file without O_PATH",
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
            "in the daemon it would report the daemon's signals; add a signal watch instead",
        ));
    }
    // These kinds always have readiness. The others are tried with epoll, which costs a descriptor.
    if matches!(
        kind,
        FileKind::Socket { .. } | FileKind::Pipe | FileKind::Fifo
    ) {
        return Ok(kind);
    }
    let scratch = match epoll::create(epoll::CreateFlags::CLOEXEC) {
        Ok(scratch) => scratch,
        // Without epoll on this host, only the kind of the descriptor decides.
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

/// Checks a descriptor that is to be read or written as a stream of bytes.
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
        // A reopened pipe is read with read(2), which is faster than preadv2(2). A pipe of another
        // user cannot be reopened, so it is read with preadv2(2).
        FileKind::Pipe if purpose == Purpose::Reader || !pipes_take_nowait() => {
            let own = reopen(fd, kind, flags);
            if own.is_ok() || !pipes_take_nowait() {
                return own;
            }
            Nonblocking::Pipe
        }
        FileKind::Pipe => Nonblocking::Pipe,
        FileKind::Fifo | FileKind::Tty | FileKind::CharDevice => {
            return reopen(fd, kind, flags);
        }
        // It cannot be reopened: that would make another pseudoterminal.
        FileKind::PtyMaster if flags.contains(OFlags::NONBLOCK) => Nonblocking::Terminal,
        FileKind::PtyMaster => {
            return Err(Refusal::new(
                kind.phrase(),
                "reading it could block: set O_NONBLOCK before handing it over",
            ));
        }
        _ => {
            return Err(Refusal::new(
                kind.phrase(),
                "a stream must be a pipe, a FIFO, a connected stream socket or a character device",
            ));
        }
    };
    Ok(Fit {
        kind,
        mode,
        reopened: None,
    })
}

/// Opens the FIFO at `path` for [`Purpose::Reader`] or [`Purpose::Writer`].
///
/// # Errors
/// The errors of open(2): for a writer, `ENXIO` if no process has the FIFO open for reading. If
/// `path` is not a FIFO, the refusal says what it is; it is not opened then.
pub fn open_fifo(path: &Path, purpose: Purpose) -> Result<Claim, Refusal> {
    let failed = |errno| {
        let detail = path.display().to_string();
        Refusal::System(SystemError::new(errno, "open", detail))
    };
    // The kind is checked before the file is opened, because opening a device may have effects.
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let found = found.map_err(failed)?;
    let stat = rustix::fs::fstat(&found).map_err(failed)?;
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => None,
        FileType::RegularFile => Some("a regular file"),
        FileType::Directory => Some("a directory"),
        FileType::CharacterDevice => Some("a character device"),
        FileType::BlockDevice => Some("a block device"),
        FileType::Socket => Some("a socket"),
        _ => Some("not a FIFO"),
    };
    if let Some(what) = what {
        let reason = "only a FIFO is opened by its path; hand over the descriptor of another pipe";
        return Err(Refusal::new(what, reason));
    }
    let access = match purpose {
        Purpose::Writer => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    Ok(Claim {
        fd: open_own(found.as_fd(), access).map_err(failed)?,
        kind: FileKind::Fifo,
        mode: Nonblocking::Own,
        blocks: false,
    })
}

/// Reopens the file, so that `O_NONBLOCK` is set on an open file description that only the daemon
/// has.
fn reopen(fd: BorrowedFd<'_>, kind: FileKind, flags: OFlags) -> Result<Fit, Refusal> {
    let system = |step| move |errno| Refusal::system(kind.phrase(), step, errno);
    let stat = rustix::fs::fstat(fd).map_err(system("fstat"))?;
    if device(&stat) == DEV_TTY {
        return Err(Refusal::new(
            "/dev/tty",
            "it names a different terminal in every process; hand over the terminal itself",
        ));
    }
    Ok(Fit {
        kind,
        mode: Nonblocking::Own,
        reopened: Some((
            open_own(fd, flags & OFlags::RWMODE).map_err(system("open"))?,
            !flags.contains(OFlags::NONBLOCK),
        )),
    })
}

fn open_own(fd: BorrowedFd<'_>, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(link(fd), flags, Mode::empty())
}

/// Returns whether pipes support `RWF_NOWAIT` (since Linux 6.4).
fn pipes_take_nowait() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    if let Some(&answer) = ANSWER.get() {
        return answer;
    }
    let Ok((reader, _writer)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) else {
        // The failure is not cached, because a lack of descriptors may end. Until then pipes are
        // reopened.
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
