//! Poll, the unary way to read, also as a consumer.

use std::io::Write;
use std::os::unix::net::UnixStream;

use evloopd::history::Recording;
use evloopd::proto::event::Kind;
use evloopd::proto::*;
use tonic::{Code, Status};

use crate::common::{Daemon, PATIENCE, Recorder, Scene, lasting, millis, post, reader, refused};

async fn scene() -> Scene {
    Scene::new(Daemon::start("").await, "", "").await
}

fn after(scene: &Scene, seq: u64) -> PollRequest {
    PollRequest {
        r#loop: Some(scene.target.clone()),
        after: Some(Cursor {
            epoch: String::new(),
            seq,
        }),
        ..PollRequest::default()
    }
}

async fn poll(scene: &Scene, request: PollRequest) -> Result<PollResponse, Status> {
    Ok(scene.daemon.events().poll(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn polling_on_reads_everything_once() {
    let scene = scene().await;
    let mut last = 0;
    for _ in 0..5 {
        last = scene.post(vec![post("", &[0; 2000]); 1000]).await;
    }
    let mut recording = Recording::new(scene.recorder.recording.epoch.clone(), 0);
    let mut answers = 0;
    while recording.through() < last {
        let request = PollRequest {
            max_events: 65_536,
            ..after(&scene, recording.through())
        };
        let answer = poll(&scene, request).await.unwrap();
        let batch = answer.batch.unwrap();
        assert_eq!(
            answer.more,
            batch.through < last,
            "10 MB do not fit one answer"
        );
        assert_eq!(answer.epoch, recording.epoch);
        recording.batches.push(batch);
        answers += 1;
    }
    assert!(answers > 1);
    let summary = evloopd::history::check(&recording).unwrap();
    assert_eq!((summary.kinds["posted"], summary.lost), (5000, 0));
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn max_events_limits_an_answer_and_more_says_so() {
    let mut scene = scene().await;
    let last = scene.post(vec![post("", b""); 10]).await;
    let request = PollRequest {
        max_events: 3,
        ..after(&scene, last - 4)
    };
    let answer = poll(&scene, request.clone()).await.unwrap();
    let batch = answer.batch.unwrap();
    assert_eq!(
        (batch.events.len(), batch.through, answer.more),
        (3, last - 1, true)
    );
    let too_many = PollRequest {
        max_events: 65_537,
        ..request
    };
    let bad = refused(
        poll(&scene, too_many).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(bad.fields, ["max_events"]);
    scene.settle().await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_events_a_poll_waits_no_longer_than_asked() {
    let mut scene = scene().await;
    let last = scene.settle().await;
    let answer = poll(&scene, after(&scene, last)).await.unwrap();
    assert_eq!(answer.batch.unwrap().events, []);
    let waiting = PollRequest {
        timeout: Some(millis(50)),
        ..after(&scene, last)
    };
    let began = std::time::Instant::now();
    let answer = poll(&scene, waiting).await.unwrap().batch.unwrap();
    assert!(began.elapsed() >= std::time::Duration::from_millis(50));
    assert_eq!(
        (answer.events.len(), answer.after, answer.through),
        (0, last, last)
    );

    let waiting = PollRequest {
        timeout: Some(lasting(PATIENCE)),
        ..after(&scene, last)
    };
    let (answer, seq) = tokio::join!(poll(&scene, waiting), scene.post(vec![post("", b"")]));
    assert_eq!(answer.unwrap().batch.unwrap().events[0].seq, seq);
    scene.finish().await;
}

/// The calls of a user of Python's `selectors`: register, select, unregister.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn polling_is_select_with_rearm() {
    let mut scene = scene().await;
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&theirs);
    let id = scene.add(reader(slot)).await;
    let mut seen = scene.settle().await;
    ours.write_all(b"never read").unwrap();
    let mut fired = 0;
    for _ in 0..5 {
        let rearm = RearmItem {
            watch_id: id,
            seq: fired,
            ..RearmItem::default()
        };
        let request = PollRequest {
            timeout: Some(lasting(PATIENCE)),
            rearm: if fired > 0 { vec![rearm] } else { Vec::new() },
            ..after(&scene, seen)
        };
        let batch = poll(&scene, request).await.unwrap().batch.unwrap();
        let [event] = batch.events.as_slice() else {
            panic!("one Ready a round: {batch:?}");
        };
        assert!(matches!(event.kind, Some(Kind::Ready(r)) if r.readable));
        assert!(event.seq > fired);
        (seen, fired) = (batch.through, event.seq);
    }
    scene.remove(id).await;
    scene.finish().await;
}

/// A fence asks for everything that is ready now, without a wait: on every backend, more watches
/// than a turn takes are all reported, or none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fence_reports_everything_that_is_ready_now() {
    const WATCHES: usize = 150;
    for backend in ["epoll", "poll", "select", "io_uring"] {
        let daemon = Daemon::start("[limits]\nturn_events = 64").await;
        let mut scene = if backend == "io_uring" {
            Scene::new(daemon, "proactor", "").await
        } else {
            Scene::new(daemon, "", backend).await
        };
        let mut ours = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..WATCHES {
            let (our, their) = UnixStream::pair().unwrap();
            let slot = scene.daemon.handover().await.give(&their);
            ids.push(scene.add(reader(slot)).await);
            ours.push(our);
        }
        let mut seen = scene.settle().await;
        let look = |seen, rearm| PollRequest {
            max_events: 65_536,
            fence: true,
            rearm,
            ..after(&scene, seen)
        };
        let answer = poll(&scene, look(seen, Vec::new())).await.unwrap();
        assert_eq!(answer.batch.unwrap().events.len(), 0, "{backend}");
        for our in &mut ours {
            our.write_all(b"never read").unwrap();
        }
        let mut before = 0;
        for round in 0..3 {
            let item = |id: &u64| RearmItem {
                watch_id: *id,
                readable: true,
                ..RearmItem::default()
            };
            let rearm = ids.iter().map(item).collect();
            let request = PollRequest {
                // Without a timeout, everything armed is looked at, with or without a fence.
                fence: round == 0,
                ..look(seen, if round == 0 { Vec::new() } else { rearm })
            };
            let answer = poll(&scene, request).await.unwrap();
            let batch = answer.batch.unwrap();
            assert_eq!(batch.events.len(), WATCHES, "{backend}, round {round}");
            assert!(answer.looked_at_ns > before);
            // The timestamps tell events found by this look from those found before it.
            let found = batch.events.iter().map(|event| event.monotonic_ns);
            let now = found.filter(|at| *at >= answer.looked_at_ns).count();
            assert!(
                round == 0 || now == WATCHES,
                "{backend}, round {round}: {now}"
            );
            (seen, before) = (batch.through, answer.looked_at_ns);
        }
        // A stopped loop does not look at its sources, but answers.
        scene.stop().await;
        let answer = poll(&scene, look(seen, Vec::new())).await.unwrap();
        assert_eq!(
            answer.batch.unwrap().events.len(),
            1,
            "the event that the loop stopped"
        );
        scene.run().await;
        for id in ids {
            scene.remove(id).await;
        }
        scene.finish().await;
    }
}

/// A filter for Ready also lets the end of the filtered watches through, and of no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_filter_for_readiness_lets_the_end_of_a_watch_through() {
    let mut scene = scene().await;
    let mut ends = Vec::new();
    let mut ids = Vec::new();
    for name in ["ours", "ours", "theirs"] {
        let (here, there) = UnixStream::pair().unwrap();
        let slot = scene.daemon.handover().await.give(&there);
        let request = AddWatchRequest {
            labels: [("of".into(), name.into())].into(),
            ..scene.request(reader(slot))
        };
        let added = scene.try_add(request).await.unwrap();
        ids.push(added.watch.unwrap().watch_id);
        ends.push(here);
    }
    let seen = scene.settle().await;
    let kinds = vec![EventKind::Ready.into()];
    let by_id = Filter {
        kinds: kinds.clone(),
        watch_ids: ids[..2].to_vec(),
        ..Filter::default()
    };
    let by_label = Filter {
        kinds,
        labels: [("of".into(), "ours".into())].into(),
        ..Filter::default()
    };
    let start = |filter: &Filter| SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        filter: Some(filter.clone()),
        heartbeat: Some(millis(100)),
        ..SubscribeRequest::default()
    };
    let subscribed = Recorder::subscribe(&scene.daemon, start(&by_label)).await;
    let attached = Recorder::attach(&scene.daemon, start(&by_id)).await;
    ends[0].write_all(b"x").unwrap();
    scene.recorder.first(ids[0], "ready").await;
    for id in &ids {
        scene.remove(*id).await;
    }
    let last = scene.settle().await;
    let (attached, _requests) = attached.unwrap();
    for mut reader in [subscribed.unwrap(), attached] {
        reader.reach(last).await;
        assert_eq!(reader.kinds(ids[0]), ["ready", "closed"]);
        assert_eq!(reader.kinds(ids[1]), ["closed"]);
        assert_eq!(reader.recording.events().count(), 3);
    }
    for filter in [by_id, by_label] {
        let request = PollRequest {
            filter: Some(filter),
            ..after(&scene, seen)
        };
        let batch = poll(&scene, request).await.unwrap().batch.unwrap();
        let polled: Vec<_> = batch.events.iter().map(|event| event.watch_id).collect();
        assert_eq!(polled, [ids[0], ids[0], ids[1]]);
    }
    scene.finish().await;
}

async fn ack(scene: &Scene, consumer: &str, seq: u64) -> Result<u64, Status> {
    let request = AckRequest {
        r#loop: Some(scene.target.clone()),
        consumer: consumer.into(),
        cursor: Some(Cursor {
            epoch: String::new(),
            seq,
        }),
        ..AckRequest::default()
    };
    let answer = scene.daemon.events().ack(request).await?;
    Ok(answer.into_inner().acked.unwrap().seq)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_consumer_continues_after_what_it_acknowledged() {
    let scene = scene().await;
    let last = scene.post(vec![post("", b""); 10]).await;
    assert_eq!(ack(&scene, "me", last - 5).await.unwrap(), last - 5);
    assert_eq!(
        ack(&scene, "me", last - 8).await.unwrap(),
        last - 5,
        "acks are cumulative"
    );
    let future = ack(&scene, "me", last + 1).await;
    refused(future, Code::OutOfRange, "CURSOR_OUT_OF_RANGE");
    let nameless = ack(&scene, "No Name", last).await;
    refused(nameless, Code::InvalidArgument, "INVALID_FIELD");

    let request = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        consumer: "me".into(),
        ..SubscribeRequest::default()
    };
    let mut again = Recorder::subscribe(&scene.daemon, request).await.unwrap();
    assert_eq!(again.recording.start, last - 5);
    again.reach(last).await;
    assert_eq!(again.recording.events().count(), 5);

    let request = PollRequest {
        after: None,
        consumer: "me".into(),
        ack: Some(Cursor {
            epoch: String::new(),
            seq: last - 2,
        }),
        ..after(&scene, 0)
    };
    poll(&scene, request.clone()).await.unwrap();
    let batch = poll(&scene, request).await.unwrap().batch.unwrap();
    assert_eq!((batch.after, batch.events.len()), (last - 2, 2));
    scene.finish().await;
}
