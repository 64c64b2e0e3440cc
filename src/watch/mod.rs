//! What can be watched: one file per kind, each written once, against the driver
//! contract, and told of completions, alarms and notices on its loop's thread.
//!
//! # To add a kind
//! 1. `proto/`: its specification is a field of `WatchSpec.spec`; an event that no other kind has is
//!    a field of `Event.kind` and a value of `EventKind`. [`crate::kinds`] has its name and number
//!    from there, and with them the policies, the capabilities, the filters and the comparison of
//!    specifications. Until the next four know it, nothing compiles.
//! 2. Here, one file: a checked order (what a client asked for), its preparation (what may block or
//!    fail before the watch exists), and a type that implements [`Watch`].
//! 3. `rpc/spec`: `Specification` of its message turns a request into that order.
//! 4. `ctl/watch/kinds.rs`: its verb, `Target` of its message, and `Words` of each new event.
//! 5. `history/grammar.rs`: which events it has, in which order.
//! 6. `tests/conformance`: what it promises, on every backend. An event for which room is set aside
//!    has its largest size in [`crate::event::largest`].
//!
//! # The life of a watch
//! [`Watch::start`] comes right after its `Added`. It ends itself with
//! [`Context::close`], or is ended from outside; either way [`Watch::closing`] is asked
//! once. When its operations have ended, the loop takes `Closed` down and closes its
//! sources.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::driver::{Done, Lane};
use crate::error::{Error, Result};
use crate::event::{CloseReason, largest};
use crate::journal::Room;
use crate::proto;

pub mod address;
mod connection;
mod context;
mod fd;
mod listener;
mod pipe;
mod process;
mod services;
mod signal;
mod starters;
mod timer;
mod transport;

pub use connection::{ConnectionOrder, StreamOptions, Target};
pub(crate) use context::ONE_BY_ONE;
pub use context::{Adoption, Alarm, Context, End, Grants, Seat};
pub use fd::FdOrder;
pub(crate) use listener::ACCEPTED;
pub use listener::{ListenOrder, ListenTarget, SOCKETS_MAX};
pub use pipe::{PipeEnd, PipeOrder};
pub use process::{
    AfterGrace, AtEnd, Attributes, Drain, DrainLimits, ProcessOrder, Program, Reaper, SignalTarget,
    Stdio, reap_strangers,
};
pub use services::{Closer, Count, Notifier, Permit, Services, TransportLimits};
pub use signal::SignalOrder;
pub use starters::Starters;
pub use timer::{INTERVAL_MIN, Schedule, TimerOrder};

/// What a watch takes of its loop's limits, set aside before it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Sources of the backend.
    pub sources: usize,
    /// Journal events that must always fit: Added, all that happen at most once, Removed.
    pub events: u32,
    /// Bytes that they take at most: see [`largest`].
    pub bytes: u32,
}

impl Need {
    /// Added, Closed and Removed, and so many sources.
    #[must_use]
    pub const fn sources(sources: usize) -> Self {
        Self {
            sources,
            events: 3,
            bytes: largest::ADDED + largest::CLOSED + largest::REMOVED,
        }
    }

    /// Of a watch that is closed.
    pub const REMOVAL: Self = Self {
        sources: 0,
        events: 1,
        bytes: largest::REMOVED,
    };

    /// And one event more, of at most so many bytes.
    #[must_use]
    pub const fn and(self, bytes: u32) -> Self {
        Self {
            events: self.events + 1,
            bytes: self.bytes + bytes,
            ..self
        }
    }

    /// The error that it closes with may have a detail.
    #[must_use]
    pub const fn and_detail(self) -> Self {
        Self {
            bytes: self.bytes + largest::DETAIL,
            ..self
        }
    }

    /// One event, of at most so many bytes, has happened.
    #[must_use]
    pub const fn without(self, bytes: u32) -> Self {
        Self {
            events: self.events - 1,
            bytes: self.bytes - bytes,
            ..self
        }
    }

    /// What it takes of the journal.
    #[must_use]
    pub const fn room(self) -> Room {
        Room {
            events: self.events as u64,
            bytes: self.bytes as u64,
        }
    }
}

/// What was done off the loop's thread and is reported to a watch.
#[derive(Debug)]
pub enum Notice {
    /// A name was resolved.
    Resolved(std::result::Result<Vec<std::net::SocketAddr>, crate::error::SystemError>),
    /// The child has ended, a thread of its own says.
    ChildEnded,
    /// Some child of the daemon ended (SIGCHLD).
    ChildSignal,
    /// The child was killed while the loop was stopped, and its end waited for.
    ChildKilled,
    /// Watched signals came.
    Signals(Arc<signal::Inbox>),
}

