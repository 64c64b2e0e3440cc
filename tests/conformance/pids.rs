//! Processes that are not the daemon's children.

use std::io::BufRead as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use evloopd::proto::watch_spec::Spec;
use evloopd::proto::{
    AddWatchResponse, CloseReason, IfExists, PidSpec, PidStatus, exited::Status, pid_spec, watch,
};
use tonic::Code;

use crate::common::{Handover, Scene, lasting, millis, refusal};

on_each_backend!(
    a_strangers_exit_code_is_told_once_its_parent_has_reaped_it,
    a_strangers_signal_is_told,
    a_zombie_that_nobody_reaps_has_an_unknown_status,
    a_process_that_was_reaped_meanwhile_keeps_its_status,
    a_later_process_with_the_same_pid_is_not_taken_for_the_old_one,
    a_process_that_is_not_there_is_not_found,
    a_leader_whose_threads_live_has_not_ended,
    a_pidfd_that_is_handed_over_names_a_process_that_is_gone,
    a_finished_watch_is_found_again_by_name,
    a_removed_watch_leaves_the_process_alone,
    pid_watches_leave_no_descriptors,
);

/// A process of this test, which ends when its stdin does.
fn stranger(line: &str) -> Child {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(line).stdin(Stdio::piped());
    shell.spawn().unwrap()
}

fn pid(child: &Child) -> i32 {
    child.id().try_into().unwrap()
}

fn of(pid: i32) -> PidSpec {
    PidSpec {
        process: Some(pid_spec::Process::Pid(pid)),
        ..PidSpec::default()
    }
}

/// Its start time, field 22 of proc_pid_stat(5). Its name has no spaces.
fn start_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.split(' ').nth(21).unwrap().parse().unwrap()
}

async fn status(scene: &Scene, id: u64) -> PidStatus {
    match scene.get(id).await.status {
        Some(watch::Status::Pid(status)) => status,
        other => panic!("{other:?}"),
    }
}

/// Adds a watch that must be refused. Returns the field that the error names.
async fn not_found(scene: &mut Scene, spec: PidSpec) -> String {
    let request = scene.request(Spec::Pid(spec));
    let refused = refusal(&scene.try_add(request).await.unwrap_err());
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::NotFound, "PROCESS_NOT_FOUND")
    );
    assert_eq!(refused.fields, [refused.word("field")]);
    refused.fields[0].clone()
}

const WHOLE: [&str; 4] = ["added", "ended", "exited", "closed"];

async fn a_strangers_exit_code_is_told_once_its_parent_has_reaped_it(scene: &mut Scene) {
    let mut child = stranger("read x; exit 7");
    let id = scene.add(Spec::Pid(of(pid(&child)))).await;
    let shown = status(scene, id).await;
    assert_eq!((shown.pid, shown.ended), (pid(&child), false));
    assert_eq!(shown.start_ticks, Some(start_ticks(pid(&child))));
    drop(child.stdin.take());
    scene.recorder.first(id, "ended").await;
    scene.settle().await;
    assert_eq!(
        scene.recorder.kinds(id),
        ["added", "ended"],
        "it is a zombie"
    );
    assert!(status(scene, id).await.ended);
    child.wait().unwrap();
    let exited = scene.exited(id).await;
    assert_eq!(exited.status, Some(Status::Code(7)));
    assert!(exited.usage.is_none(), "only a parent gets it");
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    assert_eq!(scene.recorder.kinds(id), WHOLE);
    assert_eq!(status(scene, id).await.exited, Some(exited));
}

async fn a_strangers_signal_is_told(scene: &mut Scene) {
    let mut child = stranger("read x");
    let id = scene.add(Spec::Pid(of(pid(&child)))).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(scene.exited(id).await.status, Some(Status::Signal(9)));
    scene.closed(id).await;
}

