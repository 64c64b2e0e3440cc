//! Completes command lines in a shell, with the names of processes, watches, loops, consumers and policies.
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

use super::close;
use super::description;
use super::failure::Failure;
use super::lookup;
use super::session::{Global, Session, answer};
use super::usage::verb_among;
use crate::config;
use crate::proto::{
    ListBackendsRequest, ListEventLoopPoliciesRequest, ListWatchesRequest, LoopState, Watch,
    WatchState,
};

/// The environment variable by which a shell asks for candidates.
const VARIABLE: &str = "COMPLETE";
/// How long the daemon may take for all its answers: the user has pressed Tab and waits.
const PATIENCE: Duration = Duration::from_millis(500);
/// The largest number of candidates that are offered.
const OFFERED_MAX: usize = 1000;

/// Builds the command line of evloopctl. It is static because clap calls functions without arguments for candidates.
static COMMAND: OnceLock<fn() -> Command> = OnceLock::new();

/// Prints candidates and ends the program if a shell asks for them. Otherwise does nothing. `command` builds the command
/// line of evloopctl.
pub(super) fn complete(command: fn() -> Command) {
    let command = *COMMAND.get_or_init(|| command);
    CompleteEnv::with_factory(|| with_loops(without_aliases(command())))
        .var(VARIABLE)
        .complete();
}

/// Offers loops for `--loop`. Not in the declaration of this option: `session` cannot use this module, which uses it.
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
            // A leak is harmless: the program ends after the answer.
            let aliases = aliases.into_iter().map(|alias| &*alias.leak());
            without_aliases(verb.alias(None).aliases(aliases))
        })
    })
}

/// Returns the script that a shell sources to have completions.
pub(super) fn registration(shell: Shell) -> Result<String, Failure> {
    let failed = |error| Failure::new("writing the script", error);
    let name = shell.to_string();
    let mut script = Vec::new();
    match Shells::builtins().completer(&name) {
        _ if shell == Shell::Bash => script.write_all(BASH.as_bytes()).map_err(failed)?,
        Some(completer) => completer
            .write_registration(VARIABLE, "evloopctl", "evloopctl", "evloopctl", &mut script)
            .map_err(failed)?,
        None => {
            return Err(Failure::new(
                name,
                "there are no completions for this shell",
            ));
        }
    }
    String::from_utf8(script).map_err(|error| Failure::new("writing the script", error))
}

/// Clap's script for bash, with two differences. It joins words that bash has split at `:`, `=` and `@`, because names and
/// conditions hold these characters. It quotes candidates, because bash inserts them unchanged, and a file may be called
/// `a;b`.
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

/// What the candidates are.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// Names of watches that the verb accepts, the most likely ones first.
    Watches,
    /// Ids of watches that the verb accepts, the most likely ones first.
    Ids,
    Processes,
    Loops,
    Consumers,
    Policies,
    Backends,
}

/// Offers names of watches that the verb accepts.
pub(super) fn watches() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Watches))
}

/// Offers ids of watches that the verb accepts.
pub(super) fn ids() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Ids))
}

/// Offers conditions of `ps --filter`.
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

/// Offers names of processes that can be joined.
pub(super) fn processes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Processes))
}

/// Offers the caller's loops.
pub(super) fn loops() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Loops))
}

/// Offers the loop's consumers.
pub(super) fn consumers() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Consumers))
}

/// Offers all policies.
pub(super) fn policies() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Policies))
}

/// Offers all backends.
pub(super) fn backends() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(Wanted::Backends))
}

/// Offers names of signals.
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
    // The shell's script calls `evloopctl -- evloopctl WORD...`.
    let line = std::env::args_os().skip_while(|word| word != "--").skip(2);
    let line = line.map(|word| word.to_string_lossy().into_owned());
    let line: Vec<_> = line.collect();
    let session = session(&line).await?;
    match wanted {
        Wanted::Watches | Wanted::Ids => {
            let at = line.last().is_some_and(|word| word.starts_with('@'));
            let form = match wanted {
                Wanted::Ids => Form::Id,
                _ if at => Form::Reference,
                _ => Form::Name,
            };
            of_verb(&session, &verb(&line), form).await
        }
        Wanted::Processes => of_verb(&session, "", Form::Name).await,
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

/// Connects to the daemon, with the options of the words before the one that is being typed.
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

/// Returns the verb among the words that are typed so far.
fn verb(line: &[String]) -> String {
    let Some(command) = COMMAND.get() else {
        return String::new();
    };
    let mut command = command().disable_help_subcommand(true);
    command.build();
    verb_among(&command, line)
}

/// The form in which a watch is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `build`; `@7` if it has no name.
    Name,
    /// `@7`
    Reference,
    /// `7`
    Id,
}

/// Lists watches that the verb accepts, the most likely ones first.
async fn of_verb(session: &Session, verb: &str, form: Form) -> Result<Vec<Found>, Failure> {
    let processes = !matches!(
        verb,
        "rm" | "close"
            | "show"
            | "status"
            | "write"
            | "events"
            | "watch get"
            | "watch rm"
            | "watch rearm"
            | "watch take-fd"
    );
    let request = ListWatchesRequest {
        watch_kinds: match verb {
            "close" => close::KINDS.map(|kind| kind.name().to_owned()).into(),
            _ if processes => vec!["process".to_owned()],
            _ => Vec::new(),
        },
        open_only: matches!(verb, "kill" | "stop" | "write" | "close"),
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
        .filter(|watch| !watch.name.is_empty() || !processes || form != Form::Name);
    let found = found.map(|watch| Found {
        name: match form {
            Form::Name => description::reference(watch),
            Form::Reference => format!("@{}", watch.watch_id),
            Form::Id => watch.watch_id.to_string(),
        },
        help: match (form, processes) {
            (Form::Name, true) => description::state(watch).0,
            (Form::Name, false) => format!("{}, {}", watch.watch_kind, description::state(watch).0),
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
