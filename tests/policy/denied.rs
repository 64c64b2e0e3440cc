//! A daemon that a seccomp filter really keeps from io_uring, as containers do.

use std::collections::BTreeMap;

use evloopd::proto::*;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tonic::Code;

use crate::common::{Daemon, command, directory, refused};

/// Number of io_uring_setup(2), the same on every architecture.
const IO_URING_SETUP: i64 = 425;

/// A daemon for which io_uring_setup(2) fails with `EPERM`.
async fn denied(config: &str) -> Daemon {
    let eperm = u32::try_from(rustix::io::Errno::PERM.raw_os_error()).unwrap();
    let filter = SeccompFilter::new(
        BTreeMap::from([(IO_URING_SETUP, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(eperm),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program = BpfProgram::try_from(filter.unwrap()).unwrap();
    let dir = directory();
    let mut command = command(dir.path(), &format!("version = 1\n{config}"), &[]);
    // SAFETY: between fork and exec it only makes system calls, with what is there already.
    unsafe {
        command.pre_exec(move || seccompiler::apply_filter(&program).map_err(std::io::Error::other))
    };
    Daemon::start_as(dir, command).await
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
async fn io_uring_that_is_denied_is_unavailable_and_the_cause_is_named() {
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
    // What it could do is known all the same.
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
    // The other class is not concerned.
    assert_eq!(make(&daemon, "", "").await.unwrap().backend, "epoll");
}
