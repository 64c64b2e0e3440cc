//! `loop`: the life of loops.

use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use super::failure::{Failure, Outcome};
use super::json::{with, word};
use super::output::{self, BAD, DIM, GOOD, NAME, NOTICE, Table, cell, plain};
use super::parse;
use super::session::{Session, answer};
use crate::proto::{
    CloseLoopRequest, Cursor, GetEventLoopRequest, GetLoopRequest, History, IfExists,
    ListLoopsRequest, Loop, LoopRef, LoopState, NewEventLoopRequest, PausedSource, RunLoopRequest,
    SetEventLoopRequest, SourcePause, StopLoopRequest, Survives,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl loop new build --backend poll
  evloopctl loop set build
  evloopctl loop list";

/// Most loops in one page of a list.
const PAGE_SIZE: u32 = 1000;

/// What to do with loops.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a loop by the policy's rules; it is not set for any context
    #[command(after_help = "Example:\n  evloopctl loop new build --backend poll")]
    New {
        /// Its name [default: made up]
        #[arg(value_parser = parse::name)]
        name: Option<String>,
        /// The policy to make it by [default: the one in force]
        #[arg(long, value_parser = parse::name)]
        policy: Option<String>,
        /// What it waits with [default: the policy's first that works here]
        #[arg(long, value_parser = parse::name)]
        backend: Option<String>,
        /// Whether events stay once everybody who reads has them [default: as the policy says]
        #[arg(long, value_parser = PossibleValuesParser::new(["kept", "none"]))]
        history: Option<String>,
        /// If it exists and is the same, be content
        #[arg(long)]
        if_missing: bool,
    },
    /// The loop of your context, made if the policy says so; with a name, that one
    #[command(
        visible_alias = "show",
        after_help = "Example:\n  evloopctl loop show build"
    )]
    Get {
        /// The loop: its name, or `@7` for the id 7
        #[arg(value_parser = parse::loop_ref)]
        name: Option<LoopRef>,
    },
    /// Set the loop of your context
    #[command(after_help = "Example:\n  evloopctl --session ci loop set build")]
    Set {
        /// Its name
        #[arg(value_parser = parse::name)]
        name: String,
    },
    /// Unset the loop of your context; none is made for it until you set one
    #[command(after_help = "Example:\n  evloopctl loop unset")]
    Unset,
    /// Your loops
    #[command(after_help = "Example:\n  evloopctl loop list --all")]
    List {
        /// Also closed ones that can still be read
        #[arg(long)]
        all: bool,
    },
    /// Let a loop run
    #[command(after_help = "Example:\n  evloopctl loop run build")]
    Run {
        /// The loop: its name, or `@7` for the id 7 [default: that of --loop or your context]
        #[arg(value_parser = parse::loop_ref)]
        name: Option<LoopRef>,
    },
    /// Stop a loop: nothing is polled until it runs again
    #[command(
        after_help = "Examples:\n  evloopctl loop stop build\n  evloopctl loop stop @7          # by id

Children run on; their output and end are told once the loop runs again."
    )]
    Stop {
        /// The loop: its name, or `@7` for the id 7
        #[arg(value_name = "LOOP", value_parser = parse::loop_ref)]
        name: LoopRef,
    },
    /// Close a loop and all its watches, for good
    #[command(after_help = "Example:\n  evloopctl loop close build --stop")]
    Close {
        /// The loop: its name, or `@7` for the id 7
        #[arg(value_name = "LOOP", value_parser = parse::loop_ref)]
        name: LoopRef,
        /// Also if it runs [default: only a loop that does not]
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
                ..NewEventLoopRequest::default()
            };
            let made = answer("loop new", session.policies().new_event_loop(request).await)?;
            show(session, made.r#loop)?;
        }
        Verb::Get { name } => get(session, name).await?,
        Verb::Set { name } => bind(session, "loop set", Some(name)).await?,
        Verb::Unset => bind(session, "loop unset", None).await?,
        Verb::List { all } => list(session, all).await?,
        Verb::Run { name } => {
            let request = RunLoopRequest {
                r#loop: which(session, name),
                ..RunLoopRequest::default()
            };
            let done = answer("loop run", session.loops().run_loop(request).await)?;
            position(session, done.cursor)?;
        }
        Verb::Stop { name } => {
            let request = StopLoopRequest {
                r#loop: Some(name),
                ..StopLoopRequest::default()
            };
            let done = answer("loop stop", session.loops().stop_loop(request).await)?;
            position(session, done.cursor)?;
        }
        Verb::Close { name, stop } => {
            let request = CloseLoopRequest {
                r#loop: Some(name),
                stop,
                ..CloseLoopRequest::default()
            };
            let done = answer("loop close", session.loops().close_loop(request).await)?;
            position(session, done.cursor)?;
        }
    }
    Ok(0)
}

fn which(session: &Session, name: Option<LoopRef>) -> Option<LoopRef> {
    name.or_else(|| session.loop_ref.clone())
}

async fn get(session: &Session, name: Option<LoopRef>) -> Result<(), Failure> {
    let found = match which(session, name) {
        Some(named) => {
            let request = GetLoopRequest {
                r#loop: Some(named),
            };
            answer("loop get", session.loops().get_loop(request).await)?.r#loop
        }
        None => {
            let request = GetEventLoopRequest {};
            answer("loop get", session.policies().get_event_loop(request).await)?.r#loop
        }
    };
    show(session, found)
}

