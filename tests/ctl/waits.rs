//! `wait`, `stop` and `kill` when the end of a process cannot be heard of as usual.

use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Daemon, directory, within};
use crate::program::{Following, ctl};

/// The pid of the process with that name.
async fn pid(daemon: &Daemon, name: &str) -> Pid {
    let shown = ctl(&daemon.socket, &["show", name, "--json"])
        .await
        .values();
    let pid = shown[0]["process"]["pid"].as_i64().unwrap();
    Pid::from_raw(pid.try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_bounded_wait_that_fails_is_no_success() {
    let dir = directory();
    let mut daemon = Daemon::start_in(Arc::clone(&dir), "", &[]).await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await;
    on(&["run", "--name", "over", "--", "true"]).await.good();
    on(&["run", "-d", "--name", "job", "--", "sleep", "1000"])
        .await
        .good();
    let left = pid(&daemon, "job").await;
    let words = ["wait", "--timeout", "1h", "over", "job"];
    let mut wait = Following::start(&daemon.socket, &words);
    assert_eq!(wait.line().await, "over  exited with 0");
    daemon.signal(Signal::SIGKILL);
    daemon.ended().await;
    let _another = Daemon::start_in(dir, "", &[]).await;
    let ended = wait.ended().await;
    kill(left, Signal::SIGKILL).unwrap();
    assert_eq!(ended.code, Some(125), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn on_a_stopped_loop_a_process_ends_and_is_known_to_have_ended() {
    let daemon = Daemon::start("").await;
    ctl(&daemon.socket, &["loop", "new", "scene"]).await.good();
    let on =
        async |words: &[&str]| ctl(&daemon.socket, &[&["--loop", "scene"], words].concat()).await;
    for name in ["killed", "stopped"] {
        on(&["run", "-d", "--name", name, "--", "sleep", "1000"])
            .await
            .good();
    }
    on(&["loop", "stop", "scene"]).await.good();
    on(&["kill", "-KILL", "killed"]).await.good();
    within("a killed process to have ended", async {
        while on(&["kill", "-0", "killed"]).await.code == Some(0) {}
    })
    .await;
    on(&["kill", "-0", "killed"])
        .await
        .failed(1, &["kill: killed ended, not told yet"]);
    on(&["stop", "--time", "1h", "killed", "stopped"])
        .await
        .good();
    assert_eq!(on(&["ps", "-q", "--running"]).await.good(), "");
    let ended = on(&["ps", "-q", "--filter", "status=ended"]).await.good();
    assert_eq!(ended, "killed\nstopped\n");
    on(&["loop", "run", "scene"]).await.good();
    assert_eq!(on(&["wait", "killed"]).await.code, Some(137));
    assert_eq!(on(&["wait", "stopped"]).await.code, Some(143));
}
