//! Attach: one stream with events to the client, and acknowledgements, re-arming and bytes from it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use evloopd::history::check;
use evloopd::proto::attach_request::Message;
use evloopd::proto::*;
use tokio::sync::mpsc;
use tonic::Code;

use crate::common::{Daemon, Recorder, Scene, adopted, by_id, post, reader, refused, shell};

fn start(scene: &Scene) -> SubscribeRequest {
    SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Oldest.into())),
        ..SubscribeRequest::default()
    }
}

async fn attached(start: SubscribeRequest, scene: &Scene) -> (Recorder, mpsc::Sender<Message>) {
    Recorder::attach(&scene.daemon, start).await.unwrap()
}

async fn result(recorder: &mut Recorder) -> AttachResult {
    loop {
        if let Some(result) = recorder.results.pop_front() {
            return result;
        }
        assert!(recorder.step().await, "the stream ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_are_done_in_their_order_and_answered_by_number() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&ours);
    let fd = scene.add(reader(slot)).await;
    let (peer, ours) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&ours);
    drop(ours);
    let connection = scene.add(watch_spec::Spec::Connection(adopted(slot))).await;
    let (mut attached, requests) = attached(start(&scene), &scene).await;
    theirs.write_all(b"x").unwrap();
    let ready = attached.first(fd, "ready").await;
    let rearm = |number| {
        Message::Rearm(AttachRearm {
            number,
            items: vec![RearmItem {
                watch_id: fd,
                seq: ready.seq,
                ..RearmItem::default()
            }],
        })
    };
    let write = |number, data: &'static [u8], offset| {
        Message::Write(AttachWrite {
            number,
            watch: by_id(connection),
            data: data.into(),
            offset: Some(offset),
        })
    };
    requests.send(rearm(1)).await.unwrap();
    requests.send(write(2, b"hello", 0)).await.unwrap();
    // A write with number 0 is answered only if it fails.
    requests.send(write(0, b"lo world", 3)).await.unwrap();
    requests.send(write(3, b"", 11)).await.unwrap();
    requests.send(write(0, b"hole", 99)).await.unwrap();
    let armed = result(&mut attached).await;
    assert_eq!(armed.number, 1);
    match armed.result {
        Some(attach_result::Result::Rearmed(answer)) => {
            assert_eq!(answer.armed, [true]);
            assert!(answer.cursor.unwrap().seq >= ready.seq);
        }
        other => panic!("{other:?}"),
    }
    for (number, taken) in [(2, 5), (3, 11)] {
        let written = result(&mut attached).await;
        assert_eq!(written.number, number);
        match written.result {
            Some(attach_result::Result::Written(written)) => assert_eq!(written.taken, taken),
            other => panic!("{other:?}"),
        }
    }
    let hole = result(&mut attached).await;
    match (hole.number, hole.result) {
        (0, Some(attach_result::Result::Error(error))) => {
            assert_eq!(error.reason, "WRITE_HOLE");
            assert_eq!(error.metadata["taken"], "11");
        }
        other => panic!("{other:?}"),
    }
    let mut text = [0; 11];
    (&peer).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello world");
    attached.nth(fd, "ready", 2).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn half_closing_flushes_says_goodbye_and_ends() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    // More than the limit on bytes in flight, although the client sends no more acknowledgements.
    let last = scene.post(vec![post("", &[0; 10_000]); 100]).await;
    let (mut attached, requests) = attached(start(&scene), &scene).await;
    drop(requests);
    let goodbye = attached.end().await;
    assert_eq!(goodbye.reason(), GoodbyeReason::Done);
    assert!(goodbye.cursor.unwrap().seq >= last);
    assert!(attached.recording.through() >= last);
    assert_eq!(check(&attached.recording).unwrap().lost, 0);
    scene.recorder.reach(last).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn acknowledgements_on_the_stream_make_room_and_move_the_consumer() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let mut request = start(&scene);
    request.consumer = "c".into();
    request.max_in_flight_bytes = 4096;
    let (mut attached, requests) = attached(request, &scene).await;
    let id = scene.spawn(shell("seq 20000")).await;
    let done = |r: &Recorder| r.kinds(id).contains(&"closed");
    while !done(&attached) {
        assert!(attached.step().await);
        let ack = Cursor {
            epoch: String::new(),
            seq: attached.recording.through(),
        };
        requests.send(Message::Ack(ack)).await.unwrap();
    }
    let text = attached.bytes(id, Stream::Stdout);
    assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 20_000);
    let through = attached.recording.through();
    let request = GetConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: "c".into(),
    };
    let moved = async {
        loop {
            let consumer = scene
                .daemon
                .events()
                .get_consumer(request.clone())
                .await
                .unwrap();
            if consumer.into_inner().consumer.unwrap().acked.unwrap().seq >= through {
                return;
            }
        }
    };
    crate::common::within("the last acknowledgement", moved).await;
    // One from the future is refused, and the stream goes on.
    let ack = Cursor {
        epoch: String::new(),
        seq: 1 << 40,
    };
    requests.send(Message::Ack(ack)).await.unwrap();
    match result(&mut attached).await.result {
        Some(attach_result::Result::Error(error)) => {
            assert_eq!(error.reason, "CURSOR_OUT_OF_RANGE");
        }
        other => panic!("{other:?}"),
    }
    scene.recorder.reach(through).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_first_message_is_the_start_and_there_is_no_second() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    let wrong = AttachRequest {
        message: Some(Message::Ack(Cursor::default())),
    };
    let mut events = scene.daemon.events();
    let refusal = events.attach(tokio_stream::iter([wrong])).await.map(drop);
    assert_eq!(
        refused(refusal, Code::InvalidArgument, "INVALID_FIELD").fields,
        ["start"]
    );
    let none = events.attach(tokio_stream::empty()).await.map(drop);
    refused(none, Code::InvalidArgument, "INVALID_FIELD");
    let (mut attached, requests) = attached(start(&scene), &scene).await;
    requests.send(Message::Start(start(&scene))).await.unwrap();
    match result(&mut attached).await.result {
        Some(attach_result::Result::Error(error)) => assert_eq!(error.metadata["field"], "start"),
        other => panic!("{other:?}"),
    }
    scene.finish().await;
}

