//! Authentication: principals, peers of Unix sockets, and the audit log.
//!
//! There are no access rules yet. The daemon serves only its own uid and root, because a client
//! that may start a process can do everything that the daemon's user can.

use std::fmt;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::Arc;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::io::Errno;

use crate::error::{Error, Result, SystemError};
use crate::sparing::Sparing;
use crate::text;

mod process;
mod socket;

pub use process::{ClientProcess, ProcessKey};
pub(crate) use process::{parent_of, start_ticks};
pub use socket::{
    BoundSocket, SocketFile, adopt_unix, bind_unix, bound_since, can_bind, is_served, make_parent,
};

/// The `tracing` target of the audit log.
pub const AUDIT: &str = "evloopd::audit";

/// The longest object and the longest error in an audit line, in bytes.
const TOLD_MAX: usize = 1024;

/// The rate limit of lines about denied connections: if the socket's mode lets other users connect,
/// they can do so as often as they like.
static DENIED: Sparing = Sparing::new();

const ROOT: u32 = 0;

/// An authenticated caller, such as `uid:1000`. Every object belongs to one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(Arc<str>);

impl Principal {
    /// Makes the principal of a user of this host.
    #[must_use]
    pub fn uid(uid: u32) -> Self {
        Self(format!("uid:{uid}").into())
    }

    /// Returns its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Principal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let uid = text.strip_prefix("uid:").and_then(|n| n.parse().ok());
        // A principal has exactly one spelling: `uid:+1` and `uid:01` are refused.
        uid.map(Self::uid)
            .filter(|principal| principal.as_str() == text)
            .ok_or_else(|| {
                Error::invalid(
                    "principal",
                    format!("`{text}` is not a principal; allowed is uid:N, such as uid:1000"),
                )
            })
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The other end of a connection, as the kernel reports it: the process that *connected*. Another
/// process may have got the socket since then.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its principal.
    pub principal: Principal,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
    /// Its process id; 0 if it is in a PID namespace that the daemon cannot see.
    pub pid: i32,
    /// Its process. None if the daemon cannot see it, or it had ended already.
    pub process: Option<Arc<ClientProcess>>,
    /// Whether it may act for every principal.
    pub administrator: bool,
}

/// The users that the daemon serves.
#[derive(Debug, Clone)]
pub struct Access {
    served: Vec<u32>,
}

impl Access {
    /// Serves the daemon's own effective uid and root.
    #[must_use]
    pub fn new() -> Self {
        let mut served = vec![rustix::process::geteuid().as_raw(), ROOT];
        served.dedup();
        Self { served }
    }

    /// Identifies the peer of a connected Unix socket.
    ///
    /// # Errors
    /// [`Error::PermissionDenied`] for a user that is not served; [`Error::System`] if the kernel
    /// does not report the peer, or no file descriptor is left for its pidfd.
    pub fn admit(&self, stream: &impl AsFd) -> Result<Peer> {
        let credentials = getsockopt(stream, PeerCredentials).map_err(|errno| {
            let errno = Errno::from_raw_os_error(errno as i32);
            SystemError::new(errno, "getsockopt", "SO_PEERCRED")
        })?;
        let (uid, gid, pid) = (credentials.uid(), credentials.gid(), credentials.pid());
        let principal = Principal::uid(uid);
        if !self.served.contains(&uid) {
            if let Some(left_out) = DENIED.one_more() {
                let action = "connect";
                tracing::warn!(target: AUDIT, %principal, gid, pid, action, left_out, "denied");
            }
            return Err(Error::PermissionDenied {
                message: format!(
                    "{principal} is not served here: this daemon serves only {}",
                    self.names()
                ),
            });
        }
        let process = ClientProcess::of_peer(stream, pid)
            .map_err(|errno| SystemError::new(errno, "pidfd_open", format!("process {pid}")))?;
        Ok(Peer {
            principal,
            uid,
            gid,
            pid,
            process: process.map(Arc::new),
            administrator: true,
        })
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.served.iter().map(|u| format!("uid:{u}")).collect();
        names.join(" and ")
    }

    #[cfg(test)]
    pub(crate) const fn nobody() -> Self {
        Self { served: Vec::new() }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes a mutation and its result to the audit log.
pub fn audit<T>(peer: &Peer, action: &'static str, object: impl fmt::Display, result: &Result<T>) {
    // A pid of 0 is left out: the process is in a PID namespace that the daemon cannot see.
    let (principal, pid) = (&peer.principal, (peer.pid != 0).then_some(peer.pid));
    // The log quotes strings, so their text cannot be mistaken for another field.
    let object = text::cut(object, TOLD_MAX).to_string();
    let told = |error: &Error| text::cut(error, TOLD_MAX).to_string();
    match result {
        Ok(_) => tracing::info!(target: AUDIT, %principal, pid, action, object, "done"),
        Err(error @ Error::PermissionDenied { .. }) => {
            let error = told(error);
            tracing::warn!(target: AUDIT, %principal, pid, action, object, error, "denied");
        }
        Err(error) => {
            let error = told(error);
            tracing::info!(target: AUDIT, %principal, pid, action, object, error, "failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_principal_has_one_spelling() {
        let principal: Principal = "uid:1000".parse().unwrap();
        assert_eq!(principal, Principal::uid(1000));
        assert_eq!(principal.to_string(), "uid:1000");
        for text in [
            "",
            "1000",
            "uid:",
            "uid:-1",
            "uid:+1",
            "uid:01",
            "uid:4294967296",
            "UID:1",
        ] {
            assert!(text.parse::<Principal>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_own_uid_is_admitted_with_its_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Access::new().admit(&ours).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.pid, rustix::process::getpid().as_raw_pid());
        let again = Access::new().admit(&ours).unwrap();
        let (first, second) = (peer.process.unwrap(), again.process.unwrap());
        assert_eq!(first.key(), second.key());
    }

    #[test]
    fn others_are_denied_and_told_who_is_served() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let access = Access {
            served: vec![uid + 1],
        };
        let error = access.admit(&ours).unwrap_err();
        assert!(matches!(error, Error::PermissionDenied { .. }));
        assert!(
            error
                .to_string()
                .contains(&format!("serves only uid:{}", uid + 1))
        );
    }
}
