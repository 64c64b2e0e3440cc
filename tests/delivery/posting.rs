//! Posts by many clients at once, beside everything else that a loop does.

use evloopd::proto::event::Kind;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::timer_spec::Schedule;
use evloopd::proto::*;

use crate::common::{Daemon, Scene, millis, post, refused, shell, timer, within};

const CLIENTS: u32 = 4;
const POSTS: u32 = 300;

/// What one client posted: the answered position of each payload.
type Posted = Vec<(u64, String)>;

async fn post_one_by_one(
    mut events: EventServiceClient<tonic::transport::Channel>,
    target: LoopRef,
    client: u32,
) -> Posted {
    let mut posted = Vec::new();
    for number in 0..POSTS {
        // Some are too large for anything but the mailbox.
        let padding = if number % 50 == 49 { 20_000 } else { 0 };
        let payload = format!("{client}:{number}:{}", "x".repeat(padding));
        let request = PostRequest {
            r#loop: Some(target.clone()),
            posts: vec![post("topic", payload.as_bytes())],
            ..PostRequest::default()
        };
        let answer = events.post(request).await.unwrap().into_inner();
        posted.push((answer.cursor.unwrap().seq, payload));
    }
    posted
}

/// Posts to a loop that wakes, sleeps, stops and runs: each has the position that its answer named,
/// and a client's posts are in the order in which it sent them.
async fn posts_are_where_their_answers_say(policy: &str, backend: &str) {
    let mut scene = Scene::new(Daemon::start("").await, policy, backend).await;
    scene.add(timer(Schedule::Every(millis(1)))).await;
    scene
        .spawn(shell("while echo line; do sleep 0.002; done"))
        .await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let channel = scene.daemon.another_channel().await;
        let events = EventServiceClient::new(channel);
        clients.spawn(post_one_by_one(events, scene.target.clone(), client));
    }
    let mut posted = Vec::new();
    while posted.len() < CLIENTS as usize {
        // The events are read as they come, so that none has to give way.
        tokio::select! {
            done = clients.join_next() => posted.push(done.unwrap().unwrap()),
            _ = scene.recorder.step() => {}
        }
        let stopped = scene.stop().await;
        scene.run().await;
        assert!(stopped > 0);
    }
    let last = posted.iter().flatten().map(|(seq, _)| *seq).max().unwrap();
    scene.recorder.reach(last).await;
    for of_client in &posted {
        assert!(of_client.is_sorted_by_key(|(seq, _)| *seq));
        for (seq, payload) in of_client {
            let at = |event: &&Event| event.seq == *seq;
            let event = scene.recorder.recording.events().find(at).unwrap();
            match &event.kind {
                Some(Kind::Posted(posted)) => assert_eq!(posted.payload, payload.as_bytes()),
                other => panic!("{seq}: {other:?}"),
            }
        }
    }
    // The history checker reads all of it.
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_are_where_their_answers_say_on_epoll() {
    posts_are_where_their_answers_say("", "epoll").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_are_where_their_answers_say_on_io_uring() {
    posts_are_where_their_answers_say("proactor", "io_uring").await;
}

/// A loop that only posts come to: its thread sleeps throughout, and its journal keeps its bounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_to_a_sleeping_loop_keep_within_its_journal() {
    let config = "[policy.small]\nextends = \"default\"\njournal_events = 1000\njournal_bytes = \"256KiB\"\n";
    let scene = Scene::new(Daemon::start(config).await, "small", "").await;
    let consumer = CreateConsumerRequest {
        r#loop: Some(scene.target.clone()),
        name: "slow".into(),
        ..CreateConsumerRequest::default()
    };
    scene
        .daemon
        .events()
        .create_consumer(consumer)
        .await
        .unwrap();
    let mut last = 0;
    let full = within("a full journal", async {
        loop {
            let request = PostRequest {
                r#loop: Some(scene.target.clone()),
                posts: vec![post("topic", &[0; 100])],
                ..PostRequest::default()
            };
            match scene.daemon.events().post(request).await {
                Ok(answer) => last = answer.into_inner().cursor.unwrap().seq,
                full => return full,
            }
        }
    })
    .await;
    refused(full, tonic::Code::ResourceExhausted, "JOURNAL_FULL");
    assert!((100..=1000).contains(&last), "{last}");
    // The acknowledgement makes room, which the loop then uses.
    let ack = AckRequest {
        r#loop: Some(scene.target.clone()),
        consumer: "slow".into(),
        cursor: Some(Cursor {
            epoch: String::new(),
            seq: last,
        }),
        ..AckRequest::default()
    };
    scene.daemon.events().ack(ack).await.unwrap();
    assert!(scene.post(vec![post("topic", b"more")]).await > last);
    assert!(scene.daemon.log().contains(r#"action="Post""#));
    scene.finish().await;
}