/// What is left to do when an end is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teardown {
    /// Cancel what is live, then it is closed.
    Now,
    /// The watch ends its operations itself and says [`Context::finish`].
    Later,
}

/// How much of an outgoing stream is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of the stream taken so far.
    pub taken: u64,
    /// Of those, not yet taken by the kernel.
    pub buffered: u64,
}

/// A kind of watch at work. All of it runs on the loop's thread; nothing in it blocks.
pub trait Watch: Send + fmt::Debug {
    /// It exists, and its `Added` is pushed.
    fn start(&mut self, cx: &mut Context<'_>);

    /// Something came of one of its operations.
    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done);

    /// The alarm it set is due.
    fn alarm(&mut self, _cx: &mut Context<'_>) {}

    /// Its source is not to be read until there is room in the journal, or may be read again: what
    /// was put off for want of room is due then. Says whether it has a source that is paused by it.
    fn hold(&mut self, _cx: &mut Context<'_>, _hold: bool) -> bool {
        false
    }

    /// Something was done for it elsewhere.
    fn notice(&mut self, _cx: &mut Context<'_>, _notice: Notice) {}

    /// Its end was asked for, by itself or from outside. Called once.
    fn closing(&mut self, _cx: &mut Context<'_>) -> Teardown {
        Teardown::Now
    }

    /// Its operations have ended: the last chance to push events before `Closed`.
    /// Returns the bytes that were taken and never sent.
    fn closed(&mut self, _cx: &mut Context<'_>) -> u64 {
        0
    }

    /// How it is.
    fn status(&self) -> Option<proto::watch::Status>;

    /// Arms fired directions again, unless a later Ready exists, or disarms them. Says whether it did.
    fn rearm(&mut self, _cx: &mut Context<'_>, _item: &proto::RearmItem) -> bool {
        false
    }

    /// Takes bytes to send; `offset` is where in the stream they belong.
    ///
    /// # Errors
    /// A kind without an outgoing stream, a hole, an ended stream.
    fn write(&mut self, _cx: &mut Context<'_>, _data: Bytes, _at: Option<u64>) -> Result<Taken> {
        Err(lacks("an outgoing stream"))
    }

    /// Ends the outgoing stream behind what was taken.
    ///
    /// # Errors
    /// A kind without one.
    fn write_eof(&mut self, _cx: &mut Context<'_>) -> Result<()> {
        Err(lacks("an outgoing stream"))
    }

    /// Stops reading, or goes on. Idempotent.
    ///
    /// # Errors
    /// A kind without an incoming stream.
    fn pause_reading(&mut self, _cx: &mut Context<'_>, _pause: bool) -> Result<()> {
        Err(lacks("an incoming stream"))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// A kind without a process, one that has ended, the system's refusal.
    fn signal(&mut self, _number: i32, _target: SignalTarget) -> Result<()> {
        Err(lacks("a process"))
    }

    /// The daemon ends and can wait no longer: what must not outlive it is killed.
    fn kill_now(&mut self) {}

    /// Whether it can be ended by Abort.
    fn can_abort(&self) -> bool {
        false
    }

    /// Ends at once, also if it was ending in order. Only if it [can](Self::can_abort).
    fn abort(&mut self, cx: &mut Context<'_>) {
        cx.close(CloseReason::Aborted);
        cx.finish();
    }

    /// The source whose file descriptor TakeFd may take out.
    ///
    /// # Errors
    /// A kind or state whose descriptor stays in the daemon.
    fn takeable(&self) -> Result<crate::driver::SourceId> {
        Err(lacks("a file descriptor to take"))
    }
}

fn lacks(what: &str) -> Error {
    Error::wrong_state(format!("this kind of watch has no such thing as {what}"))
}

/// Makes a watch on its loop's thread, once room for it is set aside; must not block.
pub type Build = Box<dyn FnOnce() -> Result<Box<dyn Watch>> + Send>;

/// Makes a watch on one of the [`Starters`], once room for it is set aside.
pub type Prepare = Box<dyn FnOnce(&Services) -> Result<Box<dyn Watch>> + Send>;

/// A watch that is not on a loop yet.
pub enum Order {
    /// Made at once.
    Now(Build),
    /// Something that may block comes first: a program to start, an address to bind.
    Later(Prepare),
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}
