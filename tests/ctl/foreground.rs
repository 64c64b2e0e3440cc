//! `run`, `attach` and `logs`: lost output, input that cannot be read, and a daemon that was
//! restarted.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::process::Stdio;
use std::sync::Arc;

use nix::sys::signal::Signal;

use crate::common::{Daemon, Scene, directory};
use crate::program::{Following, ctl, fed};

const SMALL: &str = "[policy.small]\nextends = \"default\"\njournal_bytes = \"64KiB\"\n";

/// Returns the number of lost bytes of stdout that the one line on stderr reports.
fn told_gone(stderr: &str, name: &str) -> usize {
    let told = stderr
        .split_once(&format!("evloopctl: {name}: "))
        .unwrap()
        .1;
    let told = told.strip_suffix(" bytes of stdout are gone: the journal no longer holds them\n");
    told.unwrap_or_else(|| panic!("{stderr}"))
        .replace(',', "")
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn lost_output_is_reported_in_one_sentence_and_the_exit_code_is_the_processs() {
    let mut scene = Scene::new(Daemon::start(SMALL).await, "small", "").await;
    let socket = scene.daemon.socket.clone();
    let on = async |words: &[&str]| ctl(&socket, &[&["--loop", "scene"], words].concat()).await;
    let written = 1_048_576;
    let line = format!("head -c {written} /dev/zero | tr '\\0' x; exit 3");
    on(&["run", "-d", "--name", "big", "--", "sh", "-c", &line])
        .await
        .good();
    assert_eq!(on(&["wait", "big"]).await.code, Some(3));

    let attached = on(&["attach", "big"]).await;
    assert_eq!(attached.code, Some(3), "{}", attached.stderr);
    let gone = told_gone(&attached.stderr, "big");
    assert!(
        gone > 0 && gone + attached.stdout.len() == written,
        "{gone}"
    );
    let logs = on(&["logs", "big"]).await;
    assert_eq!(
        (logs.code, told_gone(&logs.stderr, "big")),
        (Some(125), gone)
    );
    let followed = on(&["logs", "-f", "big"]).await;
    assert_eq!(
        (followed.code, told_gone(&followed.stderr, "big")),
        (Some(125), gone)
    );
    let joined = on(&["run", "--name", "big", "--", "sh", "-c", &line]).await;
    assert_eq!(
        (joined.code, told_gone(&joined.stderr, "big")),
        (Some(3), gone)
    );

    // Nothing is lost, whatever the exit code of the process is.
    on(&[
        "run",
        "--name",
        "ok",
        "--",
        "sh",
        "-c",
        "echo hello; exit 3",
    ])
    .await;
    let logs = on(&["logs", "ok"]).await;
    assert_eq!(
        (logs.stdout.as_str(), logs.stderr.as_str()),
        ("hello\n", "")
    );
    assert_eq!(logs.code, Some(0));
    on(&["rm", "big", "ok"]).await.good();
    scene.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_input_that_cannot_be_read_ends_and_is_reported() {
    let daemon = Daemon::start("").await;
    let directory = File::open("/").unwrap();
    let ended = fed(&daemon.socket, &["run", "--", "cat"], directory).await;
    ended.failed(0, &["stdin: Is a directory"]);
    let write = ["run", "-d", "-i", "--name", "sink", "--", "cat"];
    ctl(&daemon.socket, &write).await.good();
    let directory = File::open("/").unwrap();
    let ended = fed(&daemon.socket, &["write", "sink"], directory).await;
    ended.failed(1, &["stdin: Is a directory"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_shell_loop_over_lines_keeps_its_input_with_n() {
    let daemon = Daemon::start("").await;
    let mut list = tempfile::tempfile().unwrap();
    list.write_all(b"one\ntwo\nthree\n").unwrap();
    list.rewind().unwrap();
    let ctl = env!("CARGO_BIN_EXE_evloopctl");
    for (name, how) in [("", "-n"), ("", "</dev/null"), ("--name job$line", "-n")] {
        list.rewind().unwrap();
        // With -n the program is at the end of its stdin at once.
        let line = format!(
            "while read line; do {ctl} run {how} {name} -- sh -c \"cat; echo $line\"; done"
        );
        let line = if how == "-n" {
            line
        } else {
            line.replace(how, "")
                .replace("; done", &format!(" {how}; done"))
        };
        let script = tokio::process::Command::new("sh")
            .args(["-c", &line])
            .env("EVLOOPD_SOCKET", &daemon.socket)
            .stdin(Stdio::from(list.try_clone().unwrap()))
            .output();
        let output = crate::common::within("the loop's end", script)
            .await
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(stdout, "one\ntwo\nthree\n", "{line}");
    }
    // A process that was started with a stdin can be joined without one, and the other way round.
    for (first, second) in [("-n", None), ("--", Some("-n"))] {
        let name = format!("both{first}");
        let run = ["run", "--name", &name];
        let first = (first == "-n").then_some("-n");
        for option in [first, second] {
            let words = [&run[..], option.as_slice(), &["--", "sh", "-c", "exit 4"]].concat();
            assert_eq!(
                crate::program::ctl(&daemon.socket, &words).await.code,
                Some(4)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn after_a_killed_daemon_only_known_facts_are_reported() {
    let dir = directory();
    let mut daemon = Daemon::start_in(Arc::clone(&dir), "", &[]).await;
    let args = [
        "run",
        "--name",
        "build",
        "--",
        "sh",
        "-c",
        "echo $$; exec sleep 1000",
    ];
    let mut attached = Following::start(&daemon.socket, &args);
    let child: i32 = attached.line().await.parse().unwrap();
    daemon.signal(Signal::SIGKILL);
    daemon.ended().await;
    let _another = Daemon::start_in(dir, "", &[]).await;
    let ended = attached.ended().await;
    ended.failed(
        125,
        &[
            "build: ",
            "was restarted",
            "whether the process still runs is not known",
        ],
    );
    assert!(!ended.stderr.contains("ended with it"), "{ended:?}");
    // The child does still run.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).unwrap();
}
