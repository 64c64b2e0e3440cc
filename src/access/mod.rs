//! Who asks: principals, peers of Unix sockets, and the audit log.
//!
//! Until access rules exist, the daemon's own uid and root are served and nobody else:
//! whoever may start a process here may do all that the daemon's user may.

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
pub use socket::{BoundSocket, SocketFile, bind_unix, can_bind};

/// The `tracing` target of the audit log.
pub const AUDIT: &str = "evloopd::audit";

/// Longest object and error of an audit line, bytes.
const TOLD_MAX: usize = 1024;

/// Strangers may connect as often as they like, where the socket's mode lets them.
static DENIED: Sparing = Sparing::new();

const ROOT: u32 = 0;

/// An authenticated caller: `uid:1000`. Everything belongs to one.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(Arc<str>);

impl Principal {
    /// A user of this host.
    #[must_use]
    pub fn uid(uid: u32) -> Self {
        Self(format!("uid:{uid}").into())
    }

    /// Its name, as shown everywhere.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Principal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let uid = text.strip_prefix("uid:").and_then(|n| n.parse().ok());
        // One principal has one name: `uid:+1` and `uid:01` are none.
        uid.map(Self::uid)
            .filter(|principal| principal.as_str() == text)
            .ok_or_else(|| {
                Error::invalid(
                    "principal",
                    format!("`{text}` is none: `uid:` and a user id, such as `uid:1000`"),
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

/// The other end of a connection, as the kernel vouches for it: who *connected*, which
/// need not be who writes now.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Who it is.
    pub principal: Principal,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
    /// Its process id; 0 if it lives in a PID namespace that is not visible here.
    pub pid: i32,
    /// Its process, unless that is not visible here or was gone already.
    pub process: Option<Arc<ClientProcess>>,
    /// It may act for everybody.
    pub administrator: bool,
}

/// Who is served.
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
    /// [`Error::PermissionDenied`] for those not served; [`Error::System`] if the kernel
    /// does not tell who it is, or no file descriptor is left to hold its process.
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
                message: format!("{principal} is not served here: only {} may", self.names()),
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

/// Writes a mutation and what came of it to the audit log.
pub fn audit<T>(peer: &Peer, action: &'static str, object: impl fmt::Display, result: &Result<T>) {
    // 0 is nobody's: it lives in a PID namespace that is not visible here.
    let (principal, pid) = (&peer.principal, (peer.pid != 0).then_some(peer.pid));
    // Given as strings, which the log quotes: their text cannot pass for another field.
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
                .contains(&format!("only uid:{} may", uid + 1))
        );
    }
}
