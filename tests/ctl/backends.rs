//! The capabilities of backends, as the daemon answers, evloopctl shows, and the README prints
//! them.

use crate::common::Daemon;
use crate::program::ctl;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_readme_has_the_matrix_of_the_daemon() {
    let daemon = Daemon::start("").await;
    let matrix = ctl(&daemon.socket, &["backends", "--markdown"])
        .await
        .good();
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    assert!(
        readme.contains(&matrix),
        "README.md should have what `evloopctl backends --markdown` prints:\n{matrix}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn backends_differ_from_loops_that_are_only_documented() {
    let daemon = Daemon::start("").await;
    ctl(&daemon.socket, &["--json", "backends", "--markdown"])
        .await
        .failed(2, &["--markdown cannot be used with --json"]);
    let told = ctl(&daemon.socket, &["backends", "--json"]).await;
    let values = told.values();
    let (ours, documented): (Vec<_>, Vec<_>) =
        values.iter().partition(|v| v.get("available").is_some());
    let names: Vec<_> = ours.iter().filter_map(|v| v["name"].as_str()).collect();
    assert_eq!(
        names,
        ["epoll", "poll", "select", "io_uring", "kqueue", "iocp"]
    );
    let platforms: Vec<_> = documented
        .iter()
        .filter_map(|v| v["platform"].as_str())
        .collect();
    assert_eq!(platforms, ["unix", "windows", "windows", "macos"]);
    // The policies named after loops of other platforms allow all but what these are documented to
    // lack.
    let policies = ctl(&daemon.socket, &["policy", "list", "--json"]).await;
    let policies = policies.values();
    let policy = |name: &str| policies.iter().find(|p| p["name"] == name).unwrap();
    for (number, name) in [
        (1, "windows-selector-compat"),
        (2, "windows-proactor-compat"),
        (3, "macos-kqueue-compat"),
    ] {
        let watched = policy(name)["watch_kinds"].as_array().unwrap();
        let can = documented[number]["capabilities"].as_array().unwrap();
        for kind in evloopd::kinds::WatchKind::ALL {
            // A capability that is not supported has no such key in JSON, or one that is false.
            let lacks = |c: &serde_json::Value| c["supported"] != true;
            let refused = can.iter().any(|c| c["name"] == kind.name() && lacks(c));
            assert_eq!(
                watched.contains(&kind.name().into()),
                !refused,
                "{kind} of {name}"
            );
        }
    }
    // The limit of 512 sockets in the documentation (18.5.2.3.1) is that of the compatible policy
    // too.
    let limit = |value: &serde_json::Value| {
        let can = value["capabilities"].as_array().unwrap();
        let fds = can.iter().find(|c| c["name"] == "watched_fds");
        fds.map(|c| c["limit"].as_u64().unwrap())
    };
    assert_eq!(limit(documented[1]), Some(512));
    assert_eq!(policy("windows-selector-compat")["max_sources"], 512);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_policy_shows_what_its_loops_refuse_and_how_their_timers_tick() {
    let daemon = Daemon::start("").await;
    let get = async |name: &str| ctl(&daemon.socket, &["policy", "get", name]).await;
    let shown = get("windows-selector-compat").await.good();
    for line in [
        "process: subprocesses are not supported",
        "unix_socket: AF_UNIX is specific to Unix",
        "every 15.6 ms",
    ] {
        assert!(shown.contains(line), "{line} is not in {shown}");
    }
    let shown = get("macos-kqueue-compat").await.good();
    assert!(shown.contains("character_device: "), "{shown}");
    assert!(!shown.contains("timers fire"), "{shown}");
    get("macos").await.failed(1, &["macos", "policy list"]);
}
