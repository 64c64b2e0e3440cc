//! Snapshots: the state at a position, then the events after it.

use evloopd::proto::*;
use tonic::Code;

use crate::common::{Daemon, Recorder, Scene, never, post, refused, shell};

const CONFIG: &str = "[policy.tiny]\nextends = \"default\"\njournal_events = 128\n";

fn request(scene: &Scene) -> SubscribeRequest {
    SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Snapshot.into())),
        ..SubscribeRequest::default()
    }
}

/// Returns the watches of a snapshot, after a check that it is complete and at one position.
async fn taken(recorder: &mut Recorder) -> Vec<Watch> {
    while !recorder.snapshot.last().is_some_and(|part| part.last) {
        assert!(recorder.step().await);
    }
    let start = recorder.recording.start;
    for (index, part) in recorder.snapshot.iter().enumerate() {
        assert_eq!(part.cursor.as_ref().unwrap().seq, start);
        assert_eq!(part.r#loop.is_some(), index == 0);
    }
    let parts = recorder.snapshot.iter();
    parts.flat_map(|part| part.watches.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_snapshot_and_the_events_after_it_tell_every_change_once() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let timer = scene.add(never()).await;
    let child = scene.spawn(shell("exit 4")).await;
    scene.closed(child).await;
    let mut follower = Recorder::subscribe(&scene.daemon, request(&scene))
        .await
        .unwrap();
    let later = scene.add(never()).await;
    let watches = taken(&mut follower).await;
    let ids: Vec<u64> = watches.iter().map(|w| w.watch_id).collect();
    assert_eq!(ids, [timer, child]);
    assert_eq!(watches[0].state(), WatchState::Open);
    let Some(watch::Status::Process(process)) = &watches[1].status else {
        panic!("{:?}", watches[1]);
    };
    assert_eq!(
        process.exited.as_ref().unwrap().status,
        Some(exited::Status::Code(4))
    );
    follower.first(later, "added").await;
    let old = follower.recording.events().filter(|e| e.watch_id == timer);
    assert_eq!(old.count(), 0, "no event repeats what the snapshot has");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn thousands_of_watches_come_in_parts_below_the_message_limit() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let spec = ProcessSpec {
        command: Some(process_spec::Command::Shell("true".into())),
        env: [("FILLER".to_owned(), "x".repeat(60_000))].into(),
        ..ProcessSpec::default()
    };
    for _ in 0..100 {
        scene.spawn(spec.clone()).await;
    }
    let mut follower = Recorder::subscribe(&scene.daemon, request(&scene))
        .await
        .unwrap();
    assert_eq!(taken(&mut follower).await.len(), 100);
    assert!(follower.snapshot.len() > 1);
    for part in &follower.snapshot {
        assert!(prost::Message::encoded_len(part) < 4 << 20);
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cursor_that_is_too_old_may_begin_with_a_snapshot() {
    let mut scene = Scene::new(Daemon::start(CONFIG).await, "tiny", "").await;
    let id = scene.add(never()).await;
    for _ in 0..20 {
        let seq = scene.post(vec![post("", b"x"); 20]).await;
        scene.recorder.reach(seq).await;
    }
    let after = |seq, on_gap: OnGap| SubscribeRequest {
        start: Some(subscribe_request::Start::After(Cursor {
            epoch: String::new(),
            seq,
        })),
        on_gap: on_gap.into(),
        ..request(&scene)
    };
    let mut follower = Recorder::subscribe(&scene.daemon, after(3, OnGap::Snapshot))
        .await
        .unwrap();
    assert_eq!(taken(&mut follower).await[0].watch_id, id);
    // A cursor that is still in the journal needs no snapshot.
    let newest = scene.recorder.recording.through();
    let follower = Recorder::subscribe(&scene.daemon, after(newest, OnGap::Snapshot))
        .await
        .unwrap();
    assert!(follower.snapshot.is_empty() && follower.recording.start == newest);
    let poll = PollRequest {
        r#loop: Some(scene.target.clone()),
        after: Some(Cursor::default()),
        on_gap: OnGap::Snapshot.into(),
        ..PollRequest::default()
    };
    let refusal = scene.daemon.events().poll(poll).await.map(drop);
    assert_eq!(
        refused(refusal, Code::InvalidArgument, "INVALID_FIELD").fields,
        ["on_gap"]
    );
    scene.finish().await;
}
