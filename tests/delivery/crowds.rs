//! Loops with tens of thousands of watches: all of them fit, and other calls are not delayed.

use std::future::Future;
use std::time::{Duration, Instant};

use evloopd::history::check;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::loop_service_client::LoopServiceClient;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::transport::Endpoint;

use crate::common::recorder::is;
use crate::common::{Daemon, Recorder, Scene, by_id, connect_with, millis, never, timer, within};

/// A journal with room for the events that tens of thousands of watches reserve.
const ROOMY: &str = "[policy.roomy]\nextends = \"default\"\njournal_bytes = \"512MiB\"\n";

/// The most registrations in one call.
const BATCH: usize = 1024;

/// Adds `count` watches with the same specification. All of them must be accepted.
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
                refused => panic!("{left} of {count} are not added yet: {refused:?}"),
            }
        }
        left -= step;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_default_loop_takes_all_the_timers_it_allows_and_each_fires() {
    const TIMERS: usize = 100_000;
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    // The loop is stopped, so that no timer fires before all are added.
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

/// Repeats a call, as another client would, until `until` is done. Returns the longest time that an
/// answer took, and the time that everything took.
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
        () = calls => unreachable!("the calls go on until `until` is done"),
    }
    (longest, begun.elapsed())
}

/// A loop handles all of its watches in steps, so that a call on the loop waits for one step only.
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
        // The answer is an error once the watch is removed or the loop is closed.
        let _ = scene.daemon.watches().get_watch(request).await;
    };
    let (longest, all) = neighbour(&scene, close, get).await;
    eprintln!("the longest of {all:?} took {longest:?}");
    assert!(longest < all / 4, "{longest:?} of {all:?}");
}

/// A page costs as much as the watches on it, however many watches the loop has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listing_fifty_thousand_watches_in_pages_does_not_delay_other_calls() {
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
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..201 {
        for (client, time) in [&mut client, &mut few.daemon.watches()]
            .into_iter()
            .zip(&mut times)
        {
            let begun = Instant::now();
            let answer = client.list_watches(page(String::new(), 1)).await.unwrap();
            assert_eq!(answer.into_inner().watches.len(), 1);
            time.push(begun.elapsed());
        }
    }
    // Medians: other work of the host must not count.
    let [many, few] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    eprintln!("a page of one watch took {many:?} of many, {few:?} of one");
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

fn snapshot_of(scene: &Scene) -> SubscribeRequest {
    SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Snapshot.into())),
        ..SubscribeRequest::default()
    }
}

/// Returns the bytes of the daemon that are resident in memory.
fn resident(scene: &Scene) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_snapshot_that_is_read_late_has_the_old_state_and_then_each_event_once() {
    const WATCHES: u32 = 10_000;
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    add_many(&scene, &never(), WATCHES.try_into().unwrap()).await;
    scene.remove(7).await;
    scene.stop().await;
    let mut late = Recorder::subscribe(&scene.daemon, snapshot_of(&scene))
        .await
        .unwrap();
    let at = late.recording.start;
    // All watches and the loop itself go away before the rest of the snapshot is read.
    let request = CloseLoopRequest {
        r#loop: Some(scene.target.clone()),
        ..CloseLoopRequest::default()
    };
    scene.daemon.loops().close_loop(request).await.unwrap();
    late.end().await;
    let parts = &late.snapshot;
    assert!(parts.len() > 4 && parts.last().unwrap().last);
    let watches: Vec<&Watch> = parts.iter().flat_map(|part| &part.watches).collect();
    let ids: Vec<u64> = watches.iter().map(|watch| watch.watch_id).collect();
    let there: Vec<u64> = (1..=u64::from(WATCHES)).filter(|id| *id != 7).collect();
    assert_eq!(ids, there);
    for watch in watches {
        assert_eq!(watch.state(), WatchState::Open, "{watch:?}");
        assert!(watch.closed.is_none(), "{watch:?}");
    }
    let after = |kind: &str| {
        let events = late.recording.events().filter(|e| is(e, kind));
        let mut ids: Vec<u64> = events.map(|e| e.watch_id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(after("closed"), there);
    assert_eq!(after("removed"), there);
    assert!(late.recording.events().all(|event| event.seq > at));
    scene
        .daemon
        .until("nothing kept", |s| s.snapshot_bytes == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn unread_snapshots_take_little_memory_and_none_once_they_end() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    add_many(&scene, &never(), 10_000).await;
    let before = resident(&scene);
    let mut unread = Vec::new();
    for _ in 0..100 {
        // One connection each: unread bytes of one stream would hold up the others of its
        // connection.
        let little = Endpoint::from_static("http://localhost").initial_stream_window_size(65_535);
        let channel = connect_with(&scene.daemon.socket, little).await;
        let mut client = EventServiceClient::new(channel);
        let mut stream = client
            .subscribe(snapshot_of(&scene))
            .await
            .unwrap()
            .into_inner();
        assert!(
            within("a header", stream.message())
                .await
                .unwrap()
                .is_some()
        );
        unread.push((client, stream));
    }
    let grown = resident(&scene).saturating_sub(before);
    let held = scene.daemon.status().await.snapshot_bytes;
    eprintln!("100 unread snapshots of 10,000 watches: {grown} bytes, of those {held} counted");
    assert!(grown < 64 << 20, "{grown}");
    assert!(held < 16 << 20, "{held}");
    // A change is kept once for all snapshots.
    for id in 1..=100 {
        scene.remove(10_001 - id).await;
    }
    let kept = scene.daemon.status().await.snapshot_bytes;
    assert!(kept > held && kept < held + (1 << 20), "{kept}");
    drop(unread);
    scene
        .daemon
        .until("nothing kept", |s| s.snapshot_bytes == 0)
        .await;
}
