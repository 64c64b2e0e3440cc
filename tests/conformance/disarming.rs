//! Disarming: a direction no longer fires, and the watch stays.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use evloopd::proto::attach_request::Message;
use evloopd::proto::watch::Status;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{Recorder, Scene, reader, refused};
use crate::fds::{pair, reading};

on_each_backend!(
    a_disarmed_direction_is_silent_until_it_is_armed_again,
    one_direction_is_disarmed_and_the_other_still_fires,
    a_disarmed_direction_is_armed_again_only_if_it_is_named,
    readiness_found_before_disarming_is_not_reported_after_it,
    no_ready_comes_after_the_cursor_of_the_answer,
    poll_and_attach_disarm_too,
    an_item_that_disarms_has_no_seq,
);

/// Repetitions: a backend only sometimes finds readiness at the moment at which it is disarmed.
const ROUNDS: u64 = 50;

fn disarming(watch_id: u64) -> RearmItem {
    RearmItem {
        watch_id,
        disarm: true,
        ..RearmItem::default()
    }
}

fn reading_no_more(watch_id: u64) -> RearmItem {
    RearmItem {
        readable: true,
        ..disarming(watch_id)
    }
}

async fn rearm(scene: &Scene, items: Vec<RearmItem>) -> RearmResponse {
    let request = RearmRequest {
        r#loop: Some(scene.target.clone()),
        items,
        ..RearmRequest::default()
    };
    let answer = scene.daemon.watches().rearm(request).await.unwrap();
    answer.into_inner()
}

/// Returns whether the watch is armed for reading, and for writing.
async fn armed(scene: &Scene, watch_id: u64) -> (bool, bool) {
    match scene.get(watch_id).await.status {
        Some(Status::Fd(fd)) => (fd.readable_armed, fd.writable_armed),
        other => panic!("{other:?}"),
    }
}

/// Waits until everything armed has been looked at, and its events are in the recording.
async fn look(scene: &mut Scene) {
    let request = PollRequest {
        r#loop: Some(scene.target.clone()),
        fence: true,
        ..PollRequest::default()
    };
    scene.daemon.events().poll(request).await.unwrap();
    scene.settle().await;
}

async fn a_disarmed_direction_is_silent_until_it_is_armed_again(scene: &mut Scene) {
    let (mut ours, _theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    assert!(scene.rearm(disarming(id)).await);
    assert!(
        !scene.rearm(disarming(id)).await,
        "the reader is already disarmed"
    );
    assert_eq!(armed(scene, id).await, (false, false));
    ours.write_all(b"x").unwrap();
    look(scene).await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);
    let nothing_fired = RearmItem {
        readable: false,
        ..reading(id, 0)
    };
    assert!(!scene.rearm(nothing_fired).await);
    assert!(scene.rearm(reading(id, 0)).await);
    scene.recorder.first(id, "ready").await;
    assert!(!scene.rearm(disarming(id)).await, "the reader has fired");
    // A watch whose operation is being cancelled by the disarming is removed like any other.
    assert!(scene.rearm(reading(id, 0)).await);
    scene.rearm(disarming(id)).await;
    scene.remove(id).await;
    assert!(!scene.rearm(disarming(id)).await, "the watch is removed");
}

async fn one_direction_is_disarmed_and_the_other_still_fires(scene: &mut Scene) {
    let (mut ours, mut theirs, slot) = pair(scene).await;
    theirs.set_nonblocking(true).unwrap();
    while theirs.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    let both = Spec::Fd(FdSpec {
        slot,
        readable: true,
        writable: true,
    });
    let id = scene.add(both).await;
    let no_writing = RearmItem {
        writable: true,
        ..disarming(id)
    };
    assert!(scene.rearm(no_writing).await);
    assert_eq!(armed(scene, id).await, (true, false));
    drain(&mut ours);
    look(scene).await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);
    ours.write_all(b"x").unwrap();
    scene.recorder.first(id, "ready").await;
    look(scene).await;
    assert_eq!(scene.recorder.kinds(id), ["added", "ready"]);
    let writing = RearmItem {
        watch_id: id,
        writable: true,
        ..RearmItem::default()
    };
    assert!(scene.rearm(writing).await);
    scene.recorder.nth(id, "ready", 2).await;
    look(scene).await;
    assert_eq!(scene.recorder.kinds(id), ["added", "ready", "ready"]);
}

/// To re-arm a direction that has fired does not arm another one that was disarmed since.
async fn a_disarmed_direction_is_armed_again_only_if_it_is_named(scene: &mut Scene) {
    let (mut ours, _theirs, slot) = pair(scene).await;
    let both = Spec::Fd(FdSpec {
        slot,
        readable: true,
        writable: true,
    });
    let id = scene.add(both).await;
    scene.recorder.first(id, "ready").await;
    let no_writing = RearmItem {
        writable: true,
        ..disarming(id)
    };
    assert!(!scene.rearm(no_writing).await, "the writer has fired");
    ours.write_all(b"x").unwrap();
    let fired = scene.recorder.nth(id, "ready", 2).await.seq;
    let what_has_fired = RearmItem {
        readable: false,
        ..reading(id, fired)
    };
    assert!(scene.rearm(what_has_fired).await);
    scene.recorder.nth(id, "ready", 3).await;
    look(scene).await;
    assert_eq!(
        scene.recorder.kinds(id).len(),
        4,
        "the disarmed writer fires although it is writable"
    );
    let writing = RearmItem {
        readable: false,
        writable: true,
        ..reading(id, 0)
    };
    assert!(scene.rearm(writing).await);
    scene.recorder.nth(id, "ready", 4).await;
}

