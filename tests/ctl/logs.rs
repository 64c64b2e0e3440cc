//! `logs`: a part of the output, and the output of several processes.

use serde_json::Value;

use crate::common::{Daemon, within};
use crate::program::{Following, ctl};

async fn cats(daemon: &Daemon, names: &[&str]) -> Vec<Following> {
    let mut readers = Vec::new();
    for name in names {
        let words = ["run", "-di", "--name", name, "--", "cat"];
        ctl(&daemon.socket, &words).await.good();
        readers.push(Following::start(&daemon.socket, &["logs", "-f", name]));
    }
    readers
}

/// Writes a line to a process that echoes it, and waits until that output is an event.
async fn say(daemon: &Daemon, reader: &mut Following, name: &str, line: &str) {
    ctl(&daemon.socket, &["write", name, &format!("{line}\n")])
        .await
        .good();
    assert_eq!(reader.line().await, line);
}

/// Returns the times of the data events in ns, with their text.
async fn data(daemon: &Daemon) -> Vec<(u64, String)> {
    let events = ctl(&daemon.socket, &["events", "--kind", "data", "--json"]).await;
    let one = |event: Value| {
        let text = event["data"]["data"]["text"]
            .as_str()
            .unwrap()
            .trim_end()
            .to_owned();
        (event["realtime_ns"].as_u64().unwrap(), text)
    };
    events.values().into_iter().map(one).collect()
}

