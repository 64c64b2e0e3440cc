//! File descriptors that come from elsewhere: what they are, and how to use them
//! without blocking. One rule, applied once, whatever the backend.
//!
//! The file status flags of a descriptor, `O_NONBLOCK` among them, are shared with
//! whoever else holds it: a client whose own reads suddenly fail with `EAGAIN` would be
//! right to complain. So they are never changed; see [`Nonblocking`].

use std::borrow::Cow;
use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::event::epoll;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, FdFlags, ReadWriteFlags};
use rustix::net::{SocketType, sockopt};

/// What a file descriptor refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A socket, of this type.
    Socket {
        /// `STREAM`, `DGRAM`, ...
        kind: SocketType,
        /// It accepts connections.
        listening: bool,
    },
    /// An anonymous pipe, as of pipe(2).
    Pipe,
    /// A pipe with a name, as of fifo(7).
    Fifo,
    /// A terminal.
    Tty,
    /// The controlling side of a pseudoterminal.
    PtyMaster,
    /// Another character device.
    CharDevice,
    /// eventfd(2)
    EventFd,
    /// `timerfd_create`(2)
    TimerFd,
    /// signalfd(2)
    SignalFd,
    /// `pidfd_open`(2)
    PidFd,
    /// epoll(7)
    Epoll,
    /// inotify(7)
    Inotify,
    /// Another object of the kernel without a name in any file system.
    Anonymous,
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A block device.
    BlockDevice,
}

impl FileKind {
    /// As in `FdState.fd_type`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket { .. } => "socket",
            Self::Pipe => "pipe",
            Self::Fifo => "fifo",
            Self::Tty => "tty",
            Self::PtyMaster => "pty_master",
            Self::CharDevice => "char_device",
            Self::EventFd => "eventfd",
            Self::TimerFd => "timerfd",
            Self::SignalFd => "signalfd",
            Self::PidFd => "pidfd",
            Self::Epoll => "epoll",
            Self::Inotify => "inotify",
            Self::Anonymous => "anonymous",
            Self::Regular => "regular_file",
            Self::Directory => "directory",
            Self::BlockDevice => "block_device",
        }
    }

    /// In a sentence, with its article.
    const fn phrase(self) -> &'static str {
        match self {
            Self::Socket {
                listening: true, ..
            } => "a listening socket",
            Self::Socket {
                kind: SocketType::STREAM,
                ..
            } => "a stream socket",
            Self::Socket {
                kind: SocketType::DGRAM,
                ..
            } => "a datagram socket",
            Self::Socket { .. } => "a socket of another type than stream",
            Self::Pipe => "a pipe",
            Self::Fifo => "a FIFO",
            Self::Tty => "a terminal",
            Self::PtyMaster => "the master side of a pseudoterminal",
            Self::CharDevice => "a character device",
            Self::EventFd => "an eventfd",
            Self::TimerFd => "a timerfd",
            Self::SignalFd => "a signalfd",
            Self::PidFd => "a pidfd",
            Self::Epoll => "an epoll instance",
            Self::Inotify => "an inotify instance",
            Self::Anonymous => "an anonymous kernel object",
            Self::Regular => "a regular file",
            Self::Directory => "a directory",
            Self::BlockDevice => "a block device",
        }
    }

    fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        // Before the type: a pidfd passes for a regular file.
        if let Some(kind) = Self::of_anonymous(fd) {
            return Ok(kind);
        }
        let stat = rustix::fs::fstat(fd)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => Self::Socket {
                kind: sockopt::socket_type(fd)?,
                listening: sockopt::socket_acceptconn(fd)?,
            },
            FileType::Fifo if rustix::fs::fstatfs(fd)?.f_type == PIPEFS_MAGIC => Self::Pipe,
            FileType::Fifo => Self::Fifo,
            FileType::CharacterDevice if device(&stat) == PTMX => Self::PtyMaster,
            FileType::CharacterDevice if rustix::termios::isatty(fd) => Self::Tty,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::RegularFile => Self::Regular,
            FileType::Directory => Self::Directory,
            FileType::BlockDevice => Self::BlockDevice,
            _ => Self::Anonymous,
        })
    }

    /// Goes by the link in /proc, the only place that tells these apart. Names of real
    /// files begin with a slash there, so that none can pass for one of these.
    fn of_anonymous(fd: BorrowedFd<'_>) -> Option<Self> {
        let link = rustix::fs::readlink(link(fd), Vec::new()).ok()?;
        let link = link.to_str().ok()?;
        if link.starts_with("pidfd:") {
            return Some(Self::PidFd);
        }
        Some(match link.strip_prefix("anon_inode:")? {
            "[eventfd]" => Self::EventFd,
            "[timerfd]" => Self::TimerFd,
            "[signalfd]" => Self::SignalFd,
            "[pidfd]" => Self::PidFd,
            "[eventpoll]" => Self::Epoll,
            "inotify" => Self::Inotify,
            _ => Self::Anonymous,
        })
    }
}

