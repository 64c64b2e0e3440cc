//! The conformance suite: every case on every backend, over gRPC.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use crate::common::{Daemon, Scene};

#[path = "../common/mod.rs"]
mod common;

/// Runs each case as a separate test on each backend.
macro_rules! on_each_backend {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn epoll() {
                crate::on("", "epoll", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn poll() {
                crate::on("", "poll", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn select() {
                crate::on("", "select", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn io_uring() {
                crate::on("proactor", "io_uring", super::$case).await;
            }
        }
    )+};
}

/// Runs each case as a separate test on each backend, with a journal of 256 KiB.
macro_rules! on_each_backend_with_a_small_journal {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn epoll() {
                crate::on("tight", "epoll", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn poll() {
                crate::on("tight", "poll", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn select() {
                crate::on("tight", "select", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn io_uring() {
                crate::on("tight-proactor", "io_uring", super::$case).await;
            }
        }
    )+};
}

/// Runs each case as a separate test on each backend and with each child watcher.
macro_rules! on_each_child_watcher {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn epoll() {
                crate::on("", "epoll", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn poll() {
                crate::on("", "poll", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn select() {
                crate::on("", "select", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn io_uring() {
                crate::on("proactor", "io_uring", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn sigchld() {
                crate::on("sigchld", "epoll", super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn thread() {
                crate::on("thread", "epoll", super::$case).await;
            }
        }
    )+};
}

/// Runs each case as a separate test on each backend and with each child watcher, once with a cgroup
/// of its own for each child, and once without.
macro_rules! with_and_without_cgroups {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            with_and_without_cgroups! { @ $case epoll "" "epoll" }
            with_and_without_cgroups! { @ $case poll "" "poll" }
            with_and_without_cgroups! { @ $case select "" "select" }
            with_and_without_cgroups! { @ $case io_uring "proactor" "io_uring" }
            with_and_without_cgroups! { @ $case sigchld "sigchld" "epoll" }
            with_and_without_cgroups! { @ $case thread "thread" "epoll" }
        }
    )+};
    (@ $case:ident $name:ident $policy:literal $backend:literal) => {
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn with() {
                crate::on($policy, $backend, super::super::$case).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
            async fn without() {
                let off = "[children]\ncgroups = \"off\"\n";
                crate::on_with(off, $policy, $backend, super::super::$case).await;
            }
        }
    };
}

mod calendars;
mod child_streams;
mod child_users;
mod churn;
mod closes;
mod connecting;
mod connections;
mod datagram_drops;
mod datagram_groups;
mod datagram_links;
mod datagram_peers;
mod datagram_room;
mod datagrams;
mod disarming;
mod ends;
mod exec_failures;
mod fds;
mod file_room;
mod files;
mod lifetimes;
mod limits;
mod listeners;
mod paths;
mod paused;
mod pids;
mod pipes;
mod posts_and_signals;
mod processes;
mod pty_input;
mod pty_output;
mod ptys;
mod registrations;
mod resolving;
mod scenario;
mod shortage;
mod socket_options;
mod start_tls;
mod terminals;
mod timeouts;
mod timers;
mod tls;
mod tls_handshakes;
mod tls_listeners;
mod trees;
mod updates;
mod water_marks;
mod writing;

const CONFIG: &str = r#"
[signals]
allow = ["SIGUSR1", "SIGRTMIN+1"]
[policy.sigchld]
extends = "default"
child_watcher = "sigchld"
[policy.thread]
extends = "default"
child_watcher = "thread"
[policy.tight]
extends = "default"
journal_bytes = "256KiB"
journal_watch_bytes = "256KiB"
[policy.tight-proactor]
extends = "tight"
class = "proactor"
backends = ["io_uring"]
"#;

/// Runs one case on a daemon and a loop of its own.
async fn on(policy: &str, backend: &str, case: impl AsyncFnOnce(&mut Scene)) {
    on_with("", policy, backend, case).await;
}

/// As [`on`], with more configuration.
async fn on_with(more: &str, policy: &str, backend: &str, case: impl AsyncFnOnce(&mut Scene)) {
    let daemon = Daemon::start(&format!("{CONFIG}{more}")).await;
    let mut scene = Scene::new(daemon, policy, backend).await;
    case(&mut scene).await;
    scene.finish().await;
}
