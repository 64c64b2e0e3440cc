//! Runs a process in the foreground: prints its output, and passes stdin and signals on to it.

use nix::sys::signal::Signal;

use super::exit::{exit_code, is_success};
use super::failure::{Failure, Outcome, complain};
use super::feed::{Feed, Header, Item, Source};
use super::feeder::{Ended, Feeder, in_background, refused};
use super::leaving::{Left, OnHangup, Process};
use super::parse;
use super::session::Session;
use super::signals::{Signals, die_of};
use super::transcript::{OutputState, Transcript, Until};
use crate::proto::{LoopRef, RunRequest, exited, loop_ref};

/// How a process runs in the foreground.
#[derive(Debug, Clone, Copy)]
pub(super) struct Foreground {
    /// The stdin of evloopctl is passed on.
    pub(super) input: bool,
    pub(super) on_hangup: OnHangup,
    pub(super) forget: Forget,
}

/// Whether the process is removed once it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forget {
    Never,
    /// If it exited with 0.
    Success,
    Always,
}

/// Runs or joins the process that `request` names, to its end, and returns its exit code. If SIGINT ended it, evloopctl
/// ends by SIGINT too: a shell's loop goes on after any exit code, 130 included.
pub(super) async fn attached(session: &Session, request: RunRequest, how: Foreground) -> Outcome {
    let name = request.name.clone();
    let runs = request.spec.is_some();
    // `attach` in a script must not end the stdin of an interactive process.
    let ends_stdin = runs || rustix::termios::isatty(std::io::stdin());
    let mut signals = Signals::new().map_err(|error| Failure::new("receiving signals", error))?;
    let mut feed = Feed::new(session.clone(), Source::Run(request)).reporting_standstill();
    let header = tokio::select! {
        header = first(&mut feed) => header?,
        heard = signals.next() => {
            complain(interrupted(&name));
            return Ok(die_of(heard.signal()));
        }
    };
    let process = Process {
        session,
        name: &name,
        loop_ref: LoopRef {
            r#ref: Some(loop_ref::Ref::LoopId(header.loop_id)),
        },
        watch_id: header.watch_id,
    };
    if runs && header.existed {
        process.tell_earlier_end().await;
    }
    let output_state = OutputState::default();
    let mut transcript = Transcript::new(session.json);
    let input = how.input && !in_background();
    let left = tokio::select! {
        left = pass_output(&mut transcript, &mut feed, &output_state) => left,
        left = process.relay(&mut signals, &output_state) => Ok(Some(left)),
        () = pass_input(&process, input, ends_stdin, &output_state) => Ok(Some(Left::HungUp)),
    };
    if matches!(left, Ok(None)) && transcript.ledger.is_incomplete() {
        transcript
            .ledger
            .compare_with_totals(process.look_up().await.as_ref());
    }
    transcript.ledger.report(&name);
    if let Some(left) = left? {
        return Ok(die_of(process.leave(left, how.on_hangup).await));
    }
    let exited = transcript.ledger.exited(&name)?;
    if how.forget == Forget::Always || how.forget == Forget::Success && is_success(exited) {
        process.forget().await;
    }
    if exited.status == Some(exited::Status::Signal(Signal::SIGINT as i32)) {
        return Ok(die_of(Signal::SIGINT));
    }
    exit_code(&name, exited)
}

async fn first(feed: &mut Feed) -> Result<Header, Failure> {
    loop {
        if let Item::Header(header) = feed.next().await? {
            return Ok(header);
        }
    }
}

fn interrupted(name: &str) -> Failure {
    let advice = "`evloopctl ps` shows whether the process was started";
    Failure::new(name, "interrupted before the daemon answered").advice(advice)
}

/// Prints the output until the process has ended. Returns why evloopctl leaves the process if its output cannot be written.
async fn pass_output(
    transcript: &mut Transcript,
    feed: &mut Feed,
    output_state: &OutputState,
) -> Result<Option<Left>, Failure> {
    match transcript.run(feed, Until::Done, output_state).await {
        Ok(()) => Ok(None),
        Err(failure) => failure.gone.map(Left::from).map(Some).ok_or(failure),
    }
}

/// Passes stdin on. Returns only when the terminal is closed.
async fn pass_input(
    process: &Process<'_>,
    input: bool,
    ends_stdin: bool,
    output_state: &OutputState,
) {
    if input {
        let feeder = Feeder {
            session: process.session,
            loop_ref: Some(process.loop_ref.clone()),
            watch: parse::by_id(process.watch_id),
            resumed: &output_state.resumed,
            eof: ends_stdin,
        };
        let ended = match feeder.send(tokio::io::stdin()).await {
            // Without an end of its stdin, the process would wait for ever.
            Ok(Ended::Unreadable(error)) => {
                complain(Failure::new("stdin", error));
                if ends_stdin {
                    feeder.end().await
                } else {
                    Ok(())
                }
            }
            Ok(Ended::TerminalLost) => return,
            Ok(Ended::Sent) => Ok(()),
            Err(failure) => Err(failure),
        };
        match ended {
            Err(failure) if !refused(&failure) => complain(failure),
            Ok(()) | Err(_) => {}
        }
    }
    std::future::pending::<()>().await;
}
