//! Explains to people why no daemon answers, and what to do about it.

use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};
use rustix::fs::Access;
use rustix::io::Errno;

use super::{CONNECT_TIMEOUT, units};

/// The error that no daemon answered.
#[derive(Debug)]
pub struct NoDaemon {
    /// Each path that was tried, and why it failed.
    pub tried: Vec<(PathBuf, Cause)>,
    /// Whether the caller named the path.
    named: bool,
}

/// The reason why no daemon answers at a path.
#[derive(Debug)]
pub enum Cause {
    /// The path does not exist.
    Missing,
    /// The path is a socket on which no process listens.
    Left,
    /// The caller may not open the socket (none), or may not enter this directory.
    Forbidden(Option<PathBuf>),
    /// The file is not a socket.
    NoSocket,
    /// The socket has another type, for example SEQPACKET: the socket for file descriptors.
    OtherSocket,
    /// A process listens but sends nothing.
    Silent,
    /// Any other error.
    Other(io::Error),
}

impl Cause {
    pub(super) fn of(path: &Path, error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut {
            return Self::Silent;
        }
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => Self::Missing,
            Some(Errno::PROTOTYPE) => Self::OtherSocket,
            Some(Errno::ACCESS) => Self::Forbidden(closed_directory(path)),
            // connect(2) returns this for a file that is not a socket, too.
            Some(Errno::CONNREFUSED) => match path.metadata() {
                Ok(found) if !found.file_type().is_socket() => Self::NoSocket,
                _ => Self::Left,
            },
            _ => Self::Other(error),
        }
    }

    fn say(&self, path: &Path) -> String {
        let shown = path.display();
        match self {
            Self::Missing => format!("there is no socket at {shown}"),
            Self::Left => {
                format!("nobody listens at {shown}, the socket was left by a daemon that ended")
            }
            Self::Forbidden(None) => {
                let whose = whose(path);
                format!("{shown} exists, but you may not open it: {whose}")
            }
            Self::Forbidden(Some(directory)) => {
                let (closed, whose) = (directory.display(), whose(directory));
                format!("{shown} cannot be reached, you may not enter {closed}: {whose}")
            }
            Self::NoSocket => format!("{shown} is not a socket"),
            Self::OtherSocket => format!("{shown} is a socket of another kind"),
            Self::Silent => {
                let seconds = CONNECT_TIMEOUT.as_secs();
                format!("{shown} is open, but nobody answers there within {seconds} s")
            }
            Self::Other(error) => format!("{shown}: {error}"),
        }
    }

    /// Whether the caller could start a daemon that listens there.
    const fn is_absence(&self) -> bool {
        matches!(self, Self::Missing | Self::Left)
    }
}

/// Returns the first directory of the path, from the root on, that the caller may not enter.
fn closed_directory(path: &Path) -> Option<PathBuf> {
    let parents: Vec<&Path> = path.ancestors().skip(1).collect();
    let closed =
        |directory: &&&Path| rustix::fs::access(**directory, Access::EXEC_OK) == Err(Errno::ACCESS);
    parents
        .iter()
        .rev()
        .find(closed)
        .map(|path| (*path).to_owned())
}

fn whose(path: &Path) -> String {
    let Ok(found) = path.metadata() else {
        return "it belongs to another user".to_owned();
    };
    let uid = found.uid();
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let user = user.map_or_else(|| format!("with uid {uid}"), |user| user.name);
    format!(
        "it belongs to user {user} (mode {:04o})",
        found.mode() & 0o7777
    )
}

impl NoDaemon {
    pub(super) const fn new(tried: Vec<(PathBuf, Cause)>, named: bool) -> Self {
        Self { tried, named }
    }

    /// Returns why no daemon answers, for each path.
    #[must_use]
    pub fn reason(&self) -> String {
        let said: Vec<String> = self.tried.iter().map(|(p, cause)| cause.say(p)).collect();
        let said = said.join("; ");
        if self.tried.iter().all(|(_, cause)| cause.is_absence()) {
            return format!("no daemon runs: {said}");
        }
        said
    }

    /// Returns what to do: the command that starts a daemon, if that helps.
    #[must_use]
    pub fn advice(&self) -> String {
        let absent = self.tried.iter().find(|(_, cause)| cause.is_absence());
        match (absent, self.tried.last()) {
            (Some((path, _)), _) if self.named => {
                format!("start one with `evloopd --socket {}`", quoted(path))
            }
            (Some(_), _) => format!("start one with `{}`", units::start_command()),
            (None, Some((_, Cause::Forbidden(_)))) => {
                "act as that user, or name another socket with --socket PATH".to_owned()
            }
            (None, Some((_, Cause::Silent))) => {
                "the daemon is stopped or too busy, see its log".to_owned()
            }
            _ => "name the daemon's socket with --socket PATH".to_owned(),
        }
    }
}

/// Quotes a path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

impl fmt::Display for NoDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason(), self.advice())
    }
}

impl std::error::Error for NoDaemon {}
