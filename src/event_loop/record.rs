//! What a loop knows of one watch.

use std::sync::Arc;

use super::mailbox::Reply;
use super::timers::AlarmId;
use crate::access::ClientProcess;
use crate::clock::{self, Now};
use crate::config::WatchKind;
use crate::driver::SourceId;
use crate::event::{Closed, Cursor, Labels};
use crate::journal::Journal;
use crate::proto;
use crate::watch::{Alarm, Need, Seat, Watch};

/// A watch as asked for, whatever its kind.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Unique on the loop, if it has one.
    pub name: Option<Arc<str>>,
    /// Of the client's choice.
    pub labels: Labels,
    /// Of the client's choice.
    pub user_data: u64,
    /// What it watches.
    pub kind: WatchKind,
    /// As shown to clients and compared by `if_exists`; none for an accepted connection.
    pub spec: Option<Box<proto::WatchSpec>>,
    /// An existing watch of that name and an equal specification is good enough.
    pub or_existing: bool,
    /// Echoed in `Added`.
    pub request_id: String,
    /// What it is bound to.
    pub lifetime: Lifetime,
    /// How long it stays readable once closed; `None`: the policy's.
    pub finished_ttl: Option<std::time::Duration>,
    /// What it takes.
    pub need: Need,
}

/// What bounds a watch's life from outside.
#[derive(Debug, Clone)]
pub enum Lifetime {
    /// The daemon's.
    Daemon,
    /// A client process's.
    Process(Arc<ClientProcess>),
}

/// A file descriptor on its way out of the daemon.
#[derive(Debug)]
pub struct TakenFd {
    /// It.
    pub fd: std::os::fd::OwnedFd,
    /// Position of the watch's `Closed`.
    pub closed: Cursor,
    /// Bytes received from it before.
    pub received: u64,
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) id: u64,
    pub(super) seat: Seat,
    pub(super) watch: Option<Box<dyn Watch>>,
    pub(super) name: Option<Arc<str>>,
    pub(super) labels: Labels,
    pub(super) kind: WatchKind,
    pub(super) spec: Option<Box<proto::WatchSpec>>,
    pub(super) lifetime: Lifetime,
    pub(super) parent: u64,
    pub(super) created: u64,
    pub(super) added: u64,
    pub(super) finished_ttl: std::time::Duration,
    pub(super) need: Need,
    pub(super) alarm: Option<(Alarm, AlarmId)>,
    pub(super) phase: Phase,
    /// Its source is not read for want of room.
    pub(super) paused: Option<proto::SourcePause>,
    pub(super) removal: Option<Removal>,
    /// Told the cursor of `Closed`.
    pub(super) on_closed: Vec<Reply<Cursor>>,
    pub(super) take: Option<(SourceId, Reply<TakenFd>)>,
    pub(super) taken: Option<std::os::fd::OwnedFd>,
}

#[derive(Debug)]
pub(super) enum Phase {
    Open,
    Closing,
    Closed {
        closed: Closed,
        seq: u64,
        at: Now,
        /// When it is removed, monotonic nanoseconds.
        expires: u64,
    },
}

/// Somebody wants it forgotten.
#[derive(Debug, Default)]
pub(super) struct Removal {
    pub(super) request_id: String,
    pub(super) replies: Vec<Reply<Cursor>>,
}

impl Record {
    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. })
    }

    /// Bytes that came in over it, if it is a transport.
    pub(super) fn received(&self) -> u64 {
        match self.watch.as_ref().and_then(|watch| watch.status()) {
            Some(proto::watch::Status::Transport(transport)) => transport.received_bytes,
            _ => 0,
        }
    }

    /// As shown to clients.
    pub(super) fn view(&self, journal: &Journal) -> proto::Watch {
        let (state, closed, closed_at, closed_cursor) = match &self.phase {
            Phase::Open => (proto::WatchState::Open, None, None, None),
            Phase::Closing => (proto::WatchState::Closing, None, None, None),
            Phase::Closed {
                closed, at, seq, ..
            } => (
                proto::WatchState::Closed,
                Some(closed.clone()),
                Some(clock::timestamp(at.realtime)),
                Some(journal.cursor(*seq).into()),
            ),
        };
        let lifetime = match self.lifetime {
            Lifetime::Daemon => proto::Lifetime::Daemon,
            Lifetime::Process(_) => proto::Lifetime::Process,
        };
        proto::Watch {
            watch_id: self.id,
            name: self.name.as_deref().unwrap_or_default().to_owned(),
            labels: (*self.labels).clone(),
            user_data: self.seat.about.user_data,
            watch_kind: self.kind.name().to_owned(),
            state: state.into(),
            spec: self.spec.as_deref().cloned(),
            created: Some(clock::timestamp(self.created)),
            added: Some(journal.cursor(self.added).into()),
            closed,
            closed_at,
            closed_cursor,
            survives: proto::Survives::Nothing.into(),
            lifetime: lifetime.into(),
            parent_watch_id: self.parent,
            source_pause: self.paused,
            status: self.watch.as_ref().and_then(|watch| watch.status()),
        }
    }
}
