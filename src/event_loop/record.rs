//! The record that a loop has of one watch.

use std::sync::Arc;

use prost::Message as _;
use smallvec::SmallVec;

use super::lifetime::Lifetime;
use super::mailbox::Reply;
use super::timers::AlarmId;
use crate::clock::{self, Now};
use crate::config::Survives;
use crate::driver::{Driver, SourceId};
use crate::event::{Closed, Cursor, Labels};
use crate::journal::Journal;
use crate::kinds::WatchKind;
use crate::memory::Taken;
use crate::proto;
use crate::watch::{ControlBlock, Need, Watch};

/// A request for a watch of any kind.
#[derive(Debug)]
pub struct Registration {
    /// The name, unique on the loop, if there is one.
    pub name: Option<Arc<str>>,
    /// The labels, chosen by the client.
    pub labels: Labels,
    /// A number chosen by the client.
    pub user_data: u64,
    /// The kind of watch.
    pub kind: WatchKind,
    /// The specification, as clients see it and as `if_exists` compares it; `None` for an accepted
    /// connection.
    pub spec: Option<Box<proto::WatchSpec>>,
    /// Whether an existing watch of that name with an equal specification is returned instead of an
    /// error.
    pub or_existing: bool,
    /// The id of the request, repeated in `Added`.
    pub request_id: String,
    /// The lifetime that the watch is bound to.
    pub lifetime: Lifetime,
    /// How long the watch stays readable once it is closed; `None` means as long as the policy
    /// says.
    pub finished_ttl: Option<std::time::Duration>,
    /// The resources that the watch needs.
    pub need: Need,
    /// Whether to return a reader that is attached to the watch from its first event on.
    pub attached: bool,
    /// The memory that its specification holds until the watch exists; [`Handle`](super::Handle)
    /// takes it.
    pub memory: Option<Taken>,
}

/// A file descriptor that TakeFd takes out of the daemon.
#[derive(Debug)]
pub struct TakenFd {
    /// The descriptor.
    pub fd: std::os::fd::OwnedFd,
    /// The cursor of the watch's `Closed`.
    pub closed: Cursor,
    /// The number of bytes that the daemon received from it.
    pub received: u64,
}

/// The record of a watch. A loop may have a million of them, so fields that few watches have are in
/// a box.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) control: ControlBlock,
    pub(super) watch: Option<Box<dyn Watch>>,
    pub(super) spec: Encoded,
    pub(super) lifetime: Lifetime,
    pub(super) created: u64,
    pub(super) added: u64,
    pub(super) need: Need,
    pub(super) alarm: Option<AlarmId>,
    pub(super) rare: Option<Box<Rare>>,
    pub(super) kind: WatchKind,
    pub(super) closing: bool,
}

/// An encoded specification, which is many times smaller than the decoded one. Empty if there is
/// none: no specification has an empty encoding, because it has a kind.
#[derive(Debug)]
pub(super) struct Encoded(SmallVec<[u8; 16]>);

impl Encoded {
    pub(super) fn new(spec: Option<&proto::WatchSpec>) -> Self {
        let bytes = spec.map(prost::Message::encode_to_vec);
        Self(SmallVec::from_vec(bytes.unwrap_or_default()))
    }

    pub(super) fn decode(&self) -> Option<proto::WatchSpec> {
        // `new` encoded it, so this does not fail.
        let decode = || proto::WatchSpec::decode(&*self.0).ok();
        (!self.0.is_empty()).then(decode).flatten()
    }
}

/// The fields that most watches do not have.
#[derive(Debug, Default)]
pub(super) struct Rare {
    pub(super) name: Option<Arc<str>>,
    pub(super) labels: Labels,
    /// The id of the listener that accepted the connection; 0 if none did.
    pub(super) parent: u64,
    /// How long the watch stays readable once closed; `None` means as long as the policy says.
    pub(super) finished_ttl: Option<std::time::Duration>,
    /// The pause of its source, if the journal has no room for what it would read.
    pub(super) paused: Option<proto::SourcePause>,
    pub(super) removal: Option<Removal>,
    /// The calls that wait for the cursor of `Closed`.
    pub(super) on_closed: Vec<Reply<Cursor>>,
    pub(super) take: Option<(SourceId, Reply<TakenFd>)>,
    /// How the watch closed. Present once it has.
    pub(super) ending: Option<Ending>,
}

