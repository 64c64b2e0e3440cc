//! What a file descriptor refers to.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::net::{SocketType, sockopt};
use rustix::pipe::{PipeFlags, pipe_with};

use super::link;

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
    /// An anonymous pipe, see pipe(2).
    Pipe,
    /// A named pipe, see fifo(7).
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
    /// Returns the name that `FdState.fd_type` has.
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

    /// Returns the kind with its article, for use in a sentence.
    pub(super) const fn phrase(self) -> &'static str {
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

    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = stat(fd)?;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        // These are the most, and to read their links would take several times as long.
        if kind == FileType::Fifo && device_of_pipes() == Some(device(&stat)) {
            return Ok(Self::Pipe);
        }
        // Checked before the other types, because some kernels report a pidfd as a regular file.
        if kind != FileType::Socket
            && let Some(kind) = Self::of_anonymous(fd)
        {
            return Ok(kind);
        }
        Ok(match kind {
            FileType::Socket => Self::Socket {
                kind: sockopt::socket_type(fd)?,
                listening: sockopt::socket_acceptconn(fd)?,
            },
            FileType::Fifo => Self::Fifo,
            FileType::CharacterDevice if (stat.stx_rdev_major, stat.stx_rdev_minor) == PTMX => {
                Self::PtyMaster
            }
            FileType::CharacterDevice if rustix::termios::isatty(fd) => Self::Tty,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::RegularFile => Self::Regular,
            FileType::Directory => Self::Directory,
            FileType::BlockDevice => Self::BlockDevice,
            _ => Self::Anonymous,
        })
    }

    /// Returns the kind of a kernel object without a name in any file system, from its link in
    /// /proc, which alone distinguishes these kinds. The link of a real file begins with a slash,
    /// so no file can imitate one.
    fn of_anonymous(fd: BorrowedFd<'_>) -> Option<Self> {
        let link = rustix::fs::readlink(link(fd), Vec::new()).ok()?;
        let link = link.to_str().ok()?;
        if link.starts_with("pidfd:") {
            return Some(Self::PidFd);
        }
        if link.starts_with("pipe:") {
            return Some(Self::Pipe);
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

fn stat(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    // Cached attributes only: a client may serve the file system (FUSE) and never answer.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(fd, c"", flags, StatxFlags::TYPE)
}

const fn device(stat: &Statx) -> (u32, u32) {
    (stat.stx_dev_major, stat.stx_dev_minor)
}

/// Returns the device of all anonymous pipes; `None` if none can be made.
fn device_of_pipes() -> Option<(u32, u32)> {
    static DEVICE: OnceLock<(u32, u32)> = OnceLock::new();
    if let Some(known) = DEVICE.get() {
        return Some(*known);
    }
    let (reader, _writer) = pipe_with(PipeFlags::CLOEXEC).ok()?;
    let found = device(&stat(reader.as_fd()).ok()?);
    Some(*DEVICE.get_or_init(|| found))
}

/// Device number of /dev/ptmx: every open(2) creates a new pseudoterminal.
const PTMX: (u32, u32) = (5, 2);
