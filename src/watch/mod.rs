//! The kinds of watch, one file each. A kind is written once, against the driver contract; the
//! loop's thread calls it with completions, alarms and notices.
//!
//! # To add a kind
//! 1. In `proto/`, add its specification as a field of `WatchSpec.spec`. Add an event that no other
//!    kind has as a field of `Event.kind` and a value of `EventKind`. [`crate::kinds`] gets its
//!    name and number from there, and the policies, the capabilities, the filters and the
//!    comparison of specifications use those. Nothing compiles until steps 2 to 5 are done.
//! 2. Here, add one file with: a checked order (what a client asked for), its preparation (what may
//!    block or fail before the watch exists), and a type that implements [`Watch`].
//! 3. In `rpc/spec`, implement `Specification` for its message, which turns a request into that
//!    order.
//! 4. In `ctl/watch/kinds.rs`, add its verb, implement `Target` for its message, and `Words` for
//!    each new event.
//! 5. In `history/grammar.rs`, say which events it has, in which order.
//! 6. In `tests/conformance`, test what it promises, on every backend. If room is reserved for one
//!    of its events, add the event's largest size to [`crate::event::largest`].
//!
//! # The life of a watch
//! [`Watch::start`] is called right after the watch's `Added` is appended. The watch ends itself
//! with [`Context::close`], or is ended from outside; in both cases [`Watch::closing`] is called
//! once. When all its operations have ended, the loop appends `Closed` and closes its sources.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::access::Principal;
use crate::driver::{Done, Driver, Lane};
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, largest};
use crate::journal::Room;
use crate::proto;

pub mod address;
mod connection;
mod context;
mod control;
mod datagram;
mod fd;
mod file;
mod handshakes;
mod links;
mod listener;
mod path;
mod pid;
mod pipe;
mod places;
mod process;
mod progress;
mod resolver;
mod resumption;
mod services;
mod signal;
mod sources;
mod starters;
mod tcp;
mod time_zones;
mod timer;
mod transport;
mod wake;
mod water;

pub use connection::{
    ConnectionOrder, Dialling, EarlierConnection, StartTls, StreamOptions, Target,
};
pub(crate) use context::ONE_BY_ONE;
pub use context::{Alarm, Context, Doubts, Grants};
pub use control::{Adoption, Afterwards, ControlBlock, End};
pub use datagram::{
    DatagramOptions, DatagramOrder, DatagramSocket, Endpoint, Group, Groups, Membership, Parcel,
};
pub use fd::FdOrder;
pub use file::FileOrder;
pub use handshakes::{Handshakes, Secured, TlsOrder};
pub use links::Links;
pub use listener::{
    Accepting, EarlierListener, ListenOrder, ListenTarget, SOCKETS_MAX, Unreported,
};
pub use path::PathOrder;
pub use pid::{PidOrder, PidSource};
pub use pipe::{PipeEnd, PipeOrder};
pub use places::Place;
pub use process::{
    AfterGrace, AtEnd, Attributes, Drain, DrainLimits, EarlierTerminal, EndSignals, FileTarget,
    Orphan, ProcessChange, ProcessOrder, Program, Reached, Reaper, Reaping, Relay, Scheduling,
    SignalTarget, Stdio, Stopped, Strays, Tree, UserOrder, Whose, reap_inherited,
};
pub use progress::Progress;
pub use resolver::{Lookup, Resolver};
pub use resumption::{Resumption, Unsent};
pub use services::{Closer, Count, Notifier, Permit, Services, TransportLimits};
pub use signal::SignalOrder;
pub use sources::Sources;
pub use starters::Starters;
pub use tcp::{KeepAlive, TcpOptions};
pub use time_zones::{TimeZones, ZoneFacts};
pub use timer::{INTERVAL_MIN, Schedule, TimerChange, TimerOrder, ZonedCalendar};
pub use water::WaterMarks;

/// The resources of a loop that a watch needs, reserved before it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The number of sources of the backend.
    pub sources: u32,
    /// The number of journal events that must always fit: Added, all that happen at most once,
    /// Removed.
    pub events: u32,
    /// The bytes that these events take at most: see [`largest`].
    pub bytes: u32,
}

