//! Connections with TLS on which the daemon is the client.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AbortRequest, CloseReason, Closed, ConnectionSpec, Stream, TakeFdRequest, TlsOptions,
    TlsSession, WaterMarks, watch,
};
use tonic::Code;

use crate::CONFIG;
use crate::common::tls::{self, Served};
use crate::common::{Daemon, Scene, by_id, millis, refused, tcp};

/// Runs one case on a daemon with certificates.
pub(crate) async fn on(policy: &str, backend: &str, case: impl AsyncFnOnce(&mut Scene)) {
    let config = format!("{CONFIG}{}", tls::sections());
    let mut scene = Scene::new(Daemon::start(&config).await, policy, backend).await;
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
    certificates_that_do_not_fit_are_refused_in_words,
    a_refused_client_certificate_is_told_with_its_alert,
    a_cut_stream_is_told_from_a_clean_end,
    a_close_flushes_and_does_not_wait_for_an_answer,
    the_stream_is_bounded_and_ordered_in_both_directions,
    a_paused_connection_reads_what_came_with_the_handshake_later,
    a_handshake_that_does_not_end_is_given_up,
    a_handshake_under_way_can_be_ended,
    options_that_do_not_fit_are_refused,
);

fn spec(port: u16, options: TlsOptions) -> ConnectionSpec {
    ConnectionSpec {
        tls: Some(options),
        ..tcp("localhost", port.into())
    }
}

/// Trusts the authority of the tests.
fn trusting() -> TlsOptions {
    TlsOptions {
        config: "trusting".into(),
        ..TlsOptions::default()
    }
}

