//! Loops with which no life of the daemon can go on. Builds without debug assertions cannot be made to
//! panic.
#![cfg(debug_assertions)]

use std::sync::Arc;

use evloopd::proto::ended_life::How;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{
    Daemon, Scene, command_with_keeper, directory, loop_named, never, post, shell,
};
use crate::{CONFIG, next_life, the_loop};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_loop_that_lives_die_of_is_set_aside_and_the_others_serve() {
    let dir = directory();
    let mut command = command_with_keeper(dir.path(), CONFIG, &[]);
    // A life panics when it reads the record of a watch of this name.
    command.env("EVLOOPD_TEST_PANIC", "poison");
    let daemon = Daemon::start_as(Arc::clone(&dir), command).await;
    let mut bad = Scene::new(daemon, "", "").await;
    let spec = ProcessSpec {
        stdin: Stdio::Pipe.into(),
        ..shell("cat")
    };
    let child = bad.spawn(spec).await;
    let child = Pid::from_raw(bad.process(child).await.pid);
    let request = AddWatchRequest {
        name: "poison".into(),
        ..bad.request(never())
    };
    bad.try_add(request).await.unwrap();
    let request = NewEventLoopRequest {
        name: "good".into(),
        ..NewEventLoopRequest::default()
    };
    bad.daemon.policies().new_event_loop(request).await.unwrap();
    let told = PostRequest {
        r#loop: Some(loop_named("good")),
        posts: vec![post("told", b"")],
        ..PostRequest::default()
    };
    let told = bad.daemon.events().post(told).await.unwrap();
    let told = told.into_inner().cursor.unwrap();
    let name = format!(
        "{}/{}",
        bad.daemon.info().await.principal,
        the_loop(&bad).await.name
    );
    // The second life and the third one die of the loop. It stays set aside in later ones.
    for (signal, killed, next) in [(Signal::SIGKILL, 1, 4), (Signal::SIGABRT, 4, 5)] {
        let pid = Pid::from_raw(bad.daemon.info().await.pid);
        kill(pid, signal).unwrap();
        next_life(&bad.daemon, killed).await;
        let keeper = bad.daemon.status().await.keeper.unwrap();
        assert_eq!(keeper.life, next);
        let how: Vec<_> = keeper.ended_lives.iter().rev().map(|one| one.how).collect();
        let [killed, abort] = [9, 6].map(|signal| Some(How::Signal(signal)));
        assert!([killed, abort, abort, abort].starts_with(&how), "{how:?}");
        assert_eq!(keeper.set_aside_loops, std::slice::from_ref(&name));
        let good = GetLoopRequest {
            r#loop: Some(loop_named("good")),
        };
        let good = bad.daemon.loops().get_loop(good).await.unwrap();
        let journal = good.into_inner().r#loop.unwrap().journal.unwrap();
        assert_eq!(journal.epoch, told.epoch);
        assert!(journal.newest_seq > told.seq);
        kill(child, None).expect("it lives");
    }
    // Nobody waits for it any more.
    kill(child, Signal::SIGKILL).unwrap();
}
