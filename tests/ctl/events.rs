//! `events` and `logs`: filters, gaps, and readers that go away.

use crate::common::{Daemon, Scene, post, shell};
use crate::program::{Following, coloured, ctl};

const CONFIG: &str = r#"
[policy.tiny]
extends = "default"
journal_events = 64
journal_watch_keep = "0B"
"#;

/// Posts more than the tiny journal holds. The scene's own reader receives all of it.
async fn overflow(scene: &mut Scene) -> u64 {
    let mut last = 0;
    for _ in 0..10 {
        last = scene.post(vec![post("", b"x"); 20]).await;
        scene.recorder.reach(last).await;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_gap_is_red_and_counted_and_sets_the_exit_code() {
    let mut scene = Scene::new(Daemon::start(CONFIG).await, "tiny", "").await;
    let socket = scene.daemon.socket.clone();
    let id = scene.spawn(shell("echo out; exit 5")).await;
    scene.closed(id).await;
    overflow(&mut scene).await;
    // The terminal events of the process are kept after the events around them are gone.
    let missed = coloured(&socket, &["--loop", "scene", "events"]).await;
    assert_eq!(missed.code, Some(3), "{missed:?}");
    assert!(missed.stderr.contains("\u{1b}[31mgap: "), "{missed:?}");
    let gaps = missed.stderr.matches("gap: ").count();
    let lines = missed.stderr.lines().count();
    // The last one says how to go on.
    assert_eq!(lines, gaps + usize::from(gaps > 1) + 1, "{missed:?}");
    let json = ctl(&socket, &["--loop", "scene", "--json", "events"]).await;
    let told = json.values();
    let told = told.iter().filter(|v| v["kind"] == "gap").count();
    assert_eq!((json.code, told), (Some(3), gaps));
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn output_that_is_lost_entirely_is_reported() {
    let mut scene = Scene::new(Daemon::start(CONFIG).await, "tiny", "").await;
    let socket = scene.daemon.socket.clone();
    let name = [
        "--loop", "scene", "run", "--name", "job", "--", "echo", "out",
    ];
    assert_eq!(ctl(&socket, &name).await.good(), "out\n");
    overflow(&mut scene).await;
    let logs = ctl(&socket, &["--loop", "scene", "logs", "-f", "job"]).await;
    let told = "job: 4 bytes of stdout are gone";
    logs.failed(125, &[told]);
    let run = ctl(&socket, &name).await;
    assert_eq!(run.code, Some(0), "{run:?}");
    let lines: Vec<_> = run.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{run:?}");
    assert!(lines[0].contains("`job` was started before: exited with 0"));
    assert!(lines[1].contains(told), "{run:?}");
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn evloopctl_ends_in_order_when_its_reader_goes_away_also_on_a_quiet_loop() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let socket = scene.daemon.socket.clone();
    let args = ["--loop", "scene", "events", "-f", "--oldest"];
    let mut events = Following::start(&socket, &args);
    events.line().await;
    events.stop_reading();
    let ended = events.ended().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));

    let run = ["--loop", "scene", "run", "-d", "--name", "job", "--"];
    let run = [&run[..], &["sh", "-c", "echo out; exec sleep 1000"]].concat();
    ctl(&socket, &run).await.good();
    let mut logs = Following::start(&socket, &["--loop", "scene", "logs", "-f", "job"]);
    assert_eq!(logs.line().await, "out");
    logs.stop_reading();
    let ended = logs.ended().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    // This one writes to a reader that has already gone.
    let args = ["--loop", "scene", "events"];
    let mut events = Following::start(&socket, &args);
    events.stop_reading();
    let ended = events.ended().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    ctl(&socket, &["--loop", "scene", "rm", "job"]).await.good();
    scene.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_filter_is_made_of_terms_and_a_wrong_one_is_reported_with_those_allowed() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    let socket = scene.daemon.socket.clone();
    for (name, label) in [("one", "team=a"), ("two", "team=b")] {
        let run = ["--loop", "scene", "run", "--name", name, "--label", label];
        ctl(&socket, &[&run[..], &["--", "true"]].concat())
            .await
            .good();
    }
    let kinds = async |filters: &[&str]| {
        let args = [&["--loop", "scene", "--json", "events"], filters].concat();
        let ended = ctl(&socket, &args).await;
        let seen = ended.values();
        let seen = seen
            .iter()
            .map(|v| (v["watch_id"].as_u64(), v["kind"].clone()));
        seen.map(|(id, kind)| format!("{} {}", id.unwrap(), kind.as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    let exits = kinds(&["--filter", "kind:exited"]).await;
    assert_eq!(exits, ["1 exited", "2 exited"]);
    let one = kinds(&["--filter", "kind:exited, watch:two", "--kind", "started"]).await;
    assert_eq!(one, ["2 started", "2 exited"]);
    let labelled = kinds(&[
        "--filter",
        "label:team=a",
        "--filter",
        "kind:exited kind:added",
    ])
    .await;
    assert_eq!(labelled, ["1 added", "1 exited"]);

    let wrong = |expression| ["--loop", "scene", "events", "--filter", expression];
    let ended = ctl(&socket, &wrong("exited")).await;
    ended.failed(
        2,
        &["`exited`", "kind:KIND, watch:WATCH and label:KEY=VALUE"],
    );
    let ended = ctl(&socket, &wrong("kind:gone")).await;
    ended.failed(2, &["`gone`", "added", "policy_changed"]);
    let ended = ctl(&socket, &["events", "--kind", "gone"]).await;
    ended.failed(2, &["'gone'", "added", "policy_changed"]);
    let ended = ctl(&socket, &wrong("watch:nobody")).await;
    ended.failed(1, &["nobody"]);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn events_are_selected_by_time() {
    let daemon = Daemon::start("").await;
    for topic in ["one", "two", "three", "four"] {
        ctl(&daemon.socket, &["post", topic]).await.good();
    }
    let events = async |words: &[&str]| {
        let line = [&["events", "--json", "--kind", "posted"], words].concat();
        ctl(&daemon.socket, &line).await.values()
    };
    let all = events(&[]).await;
    let at = |which: usize| {
        let ns = all[which]["realtime_ns"].as_u64().unwrap();
        jiff::Timestamp::from_nanosecond(ns.into())
            .unwrap()
            .to_string()
    };
    assert_eq!(events(&["--since", &at(2)]).await, all[2..]);
    assert_eq!(events(&["--until", &at(1)]).await, all[..2]);
    assert_eq!(
        events(&["--since", &at(1), "--until", &at(2)]).await,
        all[1..3]
    );
    assert_eq!(events(&["--since", "1h"]).await, all);
    // It ends by itself at the end of the range, although it follows.
    assert_eq!(
        events(&["-f", "--since", "1h", "--until", &at(2)]).await,
        all[..3]
    );
    let wrong = ctl(&daemon.socket, &["events", "--since", "1h", "--after", "1"]).await;
    wrong.failed(2, &["--since"]);
}