/// A client that stops acknowledging is told that the daemon ends and does not delay that end, both
/// on a loop that is closed by the end and on one that was closed before.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_end_does_not_wait_for_acknowledgements() {
    for (consumer, closed_before) in [("", false), ("c", false), ("", true), ("c", true)] {
        let config = "[server]\ndrain_timeout = \"30s\"";
        let mut scene = Scene::new(Daemon::start(config).await, "", "").await;
        let mut request = start(&scene);
        request.consumer = consumer.into();
        request.max_in_flight_bytes = 4096;
        let (mut attached, _requests) = attached(request, &scene).await;
        scene.post(vec![post("", &[0; 2000]); 10]).await;
        while attached.recording.through() < 4 {
            assert!(attached.step().await);
        }
        if closed_before {
            scene.stop().await;
            let request = CloseLoopRequest {
                r#loop: Some(scene.target.clone()),
                ..CloseLoopRequest::default()
            };
            scene.daemon.loops().close_loop(request).await.unwrap();
        }
        scene.daemon.signal(nix::sys::signal::Signal::SIGTERM);
        let goodbye = attached.end().await;
        assert_eq!(goodbye.reason(), GoodbyeReason::Shutdown);
        assert_eq!(goodbye.cursor.unwrap().seq, attached.recording.through());
        assert_eq!(scene.daemon.ended().await, Some(0));
        assert!(scene.daemon.log().contains("ended in order"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn posts_on_the_stream_are_appended_and_answered_in_order() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    let (mut attached, requests) = attached(start(&scene), &scene).await;
    let posts = |number, posts: Vec<Post>| Message::Post(AttachPost { number, posts });
    requests
        .send(posts(1, vec![post("a", b"1"), post("a", b"2")]))
        .await
        .unwrap();
    // A post with number 0 is answered only if it fails.
    requests
        .send(posts(0, vec![post("b", b"3")]))
        .await
        .unwrap();
    requests.send(posts(2, vec![])).await.unwrap();
    let long = Post {
        topic: "x".repeat(129),
        ..Post::default()
    };
    let batch = vec![post("c", b"never"), long];
    requests.send(posts(0, batch)).await.unwrap();
    requests
        .send(posts(3, vec![post("d", b"4")]))
        .await
        .unwrap();

    let mut positions = Vec::new();
    for (number, field) in [
        (1, ""),
        (2, "post.posts"),
        (0, "post.posts[1].topic"),
        (3, ""),
    ] {
        let answer = result(&mut attached).await;
        assert_eq!(answer.number, number);
        match answer.result {
            Some(attach_result::Result::Posted(posted)) if field.is_empty() => {
                positions.push(posted.cursor.unwrap().seq);
            }
            Some(attach_result::Result::Error(error)) => assert_eq!(error.metadata["field"], field),
            other => panic!("{other:?}"),
        }
    }
    // The cursor is that of the last event of the message; nothing was appended for those refused.
    assert_eq!(positions[1] - positions[0], 2);
    let is_posted = |event: &Event| matches!(event.kind, Some(event::Kind::Posted(_)));
    while attached
        .recording
        .events()
        .filter(|event| is_posted(event))
        .count()
        < 4
    {
        assert!(attached.step().await, "the stream ended");
    }
    let payloads: Vec<_> = attached
        .recording
        .events()
        .filter_map(|event| match &event.kind {
            Some(event::Kind::Posted(posted)) => Some(posted.payload.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(payloads, ["1", "2", "3", "4"]);

    scene.finish().await;
}
