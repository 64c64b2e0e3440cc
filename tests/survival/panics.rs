//! Panics of the daemon's threads. Builds without debug assertions cannot be made to panic.
#![cfg(debug_assertions)]

use std::sync::Arc;

use evloopd::proto::ended_life::How;
use evloopd::proto::*;
use tonic::Code;

use crate::common::{Daemon, Scene, command_with_keeper, directory, loop_named, post};
use crate::{CONFIG, next_life, resume, the_loop};

async fn start() -> Daemon {
    let dir = directory();
    let mut command = command_with_keeper(dir.path(), CONFIG, &[]);
    command.env("EVLOOPD_TEST_PANIC", "panic");
    Daemon::start_as(Arc::clone(&dir), command).await
}

/// Posts, which panics on the loop's thread if the post is large, and else with its lock.
async fn panics(large: bool) {
    let scene = Scene::new(start().await, "", "").await;
    let last = scene.post(vec![post("before", b"told")]).await;
    let told = the_loop(&scene).await;
    let data = vec![0; if large { 100_000 } else { 1 }];
    let request = PostRequest {
        r#loop: Some(scene.target.clone()),
        posts: vec![post("panic", &data)],
        ..PostRequest::default()
    };
    let failed = scene.daemon.events().post(request).await.unwrap_err();
    assert_ne!(failed.code(), Code::Internal, "{failed:?}");
    next_life(&scene.daemon, 1).await;
    let keeper = scene.daemon.status().await.keeper.unwrap();
    let ended = &keeper.ended_lives[0];
    assert_eq!((ended.life, &ended.how), (1, &Some(How::Signal(6))));
    assert!(keeper.set_aside_loops.is_empty());
    let epoch = told.journal.unwrap().epoch;
    let mut recorder = resume(&scene, &epoch, last).await;
    recorder.first(0, "recovered").await;
    let next = scene.post(vec![post("after", b"")]).await;
    assert!(next > last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_panic_of_a_loops_thread_is_a_crash() {
    panics(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_panic_under_a_loops_lock_is_a_crash() {
    panics(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_panic_in_a_call_fails_that_call_alone() {
    let scene = Scene::new(start().await, "", "").await;
    let mut loops = scene.daemon.loops();
    let request = GetLoopRequest {
        r#loop: Some(loop_named("panic")),
    };
    let failed = loops.get_loop(request).await.unwrap_err();
    assert_eq!(failed.code(), Code::Internal);
    assert!(failed.message().contains("panicked"), "{failed:?}");
    // The same connection goes on, as do the loops.
    loops.list_loops(ListLoopsRequest::default()).await.unwrap();
    scene.post(vec![post("after", b"")]).await;
    assert_eq!(scene.daemon.status().await.keeper.unwrap().life, 1);
}
