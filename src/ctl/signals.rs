//! The signals that mean the process in our foreground, and how to end by one.

use std::future::pending;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{self, SignalKind, signal};

use crate::sys;

/// A second Ctrl-C or Ctrl-\ within this time is meant for us.
const TWICE: Duration = Duration::from_secs(1);

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// To be passed on: SIGINT, SIGQUIT or SIGTERM.
    Once(Signal),
    /// The second from the keyboard in a short time: we are to go.
    Twice(Signal),
    /// SIGHUP: the terminal is gone.
    HangUp,
}

impl Heard {
    /// The one that came.
    pub(super) const fn signal(self) -> Signal {
        match self {
            Self::Once(signal) | Self::Twice(signal) => signal,
            Self::HangUp => Signal::SIGHUP,
        }
    }
}

/// Takes signals in place of their default actions.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Source,
    terminate: Source,
    quit: Source,
    hangup: Source,
    /// When the keyboard's last one came.
    key: Option<Instant>,
}

/// One that was ignored when we were started stays so, as nohup(1) and shells want it.
#[derive(Debug)]
struct Source(Option<unix::Signal>);

impl Source {
    fn new(number: Signal) -> io::Result<Self> {
        if sys::is_ignored(number) {
            return Ok(Self(None));
        }
        signal(SignalKind::from_raw(number as i32))
            .map(Some)
            .map(Self)
    }

    async fn next(&mut self) {
        let received = match &mut self.0 {
            Some(source) => source.recv().await,
            None => None,
        };
        if received.is_none() {
            pending::<()>().await;
        }
    }
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: Source::new(Signal::SIGINT)?,
            terminate: Source::new(Signal::SIGTERM)?,
            quit: Source::new(Signal::SIGQUIT)?,
            hangup: Source::new(Signal::SIGHUP)?,
            key: None,
        })
    }

    /// The next one. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Heard {
        let signal = tokio::select! {
            () = self.interrupt.next() => Signal::SIGINT,
            () = self.quit.next() => Signal::SIGQUIT,
            // timeout(1) sends it twice: it says nothing about how urgent it is.
            () = self.terminate.next() => return Heard::Once(Signal::SIGTERM),
            () = self.hangup.next() => return Heard::HangUp,
        };
        let before = self.key.replace(Instant::now());
        if before.is_some_and(|before| before.elapsed() < TWICE) {
            return Heard::Twice(signal);
        }
        Heard::Once(signal)
    }
}

/// Ends this process by the signal, so that who waits for it, such as a shell's loop, sees that; without a core
/// dump. Where the signal is blocked it returns the exit code that stands for it.
pub(super) fn die_of(signal: Signal) -> u8 {
    let core = getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        ..core
    };
    // Without a core is better; with one it is still the end that was asked for.
    let _ = setrlimit(Resource::Core, none);
    if sys::default_action(signal).is_ok() {
        let _ = raise(signal);
    }
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}
