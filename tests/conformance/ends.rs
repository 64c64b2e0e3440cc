//! Ends of children, and children that outlive their watch, with every child watcher.

use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::{
    AfterGrace, AtEnd, CloseReason, GetLoopRequest, ProcessSpec, RemoveWatchRequest, SignalTarget,
    Stdio, Stream, StreamEndReason, WatchState, exited::Status,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Scene, after, by_id, exec, millis, seconds, shell, within};
use crate::pipes::fifo;

on_each_child_watcher!(
    a_stopped_child_is_shown_as_such_and_ends_in_order,
    an_exit_on_a_stopped_loop_is_in_the_status_and_has_its_code,
    an_exit_on_a_stopped_loop_is_an_event_once_it_runs,
    an_exit_on_a_stopped_loop_is_an_event_although_nothing_else_happens,
    a_child_killed_on_a_stopped_loop_has_its_exit_status,
    a_child_that_was_ending_when_its_loop_was_stopped_has_its_exit_status,
    an_alarm_at_the_moment_of_the_exit_keeps_the_exit_status,
    a_traced_child_is_waited_for_and_has_its_exit_status,
    a_writer_outlives_the_pipe_grace,
    a_kept_child_writes_on,
    a_kept_child_counts_until_it_has_ended,
    a_stream_can_be_read_past_the_grace,
    a_stream_that_is_read_past_the_grace_ends_with_its_watch,
);

/// Prints `up`, and exits with 7 on SIGTERM. It sleeps only briefly, because the signal is lost if
/// it comes between fork(2) and exec(2) of a sleep.
const ENDS_WITH_7: &str = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done";
/// As [`ENDS_WITH_7`], without a child of its own: a shell that waits in vfork(2) for a child that is
/// stopped before execve(2) is not stopped itself.
const READS_AND_ENDS_WITH_7: &str = "trap 'exit 7' TERM; echo up; while :; do read x; done";
/// A writer that goes on until it is ended, for example by SIGPIPE.
const WRITES_ON: &str = "while echo x; do sleep 0.01; done";

/// Starts a child and waits until it has printed something.
async fn up(scene: &mut Scene, spec: ProcessSpec) -> u64 {
    let id = scene.spawn(spec).await;
    scene.recorder.first(id, "data").await;
    id
}

/// Returns the number that it printed.
fn number_said(scene: &Scene, id: u64) -> Pid {
    let said = String::from_utf8(scene.recorder.bytes(id, Stream::Stdout)).unwrap();
    let number = said.lines().find_map(|line| line.parse().ok());
    Pid::from_raw(number.expect("a line that is a number"))
}

/// Returns the reasons for which the streams of a child ended.
fn stream_ends(scene: &Scene, id: u64) -> Vec<StreamEndReason> {
    let events = scene.recorder.recording.events();
    let of_it = events.filter(|event| event.watch_id == id);
    let ends = of_it.filter_map(|event| match &event.kind {
        Some(Kind::StreamEnd(end)) => Some(end.reason()),
        _ => None,
    });
    ends.collect()
}

/// Checks that a process still writes to a pipe of the daemon, then kills it.
async fn end_writer(scene: &Scene, pid: Pid) {
    let so_far = scene.daemon.status().await.drained_bytes;
    let more = |bytes| bytes > so_far + 10;
    let what = "more bytes of the writer";
    let reading = scene.daemon.until(what, |s| more(s.drained_bytes));
    reading.await;
    kill(pid, Signal::SIGKILL).expect("it lives");
    let closed = scene
        .daemon
        .until("the drained pipes to be closed", |s| s.drained_pipes == 0);
    closed.await;
}

async fn a_stopped_child_is_shown_as_such_and_ends_in_order(scene: &mut Scene) {
    let spec = ProcessSpec {
        kill_grace: Some(seconds(30)),
        stdin: Stdio::Pipe.into(),
        ..shell(READS_AND_ENDS_WITH_7)
    };
    let id = up(scene, spec).await;
    assert!(!scene.process(id).await.stopped);
    scene.send_signal(id, "SIGSTOP", SignalTarget::Group).await;
    scene
        .process_until(id, "the child to be stopped", |s| s.stopped)
        .await;
    scene.send_signal(id, "SIGCONT", SignalTarget::Group).await;
    scene
        .process_until(id, "the child to continue", |s| !s.stopped)
        .await;
    scene.send_signal(id, "SIGSTOP", SignalTarget::Group).await;
    scene
        .process_until(id, "the child to be stopped", |s| s.stopped)
        .await;
    scene.remove(id).await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(7)));
}