async fn bind(session: &Session, what: &str, loop_name: Option<String>) -> Result<(), Failure> {
    let request = SetEventLoopRequest {
        loop_name,
        ..SetEventLoopRequest::default()
    };
    answer(what, session.policies().set_event_loop(request).await).map(drop)
}

async fn list(session: &Session, include_closed: bool) -> Result<(), Failure> {
    let mut request = ListLoopsRequest {
        page_size: PAGE_SIZE,
        include_closed,
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page = answer(
            "loop list",
            session.loops().list_loops(request.clone()).await,
        )?;
        found.extend(page.loops);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if session.json {
        let values: Vec<_> = found.iter().map(json).collect();
        return output::json_lines(&values);
    }
    let heads = [
        "NAME", "ID", "STATE", "BACKEND", "POLICY", "WATCHES", "EVENTS", "JOURNAL",
    ];
    let mut table = Table::new(&heads);
    for found in &found {
        let journal = found.journal.clone().unwrap_or_default();
        let (state, style) = state(found);
        table.row([
            cell(&found.full_name, NAME),
            plain(&found.loop_id),
            cell(&state, style),
            plain(&found.backend),
            plain(&found.policy),
            plain(&format!("{} open of {}", found.open_watches, found.watches)),
            plain(&journal.newest_seq),
            plain(&format!("{} KiB", journal.bytes / 1024)),
        ]);
    }
    table.print()
}

fn show(session: &Session, found: Option<Loop>) -> Result<(), Failure> {
    output::object(session.json, &json(&found.unwrap_or_default()))
}

fn position(session: &Session, cursor: Option<Cursor>) -> Result<(), Failure> {
    let text = parse::cursor_text(&cursor.unwrap_or_default());
    output::object(session.json, &json!({"cursor": text}))
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

/// What survives the daemon, as a word.
pub(super) fn survives(survives: Survives) -> String {
    word(survives.as_str_name(), "SURVIVES_")
}

fn paused_source(source: &PausedSource) -> Value {
    let value = json!({"watch_id": source.watch_id, "name": source.name});
    let pause = source.pause.as_ref();
    let Some(Value::Object(pause)) = pause.map(source_pause) else {
        return value;
    };
    let told = pause.into_iter();
    told.fold(value, |value, (key, told)| with(value, &key, Some(told)))
}

/// Why a source is not read, and since when.
pub(super) fn source_pause(pause: &SourcePause) -> Value {
    let reason = word(pause.reason().as_str_name(), "SOURCE_PAUSE_REASON_");
    let since = pause.since.map(|since| since.to_string().into());
    with(json!({"reason": reason}), "since", since)
}

fn json(l: &Loop) -> Value {
    let value = json!({
        "loop_id": l.loop_id,
        "name": l.name,
        "principal": l.principal,
        "full_name": l.full_name,
        "state": state(l).0,
        "policy": l.policy,
        "loop_class": l.loop_class,
        "backend": l.backend,
        "child_watcher": l.child_watcher,
        "watches": l.watches,
        "open_watches": l.open_watches,
        "survives": survives(l.survives()),
        "turns": l.turns,
        "history": word(l.history().as_str_name(), "HISTORY_"),
        "lifetime": word(l.lifetime().as_str_name(), "LIFETIME_"),
    });
    let value = with(
        value,
        "created",
        l.created.map(|time| time.to_string().into()),
    );
    let journal = l.journal.as_ref().map(|j| {
        json!({
            "epoch": j.epoch,
            "oldest_seq": j.oldest_seq,
            "newest_seq": j.newest_seq,
            "events": j.events,
            "bytes": j.bytes,
            "max_events": j.max_events,
            "max_bytes": j.max_bytes,
            "islands": j.islands,
            "trimmed": j.trimmed,
            "dropped": j.dropped,
            "gaps": j.gaps,
            "pinned_events": j.pinned_events,
            "pinned_bytes": j.pinned_bytes,
            "reserved_events": j.reserved_events,
            "reserved_bytes": j.reserved_bytes,
            "when_full": j.when_full,
            "max_watch_bytes": j.max_watch_bytes,
            "readers": j.readers,
            "unread_bytes": j.unread_bytes,
            "readers_let_go": j.readers_let_go,
            "consumers": j.consumers,
            "paused_source_count": j.paused_source_count,
            "paused_sources": j.paused_sources.iter().map(paused_source).collect::<Vec<_>>(),
        })
    });
    with(value, "journal", journal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{JournalStatus, SourcePauseReason};

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
        let value = json(&Loop {
            journal: Some(journal),
            ..Loop::default()
        });
        let journal = &value["journal"];
        assert_eq!(
            (&journal["pinned_events"], &journal["when_full"]),
            (&5.into(), &"pause".into())
        );
        let expected = json!({
            "watch_id": 7,
            "name": "build",
            "reason": "journal_full",
            "since": "1970-01-01T00:00:00Z",
        });
        assert_eq!(journal["paused_sources"][0], expected);
    }
}
