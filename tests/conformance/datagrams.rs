//! Datagram sockets: what arrives, what is said about it, and what waits for room.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{PATIENCE, Scene, datagrams_at, inet, nobody_has, refused, unix_socket};
use crate::datagram_drops::told;

on_each_backend!(
    a_bound_socket_receives_and_answers,
    a_connected_socket_hears_only_its_peer,
    empty_datagrams_are_events,
    a_datagram_that_is_cut_says_its_full_length,
    datagrams_that_wait_together_keep_their_order_lengths_and_senders,
    a_unix_socket_receives_and_leaves_no_file,
    a_paused_unix_socket_makes_its_sender_wait,
    what_the_kernel_dropped_is_counted_after_a_burst_and_silence,
    an_answer_leaves_from_the_address_that_was_asked,
    an_adopted_socket_keeps_its_flags_and_can_be_taken,
    a_socket_that_another_process_shuts_down_completes,
    a_bad_specification_is_refused_by_the_name_of_its_field,
);

/// A socket of the test on 127.0.0.1, and its port.
pub(crate) fn socket() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// Adds a datagram watch and returns its id.
pub(crate) async fn add(scene: &mut Scene, spec: DatagramSpec) -> u64 {
    scene.add(Spec::Datagram(spec)).await
}

/// Adds a watch bound to a port of 127.0.0.1 and returns its id and that port.
pub(crate) async fn bound(scene: &mut Scene, spec: DatagramSpec) -> (u64, u16) {
    let local = Some(inet("127.0.0.1", 0));
    let id = add(scene, DatagramSpec { local, ..spec }).await;
    (id, port(scene, id).await)
}

