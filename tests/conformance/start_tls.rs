//! TLS that begins in mid-stream.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    CloseReason, StartTlsRequest, StartTlsResponse, Stream, TlsOptions, TlsStarted,
};
use tonic::{Code, Status};

use crate::common::tls;
use crate::common::{Scene, by_id, refused, tcp};
use crate::tls::on_each_backend_with_tls;

on_each_backend_with_tls!(
    a_client_starts_it_after_the_servers_answer,
    a_server_starts_it_with_what_was_read_ahead,
    what_was_injected_before_it_is_never_taken_for_encrypted,
    unsent_plaintext_goes_first,
    an_end_during_the_handshake_comes_after_it,
    a_call_that_does_not_fit_leaves_the_connection_as_it_is,
);

/// Connects the daemon to a plain peer.
async fn connected(scene: &mut Scene) -> (u64, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let spec = tcp("127.0.0.1", port.into());
    let id = scene.add(Spec::Connection(spec)).await;
    let peer = listener.accept().unwrap().0;
    scene.recorder.first(id, "connected").await;
    (id, peer)
}

pub(crate) async fn start(
    scene: &Scene,
    id: u64,
    offset: u64,
    server: bool,
) -> Result<StartTlsResponse, Status> {
    let tls = match server {
        true => TlsOptions {
            config: "web".into(),
            ..TlsOptions::default()
        },
        false => TlsOptions {
            config: "trusting".into(),
            server_name: "localhost".into(),
            ..TlsOptions::default()
        },
    };
    let request = StartTlsRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        server,
        tls: Some(tls),
        offset: Some(offset),
        ..StartTlsRequest::default()
    };
    let answer = scene.daemon.transports().start_tls(request).await?;
    Ok(answer.into_inner())
}

async fn started(scene: &mut Scene, id: u64) -> TlsStarted {
    match scene.recorder.first(id, "tls_started").await.kind {
        Some(Kind::TlsStarted(started)) => started,
        other => panic!("{other:?}"),
    }
}

async fn received(scene: &mut Scene, id: u64, len: usize) {
    while scene.recorder.bytes(id, Stream::Input).len() < len {
        assert!(scene.recorder.step().await);
    }
}

/// Writes until no more is taken, because nobody reads. Returns how many bytes were.
async fn fill(scene: &Scene, id: u64) -> u64 {
    let plain = vec![b'p'; 1 << 20];
    let mut taken = 0;
    loop {
        let answer = scene.write_at(id, &plain, Some(taken)).await.unwrap();
        if answer.taken == taken {
            return taken;
        }
        taken = answer.taken;
    }
}

async fn a_client_starts_it_after_the_servers_answer(scene: &mut Scene) {
    let (id, mut peer) = connected(scene).await;
    peer.write_all(b"220 hello\r\n").unwrap();
    received(scene, id, 11).await;
    scene.write(id, b"STARTTLS\r\n").await;
    peer.read_exact(&mut [0; 10]).unwrap();
    peer.write_all(b"220 go\r\n").unwrap();
    received(scene, id, 19).await;
    start(scene, id, 19, false).await.unwrap();
    // Bytes that are written during the handshake wait for its end.
    scene.write(id, b"EHLO").await;
    let mut peer = tls::serve(peer, tls::server("web", false)).unwrap();
    let started = started(scene, id).await;
    assert_eq!((started.input_offset, started.output_offset), (19, 10));
    assert_eq!(started.tls.unwrap().version, "TLSv1.3");
    peer.read_exact(&mut [0; 4]).unwrap();
    peer.write_all(b"250 ok").unwrap();
    received(scene, id, 25).await;
    refused(
        start(scene, id, 25, false).await,
        Code::FailedPrecondition,
        "WRONG_STATE",
    );
    peer.conn.send_close_notify();
    peer.flush().unwrap();
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(
        scene.recorder.bytes(id, Stream::Input),
        b"220 hello\r\n220 go\r\n250 ok"
    );
}

