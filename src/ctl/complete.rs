//! Completions of a shell's command line, names of processes, watches, loops, consumers and policies included.
//!
//! The shell calls evloopctl with the words typed so far, and evloopctl asks the daemon for names that fit. If no daemon
//! answers at once, it offers no names and prints no message.

use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

use clap::Command;
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use super::description;
use super::failure::Failure;
use super::lookup;
use super::session::{Global, Session, answer};
use super::usage::verb_of;
use crate::config;
use crate::proto::{
    ListBackendsRequest, ListEventLoopPoliciesRequest, ListWatchesRequest, LoopState, Watch,
    WatchState,
};

/// The environment variable by which a shell asks for candidates.
const VARIABLE: &str = "COMPLETE";
/// How long the daemon may take for all its answers: a user waits at the Tab key.
const PATIENCE: Duration = Duration::from_millis(500);
/// Most candidates that are offered.
const OFFERED_MAX: usize = 1000;

/// Builds the command line of evloopctl, for candidates, which clap asks for by functions without arguments.
static COMMAND: OnceLock<fn() -> Command> = OnceLock::new();

/// Prints candidates and ends the program if a shell asks for them. Otherwise does nothing. `command` builds the command
/// line of evloopctl.
pub(super) fn complete(command: fn() -> Command) {
    let command = *COMMAND.get_or_init(|| command);
    CompleteEnv::with_factory(|| with_loops(without_aliases(command())))
        .var(VARIABLE)
        .complete();
}

/// Offers loops for `--loop`. The session declares this option, and candidates come by a session.
fn with_loops(command: Command) -> Command {
    command.mut_arg("loop_ref", |option| option.add(loops()))
}

/// Hides the aliases of verbs: they work, but a shell would offer them in place of the verbs' names.
fn without_aliases(command: Command) -> Command {
    let verbs: Vec<_> = command.get_subcommands().map(Command::get_name).collect();
    let verbs: Vec<_> = verbs.into_iter().map(str::to_owned).collect();
    verbs.into_iter().fold(command, |command, verb| {
        command.mut_subcommand(verb, |verb| {
            let aliases: Vec<_> = verb.get_all_aliases().map(str::to_owned).collect();
            // The program ends once it has answered.
            let aliases = aliases.into_iter().map(|alias| &*alias.leak());
            without_aliases(verb.alias(None).aliases(aliases))
        })
    })
}

/// Returns the script that a shell sources to have completions.
pub(super) fn registration(shell: Shell) -> Result<String, Failure> {
    let failed = |error| Failure::new("completions", error);
    let name = shell.to_string();
    let mut script = Vec::new();
    match Shells::builtins().completer(&name) {
        _ if shell == Shell::Bash => script.write_all(BASH.as_bytes()).map_err(failed)?,
        Some(completer) => completer
            .write_registration(VARIABLE, "evloopctl", "evloopctl", "evloopctl", &mut script)
            .map_err(failed)?,
        None => return Err(Failure::new(name, "there are no completions for it")),
    }
    String::from_utf8(script).map_err(|error| Failure::new("completions", error))
}

