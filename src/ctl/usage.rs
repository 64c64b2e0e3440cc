//! Prints help, or what is wrong with a command line: one line, with what to type instead if that is known.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command, Error};

use super::failure::{self, OWN_FAILURE, USAGE};
use super::habits;

/// Verbs that exit with a process's code. For a wrong command line they exit with [`OWN_FAILURE`].
pub(super) const OF_PROCESSES: [&str; 4] = ["run", "attach", "wait", "logs"];

/// Prints the help or the error of clap. Returns the exit code: 0 for help, else 2, or 125 for a verb that exits with a
/// process's code.
pub(super) fn explain(error: &Error, command: &Command, verb: &str) -> ExitCode {
    if !error.use_stderr() {
        // An error is ignored: the reader of stdout has closed it.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if verb.is_empty() && error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // A command line without a verb gets the help.
        let _ = error.print();
        return ExitCode::from(USAGE);
    }
    let wrong = wrong(error, command, verb);
    let path = if verb.is_empty() {
        String::new()
    } else {
        format!("{verb}: ")
    };
    let help = if verb.is_empty() {
        "evloopctl help".to_owned()
    } else {
        format!("evloopctl {verb} --help")
    };
    if wrong.has_advice {
        failure::complain(format_args!("{path}{}", wrong.what));
    } else {
        failure::complain(format_args!("{path}{}; see `{help}`", wrong.what));
    }
    let first = verb.split(' ').next().unwrap_or_default();
    ExitCode::from(if OF_PROCESSES.contains(&first) {
        OWN_FAILURE
    } else {
        USAGE
    })
}

/// What is wrong with the command line.
struct Wrong {
    what: String,
    /// The text says what to type instead.
    has_advice: bool,
}

fn wrong(error: &Error, command: &Command, verb: &str) -> Wrong {
    let said = |kind| told(error, kind);
    let plain = |what| Wrong {
        what,
        has_advice: false,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = said(ContextKind::InvalidSubcommand);
            let instead = habits::instead(verb, &word).map(str::to_owned);
            match instead.or_else(|| suggestion(error, ContextKind::SuggestedSubcommand)) {
                Some(instead) => Wrong {
                    what: format!("there is no `{word}`; {instead}"),
                    has_advice: true,
                },
                None => plain(format!("there is no `{word}`; {}", one_of(command, verb))),
            }
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            plain(format!("a command is missing; {}", one_of(command, verb)))
        }
        ErrorKind::UnknownArgument => {
            let word = said(ContextKind::InvalidArg);
            let (what, instead) = if word.starts_with('-') {
                let instead = habits::option(verb, &word).map(str::to_owned);
                ("option", instead)
            } else {
                ("argument", habits::argument(verb, &word))
            };
            match instead.or_else(|| suggestion(error, ContextKind::SuggestedArg)) {
                Some(instead) => Wrong {
                    what: format!("there is no {what} `{word}` here; {instead}"),
                    has_advice: true,
                },
                None => plain(format!("there is no {what} `{word}` here")),
            }
        }
        ErrorKind::MissingRequiredArgument => {
            plain(format!("missing: {}", said(ContextKind::InvalidArg)))
        }
        _ => plain(first_paragraph(error)),
    }
}

/// Returns a question with the words that clap suggests; `None` if it suggests none.
fn suggestion(error: &Error, kind: ContextKind) -> Option<String> {
    let words = told(error, kind);
    (!words.is_empty()).then(|| format!("did you mean {}?", quoted(&words)))
}

/// Returns the first paragraph of clap's text, which says what is wrong, as one line, with the allowed values.
fn first_paragraph(error: &Error) -> String {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.trim().is_empty());
    let wrong = lines.filter(|line| !line.trim().starts_with("[possible values: "));
    let wrong = wrong.map(str::trim).collect::<Vec<_>>().join(" ");
    let what = wrong.strip_prefix("error: ").unwrap_or(&wrong);
    let allowed = told(error, ContextKind::ValidValue);
    let allowed = match allowed.as_str() {
        "" => String::new(),
        values => format!("; allowed are {values}"),
    };
    match suggestion(error, ContextKind::SuggestedValue) {
        Some(close) => format!(
            "{what}; {close} Allowed are {}",
            told(error, ContextKind::ValidValue)
        ),
        None => format!("{what}{allowed}"),
    }
}

fn told(error: &Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(words)) => {
            let words = words.iter().filter(|word| !word.is_empty());
            words.cloned().collect::<Vec<_>>().join(", ")
        }
        _ => String::new(),
    }
}

/// Turns `a, b` into "`a` or `b`".
fn quoted(words: &str) -> String {
    let words: Vec<_> = words.split(", ").map(|word| format!("`{word}`")).collect();
    words.join(" or ")
}

/// Returns the list of the subcommands of the verb.
fn one_of(command: &Command, verb: &str) -> String {
    let mut reached = command;
    for word in verb.split(' ').filter(|word| !word.is_empty()) {
        match reached.find_subcommand(word) {
            Some(found) => reached = found,
            None => break,
        }
    }
    let names = reached.get_subcommands().filter(|verb| !verb.is_hide_set());
    let names: Vec<_> = names.map(Command::get_name).collect();
    format!("one of {}", names.join(", "))
}

/// Returns the verb and its subcommand, such as `loop close`.
pub(super) fn verb_of(matches: &ArgMatches) -> String {
    let mut verbs = Vec::new();
    let mut reached = matches;
    while let Some((verb, below)) = reached.subcommand() {
        verbs.push(verb);
        reached = below;
    }
    verbs.join(" ")
}

/// Returns the verb and its subcommand among the words of a command line that may be wrong.
pub(super) fn verb_among(command: &Command, words: &[String]) -> String {
    let mut reached = command;
    let mut verbs = Vec::new();
    let mut value_follows = false;
    for word in words {
        if value_follows {
            value_follows = false;
        } else if word == "--" {
            break;
        } else if let Some(option) = word.strip_prefix("--") {
            let takes = |arg: &&clap::Arg| arg.get_long() == Some(option);
            let mut arguments = command.get_arguments().chain(reached.get_arguments());
            let found = arguments.find(takes);
            value_follows = found.is_some_and(|arg| arg.get_action().takes_values());
        } else if !word.starts_with('-') {
            match reached.find_subcommand(word) {
                Some(found) => {
                    verbs.push(found.get_name().to_owned());
                    reached = found;
                }
                None => break,
            }
        }
    }
    verbs.join(" ")
}
