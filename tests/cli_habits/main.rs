//! The commands that users of other tools type first. Runs every step of `habits.md`, in order,
//! against a real daemon.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

#[path = "../common/mod.rs"]
mod common;

use common::{Daemon, within};

const HABITS: &str = include_str!("habits.md");

/// A command line and its expected output.
#[derive(Debug, Default)]
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
    code: i32,
}

/// Returns the steps in the blocks marked `console`: `$ COMMAND`, then the lines that it prints to
/// stdout and stderr, then `? CODE` if its exit code is not 0.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if !inside {
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                line: number + 1,
                command: command.to_owned(),
                ..Step::default()
            });
        } else {
            let step = steps.last_mut().expect("a command comes first");
            match line.strip_prefix("? ") {
                Some(code) => step.code = code.parse().unwrap(),
                None => step.expected.push(line.to_owned()),
            }
        }
    }
    steps
}

/// Compares lines: `[..]` stands for any text within a line, and a line `...` for any lines.
fn is_as_expected(expected: &[String], lines: &[&str]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((any, rest)) if any == "..." => {
            (0..=lines.len()).any(|skipped| is_as_expected(rest, &lines[skipped..]))
        }
        Some((first, rest)) => lines.split_first().is_some_and(|(line, others)| {
            is_line_as_expected(first, line) && is_as_expected(rest, others)
        }),
    }
}

fn is_line_as_expected(expected: &str, line: &str) -> bool {
    let mut parts = expected.split("[..]");
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

async fn run(daemon: &Daemon, command: &str) -> (String, i32) {
    let programs = Path::new(env!("CARGO_BIN_EXE_evloopctl")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell
        .args(["-c", &format!("{{ {command}\n}} 2>&1")])
        .current_dir(daemon.dir.path())
        .env("PATH", path)
        .env("EVLOOPD_SOCKET", &daemon.socket)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = within(command, shell.output()).await.unwrap();
    let code = output.status.code().unwrap();
    (String::from_utf8(output.stdout).unwrap(), code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn habits_of_other_tools_work_or_name_the_right_command() {
    let daemon = Daemon::start("[children]\ncgroups = \"off\"").await;
    let mut wrong = Vec::new();
    let steps = steps(HABITS);
    assert!(steps.len() >= 30, "{}", steps.len());
    for step in steps {
        let (output, code) = run(&daemon, &step.command).await;
        let lines: Vec<_> = output.lines().map(str::trim_end).collect();
        if code != step.code || !is_as_expected(&step.expected, &lines) {
            let (line, command) = (step.line, &step.command);
            wrong.push(format!("habits.md:{line}: $ {command}\n{output}? {code}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn wildcards_stand_for_text_and_for_lines() {
    let lines = ["build  @1  running", "web  @2  stopped"];
    let fits = |expected: &[&str]| {
        let expected: Vec<_> = expected.iter().map(|line| (*line).to_owned()).collect();
        is_as_expected(&expected, &lines)
    };
    assert!(fits(&["build  @1  running", "web  @2  stopped"]));
    assert!(fits(&["[..]running", "web[..]@2[..]"]) && fits(&["...", "web[..]"]));
    assert!(fits(&["..."]) && fits(&["build[..]", "..."]));
    assert!(!fits(&["build[..]"]) && !fits(&["[..]stopped", "..."]) && !fits(&[]));
    assert!(!fits(&["build[..]nothing", "web[..]"]) && !fits(&["", "..."]));
}
