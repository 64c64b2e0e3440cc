//! Datagrams that are sent: errors that name their peer, receivers that are full or new, groups and
//! broadcasts, and the end of a socket with datagrams that wait.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{Scene, by_id, datagrams_at, inet, nobody_has, refused, unix_socket};
use crate::datagrams::{add, bound, port, received, socket};

on_each_backend!(
    a_dead_peer_is_named_and_live_peers_get_everything,
    a_connected_socket_outlives_its_dead_peer,
    what_cannot_be_sent_fails_its_call_alone,
    a_full_unix_receiver_makes_datagrams_wait_in_order,
    a_new_receiver_at_the_path_gets_what_is_sent,
    a_stopped_loop_keeps_datagrams_and_pauses_the_writer,
    a_removed_socket_first_sends_what_waits,
    each_socket_hears_its_own_groups,
    a_broadcast_needs_its_option,
    sockets_share_a_port_only_if_asked,
);

/// The length of a long datagram.
const LONG: usize = 4000;

/// A port of 127.0.0.1 at which nobody receives, as long as the socket lives: it is connected to itself.
fn dead_port() -> (UdpSocket, u16) {
    let (socket, port) = socket();
    socket.connect(("127.0.0.1", port)).unwrap();
    (socket, port)
}

async fn error(scene: &mut Scene, id: u64) -> DatagramError {
    match scene.recorder.first(id, "datagram_error").await.kind {
        Some(Kind::DatagramError(error)) => error,
        other => panic!("{other:?}"),
    }
}

async fn a_dead_peer_is_named_and_live_peers_get_everything(scene: &mut Scene) {
    for local in [inet("127.0.0.1", 0), inet("", 0)] {
        let id = add(scene, datagrams_at(local)).await;
        let (live, live_port) = socket();
        let (_dead, dead) = dead_port();
        for number in 0..50_u8 {
            let to_dead = Some(inet("127.0.0.1", dead));
            scene.send_to(id, b"dead", to_dead).await.unwrap();
            let to_live = Some(inet("127.0.0.1", live_port));
            scene.send_to(id, &[number], to_live).await.unwrap();
        }
        for number in 0..50 {
            assert_eq!(received(&live), [number]);
        }
        let error = error(scene, id).await;
        assert_eq!(error.peer, Some(inet("127.0.0.1", dead)));
        assert_eq!(error.reporter_ip, "127.0.0.1");
        let system = error.error.unwrap();
        assert_eq!(
            (system.name.as_str(), system.step.as_str()),
            ("ECONNREFUSED", "deliver")
        );
        let at = port(scene, id).await;
        live.send_to(b"still there", ("127.0.0.1", at)).unwrap();
        assert_eq!(&scene.datagram_at(id, 0).await.data[..], b"still there");
    }
}

async fn a_connected_socket_outlives_its_dead_peer(scene: &mut Scene) {
    let (late, dead) = dead_port();
    let spec = DatagramSpec {
        peer: Some(inet("127.0.0.1", dead)),
        ..DatagramSpec::default()
    };
    let (id, at) = bound(scene, spec).await;
    scene.send_to(id, b"x", None).await.unwrap();
    assert_eq!(error(scene, id).await.peer, Some(inet("127.0.0.1", dead)));
    scene.send_to(id, b"y", None).await.unwrap();
    late.send_to(b"here now", ("127.0.0.1", at)).unwrap();
    assert_eq!(&scene.datagram_at(id, 0).await.data[..], b"here now");
}

