//! Consumers: their cursors are kept, held, taken over, acknowledged and deleted.

use evloopd::history::{check, check_resumed, check_same};
use evloopd::proto::*;
use tonic::Code;

use crate::common::{Daemon, Recorder, Scene, millis, post, refused, seconds, timer};
use crate::pressure::{ack, status};

async fn scene() -> Scene {
    Scene::new(Daemon::start("").await, "", "").await
}

fn subscribe(scene: &Scene, consumer: &str) -> SubscribeRequest {
    SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        consumer: consumer.into(),
        ..SubscribeRequest::default()
    }
}

async fn get(scene: &Scene, name: &str) -> Result<Consumer, tonic::Status> {
    let request = GetConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: name.into(),
    };
    let answer = scene.daemon.events().get_consumer(request).await?;
    Ok(answer.into_inner().consumer.expect("the consumer"))
}

async fn create(
    scene: &Scene,
    name: &str,
    start: Option<create_consumer_request::Start>,
) -> Result<Consumer, tonic::Status> {
    let request = CreateConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: name.into(),
        start,
        ..CreateConsumerRequest::default()
    };
    let answer = scene.daemon.events().create_consumer(request).await?;
    Ok(answer.into_inner().consumer.expect("the consumer"))
}

async fn delete(scene: &Scene, name: &str) -> Result<u64, tonic::Status> {
    let request = DeleteConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: name.into(),
        ..DeleteConsumerRequest::default()
    };
    let answer = scene.daemon.events().delete_consumer(request).await?;
    Ok(answer
        .into_inner()
        .acked
        .expect("the acknowledged cursor")
        .seq)
}

