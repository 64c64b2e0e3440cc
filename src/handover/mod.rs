//! File descriptors in and out: gRPC cannot carry them, a Unix socket can.
//!
//! # Protocol
//!
//! A `SOCK_SEQPACKET` Unix socket, which `GetServerInfo` names. A client sends requests
//! and gets one reply to each, in order; a connection may carry many, and is closed
//! after 30 s without any.
//!
//! | request | datagram | file descriptors (`SCM_RIGHTS`) |
//! |---|---|---|
//! | GIVE | `evloopd1` | 1 to 253 |
//! | GIVE | `evloopd1`, 16 bytes of slot for each descriptor | 1 to 253 |
//! | TAKE | `evloopd1`, 16 bytes of slot | none |
//!
//! | status | reply | then |
//! |---|---|---|
//! | 0 | done | for GIVE 16 bytes of slot for each descriptor, in order; for TAKE nothing, and the descriptor by `SCM_RIGHTS` |
//! | 1 | neither GIVE nor TAKE | text |
//! | 2 | not all descriptors arrived (`MSG_CTRUNC`) | text |
//! | 3 | a descriptor cannot be watched | text |
//! | 4 | no such slot: never given, claimed, expired, another principal's | text |
//! | 5 | no room for all descriptors (`limits.slots`) | text |
//! | 6 | the caller is not served; the connection is closed | text |
//! | 7 | the system refused | text |
//! | 8 | a slot of the client's own is in use, or named twice | text |
//!
//! The status is one byte, the text UTF-8: what is the matter and what is allowed. One
//! descriptor refused refuses all of its datagram, and all are closed. An empty datagram
//! ends the connection: it looks like its end.
//!
//! A slot is claimed once, by the principal that gave it, with a request that names it (as
//! `FdSpec.slot`) or with TAKE, within 30 s; then its descriptor is closed.
//!
//! With slots of its own, which the reply repeats, a client need not wait for the reply: a request
//! that names a slot which is not there waits for it, up to 1 s. They belong to the client's process
//! (to its principal, where the process cannot be seen): both connections must be made by it, and
//! other processes may use the same numbers. Replies must still be read: a connection that takes none
//! for 30 s is closed. A number is free again once it is claimed or expired.
//! A principal has at most three quarters of `limits.slots`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::epoll;
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, fcntl_getfl, statx};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, SocketType, accept_with, shutdown as shut_down};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use crate::access::{Access, BoundSocket, Peer, audit, bind_unix};
use crate::error::{Error, Result, SystemError};
use crate::sys;

mod client;
mod protocol;
mod slots;
mod table;

pub use client::Client;
pub use protocol::{FDS_MAX, MAGIC, Status};
pub use slots::{Claimed, SLOT_BYTES, SLOT_TTL, SLOT_WAIT, SLOTS_DEFAULT, Slot, Slots};

use protocol::{Datagram, Refusal, Request, control};
use slots::close_aside;

/// Connections served at a time; for one more, the one ends that has been silent the longest.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a connection may be silent, or not take its reply.
pub const IDLE_MAX: Duration = Duration::from_secs(30);

/// How long accepting pauses when the system refuses, for want of descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Binds the socket at `path`, for the daemon's user alone.
///
/// # Errors
/// As [`bind_unix`].
pub fn bind(path: &Path) -> Result<BoundSocket> {
    bind_unix(path, SocketType::SEQPACKET, 0o600)
}

/// Serves the listening SEQPACKET socket until `shutdown`, and closes what expires in
/// `slots`.
///
/// # Errors
/// [`Error::System`] if the listener cannot be watched.
pub async fn serve(
    listener: OwnedFd,
    access: Arc<Access>,
    slots: Arc<Slots>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    rustix::io::ioctl_fionbio(&listener, true)
        .map_err(|errno| SystemError::new(errno, "ioctl", "FIONBIO"))?;
    let listener = sys::async_fd(Arc::new(listener), Interest::READABLE)
        .map_err(|error| SystemError::from_io(&error, "epoll_ctl", "handover socket"))?;
    tokio::select! {
        () = shutdown => {}
        () = slots.expire() => {}
        () = accept_all(&listener, &access, &slots) => {}
    }
    Ok(())
}

