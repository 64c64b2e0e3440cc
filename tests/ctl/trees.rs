//! `stop` and `kill` with all descendants, `status` of their cgroups, and `watch pid`.

use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Daemon, within};
use crate::program::{Following, ctl};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn watch_pid_prints_how_a_stranger_ends_and_names_the_field_of_one_that_is_not_there() {
    let daemon = Daemon::start("").await;
    let mut stranger = Command::new("sh")
        .args(["-c", "read x; exit 7"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = stranger.id().to_string();
    let mut events = Following::start(
        &daemon.socket,
        &["watch", "pid", &pid, "--name", "it", "-f"],
    );
    let there = async || ctl(&daemon.socket, &["show", "it"]).await;
    within("the watch", async {
        while there().await.code != Some(0) {}
    })
    .await;
    let shown = ctl(&daemon.socket, &["show", "it"]).await.good();
    assert!(shown.contains(&format!("pid {pid}")), "{shown}");
    drop(stranger.stdin.take());
    assert!(events.line().await.ends_with("ended"));
    stranger.wait().unwrap();
    assert!(events.line().await.ends_with("exited with 7"));
    assert!(events.line().await.ends_with("closed: completed"));
    events.ended().await.good();
    let shown = ctl(&daemon.socket, &["show", "it"]).await.good();
    assert!(shown.contains("exited with 7"), "{shown}");
    ctl(&daemon.socket, &["watch", "pid", &pid])
        .await
        .failed(1, &["pid: ", &format!("there is no process {pid}")]);
    ctl(&daemon.socket, &["watch", "pid", "fd:9"])
        .await
        .failed(1, &["fd 9"]);
    ctl(&daemon.socket, &["watch", "pid", "0"])
        .await
        .failed(2, &["must be a process id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn stop_sends_the_runs_own_signal_and_names_what_may_have_escaped() {
    let daemon = Daemon::start("[children]\ncgroups = \"off\"\n").await;
    let line = "(setsid sh -c 'echo $$; exec sleep 3600' &); trap 'exit 7' USR1; trap '' TERM; \
                while :; do sleep 0.05; done";
    let words = [
        "run",
        "-d",
        "--name",
        "job",
        "--stop-signal",
        "USR1",
        "--",
        "sh",
        "-c",
        line,
    ];
    ctl(&daemon.socket, &words).await.good();
    let mut logs = Following::start(&daemon.socket, &["logs", "-f", "job"]);
    let escaped = logs.line().await;
    let stopped = ctl(&daemon.socket, &["stop", "job"]).await;
    assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
    let note = format!(
        "job may have left 1 process behind that cannot be told from others: pid {escaped}"
    );
    assert_eq!(stopped.stderr.trim(), note);
    kill(Pid::from_raw(escaped.parse().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(ctl(&daemon.socket, &["wait", "job"]).await.code, Some(7));
    let status = ctl(&daemon.socket, &["status"]).await.good();
    assert!(
        status.contains("none for each process: [children] cgroups"),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn kill_tree_reaches_other_sessions_and_ps_shows_what_all_of_it_has_used() {
    let daemon = Daemon::start("").await;
    let line = "setsid sh -c 'echo up; exec sleep 3600' & wait";
    ctl(
        &daemon.socket,
        &["run", "-d", "--name", "job", "--", "sh", "-c", line],
    )
    .await
    .good();
    let mut logs = Following::start(&daemon.socket, &["logs", "-f", "job"]);
    assert_eq!(logs.line().await, "up");
    let place = daemon.status().await.cgroups;
    let (list, status) = (
        ctl(&daemon.socket, &["ps"]).await.good(),
        ctl(&daemon.socket, &["status"]).await.good(),
    );
    if place.is_empty() {
        eprintln!("SKIPPED: no cgroups can be made here");
    } else {
        assert!(list.lines().next().unwrap().contains(" CPU "), "{list}");
        assert!(
            status.contains(&format!("one for each process, below {place}")),
            "{status}"
        );
        let shown = ctl(&daemon.socket, &["show", "job"]).await.good();
        assert!(
            shown.contains("with descendants") && shown.contains(&place),
            "{shown}"
        );
    }
    ctl(&daemon.socket, &["kill", "--tree", "-9", "job"])
        .await
        .good();
    // The other session held its output.
    assert_eq!(logs.line_or_end().await, None);
    assert_eq!(
        ctl(&daemon.socket, &["wait", "job"]).await.code,
        Some(128 + 9)
    );
}
