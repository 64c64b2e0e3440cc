//! The service's connections: each is accepted on the Unix socket with its peer, and served by a
//! [`SerialExecutor`].

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Sleep, sleep};
use tonic::service::Routes;

use super::calls::carry_out;
use super::connection_limits::{ConnectionLimits, ConnectionPermit};
use super::quota::{MemoryQuota, MemoryQuotas};
use super::serial_executor::{SerialExecutor, is_delivering, leave_input};
use crate::access::{Access, Peer};
use crate::descriptors::Closing;
use crate::error::Error;
use crate::sparing::Sparing;
use crate::sys::async_fd;

/// The peer that connected. A peer that is not served gets the error as the answer to every call.
pub(super) type Admitted = Result<Arc<Peer>, Error>;

/// Limits the rate of this warning, because any client can cause it.
static NOT_SERVED: Sparing = Sparing::new();

/// How long accepting pauses when the system has no room for another connection.
const RETRY: Duration = Duration::from_secs(1);
/// How long the connection of a peer that is not served may last.
const TURNED_AWAY_FOR: Duration = Duration::from_secs(2);
/// Most bytes that a connection reads before other tasks get their turn: a thousand of the smallest
/// frames.
const READ_AT_ONCE: usize = 16 * 1024;
/// A socket may take none of the bytes written to it for this many times `server.keepalive`: as
/// long as it takes to find that a ping has no answer.
const UNTAKEN: u32 = 2;
/// Bytes that begin HTTP/2: the preface, and the frame header of SETTINGS (RFC 9113, section 3.4).
const GREETING: usize = 24 + 9;
/// Most calls that a client may cancel before the daemon has looked at them. With more, the
/// connection and all of its calls end.
const CANCELLED_AT_ONCE: usize = 1024;
/// Bytes that one call buffers for its client, beside the bytes in the socket; one piece more may
/// come on top.
const SEND_BUFFER: usize = 192 * 1024;
/// The most bytes of one stream that may wait to be read.
const STREAM_WINDOW: u32 = 32 * 1024;
/// The most bytes of all streams of a connection that may wait to be read. The HTTP/2 library ends a
/// connection when the frames that wait lack, together, more than half of this to have 256 bytes each.
/// One stream may be full of the smallest messages, of 5 bytes.
const CONNECTION_WINDOW: u32 = 3584 * 1024;

/// The service, and the clients that it serves.
#[derive(Debug)]
pub struct Service {
    /// The Unix socket to accept on.
    pub listener: UnixListener,
    /// Sockets that replace the one before.
    pub fresh: mpsc::Receiver<OwnedFd>,
    /// Decides which clients are served.
    pub access: Arc<Access>,
    /// Most connections at once; more of them wait in the kernel.
    pub max_connections: usize,
    /// Most connections of one principal.
    pub max_connections_per_principal: usize,
    /// How often clients are pinged, and how long each has to answer.
    pub keepalive: Duration,
    /// How long a client may take until it begins HTTP/2.
    pub handshake: Duration,
    /// How long a request may take to arrive.
    pub receive: Duration,
    /// Most calls of one connection at once.
    pub calls: usize,
    /// The memory for the calls of all connections.
    pub quotas: MemoryQuotas,
    /// The routes of all services.
    pub routes: Routes,
}

/// Accepts and serves connections until `stop` is true, then waits until the open ones have ended
/// their calls and closed.
pub async fn serve(service: Service, stop: watch::Receiver<bool>) {
    let Service {
        mut listener,
        mut fresh,
        access,
        max_connections,
        max_connections_per_principal,
        keepalive,
        handshake,
        receive,
        calls,
        quotas,
        routes,
    } = service;
    let routes = routes.prepare();
    let limits = ConnectionLimits::new(max_connections, max_connections_per_principal);
    let mut stopped = stop.clone();
    loop {
        let accepted = async {
            let stream = loop {
                tokio::select! {
                    accepted = listener.accept() => break accepted?.0,
                    Some(other) = fresh.recv() => {
                        listener = UnixListener::from_std(other.into())?;
                    }
                }
            };
            let admitted = access.admit(&stream).map(Arc::new);
            let (admitted, permit) = limits.take(admitted).await;
            Ok(permit.map(|permit| (stream, admitted, permit)))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok(Some((stream, admitted, permit))) => {
                let connection = Connection {
                    stream,
                    admitted,
                    keepalive,
                    handshake,
                    receive,
                    calls,
                    quota: quotas.quota(permit.usage()),
                    stop: stop.clone(),
                    permit,
                };
                if let Err(error) = connection.start(routes.clone())
                    && let Some(left_out) = NOT_SERVED.one_more()
                {
                    tracing::warn!(%error, left_out, "cannot serve a connection");
                }
            }
            Ok(None) => {}
            Err(error) => {
                let error: io::Error = error;
                tracing::warn!(%error, "cannot accept a connection");
                sleep(RETRY).await;
            }
        }
    }
    drop(listener);
    limits.all_free(max_connections).await;
}

/// An accepted connection.
struct Connection {
    stream: UnixStream,
    admitted: Admitted,
    keepalive: Duration,
    handshake: Duration,
    receive: Duration,
    calls: usize,
    quota: Arc<MemoryQuota>,
    stop: watch::Receiver<bool>,
    permit: ConnectionPermit,
}

