//! Against a daemon that says what it is told to and breaks off.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use clap::Parser as _;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response};
use tower::Service;

use super::*;
use crate::proto::{Event, ProcessSpec, RunHeader};

type Answer = Vec<Result<RunResponse, Status>>;

/// Answers one call of Run after the other, and remembers what was asked.
#[derive(Clone, Default)]
struct Fake {
    asked: Arc<Mutex<Vec<RunRequest>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl NamedService for Fake {
    const NAME: &'static str = "evloopd.v1.ProcessService";
}

impl ServerStreamingService<RunRequest> for Fake {
    type Response = RunResponse;
    type ResponseStream = tokio_stream::Iter<std::vec::IntoIter<Result<RunResponse, Status>>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<RunRequest>) -> Self::Future {
        self.asked.lock().push(request.into_inner());
        let answer = self.answers.lock().pop_front().unwrap_or_default();
        ready(Ok(Response::new(tokio_stream::iter(answer))))
    }
}

impl Service<http::Request<Body>> for Fake {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<RunResponse, RunRequest>::default();
            Ok(Grpc::new(codec).server_streaming(fake, request).await)
        })
    }
}

/// A feed of the process `x` from a daemon that gives `answers`.
async fn feed(answers: Vec<Answer>) -> (Feed, Fake) {
    let fake = Fake::default();
    *fake.answers.lock() = answers.into();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evloopd.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
    let server = tonic::transport::Server::builder().add_service(fake.clone());
    tokio::spawn(server.serve_with_incoming(incoming));
    let line = ["evloopctl", "--socket", path.to_str().unwrap(), "status"];
    let args = crate::ctl::Args::try_parse_from(line).unwrap();
    let session = Session::open(args.global).await.unwrap();
    let request = RunRequest {
        name: "x".to_owned(),
        spec: Some(ProcessSpec::default()),
        ..RunRequest::default()
    };
    (Feed::new(session, Source::Run(request)), fake)
}

fn say(message: run_response::Message) -> Result<RunResponse, Status> {
    Ok(RunResponse {
        message: Some(message),
    })
}

fn header(instance: &str) -> Result<RunResponse, Status> {
    say(run_response::Message::Header(RunHeader {
        instance: instance.to_owned(),
        epoch: "e".to_owned(),
        ..RunHeader::default()
    }))
}

fn batch(after: u64, through: u64) -> Result<RunResponse, Status> {
    let event = |seq| Event {
        seq,
        ..Event::default()
    };
    let events = (after + 1..=through).map(event).collect();
    say(run_response::Message::Batch(Batch {
        after,
        through,
        events,
        ..Batch::default()
    }))
}

fn done() -> Result<RunResponse, Status> {
    let mut goodbye = Goodbye::default();
    goodbye.set_reason(GoodbyeReason::Done);
    say(run_response::Message::Goodbye(goodbye))
}

/// Sequence numbers up to the goodbye.
async fn read(feed: &mut Feed) -> Result<Vec<u64>, Failure> {
    let mut seqs = Vec::new();
    loop {
        match feed.next().await? {
            Item::Header(_) => {}
            Item::Batch(batch) => seqs.extend(batch.events.iter().map(|event| event.seq)),
            Item::Goodbye(_) => return Ok(seqs),
        }
    }
}

#[tokio::test]
async fn a_broken_stream_goes_on_after_the_last_batch_and_starts_nothing_again() {
    let broken = || Err(Status::unavailable("connection reset"));
    let answers = vec![
        vec![header("i"), batch(0, 2), batch(2, 3), broken()],
        vec![],
        vec![header("i"), batch(3, 5), done()],
    ];
    let (mut feed, fake) = feed(answers).await;
    assert_eq!(read(&mut feed).await.unwrap(), [1, 2, 3, 4, 5]);
    let asked = fake.asked.lock();
    let after = |seq| {
        Some(Cursor {
            epoch: "e".to_owned(),
            seq,
        })
    };
    let seen: Vec<_> = asked
        .iter()
        .map(|r| (r.spec.is_some(), r.after.clone()))
        .collect();
    assert_eq!(seen, [(true, None), (false, after(3)), (false, after(3))]);
}

#[tokio::test]
async fn another_instance_of_the_daemon_is_never_taken_for_the_same_history() {
    let (mut feed, _) = feed(vec![
        vec![header("i"), batch(0, 2)],
        vec![header("j"), batch(2, 3)],
    ])
    .await;
    let failure = read(&mut feed).await.unwrap_err();
    assert!(failure.to_string().contains("restarted"), "{failure}");
}

#[tokio::test]
async fn batches_that_do_not_join_are_an_error() {
    let (mut feed, _) = feed(vec![vec![header("i"), batch(0, 2), batch(3, 4), done()]]).await;
    let failure = read(&mut feed).await.unwrap_err();
    assert!(failure.to_string().contains("do not join"), "{failure}");
}
