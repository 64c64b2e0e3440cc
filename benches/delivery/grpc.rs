//! The yardstick for gRPC: a tonic server that does nothing else, in a process of its own.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::{NamedService, ServerStreamingService, StreamingService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::Outcome;
use crate::common::grpc::{self, Server};
use crate::raw::Raw;

/// The first argument of the process that serves; the second is the path of the socket.
pub(crate) const YARDSTICK: &str = "grpc-yardstick";

const ECHO: &str = "/bench.Yardstick/Echo";
/// Streams the messages that the server was started with.
pub(crate) const REPLAY: &str = "/bench.Yardstick/Replay";
const MESSAGES: &str = "messages";
/// Streams the output of a child while it is read. The request is the child's command line.
pub(crate) const CHILD: &str = "/bench.Yardstick/Child";
/// The number of chunks that fit between the reader of a child's output and the stream.
const CHUNKS: usize = 16;

/// Starts a server that has no messages to stream.
pub(crate) fn start() -> Outcome<Server> {
    start_with(&[])
}

/// Starts a server that streams these messages.
pub(crate) fn start_with(messages: &[Bytes]) -> Outcome<Server> {
    let directory = tempfile::tempdir()?;
    let mut saved = Vec::new();
    for message in messages {
        saved.put_u64(message.len() as u64);
        saved.put_slice(message);
    }
    std::fs::write(directory.path().join(MESSAGES), saved)?;
    Server::start(YARDSTICK, directory)
}

/// Serves in the process that [`start`] started.
pub(crate) fn serve(socket: &Path) -> Outcome<()> {
    let messages = load(&socket.with_file_name(MESSAGES))?;
    grpc::serve(socket, Yardstick(messages))
}

/// Returns the messages that were saved, or none.
fn load(path: &Path) -> Outcome<Arc<[Bytes]>> {
    let mut saved = match std::fs::read(path) {
        Ok(saved) => Bytes::from(saved),
        Err(_) => return Ok(Arc::default()),
    };
    let mut messages = Vec::new();
    while !saved.is_empty() {
        let len = usize::try_from(saved.get_u64())?;
        messages.push(saved.split_to(len));
    }
    Ok(messages.into())
}

#[derive(Clone)]
struct Yardstick(Arc<[Bytes]>);

impl NamedService for Yardstick {
    const NAME: &'static str = "bench.Yardstick";
}

impl Service<http::Request<Body>> for Yardstick {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let messages = Arc::clone(&self.0);
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(match request.uri().path() {
                ECHO => grpc.streaming(Echo, request).await,
                REPLAY => {
                    let mut grpc = tonic::server::Grpc::new(Raw);
                    grpc.server_streaming(Replay(messages), request).await
                }
                CHILD => {
                    let mut grpc = tonic::server::Grpc::new(Raw);
                    grpc.server_streaming(Child, request).await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

/// Sends every message back.
struct Echo;

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Streaming<Bytes>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

/// Sends the messages one after the other.
struct Replay(Arc<[Bytes]>);

impl ServerStreamingService<Bytes> for Replay {
    type Response = Bytes;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        let messages = Arc::clone(&self.0);
        let each = (0..messages.len()).map(move |at| Ok(messages[at].clone()));
        let stream: Self::ResponseStream = Box::pin(tokio_stream::iter(each));
        Box::pin(async move { Ok(Response::new(stream)) })
    }
}

/// Sends the output of a child.
struct Child;

impl ServerStreamingService<Bytes> for Child {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move {
            let line = String::from_utf8_lossy(request.get_ref()).into_owned();
            let mut words = line.split(' ');
            let mut child = tokio::process::Command::new(words.next().unwrap_or_default())
                .args(words)
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::piped())
                .spawn()?;
            let output = child.stdout.take();
            let (chunks, stream) = mpsc::channel(CHUNKS);
            tokio::spawn(async move {
                let Some(mut output) = output else { return };
                loop {
                    let mut chunk = bytes::BytesMut::with_capacity(64 * 1024);
                    let read = output.read_buf(&mut chunk).await;
                    if !matches!(read, Ok(1..)) || chunks.send(Ok(chunk.freeze())).await.is_err() {
                        break;
                    }
                }
                let _ = child.wait().await;
            });
            Ok(Response::new(ReceiverStream::new(stream)))
        })
    }
}

/// The client's side of an [`Echo`] stream.
pub(crate) struct EchoStream {
    requests: mpsc::Sender<Bytes>,
    answers: Streaming<Bytes>,
}

impl EchoStream {
    pub(crate) async fn open(channel: Channel) -> Outcome<Self> {
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await?;
        let (requests, stream) = mpsc::channel(1);
        let answers = grpc
            .streaming(
                Request::new(ReceiverStream::new(stream)),
                PathAndQuery::from_static(ECHO),
                ProstCodec::default(),
            )
            .await?;
        Ok(Self {
            requests,
            answers: answers.into_inner(),
        })
    }

    pub(crate) async fn round_trip(&mut self, message: Bytes) -> Outcome<()> {
        self.requests.send(message).await?;
        let answer = self.answers.message().await?;
        answer.map(drop).ok_or_else(|| "the echo ended".into())
    }
}
