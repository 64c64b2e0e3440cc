//! Texts from clients that imitate something else: what people see of them, and what scripts get.
/// Another line, a cleared screen, a C1 escape, reversed text, and invisible characters.
use evloopd::text::is_hidden;
use serde_json::Value;

use crate::common::{Daemon, Scene};
use crate::program::ctl;

/// Another line, a cleared screen, a C1 escape, the reverse of what it says, and nothing to see.
const EVIL: &str =
    "x\n\x1b[2J\u{9b}2J\u{85}\u{202e}\u{2066}\u{200b}\u{ad}\u{e0041}\u{feff}\u{2028}y";

#[track_caller]
fn is_seen(text: &str) {
    for line in text.lines() {
        assert!(!line.contains(is_hidden), "{line:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn texts_from_outside_cannot_hide_in_the_output() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let socket = scene.daemon.socket.clone();
    let on = async |words: &[&str]| ctl(&socket, &[&["--loop", "scene"], words].concat()).await;
    let label = format!("l={EVIL}");
    let run = [
        "run", "-d", "--name", "n", "--label", &label, "--", "sleep", "1000", EVIL,
    ];
    is_seen(&on(&run).await.good());
    on(&["post", EVIL, "p"]).await.good();
    for words in [
        &["ps"][..],
        &["watch", "list"],
        &["watch", "get", "n"],
        &["events", "--oldest"],
    ] {
        is_seen(&on(words).await.good());
        let json = on(&[&["--json"], words].concat()).await;
        is_seen(&json.stdout);
        let values = json.values();
        // The value in JSON is the whole text, unchanged.
        let whole = values.iter().any(|value| holds(value, EVIL));
        assert!(whole, "{words:?}: {values:?}");
    }
    for (words, code) in [
        (&["watch", "get", EVIL][..], 1),
        (&["loop", "get", EVIL], 1),
        (&["wait", EVIL], 125),
        (&["check", EVIL], 2),
        (&["run", "--", EVIL], 127),
        (&["no-such-verb", EVIL], 2),
        (&[EVIL], 2),
    ] {
        let ended = on(words).await;
        ended.failed(code, &["evloopctl: "]);
        is_seen(&ended.stderr);
        assert!(ended.stderr.len() < 5000);
    }
    let long = "x".repeat(100_000);
    let ended = on(&["watch", "get", &long]).await;
    ended.failed(1, &["bytes more)"]);
    assert!(ended.stderr.len() < 5000, "{} bytes", ended.stderr.len());
    scene.settle().await;
}

fn holds(value: &Value, text: &str) -> bool {
    match value {
        Value::String(found) => found.contains(text),
        Value::Array(values) => values.iter().any(|value| holds(value, text)),
        Value::Object(values) => values.values().any(|value| holds(value, text)),
        _ => false,
    }
}