/// The end of a closed watch.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) closed: Closed,
    pub(super) seq: u64,
    pub(super) at: Now,
    /// When the watch is removed, in nanoseconds of the monotonic clock.
    pub(super) expires: u64,
    /// The status of a watch that has closed in an earlier life.
    pub(super) status: Option<Box<proto::watch::Status>>,
}

/// A requested removal of the watch.
#[derive(Debug, Default)]
pub(super) struct Removal {
    pub(super) request_id: String,
    pub(super) replies: Vec<Reply<Cursor>>,
}

impl Record {
    /// Returns the rare fields, if the watch has any.
    pub(super) fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    pub(super) fn rare_mut(&mut self) -> Option<&mut Rare> {
        self.rare.as_deref_mut()
    }

    /// Returns the rare fields, which are created if the watch has none.
    pub(super) fn rare_or_insert(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Returns how the watch closed; `None` while it is open.
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.rare()?.ending.as_ref()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.ending().is_some()
    }

    pub(super) const fn id(&self) -> u64 {
        self.control.about.watch
    }

    pub(super) fn name(&self) -> Option<&Arc<str>> {
        self.rare()?.name.as_ref()
    }

    /// Returns the name, or an empty text if the watch has none.
    pub(super) fn name_text(&self) -> String {
        self.name()
            .map(|name| (**name).to_owned())
            .unwrap_or_default()
    }

    /// Returns the labels; `None` if there are none.
    pub(super) fn labels(&self) -> Option<&Labels> {
        Some(&self.rare()?.labels)
    }

    pub(super) fn finished_ttl(&self) -> Option<std::time::Duration> {
        self.rare()?.finished_ttl
    }

    /// Removes the pause of its source and returns it.
    pub(super) fn unpause(&mut self) -> Option<proto::SourcePause> {
        self.rare_mut()?.paused.take()
    }

    /// Returns the state that is special to the watch's kind.
    pub(super) fn status(&self, driver: &dyn Driver) -> Option<proto::watch::Status> {
        match &self.watch {
            Some(watch) => watch.status(driver),
            None => self.ending()?.status.as_deref().cloned(),
        }
    }

    /// Returns the number of bytes that a transport received; 0 for other kinds.
    pub(super) fn received(&self, driver: &dyn Driver) -> u64 {
        match self.status(driver) {
            Some(proto::watch::Status::Transport(transport)) => transport.received_bytes,
            _ => 0,
        }
    }

    /// Returns the watch as clients see it.
    /// Returns what it survives on a loop that survives a crash.
    fn survives(&self, driver: &dyn Driver) -> Survives {
        let open = self.watch.as_ref();
        match open.is_none_or(|watch| watch.keep(driver).is_some()) {
            true => Survives::Crash,
            false => Survives::None,
        }
    }

    /// `most` is what its loop survives.
    pub(super) fn view(
        &self,
        journal: &Journal,
        driver: &dyn Driver,
        most: Survives,
    ) -> proto::Watch {
        let (state, ending) = match self.ending() {
            None if self.closing => (proto::WatchState::Closing, None),
            None => (proto::WatchState::Open, None),
            ending => (proto::WatchState::Closed, ending),
        };
        let lifetime = self.lifetime.to_proto();
        proto::Watch {
            watch_id: self.id(),
            name: self.name_text(),
            labels: self.labels().map(|l| (**l).clone()).unwrap_or_default(),
            user_data: self.control.about.user_data,
            watch_kind: self.kind.name().to_owned(),
            state: state.into(),
            spec: self.spec.decode(),
            created: Some(clock::timestamp(self.created)),
            added: Some(journal.cursor(self.added).into()),
            closed: ending.map(|ending| ending.closed.clone()),
            closed_at: ending.map(|ending| clock::timestamp(ending.at.realtime)),
            closed_cursor: ending.map(|ending| journal.cursor(ending.seq).into()),
            survives: proto::Survives::from(self.survives(driver).min(most)).into(),
            lifetime: lifetime.lifetime.into(),
            at_lifetime_end: lifetime.at_end.into(),
            lease: lifetime.lease.filter(|_| !self.is_closed()),
            lease_left: lifetime.left.filter(|_| !self.is_closed()),
            parent_watch_id: self.rare().map_or(0, |rare| rare.parent),
            source_pause: self.rare().and_then(|rare| rare.paused),
            status: self.status(driver),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop may have a million watches, and each has a record.
    #[test]
    fn a_record_is_small() {
        assert!(size_of::<Record>() <= 152, "{} bytes", size_of::<Record>());
    }
}
