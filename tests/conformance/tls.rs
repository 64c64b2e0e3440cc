//! Connections with TLS on which the daemon is the client.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AbortRequest, CloseReason, ConnectionSpec, Stream, TakeFdRequest, TlsOptions, TlsSession,
    WaterMarks, watch,
};
use tonic::Code;

use crate::CONFIG;
use crate::common::tls::{self, Served};
use crate::common::{Daemon, Scene, by_id, refused, tcp};

/// Runs one case on a daemon with certificates.
pub(crate) async fn on(policy: &str, backend: &str, case: impl AsyncFnOnce(&mut Scene)) {
    let config = format!("{CONFIG}{}", tls::sections());
    // The host's trusted authorities.
    let authorities = format!("SSL_CERT_FILE={}", tls::file("ca.pem").display());
    let daemon = Daemon::start_by(&["env", &authorities], &config).await;
    let mut scene = Scene::new(daemon, policy, backend).await;
    case(&mut scene).await;
    scene.finish().await;
}

/// Runs each case as a separate test on each backend, on a daemon with certificates.
macro_rules! on_each_backend_with_tls {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn epoll() {
                crate::tls::on("", "epoll", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn poll() {
                crate::tls::on("", "poll", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn select() {
                crate::tls::on("", "select", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn io_uring() {
                crate::tls::on("proactor", "io_uring", super::$case).await;
            }
        }
    )+};
}
pub(crate) use on_each_backend_with_tls;

on_each_backend_with_tls!(
    a_connection_is_encrypted_and_tells_what_was_negotiated,
    a_cut_stream_is_told_from_a_clean_end,
    a_close_flushes_and_does_not_wait_for_an_answer,
    an_aborted_connection_whose_peer_reads_nothing_ends,
    the_stream_is_bounded_and_ordered_in_both_directions,
    a_paused_connection_reads_what_came_with_the_handshake_later,
    a_session_is_resumed_under_the_trust_that_it_began_with,
);

pub(crate) fn spec(port: u16, options: TlsOptions) -> ConnectionSpec {
    ConnectionSpec {
        tls: Some(options),
        ..tcp("localhost", port.into())
    }
}

/// Trusts the authority of the tests.
pub(crate) fn trusting() -> TlsOptions {
    TlsOptions {
        config: "trusting".into(),
        ..TlsOptions::default()
    }
}

pub(crate) fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Connects the daemon to a server, and does the server's side.
async fn connected(scene: &mut Scene, options: ConnectionSpec) -> (u64, Served) {
    let (listener, port) = listener();
    let spec = ConnectionSpec {
        tls: Some(options.tls.clone().unwrap_or_else(trusting)),
        ..tcp("localhost", port.into())
    };
    let spec = ConnectionSpec {
        target: spec.target,
        tls: spec.tls,
        ..options
    };
    let id = scene.add(Spec::Connection(spec)).await;
    let socket = listener.accept().unwrap().0;
    let peer = tls::serve(socket, tls::server("web", false)).unwrap();
    scene.recorder.first(id, "connected").await;
    (id, peer)
}

pub(crate) async fn session(scene: &mut Scene, id: u64) -> TlsSession {
    match scene.recorder.first(id, "connected").await.kind {
        Some(Kind::Connected(connected)) => connected.tls.expect("what was negotiated"),
        other => panic!("{other:?}"),
    }
}

async fn a_connection_is_encrypted_and_tells_what_was_negotiated(scene: &mut Scene) {
    let (listener, port) = listener();
    let options = TlsOptions {
        alpn: vec!["new".into(), "old".into()],
        ..trusting()
    };
    let id = scene.add(Spec::Connection(spec(port, options))).await;
    let mut server = tls::server("web", false);
    server.alpn_protocols = vec![b"old".to_vec()];
    let socket = listener.accept().unwrap().0;
    let mut peer = tls::serve(socket, server).unwrap();
    assert_eq!(peer.conn.server_name(), Some("localhost"));

    let negotiated = session(scene, id).await;
    assert_eq!(negotiated.version, "TLSv1.3");
    assert_eq!(negotiated.cipher_suite, "TLS_AES_256_GCM_SHA384");
    assert_eq!(
        (negotiated.alpn.as_str(), negotiated.resumed),
        ("old", false)
    );
    assert_eq!(negotiated.peer_certificates.len(), 1);
    assert!(negotiated.peer_certificate_expires.is_some());
    let Some(watch::Status::Transport(status)) = scene.get(id).await.status else {
        panic!("a connection has a transport's status");
    };
    assert!(status.connected);
    let shown = TlsSession {
        peer_certificates: Vec::new(),
        ..negotiated
    };
    assert_eq!(status.tls, Some(shown));

    scene.write(id, b"ping").await;
    let mut ping = [0; 4];
    peer.read_exact(&mut ping).unwrap();
    peer.write_all(b"pong").unwrap();
    scene.recorder.first(id, "data").await;
    let request = TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..TakeFdRequest::default()
    };
    let taken = scene.daemon.watches().take_fd(request).await;
    refused(taken, Code::FailedPrecondition, "WRONG_STATE");
    peer.conn.send_close_notify();
    peer.flush().unwrap();
    assert_eq!(
        tls::read_to_end(&mut peer),
        b"",
        "the daemon ends its side too"
    );
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"pong");
    let kinds = ["added", "connected", "data", "eof", "closed"];
    assert_eq!(scene.recorder.kinds(id), kinds);

    // The second connection resumes the session of the first.
    for resumed in [false, true] {
        let (id, mut peer) = connected(scene, ConnectionSpec::default()).await;
        // A session can be resumed only with the same server, which this one is not.
        assert!(!session(scene, id).await.resumed, "{resumed}");
        peer.conn.send_close_notify();
        peer.flush().unwrap();
        scene.closed(id).await;
    }
}

async fn a_cut_stream_is_told_from_a_clean_end(scene: &mut Scene) {
    const SIZE: usize = 1 << 20;
    let send = |peer: &mut Served| {
        peer.write_all(&vec![7; SIZE]).unwrap();
        peer.flush().unwrap();
    };
    for clean in [false, true] {
        for allowed in [false, true] {
            let options = ConnectionSpec {
                tls: Some(TlsOptions {
                    allow_truncation: allowed,
                    ..trusting()
                }),
                ..ConnectionSpec::default()
            };
            let (id, mut peer) = connected(scene, options).await;
            send(&mut peer);
            if clean {
                peer.conn.send_close_notify();
                peer.flush().unwrap();
            }
            drop(peer);
            let closed = scene.closed(id).await;
            let whole = clean || allowed;
            let reason = match whole {
                true => CloseReason::Completed,
                false => CloseReason::Truncated,
            };
            assert_eq!(closed.reason(), reason, "clean {clean}, allowed {allowed}");
            let kinds = scene.recorder.kinds(id);
            assert_eq!(kinds.contains(&"eof"), whole);
            assert_eq!(scene.recorder.bytes(id, Stream::Input).len(), SIZE);
        }
    }
    let (id, mut peer) = connected(scene, ConnectionSpec::default()).await;
    peer.write_all(b"some").unwrap();
    peer.flush().unwrap();
    scene.recorder.first(id, "data").await;
    rustix::net::sockopt::set_socket_linger(&peer.sock, Some(Duration::ZERO)).unwrap();
    drop(peer);
    let closed = scene.closed(id).await;
    assert_eq!(closed.error.expect("an error").name, "ECONNRESET");
}

async fn a_close_flushes_and_does_not_wait_for_an_answer(scene: &mut Scene) {
    const SIZE: usize = 700_000;
    let (id, mut peer) = connected(scene, ConnectionSpec::default()).await;
    scene.write(id, &vec![1; SIZE]).await;
    // The peer writes, and never answers close_notify.
    peer.write_all(&[2; 5000]).unwrap();
    let reader = std::thread::spawn(move || (tls::read_to_end(&mut peer).len(), peer));
    scene.remove(id).await;
    let closed = scene.closed(id).await;
    assert_eq!(
        (closed.reason(), closed.unsent_bytes),
        (CloseReason::Removed, 0)
    );
    let (received, _peer) = reader.join().unwrap();
    assert_eq!(received, SIZE, "all bytes, then close_notify");

    // A stopped loop sends nothing more, but the end is clean.
    let (id, mut peer) = connected(scene, ConnectionSpec::default()).await;
    scene.stop().await;
    scene.remove(id).await;
    assert_eq!(tls::read_to_end(&mut peer), b"");
    scene.run().await;

    // An abort resets.
    let (id, mut peer) = connected(scene, ConnectionSpec::default()).await;
    let request = AbortRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..AbortRequest::default()
    };
    scene.daemon.transports().abort(request).await.unwrap();
    assert!(peer.read(&mut [0; 1]).is_err());
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Aborted);
}

