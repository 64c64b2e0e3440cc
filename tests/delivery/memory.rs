//! The one memory budget of all journals.

use evloopd::proto::*;

use crate::common::{Daemon, Scene, post, shell};
use crate::pressure::{consumer, drain, numbers, paused};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn all_journals_stay_within_the_memory_limit_and_a_loop_that_waits_for_memory_goes_on() {
    let config = "[limits]\nmemory = \"1MiB\"\n";
    let daemon = Daemon::start(config).await;
    let mut scene = Scene::new(daemon, "", "").await;
    let request = NewEventLoopRequest {
        name: "other".into(),
        ..NewEventLoopRequest::default()
    };
    scene
        .daemon
        .policies()
        .new_event_loop(request)
        .await
        .unwrap();
    let other = crate::common::loop_named("other");
    let request = CreateConsumerRequest {
        r#loop: Some(other.clone()),
        name: "hog".into(),
        ..CreateConsumerRequest::default()
    };
    scene
        .daemon
        .events()
        .create_consumer(request)
        .await
        .unwrap();
    // A consumer of the other loop pins nearly all of the memory.
    loop {
        let request = PostRequest {
            r#loop: Some(other.clone()),
            posts: vec![post("", &[0; 8000]); 4],
            ..PostRequest::default()
        };
        if scene.daemon.events().post(request).await.is_err() {
            break;
        }
    }
    let mut held = consumer(&scene, "waits", 64 << 20).await;
    let id = scene.spawn(shell("exec seq 200000")).await;
    let pause = paused(&scene, id).await;
    assert_eq!(pause.reason(), SourcePauseReason::Memory);
    let request = DeleteConsumerRequest {
        r#loop: Some(other),
        name: "hog".into(),
        ..DeleteConsumerRequest::default()
    };
    scene
        .daemon
        .events()
        .delete_consumer(request)
        .await
        .unwrap();
    drain(&scene, "waits", &mut held, id).await;
    assert_eq!(held.bytes(id, Stream::Stdout), numbers(200_000));
}

/// The loops are flooded with small events: their cost beyond their bytes counts as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_flooded_loops_together_stay_within_the_memory_limit() {
    const LIMIT: u64 = 8 << 20;
    const LOOPS: usize = 64;
    let daemon = Daemon::start("[limits]\nmemory = \"8MiB\"\n").await;
    let scene = Scene::new(daemon, "", "").await;
    let status = || async {
        let answer = scene.daemon.admin().get_status(GetStatusRequest {}).await;
        answer.unwrap().into_inner()
    };
    for index in 0..LOOPS {
        let request = NewEventLoopRequest {
            name: format!("flooded-{index}"),
            ..NewEventLoopRequest::default()
        };
        let made = scene.daemon.policies().new_event_loop(request).await;
        made.unwrap();
    }
    let flood = |index: usize| {
        let request = PostRequest {
            r#loop: Some(crate::common::loop_named(&format!("flooded-{index}"))),
            posts: vec![post("", &[0; 8]); 100],
            ..PostRequest::default()
        };
        async { scene.daemon.events().post(request).await }
    };
    let request = CreateConsumerRequest {
        r#loop: Some(crate::common::loop_named("flooded-0")),
        name: "hog".into(),
        ..CreateConsumerRequest::default()
    };
    scene
        .daemon
        .events()
        .create_consumer(request)
        .await
        .unwrap();
    let before = status().await;
    while status().await.journal_bytes < LIMIT / 4 * 3 {
        flood(0).await.unwrap();
    }
    for index in 1..LOOPS {
        for _ in 0..15 {
            flood(index).await.unwrap();
        }
        let now = status().await;
        assert_eq!(now.memory_limit_bytes, LIMIT);
        assert!(now.memory_used_bytes <= LIMIT, "{now:?}");
        assert!(now.journal_bytes <= now.memory_used_bytes, "{now:?}");
    }
    let after = status().await;
    let grown = after.rss_bytes().saturating_sub(before.rss_bytes());

    assert!(grown < 4 * LIMIT, "{after:?}");
}

/// The newest events of each watch are kept apart from those of others, and that cost is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn kept_events_of_many_watches_count_with_their_full_cost() {
    const LIMIT: u64 = 32 << 20;
    const TIMERS: u64 = 10_000;
    let daemon = Daemon::start("[limits]\nmemory = \"32MiB\"\n").await;
    let request = NewEventLoopRequest {
        name: "busy".into(),
        ..NewEventLoopRequest::default()
    };
    daemon.policies().new_event_loop(request).await.unwrap();
    let busy = Some(crate::common::loop_named("busy"));
    let before = daemon.status().await;
    let every = timer_spec::Schedule::Every(crate::common::millis(1));
    let spec = watch_spec::Spec::Timer(TimerSpec {
        schedule: Some(every),
        ..TimerSpec::default()
    });
    let one = AddWatchRequest {
        spec: Some(WatchSpec { spec: Some(spec) }),
        ..AddWatchRequest::default()
    };
    for _ in 0..TIMERS / 1000 {
        let request = BatchAddWatchesRequest {
            r#loop: busy.clone(),
            requests: vec![one.clone(); 1000],
            ..BatchAddWatchesRequest::default()
        };
        daemon.watches().batch_add_watches(request).await.unwrap();
    }
    let newest = async || {
        let request = GetLoopRequest {
            r#loop: busy.clone(),
        };
        let answer = daemon.loops().get_loop(request).await.unwrap().into_inner();
        answer.r#loop.unwrap().journal.unwrap().newest_seq
    };
    crate::common::within(
        "the journal to be full of events that the watches keep",
        async { while newest().await < 400_000 {} },
    )
    .await;
    let after = daemon.status().await;
    let grown = after.rss_bytes().saturating_sub(before.rss_bytes());
    // The watches themselves are not counted as memory of the journal.
    let watches = TIMERS * 1024;
    assert!(grown < LIMIT * 3 / 2 + watches, "{} MiB", grown >> 20);
}
