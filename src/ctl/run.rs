//! `run`: starts a process, or joins the process that has its name.

use clap::{Args, ValueEnum};

use super::attached::{Foreground, Forget, attached};
use super::command::Command;
use super::complete;
use super::description;
use super::explain::differing;
use super::failure::{Failure, Outcome, USAGE, complain};
use super::json;
use super::leaving::OnHangup;
use super::lookup;
use super::output;
use super::parse;
use super::session::{Session, answer};
use super::style::printable;
use super::target;
use super::terminal::{self, DetachKeys, is_one_terminal};
use crate::proto::{
    AddWatchRequest, AddWatchResponse, IfExists, OnGap, ProcessSpec, RunRequest, Stdio,
    TerminalOptions, TerminalSizeOf, WatchRef, WatchSpec, watch_ref, watch_spec,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl run -- make -j8
  evloopctl run --name build -d -- make -j8    # goes on when you log out
  evloopctl run --name build -- make -j8       # the same command joins it
  while read host; do evloopctl run -n -- ping -c1 $host; done < hosts

Without --detach, the exit code is the program's own, or 128 + N if signal N ended it; 124 if it \
ran longer than --timeout; 125 if evloopctl itself failed, 126 if the program cannot be executed, \
127 if it was not found. If some output is gone, stderr says so and the exit code is still the \
program's. If SIGINT ended the program, evloopctl ends by SIGINT too, so that a loop in a shell \
ends. A program without --name is forgotten at once if it exits with 0, else 10 minutes after its \
end.

A program with a terminal gets your keys as they are, and shows its screen on yours; Ctrl-P Ctrl-Q \
leaves it, and it runs on. A program with a --name gets none unless you say -t, so that its log is what it wrote, byte for byte.

Without a terminal, signals are passed on. Ctrl-C twice within a second leaves the program, which runs on. One signal \
is enough while the loop is stopped or the daemon does not answer. When a pipe or terminal that \
gets the output is closed, a program without --name ends as in a pipeline, and a program with a \
name runs on. If SIGKILL ends evloopctl itself, the program runs on; without --name it is \
forgotten 10 minutes after its end.

Your stdin is passed on, even if the program does not read it, as ssh does: in a `while read` \
loop, use -n or </dev/null.";

/// How long a program without a name is kept after its end, if it failed or evloopctl ended before it.
const UNNAMED_IS_KEPT: prost_types::Duration = prost_types::Duration {
    seconds: 600,
    nanos: 0,
};

/// Which of several terminals that are attached has the size of the program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SizeOf {
    /// The one that was typed into last.
    Latest,
    /// The fewest rows and the fewest columns of all.
    Smallest,
}

impl From<SizeOf> for TerminalSizeOf {
    fn from(of: SizeOf) -> Self {
        match of {
            SizeOf::Latest => Self::Latest,
            SizeOf::Smallest => Self::Smallest,
        }
    }
}

/// Options of `run`.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The process's name; if a process has it, running or finished, it is joined [default: a generated name]
    #[arg(long, value_parser = parse::name, add = complete::processes())]
    name: Option<String>,
    /// Start the program, print its name and return
    #[arg(short, long)]
    detach: bool,
    /// With --detach, leave the program's stdin open for a later `attach` or `write`
    #[arg(short, long)]
    interactive: bool,
    /// Forget the process as soon as it has ended, whatever its exit code
    #[arg(long)]
    rm: bool,
    /// Attach a label; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::key_value)]
    labels: Vec<(String, String)>,
    /// Give the program a terminal [default: only without --name, if stdin, stdout and stderr are your terminal]
    #[arg(short, long, overrides_with = "no_tty")]
    tty: bool,
    /// Give the program no terminal
    #[arg(short = 'T', long, overrides_with = "tty")]
    no_tty: bool,
    /// The keys that leave the terminal, such as `ctrl-a,d`; empty: none do
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Whose size the program's terminal has while several are attached
    #[arg(long, value_enum, value_name = "WHOSE", default_value = "latest")]
    size_of: SizeOf,
    /// Give the program /dev/null as stdin, and do not read yours
    #[arg(short, long, conflicts_with = "interactive")]
    no_stdin: bool,
    /// What happens to the program when a pipe or terminal that gets its output is closed [default: end; with --name: keep]
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "detach")]
    on_hangup: Option<OnHangup>,
    #[command(flatten)]
    command: Command,
}

