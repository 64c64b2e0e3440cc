//! Explains failures in the words of the command line: which name may have been meant, how a process ended that takes no
//! more input, and in which values a command differs from the one that has its name.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::description;
use super::failure::Failure;
use super::lookup;
use super::options;
use super::parse;
use super::session::Session;
use crate::proto::{GetWatchRequest, ListWatchesRequest, LoopRef, WatchRef, loop_ref, watch_ref};
use crate::similar::did_you_mean;

/// How long the calls that explain a failure may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most other loops on which a name is looked for.
const LOOPS_MAX: usize = 32;

/// Returns the failure with a better message and advice, if calls of the daemon yield them within [`PATIENCE`].
pub(super) async fn explained(session: &Session, failure: Failure) -> Failure {
    let told = |key: &str| failure.detail(key).to_owned();
    let better = async {
        match failure.reason.as_str() {
            "WATCH_NOT_FOUND" => no_watch(session, &told("name"), &told("loop")).await,
            "LOOP_NOT_FOUND" => no_loop(session, &told("name")).await,
            "CONSUMER_NOT_FOUND" => no_consumer(session, &told("name")).await,
            // With another message, this reason means that the policy forbids to make a loop.
            "NO_LOOP_IN_CONTEXT" if failure.to_string().contains("this call makes none") => {
                no_loop_yet(session).await
            }
            "WATCH_CLOSED" => watch_closed(session, &told("watch")).await,
            _ => None,
        }
    };
    let better = timeout(PATIENCE, better).await;
    match better.ok().flatten() {
        Some(Better { message, advice }) => {
            let failure = match message {
                Some(message) => failure.with_message(message),
                None => failure,
            };
            match advice {
                Some(advice) => failure.advice(advice),
                None => failure,
            }
        }
        None => failure,
    }
}

/// Reports a failure that does not end the verb, such as that of one name among several. Returns the exit code.
pub(super) async fn report(session: &Session, failure: Failure) -> u8 {
    let failure = explained(session, failure).await;
    failure.of_verb(&session.verb).report()
}

/// A message and advice in place of the daemon's.
#[derive(Debug, Default)]
struct Better {
    message: Option<String>,
    advice: Option<String>,
}

fn meant(close: Option<&str>) -> Option<String> {
    close.map(|name| format!("did you mean `{name}`?"))
}

async fn no_watch(session: &Session, name: &str, on: &str) -> Option<Better> {
    if name.is_empty() {
        return None;
    }
    let message = Some(format!("there is no `{name}` on loop `{on}`"));
    let all = lookup::watches(session, ListWatchesRequest::default()).await;
    let all = all.unwrap_or_default();
    let names = all.iter().map(|watch| watch.name.as_str());
    let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    let mut advice = None;
    if !name.starts_with('@') {
        // The name may be meant as an id: other tools take ids without `@`.
        let numbered = name
            .parse()
            .ok()
            .and_then(|id: u64| all.iter().find(|w| w.watch_id == id));
        advice = numbered.map(|_| format!("an id is written `@{name}`"));
    }
    if advice.is_none() && !name.starts_with('@') {
        advice = elsewhere(session, name).await;
        advice = advice.or_else(|| meant(did_you_mean(name, names.iter().copied())));
    }
    if all.is_empty() {
        advice = advice.or_else(|| {
            Some("the loop has no watches; `evloopctl loop list` lists your loops".to_owned())
        });
    }
    Some(Better { message, advice })
}

/// Returns advice if another loop of the caller has a watch of that name.
async fn elsewhere(session: &Session, name: &str) -> Option<String> {
    let loops = lookup::loops(session, false).await.ok()?;
    for other in loops.iter().take(LOOPS_MAX) {
        let request = GetWatchRequest {
            r#loop: Some(LoopRef {
                r#ref: Some(loop_ref::Ref::LoopId(other.loop_id)),
            }),
            watch: Some(WatchRef {
                r#ref: Some(watch_ref::Ref::Name(name.to_owned())),
            }),
        };
        if session.watches().get_watch(request).await.is_ok() {
            let other = &other.name;
            return Some(format!("loop `{other}` has one: add `--loop {other}`"));
        }
    }
    None
}

/// Explains the failure to a user who has no loop yet.
async fn no_loop_yet(session: &Session) -> Option<Better> {
    let loops = lookup::loops(session, false).await.ok()?;
    loops.is_empty().then(|| Better {
        message: Some("you have no loop yet".to_owned()),
        advice: Some("`evloopctl run -- CMD` makes one and runs CMD on it".to_owned()),
    })
}

