//! The conditions of `ps --filter`.

use glob::Pattern;

use super::super::description;
use super::super::exit::is_success;
use super::super::parse;
use crate::proto::{Watch, WatchState, exited, watch::Status, watch_ref};

/// A condition of `--filter`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Condition {
    Name(Pattern),
    Status(Stage),
    Exited(i32),
    Label(String, Option<String>),
    Id(u64),
}

/// A value of `--filter status=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Running,
    Stopped,
    Ended,
    Failed,
}

/// Reads a condition, `KEY=VALUE`.
pub(super) fn condition(text: &str) -> Result<Condition, String> {
    let keys = "allowed are name=, status=, exited=, label= and id=";
    let (key, value) = text.split_once('=').ok_or(keys)?;
    Ok(match key {
        "name" => {
            let pattern = match value.contains(['*', '?', '[']) {
                true => value.to_owned(),
                false => format!("*{}*", Pattern::escape(value)),
            };
            Condition::Name(Pattern::new(&pattern).map_err(|error| error.to_string())?)
        }
        "status" | "state" => Condition::Status(match value {
            "running" | "up" => Stage::Running,
            "stopped" | "paused" => Stage::Stopped,
            "ended" | "exited" | "done" | "finished" => Stage::Ended,
            "failed" => Stage::Failed,
            _ => return Err("status= is running, stopped, ended or failed".to_owned()),
        }),
        "exited" => Condition::Exited(value.parse().map_err(|_| "exited= needs a number")?),
        "label" => match value.split_once('=') {
            Some((key, value)) => Condition::Label(key.to_owned(), Some(value.to_owned())),
            None => Condition::Label(value.to_owned(), None),
        },
        "id" => match parse::watch_id(value.trim_start_matches('@'))?.r#ref {
            Some(watch_ref::Ref::WatchId(id)) => Condition::Id(id),
            _ => return Err("id= needs a number, such as id=@7".to_owned()),
        },
        _ => return Err(format!("there is no key `{key}`; {keys}")),
    })
}

impl Condition {
    pub(super) fn holds(&self, process: &Watch) -> bool {
        match self {
            Self::Name(pattern) => pattern.matches(&process.name),
            Self::Status(status) => status.holds(process),
            Self::Exited(code) => {
                let status = description::exited(process).and_then(|exited| exited.status.as_ref());
                status == Some(&exited::Status::Code(*code))
            }
            Self::Label(key, value) => {
                let found = process.labels.get(key);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
            Self::Id(id) => process.watch_id == *id,
        }
    }

    /// Returns the key of the condition. Of the conditions with the same key, one has to hold. Each label is a key of its
    /// own.
    pub(super) fn key(&self) -> (u8, &str) {
        match self {
            Self::Name(_) => (0, ""),
            Self::Status(_) => (1, ""),
            Self::Exited(_) => (2, ""),
            Self::Label(key, _) => (3, key),
            Self::Id(_) => (4, ""),
        }
    }
}

impl Stage {
    fn holds(self, process: &Watch) -> bool {
        let closed = process.state() == WatchState::Closed;
        let exited = description::exited(process);
        let status = match &process.status {
            Some(Status::Process(status)) => Some(status),
            _ => None,
        };
        let stopped = status.is_some_and(|status| status.stopped);
        let known = closed || exited.is_some();
        let ended = known || status.is_some_and(|status| status.ended_untold);
        match self {
            Self::Running => !ended && !stopped,
            Self::Stopped => !ended && stopped,
            Self::Ended => ended,
            Self::Failed => known && !exited.is_some_and(is_success),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::Ps;
    use super::*;
    use crate::proto::{Exited, ProcessStatus};

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        ps: Ps,
    }

    fn process(name: &str, status: Option<exited::Status>) -> Watch {
        let exited = status.map(|status| Exited {
            status: Some(status),
            ..Exited::default()
        });
        Watch {
            name: name.to_owned(),
            labels: [("team".to_owned(), "ci".to_owned())].into(),
            status: Some(Status::Process(ProcessStatus {
                exited,
                ..ProcessStatus::default()
            })),
            ..Watch::default()
        }
    }

    #[test]
    fn filters_are_any_of_one_key_and_all_keys() {
        let all = [
            process("build", None),
            process("build-2", Some(exited::Status::Code(0))),
            process("test", Some(exited::Status::Code(3))),
            process("web", Some(exited::Status::Signal(9))),
        ];
        let shown = |filters: &[&str]| -> Vec<&str> {
            let words = filters.iter().flat_map(|filter| ["--filter", filter]);
            let line = Line::try_parse_from(["ps"].into_iter().chain(words)).unwrap();
            let shown = all.iter().filter(|p| line.ps.shows(p));
            shown.map(|p| p.name.as_str()).collect()
        };
        assert_eq!(shown(&[]).len(), 4);
        assert_eq!(shown(&["name=build"]), ["build", "build-2"]);
        assert_eq!(shown(&["name=b*d"]), ["build"]);
        assert_eq!(shown(&["name=web", "name=test"]), ["test", "web"]);
        assert_eq!(shown(&["status=running"]), ["build"]);
        assert_eq!(shown(&["status=failed"]), ["test", "web"]);
        assert_eq!(shown(&["status=ended", "name=build"]), ["build-2"]);
        assert_eq!(shown(&["exited=3"]), ["test"]);
        assert_eq!(shown(&["label=team"]).len(), 4);
        assert!(shown(&["label=team=qa"]).is_empty());
        for wrong in ["build", "nam=x", "status=gone", "exited=x", "id=x"] {
            assert!(condition(wrong).is_err(), "{wrong}");
        }
    }
}