async fn what_cannot_be_sent_fails_its_call_alone(scene: &mut Scene) {
    let (id, _) = bound(scene, DatagramSpec::default()).await;
    let (ours, at) = socket();
    let peer = Some(inet("127.0.0.1", at));
    let long = scene.send_to(id, &[0; 70_000], peer.clone()).await;
    let long = refused(long, Code::FailedPrecondition, "SYSTEM");
    assert_eq!(long.word("errno_name"), "EMSGSIZE");
    for (field, peer) in [
        ("peer", Some(unix_socket(std::path::Path::new("/tmp/x")))),
        ("peer.inet.ip", Some(inet("::1", 1))),
        ("peer.inet.ip", Some(inet("localhost", 1))),
    ] {
        let bad = scene.send_to(id, b"x", peer).await;
        let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
    scene.send_to(id, b"short", peer).await.unwrap();
    assert_eq!(received(&ours), b"short");
    let timer = scene.add(crate::common::never()).await;
    let wrong = scene
        .send_to(timer, b"x", Some(inet("127.0.0.1", at)))
        .await;
    refused(wrong, Code::FailedPrecondition, "WRONG_STATE");
}

/// Sends numbered datagrams until some wait. Returns how many were sent.
async fn fill(scene: &Scene, id: u64, peer: Option<SocketAddress>) -> u32 {
    for number in 0_u32.. {
        let data = number.to_be_bytes();
        if scene.send_to(id, &data, peer.clone()).await.unwrap() > 1000 {
            return number + 1;
        }
    }
    unreachable!()
}

async fn read_all(ours: UnixDatagram, count: u32) -> UnixDatagram {
    let read = tokio::task::spawn_blocking(move || {
        ours.set_read_timeout(Some(crate::common::PATIENCE))
            .unwrap();
        for number in 0..count {
            let mut data = [0; LONG];
            ours.recv(&mut data).unwrap();
            assert_eq!(data[..4], number.to_be_bytes());
        }
        ours
    });
    read.await.unwrap()
}

async fn a_full_unix_receiver_makes_datagrams_wait_in_order(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("full.sock");
    let connected = DatagramSpec {
        peer: Some(unix_socket(&path)),
        ..DatagramSpec::default()
    };
    let own = scene.daemon.dir.path().join("own.sock");
    for (spec, peer) in [
        (connected, None),
        (datagrams_at(unix_socket(&own)), Some(unix_socket(&path))),
    ] {
        let ours = UnixDatagram::bind(&path).unwrap();
        let id = add(scene, spec).await;
        let sent = fill(scene, id, peer).await;
        read_all(ours, sent).await;
        assert_eq!(scene.datagram(id).await.buffered_bytes, 0);
        scene.remove(id).await;
        std::fs::remove_file(&path).unwrap();
    }
}

async fn a_new_receiver_at_the_path_gets_what_is_sent(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("log.sock");
    let first = UnixDatagram::bind(&path).unwrap();
    let spec = DatagramSpec {
        peer: Some(unix_socket(&path)),
        ..DatagramSpec::default()
    };
    let id = add(scene, spec).await;
    scene.send_to(id, b"one", None).await.unwrap();
    drop(first);
    nobody_has(&path).await;
    let nobody = scene.send_to(id, b"lost", None).await;
    let nobody = refused(nobody, Code::FailedPrecondition, "SYSTEM");
    assert_eq!(nobody.word("errno_name"), "ECONNREFUSED");
    std::fs::remove_file(&path).unwrap();
    let second = UnixDatagram::bind(&path).unwrap();
    scene.send_to(id, &0_u32.to_be_bytes(), None).await.unwrap();
    read_all(second, 1).await;
}

async fn a_stopped_loop_keeps_datagrams_and_pauses_the_writer(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("slow.sock");
    let ours = UnixDatagram::bind(&path).unwrap();
    let spec = DatagramSpec {
        peer: Some(unix_socket(&path)),
        ..DatagramSpec::default()
    };
    let id = add(scene, spec).await;
    scene.stop().await;
    let mut sent = 0_u32;
    let refusal = loop {
        let mut data = [0; LONG];
        data[..4].copy_from_slice(&sent.to_be_bytes());
        match scene.send_to(id, &data, None).await {
            Ok(buffered) => {
                sent += 1;
                assert_eq!(buffered, u64::from(sent) * (LONG as u64 + 64));
            }
            Err(refusal) => break refusal,
        }
    };
    let full = refused::<()>(Err(refusal), Code::ResourceExhausted, "LIMIT");
    assert_eq!(full.word("limit"), "limits.write_buffer");
    assert_eq!(u64::from(sent), (1 << 20) / (LONG as u64 + 64));
    let paused = scene.recorder.first(id, "write_paused").await;
    match paused.kind {
        Some(Kind::WritePaused(paused)) => assert!(paused.buffered_bytes > 64 << 10),
        other => panic!("{other:?}"),
    }
    scene.run().await;
    read_all(ours, sent).await;
    let resumed = scene.recorder.first(id, "write_resumed").await;
    match resumed.kind {
        Some(Kind::WriteResumed(resumed)) => assert!(resumed.buffered_bytes <= 16 << 10),
        other => panic!("{other:?}"),
    }
}

async fn a_removed_socket_first_sends_what_waits(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("end.sock");
    let spec = || DatagramSpec {
        peer: Some(unix_socket(&path)),
        ..DatagramSpec::default()
    };
    let ours = UnixDatagram::bind(&path).unwrap();
    let id = add(scene, spec()).await;
    let sent = fill(scene, id, None).await;
    let reading = read_all(ours, sent);
    let (_, ours) = tokio::join!(scene.remove(id), reading);
    assert_eq!(scene.closed(id).await.unsent_bytes, 0);

    let id = add(scene, spec()).await;
    fill(scene, id, None).await;
    let waiting = scene.datagram(id).await.buffered_bytes;
    let request = AbortRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..AbortRequest::default()
    };
    scene.daemon.transports().abort(request).await.unwrap();
    let closed = scene.closed(id).await;
    assert_eq!(closed.reason(), CloseReason::Aborted);
    // Each has 4 bytes and counted 64 more.
    assert_eq!(closed.unsent_bytes, waiting / 68 * 4);
    drop(ours);
}

