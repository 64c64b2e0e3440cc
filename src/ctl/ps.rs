//! `ps`: the processes.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use glob::Pattern;
use tokio::time::sleep;

use super::failure::{Failure, Outcome};
use super::feed::{Feed, Item, Source, cut_short};
use super::json;
use super::output;
use super::parse;
use super::session::Session;
use super::table::{NAME, Table, cell, plain, printable, terminal_size};
use super::units::age;
use super::watch::{self, show};
use crate::proto::{
    EventKind, Filter, ListWatchesRequest, OnGap, StartAt, SubscribeRequest, Watch, WatchRef,
    WatchState, exited, subscribe_request::Start, watch::Status, watch_ref,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl ps
  evloopctl ps --filter status=failed --filter label=team=ci
  evloopctl kill $(evloopctl ps -q --running)
  evloopctl ps --watch

Finished processes are shown until `evloopctl rm NAME`, or until their time is up.
A process is `stopped` after SIGSTOP or SIGTSTP, until SIGCONT. One that is `ended, not told yet`
is on a stopped loop, which tells how it ended once it runs (`evloopctl loop run`).";

/// On a terminal, `--watch` shows ages anew that often.
const TICK: Duration = Duration::from_secs(1);
/// At most so often `--watch` looks, however much happens.
const PAUSE: Duration = Duration::from_millis(200);

/// Options of `ps`.
#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Those that have ended too; that is so anyway, without --running
    #[arg(short, long, conflicts_with = "running")]
    all: bool,
    /// Only those that run
    #[arg(short, long)]
    running: bool,
    /// Only their names, one a line (`@7` for one without)
    #[arg(short, long)]
    quiet: bool,
    /// Only those with name=TEXT (a part of it, or a pattern with * and ?), status=running, stopped, ended or failed,
    /// exited=CODE, label=KEY[=VALUE] or id=@7; may be repeated: any of one key, all keys
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = condition)]
    filters: Vec<Condition>,
    /// Only the newest N
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Only the newest
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
    /// Cut nothing, however narrow the terminal is
    #[arg(long)]
    no_trunc: bool,
    /// Go on, and show them anew whenever something changes
    #[arg(short, long)]
    watch: bool,
}

/// One condition of `--filter`.
#[derive(Debug, Clone, PartialEq)]
enum Condition {
    Name(Pattern),
    Status(Stage),
    Exited(i32),
    Label(String, Option<String>),
    Id(u64),
}

/// What `--filter status=` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Stopped,
    Ended,
    Failed,
}

fn condition(text: &str) -> Result<Condition, String> {
    let keys = "name=, status=, exited=, label= and id= are allowed";
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
            _ => return Err("status is running, stopped, ended or failed".to_owned()),
        }),
        "exited" => Condition::Exited(value.parse().map_err(|_| "exited=CODE is a number")?),
        "label" => match value.split_once('=') {
            Some((key, value)) => Condition::Label(key.to_owned(), Some(value.to_owned())),
            None => Condition::Label(value.to_owned(), None),
        },
        "id" => match parse::watch_id(value.trim_start_matches('@'))?.r#ref {
            Some(watch_ref::Ref::WatchId(id)) => Condition::Id(id),
            _ => return Err("id=@7 is a number".to_owned()),
        },
        _ => return Err(format!("`{key}` is no key; {keys}")),
    })
}

impl Condition {
    fn holds(&self, process: &Watch) -> bool {
        match self {
            Self::Name(pattern) => pattern.matches(&process.name),
            Self::Status(status) => status.holds(process),
            Self::Exited(code) => {
                let status = show::exited(process).and_then(|exited| exited.status.as_ref());
                status == Some(&exited::Status::Code(*code))
            }
            Self::Label(key, value) => {
                let found = process.labels.get(key);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
            Self::Id(id) => process.watch_id == *id,
        }
    }

    /// Conditions that are the same here are alternatives. Every label is asked for.
    fn key(&self) -> (u8, &str) {
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
        let exited = show::exited(process);
        let stopped = matches!(&process.status, Some(Status::Process(p)) if p.stopped);
        let ended = closed || exited.is_some();
        match self {
            Self::Running => !ended && !stopped,
            Self::Stopped => !ended && stopped,
            Self::Ended => ended,
            Self::Failed => {
                let status = exited.and_then(|exited| exited.status.as_ref());
                ended && status != Some(&exited::Status::Code(0))
            }
        }
    }
}

impl Ps {
    fn shows(&self, process: &Watch) -> bool {
        let mut keys = BTreeMap::new();
        for condition in &self.filters {
            *keys.entry(condition.key()).or_insert(false) |= condition.holds(process);
        }
        keys.values().all(|holds| *holds)
    }

    async fn list(&self, session: &Session) -> Result<Vec<Watch>, Failure> {
        let request = ListWatchesRequest {
            watch_kinds: vec!["process".to_owned()],
            open_only: self.running,
            ..ListWatchesRequest::default()
        };
        let mut processes = watch::list_all(session, request).await?;
        processes.retain(|process| self.shows(process));
        if let Some(last) = self.last.or(self.latest.then_some(1)) {
            processes.drain(..processes.len().saturating_sub(last));
        }
        Ok(processes)
    }

