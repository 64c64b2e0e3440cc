//! The end of evloopctl before that of its process: signals, and a reader that has gone.

use nix::sys::signal::Signal;

use crate::common::Daemon;
use crate::program::{Ended, Following, ctl};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_second_interrupt_ends_evloopctl_and_the_program_runs_on() {
    let daemon = Daemon::start("").await;
    let deaf = "ulimit -c 0; trap 'echo heard' INT QUIT; echo here; while :; do sleep 1; done";
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let name = format!("deaf-to-{signal}");
        let args = ["run", "--name", &name, "--", "sh", "-c", deaf];
        let mut client = Following::start(&daemon.socket, &args);
        assert_eq!(client.line().await, "here");
        client.signal(signal);
        // Between two signals more than a second may pass on a busy machine, so that they count as
        // separate.
        let mut pressed = 1;
        while client.line_or_end().await.as_deref() == Some("heard") {
            assert!(pressed < 20, "{signal} does not end it");
            client.signal(signal);
            pressed += 1;
        }
        let ended = client.ended().await;
        assert_eq!(ended.signal, Some(signal as i32), "{ended:?}");
        let told = format!(
            "{name}: left; unless the signal ends the process, it runs on: `evloopctl attach {name}` joins it"
        );
        assert!(ended.stderr.contains(&told), "{ended:?}");
        let shown = ctl(&daemon.socket, &["--json", "watch", "get", &name]).await;
        assert_eq!(shown.values()[0]["state"], "open");
        let kill = ["kill", "-s", "KILL", &name];
        ctl(&daemon.socket, &kill).await.good();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn evloopctl_ends_by_the_interrupt_that_ended_its_program() {
    let daemon = Daemon::start("").await;
    let end = async |signal: &str| {
        let line = format!("kill -{signal} $$");
        ctl(&daemon.socket, &["run", "--", "sh", "-c", &line]).await
    };
    let ended = end("INT").await;
    assert_eq!((ended.code, ended.signal), (None, Some(2)), "{ended:?}");
    for (signal, code) in [("TERM", 143), ("QUIT", 131), ("HUP", 129), ("KILL", 137)] {
        assert_eq!(end(signal).await.code, Some(code), "{signal}");
    }
    let run = [
        "run",
        "-d",
        "--name",
        "job",
        "--",
        "sh",
        "-c",
        "kill -INT $$",
    ];
    ctl(&daemon.socket, &run).await.good();
    let wait = ctl(&daemon.socket, &["wait", "job"]).await;
    assert_eq!(wait.code, Some(130), "as the shell's own wait: {wait:?}");
    let attach = ctl(&daemon.socket, &["attach", "job"]).await;
    assert_eq!(
        (attach.signal, attach.stderr.as_str()),
        (Some(2), ""),
        "{attach:?}"
    );
    // Who runs it again learns that nothing was started.
    let again = ["run", "--name", "job", "--", "sh", "-c", "kill -INT $$"];
    let again = ctl(&daemon.socket, &again).await;
    assert_eq!(again.signal, Some(2), "{again:?}");
    let told = "evloopctl: `job` was started before: killed by SIGINT";
    assert!(again.stderr.starts_with(told), "{again:?}");
}

/// Runs a program that writes lines for ever, and closes its output after the first line.
async fn read_one(daemon: &Daemon, options: &[&str], line: &str) -> Ended {
    let args = [&["run"], options, &["--", "sh", "-c", line]].concat();
    let mut client = Following::start(&daemon.socket, &args);
    client.line().await;
    client.stop_reading();
    client.ended().await
}

/// Returns the status of the newest process.
async fn newest(daemon: &Daemon) -> Option<serde_json::Value> {
    let listed = ctl(&daemon.socket, &["--json", "ps"]).await;
    listed.values().pop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_program_without_a_name_ends_with_the_pipeline_it_is_in() {
    let daemon = Daemon::start("").await;
    let ended = read_one(&daemon, &[], "exec yes").await;
    assert_eq!(
        (ended.signal, ended.stderr.as_str()),
        (Some(13), ""),
        "{ended:?}"
    );
    let process = newest(&daemon).await.unwrap();
    assert_eq!(process["process"]["exited"]["signal"], 13, "{process}");

    // A program that ignores SIGPIPE is ended by the daemon and removed.
    let deaf = "trap '' PIPE; while :; do echo line; sleep 0.01; done";
    let ended = read_one(&daemon, &[], deaf).await;
    assert_eq!(
        (ended.signal, ended.stderr.as_str()),
        (Some(13), ""),
        "{ended:?}"
    );
    loop {
        let listed = ctl(&daemon.socket, &["--json", "ps"]).await.values();
        if listed.len() == 1 {
            break;
        }
    }

    let ended = read_one(&daemon, &["--on-hangup", "keep"], "exec yes").await;
    assert_eq!(ended.signal, Some(13), "{ended:?}");
    assert!(
        ended.stderr.contains("it runs on: `evloopctl attach sh-"),
        "{ended:?}"
    );
    assert_eq!(newest(&daemon).await.unwrap()["state"], "open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_named_program_runs_on_without_a_reader_unless_an_option_ends_it() {
    let daemon = Daemon::start("").await;
    let ended = read_one(&daemon, &["--name", "kept"], "exec yes").await;
    assert_eq!(ended.signal, Some(13), "{ended:?}");
    let told = "evloopctl: kept: nobody reads its output any more; it runs on: `evloopctl attach kept` joins it\n";
    assert_eq!(ended.stderr, told);
    assert_eq!(newest(&daemon).await.unwrap()["state"], "open");
    let options = ["--name", "ended", "--on-hangup", "end"];
    assert_eq!(
        read_one(&daemon, &options, "exec yes").await.signal,
        Some(13)
    );
    assert_eq!(
        ctl(&daemon.socket, &["wait", "ended"]).await.code,
        Some(141)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_program_whose_client_is_killed_runs_on_and_can_be_looked_at_after_its_end() {
    let daemon = Daemon::start("").await;
    let help = ctl(&daemon.socket, &["run", "--help"]).await.good();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let told = "If SIGKILL ends evloopctl itself, the program runs on; without --name it is forgotten 10 minutes after its end.";
    assert!(help.contains(told), "{help}");
    let line = "trap 'exit 0' USR1; echo up; while :; do sleep 0.01; done";
    let mut client = Following::start(&daemon.socket, &["run", "--", "sh", "-c", line]);
    assert_eq!(client.line().await, "up");
    client.kill().await;
    let process = newest(&daemon).await.unwrap();
    assert_eq!(process["state"], "open", "{process}");
    let name = process["name"].as_str().unwrap();
    ctl(&daemon.socket, &["kill", "--process", "-USR1", name])
        .await
        .good();
    assert_eq!(ctl(&daemon.socket, &["wait", name]).await.code, Some(0));
    assert_eq!(newest(&daemon).await.unwrap()["name"], name);
}