/// Reads all bytes that are there.
fn drain(stream: &mut UnixStream) {
    stream.set_nonblocking(true).unwrap();
    while stream.read(&mut [0; 65_536]).is_ok_and(|read| read > 0) {}
    stream.set_nonblocking(false).unwrap();
}

/// On a stopped loop, the backend may have found readiness that it cannot report yet.
async fn readiness_found_before_disarming_is_not_reported_after_it(scene: &mut Scene) {
    let (mut ours, mut theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    scene.stop().await;
    ours.write_all(b"x").unwrap();
    assert!(scene.rearm(disarming(id)).await);
    scene.run().await;
    look(scene).await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);

    // A direction that is armed again does not take that old readiness for a new one.
    assert!(scene.rearm(reading(id, 0)).await);
    let fired = scene.recorder.first(id, "ready").await.seq;
    theirs.read_exact(&mut [0]).unwrap();
    assert!(scene.rearm(reading(id, fired)).await);
    scene.settle().await;
    scene.stop().await;
    ours.write_all(b"y").unwrap();
    let answer = rearm(scene, vec![disarming(id), reading(id, 0)]).await;
    assert_eq!(answer.armed, [true, true]);
    theirs.read_exact(&mut [0]).unwrap();
    scene.run().await;
    look(scene).await;
    assert_eq!(scene.recorder.kinds(id), ["added", "ready"]);
    assert_eq!(armed(scene, id).await, (true, false));
    ours.write_all(b"z").unwrap();
    scene.recorder.nth(id, "ready", 2).await;
}

async fn no_ready_comes_after_the_cursor_of_the_answer(scene: &mut Scene) {
    let (mut ours, mut theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    let ready = |scene: &Scene| {
        let events = scene.recorder.recording.events();
        events
            .filter(|e| matches!(e.kind, Some(event::Kind::Ready(_))))
            .last()
            .map_or(0, |event| event.seq)
    };
    for _ in 0..ROUNDS {
        ours.write_all(b"x").unwrap();
        let silent = rearm(scene, vec![reading_no_more(id)])
            .await
            .cursor
            .unwrap();
        look(scene).await;
        assert!(ready(scene) <= silent.seq);
        theirs.read_exact(&mut [0]).unwrap();
        rearm(scene, vec![reading(id, 0)]).await;
        look(scene).await;
        assert!(ready(scene) <= silent.seq, "there are no bytes to read");
    }
}

async fn poll_and_attach_disarm_too(scene: &mut Scene) {
    let (mut ours, mut theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    let after = scene.settle().await;
    ours.write_all(b"x").unwrap();
    let request = PollRequest {
        r#loop: Some(scene.target.clone()),
        after: Some(Cursor {
            epoch: String::new(),
            seq: after,
        }),
        fence: true,
        rearm: vec![disarming(id)],
        ..PollRequest::default()
    };
    let answer = scene.daemon.events().poll(request).await.unwrap();
    let told = answer.into_inner().batch.unwrap().events.len();
    look(scene).await;
    let kinds = scene.recorder.kinds(id);
    assert_eq!(
        kinds.len(),
        1 + told,
        "Ready is in Poll's answer or does not come: {kinds:?}"
    );

    theirs.read_exact(&mut [0]).unwrap();
    rearm(scene, vec![reading(id, 0)]).await;
    let start = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        ..SubscribeRequest::default()
    };
    let (mut attached, requests) = Recorder::attach(&scene.daemon, start).await.unwrap();
    let items = |items| Message::Rearm(AttachRearm { number: 1, items });
    requests.send(items(vec![disarming(id)])).await.unwrap();
    while attached.results.is_empty() {
        assert!(attached.step().await);
    }
    match attached.results.pop_front().unwrap().result {
        Some(attach_result::Result::Rearmed(answer)) => assert_eq!(answer.armed, [true]),
        other => panic!("{other:?}"),
    }
    assert_eq!(armed(scene, id).await, (false, false));
    let bad = RearmItem {
        seq: 7,
        ..disarming(id)
    };
    requests.send(items(vec![bad])).await.unwrap();
    while attached.results.is_empty() {
        assert!(attached.step().await);
    }
    match attached.results.pop_front().unwrap().result {
        Some(attach_result::Result::Error(error)) => {
            assert!(error.message.contains("rearm.items[0].seq"), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
}

async fn an_item_that_disarms_has_no_seq(scene: &mut Scene) {
    let (_ours, _theirs, slot) = pair(scene).await;
    let id = scene.add(reader(slot)).await;
    let bad = RearmItem {
        seq: 7,
        ..disarming(id)
    };
    let request = RearmRequest {
        r#loop: Some(scene.target.clone()),
        items: vec![disarming(id + 1), bad],
        ..RearmRequest::default()
    };
    let answer = scene.daemon.watches().rearm(request).await;
    let error = refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(error.fields, ["items[1].seq"]);
    let request = PollRequest {
        r#loop: Some(scene.target.clone()),
        rearm: vec![bad],
        ..PollRequest::default()
    };
    let answer = scene.daemon.events().poll(request).await;
    let error = refused(answer, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(error.fields, ["rearm[0].seq"]);
    assert_eq!(armed(scene, id).await, (true, false));
}
