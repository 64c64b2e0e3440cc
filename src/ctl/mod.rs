//! `evloopctl`: the daemon's client for people and scripts.
//!
//! Each verb has a file of its own, with its options and its code. Below the verbs, lowest layer first:
//!
//! | modules | contents |
//! |---|---|
//! | `options`, `failure`, `parse`, `units`, `style`, `json` | failures and exit codes; forms of values and texts |
//! | `output`, `table`, `sink` | what is written to stdout |
//! | `render`, `exit`, `target`, `description` | events, exit statuses and watches in words |
//! | `session`, `lookup` | the connection to the daemon; watches, loops and consumers by name |
//! | `habits`, `usage` | what is wrong with a command line, and what to type instead |
//! | `complete`, `explain` | completions in a shell; explanations of failures |
//! | `names`, `filter`, `command`, `inherited`, `zone` | options that several verbs have |
//! | `holder`, `standstill`, `feed` | a stream of events, and why no event comes |
//! | `ledger`, `transcript`, `printer` | output of processes and events as text |
//! | `feeder`, `signals`, `leaving`, `attached` | a process in the foreground: its input, its signals, its end |

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;

mod attach;
mod attached;
mod backends;
mod calendar;
mod check;
mod close;
mod command;
mod complete;
mod config;
mod consumer;
mod deferred;
mod descendants;
mod description;
mod early_end;
mod events;
mod exit;
mod explain;
mod failure;
mod feed;
mod feeder;
mod filter;
mod habits;
mod holder;
#[allow(unsafe_code)]
mod inherited;
mod json;
mod keep_alive;
mod kill;
mod leaving;
mod ledger;
mod logs;
mod lookup;
mod loops;
mod losses;
mod man;
mod names;
mod options;
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
mod show;
mod signals;
mod sink;
mod standstill;
mod status;
mod stop;
mod stop_all;
mod streams;
mod style;
mod table;
mod target;
mod terminal;
mod timer;
mod transcript;
mod units;
mod update;
mod usage;
mod version;
mod wait;
mod watch;
mod write;
mod zone;

use deferred::Deferred;
use failure::{EXIT_CODES, Outcome};
use session::{Global, Session};

const EXAMPLES: &str = "Examples:
  evloopctl run --name build -d -- make -j8    # start it and return
  evloopctl attach build                       # print its output, live too
  evloopctl ps                                 # what runs, what ended and how
  evloopctl events -f                          # what happens

A daemon is started with `evloopd`.";

/// Run and follow processes, timers, sockets and other sources of events in evloopd.
#[derive(Debug, Parser)]
#[command(name = "evloopctl", version, after_help = help())]
struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