async fn accept_all(listener: &AsyncFd<Arc<OwnedFd>>, access: &Arc<Access>, slots: &Arc<Slots>) {
    // Dropped at shutdown, which ends them all.
    let mut connections = JoinSet::new();
    let mut places: Vec<Place> = Vec::new();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |listener: &Arc<OwnedFd>| Ok(accept_with(listener, flags)?);
        match listener.async_io(Interest::READABLE, accept).await {
            Ok(socket) => {
                let (access, slots) = (Arc::clone(access), Arc::clone(slots));
                while connections.try_join_next().is_some() {}
                places.retain(|place| !place.task.is_finished());
                if places.len() >= CONNECTIONS_MAX {
                    end_most_silent(&mut places);
                }
                let heard = Arc::new(Mutex::new(Instant::now()));
                let hears = Arc::clone(&heard);
                let task = connections.spawn(async move {
                    if let Err(error) = converse(socket, &access, &slots, &hears).await {
                        tracing::debug!(%error, "handover connection");
                    }
                });
                places.push(Place { task, heard });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, pause = ?ACCEPT_PAUSE, "handover socket: accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that is served.
struct Place {
    task: AbortHandle,
    /// When it last asked for something.
    heard: Arc<Mutex<Instant>>,
}

/// What it was doing is undone: its descriptors are closed, a slot that it was taking is there again.
fn end_most_silent(places: &mut Vec<Place>) {
    let most_silent = places
        .iter()
        .enumerate()
        .min_by_key(|(_, place)| *place.heard.lock());
    if let Some((at, _)) = most_silent {
        places.swap_remove(at).task.abort();
    }
}

async fn converse(
    socket: OwnedFd,
    access: &Access,
    slots: &Arc<Slots>,
    heard: &Mutex<Instant>,
) -> io::Result<()> {
    let peer = match access.admit(&socket) {
        Ok(peer) => peer,
        Err(error) => return turn_away(&socket, &error),
    };
    let socket = sys::async_fd(Arc::new(socket), Interest::READABLE | Interest::WRITABLE)?;
    let receive = |socket: &Arc<OwnedFd>| Datagram::receive(socket.as_fd(), &mut control());
    loop {
        let received = socket.async_io(Interest::READABLE, receive);
        let Some(datagram) = timeout(IDLE_MAX, received).await?? else {
            return Ok(());
        };
        *heard.lock() = Instant::now();
        let (bytes, claimed) = match answer(datagram, &peer, slots) {
            Ok(reply) => reply,
            Err(refusal) => (protocol::refused(&refusal), None),
        };
        let fds: Vec<BorrowedFd<'_>> = claimed.iter().map(Claimed::as_fd).collect();
        let send = |socket: &Arc<OwnedFd>| protocol::send(socket.as_fd(), &bytes, &fds);
        timeout(IDLE_MAX, socket.async_io(Interest::WRITABLE, send)).await??;
        if let Some(claimed) = claimed {
            close_aside(vec![claimed.keep().0]);
        }
    }
}

/// Tells a peer why it is not served. What it has sent already is received first, without
/// its descriptors: unread, it would turn the reply into a connection reset.
fn turn_away(socket: &OwnedFd, error: &Error) -> io::Result<()> {
    shut_down(socket, Shutdown::Read)?;
    while let Ok(Some(_)) = Datagram::receive(socket.as_fd(), &mut []) {}
    protocol::send(socket.as_fd(), &protocol::refused(&error.into()), &[])
}

type Reply = (Vec<u8>, Option<Claimed>);

fn answer(
    mut datagram: Datagram,
    peer: &Peer,
    slots: &Arc<Slots>,
) -> std::result::Result<Reply, Refusal> {
    let result = datagram.request().and_then(|request| match request {
        Request::Give(own) => {
            check_kinds(&datagram.fds)?;
            let fds = datagram.take_fds();
            let count = fds.len();
            let given = slots.give(peer, own.as_deref(), fds);
            audit(
                peer,
                "give",
                format_args!("{count} file descriptors"),
                &given,
            );
            Ok((
                protocol::given(&given.map_err(|e| Refusal::from(&e))?),
                None,
            ))
        }
        Request::Take(slot) => {
            let claimed = slots.claim("slot", peer, &slot);
            audit(peer, "take", "a file descriptor", &claimed);
            let claimed = claimed.map_err(|e| Refusal::from(&e))?;
            Ok((protocol::taken(), Some(claimed)))
        }
    });
    close_aside(datagram.fds);
    result
}

fn check_kinds(fds: &[OwnedFd]) -> std::result::Result<(), Refusal> {
    for (fd, number) in fds.iter().zip(1_usize..) {
        let unwatchable = unwatchable(fd.as_fd()).map_err(|error| Refusal::from(&error.into()))?;
        if let Some(kind) = unwatchable {
            let message = format!(
                "file descriptor {number} of {} is {kind}: sockets, pipes, FIFOs, terminals, \
                 eventfds and the like can be watched",
                fds.len()
            );
            return Err(Refusal::new(Status::RefusedKind, message));
        }
    }
    Ok(())
}

/// What a descriptor is, if it cannot be watched.
fn unwatchable(fd: BorrowedFd<'_>) -> std::result::Result<Option<&'static str>, SystemError> {
    let failed = |errno, step| SystemError::new(errno, step, "a file descriptor handed over");
    // FUSE lets epoll watch regular files, and answers a syncing stat(2) when it likes.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = match statx(fd, "", flags, StatxFlags::TYPE) {
        Ok(found) => found,
        Err(Errno::NOSYS | Errno::PERM) => return Ok(None),
        Err(errno) => return Err(failed(errno, "statx")),
    };
    match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::RegularFile => return Ok(Some("a regular file")),
        FileType::Directory => return Ok(Some("a directory")),
        FileType::BlockDevice => return Ok(Some("a block device")),
        FileType::Symlink => return Ok(Some("a symbolic link")),
        // These take no descriptor to ask with.
        FileType::Socket | FileType::Fifo => {
            let flags = fcntl_getfl(fd).map_err(|errno| failed(errno, "fcntl"))?;
            return Ok(flags.contains(OFlags::PATH).then_some(ONLY_A_PATH));
        }
        _ => {}
    }
    let scratch = match epoll::create(epoll::CreateFlags::CLOEXEC) {
        Ok(scratch) => scratch,
        Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => return Ok(None),
        Err(errno) => return Err(failed(errno, "epoll_create")),
    };
    let data = epoll::EventData::new_u64(0);
    match epoll::add(&scratch, fd, data, epoll::EventFlags::empty()) {
        Err(Errno::PERM) => Ok(Some("a device that is always ready, such as /dev/null")),
        Err(Errno::BADF) => Ok(Some(ONLY_A_PATH)),
        Err(errno @ (Errno::NOMEM | Errno::NOSPC)) => Err(failed(errno, "epoll_ctl")),
        // What else may fail says nothing about its kind.
        _ => Ok(None),
    }
}

const ONLY_A_PATH: &str = "only a path (O_PATH)";

#[cfg(test)]
mod tests;
