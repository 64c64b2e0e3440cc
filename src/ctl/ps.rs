//! `ps`: lists processes.

use std::collections::BTreeMap;

use clap::Args;

use super::complete;
use super::failure::{Failure, Outcome};
use super::holder::{Holder, is_held};
use super::output;
use super::parse;
use super::session::Session;
use super::table::{NAME, Table, cell, plain, printable};
use super::units::age;
use super::watch::{self, show};
use crate::kinds::WatchKind;
use crate::proto::{ListWatchesRequest, Watch, WatchRef, watch::Status, watch_ref};

mod condition;
mod follow;

use condition::{Condition, condition};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl ps
  evloopctl ps --filter status=failed --filter label=team=ci
  evloopctl kill $(evloopctl ps -q --running)
  evloopctl ps --watch

Finished processes are shown until `evloopctl rm NAME`, or until their time is up. A process is \
`stopped` after SIGSTOP or SIGTSTP, until SIGCONT. One that is `ended, not told yet` is on a \
stopped loop, which tells how it ended once it runs (`evloopctl loop run`).";

/// Options of `ps`.
#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Those that have ended too; this is the default, and --running is not
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
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = condition, add = complete::conditions())]
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
            watch_kinds: vec![WatchKind::Process.name().to_owned()],
            open_only: self.running,
            ..ListWatchesRequest::default()
        };
        let mut processes = watch::list_and_tell(session, request).await?;
        processes.retain(|process| !self.running || show::end(process).is_none());
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
        return follow::run(session, &args).await;
    }
    let processes = args.list(session).await?;
    args.print(session, &processes)?;
    let held_up = |process: &&Watch| process.source_pause.as_ref().is_some_and(is_held);
    if !session.json
        && !args.quiet
        && let Some(process) = processes.iter().find(held_up)
        && let Some(holder) = Holder::find(session).await
    {
        let name = printable(&show::reference(process));
        output::note(&format!("{name} is paused: {holder}"));
    }
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

/// What names a process on the command line, as `ps -q` prints it.
pub(super) fn reference(process: &Watch) -> WatchRef {
    match process.name.as_str() {
        "" => parse::by_id(process.watch_id),
        name => WatchRef {
            r#ref: Some(watch_ref::Ref::Name(name.to_owned())),
        },
    }
}
