//! Clients of a loop that does not run, and of a daemon that does not answer: they report it and
//! can be ended.

use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;

use crate::common::{Daemon, directory, within};
use crate::program::{Ended, Following, ctl};

const STOPPED: &str =
    "the loop scene is stopped: it delivers no events until `evloopctl loop run scene`";

async fn scene() -> Daemon {
    let daemon = Daemon::start("").await;
    ctl(&daemon.socket, &["loop", "new", "scene"]).await.good();
    daemon
}

async fn on(daemon: &Daemon, words: &[&str]) -> Ended {
    ctl(&daemon.socket, &[&["--loop", "scene"], words].concat()).await
}

fn follow(daemon: &Daemon, words: &[&str]) -> Following {
    Following::start(&daemon.socket, &[&["--loop", "scene"], words].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn clients_of_a_stopped_loop_report_it_at_once_and_can_be_ended() {
    let daemon = scene().await;
    on(
        &daemon,
        &["run", "-d", "--name", "job", "--", "sleep", "1000"],
    )
    .await
    .good();
    on(&daemon, &["loop", "stop", "scene"]).await.good();
    let waiting = [
        &["run", "--name", "job", "--", "sleep", "1000"][..],
        &["run", "--", "echo", "new"],
        &["attach", "job"],
        &["logs", "-f", "job"],
        &["wait", "job"],
        &["every", "1h"],
    ];
    for words in waiting {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
            let mut client = follow(&daemon, words);
            let mut told = client.complaint().await;
            if told.starts_with("next: ") {
                told = client.complaint().await;
            }
            assert!(told.contains(STOPPED), "{words:?}: {told}");
            client.signal(signal);
            let ended = client.ended().await;
            assert_eq!(ended.signal, Some(signal as i32), "{words:?}: {ended:?}");
        }
    }
    let last = follow(&daemon, &["attach", "job"]);
    on(&daemon, &["loop", "run", "scene"]).await.good();
    let ended = last.ended().await;
    assert_eq!(ended.code, Some(143), "the signal was passed on: {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_loop_that_is_stopped_later_is_reported_as_well() {
    let daemon = scene().await;
    let line = "echo here; exec sleep 1000";
    let mut client = follow(&daemon, &["run", "--name", "job", "--", "sh", "-c", line]);
    assert_eq!(client.line().await, "here");
    on(&daemon, &["loop", "stop", "scene"]).await.good();
    let told = client.complaint().await;
    assert!(told.contains(STOPPED), "{told}");
    client.signal(Signal::SIGTERM);
    let ended = client.ended().await;
    assert_eq!(ended.signal, Some(15), "{ended:?}");
    assert!(ended.stderr.contains("SIGTERM was passed on"), "{ended:?}");
    on(&daemon, &["loop", "run", "scene"]).await.good();
    assert_eq!(on(&daemon, &["wait", "job"]).await.code, Some(143));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn clients_of_a_daemon_that_does_not_answer_can_be_ended() {
    let daemon = scene().await;
    let line = "trap '' TERM INT; echo here; while :; do sleep 1; done";
    let attach = async |words: &[&str]| {
        let mut client = follow(&daemon, words);
        assert_eq!(client.line().await, "here");
        client
    };
    let run = ["run", "--name", "job", "--", "sh", "-c", line];
    let (by_term, by_keys) = (attach(&run).await, attach(&run).await);
    daemon.signal(Signal::SIGSTOP);
    by_term.signal(Signal::SIGTERM);
    // The second SIGINT comes while the daemon has not answered the first.
    by_keys.signal(Signal::SIGINT);
    let (_dir, silent) = silent();
    let before_any_answer = Following::start(&silent, &run);
    let pid = before_any_answer.pid();
    within("its signal handlers", catches(pid, Signal::SIGTERM)).await;
    before_any_answer.signal(Signal::SIGTERM);
    let ended = before_any_answer.ended().await;
    assert_eq!(ended.signal, Some(15), "{ended:?}");
    assert!(
        ended.stderr.contains("before the daemon answered"),
        "{ended:?}"
    );
    let ended = by_term.ended().await;
    assert_eq!(ended.signal, Some(15), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("was not passed on: daemon: no answer"),
        "{ended:?}"
    );
    by_keys.signal(Signal::SIGINT);
    assert_eq!(by_keys.ended().await.signal, Some(2));
    daemon.signal(Signal::SIGCONT);
    on(&daemon, &["kill", "-s", "KILL", "job"]).await.good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_waits_for_what_a_consumer_holds_up_hears_of_it_and_can_be_ended() {
    let config = "[policy.small]\nextends = \"default\"\njournal_bytes = \"64KiB\"\n";
    let daemon = Daemon::start(config).await;
    for (signal, on) in [(Signal::SIGTERM, "one"), (Signal::SIGINT, "two")] {
        let ctl = async |words: &[&str]| {
            let words = [&["--loop", on], words].concat();
            ctl(&daemon.socket, &words).await
        };
        let follow =
            |words: &[&str]| Following::start(&daemon.socket, &[&["--loop", on], words].concat());
        ctl(&["loop", "new", on, "--policy", "small"]).await.good();
        ctl(&["consumer", "create", "left"]).await.good();
        let mut run = follow(&["run", "--name", "job", "--", "seq", "100000"]);
        let holder = "the consumer left has not acknowledged ";
        let advice = format!("`evloopctl consumer delete left --loop {on}`");
        let told = run.complaint().await;
        let why = format!(
            "the loop does not read the output of job, because the journal is full: {holder}"
        );
        assert!(told.contains(&why) && told.contains(&advice), "{told}");
        let mut wait = follow(&["wait", "job"]);
        assert!(wait.complaint().await.contains(&why));
        let ps = ctl(&["ps"]).await;
        assert!(ps.stderr.contains("job is paused: ") && ps.stderr.contains(&advice));
        let show = ctl(&["show", "job"]).await.good();
        assert!(show.contains(holder) && show.contains(&advice), "{show}");
        let status = ctl(&["status"]).await.good();
        assert!(status.contains(holder), "{status}");

        run.signal(signal);
        let ended = run.ended().await;
        assert_eq!(ended.signal, Some(signal as i32), "{ended:?}");
        let passed_on = format!("{signal} was passed on, but {why}");
        assert!(ended.stderr.contains(&passed_on), "{ended:?}");
        ctl(&["consumer", "delete", "left"]).await.good();
        assert_eq!(wait.ended().await.code, Some(128 + signal as i32));
    }
}

/// The socket of a daemon that stopped just after it took a connection.
fn silent() -> (Arc<TempDir>, PathBuf) {
    let dir = directory();
    let path = dir.path().join("silent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // An empty SETTINGS frame, so that the client takes the peer for an HTTP/2 server.
        stream
            .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        std::future::pending::<()>().await;
    });
    (dir, path)
}

/// Waits until the process has a handler for the signal (proc_pid_status(5), SigCgt).
async fn catches(pid: nix::unistd::Pid, signal: Signal) {
    let caught = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
        caught & (1 << (signal as i32 - 1)) != 0
    };
    within("a handler of the signal", async {
        while !caught() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
