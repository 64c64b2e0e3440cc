//! Texts from clients that imitate something else: log lines, terminal commands, other words.

use std::collections::BTreeMap;

use evloopd::proto::batch_add_watches_result::Result as Item;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use evloopd::text::is_hidden;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::common::{
    Daemon, Scene, by_name, connection, exec, loop_named, never, post, refusal, shell, within,
};

/// A text that imitates another log record, other fields of its own record, and terminal commands.
const EVIL: &str = "x\" action=\"forged\" \n2026-01-01T00:00:00.000000Z  INFO evloopd::audit: done \
                    principal=uid:0 action=\"forged\"\r\x1b[2J\x1b]0;t\x07\u{9b}31m\u{85}\u{2028}\
                    \u{202e}\u{2066}\u{200b}\u{ad}\u{e0041}\u{feff}";

/// The longest line of the log in bytes: an object, an error, and the fields around them.
const LINE_MAX: usize = 2 * 1024 * 2 + 512;

/// The longest message of an error in bytes, as clients limit it.
const MESSAGE_MAX: usize = 1024;

#[track_caller]
fn is_fit(text: &str) {
    assert!(text.len() <= MESSAGE_MAX, "{} bytes", text.len());
    assert!(!text.contains(is_hidden), "{text:?}");
}

#[track_caller]
fn is_told_well(status: &Status) {
    is_fit(status.message());
    let details = status.get_error_details();
    let info = details.error_info();
    let info = info.unwrap_or_else(|| panic!("the error has no ErrorInfo: {status:?}"));
    info.metadata.values().for_each(|value| is_fit(value));
    let bad = details.bad_request();
    for violation in bad.map_or(&[][..], |bad| &bad.field_violations) {
        is_fit(&violation.field);
        is_fit(&violation.description);
    }
}

fn fifo(path: &str) -> Spec {
    Spec::ReadPipe(ReadPipeSpec {
        source: Some(read_pipe_spec::Source::FifoPath(path.into())),
        ..ReadPipeSpec::default()
    })
}

fn unix(path: &str) -> Spec {
    let name = Some(unix_address::Name::Path(path.into()));
    Spec::Connection(connection(connection_spec::Target::Unix(UnixAddress {
        name,
    })))
}

fn signal(name: &str) -> Spec {
    Spec::Signal(SignalSpec {
        signals: vec![name.into()],
    })
}

fn specs(evil: &str) -> Vec<Spec> {
    let place = |cwd: String| ProcessSpec {
        cwd,
        ..shell("true")
    };
    vec![
        fifo(&format!("/{evil}")),
        unix(&format!("/{evil}")),
        signal(evil),
        Spec::Process(exec(&[evil])),
        Spec::Process(exec(&["/bin/true", evil])),
        Spec::Process(shell(&format!("# {evil}"))),
        Spec::Process(place(format!("/{evil}"))),
    ]
}

