//! Tests of feeds against a daemon that gives prepared answers and breaks connections.

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
use crate::proto::{Event, ProcessSpec, RunHeader, StartAt, SubscribeHeader};

/// What one call is answered with.
type Answer<A> = Vec<Result<A, Status>>;

/// Answers one call after the other, and remembers what was asked.
#[derive(Clone)]
struct Fake<Q, A> {
    asked: Arc<Mutex<Vec<Q>>>,
    answers: Arc<Mutex<VecDeque<Answer<A>>>>,
}

impl NamedService for Fake<RunRequest, RunResponse> {
    const NAME: &'static str = "evloopd.v1.ProcessService";
}

impl NamedService for Fake<SubscribeRequest, SubscribeResponse> {
    const NAME: &'static str = "evloopd.v1.EventService";
}

impl<Q, A: Send + 'static> ServerStreamingService<Q> for Fake<Q, A> {
    type Response = A;
    type ResponseStream = tokio_stream::Iter<std::vec::IntoIter<Result<A, Status>>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        self.asked.lock().push(request.into_inner());
        let answer = self.answers.lock().pop_front().unwrap_or_default();
        ready(Ok(Response::new(tokio_stream::iter(answer))))
    }
}

impl<Q, A> Service<http::Request<Body>> for Fake<Q, A>
where
    Q: prost::Message + Default + Clone + 'static,
    A: prost::Message + Default + Clone + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<A, Q>::default();
            Ok(Grpc::new(codec).server_streaming(fake, request).await)
        })
    }
}

/// A session with a daemon that gives `answers`.
async fn session<Q, A>(answers: Vec<Answer<A>>) -> (Session, Fake<Q, A>)
where
    Q: prost::Message + Default + Clone + 'static,
    A: prost::Message + Default + Clone + 'static,
    Fake<Q, A>: NamedService,
{
    let fake = Fake {
        asked: Arc::default(),
        answers: Arc::new(Mutex::new(answers.into())),
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evloopd.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
    let server = tonic::transport::Server::builder().add_service(fake.clone());
    tokio::spawn(server.serve_with_incoming(incoming));
    let line = ["evloopctl", "--socket", path.to_str().unwrap(), "status"];
    let args = crate::ctl::Args::try_parse_from(line).unwrap();
    (
        Session::open(args.global, String::new()).await.unwrap(),
        fake,
    )
}

/// A feed of the process `x` from a daemon that gives `answers`.
async fn feed(answers: Vec<Answer<RunResponse>>) -> (Feed, Fake<RunRequest, RunResponse>) {
    let (session, fake) = session(answers).await;
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
        ..RunResponse::default()
    })
}

fn header(instance: &str) -> Result<RunResponse, Status> {
    header_of(instance, "e")
}

fn header_of(instance: &str, epoch: &str) -> Result<RunResponse, Status> {
    say(run_response::Message::Header(RunHeader {
        instance: instance.to_owned(),
        epoch: epoch.to_owned(),
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
async fn another_instance_of_the_daemon_goes_on_with_the_same_history() {
    let (mut feed, _) = feed(vec![
        vec![header("i"), batch(0, 2)],
        vec![header("j"), batch(2, 3), done()],
    ])
    .await;
    read(&mut feed).await.unwrap();
}

#[tokio::test]
async fn another_history_is_never_taken_for_the_same_one() {
    let (mut feed, _) = feed(vec![
        vec![header("i"), batch(0, 2)],
        vec![header_of("j", "f"), batch(2, 3)],
    ])
    .await;
    let failure = read(&mut feed).await.unwrap_err();
    assert!(failure.to_string().contains("restarted"), "{failure}");
}

#[tokio::test]
async fn batches_that_do_not_join_are_an_error() {
    let (mut feed, _) = feed(vec![vec![header("i"), batch(0, 2), batch(3, 4), done()]]).await;
    let failure = read(&mut feed).await.unwrap_err();
    assert!(failure.to_string().contains("left events out"), "{failure}");
}

fn told(message: subscribe_response::Message) -> Result<SubscribeResponse, Status> {
    Ok(SubscribeResponse {
        message: Some(message),
        ..SubscribeResponse::default()
    })
}

fn begins(after: u64) -> Result<SubscribeResponse, Status> {
    told(subscribe_response::Message::Header(SubscribeHeader {
        instance: "i".to_owned(),
        loop_id: 7,
        epoch: "e".to_owned(),
        after,
        ..SubscribeHeader::default()
    }))
}

fn ends(seq: u64) -> Result<SubscribeResponse, Status> {
    let epoch = "e".to_owned();
    let mut goodbye = Goodbye {
        cursor: Some(Cursor { epoch, seq }),
        ..Goodbye::default()
    };
    goodbye.set_reason(GoodbyeReason::Done);
    told(subscribe_response::Message::Goodbye(goodbye))
}

#[tokio::test]
async fn a_stream_that_breaks_before_its_first_batch_begins_where_it_would_have() {
    let one = told(subscribe_response::Message::Batch(Batch {
        after: 5,
        through: 6,
        events: vec![Event {
            seq: 6,
            ..Event::default()
        }],
        ..Batch::default()
    }));
    let answers = vec![vec![begins(5)], vec![begins(5), one, ends(6)]];
    let (session, fake) = session(answers).await;
    let now = SubscribeRequest {
        start: Some(subscribe_request::Start::StartAt(StartAt::Now.into())),
        ..SubscribeRequest::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let mut feed = Feed::new(session, Source::Subscribe(now.clone()));
    feed = feed.record(Tape::new(path.clone(), false));
    assert_eq!(read(&mut feed).await.unwrap(), [6]);
    let asked = fake.asked.lock();
    let after = subscribe_request::Start::After(Cursor {
        epoch: "e".to_owned(),
        seq: 5,
    });
    assert_eq!(asked[1].start, Some(after));
    let of = asked[1].r#loop.as_ref().and_then(|of| of.r#ref.clone());
    assert_eq!(of, Some(loop_ref::Ref::LoopId(7)));
    let recorded = crate::history::file::RecordingFile::read(&path).unwrap();
    assert_eq!(recorded.request, now);
    let lengths: Vec<_> = recorded
        .subscriptions
        .iter()
        .map(|l| l.messages.len())
        .collect();
    assert_eq!(lengths, [0, 2]);
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_given() {
    let (session, _) = session(vec![vec![begins(5), ends(5)]]).await;
    let mut feed = Feed::new(session, Source::Subscribe(SubscribeRequest::default()));
    feed = feed.record(Tape::new("/nonexistent/file".into(), true));
    let failure = feed.next().await.unwrap_err();
    let text = failure.to_string();
    assert!(
        text.starts_with("--record /nonexistent/file: No such"),
        "{text}"
    );
}

#[test]
fn who_lost_a_consumer_hears_which_and_why() {
    let goodbye = |reason| {
        let mut goodbye = Goodbye::default();
        goodbye.set_reason(reason);
        consumer_lost("c", &goodbye).map(|failure| failure.to_string())
    };
    let taken = goodbye(GoodbyeReason::TakenOver).unwrap();
    assert!(taken.starts_with("consumer c: another reader"), "{taken}");
    let deleted = goodbye(GoodbyeReason::ConsumerDeleted).unwrap();
    assert!(
        deleted.starts_with("consumer c: it was deleted"),
        "{deleted}"
    );
    assert_eq!(goodbye(GoodbyeReason::Shutdown), None);
}