async fn a_server_starts_it_with_what_was_read_ahead(scene: &mut Scene) {
    /// Writes a line together with the ClientHello, in one segment.
    struct Together(TcpStream, Vec<u8>);

    impl Write for Together {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut all = std::mem::take(&mut self.1);
            all.extend_from_slice(bytes);
            self.0.write_all(&all).map(|()| bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Read for Together {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(bytes)
        }
    }

    let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
    let offset = line.len() as u64;
    let (id, peer) = connected(scene).await;
    let name = "localhost".try_into().unwrap();
    let config = tls::client(None).into();
    let connection = rustls::ClientConnection::new(config, name).unwrap();
    let together = Together(peer, line.to_vec());
    let mut peer = rustls::StreamOwned::new(connection, together);
    let shaken = std::thread::spawn(move || {
        while peer.conn.is_handshaking() {
            peer.conn.complete_io(&mut peer.sock).unwrap();
        }
        peer.write_all(b"secret").unwrap();
        peer
    });
    // The line and the ClientHello are told as they came.
    received(scene, id, line.len() + 100).await;
    let told = scene.recorder.bytes(id, Stream::Input);
    assert!(told.starts_with(line));
    start(scene, id, offset, true).await.unwrap();
    let mut peer = shaken.join().unwrap();
    let started = started(scene, id).await;
    assert_eq!(started.input_offset, told.len() as u64);
    received(scene, id, told.len() + 6).await;
    assert_eq!(
        &scene.recorder.bytes(id, Stream::Input)[told.len()..],
        b"secret"
    );
    scene.write(id, b"answer").await;
    peer.read_exact(&mut [0; 6]).unwrap();
}

async fn what_was_injected_before_it_is_never_taken_for_encrypted(scene: &mut Scene) {
    // As the client: what the peer sent after its answer cannot be from TLS.
    let (id, mut peer) = connected(scene).await;
    peer.write_all(b"220 go\r\nEVIL").unwrap();
    received(scene, id, 12).await;
    refused(
        start(scene, id, 8, false).await,
        Code::FailedPrecondition,
        "WRONG_STATE",
    );
    scene.write(id, b"still plain").await;
    peer.read_exact(&mut [0; 11]).unwrap();
    scene.remove(id).await;

    // As the server: it belongs to the handshake, which fails.
    for told in [true, false] {
        let (id, mut peer) = connected(scene).await;
        peer.write_all(b"STARTTLS\r\n").unwrap();
        received(scene, id, 10).await;
        if told {
            peer.write_all(b"EVIL\r\n").unwrap();
            received(scene, id, 16).await;
            start(scene, id, 10, true).await.unwrap();
        } else {
            start(scene, id, 10, true).await.unwrap();
            peer.write_all(b"EVIL\r\n").unwrap();
        }
        let closed = scene.closed(id).await;
        let error = closed.error.unwrap();
        assert_eq!(error.step, "handshake");
        assert!(error.message.contains("it sent `EVIL"), "{}", error.message);
        let wanted = if told { 16 } else { 10 };
        assert_eq!(scene.recorder.bytes(id, Stream::Input).len(), wanted);
    }
}

async fn unsent_plaintext_goes_first(scene: &mut Scene) {
    let (id, mut peer) = connected(scene).await;
    // The kernel's buffers and the daemon's are full.
    let plain = fill(scene, id).await;
    start(scene, id, 0, false).await.unwrap();
    let reader = std::thread::spawn(move || {
        let mut read = vec![0; usize::try_from(plain).unwrap()];
        peer.read_exact(&mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == b'p'));
        tls::serve(peer, tls::server("web", false)).unwrap()
    });
    // The room that the plaintext leaves is for bytes that are encrypted.
    let mut seq = scene.settle().await;
    while scene
        .write_at(id, b"secret", Some(plain))
        .await
        .unwrap()
        .taken
        < plain + 6
    {
        seq = scene.recorder.after(seq, id, "write_resumed").await.seq;
    }
    let mut peer = reader.join().unwrap();
    let mut secret = [0; 6];
    peer.read_exact(&mut secret).unwrap();
    assert_eq!(&secret, b"secret");
    assert_eq!(started(scene, id).await.output_offset, plain);
    scene.settle().await;
    let kinds = scene.recorder.kinds(id);
    let count = |kind| kinds.iter().filter(|k| **k == kind).count();
    assert_eq!(count("write_paused"), count("write_resumed"));
}

async fn an_end_during_the_handshake_comes_after_it(scene: &mut Scene) {
    for large in [false, true] {
        let (id, mut peer) = connected(scene).await;
        // With unsent plaintext the handshake has not begun when the end is requested.
        let plain = if large { fill(scene, id).await } else { 0 };
        start(scene, id, 0, false).await.unwrap();
        if !large {
            scene.write(id, b"secret").await;
        }
        scene.write_eof(id).await;
        let mut read = vec![0; usize::try_from(plain).unwrap()];
        peer.read_exact(&mut read).unwrap();
        let mut peer = tls::serve(peer, tls::server("web", false)).unwrap();
        let wanted: &[u8] = if large { b"" } else { b"secret" };
        assert_eq!(tls::read_to_end(&mut peer), wanted, "then close_notify");
        drop(peer);
        scene.closed(id).await;
    }
}

async fn a_call_that_does_not_fit_leaves_the_connection_as_it_is(scene: &mut Scene) {
    let (id, mut peer) = connected(scene).await;
    peer.write_all(b"plain").unwrap();
    received(scene, id, 5).await;
    let refusal = refused(
        start(scene, id, 6, true).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(refusal.fields, ["offset"]);
    let request = StartTlsRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..StartTlsRequest::default()
    };
    let answer = scene.daemon.transports().start_tls(request).await;
    let refusal = refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(refusal.fields, ["offset"]);
    peer.write_all(b" text").unwrap();
    received(scene, id, 10).await;
    scene.write_eof(id).await;
    refused(
        start(scene, id, 10, true).await,
        Code::FailedPrecondition,
        "WRONG_STATE",
    );
    drop(peer);
    scene.closed(id).await;
}
