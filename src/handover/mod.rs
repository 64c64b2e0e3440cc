//! Passes file descriptors between clients and the daemon over a Unix socket, since gRPC cannot
//! carry them.
//!
//! # Protocol
//!
//! The socket is a `SOCK_SEQPACKET` Unix socket; `GetServerInfo` returns its path. A client sends
//! requests and gets one reply to each, in order. A connection may carry many requests; it is
//! closed after 30 s without any.
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
//! | 1 | the datagram is neither GIVE nor TAKE | text |
//! | 2 | not all descriptors arrived (`MSG_CTRUNC`) | text |
//! | 3 | a descriptor cannot be watched | text |
//! | 4 | there is no such slot: it was never given, is claimed, has expired, or belongs to another client | text |
//! | 5 | no room for all descriptors (`limits.slots`) | text |
//! | 6 | the caller is not served; the connection is closed | text |
//! | 7 | the system refused | text |
//! | 8 | a slot chosen by the client is in use, or named twice | text |
//!
//! The status is one byte. The text is UTF-8 and says what is wrong and what is allowed. If one
//! descriptor of a datagram is refused, all are refused and closed. An empty datagram ends the
//! connection, because the receiver cannot tell it from the end of the connection.
//!
//! A slot can be claimed once, within 30 s, by the principal that gave it: with a request that
//! names it (as `FdSpec.slot`) or with TAKE. After 30 s the descriptor of an unclaimed slot is
//! closed.
//!
//! A client that chooses its slots itself need not wait for the reply, which repeats them. A
//! request that names a slot which has not arrived yet waits for it, up to 1 s. Such slots belong
//! to the client process (to the principal, if the daemon cannot see the process): this process
//! must make both connections, and other processes may use the same numbers. The client must still
//! read the replies: a connection that takes no reply for 30 s is closed. A number is free again
//! once its slot is claimed or has expired. A principal has at most three quarters of
//! `limits.slots`.
//!
//! If the daemon is killed and goes on in its next life, slots stay with their numbers, owners and
//! remaining time. All connections are closed by then, so that a client knows what was not answered:
//!
//! - The descriptors of a GIVE without an answer are closed at once, or once their time is over: they may
//!   have reached their slots. A slot that the client has chosen itself can be claimed until then; a
//!   repeat of the GIVE that finds it in use gets status 8.
//! - A slot that was named in a TAKE without an answer is gone, and so is its descriptor.
//! - A slot that was named in another request without an answer is still there, unless the request was
//!   being carried out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{Shutdown, SocketFlags, SocketType, accept_with, shutdown as shut_down};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use crate::access::{Access, BoundSocket, Peer, audit, bind_unix};
use crate::descriptors::Closing;
use crate::driver::file;
use crate::error::{Error, Result, SystemError};
use crate::sys;

mod client;
mod kept;
mod protocol;
mod slots;
mod table;

pub use client::Client;
pub use kept::descriptors;
pub use protocol::{FDS_MAX, MAGIC, Status};
pub use slots::{Claimed, SLOT_BYTES, SLOT_TTL, SLOT_WAIT, SLOTS_DEFAULT, Slot, Slots};

use protocol::{Datagram, Refusal, Request, control};
use slots::close_in_background;

/// The largest number of connections at once. To accept one more, the daemon closes the connection
/// that has been idle the longest.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a connection may send no request, or not take its reply, before it is closed.
pub const IDLE_MAX: Duration = Duration::from_secs(30);

/// How long the daemon waits after a failed accept(2), for example without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Binds the socket at `path`, with access for the daemon's user only.
///
/// # Errors
/// As [`bind_unix`].
pub fn bind(path: &Path) -> Result<BoundSocket> {
    bind_unix(path, SocketType::SEQPACKET, 0o600)
}

/// Serves the listening SEQPACKET socket until `shutdown` completes. Also closes the descriptors of
/// expired `slots`.
///
/// Sockets that come from `fresh` replace the listener.
///
/// # Errors
/// [`Error::System`] if the listener cannot be watched.
pub async fn serve(
    listener: OwnedFd,
    fresh: mpsc::Receiver<OwnedFd>,
    access: Arc<Access>,
    slots: Arc<Slots>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let listener = watched(listener)?;
    tokio::select! {
        () = shutdown => {}
        () = slots.expire() => {}
        () = accept_all(listener, fresh, &access, &slots) => {}
    }
    Ok(())
}

