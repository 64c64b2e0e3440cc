//! `consumer`, and `events` as a consumer.

use evloopd::proto::GetLoopRequest;
use serde_json::Value;

use crate::common::{Daemon, Scene, post};
use crate::program::{Following, ctl};

const CONFIG: &str = r#"
[policy.dropping]
extends = "default"
journal_events = 64
when_full = "drop_oldest"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn consumers_are_made_shown_used_and_deleted() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    let socket = scene.daemon.socket.clone();
    let run = async |words: &[&str]| {
        let args = [&["--loop", "scene", "--json"], words].concat();
        ctl(&socket, &args).await
    };
    assert_eq!(run(&["consumer", "list"]).await.good(), "");
    let newest = scene.post(vec![post("", b"x"); 5]).await;
    let made = ["consumer", "create", "old", "--oldest", "--ttl", "1h"];
    let made = &run(&made).await.values()[0];
    assert_eq!(
        (&made["lag_events"], &made["ttl"]),
        (&newest.into(), &"3600s".into())
    );
    run(&["consumer", "create", "new"]).await.good();
    let at = ["consumer", "create", "at", "--after", "2"];
    assert_eq!(run(&at).await.values()[0]["lag_events"], newest - 2);
    run(&at).await.failed(1, &["at", "exists"]);
    run(&[&at[..], &["--if-missing"]].concat()).await.good();

    let listed = run(&["consumer", "list"]).await.values();
    let names: Vec<_> = listed.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["at", "new", "old"]);
    let table = ctl(&socket, &["--loop", "scene", "consumer", "list"])
        .await
        .good();
    let head = table.lines().next().unwrap();
    assert!(
        head.starts_with("NAME") && head.contains("BEHIND"),
        "{table}"
    );
    assert_eq!(table.lines().count(), 4, "{table}");

    let shown = run(&["loop", "show", "scene"]).await.values();
    let journal = &shown[0]["journal"];
    assert_eq!(
        (&journal["consumers"], &journal["when_full"]),
        (&3.into(), &"pause".into())
    );
    assert_eq!(journal["pinned_events"], newest, "{journal}");
    assert_eq!(journal["paused_source_count"], 0);

    let read = run(&["events", "--consumer", "old"]).await;
    assert_eq!(read.values().len() as u64, newest);
    read.good();
    let shown = run(&["consumer", "show", "old"]).await.values();
    assert_eq!(
        (&shown[0]["lag_events"], &shown[0]["held"]),
        (&0.into(), &false.into())
    );
    assert_eq!(
        run(&["events", "--consumer", "old"]).await.good(),
        "",
        "nothing twice"
    );
    let again = run(&["events", "--consumer", "old", "--oldest"]).await;
    assert_eq!(
        again.values().len() as u64,
        newest,
        "--oldest overrides the acknowledged cursor"
    );

    run(&["consumer", "delete", "at"]).await.good();
    run(&["consumer", "delete", "at"])
        .await
        .failed(1, &["at", "consumer list"]);
    run(&["consumer", "show", "at"])
        .await
        .failed(1, &["at", "consumer list"]);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_that_is_no_longer_the_consumer_says_why() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    let socket = scene.daemon.socket.clone();
    let newest = scene.post(vec![post("", b"x"); 3]).await;
    let args = [
        "--loop",
        "scene",
        "--json",
        "events",
        "-f",
        "--oldest",
        "--consumer",
        "c",
    ];
    let mut first = Following::start(&socket, &args);
    first.seqs(newest).await;
    let mut second = Following::start(&socket, &args);
    second.seqs(newest).await;
    let ended = first.ended().await;
    ended.failed(1, &["consumer c: another reader has taken it over"]);
    let delete = ["--loop", "scene", "consumer", "delete", "c"];
    ctl(&socket, &delete).await.good();
    second
        .ended()
        .await
        .failed(1, &["consumer c: it was deleted"]);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn events_that_a_journal_dropped_are_a_gap_for_its_consumer() {
    let mut scene = Scene::new(Daemon::start(CONFIG).await, "dropping", "").await;
    let socket = scene.daemon.socket.clone();
    let create = ["--loop", "scene", "consumer", "create", "slow", "--oldest"];
    ctl(&socket, &create).await.good();
    let mut newest = 0;
    for _ in 0..10 {
        newest = scene.post(vec![post("", b"x"); 20]).await;
        scene.recorder.reach(newest).await;
    }
    let show = ["--loop", "scene", "--json", "consumer", "show", "slow"];
    let lost = ctl(&socket, &show).await.values()[0]["lost_events"].clone();
    let read = ["--loop", "scene", "--json", "events", "--consumer", "slow"];
    let read = ctl(&socket, &read).await;
    assert_eq!(read.code, Some(3), "{read:?}");
    let count = |gap: &Value| {
        let at = |key: &str| gap["gap"][key].as_u64().unwrap();
        at("through_seq") - at("from_seq") + 1
    };
    let values = read.values();
    let gaps: u64 = values
        .iter()
        .filter(|v| v["kind"] == "gap")
        .map(count)
        .sum();
    assert_eq!(lost, gaps);
    assert_eq!(ctl(&socket, &show).await.values()[0]["lag_events"], 0);
    let request = GetLoopRequest {
        r#loop: Some(scene.target.clone()),
    };
    let found = scene.daemon.loops().get_loop(request).await.unwrap();
    let journal = found.into_inner().r#loop.unwrap().journal.unwrap();
    let show = ["--json", "loop", "show", "scene"];
    let shown = &ctl(&socket, &show).await.values()[0]["journal"];
    assert_eq!(shown["dropped"], journal.dropped);
    assert_eq!(
        (&shown["when_full"], journal.dropped > 0),
        (&"drop_oldest".into(), true)
    );
    assert!(newest > 0);
    scene.finish().await;
}
