//! Writes results to stdout: text for people, one JSON object per line for scripts.

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

/// Writes text to stdout. Colours are left out if stdout is not a terminal, or `NO_COLOR` is set.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::output(&error))
}

/// Writes one line to stdout, as [`print`] does.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Writes a hint to stderr, such as how to go on. An error is ignored: the hint is not part of the result.
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

/// Returns a value as one line of JSON without a newline; invisible characters are escaped.
pub(super) fn json_line(value: &Value) -> String {
    text::json(&value.to_string()).into_owned()
}

/// Writes text to stdout unchanged, even if it looks like colours.
pub(super) fn raw(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::output(&error))
}

/// Writes bytes to stdout unchanged.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| Failure::output(&error))
}

/// Waits until the reader of the pipe that stdout is has closed it. Never returns if stdout is not a pipe or a socket. So
/// `events -f | head -1` ends even if no further event comes.
pub(super) async fn reader_gone() {
    // epoll does not take regular files, and they have no reader.
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

/// Writes one object: as a line of JSON, or as lines of key and value, in which nested keys are joined by dots.
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