fn watched(listener: OwnedFd) -> Result<AsyncFd<Arc<OwnedFd>>> {
    rustix::io::ioctl_fionbio(&listener, true)
        .map_err(|errno| SystemError::new(errno, "ioctl", "FIONBIO"))?;
    let listener = sys::async_fd(Arc::new(listener), Interest::READABLE)
        .map_err(|error| SystemError::from_io(&error, "epoll_ctl", "handover socket"))?;
    Ok(listener)
}

async fn accept_all(
    mut listener: AsyncFd<Arc<OwnedFd>>,
    mut fresh: mpsc::Receiver<OwnedFd>,
    access: &Arc<Access>,
    slots: &Arc<Slots>,
) {
    // The set is dropped at shutdown, which ends all connections.
    let mut tasks = JoinSet::new();
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |listener: &Arc<OwnedFd>| Ok(accept_with(listener, flags)?);
        let accepted = tokio::select! {
            accepted = listener.async_io(Interest::READABLE, accept) => accepted,
            Some(other) = fresh.recv() => {
                match watched(other) {
                    Ok(other) => listener = other,
                    Err(error) => tracing::error!(%error, "a socket cannot be replaced"),
                }
                continue;
            }
        };
        match accepted {
            Ok(socket) => {
                let (access, slots) = (Arc::clone(access), Arc::clone(slots));
                while tasks.try_join_next().is_some() {}
                connections.retain(|connection| !connection.task.is_finished());
                if connections.len() >= CONNECTIONS_MAX {
                    close_longest_idle(&mut connections);
                }
                let last_request = Arc::new(Mutex::new(Instant::now()));
                let last = Arc::clone(&last_request);
                let task = tasks.spawn(async move {
                    // Dropped after the socket.
                    let _closing = Closing;
                    if let Err(error) = serve_connection(socket, &access, &slots, &last).await {
                        tracing::debug!(%error, "handover connection");
                    }
                });
                connections.push(Connection { task, last_request });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, pause = ?ACCEPT_PAUSE, "cannot accept a connection on the handover socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that is served.
struct Connection {
    task: AbortHandle,
    /// The time of its last request.
    last_request: Arc<Mutex<Instant>>,
}

/// Closes the connection that has been idle the longest. A request in progress is undone: its
/// descriptors are closed, and a slot that it was taking can be claimed again.
fn close_longest_idle(connections: &mut Vec<Connection>) {
    let longest_idle = connections
        .iter()
        .enumerate()
        .min_by_key(|(_, connection)| *connection.last_request.lock());
    if let Some((at, _)) = longest_idle {
        connections.swap_remove(at).task.abort();
    }
}

async fn serve_connection(
    socket: OwnedFd,
    access: &Access,
    slots: &Arc<Slots>,
    last_request: &Mutex<Instant>,
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
        *last_request.lock() = Instant::now();
        let (bytes, claimed) = match answer(datagram, &peer, slots) {
            Ok(reply) => reply,
            Err(refusal) => (protocol::refused(&refusal), None),
        };
        let fds: Vec<BorrowedFd<'_>> = claimed.iter().map(Claimed::as_fd).collect();
        let send = |socket: &Arc<OwnedFd>| protocol::send(socket.as_fd(), &bytes, &fds);
        timeout(IDLE_MAX, socket.async_io(Interest::WRITABLE, send)).await??;
        if let Some(claimed) = claimed {
            close_in_background(vec![claimed.keep().0]);
        }
    }
}

/// Sends a peer the reason why it is not served. Datagrams that it has sent already are received
/// first, without their descriptors: if they stayed unread, the peer would get a connection reset
/// instead of the reply.
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
            claimed.promise();
            Ok((protocol::taken(), Some(claimed)))
        }
    });
    close_in_background(datagram.fds);
    result
}

/// Refuses descriptors that no watch can be made of.
fn check_kinds(fds: &[OwnedFd]) -> std::result::Result<(), Refusal> {
    for (fd, number) in fds.iter().zip(1_usize..) {
        match file::inspect(fd.as_fd()) {
            Ok(_) => {}
            Err(file::Refusal::System(error)) => return Err(Refusal::from(&error.into())),
            Err(unfit @ file::Refusal::Unfit { .. }) => {
                let message = format!(
                    "file descriptor {number} of {} is {unfit}; allowed are sockets, pipes, FIFOs, \
                     terminals, eventfds and other descriptors that poll(2) can wait for",
                    fds.len()
                );
                return Err(Refusal::new(Status::RefusedKind, message));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
