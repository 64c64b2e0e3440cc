//! `evloopctl`: the daemon's client for people and scripts. A file for each verb.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

mod attach;
mod attached;
mod backends;
mod check;
mod command;
mod config;
mod consumer;
mod events;
mod failure;
mod feed;
mod feeder;
mod filter;
#[allow(unsafe_code)]
mod inherited;
mod json;
mod kill;
mod leaving;
mod logs;
mod loops;
mod names;
mod output;
mod parse;
mod policy;
mod post;
mod printer;
mod ps;
mod render;
mod rm;
mod run;
mod session;
mod signals;
mod standstill;
mod status;
mod timer;
mod transcript;
mod wait;
mod watch;
mod write;

use failure::{Failure, OWN_FAILURE, Outcome, USAGE};
use session::{Global, Session};

const EXAMPLES: &str = "Examples:
  evloopctl run --name build -d -- make -j8    # start it, go away
  evloopctl attach build                       # come back to it
  evloopctl events -f                          # what happens

A daemon is started with `evloopd`.";

/// Run, watch and follow things in evloopd.
#[derive(Debug, Parser)]
#[command(name = "evloopctl", version, after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a program, or join it if its name is there
    #[command(after_help = run::EXAMPLES)]
    Run(run::Run),
    /// List processes
    #[command(after_help = ps::EXAMPLES)]
    Ps(ps::Ps),
    /// Print what a process wrote
    #[command(after_help = logs::EXAMPLES)]
    Logs(logs::Logs),
    /// Join a process: its output, your input
    #[command(after_help = attach::EXAMPLES)]
    Attach(attach::Attach),
    /// Wait for a process; its exit code
    #[command(after_help = wait::EXAMPLES)]
    Wait(wait::Wait),
    /// Send a signal to processes
    #[command(after_help = kill::EXAMPLES)]
    Kill(kill::Kill),
    /// End and forget watches
    #[command(after_help = rm::EXAMPLES)]
    Rm(rm::Rm),
    /// Print a line at an interval
    #[command(after_help = timer::EVERY_EXAMPLES)]
    Every(timer::Timer),
    /// Print a line after a while, and end
    #[command(after_help = timer::AFTER_EXAMPLES)]
    After(timer::Timer),
    /// Print what happened on a loop
    #[command(after_help = events::EXAMPLES)]
    Events(events::Events),
    /// Check recorded events against what evloopd promises; needs no daemon
    #[command(after_help = check::EXAMPLES)]
    Check(check::Check),
    /// Consumers: readers that a loop holds events for
    #[command(subcommand, after_help = consumer::EXAMPLES)]
    Consumer(consumer::Verb),
    /// Who answers, and how it is
    #[command(after_help = status::EXAMPLES)]
    Status,
    /// Policies: how loops are made
    #[command(subcommand, after_help = policy::EXAMPLES)]
    Policy(policy::Verb),
    /// Loops: make, set, stop, close
    #[command(subcommand, after_help = loops::EXAMPLES)]
    Loop(loops::Verb),
    /// Watches: add, list, remove
    #[command(subcommand, after_help = watch::EXAMPLES)]
    Watch(watch::Verb),
    /// Write to a process, a connection or a pipe
    #[command(after_help = write::EXAMPLES)]
    Write(write::Write),
    /// Post an event of your own
    #[command(after_help = post::EXAMPLES)]
    Post(post::Post),
    /// What loops can wait with on this host
    #[command(after_help = backends::EXAMPLES)]
    Backends(backends::Args),
    /// The daemon's configuration, and where it came from
    #[command(after_help = config::EXAMPLES)]
    Config,
    /// Completions for your shell
    #[command(after_help = "Example:\n  source <(evloopctl completions bash)")]
    Completions {
        /// Your shell
        shell: Shell,
    },
}