/// What was being sent when it was aborted is not sent again and again.
async fn an_aborted_connection_whose_peer_reads_nothing_ends(scene: &mut Scene) {
    const PART: usize = 1 << 20;
    let (id, _peer) = connected(scene, ConnectionSpec::default()).await;
    let mut taken = 0;
    loop {
        let answer = scene.write_at(id, &vec![1; PART], Some(taken)).await;
        let answer = answer.unwrap();
        if answer.taken == taken {
            break;
        }
        taken = answer.taken;
    }
    let request = AbortRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..AbortRequest::default()
    };
    scene.daemon.transports().abort(request).await.unwrap();
    let closed = scene.closed(id).await;
    assert_eq!(closed.reason(), CloseReason::Aborted);
    assert!(closed.unsent_bytes > 0);
}

async fn the_stream_is_bounded_and_ordered_in_both_directions(scene: &mut Scene) {
    const SIZE: usize = 16 << 20;
    let pattern = |at: usize| u8::try_from(at * 31 % 251).unwrap();
    let bytes: Vec<u8> = (0..SIZE).map(pattern).collect();
    let options = ConnectionSpec {
        water_marks: Some(WaterMarks {
            high_bytes: Some(100_000),
            low_bytes: Some(20_000),
        }),
        ..ConnectionSpec::default()
    };
    let (id, mut peer) = connected(scene, options).await;
    // While nobody reads, no more than the buffer is taken, and it is said once.
    let mut taken = 0;
    while taken < SIZE {
        let end = SIZE.min(taken + (1 << 20));
        let answer = scene
            .write_at(id, &bytes[taken..end], Some(taken as u64))
            .await;
        let now = usize::try_from(answer.unwrap().taken).unwrap();
        if now == taken {
            break;
        }
        taken = now;
    }
    assert!(taken < SIZE, "nobody reads, and all was taken");
    scene.recorder.first(id, "write_paused").await;
    let expected = bytes[..taken].to_vec();
    let reader = std::thread::spawn(move || {
        let mut read = vec![0; taken];
        peer.read_exact(&mut read).unwrap();
        assert!(read == expected, "the bytes arrive in order");
        peer
    });
    scene.recorder.first(id, "write_resumed").await;
    let mut peer = reader.join().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || {
        peer.write_all(&sent).unwrap();
        peer.conn.send_close_notify();
        peer.flush().unwrap();
        peer
    });
    scene.closed(id).await;
    writer.join().unwrap();
    assert!(scene.recorder.bytes(id, Stream::Input) == bytes);
    let pauses = |kind| {
        scene
            .recorder
            .kinds(id)
            .iter()
            .filter(|k| **k == kind)
            .count()
    };
    assert_eq!(pauses("write_paused"), pauses("write_resumed"));
}