async fn no_loop(session: &Session, name: &str) -> Option<Better> {
    let loops = lookup::loops(session, true).await.ok()?;
    Some(nearest(name, loops.iter().map(|found| found.name.as_str())))
}

async fn no_consumer(session: &Session, name: &str) -> Option<Better> {
    let consumers = lookup::consumers(session).await.ok()?;
    Some(nearest(
        name,
        consumers.iter().map(|found| found.name.as_str()),
    ))
}

fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Better {
    Better {
        advice: meant(did_you_mean(name, names)),
        ..Better::default()
    }
}

async fn watch_closed(session: &Session, id: &str) -> Option<Better> {
    let found = lookup::watch(session, &parse::watch_id(id).ok()?)
        .await
        .ok()?;
    let message =
        description::end(&found).map(|end| format!("{} {end}", description::reference(&found)));
    Some(Better {
        message,
        ..Better::default()
    })
}

/// Explains that a name is taken, with both values of the field in which the two differ. `there` and `asked` are their JSON,
/// in which the daemon's path of the field leads to the values. `advice` says what to do about it.
pub(super) fn differing(
    failure: Failure,
    name: &str,
    there: &Value,
    asked: &Value,
    advice: &str,
) -> Failure {
    let field = failure.detail("field").to_owned();
    if failure.reason != "NAME_TAKEN" || field.is_empty() {
        return failure;
    }
    if field == "spec" {
        let kind = |value: &Value| {
            let kind = value.pointer("/spec/spec").and_then(Value::as_str);
            kind.unwrap_or("watch").replace('_', " ")
        };
        let (there, asked) = (kind(there), kind(asked));
        let what = format!("`{name}` is a {there}, you asked for a {asked}");
        let advice = format!("`evloopctl rm {name}` ends and forgets it; or choose another name");
        return failure.with_message(what).advice(advice);
    }
    let [there, asked] = [there, asked].map(|value| value_at(value, &field));
    let last = field.rsplit('.').next().unwrap_or_default();
    let message = match last {
        "exec" | "shell" | "command" | "argv" | "argv_bytes" => {
            format!("`{name}` already ran as `{there}`, you asked for `{asked}`")
        }
        _ => {
            let what = options::option(&field).unwrap_or_else(|| last.replace('_', " "));
            format!("`{name}` is there with {what} `{there}`, you asked for `{asked}`")
        }
    };
    failure.with_message(message).advice(advice)
}

/// Returns the value of a field as a user would type it.
fn value_at(mut value: &Value, path: &str) -> String {
    for key in path.split('.') {
        let of = value;
        value = of.get(key).unwrap_or(&Value::Null);
        // The value of a oneof is the name of the member that is set.
        if let Some(member) = value.as_str().and_then(|member| of.get(member)) {
            value = member;
        }
    }
    match worded(value) {
        // The root directory is sent as an empty text.
        text if text.is_empty() && path.ends_with("cwd") => "/".to_owned(),
        text => text,
    }
}

fn worded(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(words) => {
            let words: Vec<_> = words.iter().map(worded).collect();
            shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
        }
        Value::Object(object) => {
            let argv = object.get("argv").filter(|argv| argv.get(0).is_some());
            let argv = argv.or_else(|| object.get("argv_bytes"));
            match argv.or_else(|| object.get("text")) {
                Some(value) => worded(value),
                None => {
                    let words = object.iter().map(|(k, v)| format!("{k}={}", worded(v)));
                    words.collect::<Vec<_>>().join(" ")
                }
            }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_found_by_the_path_of_the_field_and_told_as_they_are_typed() {
        let value = json!({"spec": {"spec": "process", "process": {
            "command": "exec",
            "exec": {"argv": ["sh", "-c", "exit 3"], "argv_bytes": []},
            "cwd": "/tmp",
            "nice": 5,
            "limits": [],
        }}});
        for (path, told) in [
            ("spec.process.command", "sh -c 'exit 3'"),
            ("spec.process.exec", "sh -c 'exit 3'"),
            ("spec.process.exec.argv", "sh -c 'exit 3'"),
            ("spec.process.cwd", "/tmp"),
            ("spec.process.nice", "5"),
            ("spec.process.umask", "none"),
            ("spec.timer", "none"),
        ] {
            assert_eq!(value_at(&value, path), told, "{path}");
        }
        let bytes = json!({"argv": [], "argv_bytes": [{"text": "ls"}, {"base64": "/w=="}]});
        assert_eq!(worded(&bytes), "ls 'base64=/w=='");
        assert_eq!(worded(&json!({"A": "1", "B": 2})), "A=1 B=2");
    }
}