impl Need {
    /// Returns the need of Added, Closed and Removed, and of that many sources.
    #[must_use]
    pub const fn sources(sources: u32) -> Self {
        Self {
            sources,
            events: 3,
            bytes: largest::ADDED + largest::CLOSED + largest::REMOVED,
        }
    }

    /// The need of a closed watch.
    pub const REMOVAL: Self = Self {
        sources: 0,
        events: 1,
        bytes: largest::REMOVED,
    };

    /// Adds one event of at most `bytes` bytes.
    #[must_use]
    pub const fn and(self, bytes: u32) -> Self {
        Self {
            events: self.events + 1,
            bytes: self.bytes + bytes,
            ..self
        }
    }

    /// Adds room for a detail in the error of `Closed`.
    #[must_use]
    pub const fn and_detail(self) -> Self {
        Self {
            bytes: self.bytes + largest::DETAIL,
            ..self
        }
    }

    /// Subtracts one event of at most `bytes` bytes, which has been appended.
    #[must_use]
    pub const fn without(self, bytes: u32) -> Self {
        Self {
            events: self.events - 1,
            bytes: self.bytes - bytes,
            ..self
        }
    }

    /// Returns the room that it needs in the journal.
    #[must_use]
    pub const fn room(self) -> Room {
        Room {
            events: self.events as u64,
            bytes: self.bytes as u64,
        }
    }
}

/// A report to a watch of something that was done off the loop's thread.
#[derive(Debug)]
pub enum Notice {
    /// The result of resolving a name.
    Resolved(Result<Vec<std::net::SocketAddr>>),
    /// A handshake of TLS has ended. It has the number that the watch gave it.
    Handshake(usize, std::result::Result<Box<Secured>, SystemError>),
    /// A place for one more connection of the listener is free.
    PlaceFree,
    /// The daemon has closed a file descriptor.
    DescriptorClosed,
    /// The thread that waits for the child says that it has ended.
    ChildEnded,
    /// Some child of the daemon has ended (SIGCHLD).
    ChildSignal,
    /// The child was killed while the loop was stopped, and has ended or did not end in time.
    ChildKilled,
    /// Watched signals have arrived.
    Signals(Arc<signal::Inbox>),
    /// A path of an earlier life is watched again, or is not.
    PathAgain(std::result::Result<Box<PathOrder>, SystemError>),
    /// Another thread has something for the watch.
    Woken,
    /// A step of the reading of a file is done; `None` if it panicked.
    FileStep(Option<(Box<crate::follow::Follower>, crate::follow::Step)>),
    /// A file of an earlier life is followed again, or is not.
    FileAgain(std::result::Result<Box<FileOrder>, SystemError>),
}

/// What happened to the time that calendars go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeChange {
    /// The realtime clock was set, or the host was suspended.
    ClockSet {
        /// By how much it was set back at most at once, in nanoseconds.
        back: u64,
    },
    /// The database of time zones or the host's own zone was replaced.
    Zones,
}

/// A checked change of a watch by UpdateWatch, for its kind.
#[derive(Debug)]
pub enum Change {
    /// Of a timer.
    Timer(Box<TimerChange>),
    /// The signals to watch.
    Signals(Vec<i32>),
    /// How long Exited waits; `None` means the configured time.
    ReapWait(Option<std::time::Duration>),
    /// Of an outgoing stream, or of datagrams.
    WaterMarks(WaterMarks),
    /// Of a listener: the options of connections that it accepts, and their limit.
    Accepting(StreamOptions, u32),
    /// Of a process.
    Process(Box<ProcessChange>),
    /// A path that is watched in place of the earlier one.
    Path(Box<PathOrder>),
}

/// How a watch closes once its end is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teardown {
    /// The loop cancels the live operations, then the watch is closed.
    Now,
    /// The watch ends its operations itself and then calls [`Context::finish`].
    Later,
}

/// The progress of an outgoing stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The bytes of the stream that the watch has taken so far.
    pub taken: u64,
    /// The bytes of those that the kernel has not taken yet.
    pub buffered: u64,
}

