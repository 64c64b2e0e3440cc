//! Child processes, with every child watcher.

use std::collections::BTreeMap;
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::{
    AtEnd, CloseReason, InheritedEnv, ProcessSpec, SignalTarget, Stdio, Stream, StreamEndReason,
    WatchState, exited::Status, watch,
};

use crate::common::{Scene, exec, lasting, millis, shell};

on_each_child_watcher!(
    a_shell_command_gives_output_and_code,
    a_program_gets_its_arguments_unchanged,
    the_environment_is_inherited_and_overridden,
    a_child_runs_in_the_given_directory,
    stdin_can_be_written_and_ended,
    streams_that_are_null_are_not_reported,
    an_end_by_a_signal_differs_from_an_exit_code,
    a_signal_reaches_the_group,
    a_child_that_exits_at_once_has_its_whole_history,
    a_grandchild_that_keeps_the_pipe_is_given_grace,
    a_removed_child_is_ended_with_its_group,
    a_child_that_ignores_sigterm_is_killed,
    a_child_may_be_kept,
    large_output_is_complete,
    a_finished_child_can_be_read,
    a_child_starts_with_no_signal_blocked_or_ignored,
);

/// Runs a process to its end and returns its stdout.
async fn output(scene: &mut Scene, spec: ProcessSpec) -> String {
    let id = scene.spawn(spec).await;
    scene.closed(id).await;
    String::from_utf8(scene.recorder.bytes(id, Stream::Stdout)).unwrap()
}

/// The daemon blocks the signals that it handles. A child that inherited that could not be ended.
async fn a_child_starts_with_no_signal_blocked_or_ignored(scene: &mut Scene) {
    let spec = exec(&["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"]);
    for line in output(scene, spec).await.lines() {
        let (_, mask) = line.split_once(":\t").expect("a name and a mask");
        let mask = u64::from_str_radix(mask, 16).expect("hexadecimal digits");
        assert_eq!(mask, 0, "{line}");
    }
}

async fn a_shell_command_gives_output_and_code(scene: &mut Scene) {
    let id = scene.spawn(shell("echo out; echo err >&2; exit 7")).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"out\n");
    assert_eq!(scene.recorder.bytes(id, Stream::Stderr), b"err\n");
    let exited = scene.exited(id).await;
    assert_eq!(exited.status, Some(Status::Code(7)));
    assert!(!exited.core_dumped);
    let usage = exited.usage.expect("its status is known");
    assert!(usage.max_rss_kib > 0 && usage.user_time.is_some());
}

async fn a_program_gets_its_arguments_unchanged(scene: &mut Scene) {
    let odd = ["a b", "", "$HOME", "*", "\u{e9}\n"];
    let mut argv = vec!["printf", "[%s]"];
    argv.extend(odd);
    let expected: String = odd.iter().map(|word| format!("[{word}]")).collect();
    assert_eq!(output(scene, exec(&argv)).await, expected);
}

async fn the_environment_is_inherited_and_overridden(scene: &mut Scene) {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let owned = |&(k, v): &(&str, &str)| (k.to_owned(), v.to_owned());
        pairs.iter().map(owned).collect()
    };
    let spec = ProcessSpec {
        inherited_env: Some(InheritedEnv {
            variables: map(&[("ONE", "1"), ("TWO", "2")]),
            ..InheritedEnv::default()
        }),
        env: map(&[("TWO", "two"), ("THREE", "3")]),
        ..exec(&["/usr/bin/env"])
    };
    let all = output(scene, spec).await;
    let mut lines: Vec<&str> = all.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["ONE=1", "THREE=3", "TWO=two"]);
}

async fn a_child_runs_in_the_given_directory(scene: &mut Scene) {
    assert_eq!(output(scene, shell("pwd -P")).await, "/\n");
    let spec = ProcessSpec {
        cwd: "/usr".into(),
        ..exec(&["pwd"])
    };
    assert_eq!(output(scene, spec).await, "/usr\n");
}

async fn stdin_can_be_written_and_ended(scene: &mut Scene) {
    let spec = ProcessSpec {
        stdin: Stdio::Pipe.into(),
        ..exec(&["tr", "a-z", "A-Z"])
    };
    let id = scene.spawn(spec).await;
    scene.write(id, b"hello ").await;
    scene.write(id, b"world").await;
    scene.write_eof(id).await;
    scene.closed(id).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"HELLO WORLD");
    match scene.get(id).await.status {
        Some(watch::Status::Process(status)) => assert_eq!(status.stdin_bytes, 11),
        other => panic!("{other:?}"),
    }
}

async fn streams_that_are_null_are_not_reported(scene: &mut Scene) {
    let null: i32 = Stdio::Null.into();
    let spec = ProcessSpec {
        stdout: null,
        stderr: null,
        ..shell("echo out; echo err >&2; cat")
    };
    let id = scene.spawn(spec).await;
    scene.closed(id).await;
    assert_eq!(
        scene.recorder.kinds(id),
        ["added", "started", "exited", "closed"]
    );
}

