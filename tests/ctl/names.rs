//! Names and ids of watches and loops: a plain word is a name, and an id is written with `@`.

use serde_json::Value;

use crate::common::{Daemon, Scene};
use crate::program::{Ended, ctl};

const SLEEP: [&str; 3] = ["--", "sleep", "1000"];

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_number_is_a_name_and_an_id_is_written_as_one() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let socket = scene.daemon.socket.clone();
    let on = async |words: &[&str]| {
        let args = [&["--loop", "scene", "--json"], words].concat();
        ctl(&socket, &args).await
    };
    // Watch 1 is `victim`, and the watch named `1` has another id.
    on(&[&["run", "-d", "--name", "victim"], &SLEEP[..]].concat())
        .await
        .good();
    on(&[&["run", "-d", "--name", "1"], &SLEEP[..]].concat())
        .await
        .good();
    on(&["kill", "1"]).await.good();
    let ended = on(&["wait", "1"]).await;
    assert_eq!(ended.code, Some(143), "{ended:?}");
    let state = async |words: &[&str]| on(words).await.values()[0]["state"].clone();
    assert_eq!(state(&["watch", "get", "victim"]).await, "open");
    for asked in [&["watch", "get", "@1"][..], &["watch", "get", "--id", "1"]] {
        assert_eq!(on(asked).await.values()[0]["name"], "victim");
    }
    // A name that is not the id of any watch.
    on(&["run", "--name", "123", "--", "true"]).await.good();
    on(&["wait", "123"]).await.good();
    on(&["logs", "123"]).await.good();
    on(&["attach", "123"]).await.good();
    let none = on(&["wait", "--id", "123"]).await;
    none.failed(125, &["@123"]);
    on(&["events", "--watch", "@1"]).await.good();
    on(&["events", "--filter", "watch:1"]).await.good();

    on(&["kill", "-s", "KILL", "--id", "1"]).await.good();
    assert_eq!(on(&["wait", "@1"]).await.code, Some(137));
    on(&["rm", "1", "--id", "1", "123"]).await.good();
    on(&["rm", "victim"]).await.failed(1, &["victim"]);
    scene.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn loops_have_names_and_ids_likewise() {
    let daemon = Daemon::start("").await;
    let run = async |words: &[&str]| ctl(&daemon.socket, &[&["--json"], words].concat()).await;
    let id = |made: &Ended| made.values()[0]["loop_id"].as_u64().unwrap();
    let first = id(&run(&["loop", "new", "first"]).await);
    // Its name is the id of the first loop.
    let called = first.to_string();
    let second = id(&run(&["loop", "new", &called]).await);
    let found = async |words: &[&str]| run(words).await.values()[0]["loop_id"].clone();
    assert_eq!(found(&["loop", "get", &called]).await, second);
    assert_eq!(found(&["--loop", &called, "loop", "get"]).await, second);
    let first_again = format!("@{first}");
    assert_eq!(found(&["loop", "get", &first_again]).await, first);
    assert_eq!(found(&["--loop", &first_again, "loop", "get"]).await, first);
    run(&["loop", "stop", &called]).await.good();
    let state: Vec<Value> = run(&["loop", "list"]).await.values();
    let state = state
        .iter()
        .map(|l| (l["loop_id"].as_u64(), l["state"].as_str()));
    let state: Vec<_> = state.collect();
    assert!(state.contains(&(Some(first), Some("running"))), "{state:?}");
    assert!(
        state.contains(&(Some(second), Some("stopped"))),
        "{state:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_empty_name_and_a_missing_one_are_mistakes_on_the_command_line() {
    let daemon = Daemon::start("").await;
    let refused = async |code: i32, words: &[&str], told: &str| {
        ctl(&daemon.socket, words).await.failed(code, &[told]);
    };
    refused(125, &["run", "--name", "", "--", "true"], "--name").await;
    refused(
        125,
        &["--loop", "x", "run", "--name=", "--", "true"],
        "--name",
    )
    .await;
    refused(125, &["logs", ""], "a name, or an id").await;
    refused(125, &["wait", "@x"], "is not an id").await;
    refused(2, &["kill", ""], "a name, or an id").await;
    refused(2, &["every", "1s", "--name", ""], "--name").await;
    refused(2, &["watch", "timer", "--every", "1s", "--name="], "--name").await;
    refused(2, &["--session", "", "ps"], "--session").await;
    refused(2, &["--loop", "", "ps"], "--loop").await;
    refused(2, &["events", "--consumer", ""], "--consumer").await;
    refused(2, &["consumer", "create", ""], "<NAME>").await;
    refused(2, &["loop", "new", ""], "[NAME]").await;
    refused(2, &["loop", "set", ""], "<NAME>").await;
    refused(
        2,
        &["watch", "timer", "--every", "1s", "--label", ""],
        "--label",
    )
    .await;
    // Verbs that end something for all clients need a name.
    refused(2, &["loop", "stop"], "<LOOP>").await;
    refused(2, &["loop", "close"], "<LOOP>").await;
    refused(2, &["--loop", "x", "loop", "stop"], "<LOOP>").await;
}
