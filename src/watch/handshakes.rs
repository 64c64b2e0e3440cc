//! Runs the handshakes of TLS beside the loops, because their cryptography takes milliseconds and
//! reading the host's trusted authorities can block.
//!
//! A watch gives its socket away for the time of the handshake and gets it back, with the session,
//! by a [`Notice`]. So a handshake is the same on every backend, and a listener has no watch of a
//! connection before its handshake is complete.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::{Context, Notice};
use crate::descriptors::Closing;
use crate::error::SystemError;
use crate::sys;
use crate::tls::{Session, Setup};

/// The bytes of one read.
const READ: usize = 16 * 1024;
/// How long the peer of a failed handshake may take to read the alert that says why.
const ALERT_LINGER: Duration = Duration::from_secs(1);
/// The most peers that may take so long at once; the sockets of others are closed at once.
const LEAVING_MAX: usize = 256;
const STEP: &str = "handshake";

/// How a connection speaks TLS.
#[derive(Debug, Clone)]
pub struct TlsOrder {
    /// How its sessions are made.
    pub setup: Arc<Setup>,
    /// The time limit of the handshake.
    pub timeout: Duration,
}

/// A connection whose handshake is complete.
#[derive(Debug)]
pub struct Secured {
    pub(super) fd: OwnedFd,
    pub(super) session: Session,
}

/// The threads on which handshakes run. They start with the first handshake.
#[derive(Debug)]
pub struct Handshakes {
    threads: usize,
    runtime: Mutex<Option<Runtime>>,
    /// The sockets of failed handshakes that may be open for a while longer.
    leaving: Arc<Semaphore>,
}

/// A handshake that is under way. It is given up when this is dropped, and its socket is closed.
#[derive(Debug)]
pub(super) struct Handshake {
    task: AbortHandle,
    socket: Weak<OwnedFd>,
}