async fn an_end_by_a_signal_differs_from_an_exit_code(scene: &mut Scene) {
    let id = scene.spawn(exec(&["sleep", "3600"])).await;
    scene
        .send_signal(id, "SIGUSR1", SignalTarget::Process)
        .await;
    let number = nix::libc::SIGUSR1;
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(number)));
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
}

async fn a_signal_reaches_the_group(scene: &mut Scene) {
    // The shell waits for its child. Both hold stdout until they end.
    let spec = ProcessSpec {
        pipe_grace: Some(lasting(Duration::from_secs(3600))),
        ..shell("echo up; sleep 3600 & wait")
    };
    let id = scene.spawn(spec).await;
    scene.recorder.first(id, "data").await;
    scene.send_signal(id, "SIGKILL", SignalTarget::Group).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(9)));
}

async fn a_child_that_exits_at_once_has_its_whole_history(scene: &mut Scene) {
    for _ in 0..20 {
        let id = scene.spawn(exec(&["true"])).await;
        scene.closed(id).await;
        assert_eq!(scene.exited(id).await.status, Some(Status::Code(0)));
        let mut kinds = scene.recorder.kinds(id);
        assert_eq!((kinds[1], kinds[5]), ("started", "closed"));
        kinds.sort_unstable();
        let all = [
            "added",
            "closed",
            "exited",
            "started",
            "stream_end",
            "stream_end",
        ];
        assert_eq!(kinds, all);
    }
}

async fn a_grandchild_that_keeps_the_pipe_is_given_grace(scene: &mut Scene) {
    let spec = ProcessSpec {
        pipe_grace: Some(millis(100)),
        ..shell("sleep 3600 & echo $!")
    };
    let id = scene.spawn(spec).await;
    let exited = scene.recorder.first(id, "exited").await;
    scene.closed(id).await;
    let events = scene.recorder.recording.events();
    let ends: Vec<_> = events
        .filter(|event| event.watch_id == id)
        .filter_map(|event| match &event.kind {
            Some(Kind::StreamEnd(end)) => Some((event.monotonic_ns, end.reason())),
            _ => None,
        })
        .collect();
    assert_eq!(ends.len(), 2);
    for (at, reason) in ends {
        assert_eq!(reason, StreamEndReason::GraceExpired);
        assert!(at >= exited.monotonic_ns + 100_000_000);
    }
    let pid = String::from_utf8(scene.recorder.bytes(id, Stream::Stdout)).unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)
        .expect("the grandchild was not killed");
}

async fn a_removed_child_is_ended_with_its_group(scene: &mut Scene) {
    let id = scene.spawn(shell("sleep 3600 & echo up; wait")).await;
    scene.recorder.first(id, "data").await;
    let removed = scene.remove(id).await;
    scene.recorder.reach(removed).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Removed);
    let status = scene.exited(id).await.status;
    assert_eq!(status, Some(Status::Signal(nix::libc::SIGTERM)));
}

async fn a_child_that_ignores_sigterm_is_killed(scene: &mut Scene) {
    let spec = ProcessSpec {
        kill_grace: Some(millis(50)),
        ..shell("trap '' TERM; echo up; while :; do sleep 3600; done")
    };
    let id = scene.spawn(spec).await;
    scene.recorder.first(id, "data").await;
    scene.remove(id).await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(9)));
}

async fn a_child_may_be_kept(scene: &mut Scene) {
    let spec = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        ..exec(&["sleep", "3600"])
    };
    let id = scene.spawn(spec).await;
    let pid = match scene.recorder.first(id, "started").await.kind {
        Some(Kind::Started(started)) => nix::unistd::Pid::from_raw(started.pid),
        other => panic!("{other:?}"),
    };
    scene.remove(id).await;
    let status = scene.exited(id).await.status;
    let unknown = matches!(status, Some(Status::Unknown(_)));
    assert!(
        unknown,
        "the exit status of a kept child is unknown: {status:?}"
    );
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the kept child runs on");
}

async fn large_output_is_complete(scene: &mut Scene) {
    const BYTES: usize = 3_000_000;
    let spec = shell(&format!("head -c {BYTES} /dev/zero"));
    let id = scene.spawn(spec).await;
    scene.closed(id).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout).len(), BYTES);
}

async fn a_finished_child_can_be_read(scene: &mut Scene) {
    let id = scene.spawn(shell("echo done; exit 3")).await;
    scene.closed(id).await;
    let watch = scene.get(id).await;
    assert_eq!(watch.state(), WatchState::Closed);
    assert_eq!(watch.closed.unwrap().reason(), CloseReason::Completed);
    let Some(watch::Status::Process(status)) = watch.status else {
        panic!("a process has a process's status");
    };
    assert_eq!(status.exited.unwrap().status, Some(Status::Code(3)));
    assert_eq!((status.stdout_bytes, status.stderr_bytes), (5, 0));
}