/// `f_type` of the file system that anonymous pipes live in; `PIPEFS_MAGIC` of linux/magic.h.
const PIPEFS_MAGIC: rustix::fs::FsWord = 0x5049_5045;
/// Device number of /dev/tty: whoever opens it gets its own terminal.
const DEV_TTY: (u32, u32) = (5, 0);
/// Device number of /dev/ptmx: whoever opens it gets a new pseudoterminal.
const PTMX: (u32, u32) = (5, 2);

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
    /// `O_NONBLOCK` is set: by the daemon, where nobody else has the open file
    /// description; or by who handed over a listening socket.
    Own,
    /// They do not: only [`Op::Ready`](super::Op::Ready) is possible.
    ReadinessOnly,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What it is: `a regular file`.
    pub what: &'static str,
    /// What is wrong with that.
    pub reason: Cow<'static, str>,
}

impl Refusal {
    fn new(what: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            what,
            reason: reason.into(),
        }
    }

    fn system(what: &'static str, step: &str, errno: Errno) -> Self {
        Self::new(what, format!("{step}: {errno}"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

impl std::error::Error for Refusal {}

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

/// Takes a file descriptor that came from a client.
///
/// # Errors
/// It cannot be watched, or not be used for that purpose without blocking. It is closed.
pub fn claim(fd: OwnedFd, purpose: Purpose) -> Result<Claim, Refusal> {
    let kind = inspect(fd.as_fd())?;
    let flags = rustix::fs::fcntl_getfl(&fd)
        .map_err(|errno| Refusal::system(kind.phrase(), "fcntl", errno))?;
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)
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
            } if flags.contains(OFlags::NONBLOCK) => Nonblocking::Own,
            // Unlike recv(2), accept(2) takes no flag for it; and the connection that
            // woke us may be another process's by then.
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
    Ok(Claim { fd, kind, mode })
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
    match probe_epoll(fd) {
        Ok(()) => Ok(kind),
        Err(Errno::PERM) => Err(unwatchable),
        Err(errno) => Err(Refusal::system(kind.phrase(), "epoll_ctl", errno)),
    }
}

/// Whether epoll would take it. Where there is no epoll, the kind alone decides.
fn probe_epoll(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    match epoll::create(epoll::CreateFlags::CLOEXEC) {
        Ok(scratch) => epoll::add(
            scratch,
            fd,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        ),
        Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Takes the end of a stream of bytes.
fn stream(fd: OwnedFd, kind: FileKind, purpose: Purpose, flags: OFlags) -> Result<Claim, Refusal> {
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
            return reopen(fd.as_fd(), kind, flags & OFlags::RWMODE);
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
    Ok(Claim { fd, kind, mode })
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
fn reopen(fd: BorrowedFd<'_>, kind: FileKind, access: OFlags) -> Result<Claim, Refusal> {
    let system = |errno| Refusal::system(kind.phrase(), "opening it anew", errno);
    let stat = rustix::fs::fstat(fd).map_err(system)?;
    if device(&stat) == DEV_TTY {
        return Err(Refusal::new(
            "/dev/tty",
            "it is another terminal for every process; hand over the terminal itself",
        ));
    }
    Ok(Claim {
        fd: open_own(fd, access).map_err(system)?,
        kind,
        mode: Nonblocking::Own,
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