fn help() -> String {
    format!("{EXAMPLES}\n\n{EXIT_CODES}")
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a program, or join the process that has its name
    #[command(after_help = run::EXAMPLES)]
    Run(Deferred<run::Run>),
    /// List processes
    #[command(visible_aliases = ["ls", "list"], after_help = ps::EXAMPLES)]
    Ps(Deferred<ps::Ps>),
    /// Print what processes wrote
    #[command(visible_alias = "log", after_help = logs::EXAMPLES)]
    Logs(Deferred<logs::Logs>),
    /// Join a process: print its output, pass your input on
    #[command(after_help = attach::EXAMPLES)]
    Attach(Deferred<attach::Attach>),
    /// Wait until processes end, and exit with their exit code
    #[command(after_help = wait::EXAMPLES)]
    Wait(Deferred<wait::Wait>),
    /// End processes by a signal, and by SIGKILL if they do not end in time
    #[command(after_help = stop::EXAMPLES, override_usage = stop::USAGE_LINES)]
    Stop(Deferred<stop::Stop>),
    /// Send a signal to processes
    #[command(after_help = kill::EXAMPLES, override_usage = kill::USAGE_LINE)]
    Kill(Deferred<kill::Kill>),
    /// End and forget processes and other watches
    #[command(visible_alias = "remove", after_help = rm::EXAMPLES, override_usage = rm::USAGE_LINES)]
    Rm(Deferred<rm::Rm>),
    /// Show one process, watch, loop or consumer
    #[command(visible_alias = "inspect", after_help = show::EXAMPLES)]
    Show(Deferred<show::Show>),
    /// Print a line at an interval
    #[command(after_help = timer::EVERY_EXAMPLES)]
    Every(Deferred<timer::Timer>),
    /// Print a line after a delay, and end
    #[command(after_help = timer::AFTER_EXAMPLES)]
    After(Deferred<timer::Timer>),
    /// Print a line at a time of day, and end
    #[command(after_help = timer::AT_EXAMPLES)]
    At(Deferred<timer::At>),
    /// Print a line whenever an expression of cron or of systemd's OnCalendar= is due
    #[command(after_help = timer::CRON_EXAMPLES)]
    Cron(Deferred<timer::OfCalendar>),
    /// Change a timer or another watch in place
    #[command(after_help = update::EXAMPLES)]
    Update(Deferred<update::Update>),
    /// Renew the lease of a watch or a loop
    #[command(after_help = keep_alive::EXAMPLES)]
    KeepAlive(Deferred<keep_alive::KeepAlive>),
    /// Print the events of a loop
    #[command(after_help = events::EXAMPLES)]
    Events(Deferred<events::Events>),
    /// Tell when an expression of cron or of systemd's OnCalendar= is due; needs no daemon
    #[command(after_help = calendar::EXAMPLES)]
    Calendar(Deferred<calendar::Arguments>),
    /// Check recorded events against what evloopd promises; needs no daemon
    #[command(after_help = check::EXAMPLES)]
    Check(Deferred<check::Check>),
    /// Consumers, for which a loop keeps events: list, show, create, delete
    #[command(subcommand, after_help = consumer::EXAMPLES)]
    Consumer(Deferred<consumer::Verb>),
    /// Show the daemon's state and identity
    #[command(visible_alias = "info", after_help = status::EXAMPLES)]
    Status(Deferred<status::Status>),
    /// Policies by which loops are made: list, get, set
    #[command(subcommand, after_help = policy::EXAMPLES)]
    Policy(Deferred<policy::Verb>),
    /// Loops: new, list, get, set, run, stop, close
    #[command(subcommand, after_help = loops::EXAMPLES)]
    Loop(Deferred<loops::Verb>),
    /// Watches: fd, timer, listen, connect and others; list, get, remove
    #[command(subcommand, after_help = watch::EXAMPLES)]
    Watch(Deferred<watch::Verb>),
    /// Connect to an address; as `watch connect`
    #[command(after_help = watch::sockets::CONNECT_EXAMPLES)]
    Connect(Deferred<Box<watch::sockets::Connect>>),
    /// Accept connections; as `watch listen`
    #[command(after_help = watch::sockets::LISTEN_EXAMPLES)]
    Listen(Deferred<Box<watch::sockets::Listen>>),
    /// Send and receive datagrams; as `watch udp`
    #[command(after_help = watch::datagram::UDP_EXAMPLES)]
    Udp(Deferred<Box<watch::datagram::Udp>>),
    /// Write to a process, a connection or a pipe
    #[command(visible_alias = "send", after_help = write::EXAMPLES)]
    Write(Deferred<write::Write>),
    /// Close connections, listeners, pipes and datagram sockets, and say what they left
    #[command(after_help = close::EXAMPLES)]
    Close(Deferred<close::Close>),
    /// Append an event of your own to a loop
    #[command(after_help = post::EXAMPLES)]
    Post(Deferred<post::Post>),
    /// Show the backends: how loops can wait on this host
    #[command(after_help = backends::EXAMPLES)]
    Backends(Deferred<backends::Args>),
    /// Show the daemon's configuration, and where each value comes from
    #[command(after_help = config::EXAMPLES)]
    Config,
    /// Print the versions of evloopctl and of the daemon
    #[command(after_help = version::EXAMPLES)]
    Version,
    /// Print the script that completes command lines in your shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// Your shell
        shell: Shell,
    },
    /// Print or write the manual pages
    #[command(after_help = man::EXAMPLES)]
    Man(Deferred<man::ManPages>),
}

const COMPLETIONS_EXAMPLES: &str = "Examples:
  source <(evloopctl completions bash)         # or zsh; in ~/.bashrc, ~/.zshrc
  evloopctl completions fish | source          # in ~/.config/fish/config.fish";

/// Prints completions and ends the program if a shell asks for them. Otherwise does nothing.
pub fn complete() {
    complete::complete(Args::command);
}

/// The command line, parsed.
#[derive(Debug)]
pub struct Invocation {
    args: Args,
    /// The verb as it was typed, such as `loop close`.
    verb: String,
}

/// Parses the command line. Prints help if the user asks for it, and one line on stderr if the command line is wrong.
///
/// # Errors
/// The exit code: 0 after help, else 2, or 125 for a verb whose exit code is that of a process.
pub fn parse() -> Result<Invocation, ExitCode> {
    let mut command = Args::command();
    let parsed = command
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|matches| {
            let args = Args::from_arg_matches(&matches);
            let args = args.map_err(|error| error.format(&mut command))?;
            let verb = usage::verb_of(&matches);
            Ok(Invocation { args, verb })
        });
    parsed.map_err(|error| {
        let mut command = Args::command().disable_help_subcommand(true);
        command.build();
        let words = std::env::args_os().skip(1);
        let words: Vec<_> = words
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let verb = usage::verb_among(&command, &words);
        usage::explain(&error, &command, &verb)
    })
}

