//! Limits of open connections, and listeners of both families.

use std::collections::HashSet;
use std::io::Write;
use std::net::{Ipv6Addr, TcpStream};

use evloopd::proto::event::Kind;
use evloopd::proto::{
    ListenerSpec, ListenerStatus, TcpListen, listener_spec, socket_address, watch,
};

use crate::common::{Scene, listener, tcp_listener};
use crate::listeners::{accepted, listen, port, take};

on_each_backend!(
    never_one_connection_more_than_the_limit_is_open,
    a_connection_that_is_taken_out_leaves_its_place,
    addresses_share_their_limit_and_none_starves,
    one_socket_serves_both_families,
);

async fn status(scene: &Scene, id: u64) -> ListenerStatus {
    match scene.get(id).await.status {
        Some(watch::Status::Listener(status)) => status,
        other => panic!("{other:?}"),
    }
}

/// Returns the most connections that were open at once, by the order of the events.
fn most_open(scene: &Scene) -> usize {
    let (mut open, mut most) = (HashSet::new(), 0);
    for event in scene.recorder.recording.events() {
        match &event.kind {
            Some(Kind::Accepted(accepted)) => drop(open.insert(accepted.watch_id)),
            Some(Kind::Closed(_)) => drop(open.remove(&event.watch_id)),
            _ => {}
        }
        most = most.max(open.len());
    }
    most
}

async fn never_one_connection_more_than_the_limit_is_open(scene: &mut Scene) {
    const LIMIT: usize = 5;
    const CLIENTS: usize = 20;
    let id = listen(
        scene,
        ListenerSpec {
            max_connections: 5,
            ..tcp_listener()
        },
    )
    .await;
    let to = port(scene, id).await;
    let connect = |_| TcpStream::connect(("127.0.0.1", to)).unwrap();
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(connect).collect();
    accepted(scene, id, LIMIT).await;
    scene.settle().await;
    let full = status(scene, id).await;
    assert_eq!((full.accepted, full.open_connections), (5, 5));
    for served in 1..=CLIENTS {
        // The oldest client is the one that was accepted first.
        let connection = accepted(scene, id, served).await;
        drop(clients.remove(0));
        scene.closed(connection).await;
    }
    scene.settle().await;
    assert_eq!(most_open(scene), LIMIT);
    let empty = status(scene, id).await;
    assert_eq!((empty.accepted, empty.open_connections), (20, 0));
}

async fn a_connection_that_is_taken_out_leaves_its_place(scene: &mut Scene) {
    let id = listen(
        scene,
        ListenerSpec {
            max_connections: 1,
            ..tcp_listener()
        },
    )
    .await;
    let to = port(scene, id).await;
    let _clients = [0, 1].map(|_| TcpStream::connect(("127.0.0.1", to)).unwrap());
    let first = accepted(scene, id, 1).await;
    scene.recorder.first(first, "connected").await;
    let _ours = take(scene, first).await;
    accepted(scene, id, 2).await;
}

async fn addresses_share_their_limit_and_none_starves(scene: &mut Scene) {
    let spec = ListenerSpec {
        max_connections: 1,
        ..listener(listener_spec::Target::Tcp(TcpListen {
            hosts: vec!["127.0.0.1".into(), "127.0.0.2".into()],
            ..TcpListen::default()
        }))
    };
    let id = listen(scene, spec).await;
    let to = port(scene, id).await;
    let mut nth = 0;
    for _ in 0..3 {
        let mut clients =
            ["127.0.0.2", "127.0.0.1"].map(|ip| Some(TcpStream::connect((ip, to)).unwrap()));
        for _ in 0..2 {
            nth += 1;
            let connection = accepted(scene, id, nth).await;
            scene.settle().await;
            assert_eq!(status(scene, id).await.open_connections, 1);
            let peer = match scene.recorder.first(connection, "connected").await.kind {
                Some(Kind::Connected(connected)) => connected.local.unwrap(),
                other => panic!("{other:?}"),
            };
            let Some(socket_address::Address::Inet(local)) = peer.address else {
                panic!("a TCP socket has an IP address");
            };
            let which = usize::from(local.ip == "127.0.0.1");
            drop(clients[which].take().unwrap());
            scene.closed(connection).await;
        }
    }
    scene.settle().await;
    assert_eq!(most_open(scene), 1);
}

async fn one_socket_serves_both_families(scene: &mut Scene) {
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("NOT TESTED: this host has no IPv6");
        return;
    }
    for hosts in [vec![], vec!["::".to_owned()]] {
        let target = |ipv6_only| {
            listener(listener_spec::Target::Tcp(TcpListen {
                hosts: hosts.clone(),
                ipv6_only,
                ..TcpListen::default()
            }))
        };
        let id = listen(scene, target(Some(false))).await;
        let addresses = status(scene, id).await.addresses;
        assert_eq!(addresses.len(), 1, "{addresses:?}");
        let to = port(scene, id).await;
        for (nth, ip) in ["127.0.0.1", "::1"].into_iter().enumerate() {
            let mut ours = TcpStream::connect((ip, to)).unwrap();
            ours.write_all(b"x").unwrap();
            let connection = accepted(scene, id, nth + 1).await;
            scene.recorder.first(connection, "data").await;
            drop(ours);
            scene.closed(connection).await;
        }
        // By default, a socket has one family.
        let id = listen(scene, target(None)).await;
        let to = port(scene, id).await;
        let ipv4 = TcpStream::connect(("127.0.0.1", to));
        assert_eq!(ipv4.is_ok(), hosts.is_empty());
    }
}
