//! What looks the same before and after a death.

use std::collections::BTreeMap;

use evloopd::proto::event::Kind;
use evloopd::proto::*;
use prost_types::FieldMask;

use crate::common::{Daemon, Scene, by_id, shell, within};
use crate::{BACKENDS, murder, seconds, start, the_loop, timer};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_instance_is_the_same_and_the_life_another() {
    let daemon = start().await;
    let before = daemon.info().await;
    for life in 2..4 {
        murder(&daemon).await;
        let now = daemon.info().await;
        assert_eq!(
            (now.instance.as_str(), now.life),
            (before.instance.as_str(), life)
        );
    }
    let other = start().await.info().await;
    assert_ne!(other.instance, before.instance);
    assert_eq!((before.life, other.life), (1, 1));
    assert_eq!(Daemon::start("").await.info().await.life, 0);
}

fn labels(of: &str) -> BTreeMap<String, String> {
    [("of".to_owned(), of.to_owned())].into()
}

/// Returns the events that match these labels, up to `newest`.
async fn matching(scene: &Scene, of: &str, newest: u64) -> Vec<(u64, &'static str)> {
    let request = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Oldest.into())),
        filter: Some(Filter {
            labels: labels(of),
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    };
    // Its events do not begin with Added where a watch got the labels later.
    let stream = scene.daemon.events().subscribe(request).await.unwrap();
    let (mut stream, mut through, mut seen) = (stream.into_inner(), 0, Vec::new());
    while through < newest {
        let message = within("a batch", stream.message()).await.unwrap().unwrap();
        let Some(subscribe_response::Message::Batch(batch)) = message.message else {
            continue;
        };
        through = batch.through;
        let events = batch.events.into_iter();
        seen.extend(events.filter(|event| event.seq <= newest).map(|event| {
            let name = match event.kind {
                Some(Kind::Added(_)) => "added",
                Some(Kind::Updated(_)) => "updated",
                Some(Kind::Closed(_)) => "closed",
                Some(Kind::Removed(_)) => "removed",
                _ => "other",
            };
            (event.seq, name)
        }));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn events_keep_their_labels_also_of_watches_that_are_removed_or_updated() {
    for (policy, backend) in BACKENDS {
        let mut scene = Scene::new(start().await, policy, backend).await;
        let hour = || timer(timer_spec::Schedule::After(seconds(3600)));
        let mut ids = Vec::new();
        for of in ["gone", "old"] {
            let request = AddWatchRequest {
                labels: labels(of),
                ..scene.request(hour())
            };
            let added = scene.try_add(request).await.unwrap();
            ids.push(added.watch.unwrap().watch_id);
        }
        scene.remove(ids[0]).await;
        let update = |to: &str| UpdateWatchRequest {
            r#loop: Some(scene.target.clone()),
            watch: by_id(ids[1]),
            labels: labels(to),
            update_mask: Some(FieldMask {
                paths: vec!["labels".to_owned()],
            }),
            ..UpdateWatchRequest::default()
        };
        for to in ["new", "newest"] {
            let updated = scene.daemon.watches().update_watch(update(to)).await;
            updated.unwrap();
        }
        let newest = the_loop(&scene).await.journal.unwrap().newest_seq;
        let all = ["gone", "old", "new", "newest"];
        let mut before = Vec::new();
        for of in all {
            before.push(matching(&scene, of, newest).await);
        }
        let kinds: Vec<Vec<_>> = before
            .iter()
            .map(|events| events.iter().map(|(_, kind)| *kind).collect())
            .collect();
        assert_eq!(kinds[0], ["added", "closed", "removed"]);
        assert_eq!(
            kinds[1..],
            [vec!["added"], vec!["updated"], vec!["updated"]]
        );
        for _ in 0..2 {
            murder(&scene.daemon).await;
            for (of, before) in all.into_iter().zip(&before) {
                assert_eq!(matching(&scene, of, newest).await, *before, "{of}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_closed_watch_is_shown_as_before() {
    let mut scene = Scene::new(start().await, "", "").await;
    let id = scene.spawn(shell("echo out; echo err >&2; exit 9")).await;
    scene.closed(id).await;
    let before = scene.get(id).await;
    let Some(watch::Status::Process(status)) = &before.status else {
        panic!("{before:?}");
    };
    assert_eq!((status.stdout_bytes, status.stderr_bytes), (4, 4));
    let exited = status.exited.as_ref().unwrap();
    assert_eq!(exited.status, Some(exited::Status::Code(9)));
    for _ in 0..2 {
        murder(&scene.daemon).await;
        assert_eq!(scene.get(id).await, before);
    }
}