pub(crate) async fn port(scene: &Scene, id: u64) -> u16 {
    let local = scene.datagram(id).await.local.and_then(|a| a.address);
    match local {
        Some(socket_address::Address::Inet(inet)) => inet.port.try_into().unwrap(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 1 << 16];
    let (len, _) = socket.recv_from(&mut buffer).unwrap();
    buffer[..len].to_vec()
}

async fn a_bound_socket_receives_and_answers(scene: &mut Scene) {
    let (id, at) = bound(scene, DatagramSpec::default()).await;
    let (ours, our_port) = socket();
    ours.send_to(b"question", ("127.0.0.1", at)).unwrap();
    let asked = scene.datagram_at(id, 0).await;
    assert_eq!((&asked.data[..], asked.full_length), (&b"question"[..], 0));
    assert_eq!(asked.peer, Some(inet("127.0.0.1", our_port)));
    assert_eq!(asked.local_ip, "127.0.0.1");
    assert!(asked.interface_index > 0);
    let sent = scene.send_to(id, b"answer", asked.peer).await.unwrap();
    assert_eq!(sent, 0, "the kernel has taken it");
    assert_eq!(received(&ours), b"answer");
    let status = scene.datagram(id).await;
    assert_eq!((status.received, status.sent), (1, 1));
    assert!(status.receive_buffer > 0);
    let nowhere = scene.send_to(id, b"x", None).await;
    let nowhere = refused(nowhere, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(nowhere.fields, ["peer"]);
    scene.remove(id).await;
    scene.recorder.first(id, "removed").await;
    assert_eq!(
        scene.recorder.kinds(id),
        ["added", "datagram", "closed", "removed"]
    );
}

async fn a_connected_socket_hears_only_its_peer(scene: &mut Scene) {
    let (peer, peer_port) = socket();
    let (stranger, _) = socket();
    let spec = DatagramSpec {
        peer: Some(inet("localhost", peer_port)),
        ..DatagramSpec::default()
    };
    let (id, at) = bound(scene, spec).await;
    assert_eq!(
        scene.datagram(id).await.peer,
        Some(inet("127.0.0.1", peer_port))
    );
    stranger.send_to(b"no", ("127.0.0.1", at)).unwrap();
    scene.send_to(id, b"to the peer", None).await.unwrap();
    assert_eq!(received(&peer), b"to the peer");
    peer.send_to(b"yes", ("127.0.0.1", at)).unwrap();
    assert_eq!(&scene.datagram_at(id, 0).await.data[..], b"yes");
}

async fn empty_datagrams_are_events(scene: &mut Scene) {
    const MANY: usize = 200;
    let (id, at) = bound(scene, DatagramSpec::default()).await;
    let (ours, _) = socket();
    for _ in 0..MANY {
        ours.send_to(b"", ("127.0.0.1", at)).unwrap();
    }
    ours.send_to(b"last", ("127.0.0.1", at)).unwrap();
    assert!(scene.datagram_at(id, MANY - 1).await.data.is_empty());
    assert_eq!(&scene.datagram_at(id, MANY).await.data[..], b"last");
    scene
        .send_to(
            id,
            b"",
            Some(inet("127.0.0.1", ours.local_addr().unwrap().port())),
        )
        .await
        .unwrap();
    assert_eq!(received(&ours), b"");
}

async fn a_datagram_that_is_cut_says_its_full_length(scene: &mut Scene) {
    let spec = DatagramSpec {
        max_size: 100,
        ..DatagramSpec::default()
    };
    let (id, at) = bound(scene, spec).await;
    let (ours, _) = socket();
    for len in [3000, 101, 100] {
        ours.send_to(&vec![b'x'; len], ("127.0.0.1", at)).unwrap();
    }
    for (nth, (kept, full)) in [(100, 3000), (100, 101), (100, 0)].into_iter().enumerate() {
        let got = scene.datagram_at(id, nth).await;
        assert_eq!((got.data.len(), got.full_length), (kept, full));
    }
    let path = scene.daemon.dir.path().join("cut.sock");
    let spec = DatagramSpec {
        max_size: 100,
        ..datagrams_at(unix_socket(&path))
    };
    let unix = add(scene, spec).await;
    let ours = UnixDatagram::unbound().unwrap();
    ours.send_to(&[0; 5000], &path).unwrap();
    let got = scene.datagram_at(unix, 0).await;
    assert_eq!((got.data.len(), got.full_length), (100, 5000));
}

async fn datagrams_that_wait_together_keep_their_order_lengths_and_senders(scene: &mut Scene) {
    const MOST: u16 = 300;
    let spec = DatagramSpec {
        max_size: MOST.into(),
        start_paused: true,
        ..DatagramSpec::default()
    };
    let (id, at) = bound(scene, spec).await;
    let senders = [socket(), socket(), socket()];
    // More than one system call receives, with empty ones and ones that are cut between others.
    let sent: Vec<(u8, u16)> = (0..50)
        .map(|nth| (nth, u16::from(nth) * 37 % 400))
        .collect();
    let sender = |nth: u8| &senders[usize::from(nth) % 3];
    for (nth, len) in &sent {
        let data = vec![*nth; usize::from(*len)];
        sender(*nth).0.send_to(&data, ("127.0.0.1", at)).unwrap();
    }
    scene.pause_reading(id, false).await;
    for (nth, len) in sent {
        let got = scene.datagram_at(id, nth.into()).await;
        assert_eq!(got.data, vec![nth; len.min(MOST).into()]);
        let cut = if len > MOST { len } else { 0 };
        assert_eq!(got.full_length, u64::from(cut));
        assert_eq!(got.peer, Some(inet("127.0.0.1", sender(nth).1)));
        assert_eq!(got.local_ip, "127.0.0.1");
    }
}

async fn a_unix_socket_receives_and_leaves_no_file(scene: &mut Scene) {
    let directory = scene.daemon.dir.path().to_owned();
    let (path, ours_path) = (directory.join("theirs.sock"), directory.join("ours.sock"));
    // A file that a process has left behind.
    drop(UnixDatagram::bind(&path).unwrap());
    nobody_has(&path).await;
    let id = add(scene, datagrams_at(unix_socket(&path))).await;
    let ours = UnixDatagram::bind(&ours_path).unwrap();
    ours.send_to(b"named", &path).unwrap();
    let got = scene.datagram_at(id, 0).await;
    assert_eq!(got.peer, Some(unix_socket(&ours_path)));
    assert_eq!((got.local_ip.as_str(), got.interface_index), ("", 0));
    scene.send_to(id, b"back", got.peer).await.unwrap();
    let mut buffer = [0; 16];
    assert_eq!(ours.recv(&mut buffer).unwrap(), 4);
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"", &path)
        .unwrap();
    let got = scene.datagram_at(id, 1).await;
    assert!(got.peer.is_none() && got.data.is_empty(), "{got:?}");
    let taken = scene.request(Spec::Datagram(datagrams_at(unix_socket(&path))));
    let taken = refused(scene.try_add(taken).await, Code::AlreadyExists, "SYSTEM");
    assert_eq!(taken.word("errno_name"), "EADDRINUSE");
    scene.remove(id).await;
    let gone = async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    };
    crate::common::within("the removal of the file", gone).await;
}

