//! Loops with very many watches: all of them fit, and nobody waits for them.

use std::future::Future;
use std::time::{Duration, Instant};

use evloopd::history::check;
use evloopd::proto::loop_service_client::LoopServiceClient;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;

use crate::common::{Daemon, Scene, by_id, millis, never, timer};

/// Room for what tens of thousands of watches set aside.
const ROOMY: &str = "[policy.roomy]\nextends = \"default\"\njournal_bytes = \"512MiB\"\n";

/// Most registrations of one call.
const BATCH: usize = 1024;

/// Adds so many of the same; all have to be accepted.
async fn add_many(scene: &Scene, spec: &Spec, count: usize) {
    let mut left = count;
    while left > 0 {
        let step = left.min(BATCH);
        let one = AddWatchRequest {
            spec: Some(WatchSpec {
                spec: Some(spec.clone()),
            }),
            ..AddWatchRequest::default()
        };
        let request = BatchAddWatchesRequest {
            r#loop: Some(scene.target.clone()),
            requests: vec![one; step],
            ..BatchAddWatchesRequest::default()
        };
        let answer = scene.daemon.watches().batch_add_watches(request).await;
        for result in answer.unwrap().into_inner().results {
            match result.result {
                Some(batch_add_watches_result::Result::Added(_)) => {}
                refused => panic!("{left} of {count} are left: {refused:?}"),
            }
        }
        left -= step;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_default_loop_takes_all_the_timers_it_allows_and_each_fires() {
    const TIMERS: usize = 100_000;
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    // None fires before all are there.
    scene.stop().await;
    let due = timer(timer_spec::Schedule::After(millis(0)));
    add_many(&scene, &due, TIMERS).await;
    assert_eq!(scene.open_watches().await, TIMERS as u64);
    scene.run().await;
    let mut closed = 0;
    let mut seen = 0;
    while closed < TIMERS {
        assert!(scene.recorder.step().await, "the stream ended");
        let batches = &scene.recorder.recording.batches;
        let events = batches[seen..].iter().flat_map(|batch| &batch.events);
        closed += events
            .filter(|e| matches!(e.kind, Some(event::Kind::Closed(_))))
            .count();
        seen = batches.len();
    }
    let told = scene.recorder.recording.events();
    let fired = told.filter(|e| matches!(e.kind, Some(event::Kind::TimerFired(_))));
    assert_eq!(fired.count(), TIMERS);
    assert_eq!(check(&scene.recorder.recording).unwrap().lost, 0);
}

/// Calls as a neighbour does until `until` is over; the longest that an answer took, and how long
/// all of it did.
async fn neighbour(
    scene: &Scene,
    until: impl Future<Output = ()>,
    call: impl AsyncFn(&Scene),
) -> (Duration, Duration) {
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    let calls = async {
        loop {
            let asked = Instant::now();
            call(scene).await;
            longest = longest.max(asked.elapsed());
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = until => {}
        () = calls => unreachable!("it goes on"),
    }
    (longest, begun.elapsed())
}

/// What a loop has to do with all of its watches, it does in steps: a call on it waits for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_closes_fifty_thousand_watches_answers_in_between() {
    let scene = Scene::new(Daemon::start(ROOMY).await, "roomy", "").await;
    add_many(&scene, &never(), 50_000).await;
    scene.stop().await;
    let mut loops = LoopServiceClient::new(scene.daemon.another_channel().await);
    let close = async {
        let request = CloseLoopRequest {
            r#loop: Some(scene.target.clone()),
            ..CloseLoopRequest::default()
        };
        loops.close_loop(request).await.unwrap();
    };
    let get = async |scene: &Scene| {
        let request = GetWatchRequest {
            r#loop: Some(scene.target.clone()),
            watch: by_id(50_000),
        };
        // Once it is removed, or its loop closed, the answer is that.
        let _ = scene.daemon.watches().get_watch(request).await;
    };
    let (longest, all) = neighbour(&scene, close, get).await;
    eprintln!("the longest of {all:?} took {longest:?}");
    assert!(longest < all / 4, "{longest:?} of {all:?}");
}

/// A page costs what is on it, however many watches there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_fifty_thousand_watches_hold_nobody_up() {
    let scene = Scene::new(Daemon::start(ROOMY).await, "roomy", "").await;
    add_many(&scene, &never(), 50_000).await;
    let page = |token: String, size| ListWatchesRequest {
        r#loop: Some(scene.target.clone()),
        page_size: size,
        page_token: token,
        ..ListWatchesRequest::default()
    };
    let mut client = scene.daemon.watches();
    let few = Scene::new(Daemon::start("").await, "", "").await;
    add_many(&few, &never(), 1).await;
    let mut times = [Duration::ZERO; 2];
    for _ in 0..200 {
        for (client, time) in [&mut client, &mut few.daemon.watches()]
            .into_iter()
            .zip(&mut times)
        {
            let begun = Instant::now();
            let answer = client.list_watches(page(String::new(), 1)).await.unwrap();
            assert_eq!(answer.into_inner().watches.len(), 1);
            *time += begun.elapsed();
        }
    }
    let [many, few] = times;
    eprintln!("200 pages of one watch took {many:?} of many, {few:?} of one");
    assert!(many < few * 2, "{many:?}, {few:?}");
    let (mut ids, mut token) = (Vec::new(), String::new());
    loop {
        let answer = client.list_watches(page(token, 1000));
        let answer = answer.await.unwrap().into_inner();
        ids.extend(answer.watches.iter().map(|watch| watch.watch_id));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(ids, (1..=50_000).collect::<Vec<u64>>());
}
