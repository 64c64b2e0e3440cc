//! `update` of watches of paths.

use serde_json::{Value, json};

use crate::common::{Daemon, directory};
use crate::program::{Following, ctl};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_path_watch_is_changed_in_place_and_tells_to_look_at_everything() {
    let daemon = Daemon::start("").await;
    let on = async |args: &[&str]| ctl(&daemon.socket, args).await;
    let dir = directory();
    std::fs::create_dir(dir.path().join("below")).unwrap();
    let path = dir.path().to_str().unwrap();
    on(&["watch", "path", path, "--name", "dir"]).await.good();
    let spec = async || {
        let shown = on(&["watch", "get", "dir", "--json"]).await.values();
        shown[0]["spec"]["path"].clone()
    };
    let all = [
        "update",
        "dir",
        "-r",
        "--ignore",
        "target",
        "--ignore",
        "*.o",
        "--only",
        "created,moved",
        "--window",
        "1s",
        "--poll",
        "5s",
    ];
    on(&all).await.good();
    let changed = spec().await;
    assert_eq!(changed["recursive"], true, "{changed}");
    assert_eq!(changed["ignore"], json!(["target", "*.o"]));
    assert_eq!(changed["kinds"].as_array().unwrap().len(), 2);
    assert!(!changed["window"].is_null() && !changed["poll"].is_null());
    let none = [
        "update",
        "dir",
        "--no-recursive",
        "--ignore",
        "",
        "--window",
        "0s",
        "--poll",
        "0s",
    ];
    on(&none).await.good();
    let changed = spec().await;
    let absent = |field: &str| {
        let value = &changed[field];
        value.is_null() || *value == json!(false) || *value == json!([])
    };
    assert!(
        ["recursive", "ignore", "window", "poll"].map(absent) == [true; 4],
        "{changed}"
    );
    let mut feed = Following::start(&daemon.socket, &["events", "-f", "--oldest", "--json"]);
    let mut rescans = 0;
    while rescans < 2 {
        let event: Value = serde_json::from_str(&feed.line().await).unwrap();
        rescans += usize::from(event["kind"] == "path_rescan");
    }
    let mixed = ["update", "dir", "-r", "--every", "2s"];
    on(&mixed).await.failed(2, &["timers", "paths"]);
}
