//! A daemon under a real seccomp filter, which denies io_uring as container runtimes do, or a flag
//! that kernels before 6.9 do not have.

use std::collections::BTreeMap;
use std::sync::Arc;

use evloopd::proto::*;
use nix::unistd::Pid;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use tempfile::TempDir;
use tokio::process::Command;
use tonic::Code;

use crate::common::{Daemon, Scene, command, directory, log, millis, refused, shell, within};

/// The number of io_uring_setup(2), the same on every architecture.
const IO_URING_SETUP: i64 = 425;

/// The number of pidfd_send_signal(2), the same on every architecture.
const PIDFD_SEND_SIGNAL: i64 = 424;
/// The flag of pidfd_send_signal(2) that signals a process group, since Linux 6.9.
const PIDFD_SIGNAL_PROCESS_GROUP: u64 = 1 << 2;

/// Starts a daemon for which io_uring_setup(2) fails with `EPERM`.
async fn denied(config: &str) -> Daemon {
    without((IO_URING_SETUP, Vec::new()), Errno::PERM, config).await
}

/// Starts a daemon that cannot signal a process group through a pidfd.
async fn before_6_9() -> Daemon {
    let flag = SeccompCondition::new(
        3,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        PIDFD_SIGNAL_PROCESS_GROUP,
    );
    let rule = SeccompRule::new(vec![flag.unwrap()]).unwrap();
    without((PIDFD_SEND_SIGNAL, vec![rule]), Errno::INVAL, "").await
}

/// Starts a daemon for which that system call fails with `errno`.
async fn without(call: (i64, Vec<SeccompRule>), errno: Errno, config: &str) -> Daemon {
    let (dir, command) = command_without(call, errno, config);
    Daemon::start_as(dir, command).await
}