fn oldest() -> Option<create_consumer_request::Start> {
    Some(create_consumer_request::Start::StartAt(
        StartAt::Oldest.into(),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_consumers_pin_what_the_slower_one_needs() {
    let mut scene = scene().await;
    create(&scene, "slow", oldest()).await.unwrap();
    create(&scene, "fast", oldest()).await.unwrap();
    let last = scene.post(vec![post("", b"x"); 100]).await;
    scene.recorder.reach(last).await;
    assert_eq!(ack(&scene, "fast", last).await.unwrap(), last);
    assert_eq!(ack(&scene, "slow", 10).await.unwrap(), 10);
    assert_eq!(status(&scene).await.pinned_events, last - 10);
    // Acknowledgements are cumulative: an older one changes nothing.
    assert_eq!(ack(&scene, "fast", 3).await.unwrap(), last);
    let slow = get(&scene, "slow").await.unwrap();
    assert_eq!((slow.lag_events, slow.lost_events), (last - 10, 0));
    assert!(slow.lag_bytes > 0 && !slow.held && slow.expires.is_some());
    assert_eq!(get(&scene, "fast").await.unwrap().lag_events, 0);
    assert_eq!(delete(&scene, "slow").await.unwrap(), 10);
    assert_eq!(status(&scene).await.pinned_events, 0);
    let request = ListConsumersRequest {
        r#loop: Some(scene.target.clone()),
        ..ListConsumersRequest::default()
    };
    let listed = scene.daemon.events().list_consumers(request).await.unwrap();
    let names: Vec<String> = listed
        .into_inner()
        .consumers
        .into_iter()
        .map(|c| c.name)
        .collect();
    assert_eq!(names, ["fast"]);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_filter_does_not_hold_back_what_is_pinned() {
    let scene = scene().await;
    let mut request = subscribe(&scene, "exits");
    request.auto_ack = true;
    request.filter = Some(Filter {
        kinds: vec![EventKind::Exited.into()],
        ..Filter::default()
    });
    let mut filtered = Recorder::subscribe(&scene.daemon, request).await.unwrap();
    let last = scene.post(vec![post("", b"x"); 100]).await;
    filtered.reach(last).await;
    assert_eq!(get(&scene, "exits").await.unwrap().acked.unwrap().seq, last);
    assert_eq!(filtered.recording.events().count(), 0);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_newcomer_takes_over_and_the_old_holder_is_told() {
    let scene = scene().await;
    let mut first = Recorder::subscribe(&scene.daemon, subscribe(&scene, "c"))
        .await
        .unwrap();
    let seq = scene.post(vec![post("", b"1"); 10]).await;
    first.reach(seq).await;
    ack(&scene, "c", seq - 4).await.unwrap();
    assert!(get(&scene, "c").await.unwrap().held);
    let mut second = Recorder::subscribe(&scene.daemon, subscribe(&scene, "c"))
        .await
        .unwrap();
    assert_eq!(first.end().await.reason(), GoodbyeReason::TakenOver);
    second.reach(seq).await;
    assert_eq!(
        second.recording.start,
        seq - 4,
        "the new holder starts after the acknowledged cursor"
    );
    assert_eq!(get(&scene, "c").await.unwrap().takeovers, 1);
    check_resumed(&[first.recording.clone(), second.recording.clone()]).unwrap();
    // A Poll takes over from the holder too, and can be taken over from.
    let poll = PollRequest {
        r#loop: Some(scene.target.clone()),
        consumer: "c".into(),
        ..PollRequest::default()
    };
    let polled = scene
        .daemon
        .events()
        .poll(poll.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(polled.batch.unwrap().after, seq - 4);
    assert_eq!(second.end().await.reason(), GoodbyeReason::TakenOver);
    let mut waiting = poll;
    waiting.after = Some(Cursor {
        epoch: String::new(),
        seq,
    });
    waiting.timeout = Some(seconds(60));
    let mut events = scene.daemon.events();
    let waits = tokio::spawn(async move { events.poll(waiting).await });
    let held = async {
        while !get(&scene, "c").await.unwrap().held {
            tokio::task::yield_now().await;
        }
    };
    crate::common::within("the poll to hold", held).await;
    let _third = Recorder::subscribe(&scene.daemon, subscribe(&scene, "c"))
        .await
        .unwrap();
    let ousted = crate::common::within("the poll to end", waits)
        .await
        .unwrap();
    refused(ousted.map(drop), Code::FailedPrecondition, "TAKEN_OVER");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_deleted_consumer_says_goodbye_to_its_holder() {
    let scene = scene().await;
    let mut held = Recorder::subscribe(&scene.daemon, subscribe(&scene, "c"))
        .await
        .unwrap();
    delete(&scene, "c").await.unwrap();
    assert_eq!(held.end().await.reason(), GoodbyeReason::ConsumerDeleted);
    let gone = delete(&scene, "c").await;
    refused(gone, Code::NotFound, "CONSUMER_NOT_FOUND");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn wrong_input_names_the_field() {
    let scene = scene().await;
    create(&scene, "c", None).await.unwrap();
    let taken = create(&scene, "c", None).await.map(drop);
    refused(taken, Code::AlreadyExists, "NAME_TAKEN");
    let wrong = create(&scene, "No Name", None).await.map(drop);
    assert_eq!(
        refused(wrong, Code::InvalidArgument, "INVALID_FIELD").fields,
        ["name"]
    );
    let wrong = ack(&scene, "c", 1 << 40).await;
    refused(wrong, Code::OutOfRange, "CURSOR_OUT_OF_RANGE");
    type Spoil = fn(&mut SubscribeRequest);
    let cases: [(&str, Spoil); 6] = [
        ("auto_ack", |r| r.auto_ack = true),
        ("consumer_ttl", |r| r.consumer_ttl = Some(seconds(5))),
        ("consumer_ttl", |r| {
            r.consumer = "c".into();
            r.consumer_ttl = Some(millis(5));
        }),
        ("max_in_flight_bytes", |r| r.max_in_flight_bytes = 1),
        ("linger", |r| r.linger = Some(seconds(5))),
        ("consumer", |r| r.consumer = "No Name".into()),
    ];
    for (field, spoil) in cases {
        let mut request = subscribe(&scene, "");
        spoil(&mut request);
        let wrong = Recorder::subscribe(&scene.daemon, request).await.map(drop);
        assert_eq!(
            refused(wrong, Code::InvalidArgument, "INVALID_FIELD").fields,
            [field]
        );
    }
    let daemon = Daemon::start("[limits]\nconsumers = 1\n").await;
    let scene = Scene::new(daemon, "", "").await;
    create(&scene, "one", None).await.unwrap();
    let limit = create(&scene, "two", None).await.map(drop);
    assert_eq!(
        refused(limit, Code::ResourceExhausted, "LIMIT").word("limit"),
        "limits.consumers"
    );
    scene.finish().await;
}

/// Consumers are deleted and made again on a busy loop with a small journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn consumers_deleted_and_made_again_under_load_lose_no_pinned_event() {
    let config = "[policy.small]\nextends = \"default\"\njournal_bytes = \"64KiB\"\n";
    let mut scene = Scene::new(Daemon::start(config).await, "small", "").await;
    let every = timer_spec::Schedule::Every(millis(1));
    for _ in 0..8 {
        scene.add(timer(every.clone())).await;
    }
    let mut recordings = Vec::new();
    for round in 0..60 {
        let name = format!("c{}", round % 3);
        let mut request = subscribe(&scene, &name);
        request.auto_ack = round % 2 == 0;
        let mut reader = Recorder::subscribe(&scene.daemon, request).await.unwrap();
        let target = reader.recording.start + 40;
        while reader.recording.through() < target {
            assert!(reader.step().await);
            if round % 2 == 1 {
                ack(&scene, &name, reader.recording.through())
                    .await
                    .unwrap();
            }
        }
        assert_eq!(check(&reader.recording).unwrap().lost, 0);
        if round % 5 == 4 {
            delete(&scene, &name).await.unwrap();
        }
        recordings.push(reader.recording);
    }
    for pair in recordings.windows(2) {
        check_same(&pair[0], &pair[1]).unwrap();
    }
    assert_eq!(status(&scene).await.dropped, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn unacknowledged_bytes_stay_within_the_limit_and_an_acknowledgement_makes_room() {
    let scene = scene().await;
    let mut request = subscribe(&scene, "c");
    request.max_in_flight_bytes = 4096;
    request.heartbeat = Some(millis(100));
    let mut reader = Recorder::subscribe(&scene.daemon, request).await.unwrap();
    let last = scene.post(vec![post("", &[0; 500]); 100]).await;
    let bytes = |r: &Recorder| -> usize {
        let events = r.recording.events();
        events.map(prost::Message::encoded_len).sum()
    };
    // Heartbeats still arrive; events do not.
    let mut empty = 0;
    while empty < 3 {
        assert!(reader.step().await);
        let batch = reader.recording.batches.last().unwrap();
        empty += usize::from(batch.events.is_empty() && reader.recording.through() > 0);
    }
    assert!(
        (3000..=4096 + 600).contains(&bytes(&reader)),
        "{}",
        bytes(&reader)
    );
    assert!(reader.recording.through() < last);
    while reader.recording.through() < last {
        ack(&scene, "c", reader.recording.through()).await.unwrap();
        assert!(reader.step().await);
    }
    assert_eq!(check(&reader.recording).unwrap().lost, 0);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_batch_waits_to_become_full() {
    let scene = scene().await;
    let mut request = subscribe(&scene, "");
    request.linger = Some(millis(500));
    let mut reader = Recorder::subscribe(&scene.daemon, request).await.unwrap();
    let mut last = 0;
    for _ in 0..20 {
        last = scene.post(vec![post("", b"x")]).await;
    }
    reader.reach(last).await;
    let full = reader
        .recording
        .batches
        .iter()
        .filter(|b| !b.events.is_empty());
    let batches = full.count();
    assert!(batches <= 4, "20 posts, {batches} batches");
    scene.finish().await;
}
