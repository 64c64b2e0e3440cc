//! `--json`: each line of every verb is a message of the proto files, with all of its fields.

use std::collections::BTreeSet;

use evloopd::proto::FILE_DESCRIPTOR_SET;
use prost_reflect::{DescriptorPool, MessageDescriptor};
use serde_json::Value;

use crate::common::Daemon;
use crate::program::ctl;

/// Returns the keys that a message must have, and all that it may have.
fn keys(message: &MessageDescriptor) -> [BTreeSet<String>; 2] {
    let always = message.fields().filter(|field| !field.supports_presence());
    let always = always.map(|field| field.name().to_owned()).collect();
    let all = message.fields().map(|field| field.name().to_owned());
    let oneofs = message.oneofs().filter(|oneof| !oneof.is_synthetic());
    let oneofs = oneofs.map(|oneof| oneof.name().to_owned());
    [always, all.chain(oneofs).collect()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_verb_prints_the_message_that_the_readme_names() {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let daemon = Daemon::start("").await;
    let on = async |words: &[&str]| {
        let line = [&["--json"], words].concat();
        let ended = ctl(&daemon.socket, &line).await;
        assert!(ended.stderr.is_empty() && ended.code.is_some(), "{ended:?}");
        ended.values()
    };
    for (words, messages) in [
        (
            &[
                "run",
                "-d",
                "--name",
                "p",
                "--",
                "sh",
                "-c",
                "echo x; exit 3",
            ][..],
            &["Watch"][..],
        ),
        (&["wait", "p"], &["Watch"]),
        (&["run", "--", "echo", "x"], &["Event"]),
        (&["attach", "p"], &["Event"]),
        (&["logs", "p"], &["Event"]),
        (&["ps"], &["Watch"]),
        (&["show", "p"], &["Watch"]),
        (&["status", "p"], &["Watch"]),
        (
            &["watch", "timer", "--every", "1h", "--name", "t"],
            &["Watch"],
        ),
        (&["watch", "list"], &["Watch"]),
        (&["watch", "get", "t"], &["Watch"]),
        (&["after", "1ms"], &["Event"]),
        (&["post", "topic", "text"], &["PostResponse"]),
        (&["events"], &["Event"]),
        (&["consumer", "create", "c"], &["Consumer"]),
        (&["consumer", "list"], &["Consumer"]),
        (&["consumer", "show", "c"], &["Consumer"]),
        (&["show", "c"], &["Consumer"]),
        (&["consumer", "delete", "c"], &["DeleteConsumerResponse"]),
        (&["loop", "new", "l"], &["Loop"]),
        (&["loop", "get", "l"], &["Loop"]),
        (&["loop", "list"], &["Loop"]),
        (&["show", "l"], &["Loop"]),
        (&["loop", "stop", "l"], &["StopLoopResponse"]),
        (&["loop", "run", "l"], &["RunLoopResponse"]),
        (&["loop", "close", "l", "--stop"], &["CloseLoopResponse"]),
        (&["policy", "list"], &["Policy"]),
        (&["policy", "get"], &["GetEventLoopPolicyResponse"]),
        (&["policy", "get", "default"], &["Policy"]),
        (&["policy", "set"], &["SetEventLoopPolicyResponse"]),
        (&["config"], &["ConfigValue"]),
        (&["backends"], &["Backend", "DocumentedLoop"]),
        (&["version"], &["GetServerInfoResponse"]),
        (&["status"], &["GetServerInfoResponse", "GetStatusResponse"]),
    ] {
        let values = on(words).await;
        assert!(!values.is_empty(), "{words:?}");
        let messages = messages.iter().map(|name| {
            let name = format!("evloopd.v1.{name}");
            keys(&pool.get_message_by_name(&name).unwrap())
        });
        let messages: Vec<_> = messages.collect();
        for value in values {
            let Value::Object(object) = &value else {
                panic!("{words:?}: {value}")
            };
            // These are added by evloopctl itself.
            let own = ["client_version", "connected_to", "losses"];
            let found = object.keys().filter(|key| !own.contains(&key.as_str()));
            let found: BTreeSet<String> = found.cloned().collect();
            let is = |[always, all]: &[BTreeSet<String>; 2]| {
                always.is_subset(&found) && found.is_subset(all)
            };
            let all: BTreeSet<_> = messages.iter().flat_map(|[_, all]| all.clone()).collect();
            let together = messages.iter().all(|[always, _]| always.is_subset(&found));
            let together = together && found.is_subset(&all);
            assert!(messages.iter().any(is) || together, "{words:?}: {value}");
        }
    }
}
