//! One budget for all journals.

use evloopd::proto::*;

use crate::common::{Daemon, Scene, post, shell};
use crate::pressure::{consumer, drain, numbers, paused};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn all_journals_stay_within_the_memory_and_a_loop_that_waits_for_it_goes_on() {
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
    // The other loop's consumer holds nearly all there is.
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
