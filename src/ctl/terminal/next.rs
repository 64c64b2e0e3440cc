//! What a view waits for.

use std::future::{Future, pending};
use std::io;
use std::pin::Pin;

use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use super::local::Local;
use crate::ctl::failure::Failure;
use crate::ctl::sink::Sink;
use crate::proto::attach_terminal_request::Message as Asked;
use crate::proto::{AttachTerminalRequest, AttachTerminalResponse};

/// A view that is being opened.
pub(super) type Opening =
    Pin<Box<dyn Future<Output = Result<Streaming<AttachTerminalResponse>, tonic::Status>>>>;
/// A write to stdout, which gives the sink back.
pub(super) type Writing = Pin<Box<dyn Future<Output = (Sink, io::Result<()>)>>>;

/// What comes next.
pub(super) enum Next {
    Keys(io::Result<Vec<u8>>),
    Release,
    Told(Result<Option<AttachTerminalResponse>, tonic::Status>),
    Opened(Result<Streaming<AttachTerminalResponse>, tonic::Status>),
    Written(Sink, io::Result<()>),
    Resized,
    Continued,
}

pub(super) fn request(message: Asked) -> AttachTerminalRequest {
    AttachTerminalRequest {
        message: Some(message),
    }
}

pub(super) fn listen(kind: SignalKind) -> Result<unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::new("receiving signals", error))
}

pub(super) async fn keys_of(local: Option<&Local>) -> io::Result<Vec<u8>> {
    match local {
        Some(local) => local.read().await,
        None => pending().await,
    }
}

pub(super) async fn told(
    answers: &mut Option<Streaming<AttachTerminalResponse>>,
) -> Result<Option<AttachTerminalResponse>, tonic::Status> {
    match answers {
        Some(answers) => answers.message().await,
        None => pending().await,
    }
}

pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Waits for the end of what is under way. It is not polled again after that.
pub(super) async fn some<T>(task: &mut Option<Pin<Box<dyn Future<Output = T>>>>) -> T {
    match task {
        Some(under_way) => {
            let done = under_way.await;
            *task = None;
            done
        }
        None => pending().await,
    }
}
