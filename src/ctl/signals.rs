//! Receives the signals that are meant for the process in the foreground, and ends evloopctl by a signal.

use std::future::pending;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{self, SignalKind, signal};

use crate::sys;

/// A second Ctrl-C or Ctrl-\ within this time ends evloopctl instead of being passed on.
const TWICE: Duration = Duration::from_secs(1);

/// A signal that evloopctl received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// SIGINT, SIGQUIT or SIGTERM, to be passed on to the process.
    Once(Signal),
    /// The second SIGINT or SIGQUIT within [`TWICE`]: evloopctl is to leave the process.
    Twice(Signal),
    /// SIGHUP: the terminal is closed.
    HangUp,
}

impl Heard {
    /// Returns the signal itself.
    pub(super) const fn signal(self) -> Signal {
        match self {
            Self::Once(signal) | Self::Twice(signal) => signal,
            Self::HangUp => Signal::SIGHUP,
        }
    }
}

/// Receives SIGINT, SIGTERM, SIGQUIT and SIGHUP; their default actions no longer happen.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Source,
    terminate: Source,
    quit: Source,
    hangup: Source,
    /// The time of the last SIGINT or SIGQUIT.
    key: Option<Instant>,
}

/// Receives one signal. A signal that was ignored when evloopctl was started stays ignored, as nohup(1) and shells expect.
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

    /// Waits for the next signal. Cancelling it loses no signal.
    pub(super) async fn next(&mut self) -> Heard {
        let signal = tokio::select! {
            () = self.interrupt.next() => Signal::SIGINT,
            () = self.quit.next() => Signal::SIGQUIT,
            // A second SIGTERM is passed on too: timeout(1) sends it to the process and to its group.
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

/// Ends evloopctl by the signal, without a core dump, so that its parent, such as a shell with a loop, sees which signal
/// ended it. Returns only if the signal is blocked: the exit code 128 + the signal's number.
pub(super) fn die_of(signal: Signal) -> u8 {
    let core = getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        ..core
    };
    // If the limit cannot be set, a core dump may be written.
    let _ = setrlimit(Resource::Core, none);
    if sys::default_action(signal).is_ok() {
        let _ = raise(signal);
    }
    u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)
}
