//! Listeners with TLS.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    CloseReason, HandshakesFailed, InetAddress, ListenerSpec, ListenerStatus, Stream, TlsOptions,
    socket_address, watch,
};
use tonic::Code;

use crate::common::tls;
use crate::common::{Scene, millis, refused, tcp_listener};
use crate::listeners::{accepted, listen, port};
use crate::tls::{on_each_backend_with_tls, session};

on_each_backend_with_tls!(
    a_connection_is_accepted_after_its_handshake,
    the_certificate_is_chosen_by_name,
    client_certificates_are_verified_and_never_resumed_away,
    a_peer_that_has_ended_its_stream_may_be_gone,
    a_session_is_resumed,
    the_silent_hold_nobodys_place,
    failed_handshakes_are_counted_and_told_rarely,
    no_more_connections_are_open_than_the_limit,
    a_removed_listener_gives_its_handshakes_up,
    a_listener_needs_a_certificate,
);

fn spec(config: &str) -> ListenerSpec {
    ListenerSpec {
        tls: Some(TlsOptions {
            config: config.into(),
            ..TlsOptions::default()
        }),
        ..tcp_listener()
    }
}

async fn listening(scene: &mut Scene, spec: ListenerSpec) -> (u64, u16) {
    let id = listen(scene, spec).await;
    (id, port(scene, id).await)
}

fn reach(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

async fn status(scene: &Scene, id: u64) -> ListenerStatus {
    match scene.get(id).await.status {
        Some(watch::Status::Listener(status)) => status,
        other => panic!("{other:?}"),
    }
}

async fn failures(scene: &mut Scene, id: u64, nth: usize) -> HandshakesFailed {
    match scene.recorder.nth(id, "handshakes_failed", nth).await.kind {
        Some(Kind::HandshakesFailed(failed)) => failed,
        other => panic!("{other:?}"),
    }
}

async fn a_connection_is_accepted_after_its_handshake(scene: &mut Scene) {
    let mut with = spec("web");
    if let Some(tls) = &mut with.tls {
        tls.alpn = vec!["h2".into(), "http/1.1".into()];
    }
    let (id, port) = listening(scene, with).await;
    let raw = reach(port);
    // The listener has accepted the connection once it says that a handshake is under way.
    while status(scene, id).await.handshakes == 0 {
        tokio::task::yield_now().await;
    }
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);
    let mut config = tls::client(None);
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let mut peer = tls::shake(raw, config, "localhost").unwrap();
    assert_eq!(peer.conn.alpn_protocol(), Some(&b"h2"[..]));
    let connection = accepted(scene, id, 1).await;
    let negotiated = session(scene, connection).await;
    assert_eq!(
        (negotiated.alpn.as_str(), negotiated.server_name.as_str()),
        ("h2", "localhost")
    );
    assert!(negotiated.peer_certificates.is_empty());
    peer.write_all(b"ping").unwrap();
    scene.recorder.first(connection, "data").await;
    scene.write(connection, b"pong").await;
    let mut pong = [0; 4];
    peer.read_exact(&mut pong).unwrap();
    let status = status(scene, id).await;
    assert_eq!(
        (status.accepted, status.handshakes, status.open_connections),
        (1, 0, 1)
    );
    assert!(status.certificate_expires.is_some());
    peer.conn.send_close_notify();
    peer.flush().unwrap();
    assert_eq!(
        scene.closed(connection).await.reason(),
        CloseReason::Completed
    );
    assert_eq!(scene.recorder.bytes(connection, Stream::Input), b"ping");
}

