//! A hostile client beside a well-behaved one, whose calls stay fast, while memory and descriptors
//! stay within their limits.

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use evloopd::proto::admin_service_client::AdminServiceClient;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use prost::Message;
use tokio::net::UnixStream;
use tonic::Code;

use crate::common::{Daemon, PATIENCE, Scene, lasting, processor_time, refused, shell, within};

/// Far more processor time than the daemon uses until it answers a call beside a hostile client, and
/// far less than where the call is held up.
const SOON: Duration = Duration::from_secs(5);

/// The most bytes that the calls of a well-behaved client hold, including the call that asks.
const LITTLE: u64 = 1024;

/// A connection that uses HTTP/2 directly, with its own flow-control window.
pub(crate) async fn connection(daemon: &Daemon, window: u32) -> SendRequest<Bytes> {
    let socket = UnixStream::connect(&daemon.socket).await.unwrap();
    let mut client = h2::client::Builder::new();
    client.initial_window_size(window);
    client.initial_connection_window_size(64 << 20);
    let (send, connection) = client.handshake(socket).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

/// Begins a call without a message.
pub(crate) async fn call(
    client: &mut SendRequest<Bytes>,
    method: &str,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    let request = http::Request::post(format!("http://localhost/evloopd.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut ready = client.clone().ready().await?;
    ready.send_request(request, false)
}

pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len().try_into().unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// Returns the status of a call that was refused before it had an answer.
async fn status(response: ResponseFuture) -> Option<Code> {
    let response = within("an answer", response).await.ok()?;
    let status = response.headers().get("grpc-status")?.to_str().ok()?;
    Some(Code::from_bytes(status.as_bytes()))
}

/// Repeats the calls of another client until it is asked for the result: the most processor time
/// that the daemon used until one of them was answered.
fn neighbour(daemon: &Daemon) -> impl AsyncFnOnce() -> Duration {
    let pid = daemon.pid();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let path = daemon.socket.clone();
    let calls = tokio::spawn(async move {
        let mut admin = AdminServiceClient::new(crate::common::connect(&path).await);
        let mut longest = Duration::ZERO;
        while stopped.try_recv().is_err() {
            let before = processor_time(pid);
            let request = GetServerInfoRequest {};
            admin.get_server_info(request).await.unwrap();
            longest = longest.max(processor_time(pid) - before);
        }
        longest
    });
    async move || {
        let _ = stop.send(());
        calls.await.unwrap()
    }
}

/// Requests that are received only in part are counted, and refused beyond the memory limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_received_requests_stay_within_the_memory() {
    const MEMORY: u64 = 32 << 20;
    let daemon = Daemon::start("[limits]\nmemory = \"32MiB\"").await;
    let before = daemon.status().await;
    let neighbour = neighbour(&daemon);
    let mut clients = Vec::new();
    let mut refusals = 0;
    for _ in 0..6 {
        let mut client = connection(&daemon, 65_535).await;
        let mut calls = Vec::new();
        for _ in 0..32 {
            let begun = call(&mut client, "WatchService/BatchAddWatches").await;
            let (response, mut body) = begun.unwrap();
            let mut bytes = BytesMut::new();
            bytes.put_u8(0);
            bytes.put_u32(15 << 20);
            bytes.put_bytes(0, 2 << 20);
            body.send_data(bytes.freeze(), false).unwrap();
            calls.push((response, body));
        }
        clients.push((client, calls));
    }
    // As many requests as fit wait for their rest. The others were refused.
    for (_, calls) in &mut clients {
        while let Some((response, body)) = calls.pop() {
            let told = tokio::time::timeout(Duration::from_millis(100), status(response)).await;
            match told {
                Ok(Some(Code::ResourceExhausted)) => refusals += 1,
                Ok(other) => panic!("{other:?}"),
                // The call waits for the rest of its request.
                Err(_) => drop(body),
            }
        }
    }
    assert!(refusals > 100, "{refusals}");
    let now = daemon.status().await;
    assert!(now.memory_used_bytes <= MEMORY);
    let more = now
        .rss_bytes
        .unwrap()
        .saturating_sub(before.rss_bytes.unwrap());
    assert!(more < 4 * MEMORY, "{} MiB more", more >> 20);
    assert!(neighbour().await < SOON);
    drop(clients);
    daemon
        .until("the bytes and the descriptors to be free", |status| {
            status.request_bytes < LITTLE && status.open_fds <= before.open_fds
        })
        .await;
}

/// A request that stops half-way is ended, whether it is the only message or one of a stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_stops_half_way_is_ended() {
    let daemon = Daemon::start("[server]\nreceive_timeout = \"1s\"").await;
    let mut client = connection(&daemon, 65_535).await;
    for (method, first) in [
        ("AdminService/GetStatus", Bytes::new()),
        (
            "AdminService/GetStatus",
            Bytes::from_static(b"\0\0\0\x01\0par"),
        ),
        (
            "EventService/Attach",
            Bytes::from_static(b"\0\0\0\x01\0par"),
        ),
    ] {
        let (response, mut body) = call(&mut client, method).await.unwrap();
        body.send_data(first, false).unwrap();
        assert_eq!(status(response).await, Some(Code::ResourceExhausted));
    }
    // A stream that has no message to send at the moment goes on.
    let start = SubscribeRequest::default();
    let start = AttachRequest {
        message: Some(attach_request::Message::Start(start)),
    };
    let (response, mut body) = call(&mut client, "EventService/Attach").await.unwrap();
    body.send_data(framed(&start), false).unwrap();
    let mut answers = within("a header", response).await.unwrap().into_body();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        let quiet = tokio::time::timeout(Duration::from_millis(500), answers.data()).await;
        assert!(quiet.is_err() || quiet.is_ok_and(|data| data.is_some_and(|data| data.is_ok())));
    }
}

