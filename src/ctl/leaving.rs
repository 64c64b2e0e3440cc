//! Signals to the process in our foreground, and the ways to leave it before its end.

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::attached::OnHangup;
use super::failure::{Failure, Gone, complain};
use super::feed::Item;
use super::feeder::refused;
use super::session::{Session, answer};
use super::signals::{Heard, Signals};
use super::standstill;
use super::transcript::{Links, end_of};
use super::wait::end_feed;
use crate::proto::{
    GetWatchRequest, LoopRef, RemoveWatchRequest, SendSignalRequest, SignalTarget, Watch, WatchRef,
};

/// Once we are to go: how long the daemon may take to answer, our reader to take bytes, and a
/// process to end by a signal before it is removed.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why the foreground is left before the process is done.
#[derive(Debug)]
pub(super) enum Left {
    /// Our stdout or stderr was closed by its reader.
    ReaderGone,
    /// The terminal is gone.
    HungUp,
    /// A signal is meant for us, for this reason.
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
    pub(super) watch: WatchRef,
}

impl Process<'_> {
    /// Passes signals on, for as long as what comes of them is heard of.
    pub(super) async fn relay(&self, signals: &mut Signals, links: &Links) -> Left {
        // What came while another was passed on.
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

    /// Hears on while `passed` is passed on; returns when we are to go.
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

    /// Passes a signal on. Why we go then, if nothing would be heard of what comes of it.
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
        let found = bounded(standstill::look_up(self.session, &self.loop_ref)).await;
        match found.map(|found| standstill::message(&found)) {
            Ok(None) => {}
            Ok(Some(message)) => return Some(format!("{signal} was passed on, but {message}")),
            Err(failure) => {
                return Some(format!("{signal} was passed on, but {failure}; {unknown}"));
            }
        }
        // From a keyboard a second one can come.
        if signal == Signal::SIGTERM && links.is_stuck(PATIENCE).await {
            return Some(format!(
                "{signal} was passed on, but nobody takes its output"
            ));
        }
        None
    }

    async fn send(&self, signal: Signal) -> Result<(), Failure> {
        let request = SendSignalRequest {
            r#loop: Some(self.loop_ref.clone()),
            watch: Some(self.watch.clone()),
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
            watch: Some(self.watch.clone()),
            ..RemoveWatchRequest::default()
        };
        let removed = self.session.watches().remove_watch(request).await;
        answer(removed).map(drop)
    }

    /// It has ended, and nobody comes back for it. It goes by itself when its time is up, too.
    pub(super) async fn forget(&self) {
        let _ = bounded(self.remove()).await;
    }

    /// Leaves it, says what becomes of it, and gives the signal to end by.
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

    /// Waits for its end, without its output: there may be much of it. Returns too if that cannot be heard of.
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

    /// The process as it is now; none if it cannot be looked up any more.
    pub(super) async fn look_up(&self) -> Option<Watch> {
        let request = GetWatchRequest {
            r#loop: Some(self.loop_ref.clone()),
            watch: Some(self.watch.clone()),
        };
        let found = self.session.watches().get_watch(request).await;
        answer(found).ok()?.watch
    }

    /// Ends it by a signal; what does not end of that is removed, and so ended by the daemon.
    async fn end(&self, signal: Signal) -> Result<(), Failure> {
        match bounded(self.send(signal)).await {
            Err(failure) if !refused(&failure) => return Err(failure),
            Ok(()) | Err(_) => {}
        }
        if timeout(PATIENCE, self.ended()).await.is_ok() {
            return Ok(());
        }
        match timeout(PATIENCE, self.remove()).await {
            // It was asked for, and is done without us: the daemon gives it time to end.
            Err(_) => Ok(()),
            Ok(Err(failure)) if refused(&failure) => Ok(()),
            Ok(removed) => removed,
        }
    }
}

/// A call that is not waited for without end.
async fn bounded<T>(call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let silent = |_| {
        let seconds = PATIENCE.as_secs();
        let advice = "`evloopctl status` tells how it is";
        Failure::new("daemon", format_args!("no answer for {seconds} s")).advice(advice)
    };
    timeout(PATIENCE, call).await.map_err(silent)?
}
