//! Groups that a datagram watch joins and leaves, the interface that it sends from, and receivers
//! that do not hold up each other.

use std::os::unix::net::UnixDatagram;

use evloopd::proto::attach_request::Message;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{
    Recorder, Scene, by_id, datagrams_at, inet, refusal, refused, unix_socket, within,
};
use crate::datagrams::{add, bound, port, received, socket};

on_each_backend!(
    groups_are_joined_and_left_at_any_time,
    the_group_too_many_names_the_limit,
    only_a_udp_socket_has_groups,
    a_source_interface_is_where_a_datagram_leaves,
    datagrams_are_sent_over_attach,
    a_full_unix_receiver_holds_up_nobody_else,
);

/// A socket whose datagrams to groups stay on this host.
pub(crate) fn to_groups() -> DatagramSpec {
    DatagramSpec {
        multicast_ttl: Some(0),
        ..DatagramSpec::default()
    }
}

async fn groups_are_joined_and_left_at_any_time(scene: &mut Scene) {
    let id = add(scene, datagrams_at(inet("0.0.0.0", 0))).await;
    let at = port(scene, id).await;
    let sender = DatagramSpec {
        multicast_interface: "lo".into(),
        ..to_groups()
    };
    let (sender, _) = bound(scene, sender).await;
    let group = "239.1.2.5";
    for (step, text) in ["before", "member", "after"].into_iter().enumerate() {
        match step {
            1 => scene.join(id, group).await.unwrap(),
            2 => scene.leave(id, group).await.unwrap(),
            _ => {}
        }
        // The one to the host always arrives, after the one to the group.
        for (to, data) in [(group, text), ("127.0.0.1", "direct")] {
            let to = Some(inet(to, at));
            scene.send_to(sender, data.as_bytes(), to).await.unwrap();
        }
    }
    for (nth, text) in ["direct", "member", "direct", "direct"].iter().enumerate() {
        let got = scene.datagram_at(id, nth).await;
        assert_eq!(&got.data[..], text.as_bytes());
        assert_eq!(got.local_ip == group, *text == "member");
    }
    let six = add(scene, datagrams_at(inet("::", 0))).await;
    for (id, group) in [(id, group), (six, "ff11::1:5"), (six, "239.1.2.5")] {
        scene.join(id, group).await.unwrap();
        let twice = refusal(&scene.join(id, group).await.unwrap_err());
        assert_eq!(twice.word("errno_name"), "EADDRINUSE");
        scene.leave(id, group).await.unwrap();
        let again = refusal(&scene.leave(id, group).await.unwrap_err());
        assert_eq!(
            (again.word("errno_name"), again.word("step")),
            ("EADDRNOTAVAIL", "leave")
        );
    }
}

async fn the_group_too_many_names_the_limit(scene: &mut Scene) {
    let limit = std::fs::read_to_string("/proc/sys/net/ipv4/igmp_max_memberships").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let id = add(scene, datagrams_at(inet("0.0.0.0", 0))).await;
    for nth in 0..limit {
        let joined = scene
            .join(id, &format!("239.2.{}.{}", nth / 200, nth % 200))
            .await;
        joined.unwrap();
    }
    let one_more = scene.join(id, "239.3.0.1").await.unwrap_err();
    assert!(
        one_more.message().contains("net.ipv4.igmp_max_memberships"),
        "{one_more:?}"
    );
    let refusal = refused::<()>(Err(one_more), Code::ResourceExhausted, "SYSTEM");
    assert_eq!(
        (refusal.word("errno_name"), refusal.word("step")),
        ("ENOBUFS", "join")
    );
    scene.leave(id, "239.2.0.0").await.unwrap();
    scene.join(id, "239.3.0.1").await.unwrap();
}