/// The bytes of answers that the client does not take are counted like requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_not_taken_stay_within_the_memory() {
    const MEMORY: u64 = 32 << 20;
    let mut scene = Scene::new(Daemon::start("[limits]\nmemory = \"32MiB\"").await, "", "").await;
    let mut spec = shell("sleep 1000");
    spec.env = [("LARGE".to_owned(), "x".repeat(100_000))].into();
    for _ in 0..8 {
        scene.add(Spec::Process(spec.clone())).await;
    }
    let before = scene.daemon.status().await;
    let neighbour = neighbour(&scene.daemon);
    let list = framed(&ListWatchesRequest {
        r#loop: Some(scene.target.clone()),
        ..ListWatchesRequest::default()
    });
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = connection(&scene.daemon, 0).await;
        let mut calls = Vec::new();
        for _ in 0..250 {
            let begun = call(&mut client, "WatchService/ListWatches").await;
            let (response, mut body) = begun.unwrap();
            body.send_data(list.clone(), true).unwrap();
            calls.push(response);
        }
        clients.push((client, calls));
    }
    let mut refusals = 0;
    let mut waiting = Vec::new();
    for (_, calls) in &mut clients {
        for response in calls.drain(..) {
            let response = within("an answer", response).await.unwrap();
            if response.headers().contains_key("grpc-status") {
                refusals += 1;
            } else {
                waiting.push(response);
            }
        }
    }
    assert!(refusals > 0 && !waiting.is_empty());
    let now = scene.daemon.status().await;
    assert!(now.memory_used_bytes <= MEMORY);
    let more = now
        .rss_bytes
        .unwrap()
        .saturating_sub(before.rss_bytes.unwrap());
    assert!(more < 4 * MEMORY, "{} MiB more", more >> 20);
    assert!(neighbour().await < SOON);
    drop((waiting, clients));
    scene
        .daemon
        .until("the counts to be as before", |status| {
            status.request_bytes < LITTLE
        })
        .await;
}

