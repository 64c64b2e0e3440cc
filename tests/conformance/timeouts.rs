//! Children with a timeout, with every child watcher.

use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::{
    AtEnd, CloseReason, ProcessSpec, SignalTarget, Stdio, Stream, exited::Status,
};

use crate::common::{Scene, exec, millis, seconds, shell};

on_each_child_watcher!(
    a_child_that_times_out_is_ended_with_its_group_and_marked,
    a_child_that_ignores_sigterm_is_killed_after_its_grace,
    a_stopped_child_times_out_too,
    a_child_that_exits_with_a_code_on_sigterm_is_timed_out_too,
    a_child_to_be_kept_at_the_end_times_out_too,
    a_child_that_exits_before_its_timeout_is_not_timed_out,
    a_child_that_is_removed_before_its_timeout_is_not_timed_out,
    a_timeout_on_a_stopped_loop_takes_effect_once_it_runs,
);

fn with_timeout(timeout: prost_types::Duration, spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec {
        timeout: Some(timeout),
        ..spec
    }
}

async fn a_child_that_times_out_is_ended_with_its_group_and_marked(scene: &mut Scene) {
    let spec = shell("sleep 3600 & echo up; wait");
    let id = scene.spawn(with_timeout(millis(200), spec)).await;
    // The whole group has ended: the other process held the pipes, and they are at their end.
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

async fn a_child_that_ignores_sigterm_is_killed_after_its_grace(scene: &mut Scene) {
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

async fn a_stopped_child_times_out_too(scene: &mut Scene) {
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

async fn a_child_that_exits_with_a_code_on_sigterm_is_timed_out_too(scene: &mut Scene) {
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

async fn a_child_to_be_kept_at_the_end_times_out_too(scene: &mut Scene) {
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

async fn a_child_that_exits_before_its_timeout_is_not_timed_out(scene: &mut Scene) {
    // Another process holds the child's output beyond the timeout, but the child itself has exited.
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

async fn a_child_that_is_removed_before_its_timeout_is_not_timed_out(scene: &mut Scene) {
    let spec = with_timeout(seconds(3600), exec(&["sleep", "3600"]));
    let id = scene.spawn(spec).await;
    scene.remove(id).await;
    let exited = scene.exited(id).await;
    assert_eq!(exited.status, Some(Status::Signal(nix::libc::SIGTERM)));
    assert!(!exited.timed_out);
}

async fn a_timeout_on_a_stopped_loop_takes_effect_once_it_runs(scene: &mut Scene) {
    let spec = with_timeout(seconds(1), exec(&["sleep", "3600"]));
    let id = scene.spawn(spec).await;
    let Some(Kind::Started(child)) = scene.recorder.first(id, "started").await.kind else {
        panic!("the first event of a child is Started")
    };
    scene.stop().await;
    // The test is that nothing happens during this time.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let pid = nix::unistd::Pid::from_raw(child.pid);
    nix::sys::signal::kill(pid, None).expect("the child still runs");
    scene.run().await;
    assert!(scene.exited(id).await.timed_out);
}
