//! Passes signals on to the process in the foreground, and leaves it before its end.

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
use super::transcript::Links;
use crate::proto::{
    GetWatchRequest, LoopRef, RemoveWatchRequest, SendSignalRequest, SignalTarget, Watch,
};

/// When evloopctl is to end: how long the daemon may take to answer, the reader of our output to take bytes, and a process
/// to end by a signal before it is removed.
const PATIENCE: Duration = Duration::from_secs(3);

/// What becomes of a process when its output has no reader any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnHangup {
    /// The process is ended: by SIGHUP if the terminal is gone, by SIGPIPE if a pipe was closed.
    End,
    /// The process goes on, and a note on stderr says so.
    Keep,
}

/// Why the foreground is left before the process has ended.
#[derive(Debug)]
pub(super) enum Left {
    /// Our stdout or stderr was closed by its reader.
    ReaderGone,
    /// The terminal is gone.
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

/// The process in our foreground.
#[derive(Debug)]
pub(super) struct Process<'a> {
    pub(super) session: &'a Session,
    pub(super) name: &'a str,
    pub(super) loop_ref: LoopRef,
    pub(super) watch_id: u64,
}

impl Process<'_> {
    /// Passes signals on to the process. Returns when one is to end evloopctl itself.
    pub(super) async fn relay(&self, signals: &mut Signals, links: &Links) -> Left {
        // A signal that came while another was passed on.
        let mut next = None;
        loop {
            let signal = match next.take() {
                Some(signal) => signal,
                None => match signals.next().await {
                    Heard::Once(signal) => signal,
                    heard => return self.told_to_go(heard),
                },
            };
            tokio::select! {
                why = self.pass_on(signal, links) => if let Some(why) = why {
                    return Left::Signal(signal, why);
                },
                left = self.hear(signals, signal, &mut next) => return left,
            }
        }
    }

    /// Takes signals while `passed` is passed on. Returns when one is to end evloopctl itself.
    async fn hear(&self, signals: &mut Signals, passed: Signal, next: &mut Option<Signal>) -> Left {
        loop {
            match signals.next().await {
                Heard::Once(signal) if signal == passed => {}
                Heard::Once(signal) => *next = Some(signal),
                heard => return self.told_to_go(heard),
            }
        }
    }

    fn told_to_go(&self, heard: Heard) -> Left {
        match heard {
            Heard::HangUp => Left::HungUp,
            Heard::Once(signal) | Heard::Twice(signal) => {
                let name = self.name;
                let why = format!(
                    "left before its end; unless the signal ends it, it runs on: `evloopctl attach {name}`"
                );
                Left::Signal(signal, why)
            }
        }
    }

    /// Passes a signal on. Returns why evloopctl is to end then, if it would not hear how the process ends.
    async fn pass_on(&self, signal: Signal, links: &Links) -> Option<String> {
        let unknown = "whether it still runs is not known";
        match bounded(self.send(signal)).await {
            Ok(()) => {}
            // It ended before the signal came.
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
        // After a key, a second one leaves; SIGTERM has none.
        if signal == Signal::SIGTERM && links.is_stuck(PATIENCE).await {
            return Some(format!(
                "{signal} was passed on, but nobody takes its output"
            ));
        }
        None
    }

    /// Returns why the end of the process cannot be heard of, if that is so.
    async fn standstill(&self) -> Result<Option<String>, Failure> {
        let ids = [self.watch_id];
        let look_up = || bounded(lookup::loop_of(self.session, self.loop_ref.clone()));
        let mut found = look_up().await?;
        if let Some(message) = standstill::message(&found) {
            return Ok(Some(message));
        }
        if let Some(rest) = standstill::settles_in(&found, &ids) {
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

    /// Says that the process was there already, if it had ended before it was joined: nothing was started.
    pub(super) async fn tell_earlier_end(&self) {
        if let Ok(Some(watch)) = timeout(PATIENCE, self.look_up()).await
            && let Some(end) = description::end(&watch)
        {
            complain(format_args!("`{}` was there already: {end}", self.name));
        }
    }

    /// Removes the process, which has ended. If that fails, it goes when its time is up.
    pub(super) async fn forget(&self) {
        let _ = bounded(self.remove()).await;
    }

    /// Leaves the process, says what becomes of it, and returns the signal by which evloopctl ends.
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
                let advice = format!("it runs on: `evloopctl attach {}`", self.name);
                self.say(format_args!("nobody takes its output any more; {advice}"));
            }
            OnHangup::End => {
                if let Err(failure) = self.end(signal).await {
                    let what = "nobody takes its output any more, and it could not be ended";
                    self.say(format_args!("{what}: {failure}"));
                }
            }
        }
        signal
    }

    fn say(&self, what: impl fmt::Display) {
        complain(format_args!("{}: {what}", self.name));
    }

    /// Waits for the end of the process without reading its output, of which there may be much. Returns too if the daemon
    /// can no longer tell.
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

    /// Looks the process up; none if that is no longer possible.
    pub(super) async fn look_up(&self) -> Option<Watch> {
        let request = GetWatchRequest {
            r#loop: Some(self.loop_ref.clone()),
            watch: Some(parse::by_id(self.watch_id)),
        };
        let found = self.session.watches().get_watch(request).await;
        answer(found).ok()?.watch
    }

    /// Ends the process by a signal. If it does not end of that, it is removed, and so ended by the daemon.
    async fn end(&self, signal: Signal) -> Result<(), Failure> {
        match bounded(self.send(signal)).await {
            Err(failure) if !refused(&failure) => return Err(failure),
            Ok(()) | Err(_) => {}
        }
        if timeout(PATIENCE, self.ended()).await.is_ok() {
            return Ok(());
        }
        match timeout(PATIENCE, self.remove()).await {
            // The daemon has been asked, and goes on without us: it gives the process time to end.
            Err(_) => Ok(()),
            Ok(Err(failure)) if refused(&failure) => Ok(()),
            Ok(removed) => removed,
        }
    }
}

/// Waits for the answer of a call for [`PATIENCE`] at most.
async fn bounded<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let silent = |_| {
        let seconds = PATIENCE.as_secs();
        let advice = "`evloopctl status` tells how it is";
        Failure::new("daemon", format_args!("no answer for {seconds} s")).advice(advice)
    };
    timeout(PATIENCE, call).await.map_err(silent)?
}
