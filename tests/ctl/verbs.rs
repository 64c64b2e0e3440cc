//! Verbs as people type them: several names, flags of other tools, and what a run leaves behind.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::Daemon;
use crate::program::{Ended, Following, coloured, ctl};

async fn names(daemon: &Daemon) -> Vec<String> {
    let listed = ctl(&daemon.socket, &["ps", "-q"]).await.good();
    listed.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unnamed_run_that_succeeds_is_removed_and_a_run_with_rm_always() {
    let daemon = Daemon::start("").await;
    let run = async |words: &[&str]| ctl(&daemon.socket, &[&["run"], words].concat()).await;
    run(&["--", "true"]).await.good();
    assert!(names(&daemon).await.is_empty());
    assert_eq!(run(&["--", "false"]).await.code, Some(1));
    assert_eq!(
        names(&daemon).await.len(),
        1,
        "the failed run is kept, so that its output can be read"
    );
    ctl(&daemon.socket, &["rm", "--all"]).await.good();
    run(&["--name", "kept", "--", "true"]).await.good();
    assert_eq!(names(&daemon).await, ["kept"]);
    // With --rm the output is complete and the exit code is that of the process.
    let once = run(&[
        "--rm",
        "--name",
        "once",
        "--",
        "sh",
        "-c",
        "echo out; exit 3",
    ])
    .await;
    assert_eq!((once.code, once.stdout.as_str()), (Some(3), "out\n"));
    // A process that existed is joined, and then removed all the same.
    run(&["--name", "joined", "--", "true"]).await.good();
    run(&["--rm", "--name", "joined", "--", "true"])
        .await
        .good();
    assert_eq!(names(&daemon).await, ["kept"]);
    let started = run(&["--rm", "-d", "--name", "away", "--", "true"]).await;
    assert_eq!(started.good(), "away\n");
    let mut feed = Following::start(&daemon.socket, &["events", "-f", "--oldest", "--json"]);
    loop {
        let event: Value = serde_json::from_str(&feed.line().await).unwrap();
        if event["kind"] == "removed" && event["watch_id"] == 6 {
            break;
        }
    }
    assert_eq!(names(&daemon).await, ["kept"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn several_processes_are_waited_for_at_once_and_the_first_failure_is_the_exit_code() {
    let daemon = Daemon::start("").await;
    for (name, line) in [
        ("slow", "read line; exit 4"),
        ("quick", "exit 3"),
        ("good", "exit 0"),
    ] {
        let words = ["run", "-di", "--name", name, "--", "sh", "-c", line];
        ctl(&daemon.socket, &words).await.good();
    }
    let mut waiting = Following::start(&daemon.socket, &["wait", "good", "slow", "quick"]);
    let mut lines = vec![waiting.line().await, waiting.line().await];
    ctl(&daemon.socket, &["write", "slow", "go\n"]).await.good();
    let ended = waiting.ended().await;
    lines.extend(ended.stdout.lines().map(str::to_owned));
    lines.sort();
    assert_eq!(
        lines,
        [
            "good  exited with 0",
            "quick  exited with 3",
            "slow  exited with 4"
        ]
    );
    // The first in the order of the names, not of the ends.
    assert_eq!(ended.code, Some(4));
    let again = ctl(&daemon.socket, &["wait", "quick", "good", "--json"]).await;
    assert_eq!(again.code, Some(3));
    let codes = again
        .values()
        .into_iter()
        .map(|v| v["process"]["exited"]["code"].clone());
    assert_eq!(codes.collect::<Vec<_>>().len(), 2);
    let missing = ctl(&daemon.socket, &["wait", "nobody", "good", "nowhere"]).await;
    assert_eq!(
        (missing.code, missing.stderr.lines().count()),
        (Some(125), 2),
        "{missing:?}"
    );
    ctl(
        &daemon.socket,
        &["watch", "timer", "--every", "1h", "--name", "tick"],
    )
    .await
    .good();
    ctl(&daemon.socket, &["wait", "tick"])
        .await
        .failed(125, &["tick: it is a timer, not a process"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn stop_ends_processes_that_ignore_the_signal_or_are_stopped_and_accepts_ended_ones() {
    let daemon = Daemon::start("").await;
    let run = async |name: &str, line: &str| {
        let words = ["run", "-d", "--name", name, "--", "sh", "-c", line];
        ctl(&daemon.socket, &words).await.good();
    };
    run("deaf", "trap '' TERM; echo up; while :; do sleep 0.1; done").await;
    run("asleep", "echo up; while :; do sleep 0.1; done").await;
    run("over", "exit 3").await;
    for name in ["deaf", "asleep"] {
        let mut logs = Following::start(&daemon.socket, &["logs", "-f", name]);
        assert_eq!(logs.line().await, "up");
    }
    ctl(&daemon.socket, &["kill", "-STOP", "asleep"])
        .await
        .good();
    ctl(&daemon.socket, &["wait", "over"]).await;
    let stopped = ctl(
        &daemon.socket,
        &["stop", "-t", "300ms", "deaf", "asleep", "over"],
    )
    .await;
    stopped.good();
    let code = async |name| ctl(&daemon.socket, &["wait", name]).await.code;
    assert_eq!(code("deaf").await, Some(128 + Signal::SIGKILL as i32));
    assert_eq!(code("asleep").await, Some(128 + Signal::SIGTERM as i32));
    assert_eq!(code("over").await, Some(3));
    let wrong = ctl(&daemon.socket, &["stop", "over", "nobody"]).await;
    wrong.failed(1, &["stop: there is no `nobody`"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rm_all_removes_ended_processes_or_with_force_everything() {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await;
    on(&["run", "--name", "over", "--", "true"]).await.good();
    on(&["run", "-d", "--name", "up", "--", "sleep", "1000"])
        .await
        .good();
    on(&["watch", "timer", "--every", "1h", "--name", "tick"])
        .await
        .good();
    assert_eq!(on(&["rm", "--all"]).await.good(), "over\n");
    let left: Vec<_> = on(&["watch", "list", "--json"]).await.values();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(on(&["rm", "-af"]).await.good(), "up\ntick\n");
    assert!(on(&["watch", "list", "--json"]).await.values().is_empty());
    on(&["rm", "up"]).await.failed(1, &["rm: there is no `up`"]);
    on(&["rm", "-f", "up"]).await.good();
    on(&["rm", "--all", "up"]).await.failed(2, &["--all"]);
    on(&["rm"]).await.failed(2, &["missing"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn show_finds_a_name_of_any_kind_of_object() {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await;
    on(&["run", "--name", "x", "--", "true"]).await.good();
    on(&["loop", "new", "x"]).await.good();
    on(&["consumer", "create", "x"]).await.good();
    on(&["consumer", "create", "audit"]).await.good();
    let shown = on(&["show", "x"]).await;
    for other in ["--kind loop x", "--kind consumer x"] {
        assert!(shown.stderr.contains(other), "{shown:?}");
    }
    let shown = shown.good();
    assert!(shown.starts_with("x  process, exited with 0"), "{shown}");
    let field = async |words: &[&str], field: &str| {
        let shown = on(&[&["show", "--json"], words].concat()).await;
        shown.values()[0].get(field).is_some()
    };
    assert!(field(&["x"], "watch_kind").await && field(&["@1"], "watch_kind").await);
    assert!(field(&["--kind", "loop", "x"], "backend").await);
    assert!(field(&["--kind", "consumer", "x"], "lag_events").await);
    assert!(field(&["audit"], "lag_events").await && field(&["default"], "backend").await);
    on(&["show", "nobody"])
        .await
        .failed(1, &["show: there is no `nobody`"]);
    let closest = on(&["show", "--kind", "consumer", "audti"]).await;
    closest.failed(1, &["did you mean `audit`?"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_name_on_another_loop_and_an_id_without_its_sign_are_recognised() {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await;
    on(&["loop", "new", "ci"]).await.good();
    on(&["--loop", "ci", "run", "--name", "build", "--", "true"])
        .await
        .good();
    on(&["run", "--name", "here", "--", "true"]).await.good();
    on(&["logs", "build"])
        .await
        .failed(125, &["logs: there is no `build`", "add `--loop ci`"]);
    on(&["kill", "1"])
        .await
        .failed(1, &["an id is written `@1`"]);
    on(&["kill", "here"])
        .await
        .failed(1, &["kill: here exited with 0, "]);
    on(&["loop", "get", "cii"])
        .await
        .failed(1, &["did you mean `ci`?"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn colours_are_for_terminals_and_on_request() {
    let daemon = Daemon::start("").await;
    let words = ["run", "--name", "x", "--", "sh", "-c", "exit 3"];
    assert_eq!(ctl(&daemon.socket, &words).await.code, Some(3));
    let plain = |ended: &Ended| !ended.stdout.contains('\x1b');
    for words in [&["ps"][..], &["show", "x"], &["status"], &["loop", "list"]] {
        let shown = ctl(&daemon.socket, words).await;
        assert!(plain(&shown), "{shown:?}");
        let shown = coloured(&daemon.socket, words).await;
        assert!(!plain(&shown), "{shown:?}");
    }
    let json = coloured(&daemon.socket, &["ps", "--json"]).await;
    assert!(plain(&json), "{json:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ps_watch_shows_what_comes_and_goes() {
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| ctl(&daemon.socket, words).await.good();
    on(&["run", "-di", "--name", "one", "--", "cat"]).await;
    let mut lines = Following::start(&daemon.socket, &["ps", "--watch", "--json"]);
    let mut tables = Following::start(&daemon.socket, &["ps", "--watch"]);
    let next = async |lines: &mut Following| -> Value {
        serde_json::from_str(&lines.line().await).unwrap()
    };
    assert_eq!(next(&mut lines).await["name"], "one");
    assert!(tables.line().await.starts_with("NAME"));
    assert!(tables.line().await.contains("running"));
    on(&["run", "-di", "--name", "two", "--", "cat"]).await;
    assert_eq!(next(&mut lines).await["name"], "two");
    // No event tells of these.
    for (signal, stopped) in [("-STOP", true), ("-CONT", false)] {
        on(&["kill", signal, "two"]).await;
        let two = next(&mut lines).await;
        assert_eq!(two["name"], "two");
        assert_eq!(two["process"]["stopped"], stopped, "{two}");
        let shown = if stopped { " stopped " } else { " running " };
        loop {
            let line = tables.line().await;
            if line.starts_with("two") && line.contains(shown) {
                break;
            }
        }
    }
    on(&["write", "one", "--eof", ""]).await;
    loop {
        let one = next(&mut lines).await;
        if one["process"]["exited"]["code"] == 0 {
            assert_eq!(one["name"], "one");
            break;
        }
    }
    while !tables.line().await.contains("exited with 0") {}
    // When its reader goes away, it ends, also on a quiet loop.
    tables.stop_reading();
    assert_eq!(tables.ended().await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_process_that_is_removed_during_a_wait_has_an_exit_code() {
    let daemon = Daemon::start("").await;
    for name in ["one", "two"] {
        let words = [
            "run",
            "-d",
            "--name",
            name,
            "--",
            "sh",
            "-c",
            "echo up; exec sleep 1000",
        ];
        ctl(&daemon.socket, &words).await.good();
    }
    let mut waits = Vec::new();
    for words in [&["wait", "one"][..], &["wait", "two", "one", "--json"]] {
        waits.push(Following::start(&daemon.socket, words));
    }
    // Both are waiting once the loop has a reader for each.
    let readers = async || {
        let shown = ctl(&daemon.socket, &["loop", "get", "--json"]).await;
        shown.values()[0]["journal"]["readers"].as_u64()
    };
    while readers().await < Some(2) {}
    ctl(&daemon.socket, &["rm", "one", "two"]).await.good();
    for wait in waits {
        let ended = wait.ended().await;
        assert_eq!(ended.code, Some(128 + Signal::SIGTERM as i32), "{ended:?}");
        for value in ended.values() {
            assert_eq!(value["process"]["exited"]["signal"], Signal::SIGTERM as i32);
        }
    }
}
