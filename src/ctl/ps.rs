//! `ps`: the processes.

use clap::Args;

use super::failure::Outcome;
use super::output::{self, NAME, Table, cell, plain};
use super::render::{self, local_time};
use super::session::Session;
use super::watch::{self, show};
use crate::proto::{ListWatchesRequest, Watch, watch as watch_message};

pub(super) const EXAMPLES: &str = "Example:
  evloopctl ps

Finished processes are shown until `evloopctl rm NAME`, or until their time is up.
A process is `stopped` after SIGSTOP or SIGTSTP, until SIGCONT. One that is `ended, not told yet`
is on a stopped loop, which tells how it ended once it runs (`evloopctl loop run`).";

/// Options of `ps`.
#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Only those that run
    #[arg(long)]
    running: bool,
}

pub(super) async fn run(session: &Session, args: Ps) -> Outcome {
    let request = ListWatchesRequest {
        watch_kinds: vec!["process".to_owned()],
        open_only: args.running,
        ..ListWatchesRequest::default()
    };
    let processes = watch::list_all(session, request).await?;
    if session.json {
        let values: Vec<_> = processes.iter().map(show::json).collect();
        output::json_lines(&values)?;
        return Ok(0);
    }
    let mut table = Table::new(&["NAME", "ID", "STATE", "PID", "EXIT", "STARTED", "COMMAND"]);
    for process in &processes {
        let (pid, exit) = status(process);
        let (state, style) = show::state(process);
        table.row([
            cell(&show::reference(process), NAME),
            plain(&process.watch_id),
            cell(&state, style),
            plain(&pid),
            exit,
            plain(&local_time(process.created)),
            plain(&show::detail(process)),
        ]);
    }
    table.print()?;
    Ok(0)
}

fn status(process: &Watch) -> (i32, output::Cell) {
    let Some(watch_message::Status::Process(status)) = &process.status else {
        return (0, plain(&""));
    };
    let Some(exited) = &status.exited else {
        return (status.pid, plain(&""));
    };
    let words = render::exited(exited);
    let words = words
        .trim_start_matches("exited with ")
        .trim_start_matches("ended by ");
    let words = words.trim_start_matches("exit status ");
    (status.pid, cell(&words, render::exit_style(exited)))
}
