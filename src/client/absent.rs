//! Why no daemon answers, for people, and the one thing to do about it.

use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};
use rustix::fs::Access;
use rustix::io::Errno;

use super::{CONNECT_TIMEOUT, units};

/// No daemon answered.
#[derive(Debug)]
pub struct NoDaemon {
    /// Each path that was tried, and why it failed.
    pub tried: Vec<(PathBuf, Cause)>,
    /// Somebody asked for that very path.
    named: bool,
}

/// Why nobody answers at a path.
#[derive(Debug)]
pub enum Cause {
    /// There is nothing.
    Missing,
    /// There is a socket, and nobody listens.
    Left,
    /// The caller may not open what is there, or not enter this directory.
    Forbidden(Option<PathBuf>),
    /// What is there is no socket.
    NoSocket,
    /// It is a socket of another type, as that for file descriptors is.
    OtherSocket,
    /// Somebody listens, and says nothing.
    Silent,
    /// Anything else.
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
            // Of a file that is no socket too, connect(2).
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
            Self::Left => format!("nobody listens at {shown}, which a daemon that ended has left"),
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

    /// Nothing keeps the caller from starting a daemon that listens there.
    const fn is_absence(&self) -> bool {
        matches!(self, Self::Missing | Self::Left)
    }
}

/// The first directory on the way that the caller may not enter.
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

    /// What was found at each path.
    #[must_use]
    pub fn reason(&self) -> String {
        let said: Vec<String> = self.tried.iter().map(|(p, cause)| cause.say(p)).collect();
        let said = said.join("; ");
        if self.tried.iter().all(|(_, cause)| cause.is_absence()) {
            return format!("no daemon runs: {said}");
        }
        said
    }

    /// What to do: the command that starts a daemon, where that helps.
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
                "the daemon is stopped or too busy: its log tells".to_owned()
            }
            _ => "name the daemon's socket with --socket PATH".to_owned(),
        }
    }
}

/// As a shell takes it.
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
