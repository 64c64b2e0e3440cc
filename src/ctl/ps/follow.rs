//! `ps --watch`.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use tokio::time::sleep;

use super::super::failure::{Failure, Outcome};
use super::super::feed::{Feed, Item, Source, cut_short};
use super::super::json;
use super::super::output;
use super::super::session::Session;
use super::super::table::{printable, terminal_size};
use super::super::watch::show;
use super::{Ps, table};
use crate::proto::{
    EventKind, Filter, OnGap, StartAt, SubscribeRequest, Watch, subscribe_request::Start,
};

/// On a terminal, ages are shown anew that often.
const TICK: Duration = Duration::from_secs(1);
/// At most so often it looks, however much happens.
const PAUSE: Duration = Duration::from_millis(200);

/// Shows them, and again whenever something changes, until nobody looks any more.
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
    /// Of the last table: which processes, and how they were.
    states: String,
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
            let all = text.lines().count();
            // A line for what does not fit, and one for the cursor.
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
            // From the top of a screen that is erased: ED and CUP of ECMA-48.
            return output::print(&format!("\x1b[H\x1b[2J{lines}{more}"));
        }
        // Ages alone are no change.
        let states = processes
            .iter()
            .map(|p| (p.watch_id, p.state(), show::exited(p).is_some()));
        let states = format!("{:?}", states.collect::<Vec<_>>());
        if states != self.states {
            let again = !self.states.is_empty();
            self.states = states;
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
                json::line(process)
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
