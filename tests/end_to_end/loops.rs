//! The life of loops: created, running, stopped, closed.

use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::*;
use tonic::{Code, Status};

use crate::common::{
    Daemon, Recorder, Scene, after, exec, loop_named, millis, never, refused, timer,
};

const CONFIG: &str = "[policy.later]\nextends = \"default\"\nstart = \"created\"\n";

async fn state(scene: &Scene) -> LoopState {
    let request = GetLoopRequest {
        r#loop: Some(scene.target.clone()),
    };
    let answer = scene.daemon.loops().get_loop(request).await.unwrap();
    answer.into_inner().r#loop.unwrap().state()
}

async fn run(scene: &Scene) -> Result<u64, Status> {
    let request = RunLoopRequest {
        r#loop: Some(scene.target.clone()),
        ..RunLoopRequest::default()
    };
    let answer = scene.daemon.loops().run_loop(request).await?;
    Ok(answer.into_inner().cursor.unwrap().seq)
}

async fn stop(scene: &Scene) -> Result<u64, Status> {
    let request = StopLoopRequest {
        r#loop: Some(scene.target.clone()),
        ..StopLoopRequest::default()
    };
    let answer = scene.daemon.loops().stop_loop(request).await?;
    Ok(answer.into_inner().cursor.unwrap().seq)
}

async fn close(scene: &Scene, target: LoopRef) -> Result<CloseLoopResponse, Status> {
    let request = CloseLoopRequest {
        r#loop: Some(target),
        ..CloseLoopRequest::default()
    };
    Ok(scene.daemon.loops().close_loop(request).await?.into_inner())
}

