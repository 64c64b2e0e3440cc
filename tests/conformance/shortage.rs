//! Listeners of a daemon that has no free file descriptor.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use evloopd::proto::AcceptPaused;
use evloopd::proto::event::Kind;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::common::{Scene, after, reader, tcp_listener};
use crate::listeners::{accepted, listen, port};

on_each_backend!(
    accepting_goes_on_when_a_descriptor_is_closed,
    a_shortage_is_told_once_however_long_it_lasts,
);

/// Sets the daemon's limit of descriptors; returns what it was.
fn set_limit(scene: &Scene, most: u64) -> u64 {
    let pid = Pid::from_raw(scene.daemon.pid().as_raw());
    let soft = |current| Rlimit {
        current: Some(current),
        maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(pid, Resource::Nofile, soft(most)).unwrap();
    before.current.unwrap_or(u64::MAX)
}

/// Leaves the daemon no free descriptor: the limit is the lowest number that is free. Returns the
/// limit as it was.
async fn exhaust(scene: &mut Scene) -> u64 {
    scene.settle().await;
    let open = format!("/proc/{}/fd", scene.daemon.pid());
    let taken: Vec<u64> = std::fs::read_dir(open)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    let free = (0..).find(|number| !taken.contains(number)).unwrap();
    set_limit(scene, free)
}

fn paused(scene: &Scene, id: u64) -> Vec<AcceptPaused> {
    let events = scene.recorder.recording.events();
    events
        .filter(|event| event.watch_id == id)
        .filter_map(|event| match &event.kind {
            Some(Kind::AcceptPaused(paused)) => Some(paused.clone()),
            _ => None,
        })
        .collect()
}

/// It does not wait for the next try, which comes after a second.
async fn accepting_goes_on_when_a_descriptor_is_closed(scene: &mut Scene) {
    const TURNS: usize = 10;
    let id = listen(scene, tcp_listener()).await;
    let to = port(scene, id).await;
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let handover = scene.daemon.handover().await;
    let mut spare = Vec::new();
    for _ in 0..5 {
        spare.push(scene.add(reader(handover.give(&theirs))).await);
    }
    let before = exhaust(scene).await;
    let connect = |_: &u64| TcpStream::connect(("127.0.0.1", to)).unwrap();
    let _clients: Vec<TcpStream> = spare.iter().map(connect).collect();
    scene.recorder.first(id, "accept_paused").await;
    for (watch, nth) in spare.into_iter().zip(1..) {
        scene.remove(watch).await;
        for _ in 0..TURNS {
            scene.settle().await;
        }
        let kinds = scene.recorder.kinds(id);
        let accepted = kinds.iter().filter(|kind| **kind == "accepted").count();
        assert_eq!(accepted, nth);
    }
    set_limit(scene, before);
}

async fn a_shortage_is_told_once_however_long_it_lasts(scene: &mut Scene) {
    let id = listen(scene, tcp_listener()).await;
    let to = port(scene, id).await;
    let before = exhaust(scene).await;
    let _first = TcpStream::connect(("127.0.0.1", to)).unwrap();
    scene.recorder.first(id, "accept_paused").await;
    let tries = scene.add(after(Duration::from_millis(3500))).await;
    scene.closed(tries).await;
    let told = paused(scene, id);
    let error = told[0].error.clone().unwrap();
    assert_eq!((told.len(), error.name.as_str()), (1, "EMFILE"));
    assert_eq!(told[0].retry_after.unwrap().seconds, 1);
    set_limit(scene, before);
    accepted(scene, id, 1).await;

    let calm = scene.add(after(Duration::from_millis(2500))).await;
    scene.closed(calm).await;
    let before = exhaust(scene).await;
    let _second = TcpStream::connect(("127.0.0.1", to)).unwrap();
    scene.recorder.nth(id, "accept_paused", 2).await;
    set_limit(scene, before);
    accepted(scene, id, 2).await;
}
