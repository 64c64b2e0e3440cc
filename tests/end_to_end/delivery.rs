//! Lost events are reported as gaps, terminal events are kept, and filters hide without losing.

use std::time::Duration;

use evloopd::history::check;
use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{
    Daemon, Recorder, Scene, after, by_name, never, post, recorder, refused, shell,
};

const CONFIG: &str = r#"
[policy.tiny]
extends = "default"
journal_events = 64
journal_watch_keep = "0B"
"#;

async fn tiny() -> Scene {
    Scene::new(Daemon::start(CONFIG).await, "tiny", "").await
}

async fn overflow(scene: &mut Scene) -> u64 {
    let mut last = 0;
    for _ in 0..20 {
        last = scene.post(vec![post("", b"x"); 20]).await;
        scene.recorder.reach(last).await;
    }
    last
}

fn from(scene: &Scene, epoch: &str, seq: u64, on_gap: OnGap) -> SubscribeRequest {
    SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::After(Cursor {
            epoch: epoch.into(),
            seq,
        })),
        on_gap: on_gap.into(),
        ..SubscribeRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cursor_out_of_range_is_refused_with_the_cursors_that_can_be_used() {
    let mut scene = tiny().await;
    let newest = overflow(&mut scene).await;
    let epoch = scene.recorder.recording.epoch.clone();
    let foreign = "0".repeat(32);
    for (epoch, seq) in [(epoch.as_str(), 0), (&foreign, newest), ("", newest + 1)] {
        for on_gap in [OnGap::Unspecified, OnGap::Fail] {
            let request = from(&scene, epoch, seq, on_gap);
            let refusal = Recorder::subscribe(&scene.daemon, request).await.map(drop);
            let told = refused(refusal, Code::OutOfRange, "CURSOR_OUT_OF_RANGE");
            assert_eq!(told.word("newest"), newest.to_string());
            assert_eq!(told.word("epoch"), scene.recorder.recording.epoch);
            let oldest: u64 = told.word("oldest").parse().unwrap();
            let request = from(&scene, &scene.recorder.recording.epoch, oldest - 1, on_gap);
            Recorder::subscribe(&scene.daemon, request).await.unwrap();
        }
    }
    let bad = from(&scene, "nonsense", 0, OnGap::Fail);
    let bad = Recorder::subscribe(&scene.daemon, bad).await.map(drop);
    refused(bad, Code::InvalidArgument, "INVALID_FIELD");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cursor_too_old_may_begin_with_a_gap() {
    let mut scene = tiny().await;
    let newest = overflow(&mut scene).await;
    let request = from(&scene, "", 5, OnGap::Skip);
    let mut recorder = Recorder::subscribe(&scene.daemon, request).await.unwrap();
    recorder.reach(newest).await;
    let first = recorder.recording.gaps().next().expect("a gap");
    assert_eq!((first.from_seq, first.reason()), (6, GapReason::Trimmed));
    let summary = check(&recorder.recording).unwrap();
    assert_eq!(summary.lost + summary.events, newest - 5);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn terminal_facts_outlive_trimming() {
    let mut scene = tiny().await;
    let id = scene.spawn(shell("echo out; exit 5")).await;
    scene.closed(id).await;
    let newest = overflow(&mut scene).await;
    let request = from(&scene, "", 0, OnGap::Skip);
    let mut late = Recorder::subscribe(&scene.daemon, request).await.unwrap();
    late.reach(newest).await;
    // The start and the terminal events of the process are kept, but not its output.
    let mut kinds = late.kinds(id);
    kinds.sort_unstable();
    let facts = ["closed", "exited", "started", "stream_end", "stream_end"];
    assert_eq!(kinds, facts);
    let exited = late.first(id, "exited").await;
    assert_eq!(exited, scene.recorder.first(id, "exited").await);
    assert!(
        check(&late.recording).unwrap().gaps >= 2,
        "islands lie between gaps"
    );
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watch_whose_events_have_no_room_is_refused() {
    let mut scene = tiny().await;
    let mut added = 0;
    let full = loop {
        let request = scene.request(never());
        match scene.try_add(request).await {
            Ok(_) => added += 1,
            Err(status) => break status,
        }
    };
    let full = refused::<()>(Err(full), Code::ResourceExhausted, "JOURNAL_FULL");
    assert_eq!(full.word("field"), "");
    assert!((1..64).contains(&added), "{added}");
    let id = scene
        .recorder
        .recording
        .events()
        .find_map(|event| matches!(event.kind, Some(Kind::Added(_))).then_some(event.watch_id));
    let id = match id {
        Some(id) => id,
        None => {
            scene
                .recorder
                .find("an Added", |e| recorder::is(e, "added"))
                .await
                .watch_id
        }
    };
    // A removal always fits, and makes room.
    scene.remove(id).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn filters_hide_by_watch_kind_and_label() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let mut ids = Vec::new();
    for label in ["a", "b"] {
        let request = AddWatchRequest {
            labels: [("side".to_owned(), label.to_owned())].into(),
            ..scene.request(after(Duration::ZERO))
        };
        let id = scene
            .try_add(request)
            .await
            .unwrap()
            .watch
            .unwrap()
            .watch_id;
        scene.closed(id).await;
        ids.push(id);
    }
    let last = scene.settle().await;
    let labels = [("side".to_owned(), "b".to_owned())].into();
    let kinds = vec![EventKind::TimerFired.into(), EventKind::Posted.into()];
    for (filter, expected) in [
        (
            by_watches(vec![ids[0]]),
            vec!["added", "timer_fired", "closed"],
        ),
        (
            by_watches(vec![ids[1], 0]),
            vec!["added", "timer_fired", "closed", "posted"],
        ),
        (
            Filter {
                kinds: kinds.clone(),
                ..Filter::default()
            },
            vec!["timer_fired", "timer_fired", "posted"],
        ),
        (
            Filter {
                labels,
                ..Filter::default()
            },
            vec!["added", "timer_fired", "closed"],
        ),
        (
            Filter {
                kinds,
                ..by_watches(vec![ids[0]])
            },
            vec!["timer_fired"],
        ),
    ] {
        let request = SubscribeRequest {
            filter: Some(filter),
            ..from(&scene, "", 0, OnGap::Fail)
        };
        let mut filtered = Recorder::subscribe(&scene.daemon, request).await.unwrap();
        filtered.reach(last).await;
        let got = filtered.recording.events().filter_map(|e| e.kind.as_ref());
        let got: Vec<_> = got.map(evloopd::kinds::event_kind_name).collect();
        let states = |kind: &&str| *kind != "loop_state_changed";
        assert_eq!(got.into_iter().filter(states).collect::<Vec<_>>(), expected);
        evloopd::history::check_same(&filtered.recording, &scene.recorder.recording).unwrap();
    }
    scene.finish().await;
}

fn by_watches(watch_ids: Vec<u64>) -> Filter {
    Filter {
        watch_ids,
        ..Filter::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn batches_keep_to_their_size_and_a_large_event_comes_alone() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    let sizes = [100, 200_000, 100, 100, 262_144, 500];
    let posts = sizes.iter().map(|&size| post("", &vec![1; size]));
    let last = scene.post(posts.collect()).await;
    let request = SubscribeRequest {
        max_batch_bytes: 1024,
        ..from(&scene, "", 0, OnGap::Fail)
    };
    let mut small = Recorder::subscribe(&scene.daemon, request).await.unwrap();
    small.reach(last).await;
    for batch in &small.recording.batches {
        let size: usize = batch.events.iter().map(prost::Message::encoded_len).sum();
        assert!(
            size <= 1024 || batch.events.len() == 1,
            "{size} in {}",
            batch.events.len()
        );
    }
    for wrong in [1, 1023, 1_048_577] {
        let request = SubscribeRequest {
            max_batch_bytes: wrong,
            ..from(&scene, "", 0, OnGap::Fail)
        };
        let refusal = Recorder::subscribe(&scene.daemon, request).await.map(drop);
        let bad = refused(refusal, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(bad.fields, ["max_batch_bytes"]);
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_finished_watch_differs_from_one_that_never_existed() {
    let mut scene = tiny().await;
    let request = AddWatchRequest {
        name: "build".into(),
        ..scene.request(Spec::Process(shell("exit 9")))
    };
    let id = scene
        .try_add(request)
        .await
        .unwrap()
        .watch
        .unwrap()
        .watch_id;
    scene.closed(id).await;
    overflow(&mut scene).await;
    let get = |name: &str| GetWatchRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_name(name),
    };
    let watch = scene
        .daemon
        .watches()
        .get_watch(get("build"))
        .await
        .unwrap();
    let Some(watch::Status::Process(status)) = watch.into_inner().watch.unwrap().status else {
        panic!("a process has a process's status");
    };
    assert_eq!(status.exited.unwrap().status, Some(exited::Status::Code(9)));
    let never_was = scene.daemon.watches().get_watch(get("test")).await;
    refused(never_was, Code::NotFound, "WATCH_NOT_FOUND");
    scene.finish().await;
}
