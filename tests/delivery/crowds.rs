//! Loops with very many watches: all of them fit, and nobody waits for them.

use evloopd::history::check;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;

use crate::common::{Daemon, Scene, millis, timer};

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
