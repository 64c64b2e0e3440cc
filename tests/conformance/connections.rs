//! Connections over TCP and Unix sockets, made by the daemon or adopted.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AbortRequest, CloseReason, ConnectionSpec, Event, PauseReadingRequest, ResumeReadingRequest,
    StopLoopRequest, Stream, UnixAddress, connection_spec, socket_address, unix_address,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tonic::Code;

use crate::common::{Scene, adopted, by_id, connection, refused, seconds, tcp, unix_path};

on_each_backend!(
    a_tcp_connection_echoes_with_offsets,
    a_unix_connection_by_path,
    a_unix_connection_in_the_abstract_namespace,
    a_refused_connection_closes_with_its_error,
    a_name_that_does_not_resolve_closes_with_its_error,
    an_adopted_socket_knows_its_peer,
    the_peers_eof_closes_unless_half_open,
    reading_pauses_and_resumes,
    an_abort_closes_at_once,
    a_lingering_close_does_not_delay_the_loop,
    targets_out_of_range_are_refused,
);

async fn connect(scene: &mut Scene, spec: ConnectionSpec) -> u64 {
    scene.add(Spec::Connection(spec)).await
}

/// Adopts one end of a socket pair as a connection, and returns the other end.
async fn adopt(scene: &mut Scene, options: ConnectionSpec) -> (UnixStream, u64) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    let spec = ConnectionSpec {
        target: adopted(slot).target,
        ..options
    };
    let id = connect(scene, spec).await;
    (ours, id)
}

fn offset(event: &Event) -> (u64, usize) {
    match &event.kind {
        Some(Kind::Data(data)) => (data.offset, data.data.len()),
        other => panic!("{other:?}"),
    }
}

async fn a_tcp_connection_echoes_with_offsets(scene: &mut Scene) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let id = connect(scene, tcp("localhost", port.into())).await;
    let (mut peer, from) = listener.accept().unwrap();
    match scene.recorder.first(id, "connected").await.kind {
        Some(Kind::Connected(connected)) => {
            let Some(socket_address::Address::Inet(local)) = connected.local.unwrap().address
            else {
                panic!("a TCP socket has an IP address");
            };
            assert_eq!(
                (local.ip, local.port),
                (from.ip().to_string(), from.port().into())
            );
        }
        other => panic!("{other:?}"),
    }
    scene.write(id, b"ping").await;
    let mut ping = [0; 4];
    peer.read_exact(&mut ping).unwrap();
    peer.write_all(&ping).unwrap();
    assert_eq!(offset(&scene.recorder.first(id, "data").await), (0, 4));
    peer.write_all(b"pong!").unwrap();
    assert_eq!(offset(&scene.recorder.nth(id, "data", 2).await), (4, 5));
    drop(peer);
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"pingpong!");
    let kinds = ["added", "connected", "data", "data", "eof", "closed"];
    assert_eq!(scene.recorder.kinds(id), kinds);
}

async fn a_unix_connection_by_path(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("peer.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let target = connection_spec::Target::Unix(unix_path(&path));
    unix(scene, &listener, target).await;
}

async fn a_unix_connection_in_the_abstract_namespace(scene: &mut Scene) {
    let name = format!("evloopd-test-{}", scene.daemon.pid());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let target = connection_spec::Target::Unix(UnixAddress {
        name: Some(unix_address::Name::AbstractName(name.into())),
    });
    unix(scene, &listener, target).await;
}

async fn unix(scene: &mut Scene, listener: &UnixListener, target: connection_spec::Target) {
    let id = connect(scene, connection(target)).await;
    let (mut peer, _) = listener.accept().unwrap();
    scene.recorder.first(id, "connected").await;
    scene.write(id, b"ping").await;
    let mut ping = [0; 4];
    peer.read_exact(&mut ping).unwrap();
    peer.write_all(b"pong").unwrap();
    drop(peer);
    scene.closed(id).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"pong");
}

async fn a_refused_connection_closes_with_its_error(scene: &mut Scene) {
    // The socket is bound, so that no other program can listen there, but it does not listen.
    let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
    let bound = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&bound, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = rustix::net::getsockname(&bound).unwrap();
    let port = std::net::SocketAddr::try_from(address).unwrap().port();
    let id = connect(scene, tcp("127.0.0.1", port.into())).await;
    let error = scene.closed(id).await.error.unwrap();
    assert_eq!(
        (error.name.as_str(), error.step.as_str()),
        ("ECONNREFUSED", "connect")
    );
    assert_eq!(scene.recorder.kinds(id), ["added", "closed"]);

    let path = scene.daemon.dir.path().join("nobody.sock");
    let target = connection_spec::Target::Unix(unix_path(&path));
    let id = connect(scene, connection(target)).await;
    assert_eq!(scene.closed(id).await.error.unwrap().name, "ENOENT");
}

async fn a_name_that_does_not_resolve_closes_with_its_error(scene: &mut Scene) {
    let id = connect(scene, tcp("no-such-host.invalid", 80)).await;
    let closed = scene.closed(id).await;
    assert_eq!(closed.reason(), CloseReason::Error);
    assert_eq!(closed.error.unwrap().step, "resolve");
}