async fn a_zombie_that_nobody_reaps_has_an_unknown_status(scene: &mut Scene) {
    let mut child = stranger("read x; exit 7");
    let spec = PidSpec {
        reap_wait: Some(millis(50)),
        ..of(pid(&child))
    };
    let id = scene.add(Spec::Pid(spec)).await;
    drop(child.stdin.take());
    let ended = scene.recorder.first(id, "ended").await;
    let exited = scene.recorder.first(id, "exited").await;
    assert!(exited.monotonic_ns >= ended.monotonic_ns + 50_000_000);
    match scene.exited(id).await.status {
        Some(Status::Unknown(why)) => {
            assert!(why.contains("has not reaped it within 50ms"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Completed);
    child.wait().unwrap();
}

/// Nobody looks while the loop is stopped.
async fn a_process_that_was_reaped_meanwhile_keeps_its_status(scene: &mut Scene) {
    let mut child = stranger("read x; exit 7");
    let id = scene.add(Spec::Pid(of(pid(&child)))).await;
    scene.stop().await;
    drop(child.stdin.take());
    child.wait().unwrap();
    scene.settle().await;
    assert_eq!(scene.recorder.kinds(id), ["added"]);
    scene.run().await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(7)));
    scene.closed(id).await;
    assert_eq!(scene.recorder.kinds(id), WHOLE);
}

async fn a_later_process_with_the_same_pid_is_not_taken_for_the_old_one(scene: &mut Scene) {
    let mut child = stranger("read x");
    // The older process that the client means had this pid before.
    let older = PidSpec {
        start_ticks: Some(start_ticks(pid(&child)) - 1),
        ..of(pid(&child))
    };
    assert_eq!(not_found(scene, older).await, "spec.pid.start_ticks");
    let meant = PidSpec {
        start_ticks: Some(start_ticks(pid(&child))),
        ..of(pid(&child))
    };
    let id = scene.add(Spec::Pid(meant)).await;
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(1)));
}

async fn a_process_that_is_not_there_is_not_found(scene: &mut Scene) {
    let mut child = stranger("read x");
    let gone = of(pid(&child));
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(not_found(scene, gone).await, "spec.pid.pid");
    // A thread of this test, other than the main one.
    let (tell, told) = std::sync::mpsc::channel();
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_pid()).unwrap();
        let _ = held.recv();
    });
    let thread_id = told.recv().unwrap();
    assert_eq!(not_found(scene, of(thread_id)).await, "spec.pid.pid");
    drop(let_go);
    thread.join().unwrap();
    for (wrong, field) in [
        (of(0), "spec.pid.pid"),
        (of(-1), "spec.pid.pid"),
        (PidSpec::default(), "spec.pid"),
    ] {
        let request = scene.request(Spec::Pid(wrong));
        let refused = refusal(&scene.try_add(request).await.unwrap_err());
        assert_eq!(
            (refused.code, refused.word("field")),
            (Code::InvalidArgument, field)
        );
    }
}

/// Set for a process of the test below.
const LEADER: &str = "EVLOOPD_TEST_LEADER";

/// Not a test of its own: a program that has a child whose main thread ends at once, and whose other
/// thread ends it with 9 when stdin ends. It prints the child's pid, and reaps it.
#[test]
#[allow(unsafe_code)]
fn a_process_whose_leader_ends_first() {
    if std::env::var_os(LEADER).is_none() {
        return;
    }
    // SAFETY: no other thread of this program holds a lock now: its main thread waits for this one.
    let child = match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => {
            std::thread::spawn(|| {
                let mut byte = [0];
                let _ = rustix::io::read(rustix::stdio::stdin(), &mut byte);
                // SAFETY: it ends the process.
                unsafe { nix::libc::_exit(9) };
            });
            // SAFETY: it ends this thread alone, whose memory the other thread does not use.
            unsafe { nix::libc::syscall(nix::libc::SYS_exit, 0) };
            unreachable!("the thread has ended");
        }
    };
    println!("\nLEADER {child}");
    nix::sys::wait::waitpid(child, None).unwrap();
}

fn state(pid: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields[..1].to_owned()
}