fn listener() -> (TcpListener, u16) {
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

/// Returns the text of the error with which a handshake failed.
fn why(closed: &Closed) -> &str {
    assert_eq!(closed.reason(), CloseReason::Error, "{closed:?}");
    let error = closed.error.as_ref().expect("an error");
    assert_eq!(
        (error.step.as_str(), error.name.as_str()),
        ("handshake", "EPROTO")
    );
    &error.message
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

async fn certificates_that_do_not_fit_are_refused_in_words(scene: &mut Scene) {
    let with = |ca: &str, server_name: &str| TlsOptions {
        ca_pem: tls::pem(ca),
        server_name: server_name.into(),
        ..TlsOptions::default()
    };
    let cases = [
        (
            "other",
            with("ca.pem", ""),
            "valid for other.test, not for localhost",
        ),
        ("expired", with("ca.pem", ""), "expired on 2020-05-17"),
        (
            "stranger",
            with("ca.pem", ""),
            "no trusted authority has signed",
        ),
        (
            "self",
            with("ca.pem", ""),
            "no trusted authority has signed",
        ),
        (
            "self",
            with("self.pem", "elsewhere.test"),
            "not for elsewhere.test",
        ),
        (
            "web",
            TlsOptions::default(),
            "no trusted authority has signed",
        ),
    ];
    for (server, options, wanted) in cases {
        let (listener, port) = listener();
        let id = scene.add(Spec::Connection(spec(port, options))).await;
        let socket = listener.accept().unwrap().0;
        let error = tls::serve(socket, tls::server(server, false)).unwrap_err();
        let closed = scene.closed(id).await;
        assert!(why(&closed).contains(wanted), "{closed:?}");
        assert!(
            error.to_string().contains("lert"),
            "the server is told: {error}"
        );
        assert_eq!(scene.recorder.kinds(id), ["added", "closed"]);
    }
    // A self-signed certificate that is itself trusted passes, though it is marked as an authority's.
    let (listener, port) = listener();
    let id = scene
        .add(Spec::Connection(spec(port, with("self.pem", "localhost"))))
        .await;
    let socket = listener.accept().unwrap().0;
    let _peer = tls::serve(socket, tls::server("self", false)).unwrap();
    session(scene, id).await;
}

async fn a_refused_client_certificate_is_told_with_its_alert(scene: &mut Scene) {
    let cases = [
        ("trusting", "it requires one"),
        ("stranger", "it does not know the authority"),
    ];
    for (config, wanted) in cases {
        for _ in 0..5 {
            let (listener, port) = listener();
            let options = TlsOptions {
                config: config.into(),
                ..TlsOptions::default()
            };
            let id = scene.add(Spec::Connection(spec(port, options))).await;
            let socket = listener.accept().unwrap().0;
            let served = std::thread::spawn(|| tls::serve(socket, tls::server("web", true)));
            // In TLS 1.3 the client is done before the server has seen its certificate.
            let written = scene.write_at(id, b"secret", None).await;
            served.join().unwrap().unwrap_err();
            let closed = scene.closed(id).await;
            let text = why(&closed);
            assert!(text.contains("the peer refuses the certificate"), "{text}");
            assert!(text.contains(wanted), "{text}");
            let unsent = if written.is_ok() { 6 } else { 0 };
            assert_eq!(closed.unsent_bytes, unsent);
        }
    }
    let (listener, port) = listener();
    let options = TlsOptions {
        config: "client".into(),
        ..TlsOptions::default()
    };
    let id = scene.add(Spec::Connection(spec(port, options))).await;
    let socket = listener.accept().unwrap().0;
    let mut peer = tls::serve(socket, tls::server("web", true)).unwrap();
    session(scene, id).await;
    scene.write(id, b"secret").await;
    let mut secret = [0; 6];
    peer.read_exact(&mut secret).unwrap();
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

async fn a_handshake_that_does_not_end_is_given_up(scene: &mut Scene) {
    let (listener, port) = listener();
    let options = TlsOptions {
        handshake_timeout: Some(millis(50)),
        ..trusting()
    };
    let id = scene.add(Spec::Connection(spec(port, options))).await;
    let silent = listener.accept().unwrap().0;
    let closed = scene.closed(id).await;
    let error = closed.error.expect("an error");
    assert_eq!(
        (error.name.as_str(), error.step.as_str()),
        ("ETIMEDOUT", "handshake")
    );
    drop(silent);

    let id = scene.add(Spec::Connection(spec(port, trusting()))).await;
    drop(listener.accept().unwrap());
    let closed = scene.closed(id).await;
    assert_eq!(closed.error.expect("an error").step, "handshake");

    let id = scene.add(Spec::Connection(spec(port, trusting()))).await;
    let mut web = listener.accept().unwrap().0;
    web.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let closed = scene.closed(id).await;
    assert!(
        why(&closed).contains("does not speak TLS: it sent `HTTP/1.1`"),
        "{closed:?}"
    );
}

async fn a_handshake_under_way_can_be_ended(scene: &mut Scene) {
    let (listener, port) = listener();
    let accepted = |listener: &TcpListener| listener.accept().unwrap().0;
    let ended = |mut socket: TcpStream| {
        let mut hello = Vec::new();
        // The ClientHello, then the end or a reset.
        let _ = socket.read_to_end(&mut hello);
    };
    let id = scene.add(Spec::Connection(spec(port, trusting()))).await;
    let silent = accepted(&listener);
    scene.remove(id).await;
    ended(silent);
    let id = scene.add(Spec::Connection(spec(port, trusting()))).await;
    let silent = accepted(&listener);
    refused(
        scene.write_at(id, b"x", None).await,
        Code::FailedPrecondition,
        "WRONG_STATE",
    );
    let request = AbortRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..AbortRequest::default()
    };
    scene.daemon.transports().abort(request).await.unwrap();
    ended(silent);
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Aborted);
    // A handshake completes while the loop is stopped, and counts once it runs again.
    let id = scene.add(Spec::Connection(spec(port, trusting()))).await;
    let socket = accepted(&listener);
    scene.stop().await;
    let _peer = tls::serve(socket, tls::server("web", false)).unwrap();
    scene.run().await;
    session(scene, id).await;
}

async fn options_that_do_not_fit_are_refused(scene: &mut Scene) {
    let cases = [
        (
            "spec.connection.tls.config",
            TlsOptions {
                config: "absent".into(),
                ..TlsOptions::default()
            },
        ),
        (
            "spec.connection.tls.server_name",
            TlsOptions {
                server_name: "-no name-".into(),
                ..TlsOptions::default()
            },
        ),
        (
            "spec.connection.tls.alpn",
            TlsOptions {
                alpn: vec![String::new()],
                ..TlsOptions::default()
            },
        ),
        (
            "spec.connection.tls.ca_pem",
            TlsOptions {
                ca_pem: (&b"no PEM"[..]).into(),
                ..TlsOptions::default()
            },
        ),
        (
            "spec.connection.tls.handshake_timeout",
            TlsOptions {
                handshake_timeout: Some(millis(0)),
                ..TlsOptions::default()
            },
        ),
        (
            "spec.connection.tls.key_pem",
            TlsOptions {
                key_pem: tls::pem("client.key"),
                certificate_pem: tls::pem("client.pem"),
                ..TlsOptions::default()
            },
        ),
    ];
    for (field, options) in cases {
        let request = scene.request(Spec::Connection(spec(1, options)));
        let refusal = refused(
            scene.try_add(request).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert_eq!(refusal.fields, [field]);
    }
}