fn rfc3339(ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(ns.into())
        .unwrap()
        .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn several_processes_are_shown_in_the_order_of_their_output() {
    let daemon = Daemon::start("").await;
    let names = ["web", "worker"];
    let mut readers = cats(&daemon, &names).await;
    let mut expected = Vec::new();
    for (turn, which) in [0, 1, 1, 0, 1, 0, 0, 0, 1, 0].into_iter().enumerate() {
        let line = format!("line {turn}");
        say(&daemon, &mut readers[which], names[which], &line).await;
        expected.push(format!("{:6} | {line}", names[which]));
    }
    let shown = ctl(&daemon.socket, &["logs", "worker", "web"]).await.good();
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    let shown = ctl(
        &daemon.socket,
        &["logs", "--no-prefix", "web", "worker", "web"],
    )
    .await;
    assert_eq!(shown.good().lines().nth(9), Some("line 9"));
    let last = ctl(&daemon.socket, &["logs", "-n", "1", "web", "worker"])
        .await
        .good();
    assert_eq!(last.lines().collect::<Vec<_>>(), expected[8..]);
    // With -f, new output follows until both have ended.
    let mut both = Following::start(&daemon.socket, &["logs", "-f", "-n1", "web", "worker"]);
    assert_eq!([both.line().await, both.line().await], expected[8..]);
    say(&daemon, &mut readers[1], "worker", "more").await;
    assert_eq!(both.line().await, "worker | more");
    for name in names {
        ctl(&daemon.socket, &["write", name, "--eof", "last"])
            .await
            .good();
    }
    let ended = both.ended().await;
    assert_eq!(ended.code, Some(0));
    let mut rest: Vec<_> = ended.stdout.lines().collect();
    rest.sort_unstable();
    assert_eq!(rest, ["web    | last", "worker | last"]);
    let wrong = ctl(&daemon.socket, &["logs", "web", "nobody", "wokrer"]).await;
    assert_eq!(
        (wrong.code, wrong.stdout.as_str()),
        (Some(125), ""),
        "{wrong:?}"
    );
    assert!(wrong.stderr.contains("did you mean `worker`?"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_part_is_selected_by_lines_and_by_time() {
    let daemon = Daemon::start("").await;
    let mut readers = cats(&daemon, &["x"]).await;
    for line in ["one", "two", "three", "four"] {
        say(&daemon, &mut readers[0], "x", line).await;
    }
    let logs = async |words: &[&str]| {
        let shown = ctl(&daemon.socket, &[&["logs", "x"], words].concat())
            .await
            .good();
        shown.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(logs(&["-n", "2"]).await, ["three", "four"]);
    assert_eq!(logs(&["--tail", "9"]).await.len(), 4);
    assert_eq!(logs(&["--tail", "all"]).await.len(), 4);
    assert!(logs(&["-n0"]).await.is_empty());
    let told = data(&daemon).await;
    let at = |which: usize| rfc3339(told[which].0);
    assert_eq!(logs(&["--since", &at(2)]).await, ["three", "four"]);
    assert_eq!(logs(&["--until", &at(1)]).await, ["one", "two"]);
    assert_eq!(
        logs(&["--since", &at(1), "--until", &at(2)]).await,
        ["two", "three"]
    );
    assert_eq!(logs(&["--since", "1h", "-n1"]).await, ["four"]);
    assert!(logs(&["--until", "1h"]).await.is_empty());
    let times = logs(&["-t"]).await;
    for (shown, (ns, text)) in times.iter().zip(&told) {
        let (time, line) = shown.split_once(' ').unwrap();
        let time: jiff::Timestamp = time.parse().unwrap();
        let time = u64::try_from(time.as_nanosecond()).unwrap();
        assert_eq!((time, line), (ns - ns % 1_000_000, text.as_str()));
    }
    // A line that has begun is shown once it is complete.
    ctl(&daemon.socket, &["write", "x", "half"]).await.good();
    let mut follow = Following::start(&daemon.socket, &["logs", "-f", "-n", "1", "-t", "x"]);
    assert!(follow.line().await.ends_with(" four"));
    ctl(&daemon.socket, &["write", "x", "--eof", " and half"])
        .await
        .good();
    assert!(follow.line().await.ends_with(" half and half"));
    assert_eq!(follow.ended().await.code, Some(0));
    let last = ctl(&daemon.socket, &["logs", "-n", "1", "x"]).await.good();
    assert_eq!(last, "half and half");
    for (words, told) in [
        (&["--tail=-1"][..], "number of lines"),
        (&["--since", "soon"], "12:00:00"),
        (&["--json", "-n1"], "--json"),
    ] {
        let wrong = ctl(&daemon.socket, &[&["logs", "x"], words].concat()).await;
        wrong.failed(125, &[told]);
    }
    for option in ["-n1", "--since=1h", "--until=1h", "-t", "--tail=all"] {
        let before = ctl(&daemon.socket, &["--json", "logs", "x", option]).await;
        before.failed(125, &["--json prints all events"]);
    }
    ctl(
        &daemon.socket,
        &["watch", "timer", "--every", "1h", "--name", "tick"],
    )
    .await
    .good();
    let timer = ctl(&daemon.socket, &["logs", "tick"]).await;
    timer.failed(
        125,
        &[
            "logs: tick: it is a timer, not a process",
            "evloopctl events --watch tick",
        ],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_gone_counts_only_where_it_was_asked_for() {
    let daemon = small().await;
    let on =
        async |words: &[&str]| ctl(&daemon.socket, &[&["--loop", "small"], words].concat()).await;
    let line = "seq 1 100000";
    on(&["run", "-d", "--name", "much", "--", "sh", "-c", line])
        .await
        .good();
    on(&["wait", "much"]).await.good();
    let all = on(&["logs", "much"]).await;
    assert_eq!(all.code, Some(125), "{}", all.stderr);
    assert!(all.stderr.contains("of stdout are gone"), "{}", all.stderr);
    let last = on(&["logs", "-n", "3", "much"]).await;
    assert_eq!((last.code, last.stderr.as_str()), (Some(0), ""));
    assert_eq!(last.stdout, "99998\n99999\n100000\n");
    let more = on(&["logs", "-n", "100000", "much"]).await;
    assert_eq!(more.code, Some(125), "{}", more.stderr);
    let since = on(&["logs", "--since", "1h", "much"]).await;
    assert_eq!(since.code, Some(125), "{}", since.stderr);
}

/// A daemon with the loop `small`, whose journal holds far less than the processes here write.
async fn small() -> Daemon {
    let config = "[policy.small]\nextends = \"default\"\njournal_bytes = \"64KiB\"\njournal_watch_keep = \"4KiB\"\n";
    let daemon = Daemon::start(config).await;
    let new = ["loop", "new", "small", "--policy", "small"];
    ctl(&daemon.socket, &new).await.good();
    daemon
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_gone_before_until_is_told() {
    let daemon = small().await;
    let socket = &daemon.socket;
    let on = async |words: &[&str]| ctl(socket, &[&["--loop", "small"], words].concat()).await;
    let flood = "read go; seq 1 100000; echo flooded; read go";
    for (name, early, gone) in [
        ("out", "echo early", "bytes of stdout"),
        ("err", "echo early >&2", "6 bytes of stderr"),
    ] {
        let line = format!("{early}; {flood}");
        on(&["run", "-di", "--name", name, "--", "sh", "-c", &line])
            .await
            .good();
        let follow = ["--loop", "small", "logs", "-f", name];
        let mut follow = Following::start(socket, &follow);
        if name == "out" {
            assert_eq!(follow.line().await, "early");
        } else {
            assert_eq!(follow.complaint().await, "early\n");
        }
        let at = jiff::Timestamp::now().to_string();
        on(&["write", name, "go\n"]).await.good();
        while follow.line().await != "flooded" {}
        for options in [&["--until", &at][..], &["-f", "--until", &at]] {
            let shown = on(&[&["logs", name], options].concat()).await;
            assert_eq!((shown.code, shown.stdout.as_str()), (Some(125), ""));
            assert!(shown.stderr.contains(gone), "{options:?}: {}", shown.stderr);
        }
    }
}

/// Waits until a process on the loop has written that.
async fn written(daemon: &Daemon, on: &str, text: &str) {
    let words = ["--loop", on, "events", "--kind", "data"];
    within("the output of a process", async {
        while !ctl(&daemon.socket, &words).await.stdout.contains(text) {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_gone_before_the_last_lines_does_not_count_and_a_fragment_among_them_does() {
    let daemon = small().await;
    let on =
        async |words: &[&str]| ctl(&daemon.socket, &[&["--loop", "small"], words].concat()).await;
    // That stderr is gone is told by its end alone, after the last line.
    let line = "seq 1 9 >&2; seq 1 100000";
    on(&["run", "-d", "--name", "err", "--", "sh", "-c", line])
        .await
        .good();
    on(&["wait", "err"]).await.good();
    let last = on(&["logs", "-n", "3", "err"]).await;
    assert_eq!((last.code, last.stderr.as_str()), (Some(0), ""));
    assert_eq!(last.stdout, "99998\n99999\n100000\n");

    // A line of stderr comes between the gap and the end of the line that lost its beginning.
    let line = "head -c 300000 /dev/zero | tr '\\0' x; echo between >&2; read go; echo end";
    on(&["run", "-di", "--name", "torn", "--", "sh", "-c", line])
        .await
        .good();
    written(&daemon, "small", "between").await;
    on(&["write", "torn", "go\n"]).await.good();
    on(&["wait", "torn"]).await.good();
    let last = on(&["logs", "-n", "1", "torn"]).await;
    assert!(last.stdout.ends_with("end\n"), "{}", last.stdout);
    assert_eq!(last.code, Some(125), "{}", last.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_line_that_began_before_since_is_not_shown_in_part() {
    let daemon = Daemon::start("").await;
    let mut readers = cats(&daemon, &["x"]).await;
    ctl(&daemon.socket, &["write", "x", "early "]).await.good();
    written(&daemon, "default", "early ").await;
    let at = jiff::Timestamp::now().to_string();
    ctl(&daemon.socket, &["write", "x", "late\n"]).await.good();
    assert_eq!(readers[0].line().await, "early late");
    say(&daemon, &mut readers[0], "x", "whole").await;
    let shown = ctl(&daemon.socket, &["logs", "--since", &at, "x"]).await;
    assert_eq!(shown.good(), "whole\n");
}