async fn a_paused_unix_socket_makes_its_sender_wait(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("paused.sock");
    let spec = DatagramSpec {
        start_paused: true,
        ..datagrams_at(unix_socket(&path))
    };
    let id = add(scene, spec).await;
    let ours = UnixDatagram::unbound().unwrap();
    ours.connect(&path).unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut sent = 0_u32;
    while ours.send(&sent.to_be_bytes()).is_ok() {
        sent += 1;
    }
    assert!(sent > 0);
    scene.settle().await;
    assert!(!scene.recorder.kinds(id).contains(&"datagram"));
    ours.set_nonblocking(false).unwrap();
    let rest = tokio::task::spawn_blocking(move || {
        for number in sent..sent + 50 {
            ours.send(&number.to_be_bytes()).unwrap();
        }
    });
    scene.pause_reading(id, false).await;
    for number in 0..sent + 50 {
        let got = scene.datagram_at(id, number as usize).await;
        assert_eq!(&got.data[..], number.to_be_bytes());
    }
    rest.await.unwrap();
}

async fn what_the_kernel_dropped_is_counted_after_a_burst_and_silence(scene: &mut Scene) {
    const SENT: u64 = 300;
    let spec = DatagramSpec {
        start_paused: true,
        receive_buffer: 4096,
        ..DatagramSpec::default()
    };
    let (id, at) = bound(scene, spec).await;
    let (ours, _) = socket();
    for _ in 0..SENT {
        ours.send_to(&[0; 1000], ("127.0.0.1", at)).unwrap();
    }
    let dropped = scene.datagram(id).await.dropped;
    assert!((1..SENT).contains(&dropped), "{dropped}");
    scene.pause_reading(id, false).await;
    let arrived = usize::try_from(SENT - dropped).unwrap();
    scene.datagram_at(id, arrived - 1).await;
    scene.settle().await;
    assert_eq!(told(&scene.recorder, id), dropped);
    ours.send_to(b"more", ("127.0.0.1", at)).unwrap();
    scene.datagram_at(id, arrived).await;
    scene.settle().await;
    assert_eq!(told(&scene.recorder, id), dropped);
}

async fn an_answer_leaves_from_the_address_that_was_asked(scene: &mut Scene) {
    for local in [inet("0.0.0.0", 0), inet("", 0)] {
        let id = add(scene, datagrams_at(local)).await;
        let at = port(scene, id).await;
        let (ours, _) = socket();
        ours.send_to(b"?", ("127.0.0.2", at)).unwrap();
        let asked = scene.datagram_at(id, 0).await;
        assert_eq!(asked.local_ip, "127.0.0.2");
        let request = SendToRequest {
            r#loop: Some(scene.target.clone()),
            watch: crate::common::by_id(id),
            data: bytes::Bytes::from_static(b"!"),
            peer: asked.peer,
            source_ip: asked.local_ip,
            ..SendToRequest::default()
        };
        scene.daemon.transports().send_to(request).await.unwrap();
        let (_, from) = ours.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(from, format!("127.0.0.2:{at}").parse().unwrap());
    }
}