async fn only_a_udp_socket_has_groups(scene: &mut Scene) {
    let path = scene.daemon.dir.path().join("groups.sock");
    let unix = add(scene, datagrams_at(unix_socket(&path))).await;
    let timer = scene.add(crate::common::never()).await;
    for id in [unix, timer] {
        let none = scene.join(id, "239.1.2.3").await;
        refused(none, Code::FailedPrecondition, "WRONG_STATE");
    }
    let (id, _) = bound(scene, DatagramSpec::default()).await;
    let bad = refused(
        scene.join(id, "127.0.0.1").await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(bad.fields, ["group.ip"]);
    let request = JoinGroupRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..JoinGroupRequest::default()
    };
    let none = scene.daemon.transports().join_group(request).await;
    let none = refused(none, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(none.fields, ["group"]);
}

fn loopback() -> u32 {
    let (any, _) = socket();
    rustix::net::netdevice::name_to_index(any, "lo").unwrap()
}

pub(crate) async fn send_from(
    scene: &Scene,
    id: u64,
    peer: SocketAddress,
    index: u32,
) -> Result<(), tonic::Status> {
    let request = SendToRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        data: (&b"from lo"[..]).into(),
        peer: Some(peer),
        source_interface_index: index,
        ..SendToRequest::default()
    };
    scene.daemon.transports().send_to(request).await.map(drop)
}

async fn a_source_interface_is_where_a_datagram_leaves(scene: &mut Scene) {
    let four = add(scene, datagrams_at(inet("0.0.0.0", 0))).await;
    let at = port(scene, four).await;
    let six = add(scene, datagrams_at(inet("::", 0))).await;
    let (ours, our_port) = socket();
    scene.join(four, "239.1.2.6").await.unwrap();
    let sender = DatagramSpec {
        local: Some(inet("0.0.0.0", 0)),
        ..to_groups()
    };
    let sender = add(scene, sender).await;
    // Without the index, the kernel sends to a group where its routes lead.
    let group = inet("239.1.2.6", at);
    send_from(scene, sender, group, loopback()).await.unwrap();
    let got = scene.datagram_at(four, 0).await;
    assert_eq!(
        (&got.data[..], got.interface_index),
        (&b"from lo"[..], loopback())
    );
    // An IPv6 socket reaches both families.
    let at = port(scene, six).await;
    send_from(scene, six, inet("::1", at), loopback())
        .await
        .unwrap();
    assert_eq!(&scene.datagram_at(six, 0).await.data[..], b"from lo");
    let to = inet("127.0.0.1", our_port);
    send_from(scene, six, to.clone(), loopback()).await.unwrap();
    assert_eq!(received(&ours), b"from lo");

    let none = send_from(scene, sender, to.clone(), i32::MAX.cast_unsigned()).await;
    let none = refusal(&none.unwrap_err());
    assert_eq!(none.reason, "SYSTEM");
    let odd = send_from(scene, sender, to, u32::MAX).await;
    let odd = refused(odd, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(odd.fields, ["source_interface_index"]);
    let path = scene.daemon.dir.path().join("source.sock");
    let unix = add(scene, datagrams_at(unix_socket(&path))).await;
    let bad = send_from(scene, unix, unix_socket(&path), 1).await;
    let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(bad.fields, ["source_interface_index"]);
}

async fn datagrams_are_sent_over_attach(scene: &mut Scene) {
    let (id, _) = bound(scene, DatagramSpec::default()).await;
    let (ours, our_port) = socket();
    let start = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        ..SubscribeRequest::default()
    };
    let (mut attached, requests) = Recorder::attach(&scene.daemon, start).await.unwrap();
    let send = |number, data: &'static [u8], port| {
        let peer = Some(inet("127.0.0.1", port));
        Message::SendTo(AttachSendTo {
            number,
            watch: by_id(id),
            data: data.into(),
            peer,
            ..AttachSendTo::default()
        })
    };
    for message in [
        send(0, b"one", our_port),
        send(7, b"two", our_port),
        send(0, b"", 0),
        send(8, b"", our_port),
    ] {
        requests.send(message).await.unwrap();
    }
    for text in [&b"one"[..], b"two", b""] {
        assert_eq!(received(&ours), text);
    }
    within("three results", async {
        while attached.results.len() < 3 {
            assert!(attached.step().await);
        }
    })
    .await;
    let results: Vec<_> = attached.results.into_iter().collect();
    let numbers: Vec<u64> = results.iter().map(|result| result.number).collect();
    assert_eq!(numbers, [7, 0, 8]);
    let sent = SendToResponse { buffered_bytes: 0 };
    assert_eq!(results[0].result, Some(attach_result::Result::Sent(sent)));
    match &results[1].result {
        Some(attach_result::Result::Error(error)) => assert_eq!(error.reason, "INVALID_FIELD"),
        other => panic!("{other:?}"),
    }
}

