//! A peer that never reads delays a close no longer than the configuration allows.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use evloopd::proto::CloseReason;
use evloopd::proto::watch_spec::Spec;

use crate::common::{Daemon, Scene, adopted, tcp, write_pipe};

const SIZE: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn closing_a_peer_that_never_reads_counts_its_unsent_bytes() {
    for (policy, backend) in [
        ("", "epoll"),
        ("", "poll"),
        ("", "select"),
        ("proactor", "io_uring"),
    ] {
        let daemon = Daemon::start("[limits]\nclose_linger = \"100ms\"\n").await;
        let mut scene = Scene::new(daemon, policy, backend).await;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let over_tcp = scene
            .add(Spec::Connection(tcp("127.0.0.1", port.into())))
            .await;
        let (tcp_peer, _) = listener.accept().unwrap();
        scene.recorder.first(over_tcp, "connected").await;

        let (unix_peer, theirs) = UnixStream::pair().unwrap();
        let slot = scene.daemon.handover().await.give(&theirs);
        drop(theirs);
        let over_unix = scene.add(Spec::Connection(adopted(slot))).await;

        let (pipe_peer, writing) = std::io::pipe().unwrap();
        let slot = scene.daemon.handover().await.give(&writing);
        drop(writing);
        let over_pipe = scene.add(write_pipe(slot)).await;

        missed(&mut scene, over_tcp, tcp_peer).await;
        missed(&mut scene, over_unix, unix_peer).await;
        missed(&mut scene, over_pipe, pipe_peer).await;
        scene.finish().await;
    }
}

/// Fills every buffer on the way to the peer, removes the watch, and checks `unsent_bytes`.
async fn missed(scene: &mut Scene, id: u64, mut peer: impl Read) {
    let piece = vec![b'x'; SIZE];
    let (mut taken, mut full) = (0, 0);
    while full < 3 {
        let answer = scene.write_at(id, &piece, None).await.unwrap();
        full = if answer.taken == taken { full + 1 } else { 0 };
        taken = answer.taken;
        scene.settle().await;
    }
    let asked = std::time::Instant::now();
    scene.remove(id).await;
    assert!(asked.elapsed() >= Duration::from_millis(100));
    let closed = scene.closed(id).await;
    assert_eq!(closed.reason(), CloseReason::Removed);
    assert!(closed.unsent_bytes > 0);
    // The peer can read what the kernel had taken, unless the kernel reset the connection.
    let mut read = Vec::new();
    if peer.read_to_end(&mut read).is_ok() {
        assert_eq!(read.len() as u64 + closed.unsent_bytes, taken);
    }
}
