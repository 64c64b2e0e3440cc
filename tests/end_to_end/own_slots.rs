//! Slots that the client chooses: a descriptor is handed over and registered in one round trip.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use evloopd::proto::*;
use tonic::Code;

use crate::common::another::{Act, Another};
use crate::common::{Daemon, Scene, never, reader, refused};

/// Far longer than the daemon waits for a slot to be filled, and far shorter than a hang.
const SOON: Duration = Duration::from_secs(10);
/// A status of the handover socket: a slot chosen by the client is in use, or named twice.
const SLOT_TAKEN: u8 = 8;

fn slot(number: u8) -> Bytes {
    Bytes::from(vec![number; 16])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watch_may_be_asked_for_before_or_after_its_descriptor_is_sent() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let handover = scene.daemon.handover().await;
    let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();

    handover.give_as(&[slot(1)], &[pairs[0].1.as_fd()]);
    let first = scene.add(reader(slot(1))).await;
    let batch = BatchAddWatchesRequest {
        r#loop: Some(scene.target.clone()),
        requests: [2, 3]
            .map(|number| AddWatchRequest {
                r#loop: None,
                ..scene.request(reader(slot(number)))
            })
            .into(),
        ..BatchAddWatchesRequest::default()
    };
    let mut watches = scene.daemon.watches();
    let asked = tokio::spawn(async move { watches.batch_add_watches(batch).await });
    scene.settle().await;
    handover.give_as(
        &[slot(2), slot(3)],
        &[pairs[1].1.as_fd(), pairs[2].1.as_fd()],
    );
    let added = asked.await.unwrap().unwrap().into_inner().results;
    let ids = added.iter().map(|result| match &result.result {
        Some(batch_add_watches_result::Result::Added(added)) => {
            added.watch.as_ref().unwrap().watch_id
        }
        other => panic!("{other:?}"),
    });
    let ids: Vec<u64> = [first].into_iter().chain(ids).collect();
    assert_eq!((handover.status(), handover.status()), (0, 0));

    for ((ours, _), id) in pairs.iter().zip(ids) {
        let mut ours = ours;
        ours.write_all(b"x").unwrap();
        scene.recorder.nth(id, "ready", 1).await;
    }
    // A slot whose descriptor a watch has taken can be filled again, and its descriptor taken back.
    handover.give_as(&[slot(1)], &[pairs[0].1.as_fd()]);
    assert_eq!(handover.status(), 0);
    handover.take(&slot(1));
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_slot_given_twice_is_refused_with_all_of_its_request() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let handover = scene.daemon.handover().await;
    let (ours, theirs) = UnixStream::pair().unwrap();
    handover.give_as(&[slot(1)], &[theirs.as_fd()]);
    assert_eq!(handover.status(), 0);
    let before = scene.daemon.open_fds().await;
    for own in [[slot(2), slot(1)], [slot(2), slot(2)]] {
        handover.give_as(&own, &[theirs.as_fd(), theirs.as_fd()]);
        assert_eq!(handover.status(), SLOT_TAKEN);
    }
    scene
        .daemon
        .until("the refused descriptors to be closed", |status| {
            status.open_fds == Some(before)
        })
        .await;
    let id = scene.add(reader(slot(1))).await;
    drop(ours);
    scene.recorder.nth(id, "ready", 1).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn slots_that_are_never_filled_are_refused_and_delay_no_other_call() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    // The first timer of a loop opens the descriptor by which the loop waits for it.
    scene.add(never()).await;
    let before = scene.daemon.open_fds().await;
    let hostile = scene.daemon.another_channel().await;
    let connected = scene.daemon.open_fds().await;
    let started = Instant::now();
    let waiting: Vec<_> = (0..500_u16)
        .map(|number| {
            let own = [&number.to_be_bytes()[..], &[0; 14]].concat();
            let request = scene.request(reader(own.into()));
            let mut watches = watch_service_client::WatchServiceClient::new(hostile.clone());
            tokio::spawn(async move { watches.add_watch(request).await })
        })
        .collect();
    // A call that is cancelled waits no longer, and other clients are not affected.
    waiting[0].abort();
    for _ in 0..100 {
        scene.add(never()).await;
    }
    for refusal in waiting.into_iter().skip(1) {
        let refusal = refused(refusal.await.unwrap(), Code::NotFound, "SLOT_NOT_FOUND");
        assert_eq!(refusal.word("field"), "spec.fd.slot");
    }
    assert!(started.elapsed() < SOON);
    let requests = (0..100).map(|number| AddWatchRequest {
        r#loop: None,
        ..scene.request(reader(slot(number)))
    });
    let batch = BatchAddWatchesRequest {
        r#loop: Some(scene.target.clone()),
        requests: requests.collect(),
        ..BatchAddWatchesRequest::default()
    };
    let started = Instant::now();
    let answer = scene.daemon.watches().batch_add_watches(batch).await;
    assert_eq!(answer.unwrap().into_inner().results.len(), 100);
    assert!(
        started.elapsed() < SOON,
        "the slots of a batch are waited for together"
    );
    assert_eq!(scene.daemon.open_fds().await, connected);
    drop(hostile);
    scene
        .daemon
        .until(
            "the descriptors of the hostile client to be closed",
            |status| status.open_fds == Some(before),
        )
        .await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_process_has_its_own_slot_numbers() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let handover = scene.daemon.handover().await;
    let (ours, theirs) = UnixStream::pair().unwrap();
    handover.give_as(&[slot(7)], &[theirs.as_fd()]);
    assert_eq!(handover.status(), 0);

    let mut other = Another::start(&scene.daemon, Act::OwnSlots);
    let watched_by_other: u64 = other.told().parse().unwrap();
    let request = scene.request(reader(slot(8)));
    let refusal = scene.try_add(request).await;
    refused(refusal, Code::NotFound, "SLOT_NOT_FOUND");
    let id = scene.add(reader(slot(7))).await;
    drop(other);
    scene.closed(watched_by_other).await;
    drop(ours);
    scene.recorder.nth(id, "ready", 1).await;
    scene.finish().await;
}