async fn each_socket_hears_its_own_groups(scene: &mut Scene) {
    let member = |ip: &str, port| DatagramSpec {
        reuse_address: true,
        groups: vec![MulticastGroup {
            ip: ip.into(),
            interface: "lo".into(),
        }],
        ..datagrams_at(inet("0.0.0.0", port))
    };
    let first = add(scene, member("239.1.2.3", 0)).await;
    let at = port(scene, first).await;
    let second = add(scene, member("239.1.2.4", at)).await;
    let sender = DatagramSpec {
        multicast_interface: "lo".into(),
        multicast_ttl: Some(0),
        multicast_loop: Some(true),
        ..DatagramSpec::default()
    };
    let (sender, _) = bound(scene, sender).await;
    for ip in ["239.1.2.3", "239.1.2.4"] {
        let group = Some(inet(ip, at));
        scene.send_to(sender, ip.as_bytes(), group).await.unwrap();
    }
    for (id, ip) in [(first, "239.1.2.3"), (second, "239.1.2.4")] {
        let got = scene.datagram_at(id, 0).await;
        assert_eq!((&got.data[..], got.local_ip.as_str()), (ip.as_bytes(), ip));
    }
    scene.settle().await;
    for id in [first, second] {
        let kinds = scene.recorder.kinds(id);
        assert_eq!(kinds, ["added", "datagram"], "a group of the other");
    }
    let nowhere = DatagramSpec {
        multicast_interface: "nosuch0".into(),
        ..datagrams_at(inet("127.0.0.1", 0))
    };
    let request = scene.request(Spec::Datagram(nowhere));
    let unknown = refused(
        scene.try_add(request).await,
        Code::FailedPrecondition,
        "SYSTEM",
    );
    assert_eq!(unknown.word("errno_name"), "ENODEV");
}

async fn a_broadcast_needs_its_option(scene: &mut Scene) {
    let (id, at) = bound(scene, DatagramSpec::default()).await;
    let broadcast = Some(inet("127.255.255.255", at));
    let without = scene.send_to(id, b"all", broadcast).await;
    let without = refused(without, Code::PermissionDenied, "SYSTEM");
    assert_eq!(without.word("errno_name"), "EACCES");
    let everywhere = add(scene, datagrams_at(inet("0.0.0.0", 0))).await;
    let broadcast = Some(inet("127.255.255.255", port(scene, everywhere).await));
    let spec = DatagramSpec {
        broadcast: true,
        ..DatagramSpec::default()
    };
    let (id, _) = bound(scene, spec).await;
    scene.send_to(id, b"all", broadcast).await.unwrap();
    let got = scene.datagram_at(everywhere, 0).await;
    assert_eq!(
        (&got.data[..], got.local_ip.as_str()),
        (&b"all"[..], "127.255.255.255")
    );
}

async fn sockets_share_a_port_only_if_asked(scene: &mut Scene) {
    let shared = |port| DatagramSpec {
        reuse_port: true,
        ..datagrams_at(inet("127.0.0.1", port))
    };
    let first = add(scene, shared(0)).await;
    let at = port(scene, first).await;
    let second = add(scene, shared(at)).await;
    assert_eq!(port(scene, second).await, at);
    let request = scene.request(Spec::Datagram(datagrams_at(inet("127.0.0.1", at))));
    let taken = refused(scene.try_add(request).await, Code::AlreadyExists, "SYSTEM");
    assert_eq!(taken.word("errno_name"), "EADDRINUSE");
    // An IPv6 socket that takes no part in IPv4 leaves its port to IPv4.
    let six = DatagramSpec {
        ipv6_only: true,
        ..datagrams_at(inet("::", 0))
    };
    let six = add(scene, six).await;
    let at = port(scene, six).await;
    add(scene, datagrams_at(inet("0.0.0.0", at))).await;
}
