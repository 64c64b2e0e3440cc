//! What can go wrong with a followed file.

use std::fmt;
use std::path::PathBuf;

use rustix::fs::FileType;
use rustix::io::Errno;

/// Why a file cannot be read or followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field of the `Spec` has a value that is not allowed.
    #[error("{field}: {allowed}")]
    InvalidField {
        /// The field's name.
        field: &'static str,
        /// What is allowed.
        allowed: String,
    },
    /// The path leads to something else than a regular file.
    #[error("{} is {what}: only regular files can be read or followed", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it leads to.
        what: NotRegular,
    },
    /// The file system does not tell the file's size, so it cannot be followed. It can be read once.
    #[error("{} tells no size, as files of /proc do: it can be read once, but not followed", path.display())]
    NoSize {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {doing} {}: {errno}", path.display())]
    Io {
        /// What failed.
        doing: Doing,
        /// The path that is followed. A rotated file has another name by now.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
}

/// What was being done when a system call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Looking where the path leads.
    Find,
    /// Opening the file.
    Open,
    /// Reading it, or asking for its size or its holes.
    Read,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Find => "find",
            Self::Open => "open",
            Self::Read => "read",
        })
    }
}

/// Kinds of files that are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRegular {
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device, such as a terminal.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// None of these.
    Other,
}

impl NotRegular {
    /// None for a regular file.
    pub(super) fn of(kind: FileType) -> Option<Self> {
        match kind {
            FileType::RegularFile => None,
            FileType::Directory => Some(Self::Directory),
            FileType::Fifo => Some(Self::Fifo),
            FileType::Socket => Some(Self::Socket),
            FileType::CharacterDevice => Some(Self::CharacterDevice),
            FileType::BlockDevice => Some(Self::BlockDevice),
            _ => Some(Self::Other),
        }
    }
}

impl fmt::Display for NotRegular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "a directory",
            Self::Fifo => "a FIFO",
            Self::Socket => "a socket",
            Self::CharacterDevice => "a character device",
            Self::BlockDevice => "a block device",
            Self::Other => "not a regular file",
        })
    }
}
