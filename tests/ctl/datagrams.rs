//! `watch udp`, and `write` to it.

use std::net::UdpSocket;

use crate::common::{Daemon, PATIENCE};
use crate::program::ctl;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn udp_is_bound_or_connected_and_write_sends_one_datagram() {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await;
    let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let at = ours.local_addr().unwrap().to_string();
    let received = || {
        let mut buffer = [0; 64];
        let (len, from) = ours.recv_from(&mut buffer).unwrap();
        (buffer[..len].to_vec(), from)
    };

    on(&["watch", "udp", "--to", &at, "--name", "peer"])
        .await
        .good();
    on(&["write", "peer", "hello"]).await.good();
    let (data, from) = received();
    assert_eq!(data, b"hello");
    ours.send_to(b"answer", from).unwrap();
    let shown = on(&["watch", "get", "peer"]).await.good();
    assert!(
        shown.contains(&format!("127.0.0.1:{} → {at}", from.port())),
        "{shown}"
    );

    let options = ["--broadcast", "--ttl", "3", "--max-size", "100"];
    let words = ["udp", "127.0.0.1:0", "--name", "any"];
    on(&[&words[..], &options].concat()).await.good();
    on(&["write", "any", "", "--to", &at]).await.good();
    assert_eq!(received().0, b"");
    on(&["write", "any", "lost"])
        .await
        .failed(1, &["--to: must be set: the socket is not connected"]);
    on(&["watch", "timer", "--after", "1h", "--name", "timer"])
        .await
        .good();
    on(&["write", "timer", "x", "--to", &at])
        .await
        .failed(2, &["timer", "only a `watch udp` takes --to"]);
    on(&["watch", "udp"]).await.failed(2, &["missing: <LOCAL>"]);
    on(&["watch", "udp", ":0", "--join", "127.0.0.1"])
        .await
        .failed(2, &["the address of a multicast group is expected"]);
    on(&["watch", "udp", "--to", "fd:3"])
        .await
        .failed(2, &["a descriptor is no address to send to"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reading_is_paused_and_resumed_and_groups_are_joined_and_left() {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await;
    let udp = ["udp", "127.0.0.1:0", "--name", "u"];
    on(&[&udp[..], &["--multicast-loop", "false"]].concat())
        .await
        .good();
    let shown = async || on(&["watch", "get", "u"]).await.good();
    let json = on(&["--json", "watch", "get", "u"]).await.good();
    assert!(json.contains("\"multicast_loop\":false"), "{json}");

    on(&["watch", "pause", "u"]).await.good();
    assert!(shown().await.contains("reading   paused"));
    on(&["watch", "resume", "u"]).await.good();
    assert!(!shown().await.contains("paused"));
    let timer = ["watch", "timer", "--after", "1h", "--name", "t"];
    on(&timer).await.good();
    on(&["watch", "pause", "t"])
        .await
        .failed(1, &["t: ", "`evloopctl update t --pause`"]);

    let group = "224.0.0.251%lo";
    on(&["watch", "join", "u", group]).await.good();
    on(&["watch", "join", "u", group])
        .await
        .failed(1, &["EADDRINUSE"]);
    on(&["watch", "leave", "u", group]).await.good();
    on(&["watch", "leave", "u", group])
        .await
        .failed(1, &["EADDRNOTAVAIL"]);
    on(&["watch", "join", "u", "127.0.0.1"])
        .await
        .failed(2, &["the address of a multicast group is expected"]);
    on(&["watch", "join", "u", "224.0.0.251%nope"])
        .await
        .failed(1, &["nope"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_datagram_is_sent_from_the_address_that_is_asked_for() {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await;
    let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let at = ours.local_addr().unwrap().to_string();
    on(&["udp", "0.0.0.0:0", "--name", "u"]).await.good();
    let source = ["--source", "127.0.8.9", "--interface", "lo"];
    on(&[&["write", "u", "x", "--to", &at][..], &source].concat())
        .await
        .good();
    let (_, from) = ours.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(from.ip().to_string(), "127.0.8.9");
}
