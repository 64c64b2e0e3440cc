//! The main job: run something once, by name; go away, come back, get its exact output and exit.

use evloopd::history::{check_resumed, check_same};
use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{Daemon, Recorder, Scene, exec, refused, seconds, shell};

async fn scene() -> Scene {
    Scene::new(Daemon::start("").await, "", "").await
}

fn run(scene: &Scene, name: &str, spec: Option<ProcessSpec>) -> RunRequest {
    RunRequest {
        r#loop: Some(scene.target.clone()),
        name: name.into(),
        spec,
        ..RunRequest::default()
    }
}

fn lines() -> ProcessSpec {
    shell("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; exit 7")
}

fn expected() -> String {
    (1..=2000).map(|n| format!("line {n}\n")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_runs_of_one_name_start_one_child_and_both_get_everything() {
    let mut scene = scene().await;
    let (first, second) = tokio::join!(
        Recorder::run(&scene.daemon, run(&scene, "build", Some(lines()))),
        Recorder::run(&scene.daemon, run(&scene, "build", Some(lines()))),
    );
    let mut runs = [first.unwrap(), second.unwrap()];
    let existed = runs.each_ref().map(|r| r.run.as_ref().unwrap().existed);
    assert!(
        existed[0] != existed[1],
        "one call made the process, the other joined it: {existed:?}"
    );
    for run in &mut runs {
        assert_eq!(run.end().await.reason(), GoodbyeReason::Done);
        let id = run.run.as_ref().unwrap().watch_id;
        assert_eq!(run.bytes(id, Stream::Stdout), expected().into_bytes());
        match run.first(id, "exited").await.kind {
            Some(Kind::Exited(exited)) => {
                assert_eq!(exited.status, Some(exited::Status::Code(7)));
            }
            other => panic!("{other:?}"),
        }
        let foreign = run.recording.events().find(|event| event.watch_id != id);
        assert_eq!(foreign, None, "only events of the process");
    }
    check_same(&runs[0].recording, &runs[1].recording).unwrap();
    scene.settle().await;
    let events = scene.recorder.recording.events();
    assert_eq!(
        events
            .filter(|e| matches!(e.kind, Some(Kind::Started(_))))
            .count(),
        1
    );
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_second_life_resumes_after_its_cursor() {
    let scene = scene().await;
    let request = run(&scene, "build", Some(lines()));
    let mut first = Recorder::run(&scene.daemon, request).await.unwrap();
    let id = first.run.as_ref().unwrap().watch_id;
    first.nth(id, "data", 1).await;
    let mut life = first.recording.clone();
    drop(first);
    let kept = life.through();
    let request = RunRequest {
        after: Some(Cursor {
            epoch: life.epoch.clone(),
            seq: kept,
        }),
        ..run(&scene, "build", None)
    };
    let mut second = Recorder::run(&scene.daemon, request).await.unwrap();
    assert_eq!(second.end().await.reason(), GoodbyeReason::Done);
    life.from_birth = true;
    let summary = check_resumed(&[life.clone(), second.recording.clone()]).unwrap();
    assert_eq!((summary.lost, summary.kinds["exited"]), (0, 1));
    let bytes = |recording: &evloopd::history::Recording| -> Vec<u8> {
        let data = recording.events().filter_map(|event| match &event.kind {
            Some(Kind::Data(data)) => Some(data.data.to_vec()),
            _ => None,
        });
        data.flatten().collect()
    };
    let all = [bytes(&life), bytes(&second.recording)].concat();
    assert_eq!(String::from_utf8(all).unwrap(), expected());
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_finished_run_is_joined_and_sent_again() {
    let mut scene = scene().await;
    let request = run(&scene, "build", Some(lines()));
    let mut first = Recorder::run(&scene.daemon, request.clone()).await.unwrap();
    first.end().await;
    scene.settle().await;
    let mut again = Recorder::run(&scene.daemon, request).await.unwrap();
    assert!(again.run.as_ref().unwrap().existed);
    assert_eq!(again.end().await.reason(), GoodbyeReason::Done);
    let events = |recorder: &Recorder| recorder.recording.events().cloned().collect::<Vec<_>>();
    assert_eq!(events(&again), events(&first));
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn processes_that_cannot_be_joined_are_refused() {
    let scene = scene().await;
    let nobody = Recorder::run(&scene.daemon, run(&scene, "nobody", None)).await;
    refused(nobody.map(drop), Code::NotFound, "WATCH_NOT_FOUND");
    let request = run(&scene, "build", Some(exec(&["sleep", "3600"])));
    Recorder::run(&scene.daemon, request).await.unwrap();
    let other = ProcessSpec {
        kill_grace: Some(seconds(1)),
        ..exec(&["sleep", "3600"])
    };
    let other = Recorder::run(&scene.daemon, run(&scene, "build", Some(other))).await;
    let other = refused(other.map(drop), Code::AlreadyExists, "NAME_TAKEN");
    assert_eq!(other.word("field"), "spec.process.kill_grace");
    let missing = run(&scene, "", Some(exec(&["/nonexistent"])));
    let missing = Recorder::run(&scene.daemon, missing).await;
    refused(missing.map(drop), Code::NotFound, "SYSTEM");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_that_ends_ends_no_child() {
    let mut scene = scene().await;
    let request = run(
        &scene,
        "cat",
        Some(ProcessSpec {
            stdin: Stdio::Pipe.into(),
            ..exec(&["cat"])
        }),
    );
    let mut stream = Recorder::run(&scene.daemon, request).await.unwrap();
    let id = stream.run.as_ref().unwrap().watch_id;
    scene.write(id, b"one").await;
    stream.first(id, "data").await;
    drop(stream);
    scene.write(id, b"two").await;
    scene.write_eof(id).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"onetwo");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_signal_of_a_child_killed_from_outside_is_reported() {
    let mut scene = scene().await;
    let id = scene.spawn(exec(&["sleep", "3600"])).await;
    let pid = match scene.recorder.first(id, "started").await.kind {
        Some(Kind::Started(started)) => nix::unistd::Pid::from_raw(started.pid),
        other => panic!("{other:?}"),
    };
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(
        scene.exited(id).await.status,
        Some(exited::Status::Signal(9))
    );
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    scene.finish().await;
}

async fn five_hundred(watcher: &str) {
    let config = format!("[policy.many]\nextends = \"default\"\nchild_watcher = \"{watcher}\"\n");
    let mut scene = Scene::new(Daemon::start(&config).await, "many", "").await;
    let requests = (0..500_u64).map(|n| AddWatchRequest {
        spec: Some(WatchSpec {
            spec: Some(Spec::Process(shell(&format!("echo {n}; exit {}", n % 256)))),
        }),
        user_data: n,
        ..AddWatchRequest::default()
    });
    let request = BatchAddWatchesRequest {
        r#loop: Some(scene.target.clone()),
        requests: requests.collect(),
        ..BatchAddWatchesRequest::default()
    };
    let answer = scene
        .daemon
        .watches()
        .batch_add_watches(request)
        .await
        .unwrap();
    for (n, result) in (0_i32..).zip(answer.into_inner().results) {
        let Some(batch_add_watches_result::Result::Added(added)) = result.result else {
            panic!("child {n}: {result:?}");
        };
        let id = added.watch.unwrap().watch_id;
        scene.closed(id).await;
        assert_eq!(
            scene.exited(id).await.status,
            Some(exited::Status::Code(n % 256))
        );
        let output = scene.recorder.bytes(id, Stream::Stdout);
        assert_eq!(String::from_utf8(output).unwrap(), format!("{n}\n"));
    }
    let status = scene
        .daemon
        .admin()
        .get_status(GetStatusRequest {})
        .await
        .unwrap();
    assert_eq!(status.into_inner().children, 0);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn five_hundred_children_at_once_by_pidfd() {
    five_hundred("pidfd").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn five_hundred_children_at_once_by_sigchld() {
    five_hundred("sigchld").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn five_hundred_children_at_once_by_threads() {
    five_hundred("thread").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_process_that_is_removed_when_it_closes_is_still_sent_to_its_end() {
    const BYTES: usize = 2 << 20;
    let mut scene = scene().await;
    let spec = shell(&format!("head -c {BYTES} /dev/zero; exit 3"));
    let request = RunRequest {
        finished_ttl: Some(seconds(0)),
        ..run(&scene, "once", Some(spec))
    };
    let mut run = Recorder::run(&scene.daemon, request.clone()).await.unwrap();
    let id = run.run.as_ref().unwrap().watch_id;
    // The child writes as far as it can, and may end, before any of its output is read here.
    scene.settle().await;
    assert_eq!(run.end().await.reason(), GoodbyeReason::Done);
    assert_eq!(run.bytes(id, Stream::Stdout).len(), BYTES);
    match run.first(id, "exited").await.kind {
        Some(Kind::Exited(exited)) => assert_eq!(exited.status, Some(exited::Status::Code(3))),
        other => panic!("{other:?}"),
    }
    let gone = GetWatchRequest {
        r#loop: Some(scene.target.clone()),
        watch: crate::common::by_id(id),
    };
    let gone = scene.daemon.watches().get_watch(gone).await;
    let gone = refused(gone, Code::NotFound, "WATCH_NOT_FOUND");
    assert_eq!(gone.word("name"), format!("@{id}"));
    // The name can be used again.
    let again = Recorder::run(&scene.daemon, request).await.unwrap();
    assert!(again.run.as_ref().unwrap().watch_id > id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn another_timeout_is_another_process() {
    let mut scene = scene().await;
    let with = |timeout: Option<prost_types::Duration>| ProcessSpec {
        timeout,
        ..exec(&["true"])
    };
    let mut first = Recorder::run(
        &scene.daemon,
        run(&scene, "x", Some(with(Some(seconds(60))))),
    )
    .await
    .unwrap();
    first.end().await;
    for other in [None, Some(seconds(61))] {
        let other = Recorder::run(&scene.daemon, run(&scene, "x", Some(with(other)))).await;
        let other = refused(other.map(drop), Code::AlreadyExists, "NAME_TAKEN");
        assert_eq!(other.word("field"), "spec.process.timeout");
    }
    for bad in [seconds(0), seconds(400_000_000)] {
        let bad = Recorder::run(&scene.daemon, run(&scene, "y", Some(with(Some(bad))))).await;
        let bad = refused(bad.map(drop), Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, ["spec.process.timeout"]);
    }
    scene.settle().await;
}