/// Sends numbers to a receiver until one is refused; returns how many were taken.
async fn fill(scene: &Scene, id: u64, peer: &SocketAddress) -> u32 {
    for number in 0_u32.. {
        // As many as the receiver's queue takes also fit the sender's buffer, so that the sender
        // itself is never full.
        let data = [&number.to_be_bytes()[..], &[0; 4 << 10]].concat();
        let sent = scene.send_to(id, &data, Some(peer.clone())).await;
        if let Err(full) = sent {
            refused::<()>(Err(full), Code::ResourceExhausted, "LIMIT");
            return number;
        }
    }
    unreachable!()
}

async fn numbers(from: UnixDatagram, count: u32) -> UnixDatagram {
    let read = tokio::task::spawn_blocking(move || {
        from.set_read_timeout(Some(crate::common::PATIENCE))
            .unwrap();
        for number in 0..count {
            let mut data = [0; 4];
            from.recv(&mut data).unwrap();
            assert_eq!(u32::from_be_bytes(data), number);
        }
        from
    });
    read.await.unwrap()
}

async fn a_full_unix_receiver_holds_up_nobody_else(scene: &mut Scene) {
    const COUNT: u32 = 200;
    let dir = scene.daemon.dir.path().to_owned();
    let [slow, quick] = ["slow", "quick"].map(|name| dir.join(name));
    let (slow_socket, quick_socket) = (
        UnixDatagram::bind(&slow).unwrap(),
        UnixDatagram::bind(&quick).unwrap(),
    );
    let (slow, quick) = (unix_socket(&slow), unix_socket(&quick));
    let id = add(scene, datagrams_at(unix_socket(&dir.join("own")))).await;
    // A few wait for the slow receiver, and more go to the quick one than its queue takes.
    let mut waiting = 0;
    let mut to_slow = 0_u32;
    while waiting < 1000 {
        let number = to_slow.to_be_bytes();
        waiting = scene
            .send_to(id, &number, Some(slow.clone()))
            .await
            .unwrap();
        to_slow += 1;
    }
    let reading = tokio::spawn(numbers(quick_socket, COUNT));
    for number in 0..COUNT {
        let number = number.to_be_bytes();
        scene
            .send_to(id, &number, Some(quick.clone()))
            .await
            .unwrap();
    }
    let quick_socket = reading.await.unwrap();
    // Nothing more waits than the limit allows, and what need not wait still goes.
    let slow_socket = numbers(slow_socket, to_slow).await;
    let to_slow = fill(scene, id, &slow).await;
    let status = scene.datagram(id).await;
    assert!(status.buffered_bytes <= 1 << 20, "{status:?}");
    for number in 0..10_u32 {
        let number = number.to_be_bytes();
        let sent = scene.send_to(id, &number, Some(quick.clone())).await;
        assert_eq!(sent.unwrap(), 0);
    }
    numbers(quick_socket, 10).await;
    numbers(slow_socket, to_slow).await;
    scene.recorder.first(id, "write_resumed").await;
    let request = scene.request(Spec::Datagram(datagrams_at(inet("127.0.0.1", 0))));
    scene.try_add(request).await.unwrap();
}