    fn print(&self, session: &Session, processes: &[Watch]) -> Result<(), Failure> {
        if session.json && !self.quiet {
            return output::messages(processes);
        }
        if self.quiet {
            let names = processes
                .iter()
                .map(|p| printable(&show::reference(p)) + "\n");
            return output::print(&names.collect::<String>());
        }
        if self.no_trunc {
            return output::print(&table(processes).text(None));
        }
        table(processes).print()
    }
}

pub(super) async fn run(session: &Session, args: Ps) -> Outcome {
    if args.watch {
        return follow(session, &args).await;
    }
    args.print(session, &args.list(session).await?)?;
    Ok(0)
}

fn table(processes: &[Watch]) -> Table {
    let mut table = Table::new(&["NAME", "ID", "PID", "STATE", "STARTED", "COMMAND"]);
    for process in processes {
        let pid = match &process.status {
            Some(Status::Process(status)) if show::end(process).is_none() => status.pid.to_string(),
            _ => String::new(),
        };
        let (state, style) = show::state(process);
        table.row([
            cell(&process.name, NAME),
            plain(&format!("@{}", process.watch_id)),
            plain(&pid),
            cell(&state, style),
            plain(&age(process.created)),
            plain(&show::detail(process)),
        ]);
    }
    table
}

/// Shows them, and again whenever something changes, until nobody looks any more.
async fn follow(session: &Session, args: &Ps) -> Outcome {
    tokio::select! {
        outcome = refresh(session, args) => outcome,
        () = output::reader_gone() => Ok(0),
    }
}

async fn refresh(session: &Session, args: &Ps) -> Outcome {
    let kinds = [
        EventKind::Added,
        EventKind::Exited,
        EventKind::Closed,
        EventKind::Removed,
    ];
    let request = SubscribeRequest {
        r#loop: session.loop_ref.clone(),
        start: Some(Start::StartAt(StartAt::Now.into())),
        on_gap: OnGap::Skip.into(),
        filter: Some(Filter {
            kinds: kinds.map(i32::from).into(),
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    };
    let mut feed = Feed::new(session.clone(), Source::Subscribe(request)).telling_standstill();
    // What happens after the first look is heard of.
    while !matches!(feed.next().await?, Item::Header(_)) {}
    let mut shown = Shown::default();
    let ticks = !session.json && !args.quiet && std::io::stdout().is_terminal();
    loop {
        shown.show(session, args, &args.list(session).await?, ticks)?;
        sleep(PAUSE).await;
        loop {
            let item = tokio::select! {
                item = feed.next() => item?,
                () = sleep(TICK), if ticks => break,
            };
            match item {
                Item::Batch(batch) if !batch.events.is_empty() || !batch.gaps.is_empty() => break,
                Item::Header(_) | Item::Batch(_) => {}
                Item::Goodbye(goodbye) => return cut_short(&goodbye).map_or(Ok(0), Err),
            }
        }
    }
}

/// What `--watch` has printed.
#[derive(Debug, Default)]
struct Shown {
    text: String,
    /// The line of each process, by its id.
    lines: BTreeMap<u64, String>,
}

impl Shown {
    fn show(
        &mut self,
        session: &Session,
        args: &Ps,
        processes: &[Watch],
        screen: bool,
    ) -> Result<(), Failure> {
        if session.json || args.quiet {
            return self.show_lines(!args.quiet, processes);
        }
        if screen {
            let (columns, rows) = terminal_size().unwrap_or((80, 24));
            let text = table(processes).text(Some(columns).filter(|_| !args.no_trunc));
            let fits = rows.saturating_sub(2);
            let lines: String = text.split_inclusive('\n').take(fits).collect();
            // From the top of a screen that is erased: ED and CUP of ECMA-48.
            return output::print(&format!("\x1b[H\x1b[2J{lines}"));
        }
        // Ages alone are no change.
        let states = processes
            .iter()
            .map(|p| (p.watch_id, p.state(), show::exited(p).is_some()));
        let text = format!("{:?}", states.collect::<Vec<_>>());
        if text != self.text {
            let again = !self.text.is_empty();
            self.text = text;
            let gap = if again { "\n" } else { "" };
            output::print(&format!("{gap}{}", table(processes).text(None)))?;
        }
        Ok(())
    }

    /// Of each process a line when it comes, and with JSON when something of it changes.
    fn show_lines(&mut self, as_json: bool, processes: &[Watch]) -> Result<(), Failure> {
        let mut lines = BTreeMap::new();
        for process in processes {
            let line = if as_json {
                output::json_line(&json::of(process))
            } else {
                printable(&show::reference(process))
            };
            if self.lines.get(&process.watch_id) != Some(&line) {
                output::raw(&format!("{line}\n"))?;
            }
            lines.insert(process.watch_id, line);
        }
        self.lines = lines;
        Ok(())
    }
}

/// What names a process on the command line, as `ps -q` prints it.
pub(super) fn reference(process: &Watch) -> WatchRef {
    match process.name.as_str() {
        "" => parse::by_id(process.watch_id),
        name => WatchRef {
            r#ref: Some(watch_ref::Ref::Name(name.to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

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