pub(super) async fn run(session: &Session, args: Run) -> Outcome {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => args.command.generated_name()?,
    };
    if args.detach {
        return start(session, args, name).await;
    }
    let unnamed = match &args.name {
        Some(_) => OnHangup::Keep,
        None => OnHangup::End,
    };
    let reads_file = args.command.reads_file();
    let how = Foreground {
        input: !args.no_stdin && !reads_file,
        on_hangup: args.on_hangup.unwrap_or(unnamed),
        forget: match &args.name {
            _ if args.rm => Forget::Always,
            None => Forget::Success,
            Some(_) => Forget::Never,
        },
    };
    let by_itself = args.name.is_none() && how.input && !session.json && is_one_terminal();
    let by_itself = by_itself && !args.command.has_streams();
    if !args.no_tty && (args.tty || by_itself) {
        return at_terminal(session, args, name, how).await;
    }
    let mut how = how;
    let (stdin, other) = if how.input {
        (Stdio::Pipe, Stdio::Null)
    } else {
        (Stdio::Null, Stdio::Pipe)
    };
    let mut request = RunRequest {
        r#loop: session.loop_ref.clone(),
        name,
        spec: Some(args.command.spec(stdin)?),
        labels: args.labels.into_iter().collect(),
        on_gap: OnGap::Skip.into(),
        finished_ttl: match (&args.name, args.rm) {
            (_, true) => Some(prost_types::Duration::default()),
            (None, false) => Some(UNNAMED_IS_KEPT),
            (Some(_), false) => None,
        },
        ..RunRequest::default()
    };
    let outcome = match attached(session, request.clone(), how).await {
        // A process that was started with another kind of stdin is joined too.
        Err(failure) if differs_in_stdin(&failure) && !reads_file => {
            if let Some(spec) = &mut request.spec {
                spec.set_stdin(other);
            }
            how.input = false;
            attached(session, request.clone(), how).await
        }
        outcome => outcome,
    };
    match outcome {
        Err(failure) => {
            let spec = request.spec.unwrap_or_default();
            Err(not_started(session, failure, &request.name, spec).await)
        }
        outcome => outcome,
    }
}

/// Runs the program with a terminal, or joins the one that has the name.
async fn at_terminal(session: &Session, args: Run, name: String, how: Foreground) -> Outcome {
    if args.interactive && !rustix::termios::isatty(std::io::stdin()) {
        let advice = "leave out -t to pass it on, or -i to pass on nothing";
        return Err(Failure::new("-i", "stdin is not a terminal").advice(advice));
    }
    let (named, rm) = (args.name.is_some(), args.rm);
    let (keys, input) = (args.detach_keys.clone(), how.input);
    let request = args.registration(session, name, if input { Stdio::Pty } else { Stdio::Null })?;
    let request = AddWatchRequest {
        finished_ttl: match (named, rm) {
            (_, true) => Some(prost_types::Duration::default()),
            (false, false) => Some(UNNAMED_IS_KEPT),
            (true, false) => None,
        },
        ..request
    };
    let added = match add(session, &request).await {
        Ok(added) => added,
        Err(failure) => return Err(not_added(session, failure, request).await),
    };
    let watch = added.watch.unwrap_or_default();
    if !terminal::is_of(&watch) {
        // It was started without a terminal.
        let request = RunRequest {
            r#loop: session.loop_ref.clone(),
            name: watch.name,
            on_gap: OnGap::Skip.into(),
            ..RunRequest::default()
        };
        return attached(session, request, how).await;
    }
    let options = terminal::Options {
        foreground: how,
        detach_keys: keys,
        started: !added.existed,
        looks: false,
    };
    terminal::attached(session, &watch, options).await
}

/// Explains why the program could not be started, in the words of the command line.
async fn not_started(
    session: &Session,
    failure: Failure,
    name: &str,
    spec: ProcessSpec,
) -> Failure {
    let program = target::command(&spec);
    let program = shlex::split(&program).and_then(|words| words.into_iter().next());
    let program = program.unwrap_or_default();
    match (failure.detail("step"), failure.detail("errno_name")) {
        ("lookup", "ENOENT") if program.contains(' ') => {
            let advice = format!("a shell runs a command line: `evloopctl run sh -c '{program}'`");
            failure
                .with_message(format!("{program}: not found in PATH"))
                .advice(advice)
        }
        ("lookup", "ENOENT") => failure.with_message(format!("{program}: not found in PATH")),
        ("lookup", "EACCES") => failure.with_message(format!(
            "{program}: found in PATH, but it is not executable"
        )),
        ("exec", "ENOENT") if std::path::Path::new(&program).exists() => failure.with_message(
            format!("{program}: the interpreter that it names was not found"),
        ),
        ("exec", "ENOENT") => failure.with_message(format!("{program}: no such file")),
        ("exec", "EACCES") => {
            let advice = format!("`chmod +x {program}` makes it executable, if it is a program");
            failure
                .with_message(format!("{program}: it is not executable"))
                .advice(advice)
        }
        ("exec", "ENOEXEC") => {
            let advice = "a script begins with a line such as `#!/bin/sh`";
            let what = format!("{program}: it is not a program");
            failure.with_message(what).advice(advice)
        }
        _ if failure.reason == "NAME_TAKEN" => taken(session, failure, name, spec).await,
        _ => failure,
    }
}