async fn a_paused_connection_reads_what_came_with_the_handshake_later(scene: &mut Scene) {
    let (listener, port) = listener();
    let options = ConnectionSpec {
        start_paused: true,
        ..spec(port, trusting())
    };
    let id = scene.add(Spec::Connection(options)).await;
    let socket = listener.accept().unwrap().0;
    // The server's first bytes and its end go out with the end of its handshake.
    let mut peer = tls::serve(socket, tls::server("web", false)).unwrap();
    peer.write_all(b"220 ready").unwrap();
    peer.conn.send_close_notify();
    peer.flush().unwrap();
    scene.recorder.first(id, "connected").await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added", "connected"]);
    scene.pause_reading(id, false).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"220 ready");
}

async fn a_session_is_resumed_under_the_trust_that_it_began_with(scene: &mut Scene) {
    let (listener, port) = listener();
    let server = tls::server("web", false);
    let hosts = TlsOptions::default;
    let given = || TlsOptions {
        ca_pem: tls::pem("ca.pem"),
        ..hosts()
    };
    let client = || TlsOptions {
        config: "client".into(),
        ..hosts()
    };
    let mut seen = Vec::new();
    for options in [
        hosts(),
        hosts(),
        trusting(),
        hosts(),
        trusting(),
        given(),
        given(),
        client(),
        client(),
    ] {
        let spec = ConnectionSpec {
            tls: Some(options),
            ..tcp("localhost", port.into())
        };
        let id = scene.add(Spec::Connection(spec)).await;
        let socket = listener.accept().unwrap().0;
        let mut peer = tls::serve(socket, server.clone()).unwrap();
        seen.push(session(scene, id).await.resumed);
        // The tickets come before it.
        peer.write_all(b"x").unwrap();
        scene.recorder.first(id, "data").await;
        scene.remove(id).await;
    }
    assert_eq!(
        seen,
        [false, true, false, true, true, false, false, false, false]
    );
}
