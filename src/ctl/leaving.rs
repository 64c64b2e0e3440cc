//! Passes signals on to the process in the foreground, and leaves the process if evloopctl ends first.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::description;
use super::exit::end_of;
use super::failure::{Failure, Gone, complain};
use super::feed::{Item, end_feed};
use super::feeder::refused;
use super::lookup;
use super::parse;
use super::session::{Session, answer};
use super::signals::{Heard, Signals};
use super::standstill;
use super::transcript::OutputState;
use crate::proto::{
    GetWatchRequest, LoopRef, RemoveWatchRequest, SendSignalRequest, SignalTarget, Watch,
};

/// When evloopctl is to end: how long the daemon may take to answer, the reader of the output to take bytes, and a process
/// to end by a signal before it is removed.
const PATIENCE: Duration = Duration::from_secs(3);

/// What happens to a process when a pipe or terminal that gets its output is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnHangup {
    /// The process is ended: by SIGHUP if the terminal was closed, by SIGPIPE if a pipe was closed.
    End,
    /// The process runs on, and a note on stderr reports that.
    Keep,
}

/// Why the foreground is left before the process has ended.
#[derive(Debug)]
pub(super) enum Left {
    /// The reader of stdout or stderr has closed the pipe.
    ReaderGone,
    /// The terminal is closed.
    HungUp,
    /// This signal ends evloopctl itself, for this reason.
    Signal(Signal, String),
}

impl From<Gone> for Left {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Reader => Self::ReaderGone,
            Gone::Terminal => Self::HungUp,
        }
    }
}

/// The process in the foreground of evloopctl.
#[derive(Debug)]
pub(super) struct Process<'a> {
    pub(super) session: &'a Session,
    pub(super) name: &'a str,
    pub(super) loop_ref: LoopRef,
    pub(super) watch_id: u64,
}