fn state_at(scene: &Scene, seq: u64) -> Option<LoopState> {
    let event = scene
        .recorder
        .recording
        .events()
        .find(|event| event.seq == seq)?;
    match &event.kind {
        Some(Kind::LoopStateChanged(change)) => Some(change.state()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_created_loop_serves_commands_and_has_no_source_events() {
    let mut scene = Scene::new(Daemon::start(CONFIG).await, "later", "").await;
    assert_eq!(state(&scene).await, LoopState::Created);
    let id = scene.add(after(Duration::ZERO)).await;
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);
    let seq = run(&scene).await.unwrap();
    scene.closed(id).await;
    assert_eq!(state_at(&scene, seq), Some(LoopState::Running));
    let newest = scene.settle().await;
    assert_eq!(
        run(&scene).await.unwrap(),
        newest,
        "RunLoop on a running loop changes nothing"
    );
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_event_of_a_source_comes_after_the_stop() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let id = scene
        .add(timer(timer_spec::Schedule::Every(millis(1))))
        .await;
    scene.recorder.nth(id, "timer_fired", 3).await;
    let stopped = stop(&scene).await.unwrap();
    let settled = scene.settle().await;
    assert_eq!(state_at(&scene, stopped), Some(LoopState::Stopped));
    assert_eq!(settled, stopped + 1);
    assert_eq!(stop(&scene).await.unwrap(), settled);
    run(&scene).await.unwrap();
    scene.recorder.after(settled, id, "timer_fired").await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_closed_loop_can_only_be_read() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let id = scene.add(never()).await;
    let target = scene.target.clone();
    let running = close(&scene, target.clone()).await;
    refused(running, Code::FailedPrecondition, "LOOP_RUNNING");
    stop(&scene).await.unwrap();
    let closed = close(&scene, target.clone()).await.unwrap();
    let last = closed.cursor.unwrap().seq;
    assert_eq!(closed.readable_for.unwrap().seconds, 600);
    let goodbye = scene.recorder.end().await;
    assert_eq!(goodbye.reason(), GoodbyeReason::LoopClosed);
    assert_eq!(scene.recorder.recording.through(), last);
    assert_eq!(state_at(&scene, last), Some(LoopState::Closed));
    assert_eq!(scene.closed(id).await.reason(), CloseReason::LoopClosed);

    let by_id = loops_closed(&scene).await;
    assert_eq!(
        close(&scene, by_id.clone())
            .await
            .unwrap()
            .cursor
            .unwrap()
            .seq,
        last
    );
    let mut again = Recorder::of(&scene.daemon, &by_id).await;
    again.end().await;
    evloopd::history::check_same(&again.recording, &scene.recorder.recording).unwrap();
    let request = AddWatchRequest {
        r#loop: Some(by_id),
        ..scene.request(never())
    };
    refused(
        scene.try_add(request).await,
        Code::FailedPrecondition,
        "LOOP_CLOSED",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_running_loop_is_stopped_and_closed_in_one_call() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    scene
        .add(timer(timer_spec::Schedule::Every(millis(1))))
        .await;
    let child = scene.spawn(exec(&["sleep", "3600"])).await;
    let request = CloseLoopRequest {
        r#loop: Some(scene.target.clone()),
        stop: true,
        ..CloseLoopRequest::default()
    };
    let close = |request| async { scene.daemon.loops().close_loop(request).await };
    // A RunLoop and another CloseLoop at the same time do not keep the loop running.
    let (one, ran, other) =
        tokio::join!(close(request.clone()), run(&scene), close(request.clone()));
    let last = one.unwrap().into_inner().cursor.unwrap();
    assert_eq!(other.unwrap().into_inner().cursor.unwrap(), last);
    if let Err(status) = ran {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    }
    assert_eq!(
        scene.recorder.end().await.reason(),
        GoodbyeReason::LoopClosed
    );
    assert_eq!(state_at(&scene, last.seq), Some(LoopState::Closed));
    assert_eq!(scene.closed(child).await.reason(), CloseReason::LoopClosed);
    assert_eq!(scene.daemon.status().await.loops, 0);
}

/// Returns a reference by id to the closed loop of a scene.
async fn loops_closed(scene: &Scene) -> LoopRef {
    let request = ListLoopsRequest {
        include_closed: true,
        ..ListLoopsRequest::default()
    };
    let answer = scene.daemon.loops().list_loops(request).await.unwrap();
    let mut loops = answer.into_inner().loops.into_iter();
    let id = loops
        .find(|l| l.name == "scene")
        .expect("the closed loop is still listed")
        .loop_id;
    LoopRef {
        r#ref: Some(loop_ref::Ref::LoopId(id)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn lists_have_pages_and_omit_closed_loops() {
    let mut scene = Scene::new(Daemon::start(CONFIG).await, "later", "").await;
    for n in 0..5 {
        let request = NewEventLoopRequest {
            name: format!("l{n}"),
            policy: "later".into(),
            ..NewEventLoopRequest::default()
        };
        scene
            .daemon
            .policies()
            .new_event_loop(request)
            .await
            .unwrap();
    }
    close(&scene, loop_named("l2")).await.unwrap();
    for (include_closed, expected) in [
        (false, vec!["scene", "l0", "l1", "l3", "l4"]),
        (true, vec!["scene", "l0", "l1", "l2", "l3", "l4"]),
    ] {
        let mut names = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListLoopsRequest {
                page_size: 2,
                page_token,
                include_closed,
            };
            let answer = scene
                .daemon
                .loops()
                .list_loops(request)
                .await
                .unwrap()
                .into_inner();
            names.extend(answer.loops.into_iter().map(|l| l.name));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(names, expected);
    }
    scene.settle().await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_missing_loop_is_reported() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    let by_id = LoopRef {
        r#ref: Some(loop_ref::Ref::LoopId(999)),
    };
    for target in [loop_named("nobody"), loop_named("uid:4242/scene"), by_id] {
        let request = GetLoopRequest {
            r#loop: Some(target.clone()),
        };
        let refusal = scene.daemon.loops().get_loop(request).await;
        refused(refusal, Code::NotFound, "LOOP_NOT_FOUND");
        let refusal = close(&scene, target).await;
        refused(refusal, Code::NotFound, "LOOP_NOT_FOUND");
    }
    scene.finish().await;
}

/// A closed loop can be read for a while, and holds nothing but memory for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn closed_loops_hold_no_descriptors_and_no_threads() {
    const LOOPS: usize = 300;
    let daemon = Daemon::start("").await;
    let threads = || {
        let tasks = format!("/proc/{}/task", daemon.pid());
        std::fs::read_dir(tasks).unwrap().count()
    };
    for backend in ["epoll", "io_uring"] {
        let (fds_before, threads_before) = (daemon.status().await.open_fds, threads());
        for number in 0..LOOPS {
            let name = format!("{}-{number}", backend.replace('_', "-"));
            let policy = if backend == "epoll" { "" } else { "proactor" };
            let request = NewEventLoopRequest {
                name: name.clone(),
                policy: policy.into(),
                ..NewEventLoopRequest::default()
            };
            daemon.policies().new_event_loop(request).await.unwrap();
            let target = Some(loop_named(&name));
            let request = StopLoopRequest {
                r#loop: target.clone(),
                ..StopLoopRequest::default()
            };
            daemon.loops().stop_loop(request).await.unwrap();
            for _ in 0..2 {
                let request = CloseLoopRequest {
                    r#loop: target.clone(),
                    ..CloseLoopRequest::default()
                };
                daemon.loops().close_loop(request).await.unwrap();
            }
            // The closed loop can still be read.
            let request = PollRequest {
                r#loop: target,
                after: Some(Cursor::default()),
                ..PollRequest::default()
            };
            let batch = daemon
                .events()
                .poll(request)
                .await
                .unwrap()
                .into_inner()
                .batch;
            assert!(!batch.unwrap().events.is_empty());
        }
        daemon
            .until("the counts to be as before", |status| {
                status.open_fds <= fds_before && threads() <= threads_before
            })
            .await;
    }
}
