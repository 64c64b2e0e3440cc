//! Limits of the system, of the daemon and of a loop.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use evloopd::proto::batch_add_watches_result::Result as Item;
use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;
use tonic::Code;

use crate::common::{
    Daemon, Scene, exec, millis, never, reader, refusal, refused, shell, tcp_listener, within,
};

fn item(spec: Spec) -> AddWatchRequest {
    AddWatchRequest {
        spec: Some(WatchSpec { spec: Some(spec) }),
        ..AddWatchRequest::default()
    }
}

async fn add_all(scene: &Scene, specs: Vec<Spec>) -> Vec<u64> {
    let mut ids = Vec::new();
    for chunk in specs.chunks(1000) {
        let request = BatchAddWatchesRequest {
            r#loop: Some(scene.target.clone()),
            requests: chunk.iter().cloned().map(item).collect(),
            ..BatchAddWatchesRequest::default()
        };
        let answer = scene
            .daemon
            .watches()
            .batch_add_watches(request)
            .await
            .unwrap();
        for result in answer.into_inner().results {
            match result.result {
                Some(Item::Added(added)) => ids.push(added.watch.unwrap().watch_id),
                other => panic!("{other:?}"),
            }
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ten_thousand_watches() {
    const FDS: usize = 2000;
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    add_all(&scene, vec![never(); 10_000 - FDS]).await;
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let handover = scene.daemon.handover().await;
    let mut readers = Vec::new();
    while readers.len() < FDS {
        let slots = handover.give_all(&[theirs.as_fd(); 250]);
        let specs = slots.into_iter().map(reader).collect();
        readers.extend(add_all(&scene, specs).await);
    }
    assert_eq!(scene.open_watches().await, 10_000);
    ours.write_all(b"x").unwrap();
    for id in readers {
        scene.recorder.first(id, "ready").await;
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn accepting_pauses_when_descriptors_run_out_and_goes_on() {
    let daemon = Daemon::start_by(&["prlimit", "--nofile=64:64"], "").await;
    let mut scene = Scene::new(daemon, "", "").await;
    let id = scene.add(Spec::Listener(tcp_listener())).await;
    let Some(watch::Status::Listener(status)) = scene.get(id).await.status else {
        panic!("a listener has a listener's status");
    };
    let Some(socket_address::Address::Inet(address)) = status.addresses[0].address.clone() else {
        panic!("TCP has IP addresses");
    };
    let to = (address.ip.as_str(), u16::try_from(address.port).unwrap());
    let ours: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(to).unwrap()).collect();
    match scene.recorder.first(id, "accept_paused").await.kind {
        Some(Kind::AcceptPaused(paused)) => {
            assert_eq!(paused.error.unwrap().name, "EMFILE");
            assert_eq!(paused.retry_after.unwrap().seconds, 1);
        }
        other => panic!("{other:?}"),
    }
    drop(ours);
    scene.recorder.nth(id, "accepted", 100).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_child_without_free_descriptors_is_an_error_that_leaves_nothing() {
    let daemon = Daemon::start_by(&["prlimit", "--nofile=64:64"], "").await;
    let mut scene = Scene::new(daemon, "", "").await;
    let mut running = Vec::new();
    let refused = loop {
        let request = scene.request(Spec::Process(exec(&["sleep", "3600"])));
        match scene.try_add(request).await {
            Ok(answer) => running.push(answer.watch.unwrap().watch_id),
            Err(status) => break refusal(&status),
        }
    };
    assert_eq!(
        (refused.code, refused.word("errno_name")),
        (Code::ResourceExhausted, "EMFILE")
    );
    assert_eq!(
        usize::try_from(scene.open_watches().await).unwrap(),
        running.len()
    );
    for id in running {
        scene.remove(id).await;
    }
    let id = scene.spawn(shell("echo again")).await;
    scene.closed(id).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"again\n");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn batches_keep_their_order_through_a_small_mailbox() {
    let daemon = Daemon::start("[limits]\nmailbox = 16\n").await;
    let scene = Scene::new(daemon, "", "").await;
    let batch = || add_all(&scene, vec![never(); 2000]);
    // The calls together keep the mailbox full.
    let (a, b, c, d, e, f) = tokio::join!(batch(), batch(), batch(), batch(), batch(), batch());
    for ids in [a, b, c, d, e, f] {
        assert!(ids.is_sorted(), "{ids:?}");
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_mailbox_is_reported_and_the_loop_goes_on() {
    let daemon = Daemon::start("[limits]\nmailbox = 16\nmailbox_wait = \"1ms\"\n").await;
    let mut scene = Scene::new(daemon, "", "").await;
    add_all(&scene, vec![never(); 5000]).await;
    // Each call makes the loop look at all its watches, so that calls arrive faster than answers
    // leave.
    let mut calls = JoinSet::new();
    for _ in 0..500 {
        let request = ListWatchesRequest {
            r#loop: Some(scene.target.clone()),
            labels: [("no".to_owned(), "such".to_owned())].into(),
            ..ListWatchesRequest::default()
        };
        let mut watches = scene.daemon.watches();
        calls.spawn(async move { watches.list_watches(request).await });
    }
    let (mut served, mut full) = (0, 0);
    while let Some(call) = calls.join_next().await {
        match call.unwrap() {
            Ok(_) => served += 1,
            Err(status) => {
                refused::<()>(Err(status), Code::ResourceExhausted, "MAILBOX_FULL");
                full += 1;
            }
        }
    }
    assert!(served > 0 && full > 0, "{served} served, {full} refused");
    scene.settle().await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn select_refuses_descriptors_beyond_its_limit_by_name() {
    let mut scene = Scene::new(Daemon::start("").await, "", "select").await;
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let handover = scene.daemon.handover().await;
    let mut added = 0_u64;
    let full = 'full: loop {
        for slot in handover.give_all(&[theirs.as_fd(); 100]) {
            let request = scene.request(reader(slot));
            match scene.try_add(request).await {
                Ok(_) => added += 1,
                Err(status) => break 'full status,
            }
        }
        assert!(added <= 1024);
    };
    let full = refused::<()>(Err(full), Code::ResourceExhausted, "LIMIT");
    assert!(!full.word("limit").is_empty() && !full.word("value").is_empty());
    assert!(added > 900, "{added}");
    assert_eq!(
        scene.open_watches().await,
        added,
        "only the accepted watches are open"
    );
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn refusals_name_the_limit() {
    let config = r#"
[limits]
loops = 2
children = 2
streams = 2
slots = 2
[policy.few]
extends = "default"
max_watches = 3
"#;
    let mut scene = Scene::new(Daemon::start(config).await, "few", "").await;
    for _ in 0..2 {
        scene.spawn(exec(&["sleep", "3600"])).await;
    }
    let request = scene.request(Spec::Process(exec(&["sleep", "3600"])));
    let full = refused(
        scene.try_add(request).await,
        Code::ResourceExhausted,
        "LIMIT",
    );
    assert_eq!(
        (full.word("limit"), full.word("value")),
        ("limits.children", "2")
    );
    scene.add(never()).await;
    let request = scene.request(never());
    let full = refused(
        scene.try_add(request).await,
        Code::ResourceExhausted,
        "LIMIT",
    );
    assert_eq!(full.word("value"), "3");

    let (a, b) = UnixStream::pair().unwrap();
    let handover = scene.daemon.handover().await;
    let (reply, _) = handover.ask(b"evloopd1", &[a.as_fd(), b.as_fd(), a.as_fd()]);
    assert_eq!(reply[0], 5, "no room for all");
    let new = || NewEventLoopRequest::default();
    scene.daemon.policies().new_event_loop(new()).await.unwrap();
    let full = scene.daemon.policies().new_event_loop(new()).await;
    let full = refused(full, Code::ResourceExhausted, "LIMIT");
    assert_eq!(full.word("limit"), "limits.loops");

    let subscribe = || SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        ..SubscribeRequest::default()
    };
    let _second = scene.daemon.events().subscribe(subscribe()).await.unwrap();
    let full = scene.daemon.events().subscribe(subscribe()).await.map(drop);
    let full = refused(full, Code::ResourceExhausted, "LIMIT");
    assert_eq!(full.word("limit"), "limits.streams");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn kept_children_count_against_the_limit_and_take_no_threads() {
    const KEPT: u32 = 30;
    let config = format!(
        "[limits]\nchildren = {KEPT}\n[policy.thread]\nextends = \"default\"\n\
         child_watcher = \"thread\"\n"
    );
    for policy in ["", "thread"] {
        let mut scene = Scene::new(Daemon::start(&config).await, policy, "").await;
        let tasks = format!("/proc/{}/task", scene.daemon.pid());
        let threads = || std::fs::read_dir(&tasks).unwrap().count();
        let before = threads();
        let kept = || ProcessSpec {
            at_end: AtEnd::Keep.into(),
            ..exec(&["sleep", "3600"])
        };
        let mut pids = Vec::new();
        for _ in 0..KEPT {
            let id = scene.spawn(kept()).await;
            pids.push(Pid::from_raw(scene.started(id).await));
            scene.remove(id).await;
        }
        let request = scene.request(Spec::Process(kept()));
        let full = scene.try_add(request).await;
        let full = refused(full, Code::ResourceExhausted, "LIMIT");
        assert_eq!(full.word("limit"), "limits.children");
        assert_eq!(scene.daemon.status().await.children_kept, KEPT);
        within("the end of the last thread", async {
            // The runtime may have started threads of its pool meanwhile.
            while threads() > before + 10 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for pid in pids {
            kill(pid, Signal::SIGKILL).expect("the kept child runs on");
        }
        let none = |s: &GetStatusResponse| (s.children, s.children_kept) == (0, 0);
        scene.daemon.until("the end of all children", none).await;
        scene.spawn(exec(&["true"])).await;
        scene.finish().await;
    }
}

/// A process that exits while a program that it has started writes without end to its stdout, so
/// that the daemon drains the pipe.
fn flood() -> ProcessSpec {
    ProcessSpec {
        pipe_grace: Some(millis(0)),
        stderr: Stdio::Null.into(),
        ..shell("cat /dev/zero & exit 0")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drained_pipe_is_read_slowly_and_up_to_its_limit() {
    let config = "[children]\ndrain_bytes = \"4MiB\"\n";
    let mut scene = Scene::new(Daemon::start(config).await, "", "").await;
    let started = std::time::Instant::now();
    let id = scene.spawn(flood()).await;
    scene.closed(id).await;
    let bytes = |s: &GetStatusResponse| s.drained_bytes >= 4 << 20;
    scene
        .daemon
        .until("the limit of drained bytes", bytes)
        .await;
    // The daemon waits a millisecond between reads of 64 KiB.
    assert!(started.elapsed() >= Duration::from_millis((4 << 20) / (64 << 10) - 1));
    let closed = |s: &GetStatusResponse| s.drained_pipes == 0;
    scene.daemon.until("the end of its writer", closed).await;
    assert!(scene.daemon.log().contains("(drain_bytes)"));
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn pipes_beyond_the_limit_of_drained_pipes_are_closed() {
    let config = "[children]\ndrained_pipes = 1\ndrain_time = \"1h\"\n";
    let mut scene = Scene::new(Daemon::start(config).await, "", "").await;
    for _ in 0..3 {
        let id = scene.spawn(flood()).await;
        scene.closed(id).await;
    }
    assert_eq!(scene.daemon.status().await.drained_pipes, 1);
    let refusals = scene.daemon.log();
    assert_eq!(refusals.matches("children.drained_pipes").count(), 2);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drained_pipe_is_closed_when_its_time_is_over() {
    let config = "[children]\ndrain_time = \"10ms\"\n";
    let mut scene = Scene::new(Daemon::start(config).await, "", "").await;
    let id = scene.spawn(flood()).await;
    scene.closed(id).await;
    let closed = |s: &GetStatusResponse| s.drained_pipes == 0;
    scene.daemon.until("the end of its writer", closed).await;
    assert!(scene.daemon.log().contains("(drain_time)"));
    scene.finish().await;
}