/// Clap's own registration with two differences. Words that bash has split at `:`, `=` and `@` are joined again, for names
/// and conditions hold them. Candidates are quoted: bash inserts them as they are, and a file may be called `a;b`.
const BASH: &str = r#"_evloopctl() {
    local i current candidate part breaks='' words=() candidates=() index=0
    for part in : = @; do
        [[ $COMP_WORDBREAKS == *$part* ]] && breaks+=$part
    done
    for ((i = 0; i < ${#COMP_WORDS[@]}; i++)); do
        part=${COMP_WORDS[i]}
        if ((i > 0)) && [[ -n $breaks && ($part == [$breaks]* || ${words[-1]} == *[$breaks]) &&
            $COMP_LINE == *"${words[-1]}$part"* ]]; then
            words[-1]+=$part
        else
            words+=("$part")
        fi
        ((i == COMP_CWORD)) && index=$((${#words[@]} - 1))
    done
    current=${words[index]}
    mapfile -t -d $'\013' candidates < <(_CLAP_IFS=$'\013' _CLAP_COMPLETE_INDEX="$index" \
        _CLAP_COMPLETE_COMP_TYPE="$COMP_TYPE" _CLAP_COMPLETE_SPACE=true \
        COMPLETE=bash evloopctl -- "${words[@]}")
    COMPREPLY=()
    for candidate in "${candidates[@]}"; do
        # Bash puts a reply in place of the text after the last of these characters.
        [[ -n $breaks && $current == *[$breaks]* ]] &&
            candidate=${candidate#"${current%"${current##*[$breaks]}"}"}
        [[ -z $candidate ]] || printf -v candidate %q "$candidate"
        COMPREPLY+=("$candidate")
    done
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/:] ]] && compopt -o nospace 2> /dev/null
}
complete -o bashdefault -o nosort -F _evloopctl evloopctl 2> /dev/null ||
    complete -o bashdefault -F _evloopctl evloopctl
"#;

/// The highest signal number that has a name; real-time signals come after it.
const MAX_NAMED_SIGNAL: i32 = 31;

/// What the daemon is asked for.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// Watches that the verb takes, those first that it is most likely meant for.
    Watches,
    /// Ids of the same.
    Ids,
    Processes,
    Loops,
    Consumers,
    Policies,
    Backends,
}

/// Names of watches that the verb takes.
pub(super) fn watches() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Watches))
}

/// Ids of watches that the verb takes.
pub(super) fn ids() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Ids))
}

/// Conditions of `ps --filter`.
pub(super) fn conditions() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let fixed = [
            "status=running",
            "status=stopped",
            "status=ended",
            "status=failed",
            "exited=",
            "label=",
            "id=@",
        ];
        let names = candidates(Wanted::Processes).into_iter();
        let names = names.map(|name| name.add_prefix("name="));
        let fixed = fixed.into_iter().map(CompletionCandidate::new);
        fixed.chain(names).collect()
    })
}

/// Names of processes that can be joined.
pub(super) fn processes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Processes))
}

/// The caller's loops.
pub(super) fn loops() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Loops))
}

/// The loop's consumers.
pub(super) fn consumers() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Consumers))
}

/// All policies.
pub(super) fn policies() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Policies))
}

/// Backends of this host.
pub(super) fn backends() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Backends))
}

/// Names of signals.
pub(super) fn signals() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let names = (1..=MAX_NAMED_SIGNAL).filter_map(config::signal_name);
        names.map(CompletionCandidate::new).collect()
    })
}

/// A name that is offered.
struct Found {
    name: String,
    /// A few words about what has the name, for shells that show them.
    help: String,
    /// Names of a lower order are offered first.
    order: usize,
}

fn candidates(wanted: Wanted) -> Vec<CompletionCandidate> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else {
        return Vec::new();
    };
    let found = async { tokio::time::timeout(PATIENCE, ask(wanted)).await };
    let found = match runtime.block_on(found) {
        Ok(Ok(found)) => found,
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    let offered = found.into_iter().take(OFFERED_MAX).map(|found| {
        CompletionCandidate::new(found.name)
            .help(Some(found.help.into()))
            .display_order(Some(found.order))
    });
    offered.collect()
}

