//! Counts the memory that a call takes, from the first byte of its request to the last of its
//! answer, and limits the time for the request to arrive.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt;

use super::quota::{Charge, MemoryQuota};
use crate::error::Error;
use crate::memory::Use;

/// The size of the pieces in which an answer goes to the connection, bytes.
const PIECE: usize = 16 * 1024;
/// The size of the pieces of a stream, bytes. It is larger, because a stream may be long and fewer
/// pieces cost less.
const STREAM_PIECE: usize = 64 * 1024;
/// The bytes that precede a gRPC message: a flag that says whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Which sides of a method are streams.
#[derive(Debug, Clone, Copy)]
struct Shape {
    requests: bool,
    answers: bool,
}

impl Shape {
    fn of(path: &str) -> Self {
        let method = path.rsplit('/').next().unwrap_or_default();
        let both = matches!(method, "Attach" | "AttachTerminal" | "ServerReflectionInfo");
        Self {
            requests: both,
            answers: both || matches!(method, "Subscribe" | "Run" | "Watch"),
        }
    }
}

/// Carries out a call, and counts the memory that it holds until its answer is sent.
pub(super) async fn carry_out(
    routes: Routes,
    request: http::Request<hyper::body::Incoming>,
    quota: Arc<MemoryQuota>,
    patience: Duration,
) -> http::Response<Body> {
    let shape = Shape::of(request.uri().path());
    let held = Arc::new(Mutex::new(quota.empty_charge(Use::Requests)));
    let mut request = request.map(|body| {
        Body::new(Received {
            body,
            held: Arc::clone(&held),
            is_stream: shape.requests,
            message: Progress::default(),
            patience,
            timer: None,
        })
    });
    request.extensions_mut().insert(Arc::clone(&quota));
    let response = match AssertUnwindSafe(routes.oneshot(request))
        .catch_unwind()
        .await
    {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => return Status::from(panicked()).into_http(),
    };
    let (parts, mut body) = response.into_parts();
    if shape.answers {
        let answers = Answer {
            first: Bytes::new(),
            rest: body,
            piece: STREAM_PIECE,
            // The stream itself counts the memory of what it sends.
            held: Arc::new(Mutex::new(quota.empty_charge(Use::Requests))),
        };
        return http::Response::from_parts(parts, Body::new(answers));
    }
    // A unary answer is one message, which is complete before the body is polled.
    let first = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
    let first = match first {
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let body = Body::new(Ended(Some(frame)));
                return http::Response::from_parts(parts, body);
            }
        },
        Poll::Ready(Some(Err(status))) => return status.into_http(),
        Poll::Ready(None) | Poll::Pending => Bytes::new(),
    };
    {
        let mut held = held.lock();
        held.clear();
        if let Err(error) = held.grow(first.len() as u64) {
            return Status::from(error).into_http();
        }
    }
    let answer = Answer {
        first,
        rest: body,
        piece: PIECE,
        held,
    };
    http::Response::from_parts(parts, Body::new(answer))
}

/// A panic fails the call alone: those that concern more end the daemon before it gets here.
const fn panicked() -> Error {
    Error::Internal("the call panicked; the daemon's log has the place")
}

/// How much of the messages in a body has arrived.
#[derive(Debug, Default)]
struct Progress {
    prefix: [u8; PREFIX],
    known: usize,
    /// Bytes of the message that have not arrived, once its prefix is known.
    left: usize,
}

impl Progress {
    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.known < PREFIX {
                let part = bytes.len().min(PREFIX - self.known);
                self.prefix[self.known..][..part].copy_from_slice(&bytes[..part]);
                self.known += part;
                bytes = &bytes[part..];
                if self.known < PREFIX {
                    return;
                }
                let [_, a, b, c, d] = self.prefix;
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            }
            let part = bytes.len().min(self.left);
            self.left -= part;
            bytes = &bytes[part..];
            if self.left == 0 {
                self.known = 0;
            }
        }
    }

    /// Returns whether the bytes so far end between two messages.
    const fn is_between(&self) -> bool {
        self.known == 0
    }
}