async fn an_adopted_socket_knows_its_peer(scene: &mut Scene) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ours = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    drop(theirs);
    let id = connect(scene, adopted(slot)).await;
    match scene.recorder.first(id, "connected").await.kind {
        Some(Kind::Connected(connected)) => {
            let peer = connected.peer.and_then(|peer| peer.address);
            let Some(socket_address::Address::Inet(peer)) = peer else {
                panic!("{peer:?}");
            };
            assert_eq!(peer.port, u32::from(ours.local_addr().unwrap().port()));
        }
        other => panic!("{other:?}"),
    }
    drop(ours);
    scene.closed(id).await;
}

async fn the_peers_eof_closes_unless_half_open(scene: &mut Scene) {
    let half_open = ConnectionSpec {
        keep_half_open: true,
        ..ConnectionSpec::default()
    };
    let (mut ours, id) = adopt(scene, half_open).await;
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    scene.recorder.first(id, "eof").await;
    scene.write(id, b"still here").await;
    scene.write_eof(id).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    let mut all = String::new();
    ours.read_to_string(&mut all).unwrap();
    assert_eq!(all, "still here");

    let (ours, id) = adopt(scene, ConnectionSpec::default()).await;
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    scene.closed(id).await;
    assert_eq!(
        scene.recorder.kinds(id),
        ["added", "connected", "eof", "closed"]
    );
}

async fn reading_pauses_and_resumes(scene: &mut Scene) {
    let paused = ConnectionSpec {
        start_paused: true,
        ..ConnectionSpec::default()
    };
    let (mut ours, id) = adopt(scene, paused).await;
    ours.write_all(b"one").unwrap();
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added", "connected"]);

    resume(scene, id).await;
    scene.recorder.first(id, "data").await;
    for _ in 0..2 {
        let request = PauseReadingRequest {
            r#loop: Some(scene.target.clone()),
            watch: by_id(id),
            ..PauseReadingRequest::default()
        };
        scene
            .daemon
            .transports()
            .pause_reading(request)
            .await
            .unwrap();
    }
    ours.write_all(b"two").unwrap();
    scene.settle().await;
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"one");
    resume(scene, id).await;
    drop(ours);
    scene.closed(id).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Input), b"onetwo");
}

async fn resume(scene: &Scene, id: u64) {
    let request = ResumeReadingRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..ResumeReadingRequest::default()
    };
    scene
        .daemon
        .transports()
        .resume_reading(request)
        .await
        .unwrap();
}

async fn an_abort_closes_at_once(scene: &mut Scene) {
    let (mut ours, id) = adopt(scene, ConnectionSpec::default()).await;
    let big = vec![b'x'; 1_000_000];
    let taken = scene.write(id, &big).await;
    let request = AbortRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..AbortRequest::default()
    };
    let answer = scene
        .daemon
        .transports()
        .abort(request.clone())
        .await
        .unwrap();
    let closed = scene.closed(id).await;
    assert_eq!(closed.reason(), CloseReason::Aborted);
    let event = scene.recorder.first(id, "closed").await;
    assert_eq!(answer.into_inner().closed.unwrap().seq, event.seq);
    let mut all = Vec::new();
    ours.read_to_end(&mut all).unwrap();
    let received = u64::try_from(all.len()).unwrap();
    assert_eq!(received + closed.unsent_bytes, taken);
    let again = scene.daemon.transports().abort(request).await;
    refused(again, Code::FailedPrecondition, "WATCH_CLOSED");
}

async fn a_lingering_close_does_not_delay_the_loop(scene: &mut Scene) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ours = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    let linger = std::time::Duration::from_secs(3600);
    rustix::net::sockopt::set_socket_linger(&theirs, Some(linger)).unwrap();
    theirs.set_nonblocking(true).unwrap();
    while (&theirs).write(&[0; 65_536]).is_ok() {}
    theirs.set_nonblocking(false).unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    let id = connect(scene, adopted(slot)).await;
    // Only the daemon's descriptor is left. To close it would block for an hour (SO_LINGER).
    drop(theirs);
    // A stopped loop does not wait for the peer before it closes.
    let stop = StopLoopRequest {
        r#loop: Some(scene.target.clone()),
        ..StopLoopRequest::default()
    };
    scene.daemon.loops().stop_loop(stop).await.unwrap();
    scene.remove(id).await;
    scene.settle().await;
    drop(ours);
}

async fn targets_out_of_range_are_refused(scene: &mut Scene) {
    let relative = UnixAddress {
        name: Some(unix_address::Name::Path("relative".into())),
    };
    for (spec, field) in [
        (tcp("localhost", 0), "spec.connection.tcp.port"),
        (tcp("localhost", 65_536), "spec.connection.tcp.port"),
        (tcp("", 80), "spec.connection.tcp.host"),
        (
            connection(connection_spec::Target::Unix(relative)),
            "spec.connection.unix",
        ),
        (ConnectionSpec::default(), "spec.connection"),
        (
            ConnectionSpec {
                connect_timeout: Some(seconds(3601)),
                ..tcp("localhost", 80)
            },
            "spec.connection.connect_timeout",
        ),
    ] {
        let request = scene.request(Spec::Connection(spec));
        let bad = refused(
            scene.try_add(request).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert!(bad.fields[0].starts_with(field), "{bad:?} for {field}");
    }
    assert_eq!(scene.open_watches().await, 0);
}
