//! The fence of Poll: its answer comes after everything armed so far has been looked at once, even
//! if that takes many turns.

use std::os::fd::AsFd;
use std::time::Duration;

use evloopd::proto::*;

use crate::common::{Daemon, PATIENCE, Scene, after, lasting};

/// Returns the events of that kind which a Poll with a fence answers.
async fn look(scene: &Scene, seen: u64, kind: EventKind, rearm: Vec<RearmItem>) -> Batch {
    let request = PollRequest {
        r#loop: Some(scene.target.clone()),
        after: Some(Cursor {
            epoch: String::new(),
            seq: seen,
        }),
        filter: Some(Filter {
            kinds: vec![kind.into()],
            ..Filter::default()
        }),
        max_events: 65_536,
        fence: true,
        rearm,
        ..PollRequest::default()
    };
    let answer = scene.daemon.events().poll(request).await.unwrap();
    answer.into_inner().batch.unwrap()
}

async fn add_all(scene: &Scene, specs: Vec<watch_spec::Spec>) -> Vec<u64> {
    let add = |spec| AddWatchRequest {
        spec: Some(WatchSpec { spec: Some(spec) }),
        ..AddWatchRequest::default()
    };
    let request = BatchAddWatchesRequest {
        r#loop: Some(scene.target.clone()),
        requests: specs.into_iter().map(add).collect(),
        ..BatchAddWatchesRequest::default()
    };
    let answer = scene.daemon.watches().batch_add_watches(request).await;
    let id = |result: BatchAddWatchesResult| match result.result {
        Some(batch_add_watches_result::Result::Added(added)) => added.watch.unwrap().watch_id,
        other => panic!("{other:?}"),
    };
    let results = answer.unwrap().into_inner().results;
    results.into_iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fence_looks_at_due_timers_that_wait_for_a_later_turn() {
    const TIMERS: usize = 2000;
    let daemon = Daemon::start("[limits]\nturn_events = 1").await;
    let mut scene = Scene::new(daemon, "", "").await;
    // A timer that is due again every millisecond does not delay the answer.
    let every = timer_spec::Schedule::Every(lasting(Duration::from_millis(1)));
    let restless = scene.add(crate::common::timer(every)).await;
    scene.stop().await;
    for _ in 0..TIMERS / 1000 {
        add_all(&scene, vec![after(Duration::ZERO); 1000]).await;
    }
    let seen = scene.settle().await;
    scene.run().await;
    let looked = look(&scene, seen, EventKind::TimerFired, Vec::new()).await;
    let fired = looked.events.iter().filter(|e| e.watch_id != restless);
    assert_eq!(fired.count(), TIMERS);
    scene.finish().await;
}

/// More descriptors are ready than many turns take, while a child keeps writing.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fence_looks_at_more_ready_descriptors_than_many_turns_take() {
    const AT_ONCE: usize = 225;
    for backend in ["epoll", "poll", "select", "io_uring"] {
        // select(2) takes fewer descriptors.
        let watches = if backend == "select" { 900 } else { 2700 };
        let daemon = Daemon::start("[limits]\nturn_events = 16").await;
        let mut scene = if backend == "io_uring" {
            Scene::new(daemon, "proactor", "").await
        } else {
            Scene::new(daemon, "", backend).await
        };
        let chatty = ProcessSpec {
            stdout: Stdio::Pipe.into(),
            ..crate::common::shell("exec yes")
        };
        let chatty = scene.spawn(chatty).await;
        let (reading, writing) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writing, b"never read").unwrap();
        let handover = scene.daemon.handover().await;
        let mut ids = Vec::new();
        for _ in 0..watches / AT_ONCE {
            let slots = handover.give_all(&[reading.as_fd(); AT_ONCE]);
            let disarmed = |slot| {
                watch_spec::Spec::Fd(FdSpec {
                    slot,
                    ..FdSpec::default()
                })
            };
            ids.extend(add_all(&scene, slots.into_iter().map(disarmed).collect()).await);
        }
        let mut seen = scene.post(Vec::from([Post::default()])).await;
        for round in 0..3 {
            let item = |id: &u64| RearmItem {
                watch_id: *id,
                readable: true,
                ..RearmItem::default()
            };
            let rearm = ids.iter().map(item).collect();
            let looked =
                tokio::time::timeout(PATIENCE, look(&scene, seen, EventKind::Ready, rearm));
            let looked = looked.await.unwrap();
            assert_eq!(looked.events.len(), watches, "{backend}, round {round}");
            seen = looked.through;
        }
        scene.remove(chatty).await;
        drop(scene.recorder);
    }
}
