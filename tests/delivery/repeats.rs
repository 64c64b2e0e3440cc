//! A mutation that is repeated with the same request_id has one effect and one answer.

use evloopd::proto::*;
use tonic::Code;

use crate::common::{Daemon, Recorder, Scene, by_id, exec, never, post, refused, shell};

/// Opens another connection to the same daemon: repeats do not depend on the connection.
async fn again(
    scene: &Scene,
) -> event_service_client::EventServiceClient<tonic::transport::Channel> {
    event_service_client::EventServiceClient::new(scene.daemon.another_channel().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_repeat_over_another_connection_gets_the_first_answer() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let request = PostRequest {
        r#loop: Some(scene.target.clone()),
        posts: vec![post("once", b"x")],
        request_id: "p1".into(),
    };
    let first = scene
        .daemon
        .events()
        .post(request.clone())
        .await
        .unwrap()
        .into_inner();
    let repeat = again(&scene)
        .await
        .post(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, repeat);
    let mut other = request;
    other.posts.push(post("twice", b"y"));
    let refusal = again(&scene).await.post(other).await.map(drop);
    assert_eq!(
        refused(refusal, Code::InvalidArgument, "INVALID_FIELD").fields,
        ["request_id"]
    );
    scene.settle().await;
    let posted = |e: &&Event| matches!(&e.kind, Some(event::Kind::Posted(p)) if p.topic == "once");
    assert_eq!(scene.recorder.recording.events().filter(posted).count(), 1);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_hundred_repeats_at_once_add_one_watch_and_start_one_child() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let mut request = scene.request(watch_spec::Spec::Process(exec(&["/bin/true"])));
    request.request_id = "add".into();
    let calls = (0..100).map(|_| {
        let mut watches = scene.daemon.watches();
        let request = request.clone();
        tokio::spawn(async move { watches.add_watch(request).await.unwrap().into_inner() })
    });
    let mut ids = std::collections::BTreeSet::new();
    for call in calls.collect::<Vec<_>>() {
        ids.insert(call.await.unwrap().watch.unwrap().watch_id);
    }
    assert_eq!(ids.len(), 1);
    // Run too, without a name: a second call joins the same process.
    let run = RunRequest {
        r#loop: Some(scene.target.clone()),
        spec: Some(shell("echo once; exit 6")),
        request_id: "run".into(),
        ..RunRequest::default()
    };
    let mut outputs = Vec::new();
    for _ in 0..3 {
        let mut life = Recorder::run(&scene.daemon, run.clone()).await.unwrap();
        assert_eq!(life.end().await.reason(), GoodbyeReason::Done);
        let id = life.run.as_ref().unwrap().watch_id;
        outputs.push((id, life.bytes(id, Stream::Stdout)));
    }
    outputs.dedup();
    assert_eq!(outputs.len(), 1);
    assert_eq!(outputs[0].1, b"once\n");
    scene.settle().await;
    let started = |e: &&Event| matches!(e.kind, Some(event::Kind::Started(_)));
    assert_eq!(scene.recorder.recording.events().filter(started).count(), 2);
    scene.finish().await;
}

/// Makes every mutating call twice: the second gets the first answer and has no effect on the loop.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_mutation_can_be_repeated() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&ours);
    let connection = scene
        .add(watch_spec::Spec::Connection(crate::common::adopted(slot)))
        .await;
    let child = scene.spawn(exec(&["/bin/sleep", "1000"])).await;
    let target = || Some(scene.target.clone());
    let id = |name: &str| name.to_owned();
    let watch = |watch_id| by_id(watch_id);
    macro_rules! twice {
        ($client:ident . $call:ident ( $request:expr )) => {{
            let request = $request;
            let first = scene.daemon.$client().$call(request.clone()).await.unwrap();
            let repeat = scene.daemon.$client().$call(request).await.unwrap();
            let (first, repeat) = (first.into_inner(), repeat.into_inner());
            assert_eq!(first, repeat, stringify!($call));
            first
        }};
    }
    twice!(policies.new_event_loop(NewEventLoopRequest {
        name: "made".into(),
        request_id: id("1"),
        ..NewEventLoopRequest::default()
    }));
    twice!(policies.set_event_loop(SetEventLoopRequest {
        loop_name: Some("made".into()),
        request_id: id("2"),
    }));
    twice!(policies.set_event_loop_policy(SetEventLoopPolicyRequest {
        policy_name: Some("default".into()),
        request_id: id("3"),
        ..SetEventLoopPolicyRequest::default()
    }));
    twice!(watches.batch_add_watches(BatchAddWatchesRequest {
        r#loop: target(),
        requests: vec![AddWatchRequest {
            spec: scene.request(never()).spec,
            ..AddWatchRequest::default()
        }],
        request_id: id("4"),
    }));
    twice!(watches.rearm(RearmRequest {
        r#loop: target(),
        items: vec![],
        request_id: id("5"),
    }));
    let write = WriteRequest {
        r#loop: target(),
        watch: watch(connection),
        data: (&b"abc"[..]).into(),
        request_id: id("6"),
        ..WriteRequest::default()
    };
    assert_eq!(twice!(transports.write(write)).taken, 3);
    twice!(transports.pause_reading(PauseReadingRequest {
        r#loop: target(),
        watch: watch(connection),
        request_id: id("7"),
    }));
    twice!(transports.resume_reading(ResumeReadingRequest {
        r#loop: target(),
        watch: watch(connection),
        request_id: id("8"),
    }));
    twice!(transports.write_eof(WriteEofRequest {
        r#loop: target(),
        watch: watch(connection),
        request_id: id("9"),
    }));
    twice!(transports.abort(AbortRequest {
        r#loop: target(),
        watch: watch(connection),
        request_id: id("10"),
    }));
    twice!(processes.send_signal(SendSignalRequest {
        r#loop: target(),
        watch: watch(child),
        signal: "SIGKILL".into(),
        request_id: id("11"),
        ..SendSignalRequest::default()
    }));
    twice!(watches.remove_watch(RemoveWatchRequest {
        r#loop: target(),
        watch: watch(child),
        request_id: id("12"),
    }));
    twice!(events.create_consumer(CreateConsumerRequest {
        r#loop: target(),
        name: "c".into(),
        request_id: id("13"),
        ..CreateConsumerRequest::default()
    }));
    twice!(events.ack(AckRequest {
        r#loop: target(),
        consumer: "c".into(),
        cursor: Some(Cursor::default()),
        request_id: id("14"),
    }));
    twice!(events.delete_consumer(DeleteConsumerRequest {
        r#loop: target(),
        name: "c".into(),
        request_id: id("15"),
    }));
    twice!(loops.stop_loop(StopLoopRequest {
        r#loop: target(),
        request_id: id("16"),
    }));
    twice!(loops.run_loop(RunLoopRequest {
        r#loop: target(),
        request_id: id("17"),
    }));
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut &theirs, &mut text).unwrap();
    assert_eq!(text, b"abc", "written once");
    let (fd, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let slot = scene.daemon.handover().await.give(&fd);
    let fd = scene.add(crate::common::reader(slot)).await;
    let taken = TakeFdRequest {
        r#loop: Some(scene.target.clone()),
        watch: watch(fd),
        request_id: id("18"),
    };
    let first = scene.daemon.watches().take_fd(taken.clone()).await.unwrap();
    let repeat = scene.daemon.watches().take_fd(taken).await.unwrap();
    assert_eq!(first.into_inner(), repeat.into_inner());
    scene.settle().await;
    let target = || Some(scene.target.clone());
    twice!(loops.stop_loop(StopLoopRequest {
        r#loop: target(),
        request_id: id("19"),
    }));
    twice!(loops.close_loop(CloseLoopRequest {
        r#loop: target(),
        request_id: id("20"),
        stop: false,
    }));
    let end = scene.recorder.end().await;
    assert_eq!(end.reason(), GoodbyeReason::LoopClosed);
    let changes = |e: &&Event| matches!(e.kind, Some(event::Kind::LoopStateChanged(_)));
    let changes = scene.recorder.recording.events().filter(changes).count();
    assert_eq!(
        changes, 6,
        "created, running, stopped, running, stopped, closed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_that_is_cancelled_leaves_its_answer_for_the_repeat() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let mut request = scene.request(watch_spec::Spec::Process(shell("echo once")));
    request.request_id = "cancelled".into();
    for _ in 0..20 {
        let mut watches = scene.daemon.watches();
        let request = request.clone();
        // The call is cancelled when it has just been sent, or a little later.
        let call = watches.add_watch(request);
        let _ = tokio::time::timeout(std::time::Duration::from_micros(300), call).await;
    }
    let answer = scene
        .daemon
        .watches()
        .add_watch(request)
        .await
        .unwrap()
        .into_inner();
    scene.closed(answer.watch.unwrap().watch_id).await;
    scene.settle().await;
    let started = |e: &&Event| matches!(e.kind, Some(event::Kind::Started(_)));
    assert_eq!(scene.recorder.recording.events().filter(started).count(), 1);
    scene.finish().await;
}
