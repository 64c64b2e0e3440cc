//! In the foreground of a process: its output to us, our input and signals to it.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use super::failure::{Failure, Outcome, complain};
use super::feed::{Feed, Header, Item, Source};
use super::feeder::{Ended, Feeder, in_background, refused};
use super::parse;
use super::session::{Session, answer};
use super::transcript::{Transcript, Until};
use crate::proto::{
    LoopRef, RunRequest, SendSignalRequest, SignalTarget, WatchRef, loop_ref, watch_ref,
};

/// How the foreground was left.
enum Left {
    /// The process is done.
    Done,
    /// We let go of it and it runs on.
    Detached,
}

/// Runs or joins the process that `request` names, to its end; its exit code.
///
/// Ctrl-C and other signals go to the process's group. When the terminal is lost,
/// the process stays.
pub(super) async fn attached(session: &Session, request: RunRequest, input: bool) -> Outcome {
    let name = request.name.clone();
    // Only who runs it, or somebody at a terminal, means its stdin to end with his own: an
    // attach in a script must not end an interactive child.
    let ends_stdin = request.spec.is_some() || rustix::termios::isatty(std::io::stdin());
    let mut signals = Signals::new().map_err(|error| Failure::new("signals", error))?;
    let mut feed = Feed::new(session.clone(), Source::Run(request));
    let header = tokio::select! {
        header = first(&mut feed) => header?,
        _ = signals.next() => return Err(interrupted(&name)),
    };
    let process = Process {
        session,
        loop_ref: LoopRef {
            r#ref: Some(loop_ref::Ref::LoopId(header.loop_id)),
        },
        watch: WatchRef {
            r#ref: Some(watch_ref::Ref::WatchId(header.watch_id)),
        },
        ends_stdin,
    };
    let resumed = Notify::new();
    let mut transcript = Transcript::new(session.json);
    let left = tokio::select! {
        done = transcript.run(&mut feed, Until::Done, &resumed) => done.map(|()| Left::Done),
        () = process.relay(&mut signals) => Ok(Left::Detached),
        () = process.feed(input && !in_background(), &resumed) => Ok(Left::Detached),
    };
    match left {
        Ok(Left::Done) => transcript.exit_code(&name),
        Ok(Left::Detached) => Ok(128 + Signals::HANGUP),
        Err(failure) if failure.is_silent() => Err(detached(&name)),
        Err(failure) => Err(failure),
    }
}

async fn first(feed: &mut Feed) -> Result<Header, Failure> {
    loop {
        if let Item::Header(header) = feed.next().await? {
            return Ok(header);
        }
    }
}

fn interrupted(name: &str) -> Failure {
    let advice = "`evloopctl ps` shows whether it was started";
    Failure::new(name, "interrupted before the daemon answered").advice(advice)
}

fn detached(name: &str) -> Failure {
    let advice = format!("it runs on: `evloopctl attach {name}`");
    Failure::new(name, "nobody reads its output any more").advice(advice)
}

struct Process<'a> {
    session: &'a Session,
    loop_ref: LoopRef,
    watch: WatchRef,
    /// The end of our stdin is the end of its.
    ends_stdin: bool,
}

impl Process<'_> {
    /// Passes signals on; returns when the terminal is lost.
    async fn relay(&self, signals: &mut Signals) {
        loop {
            let signal = signals.next().await;
            if signal == Signals::HANGUP {
                return;
            }
            let request = SendSignalRequest {
                r#loop: Some(self.loop_ref.clone()),
                watch: Some(self.watch.clone()),
                signal: signal.to_string(),
                target: SignalTarget::Group.into(),
                ..SendSignalRequest::default()
            };
            let result = self.session.processes().send_signal(request).await;
            match answer("signal", result) {
                Ok(_) => {}
                // It ended before the signal came.
                Err(failure) if failure.reason == "WATCH_CLOSED" => {}
                Err(failure) if failure.reason == "WRONG_STATE" => {}
                Err(failure) => complain(failure),
            }
        }
    }

    /// Passes stdin on; returns when the terminal is lost.
    async fn feed(&self, input: bool, resumed: &Notify) {
        if input {
            let feeder = Feeder {
                session: self.session,
                loop_ref: Some(self.loop_ref.clone()),
                watch: self.watch.clone(),
                resumed,
                eof: self.ends_stdin,
            };
            match feeder.send(tokio::io::stdin()).await {
                Ok(Ended::TerminalLost) => return,
                Ok(Ended::Sent) => {}
                Err(failure) if refused(&failure) => {}
                Err(failure) => complain(failure),
            }
        }
        std::future::pending::<()>().await;
    }
}

/// The signals that mean the process, not us.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    hangup: Signal,
}

impl Signals {
    const HANGUP: u8 = 1;
    const INTERRUPT: u8 = 2;
    const QUIT: u8 = 3;
    const TERMINATE: u8 = 15;

    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => Self::INTERRUPT,
            _ = self.terminate.recv() => Self::TERMINATE,
            _ = self.quit.recv() => Self::QUIT,
            _ = self.hangup.recv() => Self::HANGUP,
        }
    }
}

/// The name by which a process is joined. A watch without one can be looked at
/// with `events` only.
pub(super) async fn name_of(session: &Session, watch: &WatchRef) -> Result<String, Failure> {
    if let Some(watch_ref::Ref::Name(name)) = &watch.r#ref {
        return Ok(name.clone());
    }
    let found = super::watch::get(session, watch).await?;
    if found.name.is_empty() {
        let id = parse::watch_name(watch);
        let advice = format!("see its events with `evloopctl events --watch {id}`");
        return Err(Failure::new(format!("watch {id}"), "it has no name").advice(advice));
    }
    Ok(found.name)
}
