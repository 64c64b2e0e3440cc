//! The options of `ps`, and the processes that they select.

use std::collections::BTreeMap;

use clap::Args;

use super::super::complete;
use super::super::description;
use super::super::failure::Failure;
use super::super::lookup;
use super::super::output;
use super::super::session::Session;
use super::super::style::{NAME, printable};
use super::super::table::{Table, cell, plain};
use super::super::units::{age, size, span};
use super::condition::{Condition, condition};
use crate::clock;
use crate::kinds::WatchKind;
use crate::proto::{ListWatchesRequest, TerminalStatus, Watch, watch::Status};

/// Options of `ps`.
#[derive(Debug, Args)]
pub(in crate::ctl) struct Ps {
    /// List processes that have ended too; this is the default
    #[arg(short, long, conflicts_with = "running")]
    all: bool,
    /// List only processes that run
    #[arg(short, long)]
    running: bool,
    /// Print only the names, one per line; for a process without a name, its id as `@7`
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// List only processes with name=TEXT (a part of the name, or a pattern with * and ?), status=running, stopped, ended or
    /// failed, exited=CODE, label=KEY[=VALUE] or id=@7. May be repeated: a process is listed if, for each key, one of its
    /// conditions holds
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = condition, add = complete::conditions())]
    filters: Vec<Condition>,
    /// List only the newest N processes
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// List only the newest process
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
    /// Do not cut columns, even if they do not fit into the terminal
    #[arg(long)]
    pub(super) no_trunc: bool,
    /// Go on, and print the list again whenever it changes
    #[arg(short, long)]
    pub(super) watch: bool,
}

impl Ps {
    pub(super) fn shows(&self, process: &Watch) -> bool {
        let mut keys = BTreeMap::new();
        for condition in &self.filters {
            *keys.entry(condition.key()).or_insert(false) |= condition.holds(process);
        }
        keys.values().all(|holds| *holds)
    }

    pub(super) async fn list(&self, session: &Session) -> Result<Vec<Watch>, Failure> {
        let request = ListWatchesRequest {
            watch_kinds: vec![WatchKind::Process.name().to_owned()],
            open_only: self.running,
            ..ListWatchesRequest::default()
        };
        let mut processes = lookup::watches_or_note(session, request).await?;
        processes.retain(|process| !self.running || description::end(process).is_none());
        processes.retain(|process| self.shows(process));
        if let Some(last) = self.last.or(self.latest.then_some(1)) {
            processes.drain(..processes.len().saturating_sub(last));
        }
        Ok(processes)
    }

    pub(super) fn print(&self, session: &Session, processes: &[Watch]) -> Result<(), Failure> {
        if session.json && !self.quiet {
            return output::messages(processes);
        }
        if self.quiet {
            let names = processes
                .iter()
                .map(|p| printable(&description::reference(p)) + "\n");
            return output::print(&names.collect::<String>());
        }
        if self.no_trunc {
            return output::print(&table(processes).text(None));
        }
        table(processes).print()
    }
}

/// Returns the processes as a table.
pub(super) fn table(processes: &[Watch]) -> Table {
    // What a process and its descendants use is known only if it has a cgroup of its own.
    let usages: Vec<_> = processes.iter().map(usage).collect();
    let cpu = usages.iter().any(Option::is_some);
    let memory = usages.iter().flatten().any(|usage| usage.memory.is_some());
    // Most processes have none.
    let tty = processes.iter().any(|process| terminal(process).is_some());
    let mut columns = vec!["NAME", "ID", "PID"];
    columns.extend(tty.then_some("TTY"));
    columns.extend(["STATE", "STARTED"]);
    columns.extend(cpu.then_some("CPU"));
    columns.extend(memory.then_some("MEMORY"));
    columns.push("COMMAND");
    let mut table = Table::new(&columns);
    for (process, usage) in processes.iter().zip(usages) {
        let usage = usage.unwrap_or_default();
        let pid = match &process.status {
            Some(Status::Process(status)) if description::end(process).is_none() => {
                status.pid.to_string()
            }
            _ => String::new(),
        };
        let (state, style) = description::state(process);
        let size = terminal(process).and_then(|terminal| terminal.size);
        let size = size.map_or_else(String::new, |size| {
            format!("{}x{}", size.columns, size.rows)
        });
        let mut row = vec![
            cell(&process.name, NAME),
            plain(&format!("@{}", process.watch_id)),
            plain(&pid),
        ];
        row.extend(tty.then(|| plain(&size)));
        row.extend([cell(&state, style), plain(&age(process.created))]);
        row.extend(cpu.then(|| plain(&usage.cpu)));
        row.extend(memory.then(|| plain(&usage.memory.unwrap_or_default())));
        row.push(plain(&description::detail(process)));
        table.row(row);
    }
    table
}

/// What a process and all of its descendants have used, as text.
#[derive(Debug, Default)]
struct Used {
    cpu: String,
    /// The most memory at one time; `None` where it is not counted.
    memory: Option<String>,
}

fn usage(process: &Watch) -> Option<Used> {
    let Some(Status::Process(status)) = &process.status else {
        return None;
    };
    let usage = description::tree_usage(status)?;
    let times = [usage.user_time, usage.system_time];
    let times = times.map(|time| clock::span(&time.unwrap_or_default()).unwrap_or_default());
    Some(Used {
        cpu: span(times.iter().sum()),
        memory: usage.memory_peak_bytes.map(size),
    })
}

/// Returns the terminal of a process, until its output has ended.
fn terminal(process: &Watch) -> Option<&TerminalStatus> {
    match &process.status {
        Some(Status::Process(status)) => status.terminal.as_ref(),
        _ => None,
    }
}