impl Process<'_> {
    /// Passes signals on to the process. Returns when one is to end evloopctl itself.
    pub(super) async fn relay(&self, signals: &mut Signals, output_state: &OutputState) -> Left {
        // A signal that came while another one was passed on.
        let mut next = None;
        loop {
            let signal = match next.take() {
                Some(signal) => signal,
                None => match signals.next().await {
                    Heard::Once(signal) => signal,
                    heard => return self.left_by(heard),
                },
            };
            tokio::select! {
                why = self.pass_on(signal, output_state) => if let Some(why) = why {
                    return Left::Signal(signal, why);
                },
                left = self.receive_during(signals, signal, &mut next) => return left,
            }
        }
    }

    /// Receives signals while `passed` is passed on, and stores another one in `next`. Returns when a signal is to end
    /// evloopctl itself.
    async fn receive_during(
        &self,
        signals: &mut Signals,
        passed: Signal,
        next: &mut Option<Signal>,
    ) -> Left {
        loop {
            match signals.next().await {
                Heard::Once(signal) if signal == passed => {}
                Heard::Once(signal) => *next = Some(signal),
                heard => return self.left_by(heard),
            }
        }
    }

    fn left_by(&self, heard: Heard) -> Left {
        match heard {
            Heard::HangUp => Left::HungUp,
            Heard::Once(signal) | Heard::Twice(signal) => {
                let name = self.name;
                let why = format!(
                    "left; unless the signal ends the process, it runs on: `evloopctl attach {name}` joins it"
                );
                Left::Signal(signal, why)
            }
        }
    }

    /// Passes a signal on. If evloopctl would then not learn how the process ends, returns why, so that evloopctl ends.
    async fn pass_on(&self, signal: Signal, output_state: &OutputState) -> Option<String> {
        let unknown = "whether it still runs is not known";
        match bounded(self.send(signal)).await {
            Ok(()) => {}
            // The process ended before the signal.
            Err(failure) if refused(&failure) => {}
            Err(failure) => {
                return Some(format!("{signal} was not passed on: {failure}; {unknown}"));
            }
        }
        match self.standstill().await {
            Ok(None) => {}
            Ok(Some(message)) => return Some(format!("{signal} was passed on, but {message}")),
            Err(failure) => {
                return Some(format!("{signal} was passed on, but {failure}; {unknown}"));
            }
        }
        // A second Ctrl-C leaves the process, but a second SIGTERM does not.
        if signal == Signal::SIGTERM && output_state.is_stuck(PATIENCE).await {
            return Some(format!(
                "{signal} was passed on, but the reader of the output takes no bytes"
            ));
        }
        None
    }

    /// Returns why no event can report the end of the process; `None` if an event can.
    async fn standstill(&self) -> Result<Option<String>, Failure> {
        let ids = [self.watch_id];
        let look_up = || bounded(lookup::loop_of(self.session, self.loop_ref.clone()));
        let mut found = look_up().await?;
        if let Some(message) = standstill::message(&found) {
            return Ok(Some(message));
        }
        if let Some(rest) = standstill::held_up_in(&found, &ids) {
            tokio::time::sleep(rest).await;
            found = look_up().await?;
        }
        let held_up = standstill::held_up(self.session, &found, &ids);
        bounded(async { Ok(held_up.await) }).await
    }

    async fn send(&self, signal: Signal) -> Result<(), Failure> {
        let request = SendSignalRequest {
            r#loop: Some(self.loop_ref.clone()),
            watch: Some(parse::by_id(self.watch_id)),
            signal: signal.as_str().to_owned(),
            target: SignalTarget::Group.into(),
            ..SendSignalRequest::default()
        };
        let sent = self.session.processes().send_signal(request).await;
        answer(sent).map(drop)
    }

    async fn remove(&self) -> Result<(), Failure> {
        let request = RemoveWatchRequest {
            r#loop: Some(self.loop_ref.clone()),
            watch: Some(parse::by_id(self.watch_id)),
            ..RemoveWatchRequest::default()
        };
        let removed = self.session.watches().remove_watch(request).await;
        answer(removed).map(drop)
    }

    /// Reports on stderr that the process had ended before it was joined, if so: no program was started.
    pub(super) async fn tell_earlier_end(&self) {
        if let Ok(Some(watch)) = timeout(PATIENCE, self.look_up()).await
            && let Some(end) = description::end(&watch)
        {
            complain(format_args!("`{}` was started before: {end}", self.name));
        }
    }

    /// Removes the process, which has ended. If the call fails, the daemon removes the process later.
    pub(super) async fn forget(&self) {
        let _ = bounded(self.remove()).await;
    }

    /// Leaves the process, and ends it if `on_hangup` says so. Reports on stderr whether it runs on. Returns the signal by
    /// which evloopctl ends.
    pub(super) async fn leave(&self, left: Left, on_hangup: OnHangup) -> Signal {
        let signal = match left {
            Left::Signal(signal, why) => {
                self.say(why);
                return signal;
            }
            Left::HungUp => Signal::SIGHUP,
            Left::ReaderGone => Signal::SIGPIPE,
        };
        match on_hangup {
            OnHangup::Keep => {
                let advice = format!("`evloopctl attach {}` joins it", self.name);
                self.say(format_args!(
                    "nobody reads its output any more; it runs on: {advice}"
                ));
            }
            OnHangup::End => {
                if let Err(failure) = self.end(signal).await {
                    let what = "nobody reads its output any more, and it could not be ended";
                    self.say(format_args!("{what}: {failure}"));
                }
            }
        }
        signal
    }

    fn say(&self, what: impl fmt::Display) {
        complain(format_args!("{}: {what}", self.name));
    }

    /// Waits for the end of the process without reading its output, which may be long. Returns also if the daemon no longer
    /// knows the process.
    async fn ended(&self) {
        let Some(watch) = self.look_up().await else {
            return;
        };
        let ids = vec![watch.watch_id];
        let mut feed = end_feed(self.session, Some(self.loop_ref.clone()), &watch, ids);
        while let Ok(Item::Header(_) | Item::Batch(_)) = feed.next().await {
            match self.look_up().await.map(|watch| end_of(self.name, &watch)) {
                Some(Ok(None)) => {}
                None | Some(Ok(Some(_)) | Err(_)) => return,
            }
        }
    }

    /// Returns the process; `None` if the call fails.
    pub(super) async fn look_up(&self) -> Option<Watch> {
        let request = GetWatchRequest {
            r#loop: Some(self.loop_ref.clone()),
            watch: Some(parse::by_id(self.watch_id)),
        };
        let found = self.session.watches().get_watch(request).await;
        answer(found).ok()?.watch
    }

    /// Ends the process by a signal. If it does not end within [`PATIENCE`], removes it: the daemon then ends it.
    async fn end(&self, signal: Signal) -> Result<(), Failure> {
        match bounded(self.send(signal)).await {
            Err(failure) if !refused(&failure) => return Err(failure),
            Ok(()) | Err(_) => {}
        }
        if timeout(PATIENCE, self.ended()).await.is_ok() {
            return Ok(());
        }
        match timeout(PATIENCE, self.remove()).await {
            // The daemon has the request, and gives the process time to end after evloopctl has ended.
            Err(_) => Ok(()),
            Ok(Err(failure)) if refused(&failure) => Ok(()),
            Ok(removed) => removed,
        }
    }
}

/// Waits for the answer of a call, for [`PATIENCE`] at most.
async fn bounded<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let silent = |_| {
        let seconds = PATIENCE.as_secs();
        let advice = "`evloopctl status` shows the daemon's state";
        Failure::new("daemon", format_args!("no answer for {seconds} s")).advice(advice)
    };
    timeout(PATIENCE, call).await.map_err(silent)?
}
