//! What a loop knows of one watch.

use std::sync::Arc;

use prost::Message as _;
use smallvec::SmallVec;

use super::mailbox::Reply;
use super::timers::AlarmId;
use crate::access::{ClientProcess, ProcessKey};
use crate::clock::{self, Now};
use crate::driver::SourceId;
use crate::event::{Closed, Cursor, Labels};
use crate::journal::Journal;
use crate::kinds::WatchKind;
use crate::proto;
use crate::watch::{Need, Seat, Watch};

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
    /// A reader that is attached to it from its first event on is wanted.
    pub attached: bool,
}

/// What bounds a loop's or a watch's life from outside.
#[derive(Debug, Clone, Default)]
pub enum Lifetime {
    /// The daemon's.
    #[default]
    Daemon,
    /// A client process's.
    Process(Arc<ClientProcess>),
}

impl Lifetime {
    /// The process it is bound to.
    #[must_use]
    pub fn process(&self) -> Option<ProcessKey> {
        match self {
            Self::Daemon => None,
            Self::Process(process) => Some(process.key()),
        }
    }
}

/// As shown to clients: what is bound to that.
pub(super) const fn lifetime(process: Option<ProcessKey>) -> proto::Lifetime {
    match process {
        None => proto::Lifetime::Daemon,
        Some(_) => proto::Lifetime::Process,
    }
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

/// A loop may have a million of them: what few have is in a box.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) seat: Seat,
    pub(super) watch: Option<Box<dyn Watch>>,
    pub(super) spec: Option<Encoded>,
    pub(super) lifetime: Lifetime,
    pub(super) created: u64,
    pub(super) added: u64,
    pub(super) need: Need,
    pub(super) alarm: Option<AlarmId>,
    pub(super) rare: Option<Box<Rare>>,
    pub(super) kind: WatchKind,
    pub(super) closing: bool,
}

/// A specification, encoded: as a value it is many times as large.
#[derive(Debug)]
pub(super) struct Encoded(SmallVec<[u8; 16]>);

impl Encoded {
    pub(super) fn new(spec: &proto::WatchSpec) -> Self {
        Self(SmallVec::from_vec(spec.encode_to_vec()))
    }

    pub(super) fn decode(&self) -> proto::WatchSpec {
        // It is what `new` encoded.
        proto::WatchSpec::decode(&*self.0).unwrap_or_default()
    }
}

/// What most watches do not have.
#[derive(Debug, Default)]
pub(super) struct Rare {
    pub(super) name: Option<Arc<str>>,
    pub(super) labels: Labels,
    /// The listener that accepted it; 0: none.
    pub(super) parent: u64,
    /// None: the policy's.
    pub(super) finished_ttl: Option<std::time::Duration>,
    /// Its source is not read for want of room.
    pub(super) paused: Option<proto::SourcePause>,
    pub(super) removal: Option<Removal>,
    /// Told the cursor of `Closed`.
    pub(super) on_closed: Vec<Reply<Cursor>>,
    pub(super) take: Option<(SourceId, Reply<TakenFd>)>,
    /// How it closed; present once it has.
    pub(super) ending: Option<Ending>,
}

/// How a watch closed.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) closed: Closed,
    pub(super) seq: u64,
    pub(super) at: Now,
    /// When it is removed, monotonic nanoseconds.
    pub(super) expires: u64,
}

/// Somebody wants it forgotten.
#[derive(Debug, Default)]
pub(super) struct Removal {
    pub(super) request_id: String,
    pub(super) replies: Vec<Reply<Cursor>>,
}

impl Record {
    /// What few have, if it has any of it.
    pub(super) fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    pub(super) fn rare_mut(&mut self) -> Option<&mut Rare> {
        self.rare.as_deref_mut()
    }

    /// To give it some of that.
    pub(super) fn make_rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// How it closed; `None` while it is open.
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.rare()?.ending.as_ref()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.ending().is_some()
    }

    pub(super) const fn id(&self) -> u64 {
        self.seat.about.watch
    }

    pub(super) fn name(&self) -> Option<&Arc<str>> {
        self.rare()?.name.as_ref()
    }

    /// The name for people; empty if it has none.
    pub(super) fn name_text(&self) -> String {
        self.name()
            .map(|name| (**name).to_owned())
            .unwrap_or_default()
    }

    /// None are no labels.
    pub(super) fn labels(&self) -> Option<&Labels> {
        Some(&self.rare()?.labels)
    }

    pub(super) fn finished_ttl(&self) -> Option<std::time::Duration> {
        self.rare()?.finished_ttl
    }

    /// It is read again; how it was paused.
    pub(super) fn unpause(&mut self) -> Option<proto::SourcePause> {
        self.rare_mut()?.paused.take()
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
        let (state, ending) = match self.ending() {
            None if self.closing => (proto::WatchState::Closing, None),
            None => (proto::WatchState::Open, None),
            ending => (proto::WatchState::Closed, ending),
        };
        proto::Watch {
            watch_id: self.id(),
            name: self.name_text(),
            labels: self.labels().map(|l| (**l).clone()).unwrap_or_default(),
            user_data: self.seat.about.user_data,
            watch_kind: self.kind.name().to_owned(),
            state: state.into(),
            spec: self.spec.as_ref().map(Encoded::decode),
            created: Some(clock::timestamp(self.created)),
            added: Some(journal.cursor(self.added).into()),
            closed: ending.map(|ending| ending.closed.clone()),
            closed_at: ending.map(|ending| clock::timestamp(ending.at.realtime)),
            closed_cursor: ending.map(|ending| journal.cursor(ending.seq).into()),
            survives: proto::Survives::Nothing.into(),
            lifetime: lifetime(self.lifetime.process()).into(),
            parent_watch_id: self.rare().map_or(0, |rare| rare.parent),
            source_pause: self.rare().and_then(|rare| rare.paused),
            status: self.watch.as_ref().and_then(|watch| watch.status()),
        }
    }
}
