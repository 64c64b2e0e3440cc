//! Loops without history: they hold only events that a reader has not read yet, and a reader that
//! keeps reading loses nothing.

use std::os::fd::AsFd;
use std::time::Duration;

use evloopd::history::check;
use evloopd::proto::*;
use tonic::{Code, Status};

use crate::common::{Daemon, Recorder, after, loop_named, post, reader, refused};

const CONFIG: &str = r#"
[policy.unkept]
extends = "default"
history = "none"
"#;

async fn make(daemon: &Daemon, request: NewEventLoopRequest) -> Loop {
    let made = daemon.policies().new_event_loop(request).await.unwrap();
    made.into_inner().r#loop.unwrap()
}

/// A client that polls, as Python's `selectors` does.
struct Poller<'a> {
    daemon: &'a Daemon,
    target: LoopRef,
    seen: u64,
}

impl<'a> Poller<'a> {
    fn of(daemon: &'a Daemon, made: &Loop) -> Self {
        Self {
            daemon,
            target: loop_named(&made.name),
            seen: made.journal.as_ref().unwrap().newest_seq,
        }
    }

    fn after(&self, seq: u64) -> PollRequest {
        PollRequest {
            r#loop: Some(self.target.clone()),
            after: Some(Cursor {
                epoch: String::new(),
                seq,
            }),
            max_events: 65_536,
            fence: true,
            ..PollRequest::default()
        }
    }

    async fn ask(&self, request: PollRequest) -> Result<Batch, Status> {
        let answer = self.daemon.events().poll(request).await?.into_inner();
        Ok(answer.batch.unwrap())
    }

    /// Returns what has happened since the last poll.
    async fn poll(&mut self, rearm: Vec<RearmItem>) -> Batch {
        let request = PollRequest {
            rearm,
            ..self.after(self.seen)
        };
        let batch = self.ask(request).await.unwrap();
        assert_eq!((batch.after, batch.gaps.as_slice()), (self.seen, &[][..]));
        self.seen = batch.through;
        batch
    }

    async fn post(&self, posts: usize) -> u64 {
        let request = PostRequest {
            r#loop: Some(self.target.clone()),
            posts: vec![post("", b"x"); posts],
            ..PostRequest::default()
        };
        let answer = self.daemon.events().post(request).await.unwrap();
        answer.into_inner().cursor.unwrap().seq
    }

