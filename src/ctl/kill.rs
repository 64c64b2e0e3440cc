//! `kill`: sends a signal to processes.

use clap::Args;

use super::complete;
use super::description;
use super::exit::no_process;
use super::explain;
use super::failure::{Failure, Outcome, USAGE};
use super::lookup;
use super::parse;
use super::session::{Session, answer};
use crate::proto::{SendSignalRequest, SignalTarget, WatchRef};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl kill build            # SIGTERM to its process group
  evloopctl kill -9 build
  evloopctl kill --process -HUP web
  evloopctl kill --tree -STOP build   # to all of its descendants too
  evloopctl kill -0 build         # only check whether it runs
  evloopctl kill @7               # by id

It sends, and does not wait: `evloopctl stop` ends a process. The exit code is 0, or 1 if \
the signal could not be sent to one of them.";

pub(super) const USAGE_LINE: &str = "evloopctl kill [OPTIONS] <NAME|--id <ID>>...";

/// Options of `kill`.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Kill {
    /// The signal, by name or number; `-9` and `-TERM` work too [default: SIGTERM]
    #[arg(short, long, value_parser = parse::signal, add = complete::signals())]
    signal: Option<String>,
    /// Send the signal to the process alone, not to its group
    #[arg(long)]
    process: bool,
    /// Send the signal to the process and all of its descendants
    #[arg(long, conflicts_with = "process")]
    tree: bool,
    /// The names, or `@7` for the watch with the id 7
    #[arg(value_name = "NAME", required_unless_present = "watch_ids", allow_hyphen_values = true, value_parser = word, add = complete::watches())]
    words: Vec<Word>,
    /// The id of a process, instead of its name; may be repeated
    #[arg(long = "id", value_name = "ID", value_parser = parse::watch_id, add = complete::ids())]
    watch_ids: Vec<WatchRef>,
}

/// A word of the command line that is not an option: a signal as `-9`, or a name.
#[derive(Debug, Clone, PartialEq)]
enum Word {
    Signal(String),
    Watch(WatchRef),
}

fn word(text: &str) -> Result<Word, String> {
    match text.strip_prefix('-') {
        Some("-all") => Err("there is no such option; `evloopctl kill $(evloopctl ps -q --running)` sends to all processes that run".to_owned()),
        Some(option) if option.starts_with('-') => Err("there is no such option".to_owned()),
        // kill(1) takes names and numbers of signals in this form too.
        Some(signal)
            if signal.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_uppercase()) =>
        {
            parse::signal(signal).map(Word::Signal)
        }
        Some(_) => {
            Err("there is no such option; a signal is written -9, -TERM or -s TERM".to_owned())
        }
        None => parse::watch_ref(text).map(Word::Watch),
    }
}

pub(super) async fn run(session: &Session, args: Kill) -> Outcome {
    let target = if args.process {
        SignalTarget::Process
    } else if args.tree {
        SignalTarget::Tree
    } else {
        SignalTarget::Group
    };
    let (mut signals, mut watches): (Vec<_>, Vec<_>) =
        (args.signal.into_iter().collect(), Vec::new());
    for word in args.words {
        match word {
            Word::Signal(signal) => signals.push(signal),
            Word::Watch(watch) => watches.push(watch),
        }
    }
    watches.extend(args.watch_ids);
    if signals.len() > 1 {
        let both = signals.join(" and ");
        return Err(Failure::plain(format!("only one signal is allowed, not {both}")).code(USAGE));
    }
    if watches.is_empty() {
        return Err(Failure::plain("missing: <NAME>...").code(USAGE));
    }
    let signal = signals.pop().unwrap_or_else(|| "SIGTERM".to_owned());
    let mut code = 0;
    for watch in watches {
        let sent = send(session, watch, &signal, target).await;
        if let Err(failure) = sent {
            code = explain::report(session, failure).await;
        }
    }
    Ok(code)
}

/// Sends the signal to the process, or to its group. Signal 0 only checks whether the process runs.
///
/// # Errors
/// The watch is not a process, the process has ended, or the daemon may not send the signal.
pub(super) async fn send(
    session: &Session,
    watch: WatchRef,
    signal: &str,
    target: SignalTarget,
) -> Result<(), Failure> {
    let name = parse::watch_name(&watch);
    if signal == "0" {
        return runs(session, &watch).await;
    }
    let request = SendSignalRequest {
        r#loop: session.loop_ref.clone(),
        watch: Some(watch.clone()),
        signal: signal.to_owned(),
        target: target.into(),
        ..SendSignalRequest::default()
    };
    let Err(failure) = answer(session.processes().send_signal(request).await) else {
        return Ok(());
    };
    Err(match failure.reason.as_str() {
        // The messages of these failures hold the name.
        "WATCH_NOT_FOUND" | "WATCH_CLOSED" => failure,
        "WRONG_STATE" => match lookup::watch(session, &watch).await {
            Ok(found) if !description::is_process(&found) => no_process(&name, &found),
            Ok(_) | Err(_) => failure.about(name),
        },
        _ => failure.about(name),
    })
}

/// Returns an error if the process does not run, as signal 0 does in kill(2).
async fn runs(session: &Session, asked: &WatchRef) -> Result<(), Failure> {
    let name = parse::watch_name(asked);
    let found = lookup::watch(session, asked).await?;
    if !description::is_process(&found) {
        return Err(no_process(&name, &found));
    }
    match description::end(&found) {
        Some(end) => Err(Failure::plain(format!("{name} {end}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_from_a_name_by_its_hyphen() {
        for (text, signal) in [
            ("-9", "9"),
            ("-TERM", "SIGTERM"),
            ("-SIGHUP", "SIGHUP"),
            ("-RTMIN+1", "SIGRTMIN+1"),
        ] {
            assert_eq!(word(text), Ok(Word::Signal(signal.to_owned())));
        }
        assert!(matches!(word("TERM"), Ok(Word::Watch(_))));
        for wrong in ["--sginal", "-x", "-", "--"] {
            assert!(word(wrong).is_err(), "{wrong}");
        }
    }
}
