//! `loop`: makes, shows, runs, stops and closes loops.

use clap::Subcommand;
use clap::builder::PossibleValuesParser;

use super::complete;
use super::description::lifetime;
use super::explain;
use super::failure::{Failure, Outcome};
use super::json::{self, word};
use super::lookup;
use super::output;
use super::parse;
use super::session::{Session, answer};
use super::style::{BAD, DIM, GOOD, NAME, NOTICE, printable};
use super::table::{Sheet, Table, cell, plain};
use super::units::{age, counted, date_and_age, grouped, size};
use super::watch::add::{End, Lifetime};
use crate::proto::{
    CloseLoopRequest, GetEventLoopRequest, History, IfExists, JournalStatus, Loop, LoopRef,
    LoopState, NewEventLoopRequest, RunLoopRequest, SetEventLoopRequest, StopLoopRequest,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl loop new build --backend poll
  evloopctl loop set build
  evloopctl loop list";

/// Commands for loops.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a loop as the policy says; it does not become the loop of any context
    #[command(after_help = "Example:\n  evloopctl loop new build --backend poll")]
    New {
        /// The loop's name [default: a generated name]
        #[arg(value_parser = parse::name)]
        name: Option<String>,
        /// The policy by which the loop is made [default: the policy in force]
        #[arg(long, value_parser = parse::name, add = complete::policies())]
        policy: Option<String>,
        /// The backend: how the loop waits, such as epoll [default: the policy's first that works here]
        #[arg(long, value_parser = parse::name, add = complete::backends())]
        backend: Option<String>,
        /// Whether the journal keeps events that all readers have received [default: as the policy says]
        #[arg(long, value_parser = PossibleValuesParser::new(["kept", "none"]))]
        history: Option<String>,
        /// How long the loop stays
        #[arg(long, value_enum, default_value_t, hide_default_value = true)]
        lifetime: Lifetime,
        #[command(flatten)]
        end: End,
        /// Do nothing if the same loop exists under this name; without it, that is an error
        #[arg(long)]
        if_missing: bool,
    },
    /// Show a loop; without a name, the loop of your context, which is made if the policy says so
    #[command(
        visible_alias = "show",
        after_help = "Example:\n  evloopctl loop show build"
    )]
    Get {
        /// The loop: its name, or `@7` for the id 7
        #[arg(value_parser = parse::loop_ref, add = complete::loops())]
        name: Option<LoopRef>,
    },
    /// Make a loop the loop of your context
    #[command(after_help = "Example:\n  evloopctl --session ci loop set build")]
    Set {
        /// The loop's name
        #[arg(value_parser = parse::name, add = complete::loops())]
        name: String,
    },
    /// Unset the loop of your context; no loop is made for the context until you set one
    #[command(after_help = "Example:\n  evloopctl loop unset")]
    Unset,
    /// List your loops
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  evloopctl loop list --all"
    )]
    List {
        /// Also list closed loops whose events can still be read
        #[arg(short, long)]
        all: bool,
        /// Print only the names
        #[arg(short, long)]
        quiet: bool,
    },
    /// Run a loop that was stopped, or that does not run yet
    #[command(after_help = "Example:\n  evloopctl loop run build")]
    Run {
        /// The loop: its name, or `@7` for the id 7 [default: the loop of --loop, else of your context]
        #[arg(value_parser = parse::loop_ref, add = complete::loops())]
        name: Option<LoopRef>,
    },
    /// Stop a loop: it reads no source and delivers no event until it runs again
    #[command(
        after_help = "Examples:\n  evloopctl loop stop build\n  evloopctl loop stop @7          # by id

Processes go on; the loop reports their output and their ends once it runs again."
    )]
    Stop {
        /// The loop: its name, or `@7` for the id 7
        #[arg(value_name = "LOOP", value_parser = parse::loop_ref, add = complete::loops())]
        name: LoopRef,
    },
    /// Close a loop and all its watches; it cannot run again
    #[command(after_help = "Example:\n  evloopctl loop close build --stop")]
    Close {
        /// The loop: its name, or `@7` for the id 7
        #[arg(value_name = "LOOP", value_parser = parse::loop_ref, add = complete::loops())]
        name: LoopRef,
        /// Stop the loop first; without it, a loop that runs is not closed
        #[arg(long)]
        stop: bool,
    },
}