async fn ask(wanted: Wanted) -> Result<Vec<Found>, Failure> {
    // The shell calls `evloopctl -- evloopctl WORD...`.
    let line = std::env::args_os().skip_while(|word| word != "--").skip(2);
    let line = line.map(|word| word.to_string_lossy().into_owned());
    let line: Vec<_> = line.collect();
    let session = session(&line).await?;
    match wanted {
        Wanted::Watches | Wanted::Ids => {
            let at = line.last().is_some_and(|word| word.starts_with('@'));
            let told = match wanted {
                Wanted::Ids => Told::Id,
                _ if at => Told::Reference,
                _ => Told::Name,
            };
            of_verb(&session, &verb(&line), told).await
        }
        Wanted::Processes => of_verb(&session, "", Told::Name).await,
        Wanted::Loops => of_loops(&session, &verb(&line)).await,
        Wanted::Consumers => {
            let found = lookup::consumers(&session).await?;
            let found = found.into_iter().map(|consumer| Found {
                help: format!("{} events behind", consumer.lag_events),
                name: consumer.name,
                order: 0,
            });
            Ok(found.collect())
        }
        Wanted::Policies => {
            let request = ListEventLoopPoliciesRequest {};
            let found = session.policies().list_event_loop_policies(request).await;
            let found = answer(found)?.policies.into_iter().map(|policy| Found {
                name: policy.name,
                help: policy.description,
                order: 0,
            });
            Ok(found.collect())
        }
        Wanted::Backends => {
            let found = session
                .policies()
                .list_backends(ListBackendsRequest {})
                .await;
            let found = answer(found)?.backends.into_iter().map(|backend| Found {
                help: format!(
                    "{}{}",
                    backend.loop_class,
                    if backend.available { "" } else { ", not here" }
                ),
                order: usize::from(!backend.available),
                name: backend.name,
            });
            Ok(found.collect())
        }
    }
}

/// Connects to the daemon that the line names so far, with its loop and session.
async fn session(line: &[String]) -> Result<Session, Failure> {
    let mut global = Global::default();
    // The last word is the one that is being typed.
    let mut words = line.iter().take(line.len().saturating_sub(1));
    while let Some(word) = words.next().filter(|word| *word != "--") {
        let (option, value) = match word.split_once('=') {
            Some((option, value)) => (option, Some(value)),
            None => (word.as_str(), None),
        };
        if matches!(option, "--socket" | "--loop" | "--session") {
            let value = value.or_else(|| words.next().map(String::as_str));
            value.map_or(Ok(()), |value| global.set(option, value))?;
        }
    }
    Session::open(global, String::new()).await
}

/// Returns the verb that the line names so far.
fn verb(line: &[String]) -> String {
    let command = COMMAND.get().map(|command| command());
    command.map_or_else(String::new, |command| verb_of(&command, line))
}

/// How a watch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// `build`; `@7` if it has no name.
    Name,
    /// `@7`
    Reference,
    /// `7`
    Id,
}

/// Lists watches that the verb takes, those first that it is most likely meant for.
async fn of_verb(session: &Session, verb: &str, told: Told) -> Result<Vec<Found>, Failure> {
    let processes = !matches!(
        verb,
        "rm" | "show"
            | "status"
            | "write"
            | "events"
            | "watch get"
            | "watch rm"
            | "watch rearm"
            | "watch take-fd"
    );
    let request = ListWatchesRequest {
        watch_kinds: if processes {
            vec!["process".to_owned()]
        } else {
            Vec::new()
        },
        open_only: matches!(verb, "kill" | "stop" | "write"),
        ..ListWatchesRequest::default()
    };
    let later = |watch: &Watch| {
        let ended = watch.state() == WatchState::Closed;
        match verb {
            "rm" | "logs" => !ended,
            _ => ended,
        }
    };
    let found = lookup::watches(session, request).await?;
    let found = found
        .iter()
        .filter(|watch| !watch.name.is_empty() || !processes || told != Told::Name);
    let found = found.map(|watch| Found {
        name: match told {
            Told::Name => description::reference(watch),
            Told::Reference => format!("@{}", watch.watch_id),
            Told::Id => watch.watch_id.to_string(),
        },
        help: match (told, processes) {
            (Told::Name, true) => description::state(watch).0,
            (Told::Name, false) => format!("{}, {}", watch.watch_kind, description::state(watch).0),
            _ => format!(
                "{}, {}",
                description::reference(watch),
                description::state(watch).0
            ),
        },
        order: usize::from(later(watch)),
    });
    Ok(found.collect())
}

async fn of_loops(session: &Session, verb: &str) -> Result<Vec<Found>, Failure> {
    let found = lookup::loops(session, false).await?;
    let found = found.iter().map(|found| {
        let runs = found.state() == LoopState::Running;
        Found {
            name: found.name.clone(),
            help: format!(
                "{}, {}",
                found.backend,
                if runs { "running" } else { "stopped" }
            ),
            order: usize::from(runs == (verb == "loop run")),
        }
    });
    Ok(found.collect())
}
