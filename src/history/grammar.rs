//! The grammar of each kind of watch: which events it has, and which of them come first and last.
//!
//! A new kind of watch or event needs a line in [`of_watch`] or [`of_event`]; without it this
//! module does not compile.

use crate::kinds::WatchKind;
use crate::proto::{EventKind, Stream, event::Kind};

/// The rules for the events of one kind of watch, beside `Added`, `Closed` and `Removed`.
#[derive(Debug)]
pub(super) struct Grammar {
    /// The kinds of event that such a watch may have.
    pub(super) events: &'static [EventKind],
    /// The streams that its `Data` may belong to.
    pub(super) streams: &'static [Stream],
    /// The event that must precede all other events of the watch.
    pub(super) begins_with: Option<EventKind>,
    /// What must precede a `Closed` with the reason COMPLETED.
    pub(super) completes: Completion,
}

/// What must have happened before a watch may close with the reason COMPLETED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completion {
    /// Nothing in particular.
    Any,
    /// The process has exited, and each stream that had data has ended.
    ExitAndStreamEnds,
    /// The file was read to its end.
    Eof,
    /// The timer has fired.
    Tick,
}

/// A watch without streams, a first event, or conditions for its end.
const PLAIN: Grammar = Grammar {
    events: &[],
    streams: &[],
    begins_with: None,
    completes: Completion::Any,
};

/// Returns the grammar of a kind of watch.
pub(super) const fn of_watch(kind: WatchKind) -> Grammar {
    use EventKind::{
        AcceptPaused, Accepted, Connected, Data, Datagram, DatagramError, DatagramsDropped, Ended,
        Eof, Exited, FileChanged, GroupChanged, HandshakesFailed, PathChanged, PathRescan,
        PathRoot, PathSynced, Ready, Resized, Signal, Started, StreamEnd, TimerFired, TlsStarted,
        WritePaused, WriteResumed,
    };
    use Stream::{Input, Stderr, Stdout};

    match kind {
        WatchKind::Fd => Grammar {
            events: &[Ready],
            ..PLAIN
        },
        WatchKind::Timer => Grammar {
            events: &[TimerFired],
            completes: Completion::Tick,
            ..PLAIN
        },
        WatchKind::Process => Grammar {
            events: &[
                Started,
                Data,
                StreamEnd,
                Exited,
                WritePaused,
                WriteResumed,
                Resized,
            ],
            streams: &[Stdout, Stderr],
            begins_with: Some(Started),
            completes: Completion::ExitAndStreamEnds,
        },
        WatchKind::Connection => Grammar {
            events: &[Connected, TlsStarted, Data, Eof, WritePaused, WriteResumed],
            streams: &[Input],
            ..PLAIN
        },
        WatchKind::Listener => Grammar {
            events: &[Accepted, AcceptPaused, HandshakesFailed],
            ..PLAIN
        },
        WatchKind::ReadPipe => Grammar {
            events: &[Data, Eof],
            streams: &[Input],
            ..PLAIN
        },
        WatchKind::WritePipe => Grammar {
            events: &[WritePaused, WriteResumed],
            ..PLAIN
        },
        WatchKind::Signal => Grammar {
            events: &[Signal],
            ..PLAIN
        },
        WatchKind::Pid => Grammar {
            events: &[Ended, Exited],
            begins_with: Some(Ended),
            completes: Completion::ExitAndStreamEnds,
            ..PLAIN
        },
        WatchKind::Path => Grammar {
            events: &[PathChanged, PathRescan, PathRoot, PathSynced],
            ..PLAIN
        },
        WatchKind::File => Grammar {
            events: &[Data, Eof, FileChanged],
            streams: &[Input],
            completes: Completion::Eof,
            ..PLAIN
        },
        WatchKind::Datagram => Grammar {
            events: &[
                Datagram,
                DatagramError,
                DatagramsDropped,
                GroupChanged,
                WritePaused,
                WriteResumed,
            ],
            ..PLAIN
        },
    }
}

/// Where the events of a kind come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The loop itself, or a client that posts: these events belong to no watch.
    Loop,
    /// A source or a timer: only a running loop produces these events.
    Polling,
    /// Anything else that happens to a watch, even while the loop is stopped. For example, a watch
    /// that ends may push bytes that it has read before.
    Watch,
}

/// Returns where an event comes from.
pub(super) const fn of_event(kind: &Kind) -> Origin {
    match kind {
        Kind::Posted(_)
        | Kind::LoopStateChanged(_)
        | Kind::PolicyChanged(_)
        | Kind::LifetimeEnded(_)
        | Kind::Recovered(_) => Origin::Loop,
        Kind::Ready(_)
        | Kind::TimerFired(_)
        | Kind::Ended(_)
        | Kind::Accepted(_)
        | Kind::Connected(_)
        | Kind::TlsStarted(_)
        | Kind::HandshakesFailed(_)
        | Kind::Datagram(_)
        | Kind::DatagramError(_)
        | Kind::GroupChanged(_)
        | Kind::PathChanged(_)
        | Kind::PathRescan(_)
        | Kind::PathRoot(_)
        | Kind::PathSynced(_)
        | Kind::FileChanged(_)
        | Kind::Signal(_) => Origin::Polling,
        Kind::Added(_)
        | Kind::Closed(_)
        | Kind::Removed(_)
        | Kind::Started(_)
        | Kind::Updated(_)
        | Kind::Resized(_)
        | Kind::DatagramsDropped(_)
        | Kind::Data(_)
        | Kind::StreamEnd(_)
        | Kind::Exited(_)
        | Kind::AcceptPaused(_)
        | Kind::Eof(_)
        | Kind::WritePaused(_)
        | Kind::WriteResumed(_) => Origin::Watch,
    }
}