async fn a_leader_whose_threads_live_has_not_ended(scene: &mut Scene) {
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "pids::a_process_whose_leader_ends_first",
            "--nocapture",
        ])
        .env(LEADER, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = std::io::BufReader::new(program.stdout.take().unwrap()).lines();
    let mut pids = said.map(|line| line.unwrap()[..].strip_prefix("LEADER ").map(str::to_owned));
    let leader = pids.find_map(|pid| pid).unwrap().parse().unwrap();
    let id = scene.add(Spec::Pid(of(leader))).await;
    crate::common::within("the end of the main thread", async {
        while state(leader) != "Z" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    scene.settle().await;
    assert_eq!(
        scene.recorder.kinds(id),
        ["added"],
        "its other thread lives"
    );
    drop(program.stdin.take());
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(9)));
    scene.closed(id).await;
    assert_eq!(scene.recorder.kinds(id), WHOLE);
    // The rest of what it says.
    let _ = pids.count();
    program.wait().unwrap();
}

async fn a_pidfd_that_is_handed_over_names_a_process_that_is_gone(scene: &mut Scene) {
    let handover: Handover = scene.daemon.handover().await;
    let mut child = stranger("read x; exit 7");
    let raw = rustix::process::Pid::from_raw(pid(&child)).unwrap();
    let flags = rustix::process::PidfdFlags::empty();
    let pidfd = rustix::process::pidfd_open(raw, flags).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    let handed = |slot| PidSpec {
        process: Some(pid_spec::Process::Slot(slot)),
        ..PidSpec::default()
    };
    let id = scene.add(Spec::Pid(handed(handover.give(&pidfd)))).await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(7)));
    scene.closed(id).await;
    assert_eq!(status(scene, id).await.pid, 0);
    let (reader, _writer) = std::io::pipe().unwrap();
    let request = scene.request(Spec::Pid(handed(handover.give(&reader))));
    let refused = refusal(&scene.try_add(request).await.unwrap_err());
    assert_eq!(
        (refused.code, refused.word("field")),
        (Code::InvalidArgument, "spec.pid.slot")
    );
}

async fn a_finished_watch_is_found_again_by_name(scene: &mut Scene) {
    let mut child = stranger("read x; exit 7");
    let spec = of(pid(&child));
    let request = |scene: &Scene| {
        let mut request = scene.request(Spec::Pid(spec.clone()));
        request.name = "editor".into();
        request.if_exists = IfExists::Return.into();
        request
    };
    let first = request(scene);
    let id = scene.try_add(first).await.unwrap().watch.unwrap().watch_id;
    drop(child.stdin.take());
    child.wait().unwrap();
    scene.closed(id).await;
    let again = request(scene);
    let answer = scene.daemon.watches().add_watch(again).await.unwrap();
    let AddWatchResponse { watch, existed, .. } = answer.into_inner();
    assert!(existed && watch.unwrap().watch_id == id);
}

async fn a_removed_watch_leaves_the_process_alone(scene: &mut Scene) {
    let mut child = stranger("read x; exit 7");
    let id = scene.add(Spec::Pid(of(pid(&child)))).await;
    let removed = scene.remove(id).await;
    scene.recorder.reach(removed).await;
    assert_eq!(scene.recorder.kinds(id), ["added", "closed", "removed"]);
    assert_eq!(scene.closed(id).await.reason(), CloseReason::Removed);
    assert!(child.try_wait().unwrap().is_none());
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

async fn pid_watches_leave_no_descriptors(scene: &mut Scene) {
    let mut children: Vec<Child> = (0..20).map(|_| stranger("read x")).collect();
    // The first one may open what the loop keeps.
    let first = scene.add(Spec::Pid(of(pid(&children[0])))).await;
    scene.remove(first).await;
    let before = scene.daemon.open_fds().await;
    let mut ids = Vec::new();
    for child in &children {
        let spec = PidSpec {
            reap_wait: Some(lasting(Duration::from_secs(3600))),
            ..of(pid(child))
        };
        ids.push(scene.add(Spec::Pid(spec)).await);
    }
    assert_eq!(scene.daemon.open_fds().await, before + 20);
    for (child, id) in children.iter_mut().zip(&ids) {
        drop(child.stdin.take());
        scene.recorder.first(*id, "ended").await;
    }
    for child in &mut children {
        child.wait().unwrap();
    }
    for id in ids {
        scene.closed(id).await;
    }
    let after = |status: &evloopd::proto::GetStatusResponse| status.open_fds <= Some(before + 1);
    scene.daemon.until("closed pidfds", after).await;
}