/// Polls that wait are counted as memory too, and end when their client has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_polls_stay_within_the_memory() {
    let scene = Scene::new(Daemon::start("[limits]\nmemory = \"4MiB\"").await, "", "").await;
    let before = scene.daemon.status().await;
    let wait = framed(&PollRequest {
        r#loop: Some(scene.target.clone()),
        timeout: Some(lasting(PATIENCE)),
        filter: Some(Filter {
            watch_ids: vec![u64::MAX],
            ..Filter::default()
        }),
        ..PollRequest::default()
    });
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = connection(&scene.daemon, 65_535).await;
        let mut calls = Vec::new();
        for _ in 0..1000 {
            let (response, mut body) = call(&mut client, "EventService/Poll").await.unwrap();
            body.send_data(wait.clone(), true).unwrap();
            calls.push(response);
        }
        clients.push((client, calls));
    }
    let last = clients[1].1.pop().unwrap();
    assert_eq!(status(last).await, Some(Code::ResourceExhausted));
    let now = scene.daemon.status().await;
    assert!(now.poll_bytes > 0 && now.memory_used_bytes <= 4 << 20);
    // The poll of another client waits as usual.
    let request = PollRequest {
        r#loop: Some(scene.target.clone()),
        timeout: Some(crate::common::millis(10)),
        ..PollRequest::default()
    };
    scene.daemon.events().poll(request).await.unwrap();
    drop(clients);
    scene
        .daemon
        .until("the counts to be as before", |status| {
            status.poll_bytes == 0 && status.open_fds <= before.open_fds
        })
        .await;
}

/// Returns calls as bytes to be written at once: HTTP/2 frames (RFC 9113) with headers from the
/// static table and literals of HPACK (RFC 7541).
fn pipelined(calls: u32) -> Vec<u8> {
    fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        bytes.extend(&len[1..]);
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
    }
    fn text(block: &mut Vec<u8>, text: &str) {
        block.push(text.len().try_into().unwrap());
        block.extend(text.as_bytes());
    }
    // From the static table: POST, http; then by name: path, authority, content type, te.
    let mut block = vec![0x83, 0x86, 0x04];
    text(&mut block, "/evloopd.v1.AdminService/GetStatus");
    block.push(0x01);
    text(&mut block, "localhost");
    block.extend([0x0f, 0x10]);
    text(&mut block, "application/grpc");
    block.push(0x00);
    text(&mut block, "te");
    text(&mut block, "trailers");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, 4, 0, 0, &[]);
    for call in 0..calls {
        frame(&mut bytes, 1, 4, call * 2 + 1, &block);
        frame(&mut bytes, 0, 1, call * 2 + 1, &[0; 5]);
    }
    bytes
}

/// A connection with many calls at once takes no more than its share of the thread that serves it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_do_not_delay_other_clients() {
    let daemon = Daemon::start("[server]\nworker_threads = 1").await;
    let bytes = pipelined(60_000);
    let neighbour = neighbour(&daemon);
    for _ in 0..3 {
        let mut socket = std::os::unix::net::UnixStream::connect(&daemon.socket).unwrap();
        let mut answers = socket.try_clone().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            // Reads until the daemon closes the connection: it has more calls at once than allowed.
            let _ = std::io::copy(&mut answers, &mut std::io::sink());
        });
        let bytes = bytes.clone();
        let writing = std::thread::spawn(move || {
            let _ = socket.write_all(&bytes);
            let _ = socket.shutdown(std::net::Shutdown::Write);
        });
        within("the calls to be over", reading).await.unwrap();
        writing.join().unwrap();
    }
    let longest = neighbour().await;
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