fn command_without(
    call: (i64, Vec<SeccompRule>),
    errno: Errno,
    config: &str,
) -> (Arc<TempDir>, Command) {
    let errno = u32::try_from(errno.raw_os_error()).unwrap();
    let filter = SeccompFilter::new(
        BTreeMap::from([call]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program = BpfProgram::try_from(filter.unwrap()).unwrap();
    let dir = directory();
    let mut command = command(dir.path(), &format!("version = 1\n{config}"), &[]);
    // SAFETY: between fork and exec the closure only makes a system call, on memory prepared
    // before.
    unsafe {
        command.pre_exec(move || seccompiler::apply_filter(&program).map_err(std::io::Error::other))
    };
    (dir, command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_configured_loop_without_an_available_backend_fails_the_check() {
    let config = "[[loop]]\nname = \"a\"\n[[loop]]\nname = \"b\"\npolicy = \"proactor\"";
    for check in [true, false] {
        let call = (IO_URING_SETUP, Vec::new());
        let (dir, mut command) = command_without(call, Errno::PERM, config);
        if check {
            command.arg("--check-config");
        }
        let status = within("the end of the program", command.status())
            .await
            .unwrap();
        let said = log(dir.path());
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("evloopd.toml:6: loop[1].policy: "), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

async fn make(daemon: &Daemon, policy: &str, backend: &str) -> Result<Loop, tonic::Status> {
    let request = NewEventLoopRequest {
        policy: policy.into(),
        backend: backend.into(),
        ..NewEventLoopRequest::default()
    };
    let answer = daemon.policies().new_event_loop(request).await?;
    Ok(answer.into_inner().r#loop.expect("the loop"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_denied_io_uring_is_unavailable_and_the_cause_is_named() {
    let daemon =
        denied("[policy.fallback]\nclass = \"proactor\"\nbackends = [\"io_uring\", \"auto\"]")
            .await;
    let answer = daemon
        .policies()
        .list_backends(ListBackendsRequest {})
        .await;
    let backends = answer.unwrap().into_inner().backends;
    let io_uring = backends.iter().find(|b| b.name == "io_uring").unwrap();
    assert!(!io_uring.available);
    for word in ["seccomp", "io_uring_setup", "Operation not permitted"] {
        assert!(io_uring.unavailable_reason.contains(word), "{io_uring:?}");
    }
    // The capabilities of the unavailable backend are listed all the same.
    assert!(!io_uring.capabilities.is_empty());

    for (policy, backend, named) in [
        ("proactor", "", "auto"),
        ("proactor", "io_uring", "io_uring"),
        ("windows-proactor-compat", "", "auto"),
        ("fallback", "", "auto"),
    ] {
        let refusal = make(&daemon, policy, backend).await;
        let refusal = refused(refusal, Code::FailedPrecondition, "BACKEND_UNAVAILABLE");
        assert_eq!(refusal.word("backend"), named);
        assert!(refusal.word("reason").contains("seccomp"), "{refusal:?}");
    }
    // Loops of the selector class are not affected.
    assert_eq!(make(&daemon, "", "").await.unwrap().backend, "epoll");
}

/// A process group of two. The other member ignores SIGTERM, so that only SIGKILL ends it, and
/// holds the FIFO open for writing.
fn with_a_stubborn_other(fifo: &std::path::Path, exit: &str) -> ProcessSpec {
    let fifo = fifo.display();
    let line = format!("(trap '' TERM; echo up; while :; do sleep 1; done) > {fifo} & {exit}");
    ProcessSpec {
        pipe_grace: Some(millis(50)),
        ..shell(&line)
    }
}

/// Opens the FIFO for reading, which waits for a writer. The future that it returns waits until no
/// writer has it open any more.
async fn read_out(fifo: std::path::PathBuf) -> impl Future<Output = ()> {
    let (tell_open, open) = tokio::sync::oneshot::channel();
    let (tell, told) = tokio::sync::oneshot::channel();
    // A thread of its own: the end of a failed test would wait for one of the runtime's pool.
    std::thread::spawn(move || {
        let file = std::fs::File::open(fifo);
        let _ = tell_open.send(());
        tell.send(file.and_then(std::io::read_to_string))
    });
    within("a writer", open).await.expect("the thread tells");
    async {
        let read = within("the end of the last writer", told).await;
        read.expect("the thread tells").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_group_signals_by_pidfd_the_whole_group_ends_with_its_watch() {
    // In the first case the leader runs until it is killed; in the second it has already exited.
    for (exit, lasts) in [("wait", true), ("exit 7", false)] {
        let mut scene = Scene::new(before_6_9().await, "", "").await;
        let fifo = scene.daemon.dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let id = scene.spawn(with_a_stubborn_other(&fifo, exit)).await;
        let pid = Pid::from_raw(scene.started(id).await);
        let reading = read_out(fifo).await;
        if !lasts {
            scene.exited(id).await;
        }
        scene.remove(id).await;
        reading.await;
        assert!(
            nix::sys::signal::kill(pid, None).is_err(),
            "the leader was reaped"
        );
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_group_signals_by_pidfd_a_group_is_signalled_by_number_until_its_leader_is_reaped()
{
    let mut scene = Scene::new(before_6_9().await, "", "").await;
    let spec = ProcessSpec {
        after_grace: AfterGrace::KeepReading.into(),
        ..shell("(trap 'echo seen; exit' USR1; echo up; while :; do sleep 0.05; done) & exit 7")
    };
    let id = scene.spawn(spec).await;
    scene.recorder.first(id, "data").await;
    scene.exited(id).await;
    // The child has exited but is not reaped, so no other process can have its number.
    let leader = Pid::from_raw(scene.started(id).await);
    nix::sys::signal::kill(leader, None).expect("the leader is not reaped yet");
    scene.send_signal(id, "SIGUSR1", SignalTarget::Group).await;
    scene.closed(id).await;
    assert_eq!(scene.recorder.bytes(id, Stream::Stdout), b"up\nseen\n");
    assert!(
        nix::sys::signal::kill(leader, None).is_err(),
        "the leader was reaped"
    );
    scene.finish().await;
}
