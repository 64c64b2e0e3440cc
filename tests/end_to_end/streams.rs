//! Streams of clients and daemons that end and come back.

use evloopd::history::{Recording, check, check_resumed, check_same};
use evloopd::proto::*;
use nix::sys::signal::Signal;

use crate::common::another::{Act, Another};
use crate::common::{Daemon, Recorder, Scene, exec, loop_named, millis, post, shell, timer};

/// Posts `count` events of 100 bytes and returns the sequence number of the last.
async fn fill(scene: &Scene, count: usize) -> u64 {
    let mut last = 0;
    for chunk in (0..count).collect::<Vec<_>>().chunks(500) {
        let posts = chunk.iter().map(|n| post(&n.to_string(), &[7; 100]));
        last = scene.post(posts.collect()).await;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_killed_mid_stream_resumes_and_misses_nothing() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let ticking = scene
        .add(timer(timer_spec::Schedule::Every(millis(1))))
        .await;
    let last = fill(&scene, 3000).await;
    let epoch = scene.recorder.recording.epoch.clone();
    let mut lives = Vec::new();
    let mut after = 0;
    for until in [700, 1500] {
        let mut life = Recording::new(epoch.clone(), after);
        let client = Another::start(&scene.daemon, Act::Subscribe { after });
        client.killed_at(&mut life, |batch| batch.through >= until);
        // The client has stored less than it had received when it died.
        after = life.through() - 10;
        lives.push(life);
    }
    let request = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::After(Cursor {
            epoch,
            seq: after,
        })),
        ..SubscribeRequest::default()
    };
    let mut final_life = Recorder::subscribe(&scene.daemon, request).await.unwrap();
    final_life.reach(last).await;
    scene.remove(ticking).await;
    lives.push(final_life.recording);
    let summary = check_resumed(&lives).unwrap();
    assert_eq!((summary.lost, summary.kinds["posted"]), (0, 3000));
    scene.recorder.reach(last).await;
    for life in &lives {
        check_same(life, &scene.recorder.recording).unwrap();
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_that_does_not_read_delays_no_other_and_gets_a_gap() {
    let config = "[policy.tiny]\nextends = \"default\"\njournal_events = 100\n";
    let mut scene = Scene::new(Daemon::start(config).await, "tiny", "").await;
    let mut stuck = Recorder::of(&scene.daemon, &scene.target).await;
    // More than flow control lets the daemon send ahead, and more than the journal holds.
    for _ in 0..60 {
        let posts = (0..10).map(|_| post("", &[0; 65_536]));
        let seq = scene.post(posts.collect()).await;
        scene.recorder.reach(seq).await;
    }
    let last = scene.settle().await;
    stuck.reach(last).await;
    let summary = check(&stuck.recording).unwrap();
    assert!(summary.lost > 0 && summary.through == last, "{summary:?}");
    assert_eq!(check(&scene.recorder.recording).unwrap().lost, 0);
    check_same(&stuck.recording, &scene.recorder.recording).unwrap();
    scene.finish().await;
}

/// On one connection, the loop's thread sends events while another thread serves the client's
/// calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn calls_are_served_while_events_leave_on_the_same_connection() {
    const CALLS: usize = 2000;
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let (daemon, target) = (&scene.daemon, &scene.target);
    let poster = async {
        let mut seq = 0;
        for n in 0..CALLS {
            let request = PostRequest {
                r#loop: Some(target.clone()),
                posts: vec![post(&n.to_string(), b"")],
                ..PostRequest::default()
            };
            let posted = daemon.events().post(request).await.unwrap().into_inner();
            seq = posted.cursor.unwrap().seq;
        }
        seq
    };
    let asker = async {
        for _ in 0..CALLS {
            daemon.info().await;
        }
    };
    let reader = async {
        while scene.recorder.recording.events().count() < CALLS {
            assert!(scene.recorder.step().await);
        }
    };
    let all = async { tokio::join!(poster, asker, reader) };
    crate::common::within("the calls", all).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_daemon_that_is_stopped_sends_goodbye_on_every_stream() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let run = RunRequest {
        r#loop: Some(scene.target.clone()),
        name: "sleeper".into(),
        spec: Some(exec(&["sleep", "3600"])),
        ..RunRequest::default()
    };
    let mut run = Recorder::run(&scene.daemon, run).await.unwrap();
    let id = run.run.as_ref().unwrap().watch_id;
    run.first(id, "started").await;
    scene.daemon.signal(Signal::SIGTERM);

    let goodbye = scene.recorder.end().await;
    assert_eq!(goodbye.reason(), GoodbyeReason::Shutdown);
    assert_eq!(
        goodbye.cursor.unwrap().seq,
        scene.recorder.recording.through()
    );
    // The child was ended before the streams were, so its run is complete.
    assert_eq!(run.end().await.reason(), GoodbyeReason::Done);
    run.first(id, "exited").await;
    assert_eq!(scene.daemon.ended().await, Some(0));
    assert!(!scene.daemon.socket.exists(), "the socket is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn children_end_with_the_daemon_unless_they_are_kept() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let ended = scene.spawn(shell("echo $$; exec sleep 3600")).await;
    let kept = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        ..shell("echo $$; exec sleep 3600")
    };
    let kept = scene.spawn(kept).await;
    let mut pids = Vec::new();
    for id in [ended, kept] {
        scene.recorder.first(id, "data").await;
        let pid = scene.recorder.bytes(id, Stream::Stdout);
        let pid = String::from_utf8(pid).unwrap().trim().parse().unwrap();
        pids.push(nix::unistd::Pid::from_raw(pid));
    }
    scene.daemon.signal(Signal::SIGTERM);
    scene.recorder.end().await;
    assert_eq!(scene.daemon.ended().await, Some(0));
    let runs = |pid| nix::sys::signal::kill(pid, Signal::SIGKILL).is_ok();
    assert_eq!((runs(pids[0]), runs(pids[1])), (false, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_daemon_that_is_killed_ends_every_stream_and_leaves_a_stale_socket() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    fill(&scene, 10).await;
    scene.settle().await;
    let dir = std::sync::Arc::clone(&scene.daemon.dir);
    scene.daemon.signal(Signal::SIGKILL);
    assert_eq!(scene.daemon.ended().await, None);
    assert!(scene.daemon.socket.exists());
    let second = Daemon::start_in(dir, "", &[]).await;
    let other = Scene::new(second, "", "").await;
    assert_ne!(
        other.recorder.recording.epoch,
        scene.recorder.recording.epoch
    );
    other.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_handed_over_fd_is_closed_when_its_client_dies() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let mut client = Another::start(&scene.daemon, Act::AddReader);
    let id = client.told().parse().unwrap();
    assert_eq!(scene.get(id).await.lifetime(), Lifetime::Process);
    drop(client);
    assert_eq!(scene.closed(id).await.reason(), CloseReason::ProcessEnded);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_quiet_stream_sends_progress() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let request = SubscribeRequest {
        r#loop: Some(loop_named("scene")),
        filter: Some(Filter {
            watch_ids: vec![u64::MAX],
            ..Filter::default()
        }),
        heartbeat: Some(millis(100)),
        ..SubscribeRequest::default()
    };
    let mut quiet = Recorder::subscribe(&scene.daemon, request).await.unwrap();
    let last = fill(&scene, 100).await;
    quiet.reach(last).await;
    let before = quiet.recording.batches.len();
    let two = async {
        while quiet.recording.batches.len() < before + 2 {
            assert!(quiet.step().await);
        }
    };
    crate::common::within("two heartbeats", two).await;
    assert_eq!(quiet.recording.events().count(), 0);
    let newest = quiet.recording.batches.last().unwrap();
    assert!(newest.caught_up && newest.after == newest.through);
    scene.settle().await;
    scene.finish().await;
}