async fn an_exit_on_a_stopped_loop_is_in_the_status_and_has_its_code(scene: &mut Scene) {
    let id = up(scene, shell(ENDS_WITH_7)).await;
    scene.stop().await;
    scene.send_signal(id, "SIGTERM", SignalTarget::Group).await;
    let ended = |s: &evloopd::proto::ProcessStatus| s.ended_untold && s.exited.is_none();
    scene.process_until(id, "the child to end", ended).await;
    scene.remove(id).await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(7)));
}

async fn an_exit_on_a_stopped_loop_is_an_event_once_it_runs(scene: &mut Scene) {
    let id = up(scene, shell(ENDS_WITH_7)).await;
    let stopped = scene.stop().await;
    scene.send_signal(id, "SIGTERM", SignalTarget::Group).await;
    scene
        .process_until(id, "the child to end", |s| s.ended_untold)
        .await;
    assert_eq!(
        scene.settle().await,
        stopped + 1,
        "a stopped loop appends no event of the child"
    );
    scene.run().await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(7)));
    assert!(!scene.process(id).await.ended_untold);
}

async fn an_exit_on_a_stopped_loop_is_an_event_although_nothing_else_happens(scene: &mut Scene) {
    // The child has no stream whose end would wake the loop.
    let spec = ProcessSpec {
        stdout: Stdio::Null.into(),
        stderr: Stdio::Null.into(),
        ..shell("exec sleep 3600")
    };
    let id = scene.spawn(spec).await;
    scene.stop().await;
    scene
        .send_signal(id, "SIGKILL", SignalTarget::Process)
        .await;
    scene
        .process_until(id, "the child to end", |s| s.ended_untold)
        .await;
    scene.run().await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(9)));
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
}

async fn a_child_killed_on_a_stopped_loop_has_its_exit_status(scene: &mut Scene) {
    let id = up(scene, shell(ENDS_WITH_7)).await;
    scene.stop().await;
    scene.remove(id).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Removed);
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(9)));
    assert_eq!(stream_ends(scene, id), [StreamEndReason::Released; 2]);
}

async fn a_child_that_was_ending_when_its_loop_was_stopped_has_its_exit_status(scene: &mut Scene) {
    let spec = ProcessSpec {
        kill_grace: Some(seconds(3600)),
        ..shell("trap '' TERM; echo up; while :; do sleep 3600; done")
    };
    let id = up(scene, spec).await;
    let request = RemoveWatchRequest {
        r#loop: Some(scene.target.clone()),
        watch: by_id(id),
        ..RemoveWatchRequest::default()
    };
    let mut watches = scene.daemon.watches();
    let removal = tokio::spawn(async move { watches.remove_watch(request).await });
    within("the watch to be closing", async {
        while scene.get(id).await.state() != WatchState::Closing {
            tokio::task::yield_now().await;
        }
    })
    .await;
    scene.stop().await;
    removal.await.unwrap().unwrap();
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(9)));
}

async fn an_alarm_at_the_moment_of_the_exit_keeps_the_exit_status(scene: &mut Scene) {
    for _ in 0..20 {
        let spec = ProcessSpec {
            kill_grace: Some(millis(0)),
            ..exec(&["sleep", "3600"])
        };
        let id = scene.spawn(spec).await;
        scene.remove(id).await;
        let status = scene.exited(id).await.status;
        assert!(matches!(status, Some(Status::Signal(_))), "{status:?}");
    }
}

/// Makes the calling thread the tracer of a process, without stopping it (`PTRACE_SEIZE`).
#[allow(unsafe_code)]
pub(crate) fn trace(pid: Pid) -> std::io::Result<()> {
    let none = std::ptr::null_mut::<nix::libc::c_void>();
    // SAFETY: PTRACE_SEIZE takes numbers and reads no memory.
    match unsafe { nix::libc::ptrace(nix::libc::PTRACE_SEIZE, pid.as_raw(), none, none) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

async fn turns(scene: &Scene) -> u64 {
    let request = GetLoopRequest {
        r#loop: Some(scene.target.clone()),
    };
    let answer = scene.daemon.loops().get_loop(request).await.unwrap();
    answer.into_inner().r#loop.expect("the loop").turns
}

/// A tracer is notified of the child's end first, and the parent cannot wait for the child before
/// the tracer has. The pidfd is readable all the time.
async fn a_traced_child_is_waited_for_and_has_its_exit_status(scene: &mut Scene) {
    let id = scene.spawn(exec(&["sleep", "3600"])).await;
    let pid = Pid::from_raw(scene.started(id).await);
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let (tell, traced) = tokio::sync::oneshot::channel();
    let tracer = std::thread::spawn(move || {
        let _ = tell.send(trace(pid));
        // The tracing ends with this thread.
        let _ = held.recv();
    });
    if let Err(error) = traced.await.unwrap() {
        eprintln!("SKIPPED: ptrace(2) is not permitted here: {error}");
        return;
    }
    kill(pid, Signal::SIGKILL).unwrap();
    let before = turns(scene).await;
    let while_held = scene.add(after(Duration::from_millis(300))).await;
    scene.closed(while_held).await;
    assert!(!scene.recorder.kinds(id).contains(&"exited"));
    let turns = turns(scene).await - before;
    assert!(
        turns < 500,
        "the loop looks again and again instead of waiting: {turns} turns"
    );
    let_go.send(()).unwrap();
    tracer.join().unwrap();
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(9)));
}

