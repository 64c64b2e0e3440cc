//! `run`: starts or joins a process by name.

use clap::Args;

use super::attached::{Foreground, OnHangup, attached};
use super::command::Command;
use super::failure::{Failure, Outcome, complain};
use super::output;
use super::parse;
use super::session::{Session, answer};
use super::watch;
use crate::proto::{
    AddWatchRequest, AddWatchResponse, IfExists, OnGap, RunRequest, Stdio, WatchSpec, watch_spec,
};

pub(super) const EXAMPLES: &str = "Examples:
  evloopctl run -- make -j8
  evloopctl run --name build -d -- make -j8    # goes on when you log out
  evloopctl run --name build -- make -j8       # the same again joins it
  while read host; do evloopctl run -n -- ping -c1 $host; done < hosts

Attached, the exit code is the program's (128 + N if signal N ended it), also if some of its
output is gone, which is said on stderr; 125 if evloopctl itself failed. If SIGINT ended the
program, evloopctl ends by SIGINT too, so that a shell's loop does.

Signals are passed on. Ctrl-C twice within a second leaves, and the program runs on; so does any
signal while the loop is stopped or the daemon does not answer. When nobody takes the output any
more, because a pipe was closed or the terminal is gone, a program without --name ends as in a
pipeline, one with a name runs on.

Your stdin is read ahead and passed on, whether the program reads it or not, as ssh does: in a
`while read` loop, use -n or </dev/null.";

/// Options of `run`.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Its name; if it exists it is joined, running or finished [default: made up]
    #[arg(long, value_parser = parse::name)]
    name: Option<String>,
    /// Start it and return: prints its name
    #[arg(short, long)]
    detach: bool,
    /// With --detach, leave its stdin open for a later `attach`
    #[arg(short, long, requires = "detach")]
    interactive: bool,
    /// Attach a label
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::key_value)]
    labels: Vec<(String, String)>,
    /// Give it /dev/null as stdin, and leave yours alone
    #[arg(short, long, conflicts_with = "interactive")]
    no_stdin: bool,
    /// What becomes of it when nobody takes its output any more [default: end; keep with --name]
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "detach")]
    on_hangup: Option<OnHangup>,
    #[command(flatten)]
    command: Command,
}

pub(super) async fn run(session: &Session, args: Run) -> Outcome {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => args.command.made_up_name()?,
    };
    if args.detach {
        return start(session, args, name).await;
    }
    let unnamed = match &args.name {
        Some(_) => OnHangup::Keep,
        None => OnHangup::End,
    };
    let mut how = Foreground {
        input: !args.no_stdin,
        on_hangup: args.on_hangup.unwrap_or(unnamed),
    };
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
        ..RunRequest::default()
    };
    match attached(session, request.clone(), how).await {
        // The same command started with another stdin is still the same command.
        Err(failure) if differs_in_stdin(&failure) => {
            if let Some(spec) = &mut request.spec {
                spec.set_stdin(other);
            }
            how.input = false;
            attached(session, request, how).await
        }
        outcome => outcome,
    }
}

/// Starts it, if it is not there, and leaves it.
async fn start(session: &Session, args: Run, name: String) -> Outcome {
    let stdin = if args.interactive {
        Stdio::Pipe
    } else {
        Stdio::Null
    };
    let spec = args.command.spec(stdin)?;
    let mut request = AddWatchRequest {
        r#loop: session.loop_ref.clone(),
        spec: Some(WatchSpec {
            spec: Some(watch_spec::Spec::Process(spec)),
        }),
        name,
        labels: args.labels.into_iter().collect(),
        if_exists: IfExists::Return.into(),
        ..AddWatchRequest::default()
    };
    let added = match add(session, &request).await {
        Err(failure) if differs_in_stdin(&failure) && !args.interactive => {
            let spec = request.spec.as_mut().and_then(|spec| spec.spec.as_mut());
            if let Some(watch_spec::Spec::Process(process)) = spec {
                process.set_stdin(Stdio::Pipe);
            }
            add(session, &request).await?
        }
        added => added?,
    };
    let watch = added.watch.unwrap_or_default();
    if session.json {
        output::json_lines([&watch::show::json(&watch)])?;
        return Ok(0);
    }
    output::line(&format!(
        "{}  watch {}",
        output::printable(&watch.name),
        watch.watch_id
    ))?;
    if added.existed {
        let state = watch::show::state(&watch).0;
        complain(format_args!("`{}` was there already: {state}", watch.name));
    }
    Ok(0)
}

async fn add(session: &Session, request: &AddWatchRequest) -> Result<AddWatchResponse, Failure> {
    answer("run", session.watches().add_watch(request.clone()).await)
}

fn differs_in_stdin(failure: &Failure) -> bool {
    failure.reason == "NAME_TAKEN" && failure.field.ends_with("stdin")
}