impl Connection {
    /// # Errors
    /// The system has no resources to watch another socket.
    fn start(self, routes: Routes) -> io::Result<()> {
        let Self {
            stream,
            admitted,
            keepalive,
            handshake,
            receive,
            calls,
            quota,
            mut stop,
            permit,
        } = self;
        let (greeted, greeting) = oneshot::channel();
        let transport = Transport::new(stream, greeted, keepalive * UNTAKEN)?;
        let lasts = admitted.is_err().then_some(TURNED_AWAY_FOR);
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(admitted.clone());
            let call = carry_out(routes.clone(), request, Arc::clone(&quota), receive);
            async { Ok::<_, Infallible>(call.await) }
        });
        // The configuration allows fewer than `u32::MAX`.
        let calls = u32::try_from(calls).unwrap_or(u32::MAX);
        SerialExecutor::start(|spawner| {
            let connection = http2::Builder::new(spawner)
                .timer(TokioTimer::new())
                .max_concurrent_streams(calls)
                .max_send_buf_size(SEND_BUFFER)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_pending_accept_reset_streams(CANCELLED_AT_ONCE)
                .keep_alive_interval(keepalive)
                .keep_alive_timeout(keepalive)
                .serve_connection(TokioIo::new(transport), service);
            async move {
                let _permit = permit;
                let mut connection = pin!(connection);
                let overdue = async {
                    // If the sender is dropped, the connection ends too.
                    let greeted = tokio::time::timeout(handshake, greeting).await;
                    match (greeted, lasts) {
                        (Err(_), _) => {}
                        (Ok(_), Some(lasts)) => sleep(lasts).await,
                        (Ok(_), None) => std::future::pending().await,
                    }
                };
                let ended = tokio::select! {
                    ended = &mut connection => ended,
                    () = overdue => {
                        tracing::debug!("a connection was silent for too long");
                        return;
                    }
                    () = async { drop(stop.wait_for(|stop| *stop).await) } => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
            }
        });
        Ok(())
    }
}

/// The socket of a connection. A loop's thread writes to it, but does not read.
///
/// The runtime watches it for input only: if it watched for output too, every read by the client
/// would wake the runtime without need.
#[derive(Debug)]
struct Transport {
    socket: AsyncFd<Arc<OwnedFd>>,
    /// Bytes that were read in this turn of the task.
    read: usize,
    /// Set while the socket takes no bytes.
    full: Option<Full>,
    /// How long the socket may take no bytes.
    patience: Duration,
    /// Signals that HTTP/2 has begun, once this many more bytes have arrived.
    greeting: Option<(oneshot::Sender<()>, usize)>,
    /// Dropped after the socket, as the last field.
    _closing: Closing,
}

/// The state of a socket that takes no bytes: its client does not read, and may never do so again.
#[derive(Debug)]
struct Full {
    room: AsyncFd<Arc<OwnedFd>>,
    patience: Pin<Box<Sleep>>,
}

impl Transport {
    fn new(
        stream: UnixStream,
        greeted: oneshot::Sender<()>,
        patience: Duration,
    ) -> io::Result<Self> {
        let socket = Arc::new(OwnedFd::from(stream.into_std()?));
        Ok(Self {
            socket: async_fd(socket, Interest::READABLE)?,
            read: 0,
            full: None,
            patience,
            greeting: Some((greeted, GREETING)),
            _closing: Closing,
        })
    }

    fn received(&mut self, len: usize) {
        if let Some((greeted, left)) = self.greeting.take() {
            if len >= left {
                // If there is no receiver, the connection is ending.
                let _ = greeted.send(());
            } else {
                self.greeting = Some((greeted, left - len));
            }
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let mut none = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(self.socket.get_ref(), bufs, &mut none, flags) {
                Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => continue,
                sent => {
                    self.full = None;
                    return Poll::Ready(sent.map_err(Into::into));
                }
            }
            let full = match self.full.take() {
                Some(full) => full,
                None => {
                    let socket = Arc::new(self.socket.get_ref().try_clone()?);
                    Full {
                        room: async_fd(socket, Interest::WRITABLE)?,
                        patience: Box::pin(sleep(self.patience)),
                    }
                }
            };
            let full = self.full.insert(full);
            if full.patience.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            ready!(full.room.poll_write_ready(cx))?.clear_ready();
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if is_delivering() {
            if self.socket.poll_read_ready(cx).is_ready() {
                leave_input(cx);
            }
            return Poll::Pending;
        }
        if self.read >= READ_AT_ONCE {
            self.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let Poll::Ready(ready) = self.socket.poll_read_ready(cx) else {
                self.read = 0;
                return Poll::Pending;
            };
            let mut ready = ready?;
            let room = buf.initialize_unfilled();
            match rustix::net::recv(ready.get_inner(), &mut *room, RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    if len > 0 && len < room.len() {
                        // A short read has emptied the socket: the kernel reports later bytes anew.
                        ready.clear_ready();
                    }
                    buf.advance(len);
                    self.read += len;
                    self.received(len);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.send(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An error only means that the client has closed its end before.
        let _ = rustix::net::shutdown(self.socket.get_ref(), Shutdown::Write);
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.send(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
