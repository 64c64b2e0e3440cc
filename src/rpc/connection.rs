//! The service's connections: accepted on the Unix socket, each with who is at its other
//! end, each served by a [`Strand`].

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt;

use super::strand::{Strand, is_delivering, leave_input};
use crate::access::{Access, Peer};
use crate::error::Error;

/// Who connected; those not served get the error as the answer to every call.
pub(super) type Admitted = Result<Arc<Peer>, Error>;

/// How long accepting pauses when the system has no room for another connection.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of a stream that wait for its client, beyond what is on the wire.
const SEND_BUFFER: usize = 256 * 1024;

/// What is served, and to whom.
#[derive(Debug)]
pub struct Service {
    /// The Unix socket.
    pub listener: UnixListener,
    /// Who is served.
    pub access: Arc<Access>,
    /// Connections at once; more wait in the kernel.
    pub max_connections: usize,
    /// How often clients are pinged, and how long each has for the answer.
    pub keepalive: Duration,
    /// All calls.
    pub routes: Routes,
}

/// Serves connections until `stop` says so; then those there are end their calls and close.
pub async fn serve(service: Service, stop: watch::Receiver<bool>) {
    let Service {
        listener,
        access,
        max_connections,
        keepalive,
        routes,
    } = service;
    let routes = routes.prepare();
    let room = Arc::new(Semaphore::new(max_connections));
    let mut stopped = stop.clone();
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        match (permit, accepted) {
            (Ok(permit), Ok((stream, _))) => {
                let admitted = access.admit(&stream).map(Arc::new);
                Connection {
                    stream,
                    admitted,
                    keepalive,
                    stop: stop.clone(),
                    permit,
                }
                .start(routes.clone());
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(RETRY).await;
            }
            // Nobody closes the semaphore.
            (Err(_), _) => break,
        }
    }
    drop(listener);
    // Bounded by the configuration.
    let all = u32::try_from(max_connections).unwrap_or(u32::MAX);
    let _ = room.acquire_many(all).await;
}

/// A connection that was accepted.
struct Connection {
    stream: UnixStream,
    admitted: Admitted,
    keepalive: Duration,
    stop: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
}

impl Connection {
    fn start(self, routes: Routes) {
        let Self {
            stream,
            admitted,
            keepalive,
            mut stop,
            permit,
        } = self;
        let service = routes.map_request(move |request: http::Request<hyper::body::Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(admitted.clone());
            request
        });
        Strand::start(|spawner| {
            let connection = http2::Builder::new(spawner)
                .timer(TokioTimer::new())
                .max_concurrent_streams(None)
                .max_send_buf_size(SEND_BUFFER)
                .keep_alive_interval(keepalive)
                .keep_alive_timeout(keepalive)
                .serve_connection(
                    TokioIo::new(Transport(stream)),
                    TowerToHyperService::new(service),
                );
            async move {
                let _permit = permit;
                let mut connection = pin!(connection);
                let ended = tokio::select! {
                    ended = &mut connection => ended,
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
    }
}

/// The socket, which a loop's thread only writes to.
#[derive(Debug)]
struct Transport(UnixStream);

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !is_delivering() {
            return Pin::new(&mut self.0).poll_read(cx, buf);
        }
        if self.0.poll_read_ready(cx).is_ready() {
            leave_input(cx);
        }
        Poll::Pending
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