/// Sends the text in every field that takes text.
async fn say(scene: &mut Scene, evil: &str) {
    let mut refused = Vec::new();
    for spec in specs(evil) {
        let request = AddWatchRequest {
            request_id: evil.chars().take(20).collect(),
            labels: BTreeMap::from([(evil.chars().take(20).collect(), "x\n\x1b".into())]),
            ..scene.request(spec)
        };
        let again = AddWatchRequest {
            name: evil.into(),
            ..request.clone()
        };
        let answers = [scene.try_add(request).await, scene.try_add(again).await];
        refused.extend(answers.into_iter().filter_map(Result::err));
    }
    let here = || Some(scene.target.clone());
    let daemon = &scene.daemon;
    let by_name = || by_name(evil);
    let remove = RemoveWatchRequest {
        r#loop: here(),
        watch: by_name(),
        ..RemoveWatchRequest::default()
    };
    refused.extend(daemon.watches().remove_watch(remove.clone()).await.err());
    let elsewhere = RemoveWatchRequest {
        r#loop: Some(loop_named(evil)),
        ..remove
    };
    refused.extend(daemon.watches().remove_watch(elsewhere).await.err());
    let send = SendSignalRequest {
        r#loop: here(),
        watch: by_name(),
        signal: evil.into(),
        ..SendSignalRequest::default()
    };
    refused.extend(daemon.processes().send_signal(send).await.err());
    let posted = PostRequest {
        r#loop: here(),
        posts: vec![post(evil, b"")],
        ..PostRequest::default()
    };
    refused.extend(daemon.events().post(posted).await.err());
    let consumer = CreateConsumerRequest {
        r#loop: here(),
        name: evil.into(),
        ..CreateConsumerRequest::default()
    };
    refused.extend(daemon.events().create_consumer(consumer).await.err());
    let consumer = DeleteConsumerRequest {
        r#loop: here(),
        name: evil.into(),
        ..DeleteConsumerRequest::default()
    };
    refused.extend(daemon.events().delete_consumer(consumer).await.err());
    let made = NewEventLoopRequest {
        name: evil.into(),
        policy: evil.into(),
        ..NewEventLoopRequest::default()
    };
    refused.extend(daemon.policies().new_event_loop(made).await.err());
    let policy = SetEventLoopPolicyRequest {
        policy_name: Some(evil.into()),
        ..SetEventLoopPolicyRequest::default()
    };
    refused.extend(daemon.policies().set_event_loop_policy(policy).await.err());
    assert!(refused.len() >= 14, "{refused:?}");
    refused.iter().for_each(is_told_well);

    let one = AddWatchRequest {
        name: evil.into(),
        r#loop: None,
        ..scene.request(never())
    };
    let batch = BatchAddWatchesRequest {
        r#loop: here(),
        requests: vec![one],
        ..BatchAddWatchesRequest::default()
    };
    let answer = daemon.watches().batch_add_watches(batch).await.unwrap();
    for result in answer.into_inner().results {
        match result.result {
            Some(Item::Error(error)) => {
                is_fit(&error.message);
                error.metadata.values().for_each(|value| is_fit(value));
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn as_session(daemon: &Daemon, name: &[u8]) -> Option<Status> {
    let mut request = Request::new(GetEventLoopRequest::default());
    // HTTP/2 allows no control characters in metadata, but bytes that are not ASCII.
    let name = MetadataValue::try_from(name).unwrap();
    request.metadata_mut().insert("evloopd-session", name);
    daemon.policies().get_event_loop(request).await.err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_text_from_outside_forges_a_log_line_or_floods_an_answer() {
    for format in ["text", "json", "journald"] {
        let config = format!("[log]\nformat = \"{format}\"\n");
        let mut scene = Scene::new(Daemon::start(&config).await, "", "").await;
        say(&mut scene, EVIL).await;
        say(&mut scene, &EVIL.repeat(1000)).await;
        say(&mut scene, &"x".repeat(1 << 20)).await;
        let session = as_session(&scene.daemon, "x\u{202e}\u{9b}\" forged".as_bytes()).await;
        is_told_well(&session.expect("no session has such a name"));
        scene.finish_log(format).await;
    }
}

impl Scene {
    /// Checks that each line of the log is a whole record and none is a forged one.
    async fn finish_log(self, format: &str) {
        let log = self.daemon.log();
        assert!(log.contains("forged"), "the calls are audited: {log}");
        for line in log.lines() {
            assert!(line.len() <= LINE_MAX, "{} bytes", line.len());
            assert!(!line.contains(is_hidden), "{line:?}");
            assert!(!line.contains("action=\"forged\""), "{line:?}");
            match format {
                "json" => {
                    let record: serde_json::Value = serde_json::from_str(line).unwrap();
                    assert_ne!(record["fields"]["action"], "forged");
                }
                "journald" => assert!(line.trim_start().starts_with(['I', 'W']), "{line:?}"),
                _ => assert!(
                    line.starts_with("20") && line.contains(" evloopd::"),
                    "{line:?}"
                ),
            }
        }
        within("the end", self.finish()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_reason_of_a_refusal_is_a_plain_trailer_too() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    let asked = GetLoopRequest {
        r#loop: Some(loop_named("nowhere")),
    };
    let status = scene.daemon.loops().get_loop(asked).await.unwrap_err();
    assert_eq!(refusal(&status).code, Code::NotFound);
    let reason = status.metadata().get("evloopd-reason").expect("a trailer");
    assert_eq!(reason, "LOOP_NOT_FOUND");
    scene.finish().await;
}
