//! The yardsticks: programs that read sockets and stream what they got to a client with tonic. All
//! of them are one server, in a process of its own, with a method for each.

use std::convert::Infallible;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::{NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::{Outcome, certificates, common, grpc};

/// The first argument of the process that serves; the second is the path of the socket. The
/// certificates are in the socket's directory.
pub(crate) const YARDSTICK: &str = "sources-yardstick";

/// Accepts connections and streams their bytes.
pub(crate) const TCP: &str = "/bench.Yardstick/Tcp";
/// The same with TLS.
pub(crate) const TLS: &str = "/bench.Yardstick/Tls";
/// The same, and says so when a connection's handshake is complete.
pub(crate) const HANDSHAKES: &str = "/bench.Yardstick/Handshakes";
/// Streams the datagrams of a UDP socket.
pub(crate) const UDP: &str = "/bench.Yardstick/Udp";

/// The number of messages that fit between the readers and the stream.
const MESSAGES: usize = 256;
/// The most bytes of one read of a plain connection, whose peers write little.
const SMALL_READ: usize = 4096;
/// The same with TLS.
const LARGE_READ: usize = 64 * 1024;
/// The most datagrams of one recvmmsg(2), and the most bytes of each.
const DATAGRAMS: usize = 64;
const DATAGRAM_BYTES: usize = 2048;

/// What a program sends: first its port, then what it got.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Received {
    #[prost(uint32, tag = "1")]
    pub(crate) port: u32,
    /// The number of the connection, in the order of accepting.
    #[prost(uint64, tag = "2")]
    pub(crate) connection: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) data: Bytes,
    /// The connection's handshake is complete.
    #[prost(bool, tag = "4")]
    pub(crate) accepted: bool,
    /// The connection has ended.
    #[prost(bool, tag = "5")]
    pub(crate) ended: bool,
    #[prost(message, repeated, tag = "6")]
    pub(crate) datagrams: Vec<Datagram>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Datagram {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(uint32, tag = "2")]
    port: u32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) data: Bytes,
}

type Sender = mpsc::Sender<Result<Received, Status>>;

/// Serves until standard input ends.
pub(crate) fn serve(socket: &Path) -> Outcome<()> {
    let directory = socket.parent().ok_or("no directory")?;
    grpc::serve(socket, Programs(directory.into()))
}

#[derive(Clone)]
struct Programs(PathBuf);

impl NamedService for Programs {
    const NAME: &'static str = "bench.Yardstick";
}

impl Service<http::Request<Body>> for Programs {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let program = Program {
            directory: self.0.clone(),
            method: request.uri().path().to_owned(),
        };
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(grpc.server_streaming(program, request).await)
        })
    }
}

struct Program {
    directory: PathBuf,
    method: String,
}

impl ServerStreamingService<()> for Program {
    type Response = Received;
    type ResponseStream = ReceiverStream<Result<Received, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let (sender, stream) = mpsc::channel(MESSAGES);
        let (directory, method) = (self.directory.clone(), self.method.clone());
        Box::pin(async move {
            let failed = |error: common::Failure| Status::internal(error.to_string());
            let begun = match &*method {
                TCP => accept(None, false, sender).await,
                TLS | HANDSHAKES => {
                    let config = certificates::server(&directory).map_err(failed)?;
                    accept(Some(config.into()), method == HANDSHAKES, sender).await
                }
                UDP => receive(sender).await,
                _ => return Err(Status::unimplemented("")),
            };
            begun.map_err(failed)?;
            Ok(Response::new(ReceiverStream::new(stream)))
        })
    }
}

/// Sends the port that a program uses.
async fn begin(sender: &Sender, port: u16) -> Outcome<()> {
    let port = port.into();
    let begin = Received {
        port,
        ..Received::default()
    };
    Ok(sender.send(Ok(begin)).await?)
}

/// Begins to accept connections, each of which has a task.
async fn accept(tls: Option<TlsAcceptor>, announce: bool, sender: Sender) -> Outcome<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    begin(&sender, listener.local_addr()?.port()).await?;
    tokio::spawn(async move {
        for connection in 0.. {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let (tls, sender) = (tls.clone(), sender.clone());
            tokio::spawn(async move {
                let Some(tls) = tls else {
                    return read(stream, SMALL_READ, connection, sender).await;
                };
                let Ok(stream) = tls.accept(stream).await else {
                    return;
                };
                if announce {
                    let accepted = Received {
                        connection,
                        accepted: true,
                        ..Received::default()
                    };
                    let _ = sender.send(Ok(accepted)).await;
                }
                read(stream, LARGE_READ, connection, sender).await;
            });
        }
    });
    Ok(())
}

/// Sends what a connection brings until it ends.
async fn read(mut stream: impl AsyncRead + Unpin, most: usize, connection: u64, sender: Sender) {
    let mut buffer = BytesMut::with_capacity(most);
    loop {
        // A record of TLS has 16 KiB; room for less than that would need two reads.
        buffer.reserve(most / 4);
        let read = stream.read_buf(&mut buffer).await;
        let ended = !matches!(read, Ok(1..));
        let received = Received {
            connection,
            data: buffer.split().freeze(),
            ended,
            ..Received::default()
        };
        if sender.send(Ok(received)).await.is_err() || ended {
            return;
        }
    }
}

/// Begins to receive datagrams, in a thread of its own, as many at once as there are.
async fn receive(sender: Sender) -> Outcome<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, crate::udp::RECEIVE_BUFFER)?;
    begin(&sender, socket.local_addr()?.port()).await?;
    std::thread::spawn(move || {
        let mut buffers = vec![[0; DATAGRAM_BYTES]; DATAGRAMS];
        let mut headers = MultiHeaders::preallocate(DATAGRAMS, None);
        while let Ok(datagrams) = receive_many(&socket, &mut headers, &mut buffers) {
            let received = Received {
                datagrams,
                ..Received::default()
            };
            if sender.blocking_send(Ok(received)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Waits for a datagram and takes all that are there.
fn receive_many(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrIn>,
    buffers: &mut [[u8; DATAGRAM_BYTES]],
) -> nix::Result<Vec<Datagram>> {
    let buffers = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]);
    let mut buffers: Vec<_> = buffers.collect();
    let flags = MsgFlags::MSG_WAITFORONE;
    let received = recvmmsg(socket.as_raw_fd(), headers, buffers.iter_mut(), flags, None)?;
    let datagrams = received.map(|message| Datagram {
        ip: message
            .address
            .map_or_else(String::new, |from| from.ip().to_string()),
        port: message.address.map_or(0, |from| from.port().into()),
        data: Bytes::copy_from_slice(message.iovs().next().unwrap_or_default()),
    });
    Ok(datagrams.collect())
}