/// A watch of one kind. All of its methods are called on the loop's thread and must not block.
pub trait Watch: Send + fmt::Debug {
    /// Starts the watch. Its `Added` is appended already.
    fn start(&mut self, cx: &mut Context<'_>);

    /// Returns what a later life of the daemon needs to go on with the watch as it is now; `None` if
    /// none can. After a change of it in a call, the watch calls [`Context::changed`].
    fn keep(&self, _driver: &dyn Driver) -> Option<proto::state::kept_watch_state::Of> {
        None
    }

    /// Returns how far its streams are, if later lives go on with them. After a change of it in a call,
    /// the watch calls [`Context::progressed`].
    fn progress(&self) -> Option<Progress> {
        None
    }

    /// Returns what it has taken to send, if later lives go on with it.
    fn unsent(&self) -> Option<Unsent<'_>> {
        None
    }

    /// Returns a place for a connection of an earlier life that this listener accepted.
    fn place(&self) -> Option<Place> {
        None
    }

    /// Goes on with what [`Watch::keep`] of an earlier life returned, in place of [`Watch::start`].
    ///
    /// # Errors
    /// It is not of this kind.
    fn resume(&mut self, _cx: &mut Context<'_>, _kept: Resumption) -> Result<()> {
        Err(Error::wrong_state(
            "this kind of watch ends with the daemon",
        ))
    }

