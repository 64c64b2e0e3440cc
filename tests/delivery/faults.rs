//! Clients that are killed or stalled: nothing is lost, and other clients are not affected.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use evloopd::history::{check, check_same};
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::*;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::clients::{CONSUMER, Client, PROCESS, Way};
use crate::common::{Daemon, Recorder, Scene, post, shell, within};
use crate::pressure::status;

/// How often each client is killed.
const KILLS: usize = 200;
/// The last number that `seq` prints: a little more than 100 MB of output.
const NUMBERS: u32 = 12_700_000;

/// xorshift64*: random enough to kill the client at another place each time.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::process::id().into();
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % end
    }
}

/// Whether the file has exactly the output of `seq`.
fn is_numbers(path: &Path) -> bool {
    let text = std::fs::read(path).unwrap();
    let mut lines = text.split(|b| *b == b'\n');
    let mut digits = itoa::Buffer::new();
    let good = (1..=NUMBERS).all(|n| lines.next() == Some(digits.format(n).as_bytes()));
    good && lines.next() == Some(b"") && lines.next().is_none()
}

async fn killed_and_resumed(config: &str, way: Way) {
    let mut scene = Scene::new(Daemon::start(config).await, "faults", "").await;
    let files = tempfile::tempdir().unwrap();
    if let Way::Consumer = way {
        let request = CreateConsumerRequest {
            r#loop: Some(scene.target.clone()),
            name: CONSUMER.into(),
            ..CreateConsumerRequest::default()
        };
        scene
            .daemon
            .events()
            .create_consumer(request)
            .await
            .unwrap();
    }
    let spec = watch_spec::Spec::Process(shell(&format!("exec seq {NUMBERS}")));
    let mut request = scene.request(spec);
    request.name = PROCESS.into();
    scene.try_add(request).await.unwrap();
    let mut random = Random::new();
    // A batch takes a few steps of the client. The batches of Run are larger.
    let steps = match way {
        Way::Consumer => 12,
        Way::Run => 8,
    };
    for life in 0..KILLS {
        let mut client = Client::start(&scene.daemon, way, files.path());
        for _ in 0..1 + random.below(steps) {
            let did = client.did();
            let did = did.unwrap_or_else(|| panic!("life {life} ended by itself"));
            assert_ne!(did, "done", "the output was too short for {KILLS} lives");
        }
        client.kill();
    }
    let mut last = Client::start(&scene.daemon, way, files.path());
    while last.did().is_some_and(|did| did != "done") {}
    assert!(last.ended_well());
    assert!(is_numbers(&files.path().join("data")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_consumer_killed_200_times_gets_every_byte_of_100_mb_once() {
    // Far smaller than the output, so that the child waits while the client does not read.
    let config = "[policy.faults]\nextends = \"default\"\njournal_bytes = \"4MiB\"\n";
    killed_and_resumed(config, Way::Consumer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_run_killed_200_times_gets_every_byte_of_100_mb_once() {
    let config = "[limits]\nmemory = \"1GiB\"\n\
                  [policy.faults]\nextends = \"default\"\njournal_bytes = \"256MiB\"\n";
    killed_and_resumed(config, Way::Run).await;
}

/// A socket whose owner can stop reading it.
struct Stallable {
    stream: UnixStream,
    stalled: Arc<AtomicBool>,
}

impl AsyncRead for Stallable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stalled.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stallable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn stallable(daemon: &Daemon) -> (Channel, Arc<AtomicBool>) {
    let stalled = Arc::new(AtomicBool::new(false));
    let (path, flag) = (daemon.socket.clone(), Arc::clone(&stalled));
    let connector = tower::service_fn(move |_| {
        let (path, stalled) = (path.clone(), Arc::clone(&flag));
        async move {
            let stream = UnixStream::connect(path).await?;
            io::Result::Ok(TokioIo::new(Stallable { stream, stalled }))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    (channel, stalled)
}

async fn consumer(scene: &Scene, name: &str) -> Consumer {
    let request = GetConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: name.into(),
    };
    let answer = scene.daemon.events().get_consumer(request).await.unwrap();
    answer.into_inner().consumer.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_peer_that_stops_reading_its_socket_is_let_go_and_delays_no_other_reader() {
    let config = "[server]\nkeepalive = \"1s\"\n";
    let mut scene = Scene::new(Daemon::start(config).await, "", "").await;
    let (channel, stalled) = stallable(&scene.daemon).await;
    let request = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        consumer: "half-open".into(),
        auto_ack: true,
        ..SubscribeRequest::default()
    };
    let mut events = EventServiceClient::new(channel);
    let mut stream = events.subscribe(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    stalled.store(true, Ordering::Relaxed);
    let held = consumer(&scene, "half-open").await;
    assert!(held.held);
    // Far more than the buffers of its connection hold. Another reader gets all of it.
    for _ in 0..40 {
        let seq = scene.post(vec![post("", &[0; 50_000]); 10]).await;
        scene.recorder.reach(seq).await;
    }
    let let_go = async {
        while consumer(&scene, "half-open").await.held {
            tokio::task::yield_now().await;
        }
    };
    within("the daemon to notice", let_go).await;
    assert_eq!(check(&scene.recorder.recording).unwrap().lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn seven_of_eight_readers_do_not_notice_that_one_is_stalled() {
    let config = "[policy.small]\nextends = \"default\"\njournal_bytes = \"1MiB\"\n";
    let mut scene = Scene::new(Daemon::start(config).await, "small", "").await;
    let end = |event: &Event| matches!(&event.kind, Some(event::Kind::Posted(posted)) if posted.topic == "end");
    let mut readers = Vec::new();
    for number in 0..7 {
        let request = SubscribeRequest {
            r#loop: Some(scene.target.clone()),
            consumer: format!("c{number}"),
            auto_ack: true,
            ..SubscribeRequest::default()
        };
        let mut reader = Recorder::subscribe(&scene.daemon, request).await.unwrap();
        readers.push(tokio::spawn(async move {
            reader.find("the end", end).await;
            reader.recording
        }));
    }
    // A stream on the same connection as the others, which is not read.
    let mut stalled = Recorder::of(&scene.daemon, &scene.target).await;
    let id = scene.spawn(shell("exec seq 500000")).await;
    let last = scene.closed(id).await;
    assert_eq!(last.reason(), CloseReason::Completed);
    let mut marker = post("", b"");
    marker.topic = "end".into();
    let last = scene.post(vec![marker]).await;
    let mut recordings = Vec::new();
    for reader in readers {
        let recording = within("a reader", reader).await.unwrap();
        assert_eq!(check(&recording).unwrap().lost, 0);
        recordings.push(recording);
    }
    for pair in recordings.windows(2) {
        check_same(&pair[0], &pair[1]).unwrap();
    }
    assert_eq!(status(&scene).await.dropped, 0);
    stalled.reach(last).await;
    let lost = check(&stalled.recording).unwrap();
    assert!(
        lost.lost > 0 && lost.through >= last,
        "the stalled reader gets a gap for what it has lost"
    );
    scene.finish().await;
}