/// Clients that read nothing leave the session tickets unread, so that the kernel resets their
/// connections when they close: after close_notify, which ends their stream in order.
async fn a_peer_that_has_ended_its_stream_may_be_gone(scene: &mut Scene) {
    let paused = ListenerSpec {
        start_paused: true,
        ..spec("web")
    };
    let (id, port) = listening(scene, paused).await;
    for nth in 1..=20 {
        let raw = reach(port);
        // Else close_notify would wait until the daemon's host acknowledges the bytes before it.
        raw.set_nodelay(true).unwrap();
        let mut peer = tls::shake(raw, tls::client(None), "localhost").unwrap();
        let connection = accepted(scene, id, nth).await;
        peer.write_all(b"all").unwrap();
        peer.conn.send_close_notify();
        peer.flush().unwrap();
        drop(peer);
        scene.pause_reading(connection, false).await;
        let closed = scene.closed(connection).await;
        let kinds = scene.recorder.kinds(connection);
        assert_eq!(
            closed.reason(),
            CloseReason::Completed,
            "{closed:?} after {kinds:?}"
        );
        assert!(kinds.contains(&"eof"));
        assert_eq!(scene.recorder.bytes(connection, Stream::Input), b"all");
    }
}

async fn the_certificate_is_chosen_by_name(scene: &mut Scene) {
    let shown = |port, name: &str| {
        tls::shake(reach(port), tls::client(None), name).map(|peer| {
            let chain = peer.conn.peer_certificates().unwrap();
            if chain[0] == tls::certificate("web") {
                "web"
            } else {
                "other"
            }
        })
    };
    let (_, named) = listening(scene, spec("named")).await;
    let (_, strict) = listening(scene, spec("strict")).await;
    for (name, wanted) in [
        ("localhost", "web"),
        ("a.example.org", "web"),
        ("other.test", "other"),
        ("OTHER.test", "other"),
        ("127.0.0.1", "web"),
    ] {
        assert_eq!(shown(named, name).unwrap(), wanted, "{name}");
    }
    // A name that no certificate has gets the default, which the client refuses; with strict_sni it
    // gets none.
    for (port, wanted) in [(named, "certificate"), (strict, "alert")] {
        let error = shown(port, "b.a.example.org").unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(shown(strict, "127.0.0.1").is_err(), "an address is no name");
    assert_eq!(shown(strict, "localhost").unwrap(), "web");
}

async fn client_certificates_are_verified_and_never_resumed_away(scene: &mut Scene) {
    let (id, port) = listening(scene, spec("mutual")).await;
    for (nth, name) in [(1, None), (2, Some("stranger"))] {
        // In TLS 1.3 a client is done before the server has seen its certificate.
        let mut peer = tls::shake(reach(port), tls::client(name), "localhost").unwrap();
        let refused = peer.read(&mut [0; 1]).unwrap_err().to_string();
        assert!(refused.contains("alert"), "{refused}");
        while status(scene, id).await.failed_handshakes < nth {
            tokio::task::yield_now().await;
        }
    }
    let first = failures(scene, id, 1).await;
    let why = first.error.unwrap().message;
    assert!(why.contains("the client showed no certificate"), "{why}");
    assert_eq!((first.count, first.total), (1, 1));

    let config = Arc::new(tls::client(Some("client")));
    for nth in 1..=2 {
        let mut peer = tls::shake(reach(port), Arc::clone(&config), "localhost").unwrap();
        peer.write_all(b"x").unwrap();
        let connection = accepted(scene, id, nth).await;
        let negotiated = session(scene, connection).await;
        assert!(!negotiated.resumed);
        assert_eq!(negotiated.peer_certificates.len(), 1);
        peer.conn.send_close_notify();
        peer.flush().unwrap();
        scene.closed(connection).await;
    }
}

async fn a_session_is_resumed(scene: &mut Scene) {
    let (id, port) = listening(scene, spec("web")).await;
    let config = Arc::new(tls::client(None));
    for (nth, resumed) in [(1, false), (2, true)] {
        let mut peer = tls::shake(reach(port), Arc::clone(&config), "localhost").unwrap();
        let connection = accepted(scene, id, nth).await;
        assert_eq!(session(scene, connection).await.resumed, resumed);
        // The tickets come with the first bytes.
        scene.write(connection, b"x").await;
        peer.read_exact(&mut [0]).unwrap();
        peer.conn.send_close_notify();
        peer.flush().unwrap();
        scene.closed(connection).await;
    }
}

async fn the_silent_hold_nobodys_place(scene: &mut Scene) {
    let spec = ListenerSpec {
        max_connections: 1,
        ..spec("web")
    };
    let (id, port) = listening(scene, spec).await;
    let silent: Vec<TcpStream> = (0..100).map(|_| reach(port)).collect();
    while status(scene, id).await.handshakes < 100 {
        tokio::task::yield_now().await;
    }
    let _peer = tls::shake(reach(port), tls::client(None), "localhost").unwrap();
    accepted(scene, id, 1).await;
    let status = status(scene, id).await;
    assert_eq!((status.handshakes, status.failed_handshakes), (100, 0));
    drop(silent);
}

async fn failed_handshakes_are_counted_and_told_rarely(scene: &mut Scene) {
    const KNOCKS: u64 = 300;
    let mut with = spec("web");
    if let Some(tls) = &mut with.tls {
        tls.handshake_timeout = Some(millis(100));
    }
    let (id, port) = listening(scene, with).await;
    for _ in 0..KNOCKS {
        drop(reach(port));
    }
    while status(scene, id).await.failed_handshakes < KNOCKS {
        tokio::task::yield_now().await;
    }
    let mut web = reach(port);
    web.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // An alert, then the end.
    let _ = web.read_to_end(&mut answer);
    let silent = reach(port);
    while status(scene, id).await.failed_handshakes < KNOCKS + 2 {
        tokio::task::yield_now().await;
    }
    drop(silent);
    scene.settle().await;
    let kinds = scene.recorder.kinds(id);
    // Unless the machine is so slow that the time of the next one has come.
    assert!(kinds.len() <= 3, "{kinds:?}");
    let first = failures(scene, id, 1).await;
    assert!(first.peer.is_some() && first.error.is_some());
    assert_eq!(first.count, first.total);
}

async fn no_more_connections_are_open_than_the_limit(scene: &mut Scene) {
    let spec = ListenerSpec {
        max_connections: 2,
        ..spec("web")
    };
    let (id, port) = listening(scene, spec).await;
    let config = Arc::new(tls::client(None));
    let mut peers: Vec<_> = (0..6)
        .map(|_| tls::shake(reach(port), Arc::clone(&config), "localhost").unwrap())
        .collect();
    for nth in 1..=6 {
        let event = scene.recorder.nth(id, "accepted", nth).await;
        let Some(Kind::Accepted(accepted)) = event.kind else {
            panic!("{event:?}");
        };
        assert!(status(scene, id).await.open_connections <= 2);
        // Handshakes end in any order.
        let of = accepted.peer.and_then(|peer| peer.address);
        let is_peer = |peer: &tls::Client| {
            let own = peer.sock.local_addr().unwrap();
            of == Some(socket_address::Address::Inet(InetAddress {
                ip: own.ip().to_string(),
                port: own.port().into(),
            }))
        };
        let connection = accepted.watch_id;
        let mut peer = peers.remove(peers.iter().position(is_peer).unwrap());
        peer.conn.send_close_notify();
        peer.flush().unwrap();
        scene.closed(connection).await;
    }
}

async fn a_removed_listener_gives_its_handshakes_up(scene: &mut Scene) {
    let (id, port) = listening(scene, spec("web")).await;
    let mut silent: Vec<TcpStream> = (0..5).map(|_| reach(port)).collect();
    while status(scene, id).await.handshakes < 5 {
        tokio::task::yield_now().await;
    }
    scene.remove(id).await;
    for socket in &mut silent {
        match socket.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn a_listener_needs_a_certificate(scene: &mut Scene) {
    for (field, config, server_name) in [
        ("spec.listener.tls.config", "", ""),
        ("spec.listener.tls.config", "trusting", ""),
        ("spec.listener.tls.config", "absent", ""),
        ("spec.listener.tls.server_name", "web", "localhost"),
    ] {
        let mut with = spec(config);
        if let Some(tls) = &mut with.tls {
            tls.server_name = server_name.into();
        }
        let request = scene.request(Spec::Listener(with));
        let refusal = refused(
            scene.try_add(request).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert_eq!(refusal.fields, [field]);
    }
}