/// Unread snapshots hold the state that has changed since, once for all of them, and it is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_snapshots_stay_within_the_memory() {
    const MEMORY: u64 = 32 << 20;
    const LARGE: u64 = 100_000;
    let mut scene = Scene::new(Daemon::start("[limits]\nmemory = \"32MiB\"").await, "", "").await;
    let mut spec = shell("sleep 1000");
    spec.env = [("LARGE".to_owned(), "x".repeat(100_000))].into();
    let mut children = Vec::new();
    for _ in 0..8 {
        children.push(scene.add(Spec::Process(spec.clone())).await);
    }
    let subscribe = framed(&SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Snapshot.into())),
        ..SubscribeRequest::default()
    });
    let mut client = connection(&scene.daemon, 0).await;
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let (response, mut body) = call(&mut client, "EventService/Subscribe").await.unwrap();
        body.send_data(subscribe.clone(), true).unwrap();
        let response = within("an answer", response).await.unwrap();
        assert!(!response.headers().contains_key("grpc-status"));
        waiting.push(response);
    }
    for child in children {
        scene.remove(child).await;
    }
    let now = scene.daemon.status().await;
    assert!(now.memory_used_bytes <= MEMORY);
    assert!(
        (8 * LARGE..MEMORY / 2).contains(&now.snapshot_bytes),
        "{now:?}"
    );
    // A snapshot for another client fits.
    let request = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Snapshot.into())),
        ..SubscribeRequest::default()
    };
    scene.daemon.events().subscribe(request).await.unwrap();
    let many = PollRequest {
        max_events: 65_537,
        ..PollRequest::default()
    };
    let error = scene.daemon.events().poll(many).await;
    refused(error, Code::InvalidArgument, "INVALID_FIELD");
    drop((waiting, client));
    scene
        .daemon
        .until("the counts to be as before", |status| {
            status.snapshot_bytes == 0
        })
        .await;
}

/// A client that stopped, as by SIGSTOP, with a stream that it does not read: the daemon closes its
/// connection and frees all that it held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_stopped_clients_are_closed() {
    let daemon = Daemon::start("[server]\nkeepalive = \"1s\"").await;
    let mut scene = Scene::new(daemon, "", "").await;
    let id = scene.spawn(shell("yes | head -c 4000000")).await;
    scene.closed(id).await;
    let before = scene.daemon.status().await;
    let oldest = framed(&SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Oldest.into())),
        ..SubscribeRequest::default()
    });
    let mut stopped = Vec::new();
    for _ in 0..10 {
        let socket = std::os::unix::net::UnixStream::connect(&scene.daemon.socket).unwrap();
        socket.set_nonblocking(true).unwrap();
        // The socket stays open, and nothing reads from it any more.
        stopped.push(socket.try_clone().unwrap());
        let socket = UnixStream::from_std(socket).unwrap();
        let mut client = h2::client::Builder::new();
        client.initial_window_size(1 << 30);
        client.initial_connection_window_size(1 << 30);
        let (send, connection) = client.handshake(socket).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut client = send.ready().await.unwrap();
        let (response, mut body) = call(&mut client, "EventService/Subscribe").await.unwrap();
        body.send_data(oldest.clone(), true).unwrap();
        within("a header", response).await.unwrap();
        connection.abort();
        let _ = connection.await;
    }
    let neighbour = neighbour(&scene.daemon);
    scene
        .daemon
        .until("the streams to end", |status| {
            status.streams <= before.streams
        })
        .await;
    assert!(neighbour().await < SOON);
    scene
        .daemon
        .until("the counts to be as before", |status| {
            status.open_fds <= before.open_fds
        })
        .await;
    drop(stopped);
}

/// A principal is refused connections beyond its own limit, and the other places stay free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principal_cannot_take_all_places() {
    let config = "[server]\nmax_connections = 4\nmax_connections_per_principal = 3";
    let daemon = Daemon::start(config).await;
    let served = daemon.another_channel().await;
    let ask = async |channel| {
        let request = GetServerInfoRequest {};
        AdminServiceClient::new(channel)
            .get_server_info(request)
            .await
    };
    ask(served.clone()).await.unwrap();
    let third = daemon.another_channel().await;
    ask(third.clone()).await.unwrap();
    let fourth = daemon.another_channel().await;
    refused(ask(fourth).await, Code::ResourceExhausted, "LIMIT");
    drop((served, third));
    within("a place", async {
        while ask(daemon.another_channel().await).await.is_err() {}
    })
    .await;
}
