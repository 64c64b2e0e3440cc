//! Handshakes of connections that the daemon makes: certificates, and ends before the end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{AbortRequest, CloseReason, Closed, TlsOptions};
use tonic::Code;

use crate::common::{Scene, by_id, millis, refused, tls};
use crate::tls::{listener, on_each_backend_with_tls, session, spec, trusting};

on_each_backend_with_tls!(
    certificates_that_do_not_fit_are_refused_in_words,
    a_refused_client_certificate_is_told_with_its_alert,
    a_handshake_that_does_not_end_is_given_up,
    a_handshake_under_way_can_be_ended,
    options_that_do_not_fit_are_refused,
);

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
            "stranger",
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
