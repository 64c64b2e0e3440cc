//! Children that may run only so long, with every child watcher.

use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::{
    AtEnd, CloseReason, ProcessSpec, SignalTarget, Stdio, Stream, exited::Status,
};

use crate::common::{Scene, exec, millis, seconds, shell};

on_each_child_watcher!(
    a_child_whose_time_is_over_is_ended_with_its_group_and_says_so,
    one_that_ignores_sigterm_is_killed_after_its_grace,
    one_that_is_stopped_ends_too,
    one_that_chooses_its_code_is_timed_out_all_the_same,
    one_that_would_be_kept_at_its_end_is_ended_all_the_same,
    one_that_ends_before_is_not_timed_out,
    one_that_is_removed_before_is_not_timed_out,
    a_stopped_loop_ends_it_once_it_runs,
);

fn with_timeout(timeout: prost_types::Duration, spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec {
        timeout: Some(timeout),
        ..spec
    }
}

async fn a_child_whose_time_is_over_is_ended_with_its_group_and_says_so(scene: &mut Scene) {
    let spec = shell("sleep 3600 & echo up; wait");
    let id = scene.spawn(with_timeout(millis(200), spec)).await;
    // Both have ended: the other one holds the pipes, which are at their end.
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    let exited = scene.exited(id).await;
    assert_eq!(exited.status, Some(Status::Signal(nix::libc::SIGTERM)));
    assert!(exited.timed_out);
    assert!(exited.usage.is_some());
    let status = scene.process(id).await;
    assert!(status.exited.unwrap().timed_out);
    let started = scene.recorder.first(id, "started").await.monotonic_ns;
    let exited = scene.recorder.first(id, "exited").await.monotonic_ns;
    assert!(exited >= started + 200_000_000, "not early");
}

async fn one_that_ignores_sigterm_is_killed_after_its_grace(scene: &mut Scene) {
    let spec = ProcessSpec {
        kill_grace: Some(millis(50)),
        ..shell("trap '' TERM; echo up; while :; do sleep 3600; done")
    };
    let id = scene.spawn(with_timeout(seconds(1), spec)).await;
    let exited = scene.exited(id).await;
    assert_eq!(exited.status, Some(Status::Signal(9)));
    assert!(exited.timed_out);
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
}

async fn one_that_is_stopped_ends_too(scene: &mut Scene) {
    let spec = ProcessSpec {
        kill_grace: Some(seconds(3600)),
        ..exec(&["sleep", "3600"])
    };
    let id = scene.spawn(with_timeout(seconds(1), spec)).await;
    scene.send_signal(id, "SIGSTOP", SignalTarget::Group).await;
    let exited = scene.exited(id).await;
    assert_eq!(exited.status, Some(Status::Signal(nix::libc::SIGTERM)));
    assert!(exited.timed_out);
}

async fn one_that_chooses_its_code_is_timed_out_all_the_same(scene: &mut Scene) {
    let spec = shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done");
    let id = scene.spawn(with_timeout(seconds(1), spec)).await;
    scene.closed(id).await;
    let exited = scene.exited(id).await;
    assert_eq!(
        (exited.status, exited.timed_out),
        (Some(Status::Code(7)), true)
    );
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"up\nbye\n");
}

async fn one_that_would_be_kept_at_its_end_is_ended_all_the_same(scene: &mut Scene) {
    let spec = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        stdout: Stdio::Null.into(),
        stderr: Stdio::Null.into(),
        ..exec(&["sleep", "3600"])
    };
    let id = scene.spawn(with_timeout(millis(1), spec)).await;
    assert!(scene.exited(id).await.timed_out);
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
}

async fn one_that_ends_before_is_not_timed_out(scene: &mut Scene) {
    // Another process holds its output beyond its time: the child itself has ended.
    let spec = ProcessSpec {
        pipe_grace: Some(millis(1500)),
        ..shell("sleep 3600 & exit 3")
    };
    let id = scene.spawn(with_timeout(seconds(1), spec)).await;
    scene.closed(id).await;
    let exited = scene.exited(id).await;
    assert_eq!(
        (exited.status, exited.timed_out),
        (Some(Status::Code(3)), false)
    );
    let ends = scene.recorder.kinds(id);
    assert_eq!(ends.iter().filter(|kind| **kind == "exited").count(), 1);
}

async fn one_that_is_removed_before_is_not_timed_out(scene: &mut Scene) {
    let spec = with_timeout(seconds(3600), exec(&["sleep", "3600"]));
    let id = scene.spawn(spec).await;
    scene.remove(id).await;
    let exited = scene.exited(id).await;
    assert_eq!(exited.status, Some(Status::Signal(nix::libc::SIGTERM)));
    assert!(!exited.timed_out);
}

async fn a_stopped_loop_ends_it_once_it_runs(scene: &mut Scene) {
    let spec = with_timeout(seconds(1), exec(&["sleep", "3600"]));
    let id = scene.spawn(spec).await;
    let Some(Kind::Started(child)) = scene.recorder.first(id, "started").await.kind else {
        panic!("a child begins with its start")
    };
    scene.stop().await;
    // What is tested is that nothing happens meanwhile.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let pid = nix::unistd::Pid::from_raw(child.pid);
    nix::sys::signal::kill(pid, None).expect("it still runs");
    scene.run().await;
    assert!(scene.exited(id).await.timed_out);
}
