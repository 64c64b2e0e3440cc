//! Malformed input, and clients that are not allowed to use the daemon.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use evloopd::proto::admin_service_client::AdminServiceClient;
use evloopd::proto::*;
use evloopd::sparing::LINES_PER_SECOND;
use hyper_util::rt::TokioIo;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::common::{Daemon, Handover, Scene, refused, within};

/// Sends bytes to the service socket, and reads until the daemon closes the connection.
fn shout(daemon: &Daemon, bytes: &[u8]) {
    let mut stream = UnixStream::connect(&daemon.socket).unwrap();
    // The daemon may hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn garbage_on_the_service_socket_does_no_harm() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let before = scene.daemon.open_fds().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let hash = |n: u32| n.wrapping_mul(2_654_435_761).to_le_bytes()[2];
    let noise: Vec<u8> = (0..65_536).map(hash).collect();
    for _ in 0..20 {
        shout(&scene.daemon, b"");
        shout(&scene.daemon, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        shout(&scene.daemon, &noise);
        shout(&scene.daemon, &preface[..10]);
        shout(&scene.daemon, &[preface.as_slice(), &noise].concat());
        // A frame that announces 16 MiB.
        shout(
            &scene.daemon,
            &[preface.as_slice(), &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        );
    }
    scene.settle().await;
    assert!(scene.daemon.open_fds().await <= before + 2, "it leaks");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn garbage_on_the_handover_socket_is_refused() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let path = scene.daemon.info().await.handover_socket;
    let before = scene.daemon.open_fds().await;
    let (fd, _other) = UnixStream::pair().unwrap();
    let connect = || Handover::connect(std::path::Path::new(&path));
    for request in [
        b"x".as_slice(),
        b"evloopd2",
        b"evloopd1",
        b"evloopd1short",
        &[0; 4096],
        &[&b"evloopd1"[..], &[0; 17]].concat(),
    ] {
        let (reply, back) = connect().ask(request, &[]);
        assert!(!reply.is_empty() && reply[0] != 0, "{request:?}");
        assert!(back.is_none());
        if request != b"evloopd1" {
            let (reply, _) = connect().ask(request, &[fd.as_fd(); 10]);
            assert!(
                !reply.is_empty() && reply[0] != 0,
                "{request:?} with descriptors"
            );
        }
    }
    let guessed = [&b"evloopd1"[..], &[0; 16]].concat();
    let (reply, _) = connect().ask(&guessed, &[]);
    assert_eq!(reply[0], 4, "no such slot");
    let (reply, _) = connect().ask(&guessed, &[fd.as_fd(); 2]);
    assert_ne!(
        reply[0], 0,
        "TAKE has no descriptors, GIVE has one for each slot"
    );
    let many = connect().give_all(&[fd.as_fd(); 253]);
    assert_eq!(many.len(), 253);
    let held = scene.daemon.open_fds().await;
    assert!(
        (before + 253..before + 260).contains(&held),
        "{before} before, {held} now"
    );
    scene.settle().await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stranger_is_not_served() {
    if !rustix::process::getuid().is_root() {
        eprintln!("NOT TESTED: to call as another user needs root");
        return;
    }
    let daemon = Daemon::start("[server]\nmode = \"0666\"\n").await;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(daemon.dir.path(), open).unwrap();
    let (socket, handover) = (daemon.socket.clone(), daemon.info().await.handover_socket);
    // A user id belongs to a thread, and the peer of a socket is the thread that connected it.
    let connect = move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let (fd, _other) = UnixStream::pair().unwrap();
        let (reply, _) =
            Handover::connect(std::path::Path::new(&handover)).ask(b"evloopd1", &[fd.as_fd()]);
        (UnixStream::connect(socket).unwrap(), reply)
    };
    let (stream, reply) = std::thread::spawn(connect).join().unwrap();
    assert_eq!(reply[0], 6, "not served");

    stream.set_nonblocking(true).unwrap();
    let mut stream = Some(tokio::net::UnixStream::from_std(stream).unwrap());
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| std::io::Error::other("connected once")) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let answer = AdminServiceClient::new(channel.clone())
        .get_server_info(GetServerInfoRequest {})
        .await;
    refused(answer, Code::PermissionDenied, "PERMISSION_DENIED");
    let run = process_service_client::ProcessServiceClient::new(channel)
        .run(RunRequest::default())
        .await;
    refused(run.map(drop), Code::PermissionDenied, "PERMISSION_DENIED");
    assert_eq!(daemon.info().await.principal, "uid:0");
}

/// A flood of refused clients makes a few log lines a second; they say how many were left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn strangers_cannot_flood_the_log() {
    if !rustix::process::getuid().is_root() {
        eprintln!("NOT TESTED: to call as another user needs root");
        return;
    }
    let daemon = Daemon::start("[server]\nmode = \"0666\"\n").await;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(daemon.dir.path(), open).unwrap();
    let handover = daemon.info().await.handover_socket;
    let before = daemon.open_fds().await;
    let started = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    let flood = {
        let (socket, over) = (daemon.socket.clone(), Arc::clone(&over));
        move || {
            let nobody = rustix::process::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let mut count = 0_u64;
            while !over.load(Ordering::Relaxed) {
                drop(UnixStream::connect(&socket).unwrap());
                drop(Handover::connect(std::path::Path::new(&handover)));
                count += 2;
            }
            count
        }
    };
    let flood = std::thread::spawn(flood);
    let left_out = |log: &str| {
        let numbers = log.lines().filter_map(|line| line.split_once("left_out="));
        let numbers = numbers.map(|(_, rest)| rest.trim().parse::<u64>().unwrap());
        numbers.sum::<u64>()
    };
    within("a line with the number of lines left out", async {
        while left_out(&daemon.log()) == 0 {
            // Other clients are served in the meantime.
            let asked = Instant::now();
            daemon.info().await;
            assert!(asked.elapsed() < Duration::from_secs(5));
        }
    })
    .await;
    over.store(true, Ordering::Relaxed);
    let count = flood.join().unwrap();
    let same = |s: &GetStatusResponse| s.open_fds.is_some_and(|now| now <= before);
    daemon
        .until("all refused connections to be closed", same)
        .await;
    let log = daemon.log();
    let seconds = started.elapsed().as_secs() + 1;
    let lines = log.matches("denied").count();
    let most = usize::try_from((seconds + 1) * u64::from(LINES_PER_SECOND)).unwrap();
    assert!(
        lines <= most,
        "{lines} lines in {seconds} s for {count} strangers"
    );
    assert!(left_out(&log) + u64::try_from(lines).unwrap() <= count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_the_daemons_user_may_connect_to_the_sockets() {
    let daemon = Daemon::start("").await;
    let info = daemon.info().await;
    for path in [info.socket, info.handover_socket] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{path}");
    }
}

/// A client that connects and sends nothing takes one of the places only for a limited time.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_connections_lose_their_places() {
    let config = "[server]\nmax_connections = 4\nhandshake_timeout = \"1s\"";
    let daemon = Daemon::start(config).await;
    let before = daemon.open_fds().await;
    let silent: Vec<_> = (0..8)
        .map(|n| {
            let mut stream = UnixStream::connect(&daemon.socket).unwrap();
            // Some send a part of the HTTP/2 preface, which counts only when it is complete.
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
            stream.write_all(&preface[..n * 3]).unwrap();
            stream
        })
        .collect();
    let channel = within("a place", daemon.another_channel()).await;
    let mut admin = AdminServiceClient::new(channel);
    admin
        .get_server_info(GetServerInfoRequest {})
        .await
        .unwrap();
    // The daemon has closed the silent connections.
    for mut stream in silent {
        let read = tokio::task::spawn_blocking(move || stream.read_to_end(&mut Vec::new()));
        within("the end of a silent connection", read)
            .await
            .unwrap()
            .unwrap();
    }
    drop(admin);
    daemon
        .until("as few open descriptors as before", |status| {
            status.open_fds.is_some_and(|now| now <= before)
        })
        .await;
}

/// More silent connections to the handover socket than it has places do not keep a client out.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_connections_to_the_handover_socket_keep_no_client_out() {
    let daemon = Daemon::start("").await;
    let path = daemon.info().await.handover_socket;
    let started = Instant::now();
    let silent: Vec<_> = (0..2 * evloopd::handover::CONNECTIONS_MAX)
        .map(|_| Handover::connect(std::path::Path::new(&path)))
        .collect();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let giving = tokio::task::spawn_blocking(move || {
        let slot = Handover::connect(std::path::Path::new(&path)).give(&ours);
        assert_eq!(slot.len(), 16);
    });
    giving.await.unwrap();
    // A silent connection would otherwise keep its place for 30 s.
    assert!(started.elapsed() < evloopd::handover::IDLE_MAX / 2);
    drop(silent);
}