    /// Handles a completion of one of its operations.
    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done);

    /// Handles its alarm, which is due.
    fn alarm(&mut self, _cx: &mut Context<'_>) {}

    /// Pauses its source because the journal has no room, or resumes it: events that were delayed
    /// for lack of room are due then. Returns whether the watch has a source that this pauses.
    fn hold(&mut self, _cx: &mut Context<'_>, _hold: bool) -> bool {
        false
    }

    /// Handles a notice of something that was done off the loop's thread.
    fn notice(&mut self, _cx: &mut Context<'_>, _notice: Notice) {}

    /// Handles that the realtime clock was set or time zones were replaced.
    fn time_changed(&mut self, _cx: &mut Context<'_>, _change: TimeChange) {}

    /// Changes the watch in place. On an error it stays as it was.
    ///
    /// # Errors
    /// The kind or its present state does not allow the change, or the journal has no room for what
    /// follows from it.
    fn change(&mut self, cx: &mut Context<'_>, change: Change) -> Result<()> {
        match change {
            Change::WaterMarks(marks) => self.set_water_marks(cx, marks),
            _ => Err(unsupported("what is to be changed")),
        }
    }

    /// Begins its end, which the watch itself or somebody else requested. Called once.
    fn closing(&mut self, _cx: &mut Context<'_>) -> Teardown {
        Teardown::Now
    }

    /// Ends the watch after all of its operations have ended. This is the last chance to append
    /// events before `Closed`. Returns the number of bytes that the watch took and never sent.
    fn closed(&mut self, _cx: &mut Context<'_>) -> u64 {
        0
    }

    /// Returns the number of connections that wait to be accepted when the watch closes; `None` if it
    /// is not a listener, or the kernel does not tell.
    fn unaccepted(&self, _cx: &Context<'_>) -> Option<u64> {
        None
    }

    /// Returns the state that is special to its kind. The driver has its sources.
    fn status(&self, driver: &dyn Driver) -> Option<proto::watch::Status>;

    /// Arms fired directions again, unless a later Ready exists, or disarms them. Returns whether
    /// anything changed.
    fn rearm(&mut self, _cx: &mut Context<'_>, _item: &proto::RearmItem) -> bool {
        false
    }

    /// Takes bytes to send; `at` is their offset in the stream, `None` its end.
    ///
    /// # Errors
    /// The kind has no outgoing stream, `at` leaves a hole, or the stream was ended.
    fn write(&mut self, _cx: &mut Context<'_>, _data: Bytes, _at: Option<u64>) -> Result<Taken> {
        Err(unsupported("an outgoing stream"))
    }

    /// Ends the outgoing stream after the bytes that were taken.
    ///
    /// # Errors
    /// The kind has no outgoing stream.
    fn write_eof(&mut self, _cx: &mut Context<'_>) -> Result<()> {
        Err(unsupported("an outgoing stream"))
    }

    /// Sends one datagram. Returns the bytes that wait to be sent.
    ///
    /// # Errors
    /// The kind sends no datagrams, the datagram cannot be sent, or too many wait.
    fn send_to(&mut self, _cx: &mut Context<'_>, _parcel: Parcel) -> Result<u64> {
        Err(unsupported("datagrams to send"))
    }

    /// Begins TLS in mid-stream.
    ///
    /// # Errors
    /// The kind cannot begin TLS, not in its present state, or not at that offset.
    fn start_tls(&mut self, _cx: &mut Context<'_>, _order: StartTls) -> Result<()> {
        Err(unsupported("a stream on which TLS can begin"))
    }

    /// Returns the source whose socket can be a member of multicast groups, and its groups.
    ///
    /// # Errors
    /// The kind has none.
    fn group_socket(&self) -> Result<(crate::driver::SourceId, Arc<Groups>)> {
        Err(unsupported("multicast groups"))
    }

    /// Moves the water marks of its outgoing stream or datagrams.
    ///
    /// # Errors
    /// The kind has none, or the journal has no room for the event that follows from it.
    fn set_water_marks(&mut self, _cx: &mut Context<'_>, _marks: WaterMarks) -> Result<()> {
        Err(unsupported("an outgoing stream"))
    }

    /// Pauses or resumes reading. Idempotent.
    ///
    /// # Errors
    /// The kind has no incoming stream.
    fn pause_reading(&mut self, _cx: &mut Context<'_>, _pause: bool) -> Result<()> {
        Err(unsupported("an incoming stream"))
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// The kind has no process, the process has ended, or the system refuses.
    fn signal(&mut self, _number: i32, _target: SignalTarget) -> Result<()> {
        Err(unsupported("a process"))
    }

    /// Returns the process with its descendants, to be signalled off the loop's thread.
    ///
    /// # Errors
    /// The kind has no process of the daemon's own, or its child has ended.
    fn tree(&mut self, _cx: &mut Context<'_>) -> Result<Tree> {
        Err(unsupported("a process that the daemon has started"))
    }

    /// Changes the size of its terminal.
    ///
    /// # Errors
    /// It has no terminal, the journal has no room, or the system refuses the size.
    fn resize(&mut self, _cx: &mut Context<'_>, _size: proto::TerminalSize) -> Result<()> {
        Err(unsupported("a process with a terminal"))
    }

    /// Makes the end of the watch end its child and all of the child's descendants.
    fn kill_at_end(&mut self) {}

    /// Kills everything that must not outlive the daemon, which ends and can wait no longer.
    fn kill_now(&mut self) {}

    /// Returns whether Abort can end it.
    fn can_abort(&self) -> bool {
        false
    }

    /// Ends at once, even during an orderly end. Only called if it [can](Self::can_abort) be
    /// aborted.
    fn abort(&mut self, cx: &mut Context<'_>) {
        cx.close(CloseReason::Aborted);
        cx.finish();
    }

    /// Returns the source whose file descriptor TakeFd may take.
    ///
    /// # Errors
    /// The descriptor of this kind, or in this state, stays in the daemon.
    fn takeable(&self) -> Result<crate::driver::SourceId> {
        Err(unsupported("a file descriptor to take"))
    }
}

fn unsupported(what: &str) -> Error {
    Error::wrong_state(format!("this kind of watch does not have {what}"))
}

/// Builds a watch on its loop's thread, after room is reserved; must not block.
pub type Build = Box<dyn FnOnce() -> Result<Box<dyn Watch>> + Send>;

/// Builds a watch on one of the [`Starters`], or on the [`Resolver`], after room is reserved.
pub type Prepare = Box<dyn FnOnce(&Services) -> Result<Box<dyn Watch>> + Send>;

/// A watch to add to a loop.
pub enum Order {
    /// A watch that is built at once.
    Now(Build),
    /// A watch that needs something that may block first, such as starting a program or binding an
    /// address.
    Later(Prepare),
    /// As [`Order::Later`], of a watch that needs names to be resolved first: its preparation runs on
    /// the [`Resolver`], as a job of this principal.
    Resolved(Principal, Prepare),
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
            Self::Resolved(..) => "Resolved",
        })
    }
}