pub(super) async fn run(session: &Session, verb: Verb) -> Outcome {
    match verb {
        Verb::New {
            name,
            policy,
            backend,
            history,
            lifetime,
            end,
            if_missing,
        } => {
            let if_exists = if if_missing {
                IfExists::Return
            } else {
                IfExists::Fail
            };
            let history = match history.as_deref() {
                Some("kept") => History::Kept,
                Some(_) => History::None,
                None => History::Unspecified,
            };
            let request = NewEventLoopRequest {
                name: name.unwrap_or_default(),
                policy: policy.unwrap_or_default(),
                backend: backend.unwrap_or_default(),
                if_exists: if_exists.into(),
                history: history.into(),
                lifetime: end.lifetime(lifetime.into()).into(),
                lease: end.lease,
                at_lifetime_end: end.at_end().into(),
                ..NewEventLoopRequest::default()
            };
            let made = session.policies().new_event_loop(request.clone()).await;
            let made = match answer(made) {
                Err(failure) => return Err(taken(session, failure, &request).await),
                made => made?,
            };
            show(session, &made.r#loop.unwrap_or_default())?;
        }
        Verb::Get { name } => show(session, &find(session, name).await?)?,
        Verb::Set { name } => bind(session, Some(name)).await?,
        Verb::Unset => bind(session, None).await?,
        Verb::List { all, quiet } => list(session, all, quiet).await?,
        Verb::Run { name } => {
            let request = RunLoopRequest {
                r#loop: which(session, name),
                ..RunLoopRequest::default()
            };
            let done = answer(session.loops().run_loop(request).await)?;
            print_json(session, &done)?;
        }
        Verb::Stop { name } => {
            let request = StopLoopRequest {
                r#loop: Some(name),
                ..StopLoopRequest::default()
            };
            let done = answer(session.loops().stop_loop(request).await)?;
            print_json(session, &done)?;
        }
        Verb::Close { name, stop } => {
            let request = CloseLoopRequest {
                r#loop: Some(name),
                stop,
                ..CloseLoopRequest::default()
            };
            let done = answer(session.loops().close_loop(request).await)?;
            print_json(session, &done)?;
        }
    }
    Ok(0)
}

/// Explains the failure to make a loop whose name another loop has, with the values in which the two differ.
async fn taken(session: &Session, failure: Failure, asked: &NewEventLoopRequest) -> Failure {
    let there = parse::loop_ref(&asked.name).map_err(Failure::plain);
    let found = async { find(session, Some(there?)).await }.await;
    match found {
        Ok(there) => {
            let advice = format!(
                "`evloopctl loop close {} --stop` ends it; or choose another name",
                asked.name
            );
            let (there, name) = (json::of(&there), &asked.name);
            explain::differing(failure, name, &there, &json::of(asked), &advice)
        }
        Err(_) => failure,
    }
}

fn which(session: &Session, name: Option<LoopRef>) -> Option<LoopRef> {
    name.or_else(|| session.loop_ref.clone())
}

async fn find(session: &Session, name: Option<LoopRef>) -> Result<Loop, Failure> {
    match which(session, name) {
        Some(named) => lookup::loop_of(session, named).await,
        None => {
            let request = GetEventLoopRequest {};
            let found = answer(session.policies().get_event_loop(request).await)?;
            Ok(found.r#loop.unwrap_or_default())
        }
    }
}

async fn bind(session: &Session, loop_name: Option<String>) -> Result<(), Failure> {
    let request = SetEventLoopRequest {
        loop_name,
        ..SetEventLoopRequest::default()
    };
    answer(session.policies().set_event_loop(request).await).map(drop)
}

async fn list(session: &Session, include_closed: bool, quiet: bool) -> Result<(), Failure> {
    let found = lookup::loops(session, include_closed).await?;
    if quiet {
        let names = found.iter().map(|found| printable(&found.name) + "\n");
        return output::print(&names.collect::<String>());
    }
    if session.json {
        return output::messages(&found);
    }
    let heads = [
        "NAME", "ID", "STATE", "BACKEND", "POLICY", "WATCHES", "EVENTS", "HELD", "MADE",
    ];
    let mut table = Table::new(&heads);
    for found in &found {
        let journal = found.journal.clone().unwrap_or_default();
        let (state, style) = state(found);
        table.row([
            cell(&found.full_name, NAME),
            plain(&format!("@{}", found.loop_id)),
            cell(&state, style),
            plain(&found.backend),
            plain(&found.policy),
            plain(&format!("{} open of {}", found.open_watches, found.watches)),
            plain(&grouped(journal.newest_seq)),
            plain(&size(journal.bytes)),
            plain(&age(found.created)),
        ]);
    }
    table.print()
}

/// Prints one loop: as JSON, or as a sheet.
pub(super) fn show(session: &Session, found: &Loop) -> Result<(), Failure> {
    if session.json {
        return output::messages([found]);
    }
    sheet(found).print()
}

/// Prints the daemon's answer to a change of a loop's state if JSON is asked for.
fn print_json<M: prost::Message + prost::Name>(session: &Session, done: &M) -> Result<(), Failure> {
    if session.json {
        output::messages([done])
    } else {
        Ok(())
    }
}

fn state(found: &Loop) -> (String, anstyle::Style) {
    let style = match found.state() {
        LoopState::Running => GOOD,
        LoopState::Created => DIM,
        LoopState::Stopped => NOTICE,
        LoopState::Closed | LoopState::Unspecified => BAD,
    };
    (word(found.state().as_str_name(), "LOOP_STATE_"), style)
}

/// Returns all values of a loop, as labelled lines.
pub(super) fn sheet(found: &Loop) -> Sheet {
    let (state, style) = state(found);
    let name = printable(&found.full_name);
    let mut sheet = Sheet::new(format!(
        "{NAME}{name}{NAME:#}  loop, {style}{state}{style:#}"
    ));
    let (class, backend) = (&found.loop_class, &found.backend);
    sheet.line("backend", format!("{backend} ({class})"));
    sheet.line("policy", &found.policy);
    sheet.line("child watcher", &found.child_watcher);
    sheet.line("since", date_and_age(found.created));
    let watches = counted(found.open_watches, "open watch", "open watches");
    sheet.line(
        "watches",
        format!("{watches} of {}", grouped(found.watches)),
    );
    sheet.line("turns", grouped(found.turns));
    if let Some(journal) = &found.journal {
        of_journal(&mut sheet, journal);
    }
    let history = word(found.history().as_str_name(), "HISTORY_");
    sheet.line("history", history);
    let (lease, left) = (found.lease, found.lease_left);
    let lifetime = lifetime(found.lifetime(), lease, left, found.at_lifetime_end());
    let survives = word(found.survives().as_str_name(), "SURVIVES_");
    sheet.line("lifetime", format!("{lifetime}, survives {survives}"));
    sheet.line("id", format!("@{}", found.loop_id));
    sheet.styled(
        "epoch",
        found.journal.as_ref().map_or("", |j| &j.epoch),
        DIM,
    );
    sheet
}

fn of_journal(sheet: &mut Sheet, journal: &JournalStatus) {
    let (oldest, newest) = (grouped(journal.oldest_seq), grouped(journal.newest_seq));
    sheet.line("events", format!("{oldest} to {newest} can be read"));
    let held = format!(
        "{} of {}, {} of {}",
        counted(journal.events, "event", "events"),
        grouped(journal.max_events),
        size(journal.bytes),
        size(journal.max_bytes)
    );
    sheet.line("journal", held);
    if journal.pinned_events > 0 || journal.consumers > 0 {
        let pinned = counted(journal.pinned_events, "event", "events");
        let consumers = counted(u64::from(journal.consumers), "consumer", "consumers");
        let bytes = size(journal.pinned_bytes);
        sheet.line("pinned", format!("{pinned}, {bytes}, by {consumers}"));
    }
    let room = counted(journal.reserved_events, "event", "events");
    sheet.line(
        "reserved",
        format!("{room}, {}", size(journal.reserved_bytes)),
    );
    sheet.line("readers", journal.readers);
    if journal.unread_bytes > 0 {
        let unread = size(journal.unread_bytes);
        sheet.line("unread", format!("{unread} by attached readers"));
    }
    if journal.readers_let_go > 0 {
        sheet.styled(
            "readers lost",
            counted(journal.readers_let_go, "reader", "readers"),
            NOTICE,
        );
    }
    let gone = counted(journal.trimmed, "event", "events");
    sheet.line("trimmed", gone);
    if journal.dropped > 0 {
        let dropped = counted(journal.dropped, "event", "events");
        sheet.styled("dropped", format!("{dropped} that were pinned"), BAD);
    }
    sheet.line("when full", &journal.when_full);
    for source in &journal.paused_sources {
        let pause = source.pause.unwrap_or_default();
        let reason = word(pause.reason().as_str_name(), "SOURCE_PAUSE_REASON_");
        let since = date_and_age(pause.since);
        let name = match source.name.as_str() {
            "" => format!("@{}", source.watch_id),
            name => name.to_owned(),
        };
        sheet.styled(
            "not read",
            format!("{name}: {reason}, since {since}"),
            NOTICE,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{PausedSource, SourcePause, SourcePauseReason};

    #[test]
    fn a_loop_tells_which_sources_wait_for_room_and_why() {
        let mut pause = SourcePause {
            since: Some(prost_types::Timestamp::default()),
            ..SourcePause::default()
        };
        pause.set_reason(SourcePauseReason::JournalFull);
        let source = PausedSource {
            watch_id: 7,
            name: "build".to_owned(),
            pause: Some(pause),
        };
        let journal = JournalStatus {
            pinned_events: 5,
            when_full: "pause".to_owned(),
            paused_sources: vec![source],
            paused_source_count: 1,
            ..JournalStatus::default()
        };
        let text = sheet(&Loop {
            journal: Some(journal),
            ..Loop::default()
        })
        .text(None);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(
            text.contains("build: journal_full, since 1970-01-01"),
            "{text}"
        );
        assert!(text.contains("5 events, 0 B, by 0 consumers"), "{text}");
    }
}