    async fn add(&self, spec: watch_spec::Spec) -> u64 {
        let request = AddWatchRequest {
            r#loop: Some(self.target.clone()),
            spec: Some(WatchSpec { spec: Some(spec) }),
            ..AddWatchRequest::default()
        };
        let answer = self.daemon.watches().add_watch(request).await.unwrap();
        answer.into_inner().watch.unwrap().watch_id
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn polls_of_many_ready_descriptors_take_the_memory_of_one_poll() {
    const WATCHES: usize = 1000;
    const ROUNDS: usize = 50;
    let daemon = Daemon::start(CONFIG).await;
    let mut taken = Vec::new();
    let held = || async {
        let answer = daemon.admin().get_status(GetStatusRequest {}).await;
        answer.unwrap().into_inner().journal_bytes
    };
    for history in [History::Kept, History::None] {
        let before = held().await;
        let request = NewEventLoopRequest {
            name: format!("{history:?}").to_lowercase(),
            history: history.into(),
            ..NewEventLoopRequest::default()
        };
        let made = make(&daemon, request).await;
        assert_eq!(made.history(), history);
        let mut poller = Poller::of(&daemon, &made);
        poller.poll(Vec::new()).await;
        let (reading, writing) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writing, b"never read").unwrap();
        let mut ids = Vec::new();
        for _ in 0..WATCHES / 250 {
            let handover = daemon.handover().await;
            for slot in handover.give_all(&[reading.as_fd(); 250]) {
                ids.push(poller.add(reader(slot)).await);
            }
        }
        let item = |watch_id: &u64| RearmItem {
            watch_id: *watch_id,
            readable: true,
            ..RearmItem::default()
        };
        poller.poll(Vec::new()).await;
        let mut most = 0;
        for _ in 0..ROUNDS {
            let batch = poller.poll(ids.iter().map(item).collect()).await;
            assert_eq!(batch.events.len(), WATCHES);
            most = most.max(held().await - before);
        }
        taken.push(most);
    }
    assert!(taken[0] > (ROUNDS * WATCHES * 50) as u64, "{taken:?}");
    assert!(taken[1] < 400 << 10, "{taken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_that_keeps_reading_loses_nothing_and_a_late_one_gets_a_gap() {
    let daemon = Daemon::start(CONFIG).await;
    let request = NewEventLoopRequest {
        name: "unkept".into(),
        policy: "unkept".into(),
        ..NewEventLoopRequest::default()
    };
    let made = make(&daemon, request).await;
    assert_eq!(made.history(), History::None);
    let mut poller = Poller::of(&daemon, &made);
    poller.poll(Vec::new()).await;
    let mut stream = Recorder::of(&daemon, &poller.target).await;

    // Both readers see the whole life of a watch.
    let id = poller.add(after(Duration::ZERO)).await;
    stream.first(id, "closed").await;
    let told = poller.poll(Vec::new()).await;
    let kinds = |batch: &Batch| batch.events.iter().filter(|e| e.watch_id == id).count();
    assert_eq!(kinds(&told), 3, "added, fired, closed: {told:?}");

    // A poll that repeats an old cursor gets the same events, although the stream is further.
    let first = poller.seen;
    let last = poller.post(10).await;
    stream.reach(last).await;
    let again = poller.ask(poller.after(first)).await.unwrap();
    assert_eq!((again.events.len(), again.through), (10, last));
    stream.reach(poller.post(1).await).await;
    let again = poller.ask(poller.after(first)).await.unwrap();
    assert_eq!(again.events.len(), 11);
    poller.poll(Vec::new()).await;
    poller.poll(Vec::new()).await;
    stream.reach(poller.post(1).await).await;
    let gone = poller.seen;

    let late = poller.ask(poller.after(first)).await;
    refused(late, Code::OutOfRange, "CURSOR_OUT_OF_RANGE");
    let skip = PollRequest {
        on_gap: OnGap::Skip.into(),
        ..poller.after(first)
    };
    let late = poller.ask(skip).await.unwrap();
    let gaps: Vec<_> = late
        .gaps
        .iter()
        .map(|g| (g.from_seq, g.through_seq))
        .collect();
    assert_eq!((gaps, late.events.len()), (vec![(first + 1, gone)], 1));
    let from = SubscribeRequest {
        r#loop: Some(poller.target.clone()),
        start: Some(subscribe_request::Start::After(Cursor {
            epoch: String::new(),
            seq: first,
        })),
        on_gap: OnGap::Snapshot.into(),
        ..SubscribeRequest::default()
    };
    let mut late = Recorder::subscribe(&daemon, from).await.unwrap();
    let last = poller.post(1).await;
    late.reach(last).await;
    assert_eq!(late.snapshot.len(), 1);
    assert_eq!(check(&late.recording).unwrap().lost, 0);
    stream.reach(last).await;
    assert_eq!(check(&stream.recording).unwrap().lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_loop_without_history_has_no_consumers_and_its_policy_shows_that() {
    let daemon = Daemon::start(CONFIG).await;
    let request = NewEventLoopRequest {
        name: "unkept".into(),
        history: History::None.into(),
        if_exists: IfExists::Return.into(),
        ..NewEventLoopRequest::default()
    };
    make(&daemon, request.clone()).await;
    make(&daemon, request.clone()).await;
    let kept = NewEventLoopRequest {
        history: History::Kept.into(),
        ..request.clone()
    };
    let kept = daemon.policies().new_event_loop(kept).await;
    refused(kept, Code::AlreadyExists, "NAME_TAKEN");
    let unknown = NewEventLoopRequest {
        history: 9,
        ..request
    };
    let unknown = daemon.policies().new_event_loop(unknown).await;
    let error = refused(unknown, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(error.fields, ["history"]);

    let target = Some(loop_named("unkept"));
    let create = CreateConsumerRequest {
        r#loop: target.clone(),
        name: "me".into(),
        ..CreateConsumerRequest::default()
    };
    let ack = AckRequest {
        r#loop: target.clone(),
        consumer: "me".into(),
        ..AckRequest::default()
    };
    let poll = PollRequest {
        r#loop: target.clone(),
        consumer: "me".into(),
        ..PollRequest::default()
    };
    let subscribe = SubscribeRequest {
        r#loop: target,
        consumer: "me".into(),
        ..SubscribeRequest::default()
    };
    let mut events = daemon.events();
    let answers = [
        (events.create_consumer(create).await.map(drop), "loop"),
        (events.ack(ack).await.map(drop), "consumer"),
        (events.poll(poll).await.map(drop), "consumer"),
        (
            events.subscribe(subscribe.clone()).await.map(drop),
            "consumer",
        ),
        (
            Recorder::attach(&daemon, subscribe).await.map(drop),
            "consumer",
        ),
    ];
    for (answer, field) in answers {
        let error = refused(answer, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(error.fields, [field]);
    }

    let request = ListEventLoopPoliciesRequest {};
    let list = daemon.policies().list_event_loop_policies(request).await;
    let policies = list.unwrap().into_inner().policies;
    let told = policies
        .iter()
        .map(|p| (p.name.as_str(), p.history.as_str()));
    let told: Vec<_> = told
        .filter(|(name, _)| ["default", "unkept"].contains(name))
        .collect();
    assert_eq!(told, [("default", "kept"), ("unkept", "none")]);
}

/// The child is waited for as on other loops, and its output is read once.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_run_gets_all_of_its_output() {
    let daemon = Daemon::start(CONFIG).await;
    let request = NewEventLoopRequest {
        name: "unkept".into(),
        history: History::None.into(),
        ..NewEventLoopRequest::default()
    };
    make(&daemon, request).await;
    let spec = crate::common::shell("exec seq 300000");
    let request = RunRequest {
        r#loop: Some(loop_named("unkept")),
        name: "numbers".into(),
        spec: Some(spec),
        ..RunRequest::default()
    };
    let mut run = Recorder::run(&daemon, request).await.unwrap();
    run.end().await;
    let id = run.run.as_ref().unwrap().watch_id;
    assert_eq!(
        run.bytes(id, Stream::Stdout),
        crate::pressure::numbers(300_000)
    );
    assert_eq!(check(&run.recording).unwrap().lost, 0);
}