/// What the command line's parser has to say: help as it is, a mistake in one line. The exit code is
/// 0, or 2; where the code is a process's own, 125.
#[must_use]
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody reads it: nothing to do about it.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    // The first paragraph is what is wrong, in one line or with a list below it.
    let lines = text.lines().take_while(|line| !line.trim().is_empty());
    let wrong = lines.filter(|line| !line.trim().starts_with("[possible values: "));
    let wrong = wrong.map(str::trim).collect::<Vec<_>>().join(" ");
    let what = wrong.strip_prefix("error: ").unwrap_or(&wrong);
    let allowed = text.lines().map(str::trim);
    let allowed = allowed.filter_map(|line| line.strip_prefix("[possible values: "));
    let allowed = allowed.filter_map(|line| line.strip_suffix(']')).next();
    let allowed = allowed.map_or_else(String::new, |values| format!("; allowed are {values}"));
    failure::complain(format_args!("{what}{allowed}; see `evloopctl help`"));
    let given = Args::command().ignore_errors(true).try_get_matches();
    let verb = given
        .ok()
        .and_then(|matches| matches.subcommand_name().map(str::to_owned));
    ExitCode::from(match verb.as_deref() {
        Some("run" | "attach" | "wait" | "logs") => OWN_FAILURE,
        _ => USAGE,
    })
}

/// Carries out what the command line says. Results go to stdout; a failure is one line
/// on stderr and an exit code: 2 for a wrong command line, 3 if events were missed, 125
/// where the code is otherwise a child's, else 1.
pub async fn main(args: Args) -> ExitCode {
    let of_run = matches!(
        args.verb,
        Verb::Run(_) | Verb::Attach(_) | Verb::Wait(_) | Verb::Logs(_)
    );
    let code = match dispatch(args).await {
        Ok(code) => code,
        Err(failure) if of_run => failure.of_run().report(),
        Err(failure) => failure.report(),
    };
    ExitCode::from(code)
}

async fn dispatch(args: Args) -> Outcome {
    // These need no daemon.
    match args.verb {
        Verb::Completions { shell } => return completions(shell),
        Verb::Check(check) => return check::run(&check, args.global.json),
        _ => {}
    }
    let session = Session::open(args.global).await?;
    let session = &session;
    match args.verb {
        Verb::Run(args) => run::run(session, args).await,
        Verb::Ps(args) => ps::run(session, args).await,
        Verb::Logs(args) => logs::run(session, args).await,
        Verb::Attach(args) => attach::run(session, args).await,
        Verb::Wait(args) => wait::run(session, args).await,
        Verb::Kill(args) => kill::run(session, args).await,
        Verb::Rm(args) => rm::run(session, args).await,
        Verb::Every(args) => timer::every(session, args).await,
        Verb::After(args) => timer::after(session, args).await,
        Verb::Events(args) => events::run(session, args).await,
        Verb::Status => status::run(session).await,
        Verb::Policy(verb) => policy::run(session, verb).await,
        Verb::Loop(verb) => loops::run(session, verb).await,
        Verb::Watch(verb) => watch::run(session, verb).await,
        Verb::Write(args) => write::run(session, args).await,
        Verb::Post(args) => post::run(session, args).await,
        Verb::Backends(args) => backends::run(session, &args).await,
        Verb::Config => config::run(session).await,
        Verb::Consumer(verb) => consumer::run(session, verb).await,
        Verb::Check(check) => check::run(&check, session.json),
        Verb::Completions { shell } => completions(shell),
    }
}

fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "evloopctl", &mut script);
    let script = String::from_utf8(script).map_err(|error| Failure::new("completions", error))?;
    output::raw(&script)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_each_verb_has_an_example() {
        fn check(command: &clap::Command) {
            for verb in command
                .get_subcommands()
                .filter(|verb| verb.get_name() != "help")
            {
                assert!(verb.get_after_help().is_some(), "{}", verb.get_name());
                check(verb);
            }
        }
        let mut command = Args::command();
        command.clone().debug_assert();
        command.build();
        check(&command);
    }

    #[test]
    fn options_after_the_program_are_the_programs() {
        let line = [
            "evloopctl",
            "run",
            "--name",
            "b",
            "--",
            "make",
            "-j8",
            "--json",
        ];
        let args = Args::try_parse_from(line).unwrap();
        assert!(!args.global.json);
        let args = Args::try_parse_from(["evloopctl", "run", "ls", "-l", "--json"]).unwrap();
        assert!(!args.global.json);
        assert!(Args::try_parse_from(["evloopctl", "run"]).is_err());
    }
}