async fn taken(session: &Session, failure: Failure, name: &str, spec: ProcessSpec) -> Failure {
    let there = WatchRef {
        r#ref: Some(watch_ref::Ref::Name(name.to_owned())),
    };
    let Ok(there) = lookup::watch(session, &there).await else {
        return failure;
    };
    let asked = WatchSpec {
        spec: Some(watch_spec::Spec::Process(spec)),
    };
    let asked = serde_json::json!({"spec": json::of(&asked)});
    let advice = format!(
        "`evloopctl attach {name}` joins it, `evloopctl rm {name}` ends and forgets it; or choose another name"
    );
    differing(failure, name, &json::of(&there), &asked, &advice)
}

/// Starts the program, unless a process has the name, prints the name and returns.
async fn start(session: &Session, args: Run, name: String) -> Outcome {
    let (interactive, rm) = (args.interactive, args.rm);
    let keeps_stdin = interactive || args.command.reads_file();
    let stdin = match (args.tty && !args.no_tty, interactive) {
        (true, _) => Stdio::Pty,
        (false, true) => Stdio::Pipe,
        (false, false) => Stdio::Null,
    };
    let mut request = args.registration(session, name, stdin)?;
    request.finished_ttl = rm.then(prost_types::Duration::default);
    let added = match add(session, &request).await {
        Err(failure) if differs_in_stdin(&failure) && !keeps_stdin => {
            let spec = request.spec.as_mut().and_then(|spec| spec.spec.as_mut());
            if let Some(watch_spec::Spec::Process(process)) = spec {
                process.set_stdin(Stdio::Pipe);
            }
            add(session, &request).await
        }
        added => added,
    };
    let added = match added {
        Ok(added) => added,
        Err(failure) => return Err(not_added(session, failure, request).await),
    };
    let watch = added.watch.unwrap_or_default();
    if session.json {
        output::messages([&watch])?;
    } else {
        output::line(&printable(&watch.name))?;
    }
    if added.existed {
        let state = description::state(&watch).0;
        complain(format_args!("`{}` was started before: {state}", watch.name));
    }
    Ok(0)
}

/// As [`not_started`], for a registration.
async fn not_added(session: &Session, failure: Failure, request: AddWatchRequest) -> Failure {
    match request.spec.and_then(|spec| spec.spec) {
        Some(watch_spec::Spec::Process(spec)) => {
            not_started(session, failure, &request.name, spec).await
        }
        _ => failure,
    }
}

impl Run {
    /// Returns the request to add the process, with a terminal if `-t` is given or stdin is one.
    fn registration(
        self,
        session: &Session,
        name: String,
        stdin: Stdio,
    ) -> Result<AddWatchRequest, Failure> {
        let mut spec = self.command.spec(stdin)?;
        if stdin == Stdio::Pty || self.tty {
            if spec.stdout() == Stdio::File {
                let failure =
                    Failure::plain("-t writes all output to the terminal: leave out --stdout");
                return Err(failure.code(USAGE));
            }
            spec.set_stdout(Stdio::Pty);
            if spec.stderr() == Stdio::Unspecified {
                spec.set_stderr(Stdio::Pty);
            }
            spec.terminal = Some(TerminalOptions {
                size: terminal::local_size(),
                size_of: TerminalSizeOf::from(self.size_of).into(),
                ..TerminalOptions::default()
            });
        }
        Ok(AddWatchRequest {
            r#loop: session.loop_ref.clone(),
            spec: Some(WatchSpec {
                spec: Some(watch_spec::Spec::Process(spec)),
            }),
            name,
            labels: self.labels.into_iter().collect(),
            if_exists: IfExists::Return.into(),
            ..AddWatchRequest::default()
        })
    }
}

async fn add(session: &Session, request: &AddWatchRequest) -> Result<AddWatchResponse, Failure> {
    answer(session.watches().add_watch(request.clone()).await)
}

fn differs_in_stdin(failure: &Failure) -> bool {
    failure.reason == "NAME_TAKEN" && failure.detail("field").ends_with("stdin")
}