impl Handshake {
    /// Lets the connection be reset, as far as it can be, when the handshake is given up.
    pub(super) fn reset_when_closed(&self) {
        if let Some(socket) = self.socket.upgrade() {
            reset_when_closed(socket.as_fd());
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Lets a TCP connection be reset when its socket is closed. Other sockets cannot be reset.
pub(super) fn reset_when_closed(socket: BorrowedFd<'_>) {
    // A linger time of 0 does that (socket(7), SO_LINGER).
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

impl Handshakes {
    /// Returns handshakes that run on `threads` threads, at least one.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            runtime: Mutex::new(None),
            leaving: Arc::new(Semaphore::new(LEAVING_MAX)),
        }
    }

    /// Begins the handshake of a connected socket, as a job of the watch that `cx` is of. `before`
    /// are bytes that were received and belong to it. [`Notice::Handshake`] with this number follows.
    ///
    /// # Errors
    /// The system refuses the threads.
    pub(super) fn begin(
        &self,
        cx: &Context<'_>,
        (number, fd): (usize, OwnedFd),
        order: &TlsOrder,
        before: Vec<u8>,
    ) -> Result<Handshake, SystemError> {
        let (key, notifier) = (cx.key(), Arc::clone(cx.notifier));
        let TlsOrder {
            setup,
            timeout: limit,
        } = order.clone();
        let leaving = Arc::clone(&self.leaving);
        let fd = Arc::new(fd);
        let socket = Arc::downgrade(&fd);
        let work = async move {
            let shaken = timeout(limit, shake(fd, &setup, &before, leaving));
            let shaken = match AssertUnwindSafe(shaken).catch_unwind().await {
                Ok(Ok(shaken)) => shaken.map(Box::new),
                Ok(Err(_)) => {
                    let what = "the peer did not complete it within handshake_timeout";
                    Err(SystemError::new(Errno::TIMEDOUT, STEP, what))
                }
                Err(_) => Err(SystemError::new(Errno::IO, STEP, "it broke off")),
            };
            notifier.notify(key, Notice::Handshake(number, shaken));
        };
        let mut runtime = self.runtime.lock();
        if runtime.is_none() {
            *runtime = Some(self.start()?);
        }
        let task = runtime.as_ref().map(|runtime| runtime.spawn(work));
        let none = || SystemError::new(Errno::AGAIN, STEP, "");
        let task = task.ok_or_else(none)?.abort_handle();
        Ok(Handshake { task, socket })
    }

    fn start(&self) -> Result<Runtime, SystemError> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(self.threads.max(1));
        let built = builder.thread_name("tls").enable_all().build();
        built.map_err(|error| SystemError::from_io(&error, STEP, ""))
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.lock().take() {
            // The daemon's own runtime may be dropping this, where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}

/// Carries out a handshake.
async fn shake(
    fd: Arc<OwnedFd>,
    setup: &Setup,
    before: &[u8],
    leaving: Arc<Semaphore>,
) -> Result<Secured, SystemError> {
    let system = |error: io::Error| SystemError::from_io(&error, STEP, "");
    let mut session = setup.session()?;
    let socket = sys::async_fd(fd, Interest::READABLE | Interest::WRITABLE);
    let socket = Socket {
        fd: socket.map_err(system)?,
        _closing: Closing,
    };
    let mut buffer = vec![0; READ];
    let mut fed = session.feed_handshake(before);
    loop {
        let mut output = Vec::new();
        session.take_output(&mut output);
        let sent = send(&socket, &output).await;
        if let Err(error) = fed {
            if let (Ok(()), Ok(permit)) = (sent, leaving.try_acquire_owned()) {
                tokio::spawn(async move {
                    let _ = timeout(ALERT_LINGER, leave(&socket, &mut buffer)).await;
                    drop(permit);
                });
            }
            return Err(error);
        }
        sent.map_err(system)?;
        if !session.is_handshaking() {
            // Nobody else has the descriptor, unless the connection is being aborted.
            let fd = Arc::into_inner(socket.fd.into_inner());
            let fd = fd.ok_or_else(|| SystemError::new(Errno::BADF, STEP, ""))?;
            return Ok(Secured { fd, session });
        }
        let received = receive(&socket, &mut buffer).await.map_err(system)?;
        if received == 0 {
            let what = "the peer closed the connection before it was complete";
            return Err(SystemError::new(Errno::CONNRESET, STEP, what));
        }
        fed = session.feed_handshake(&buffer[..received]);
    }
}

/// A socket during its handshake.
#[derive(Debug)]
struct Socket {
    fd: AsyncFd<Arc<OwnedFd>>,
    /// Tells of its close, so it is dropped last.
    _closing: Closing,
}

async fn send(Socket { fd: socket, .. }: &Socket, mut bytes: &[u8]) -> io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    while !bytes.is_empty() {
        let mut ready = socket.writable().await?;
        let sent = ready.try_io(|socket| {
            rustix::net::send(socket.as_fd(), bytes, flags).map_err(io::Error::from)
        });
        match sent {
            Ok(Ok(sent)) => bytes = bytes.get(sent..).unwrap_or_default(),
            Ok(Err(error)) => return Err(error),
            // It was not ready after all.
            Err(_) => {}
        }
    }
    Ok(())
}

async fn receive(Socket { fd: socket, .. }: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            let received = rustix::net::recv(socket.as_fd(), &mut *buffer, RecvFlags::DONTWAIT);
            received
                .map(|(received, _)| received)
                .map_err(io::Error::from)
        });
        if let Ok(received) = received {
            return received;
        }
    }
}

/// Ends a connection so that the peer can read the alert: closing it with unread input would reset
/// it.
async fn leave(socket: &Socket, buffer: &mut [u8]) {
    if rustix::net::shutdown(socket.fd.as_fd(), Shutdown::Write).is_ok() {
        while receive(socket, buffer)
            .await
            .is_ok_and(|received| received > 0)
        {}
    }
}