/// The body of a request.
#[derive(Debug)]
struct Received {
    body: hyper::body::Incoming,
    held: Arc<Mutex<Charge>>,
    is_stream: bool,
    message: Progress,
    /// How long one message may take to arrive.
    patience: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let idle = this.is_stream && this.message.is_between();
        if idle {
            // The reader asks for more, so it is done with the messages before.
            this.held.lock().clear();
            this.timer = None;
        }
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.held.lock().grow(data.len() as u64)?;
                    this.message.advance(data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(Status::from_error(Box::new(error)))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if idle => Poll::Pending,
            Poll::Pending => {
                let patience = this.patience;
                let timer = this
                    .timer
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                ready!(timer.as_mut().poll(cx));
                let late = Error::Limit {
                    limit: "server.receive_timeout",
                    value: patience.as_secs(),
                    hint: "a request has to arrive within so many seconds".into(),
                };
                Poll::Ready(Some(Err(late.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. The connection buffers all that it is given, so it is given small pieces:
/// bytes that the client has not taken yet stay here and are counted.
#[derive(Debug)]
struct Answer {
    first: Bytes,
    rest: Body,
    piece: usize,
    held: Arc<Mutex<Charge>>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        while this.first.is_empty() {
            let rest = Pin::new(&mut this.rest);
            let polled = catch_unwind(AssertUnwindSafe(|| rest.poll_frame(cx)));
            let frame = match ready!(polled.unwrap_or_else(|_| {
                this.rest = Body::empty();
                Poll::Ready(Some(Err(panicked().into())))
            })) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => this.first = data,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        let piece = this.first.split_to(this.piece.min(this.first.len()));
        this.held.lock().shrink(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.is_end_stream()
    }
}

/// The body of an answer that has trailers but no message.
#[derive(Debug)]
struct Ended(Option<Frame<Bytes>>);

impl HttpBody for Ended {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::quota::MemoryQuotas;
    use super::*;
    use crate::memory::Budget;

    #[test]
    fn streams_are_known_as_such() {
        let files = crate::proto::FILE_DESCRIPTOR_SET;
        let files = prost_types::FileDescriptorSet::decode(files).unwrap();
        let services = files.file.iter().flat_map(|file| &file.service);
        let methods: Vec<_> = services.flat_map(|service| &service.method).collect();
        assert!(methods.len() > 30, "{}", methods.len());
        for method in methods {
            let shape = Shape::of(&format!("/a.b/{}", method.name()));
            let streams = (method.client_streaming(), method.server_streaming());
            assert_eq!(
                (shape.requests, shape.answers),
                streams,
                "{}",
                method.name()
            );
        }
    }

    /// A stream that gives one message, and then panics.
    #[derive(Debug)]
    struct Panics(bool);

    impl HttpBody for Panics {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            assert!(!std::mem::replace(&mut self.0, true), "on purpose");
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"first")))))
        }
    }

    #[tokio::test]
    async fn a_stream_that_panics_fails_after_what_it_has_sent() {
        let quotas = MemoryQuotas::new(&Budget::new(1 << 20), 1);
        let quota = quotas.quota(&Arc::default());
        let mut answer = Answer {
            first: Bytes::new(),
            rest: Body::new(Panics(false)),
            piece: PIECE,
            held: Arc::new(Mutex::new(quota.empty_charge(Use::Requests))),
        };
        let mut next = async || {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx));
            frame.await.map(|frame| frame.map(Frame::into_data))
        };
        assert_eq!(next().await.unwrap().unwrap().unwrap(), "first");
        assert_eq!(
            next().await.unwrap().unwrap_err().code(),
            tonic::Code::Internal
        );
        assert!(next().await.is_none());
    }

    #[test]
    fn a_message_is_whole_however_it_is_cut() {
        let mut bytes = Vec::new();
        for len in [0_u32, 1, 300, 7] {
            bytes.push(0);
            bytes.extend(len.to_be_bytes());
            bytes.extend(std::iter::repeat_n(1, len as usize));
        }
        for cut in 1..bytes.len() {
            let mut progress = Progress::default();
            bytes.chunks(cut).for_each(|part| progress.advance(part));
            assert!(progress.is_between(), "cut at {cut}");
            progress.advance(&[0]);
            assert!(!progress.is_between());
        }
    }
}
