//! The daemon's two listening sockets: passed by systemd, taken over from an earlier life, or bound.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::net::{SocketAddrUnix, SocketType};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::vanished::{Files, Followed};
use crate::access::{adopt_unix, bind_unix};
use crate::config::Config;
use crate::error::{Error, Result, SystemError};
use crate::keeper::{Kept, Life};

/// Both listening sockets, and their files, which are looked after until the daemon ends.
pub(super) struct Sockets {
    pub(super) service: UnixListener,
    pub(super) handover: OwnedFd,
    pub(super) service_path: PathBuf,
    pub(super) handover_path: PathBuf,
    pub(super) files: Files,
    /// Sockets that were bound anew in place of these: of the service, and for handing over.
    pub(super) fresh: [mpsc::Receiver<OwnedFd>; 2],
}

impl Sockets {
    /// Takes the sockets passed by systemd, which are told apart by their type. Those that were not
    /// passed are an earlier life's, or are bound at their configured paths.
    pub(super) fn open(config: &Config, life: Option<&Life>) -> Result<Self> {
        let (mut service_path, mut handover_path) =
            (config.server.socket_path(), config.server.handover_path());
        let mut files = Vec::new();
        let (mut service, mut handover) = (None, None);
        let mut passed = listenfd::ListenFd::from_env();
        for index in 0..passed.len() {
            let mut take = |kind| {
                let hint = "Unix stream or seqpacket socket";
                passed.take_custom::<OwnedFd>(index, libc::AF_UNIX, kind, hint)
            };
            let (place, path, fd) = match take(libc::SOCK_STREAM) {
                Ok(fd) => (&mut service, &mut service_path, fd),
                Err(_) => (&mut handover, &mut handover_path, {
                    let fd = take(libc::SOCK_SEQPACKET);
                    fd.map_err(|error| SystemError::from_io(&error, "LISTEN_FDS", ""))?
                }),
            };
            let Some(fd) = fd else { continue };
            if let Some(bound) = bound_path(&fd) {
                *path = bound;
            }
            if place.replace(fd).is_some() {
                return Err(Error::wrong_state(
                    "LISTEN_FDS passes more than one socket of the same type",
                ));
            }
        }
        let mut or_bind = |passed: Option<OwnedFd>, path: &Path, kind, (kept, lock)| {
            let (fresh, receiver) = mpsc::channel(1);
            let mut followed = Followed {
                path: path.to_owned(),
                kind,
                mode: config.server.mode,
                kept: (kept, lock),
                file: None,
                fresh,
            };
            let socket = match passed {
                Some(fd) => fd,
                None => {
                    let earlier = life.and_then(|life| Some((life.take(kept)?, life.take(lock)?)));
                    let bound = match earlier {
                        Some((listener, lock)) => adopt_unix(path, listener, lock),
                        None => bind_unix(path, kind, config.server.mode)?,
                    };
                    keep(life, lock, bound.file.lock());
                    followed.file = Some(bound.file);
                    bound.listener
                }
            };
            keep(life, kept, socket.as_fd());
            files.push(followed);
            Ok::<_, Error>((socket, receiver))
        };
        let kept = (Kept::Service, Kept::ServiceLock);
        let (service, fresh_service) = or_bind(service, &service_path, SocketType::STREAM, kept)?;
        let kept = (Kept::Handover, Kept::HandoverLock);
        let (handover, fresh_handover) =
            or_bind(handover, &handover_path, SocketType::SEQPACKET, kept)?;
        let system = |error: &io::Error| SystemError::from_io(error, "listen", "");
        for fd in [&service, &handover] {
            rustix::io::ioctl_fionbio(fd.as_fd(), true)
                .map_err(|errno| SystemError::new(errno, "listen", ""))?;
        }
        let service = UnixListener::from_std(StdUnixListener::from(service));
        Ok(Self {
            service: service.map_err(|error| system(&error))?,
            handover,
            service_path,
            handover_path,
            files: Files::new(files),
            fresh: [fresh_service, fresh_handover],
        })
    }
}

/// Returns the path at which a passed socket is bound.
fn bound_path(fd: &OwnedFd) -> Option<PathBuf> {
    let address = rustix::net::getsockname(fd).ok()?;
    let address = SocketAddrUnix::try_from(address).ok()?;
    let path = address.path()?;
    Some(PathBuf::from(OsStr::from_bytes(path.to_bytes())))
}

/// Has the next life take a descriptor over.
pub(super) fn keep(life: Option<&Life>, kept: Kept, fd: BorrowedFd<'_>) {
    if let Some(Err(error)) = life.map(|life| life.keep(kept, fd)) {
        tracing::warn!(?kept, %error, "the next life cannot take over a descriptor");
    }
}
