//! The cgroups of children of earlier lives.

use std::path::Path;

use evloopd::proto::event::Kind;
use evloopd::proto::*;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::common::{Scene, by_id, shell, within};
use crate::{murder, resume, start, the_loop};

/// Waits until that directory has no cgroups any more.
async fn emptied(place: &Path) {
    let has_some = || {
        let entries = std::fs::read_dir(place).unwrap();
        entries
            .filter_map(Result::ok)
            .any(|entry| entry.path().is_dir())
    };
    within("the end of all cgroups", async {
        while has_some() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn children_keep_their_cgroups_and_what_has_escaped_from_them_is_found() {
    let mut scene = Scene::new(start().await, "", "").await;
    let status = scene.daemon.status().await;
    if status.cgroups.is_empty() {
        eprintln!(
            "SKIPPED: no cgroups can be made here: {}",
            status.cgroups_missing
        );
        return;
    }
    // It has another parent, another group and another session, so that only the cgroup has it.
    let line = "(setsid sh -c 'echo $$; exec sleep 3600' &); exec sleep 3600";
    let id = scene.spawn(shell(line)).await;
    scene.recorder.first(id, "data").await;
    let said = String::from_utf8(scene.recorder.bytes(id, Stream::Stdout)).unwrap();
    let escaped = Pid::from_raw(said.trim().parse().unwrap());
    let before = scene.process(id).await;
    assert!(Path::new(&before.cgroup).starts_with(&status.cgroups));
    // One that was removed leaves nothing, whichever life removes it.
    let other = scene.spawn(shell("exec sleep 3600")).await;
    for _ in 0..2 {
        murder(&scene.daemon).await;
        let now = scene.daemon.status().await;
        assert_eq!(now.cgroups, status.cgroups, "{}", now.cgroups_missing);
        assert_eq!(scene.process(id).await.cgroup, before.cgroup);
    }
    let third = scene.spawn(shell("exec sleep 3600")).await;
    assert!(!scene.process(third).await.cgroup.is_empty());
    for other in [other, third] {
        scene.remove(other).await;
    }
    let told = the_loop(&scene).await.journal.unwrap();
    let mut recorder = resume(&scene, &told.epoch, told.newest_seq).await;
    let request = StopProcessRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..StopProcessRequest::default()
    };
    let mut processes = scene.daemon.processes();
    let stopped = processes.stop_process(request);
    let stopped = within("the end of both", stopped).await.unwrap();
    let stopped = stopped.into_inner();
    assert_eq!((stopped.ended, stopped.may_have_escaped), (2, 0));
    let gone = async {
        while kill(escaped, None).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    within("the end of what has escaped", gone).await;
    let Some(Kind::Exited(exited)) = recorder.first(id, "exited").await.kind else {
        panic!("its exit");
    };
    assert!(exited.cgroup_usage.is_some());
    emptied(Path::new(&status.cgroups)).await;
}
