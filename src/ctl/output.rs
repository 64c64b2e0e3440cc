//! What goes to stdout: text for people, one JSON object per line for scripts.

use std::fmt::Write as _;
use std::future::pending;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;

use prost::{Message, Name};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use tokio::io::Interest;

use super::failure::Failure;
use super::json;
use super::style::{DIM, printable};
use crate::sys::async_fd;
use crate::text;

/// Writes text, colours included where stdout takes them.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::output(&error))
}

/// Writes one line.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Writes a line on stderr that is no result, such as how to go on; nothing is said if nobody reads it.
pub(super) fn note(text: &str) {
    let _ = anstream::stderr().write_all(format!("{DIM}{text}{DIM:#}\n").as_bytes());
}

/// Writes each value as a line of JSON.
pub(super) fn json_lines<'a>(values: impl IntoIterator<Item = &'a Value>) -> Result<(), Failure> {
    let text: String = values
        .into_iter()
        .map(|value| json_line(value) + "\n")
        .collect();
    raw(&text)
}

/// Writes each message as a line of JSON.
pub(super) fn messages<'a, M: Message + Name + 'a>(
    messages: impl IntoIterator<Item = &'a M>,
) -> Result<(), Failure> {
    let lines = messages
        .into_iter()
        .map(|message| json::line(message) + "\n");
    raw(&lines.collect::<String>())
}

/// A value as JSON on one line, without the newline; what is hidden in it is escaped.
pub(super) fn json_line(value: &Value) -> String {
    text::json(&value.to_string()).into_owned()
}

/// Writes text as it is, whatever it looks like.
pub(super) fn raw(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::output(&error))
}

/// Waits until nobody reads stdout any more: the pipe it goes to was closed at the other end.
/// For ever, if it goes anywhere else. So `events -f | head -1` ends on a quiet loop too.
pub(super) async fn reader_gone() {
    // A file cannot be waited for, and has no reader that leaves.
    let own = io::stdout().as_fd().try_clone_to_owned();
    let Ok(stdout) = own.and_then(|fd| async_fd(Arc::new(fd), Interest::ERROR)) else {
        return pending().await;
    };
    loop {
        let Ok(mut guard) = stdout.ready(Interest::ERROR).await else {
            return pending().await;
        };
        if broken(stdout.get_ref()) {
            return;
        }
        guard.clear_ready();
    }
}

fn broken(pipe: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

/// One object: as JSON, or as aligned lines of `key  value`, nested keys joined by dots.
pub(super) fn object(json: bool, value: &Value) -> Result<(), Failure> {
    if json {
        return json_lines([value]);
    }
    let mut pairs = Vec::new();
    flatten("", value, &mut pairs);
    let width = pairs
        .iter()
        .map(|(key, _)| key.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (key, value) in pairs {
        let _ = writeln!(text, "{DIM}{key:width$}{DIM:#}  {}", printable(&value));
    }
    print(&text)
}

fn flatten(prefix: &str, value: &Value, pairs: &mut Vec<(String, String)>) {
    let inside = |key: &str| match prefix {
        "" => key.to_owned(),
        prefix => format!("{prefix}.{key}"),
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&inside(key), value, pairs);
            }
        }
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let words: Vec<_> = items.iter().filter_map(Value::as_str).collect();
            pairs.push((prefix.to_owned(), words.join(" ")));
        }
        Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                flatten(&inside(&i.to_string()), value, pairs);
            }
        }
        Value::String(text) => pairs.push((prefix.to_owned(), text.clone())),
        Value::Null => pairs.push((prefix.to_owned(), "unknown".to_owned())),
        other => pairs.push((prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_flattened_for_people() {
        let mut pairs = Vec::new();
        let value =
            serde_json::json!({"a": {"b": 1, "c": ["x", "y"]}, "d": [{"e": true}], "f": null});
        flatten("", &value, &mut pairs);
        let expected = [
            ("a.b", "1"),
            ("a.c", "x y"),
            ("d.0.e", "true"),
            ("f", "unknown"),
        ];
        assert_eq!(pairs, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