async fn an_adopted_socket_keeps_its_flags_and_can_be_taken(scene: &mut Scene) {
    let (theirs, at) = socket();
    let before = rustix::fs::fcntl_getfl(&theirs).unwrap();
    let handover = scene.daemon.handover().await;
    let adopted = |slot| DatagramSpec {
        slot,
        ..DatagramSpec::default()
    };
    let id = add(scene, adopted(handover.give(&theirs))).await;
    let (ours, _) = socket();
    ours.send_to(b"x", ("127.0.0.1", at)).unwrap();
    scene.datagram_at(id, 0).await;
    assert_eq!(rustix::fs::fcntl_getfl(&theirs).unwrap(), before);
    let request = TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: crate::common::by_id(id),
        ..TakeFdRequest::default()
    };
    let taken = scene.daemon.watches().take_fd(request).await.unwrap();
    let taken = UdpSocket::from(handover.take(&taken.into_inner().slot));
    ours.send_to(b"still open", ("127.0.0.1", at)).unwrap();
    assert_eq!(received(&taken), b"still open");

    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let request = scene.request(Spec::Datagram(adopted(handover.give(&stream))));
    let unfit = refused(
        scene.try_add(request).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(unfit.fields, ["spec.datagram.slot"]);
    let both = DatagramSpec {
        broadcast: true,
        ..adopted(handover.give(&theirs))
    };
    let request = scene.request(Spec::Datagram(both));
    let both = refused(
        scene.try_add(request).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(both.fields, ["spec.datagram.slot"]);
}

async fn a_socket_that_another_process_shuts_down_completes(scene: &mut Scene) {
    let (theirs, ours) = UnixDatagram::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    let spec = DatagramSpec {
        slot,
        ..DatagramSpec::default()
    };
    let id = add(scene, spec).await;
    ours.send(b"before").unwrap();
    theirs.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(&scene.datagram_at(id, 0).await.data[..], b"before");
}

async fn a_bad_specification_is_refused_by_the_name_of_its_field(scene: &mut Scene) {
    let at = || datagrams_at(inet("127.0.0.1", 0));
    let unix = datagrams_at(unix_socket(std::path::Path::new("/tmp/none.sock")));
    let group = |ip: &str, interface: &str| MulticastGroup {
        ip: ip.into(),
        interface: interface.into(),
    };
    for (field, spec) in [
        ("spec.datagram", DatagramSpec::default()),
        (
            "spec.datagram.local",
            datagrams_at(SocketAddress::default()),
        ),
        ("spec.datagram.local.inet.port", {
            let mut local = inet("127.0.0.1", 0);
            if let Some(socket_address::Address::Inet(inet)) = &mut local.address {
                inet.port = 65_536;
            }
            datagrams_at(local)
        }),
        (
            "spec.datagram.peer.inet.port",
            DatagramSpec {
                peer: Some(inet("127.0.0.1", 0)),
                ..at()
            },
        ),
        (
            "spec.datagram.peer.inet.ip",
            DatagramSpec {
                peer: Some(inet("", 1)),
                ..at()
            },
        ),
        (
            "spec.datagram.peer",
            DatagramSpec {
                peer: Some(inet("127.0.0.1", 1)),
                ..unix.clone()
            },
        ),
        (
            "spec.datagram.local.unix.path",
            datagrams_at(unix_socket(std::path::Path::new("relative"))),
        ),
        (
            "spec.datagram.broadcast",
            DatagramSpec {
                broadcast: true,
                ..unix
            },
        ),
        (
            "spec.datagram.ttl",
            DatagramSpec {
                ttl: Some(0),
                ..at()
            },
        ),
        (
            "spec.datagram.multicast_ttl",
            DatagramSpec {
                multicast_ttl: Some(256),
                ..at()
            },
        ),
        (
            "spec.datagram.groups.ip",
            DatagramSpec {
                groups: vec![group("127.0.0.1", "")],
                ..at()
            },
        ),
        (
            "spec.datagram.groups.interface",
            DatagramSpec {
                groups: vec![group("224.0.0.251", "a-name-that-is-too-long")],
                ..at()
            },
        ),
        (
            "spec.datagram.receive_buffer",
            DatagramSpec {
                receive_buffer: 1,
                ..at()
            },
        ),
        (
            "spec.datagram.max_size",
            DatagramSpec {
                max_size: 256 << 10,
                ..at()
            },
        ),
    ] {
        let request = scene.request(Spec::Datagram(spec));
        let bad = scene.try_add(request).await;
        let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, [field]);
    }
    assert_eq!(scene.open_watches().await, 0);
}
