//! A call that is cancelled at any step has its whole effect or none.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use evloopd::proto::event::Kind;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{Daemon, Scene, by_name, exec, post, refusal};

/// Polls a future until it is done, or `polls` times and then drops it.
pub(crate) async fn cancelled_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Cancels the call after each number of polls, until it has completed three times in a row.
async fn at_every_step<F, T>(mut call: impl FnMut(usize) -> F)
where
    F: Future<Output = T>,
{
    let (mut polls, mut through) = (0, 0);
    while through < 3 {
        let done = cancelled_after(polls, call(polls)).await.is_some();
        through = if done { through + 1 } else { 0 };
        polls += 1;
        assert!(polls < 1000, "the call never completes");
    }
}

fn named(scene: &Scene, name: &str) -> AddWatchRequest {
    AddWatchRequest {
        name: name.into(),
        if_exists: IfExists::Return.into(),
        ..scene.request(Spec::Process(exec(&["sleep", "3600"])))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cancelled_registration_is_complete_or_absent() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let mut names = Vec::new();
    at_every_step(|step| {
        let name = format!("step-{step}");
        let request = named(&scene, &name);
        names.push(name);
        let mut watches = scene.daemon.watches();
        async move { watches.add_watch(request).await.unwrap() }
    })
    .await;
    for name in &names {
        let request = named(&scene, name);
        let watch = scene.try_add(request).await.unwrap().watch.unwrap();
        scene.recorder.first(watch.watch_id, "started").await;
    }
    scene.settle().await;
    for name in &names {
        let added = |e: &&Event| matches!(&e.kind, Some(Kind::Added(a)) if a.name == *name);
        let events = scene.recorder.recording.events();
        assert_eq!(events.filter(added).count(), 1, "one child for {name}");
    }
    let open = u64::try_from(names.len()).unwrap();
    assert_eq!(scene.open_watches().await, open);
    let status = scene
        .daemon
        .admin()
        .get_status(GetStatusRequest {})
        .await
        .unwrap();
    assert_eq!(u64::from(status.into_inner().children), open);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cancelled_removal_happens_or_does_not() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let mut names = Vec::new();
    for step in 0..40 {
        let name = format!("step-{step}");
        let request = named(&scene, &name);
        scene.try_add(request).await.unwrap();
        names.push(name);
    }
    for (step, name) in names.iter().enumerate() {
        let request = RemoveWatchRequest {
            r#loop: Some(scene.target.clone()),
            watch: by_name(name),
            ..RemoveWatchRequest::default()
        };
        let mut watches = scene.daemon.watches();
        cancelled_after(step % 20, watches.remove_watch(request.clone())).await;
        // Whether the removal happened or not, a repeat succeeds or finds no watch.
        if let Err(status) = scene.daemon.watches().remove_watch(request).await {
            assert_eq!(refusal(&status).code, Code::NotFound, "{status:?}");
        }
        let what = format!("{name} removed");
        let events = scene.recorder.find(
            &what,
            |e| matches!(&e.kind, Some(Kind::Added(a)) if a.name == *name),
        );
        let id = events.await.watch_id;
        scene.recorder.first(id, "removed").await;
    }
    assert_eq!(scene.open_watches().await, 0);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn cancelled_posts_are_complete_or_absent() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    at_every_step(|step| {
        let request = PostRequest {
            r#loop: Some(scene.target.clone()),
            posts: (0..10).map(|n| post(&format!("{step}"), &[n])).collect(),
            ..PostRequest::default()
        };
        let mut events = scene.daemon.events();
        async move { events.post(request).await.unwrap() }
    })
    .await;
    scene.settle().await;
    let events: Vec<Posted> = scene
        .recorder
        .recording
        .events()
        .filter_map(|event| match &event.kind {
            Some(Kind::Posted(posted)) if posted.topic != "settle" => Some(posted.clone()),
            _ => None,
        })
        .collect();
    for call in events.chunks(10) {
        let payloads: Vec<u8> = call.iter().map(|posted| posted.payload[0]).collect();
        assert_eq!(payloads, (0..10).collect::<Vec<u8>>());
        assert!(call.iter().all(|posted| posted.topic == call[0].topic));
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn dropped_streams_leave_nothing_behind() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    at_every_step(|_| {
        let request = SubscribeRequest {
            r#loop: Some(scene.target.clone()),
            ..SubscribeRequest::default()
        };
        let mut events = scene.daemon.events();
        async move { drop(events.subscribe(request).await.unwrap()) }
    })
    .await;
    let counted = async {
        loop {
            let status = scene
                .daemon
                .admin()
                .get_status(GetStatusRequest {})
                .await
                .unwrap();
            if status.into_inner().streams == 1 {
                break;
            }
        }
    };
    crate::common::within("all streams but the recorder's to be gone", counted).await;
    scene.settle().await;
    scene.finish().await;
}
