//! Datagram sockets and the room of the journal.

use std::os::unix::net::UnixDatagram;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{Scene, datagrams_at, inet, refused, unix_socket};
use crate::datagrams::add;

on_each_backend_with_a_small_journal!(
    without_room_a_socket_is_not_read_and_nothing_received_is_lost,
    a_datagram_larger_than_the_journal_allows_is_refused,
);

async fn without_room_a_socket_is_not_read_and_nothing_received_is_lost(scene: &mut Scene) {
    const LEN: usize = 16_000;
    let path = scene.daemon.dir.path().join("full.sock");
    let mut slow = scene.slow_reader().await;
    let id = add(scene, datagrams_at(unix_socket(&path))).await;
    let ours = UnixDatagram::unbound().unwrap();
    ours.connect(&path).unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut sent = 0_u32;
    let datagram = |number: u32| {
        let mut data = vec![0; LEN];
        data[..4].copy_from_slice(&number.to_be_bytes());
        data
    };
    // Until the journal, 256 KiB, and the socket's queue are full.
    loop {
        match ours.send(&datagram(sent)) {
            Ok(_) => sent += 1,
            Err(_) if scene.get(id).await.source_pause.is_some() => break,
            Err(_) => tokio::task::yield_now().await,
        }
    }
    assert!(sent < 64, "{sent} datagrams did not fit");
    ours.set_nonblocking(false).unwrap();
    let rest = tokio::task::spawn_blocking(move || {
        for number in sent..sent + 20 {
            ours.send(&datagram(number)).unwrap();
        }
    });
    let mut got = 0;
    while got < sent + 20 {
        assert!(slow.step().await, "the stream ended");
        scene.acknowledge(&slow).await;
        let kinds = slow.kinds(id);
        got = u32::try_from(kinds.iter().filter(|kind| **kind == "datagram").count()).unwrap();
    }
    rest.await.unwrap();
    for number in 0..sent + 20 {
        let event = slow.nth(id, "datagram", number as usize + 1).await;
        let Some(Kind::Datagram(told)) = event.kind else {
            panic!("{event:?}");
        };
        assert_eq!(told.data[..4], number.to_be_bytes());
    }
}

async fn a_datagram_larger_than_the_journal_allows_is_refused(scene: &mut Scene) {
    let at = datagrams_at(inet("127.0.0.1", 0));
    let id = add(scene, at.clone()).await;
    let granted = scene.datagram(id).await.max_size;
    assert_eq!(granted, (32 << 10) - 1024, "an eighth of the journal");
    let more = DatagramSpec {
        max_size: granted + 1,
        ..at
    };
    let request = scene.request(Spec::Datagram(more));
    let bad = scene.try_add(request).await;
    let bad = refused(bad, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(bad.fields, ["spec.datagram.max_size"]);
}
