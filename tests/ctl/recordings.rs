//! Recordings that `events --record` writes, across kills and cut connections, are read by `check`.

use std::path::{Path, PathBuf};

use evloopd::history::file::{RecordingFile, Writer};
use evloopd::proto::subscribe_response::Message;
use evloopd::proto::{SubscribeRequest, SubscribeResponse};

use crate::common::{Daemon, Scene, post, shell};
use crate::program::{Following, Proxy, ctl};

/// Returns the path of a socket that does not exist: `check` must not connect.
fn nowhere() -> &'static Path {
    Path::new("/nonexistent/evloopd.sock")
}

fn file(scene: &Scene, name: &str) -> (PathBuf, String) {
    let path = scene.daemon.dir.path().join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

/// Makes some output, an exit and posts; returns the sequence number of the last event.
async fn work(scene: &mut Scene) -> u64 {
    let line = "for i in 1 2 3 4 5 6 7 8 9; do echo $i; done; echo e >&2; exit 3";
    let id = scene.spawn(shell(line)).await;
    scene.closed(id).await;
    let posts = (0..50).map(|_| post("some", &[b'x'; 3000])).collect();
    scene.post(posts).await
}

/// Writes the messages of a tape to another file.
fn write(path: &Path, tape: &RecordingFile) {
    let mut writer = Writer::create(path, true, &tape.request).unwrap();
    for life in &tape.subscriptions {
        let header = Message::Header(life.header.clone());
        for message in std::iter::once(&header).chain(&life.messages) {
            let message = Some(message.clone());
            writer
                .push(&SubscribeResponse {
                    message,
                    ..SubscribeResponse::default()
                })
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_consumer_that_is_killed_and_started_again_misses_nothing() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let socket = scene.daemon.socket.clone();
    let ((a, a_text), (b, b_text)) = (file(&scene, "a.rec"), file(&scene, "b.rec"));
    let args = [
        "--loop",
        "scene",
        "--json",
        "events",
        "-f",
        "--consumer",
        "audit",
        "--record",
    ];
    let first = [&args[..], &[&a_text, "--oldest"]].concat();
    let mut first = Following::start(&socket, &first);
    let halfway = work(&mut scene).await;
    let mut seen = first.seqs(halfway - 20).await;
    first.kill().await;
    let newest = work(&mut scene).await;
    let mut second = Following::start(&socket, &[&args[..], &[&b_text]].concat());
    let again = second.seqs(newest).await;
    second.kill().await;

    assert!(again[0] <= seen.last().unwrap() + 1, "nothing is missing");
    seen.extend(again);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (1..=newest).collect::<Vec<_>>());
    let (a, b) = (
        RecordingFile::read(&a).unwrap(),
        RecordingFile::read(&b).unwrap(),
    );
    let batches: Vec<_> = a.subscriptions[0].recording().unwrap().batches;
    let settled = batches.iter().rev().nth(1).map_or(0, |batch| batch.through);
    let resumed = b.subscriptions[0].header.after;
    assert!(
        resumed >= settled,
        "{resumed}: more than one batch is sent again"
    );

    for files in [&[&a_text][..], &[&b_text], &[&a_text, &b_text]] {
        let words: Vec<&str> = files.iter().map(|f| f.as_str()).collect();
        let checked = ctl(nowhere(), &[&["check"][..], &words].concat()).await;
        assert!(checked.good().contains("kept"));
    }
    let both = ["--json", "check", "--resumed", &a_text, &b_text];
    let checked = ctl(nowhere(), &both).await;
    let value = &checked.values()[0];
    assert_eq!(value["through"], newest, "{value}");
    assert_eq!(value["events"], newest, "{value}");
    assert_eq!((&value["lost"], &value["lives"]), (&0.into(), &2.into()));
    assert_eq!(value["kinds"]["exited"], 2);
    checked.good();
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_recording_goes_on_after_a_broken_connection() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let proxy = Proxy::before(&scene.daemon.socket);
    let (path, text) = file(&scene, "cut.rec");
    for consumer in [&[][..], &["--consumer", "c"]] {
        let args = ["--loop", "scene", "--json", "events", "-f", "--oldest"];
        let record = ["--record", &text, "--force"];
        let args = [&args[..], &record, consumer].concat();
        let mut reader = Following::start(&proxy.socket, &args);
        let mut seen = Vec::new();
        for _ in 0..3 {
            let newest = work(&mut scene).await;
            seen.extend(reader.seqs(newest).await);
            assert!(proxy.cut().await > 0);
        }
        let newest = work(&mut scene).await;
        seen.extend(reader.seqs(newest).await);
        assert_eq!(seen, (1..=newest).collect::<Vec<_>>(), "each once");
        reader.kill().await;
        assert_eq!(RecordingFile::read(&path).unwrap().subscriptions.len(), 4);
        let checked = ctl(nowhere(), &["--json", "check", &text]).await;
        assert_eq!(checked.values()[0]["events"], newest);
        checked.good();
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_violation_is_named_and_differs_from_a_file_that_cannot_be_read() {
    let mut scene = Scene::new(Daemon::start("").await, "", "").await;
    let newest = work(&mut scene).await;
    let socket = scene.daemon.socket.clone();
    let ((good, good_text), (bad, bad_text)) = (file(&scene, "good.rec"), file(&scene, "bad.rec"));
    let record = ["--loop", "scene", "events", "--record", &good_text];
    let printed = ctl(&socket, &record).await;
    assert!(printed.stderr.contains("go on with --after"), "{printed:?}");
    let printed = printed.good();
    assert!(!printed.contains("go on with"), "{printed}");
    ctl(&socket, &record)
        .await
        .failed(2, &["the file exists", "--force"]);
    ctl(nowhere(), &["check", &good_text]).await.good();

    let tape = |plant: &dyn Fn(&mut Message)| {
        let mut tape = RecordingFile::read(&good).unwrap();
        plant(&mut tape.subscriptions[0].messages[0]);
        write(&bad, &tape);
    };
    tape(&|message| {
        let Message::Batch(batch) = message else {
            panic!("{message:?}");
        };
        batch.events.remove(2);
    });
    let found = ctl(nowhere(), &["--json", "check", &bad_text]).await;
    found.failed(1, &["bad.rec", "unaccounted", "3 to 3 are neither"]);
    assert_eq!(found.values()[0]["rule"], "unaccounted");
    tape(&|message| {
        if let Message::Batch(batch) = message {
            batch.events[3].realtime_ns += 1;
        }
    });
    ctl(nowhere(), &["check", &bad_text]).await.good();
    let compared = ctl(nowhere(), &["check", &good_text, &bad_text]).await;
    compared.failed(
        1,
        &[
            "good.rec and",
            "bad.rec",
            "content",
            "event 4 has the content",
        ],
    );

    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(&bad, &bytes[..bytes.len() - 1]).unwrap();
    let cut = ctl(nowhere(), &["--json", "check", &bad_text]).await;
    assert!(cut.stderr.contains("cut off"), "{cut:?}");
    assert!(
        cut.values()[0]["cut_off_bytes"].as_u64() > Some(0),
        "{cut:?}"
    );
    assert_eq!(cut.code, Some(0));
    std::fs::write(&bad, b"evloopd").unwrap();
    ctl(nowhere(), &["check", &bad_text])
        .await
        .failed(2, &["bad.rec", "not a recording"]);
    ctl(nowhere(), &["check", "/nonexistent"])
        .await
        .failed(2, &["/nonexistent", "No such file"]);
    let request = SubscribeRequest::default();
    Writer::create(&bad, true, &request).unwrap();
    let empty = ctl(nowhere(), &["--json", "check", &bad_text]).await;
    assert_eq!(empty.values()[0]["lives"], 0);
    assert!(newest > 0);
    scene.finish().await;
}
