//! A backend that fails. The daemon runs in this very process, and the test replaces the descriptor
//! of the backend's kernel object by `/dev/null`. This file has only one test, because the test
//! takes every epoll or io_uring descriptor that appears meanwhile for that of its loop.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]
#![allow(unsafe_code)]

mod common;

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::{Handover, connect, loop_named, reader, shell, within};
use evloopd::config::Config;
use evloopd::proto::admin_service_client::AdminServiceClient;
use evloopd::proto::event::Kind;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::policy_service_client::PolicyServiceClient;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use rustix::fs::{CWD, Mode, OFlags, openat};

/// Returns the descriptors of this process that are epoll or io_uring instances.
fn instances() -> BTreeSet<i32> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter_map(|entry| {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).ok()?;
        let target = target.to_str()?;
        let instance = target.contains("[eventpoll]") || target.contains("[io_uring]");
        let number = entry.file_name().to_str()?.parse().ok()?;
        instance.then_some(number)
    })
    .collect()
}

/// Makes the descriptor `instance` refer to `/dev/null`.
fn break_it(instance: i32) {
    let null = openat(
        CWD,
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap();
    // SAFETY: dup2(2) takes plain numbers. The daemon loses its descriptor, which is what is
    // tested.
    let done = unsafe { nix::libc::dup2(null.as_raw_fd(), instance) };
    assert_eq!(done, instance);
}

async fn closes(socket: &Path, policy: &str) {
    let channel = connect(socket).await;
    let info = AdminServiceClient::new(channel.clone())
        .get_server_info(GetServerInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let handover = Handover::connect(Path::new(&info.handover_socket));
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let slot = handover.give(&ours);
    let before = instances();
    let name = format!("breaks-{policy}");
    let target = Some(loop_named(&name));
    let mut policies = PolicyServiceClient::new(channel.clone());
    let request = NewEventLoopRequest {
        name,
        policy: policy.into(),
        ..NewEventLoopRequest::default()
    };
    policies.new_event_loop(request).await.unwrap();
    let mut watches = WatchServiceClient::new(channel.clone());
    let made: Vec<i32> = instances().difference(&before).copied().collect();
    for spec in [reader(slot), Spec::Process(shell("sleep 1000"))] {
        let request = AddWatchRequest {
            r#loop: target.clone(),
            spec: Some(WatchSpec { spec: Some(spec) }),
            ..AddWatchRequest::default()
        };
        watches.add_watch(request).await.unwrap();
    }
    let [instance] = made.as_slice() else {
        panic!("expected one new instance: {made:?}");
    };
    break_it(*instance);
    // This wakes the loop's thread, as every call does that needs it.
    let request = GetWatchRequest {
        r#loop: target.clone(),
        watch: common::by_id(1),
    };
    let _ = watches.get_watch(request).await;
    let mut events = EventServiceClient::new(channel);
    let mut seen: Vec<Event> = Vec::new();
    within("the loop's end", async {
        let closed = |event: &Event| match &event.kind {
            Some(Kind::LoopStateChanged(changed)) => changed.state() == LoopState::Closed,
            _ => false,
        };
        while !seen.iter().any(closed) {
            let request = PollRequest {
                r#loop: target.clone(),
                after: Some(Cursor {
                    epoch: String::new(),
                    seq: seen.last().map_or(0, |event| event.seq),
                }),
                timeout: Some(common::millis(1000)),
                ..PollRequest::default()
            };
            let answer = events.poll(request).await.unwrap().into_inner();
            seen.extend(answer.batch.unwrap().events);
        }
    })
    .await;
    let closed: Vec<&Closed> = seen
        .iter()
        .filter_map(|event| match &event.kind {
            Some(Kind::Closed(closed)) => Some(closed),
            _ => None,
        })
        .collect();
    assert_eq!(closed.len(), 2, "each watch closes once");
    for closed in closed {
        assert_eq!(closed.reason(), CloseReason::Error);
        assert_eq!(closed.error.as_ref().unwrap().step, "wait");
    }
    let exits = seen
        .iter()
        .filter(|e| matches!(e.kind, Some(Kind::Exited(_))));
    assert_eq!(exits.count(), 1, "the killed child has one Exited");
}

#[test]
fn a_loop_whose_backend_fails_closes_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let mut config = Config::default();
    config.server.socket = Some(socket.clone());
    let daemon = std::thread::spawn(move || evloopd::daemon::run(config.into()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        within("the daemon", async {
            while UnixStream::connect(&socket).is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for policy in ["default", "proactor"] {
            closes(&socket, policy).await;
        }
    });
    // The daemon ends with this process: a SIGTERM would end the test harness.
    assert!(!daemon.is_finished());
}