/// Carries out the command line: writes results to stdout, or one line with the failure to stderr. Returns the exit code;
/// `evloopctl --help` lists the exit codes.
pub async fn main(invocation: Invocation) -> ExitCode {
    crate::sys::keep_freed_memory();
    let Invocation { args, verb } = invocation;
    let of_run = matches!(
        args.verb,
        Verb::Run(_) | Verb::Attach(_) | Verb::Wait(_) | Verb::Logs(_)
    );
    let code = match dispatch(args, verb.clone()).await {
        Ok(code) => code,
        Err(failure) => {
            let failure = failure.of_verb(&verb);
            let failure = if of_run { failure.of_run() } else { failure };
            failure.report()
        }
    };
    ExitCode::from(code)
}

async fn dispatch(args: Args, verb: String) -> Outcome {
    // These need no daemon.
    match args.verb {
        Verb::Completions { shell } => {
            output::raw(&complete::registration(shell)?)?;
            return Ok(0);
        }
        Verb::Man(Deferred(args)) => return man::run(&args, Args::command()),
        Verb::Calendar(Deferred(calendar)) => return calendar::run(&calendar, args.global.json),
        Verb::Check(Deferred(check)) => return check::run(&check, args.global.json),
        Verb::Version => return version::run(args.global, verb).await,
        Verb::Stop(Deferred(stop)) if stop.is_forced() => {
            return stop::force(args.global, verb, stop).await;
        }
        _ => {}
    }
    let session = Session::open(args.global, verb).await?;
    match carry_out(&session, args.verb).await {
        Err(failure) => Err(explain::explained(&session, failure).await),
        outcome => outcome,
    }
}

async fn carry_out(session: &Session, verb: Verb) -> Outcome {
    match verb {
        Verb::Run(Deferred(args)) => run::run(session, args).await,
        Verb::Ps(Deferred(args)) => ps::run(session, args).await,
        Verb::Logs(Deferred(args)) => logs::run(session, args).await,
        Verb::Attach(Deferred(args)) => attach::run(session, args).await,
        Verb::Wait(Deferred(args)) => wait::run(session, args).await,
        Verb::Stop(Deferred(args)) => stop::run(session, args).await,
        Verb::Kill(Deferred(args)) => kill::run(session, args).await,
        Verb::Rm(Deferred(args)) => rm::run(session, args).await,
        Verb::Show(Deferred(args)) => show::run(session, args).await,
        Verb::Every(Deferred(args)) => timer::every(session, args).await,
        Verb::After(Deferred(args)) => timer::after(session, args).await,
        Verb::At(Deferred(args)) => timer::at(session, args).await,
        Verb::Cron(Deferred(args)) => timer::cron(session, args).await,
        Verb::Update(Deferred(args)) => update::run(session, args).await,
        Verb::KeepAlive(Deferred(args)) => keep_alive::run(session, args).await,
        Verb::Events(Deferred(args)) => events::run(session, args).await,
        Verb::Status(Deferred(args)) => status::run(session, args).await,
        Verb::Policy(Deferred(verb)) => policy::run(session, verb).await,
        Verb::Loop(Deferred(verb)) => loops::run(session, verb).await,
        Verb::Watch(Deferred(verb)) => watch::run(session, verb).await,
        Verb::Connect(Deferred(args)) => {
            watch::kinds::run(session, watch::kinds::Kind::Connect(args)).await
        }
        Verb::Listen(Deferred(args)) => {
            watch::kinds::run(session, watch::kinds::Kind::Listen(args)).await
        }
        Verb::Udp(Deferred(args)) => {
            watch::kinds::run(session, watch::kinds::Kind::Udp(args)).await
        }
        Verb::Write(Deferred(args)) => write::run(session, args).await,
        Verb::Close(Deferred(args)) => close::run(session, args).await,
        Verb::Post(Deferred(args)) => post::run(session, args).await,
        Verb::Backends(Deferred(args)) => backends::run(session, &args).await,
        Verb::Config => config::run(session).await,
        Verb::Consumer(Deferred(verb)) => consumer::run(session, verb).await,
        // `dispatch` carries these out without a session.
        Verb::Calendar(_)
        | Verb::Check(_)
        | Verb::Version
        | Verb::Completions { .. }
        | Verb::Man(_) => Ok(0),
    }
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
                let help = verb
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(help.starts_with("Example"), "{}", verb.get_name());
                // Examples are not broken on a terminal of the usual width.
                let examples = help.lines().filter(|line| line.starts_with("  "));
                examples.for_each(|line| assert!(line.len() <= 80, "{line}"));
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
