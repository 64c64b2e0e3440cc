//! `ps --watch`: lists processes again whenever one of them changes.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;

use super::super::description;
use super::super::failure::{Failure, Outcome};
use super::super::feed::{Feed, Item, Source, cut_short};
use super::super::json;
use super::super::output;
use super::super::session::Session;
use super::super::style::printable;
use super::super::table::terminal_size;
use super::listing::{Ps, table};
use crate::proto::{
    EventKind, Filter, OnGap, StartAt, SubscribeRequest, Watch, WatchState,
    subscribe_request::Start, watch::Status,
};

/// How often processes are listed if no event comes: no event reports that a process was stopped or continued, and the ages
/// on a terminal change.
const TICK: Duration = Duration::from_secs(1);
/// The shortest time between two lists.
const PAUSE: Duration = Duration::from_millis(200);

/// Lists processes, and again whenever one changes, until the reader of stdout closes it.
pub(super) async fn run(session: &Session, args: &Ps) -> Outcome {
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
    let mut feed = Feed::new(session.clone(), Source::Subscribe(request)).reporting_standstill();
    // The subscription begins before the first list, so that no event between them is missed.
    while !matches!(feed.next().await?, Item::Header(_)) {}
    let mut shown = Shown {
        first: true,
        ..Shown::default()
    };
    let screen = !session.json && !args.quiet && std::io::stdout().is_terminal();
    loop {
        shown.show(session, args, &args.list(session).await?, screen)?;
        sleep(PAUSE).await;
        let mut tick = pin!(sleep(TICK));
        loop {
            let item = tokio::select! {
                item = feed.next() => item?,
                () = &mut tick, if !args.quiet => break,
            };
            match item {
                Item::Batch(batch) if !batch.events.is_empty() || !batch.gaps.is_empty() => break,
                Item::Header(_) | Item::Batch(_) => {}
                Item::Goodbye(goodbye) => return cut_short(&goodbye).map_or(Ok(0), Err),
            }
        }
    }
}

/// The values of a process whose change makes it be printed again.
#[derive(Debug, PartialEq, Eq)]
struct State {
    state: WatchState,
    exited: bool,
    stopped: bool,
    ended_untold: bool,
}

impl State {
    fn of(process: &Watch) -> Self {
        let status = match &process.status {
            Some(Status::Process(status)) => Some(status),
            _ => None,
        };
        Self {
            state: process.state(),
            exited: description::exited(process).is_some(),
            stopped: status.is_some_and(|status| status.stopped),
            ended_untold: status.is_some_and(|status| status.ended_untold),
        }
    }
}

/// What `--watch` has printed.
#[derive(Debug, Default)]
struct Shown {
    /// The processes of the last table, and their states.
    table: Vec<(u64, State)>,
    /// No table has been printed yet.
    first: bool,
    /// The state of each process that has a line, by its id.
    lines: BTreeMap<u64, State>,
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
            let all = text.lines().count();
            // One line says how many processes do not fit, and one line is for the cursor.
            let fits = if all < rows {
                all
            } else {
                rows.saturating_sub(2)
            };
            let lines: String = text.split_inclusive('\n').take(fits).collect();
            let more = match all - fits {
                0 => String::new(),
                more => format!("… {more} more\n"),
            };
            // ECMA-48: CUP moves the cursor to the top, ED erases the screen.
            return output::print(&format!("\x1b[H\x1b[2J{lines}{more}"));
        }
        // A changed age alone does not print the table again.
        let states = processes.iter().map(|p| (p.watch_id, State::of(p)));
        let states: Vec<_> = states.collect();
        let first = std::mem::replace(&mut self.first, false);
        if first || states != self.table {
            let gap = if first { "" } else { "\n" };
            self.table = states;
            output::print(&format!("{gap}{}", table(processes).text(None)))?;
        }
        Ok(())
    }

    /// Prints a line for each new process, and with JSON also for each process whose state has changed.
    fn show_lines(&mut self, as_json: bool, processes: &[Watch]) -> Result<(), Failure> {
        let mut lines = BTreeMap::new();
        for process in processes {
            let state = State::of(process);
            let before = self.lines.get(&process.watch_id);
            if before.is_none_or(|before| as_json && *before != state) {
                let line = if as_json {
                    json::line(process)
                } else {
                    printable(&description::reference(process))
                };
                output::raw(&format!("{line}\n"))?;
            }
            lines.insert(process.watch_id, state);
        }
        self.lines = lines;
        Ok(())
    }
}