async fn a_writer_outlives_the_pipe_grace(scene: &mut Scene) {
    let spec = ProcessSpec {
        pipe_grace: Some(millis(50)),
        ..shell(&format!("{{ {WRITES_ON}; }} & echo $!"))
    };
    let id = scene.spawn(spec).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(stream_ends(scene, id), [StreamEndReason::GraceExpired; 2]);
    let writer = number_said(scene, id);
    scene.remove(id).await;
    end_writer(scene, writer).await;
}

async fn a_kept_child_writes_on(scene: &mut Scene) {
    let spec = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        ..shell(WRITES_ON)
    };
    let id = up(scene, spec).await;
    let pid = Pid::from_raw(scene.started(id).await);
    scene.remove(id).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Removed);
    assert_eq!(stream_ends(scene, id), [StreamEndReason::Released; 2]);
    end_writer(scene, pid).await;
}

async fn a_kept_child_counts_until_it_has_ended(scene: &mut Scene) {
    let spec = ProcessSpec {
        at_end: AtEnd::Keep.into(),
        ..exec(&["sleep", "3600"])
    };
    let id = scene.spawn(spec).await;
    let pid = Pid::from_raw(scene.started(id).await);
    scene.remove(id).await;
    let status = scene.daemon.status().await;
    assert_eq!((status.children, status.children_kept), (1, 1));
    kill(pid, Signal::SIGKILL).expect("the kept child runs on");
    let reaped = |s: &evloopd::proto::GetStatusResponse| (s.children, s.children_kept) == (0, 0);
    scene.daemon.until("the child to be reaped", reaped).await;
    assert!(kill(pid, None).is_err(), "the child was reaped");
}

async fn a_stream_can_be_read_past_the_grace(scene: &mut Scene) {
    let path = fifo(scene);
    let line = format!("{{ read x < {}; echo late; }} & exit 0", path.display());
    let spec = ProcessSpec {
        pipe_grace: Some(millis(10)),
        after_grace: AfterGrace::KeepReading.into(),
        ..shell(&line)
    };
    let id = scene.spawn(spec).await;
    scene.exited(id).await;
    let past = scene.add(after(Duration::from_millis(100))).await;
    scene.closed(past).await;
    assert_eq!(scene.get(id).await.state(), WatchState::Open);
    // A thread of its own: the end of a failed test would wait for one of the runtime's pool.
    std::thread::spawn(move || std::fs::write(path, "go on\n"));
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"late\n");
    assert_eq!(stream_ends(scene, id), [StreamEndReason::Eof; 2]);
}

async fn a_stream_that_is_read_past_the_grace_ends_with_its_watch(scene: &mut Scene) {
    // setsid(1) puts it in a session of its own, and so outside of the child's group.
    let spec = ProcessSpec {
        pipe_grace: Some(millis(10)),
        after_grace: AfterGrace::KeepReading.into(),
        ..shell("setsid sh -c 'echo $$; exec sleep 300' & exit 0")
    };
    let id = up(scene, spec).await;
    scene.exited(id).await;
    scene.remove(id).await;
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Removed);
    assert_eq!(stream_ends(scene, id), [StreamEndReason::GraceExpired; 2]);
    let outside = number_said(scene, id);
    if scene.daemon.status().await.cgroups.is_empty() {
        kill(outside, Signal::SIGKILL).expect("the process outside of the group was not killed");
    } else {
        // It is in the child's cgroup.
        let gone = within("its end", async {
            while kill(outside, None).is_ok() {
                tokio::task::yield_now().await;
            }
        });
        gone.await;
    }
}
