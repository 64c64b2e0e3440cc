//! Takes up a loop of an earlier life of the daemon.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::EventLoop;
use super::kept::{self, Clients, FoundWatch, Kept};
use super::record::{Encoded, Record};
use crate::access::Principal;
use crate::driver;
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Epoch, Kind, LoopState, Recovered};
use crate::faults::{self, Point};
use crate::journal::{self, About, Journal, Memory, Outbox};
use crate::kinds::WatchKind;
use crate::proto::state::KeptDescriptor;
use crate::state::{self, Arena, Found, Owner, Uncommitted};
use crate::watch::{ControlBlock, End, Place, Resumption, Watch};

/// Has what earlier lives have left open.
pub trait Revive: Send + Sync {
    /// Makes a watch again, from its specification. It is not started.
    ///
    /// # Errors
    /// Its kind ends with the daemon, or the system refuses something.
    fn revive(&self, owner: &Principal, found: &FoundWatch) -> Result<Box<dyn Watch>>;

    /// Returns whether the keeper has ended with the life before, so that nothing was left open.
    fn is_alone(&self) -> bool;

    /// Closes a descriptor that no watch has taken. Returns false if one has.
    fn close(&self, left: &KeptDescriptor) -> bool;
}

/// What an earlier life has left of a loop.
pub struct Remains {
    /// Its journal.
    pub journal: journal::Recovered,
    /// Its records, and what its driver has left.
    pub records: Vec<Found>,
    /// What tells what the driver has transferred last, see [`driver::needed`].
    pub needed: Option<OwnedFd>,
    /// The name of its history.
    pub epoch: Epoch,
    /// When it was made, realtime nanoseconds.
    pub created: u64,
    /// What its readers are told.
    pub told: Recovered,
    /// Makes its watches again.
    pub revive: Arc<dyn Revive>,
}

impl std::fmt::Debug for Remains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remains")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// What was found of a loop, not in use yet.
pub(super) struct Looked {
    remains: Parts,
    kept: Kept,
    loop_state: LoopState,
    last_id: u64,
    watches: Vec<FoundWatch>,
    transfers: Transfers,
}

/// What an earlier driver has left. It is needed until the turn is committed that makes use of it.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    // Given back before the descriptor of which they tell is closed.
    found: Vec<Found>,
    needed: Option<OwnedFd>,
}

/// What a loop goes on with.
pub(super) struct Before {
    pub(super) created: u64,
    state: LoopState,
    last_id: u64,
    told: Recovered,
    watches: Vec<FoundWatch>,
    transfers: Transfers,
    revive: Arc<dyn Revive>,
}

/// What a loop begins with.
pub(super) struct Opened {
    pub(super) journal: Arc<Journal>,
    pub(super) outbox: Outbox,
    pub(super) kept: Option<Kept>,
    /// `None` for a new loop.
    pub(super) before: Option<Before>,
}

struct Parts {
    journal: journal::Recovered,
    epoch: Epoch,
    created: u64,
    told: Recovered,
    revive: Arc<dyn Revive>,
}

impl Remains {
    pub(super) fn look(self, arena: &Arc<Arena>, owner: Owner) -> Looked {
        let committed = self.journal.committed();
        let (mut found, records): (Vec<_>, Vec<_>) = self
            .records
            .into_iter()
            .partition(|found| found.kind != state::Kind::Records);
        // A life between has used some, and was killed before it gave them back.
        found.retain(|found| !(1..=committed).contains(&found.used_in()));
        let needed = self.needed;
        let (kept, loop_state, last_id, watches) =
            Kept::recover(Arc::clone(arena), owner, records, committed);
        Looked {
            remains: Parts {
                journal: self.journal,
                epoch: self.epoch,
                created: self.created,
                told: self.told,
                revive: self.revive,
            },
            kept,
            loop_state,
            last_id,
            watches,
            transfers: Transfers { found, needed },
        }
    }
}

impl Looked {
    /// Takes the journal over.
    pub(super) fn open(self, limits: journal::Limits, memory: &Arc<Memory>) -> Result<Opened> {
        let Self {
            remains,
            kept,
            loop_state,
            last_id,
            watches,
            transfers,
        } = self;
        let known = watches.iter().map(|found| {
            let labels = Arc::new(found.watch.labels.clone());
            (found.id, labels, found.watch.added)
        });
        let (journal, outbox) = Journal::recover(
            limits,
            memory,
            remains.epoch,
            remains.journal,
            known,
            |_, _| (),
        )?;
        let before = Before {
            created: remains.created,
            state: loop_state,
            last_id,
            told: remains.told,
            watches,
            transfers,
            revive: remains.revive,
        };
        Ok(Opened {
            journal,
            outbox,
            kept: Some(kept),
            before: Some(before),
        })
    }
}

impl EventLoop {
    /// Goes on where the life before has ended. What it returns is needed until this is committed.
    pub(super) fn go_on(&mut self, before: Before) -> Transfers {
        let last_id = before.last_id;
        self.state = before.state;
        let need = self.own_need(before.state);
        self.outbox.reserve_again(need);
        // The enum's values are small numbers.
        self.shared
            .state
            .store(before.state as u8, Ordering::Release);
        let Before {
            told,
            watches,
            transfers,
            revive,
            ..
        } = before;
        faults::point(Point::LoopFound);
        let needed = transfers.needed.as_ref().map(OwnedFd::as_fd);
        // Streams whose descriptors were closed have ended, whatever of them was not told.
        let uncommitted = match revive.is_alone() {
            true => Ok(Uncommitted::default()),
            false => driver::uncommitted(&transfers.found, needed),
        };
        let uncommitted = uncommitted.unwrap_or_else(|errno| {
            tracing::error!(%errno, "what was transferred last is not known");
            self.outbox.lose();
            Uncommitted::default()
        });
        let turn = self.outbox.turn();
        for found in &transfers.found {
            found.use_in(turn);
        }
        faults::point(Point::TransfersFound);
        self.take_up(told, watches, &uncommitted, &*revive);
        faults::point(Point::WatchesTakenUp);
        self.watches.used_up_to(last_id);
        transfers
    }

    /// Takes up the watches of an earlier life, after it has told that it goes on.
    fn take_up(
        &mut self,
        told: Recovered,
        watches: Vec<FoundWatch>,
        uncommitted: &Uncommitted,
        revive: &dyn Revive,
    ) {
        let mut slots = Vec::new();
        let mut clients = Clients::default();
        // Room is set aside for all of them before anything is told.
        for found in watches {
            match self.restore(&found, &mut clients) {
                Ok((slot, is_over)) => slots.push((slot, found, is_over)),
                Err(error) => {
                    tracing::error!(watch = found.id, %error, "a watch of the life before is lost");
                    self.outbox.lose();
                }
            }
        }
        self.emit(Kind::Recovered(told));
        for (slot, found, is_over) in slots {
            if !self.watches[slot].is_closed() {
                self.go_on_with((slot, is_over), found, uncommitted, revive);
            }
        }
        if let Some(kept) = &mut self.kept {
            kept.sift_accepted(|socket| revive.close(socket));
        }
    }

    /// Returns a place for a connection among those of the listener that accepted it.
    fn place_of(&self, found: &FoundWatch) -> Option<Place> {
        let listener = self.watches.by_id(found.watch.parent)?;
        self.watches[listener].watch.as_ref()?.place()
    }

    /// Enters a watch of an earlier life in the tables. Returns whether its lifetime is over, too.
    fn restore(&mut self, found: &FoundWatch, clients: &mut Clients) -> Result<(usize, bool)> {
        let unknown = Error::Internal("a kind of watch that this version does not know");
        let kind: WatchKind = found.watch.kind.parse().map_err(|_| unknown)?;
        let need = kept::need_of(&found.state);
        self.ledger.take_again(&mut self.outbox, need)?;
        let labels = Arc::new(found.watch.labels.clone());
        let key = self.watches.next_key();
        let about = About {
            watch: found.id,
            user_data: found.watch.user_data,
            labels: self.shared.journal.intern_labels(&labels),
        };
        let (lifetime, is_over) = kept::lifetime_of(found.watch.lifetime.as_ref(), clients);
        let mut record = Record {
            control: ControlBlock::new(key, about),
            watch: None,
            spec: Encoded::new(found.watch.spec.as_ref()),
            lifetime,
            created: found.watch.created,
            added: found.watch.added,
            need,
            alarm: None,
            rare: None,
            kind,
            closing: false,
        };
        let ttl = found.watch.finished_ttl;
        let rare = record.rare_or_insert();
        rare.name = Some(found.watch.name.as_str())
            .filter(|n| !n.is_empty())
            .map(Arc::from);
        rare.labels = labels;
        rare.parent = found.watch.parent;
        rare.finished_ttl = ttl.and_then(|ttl| std::time::Duration::try_from(ttl).ok());
        let ending = found.state.ending.clone().map(kept::ending_of);
        let expires = ending.as_ref().map(|ending| ending.expires);
        let bound = record.lifetime.process().map(Arc::clone);
        let (slot, first_bound) = self.watches.insert(record);
        if first_bound && let Some(process) = bound {
            self.end_after_process(process);
        }
        if let Some(expires) = expires {
            self.watches[slot].rare_or_insert().ending = ending;
            self.watches.closed(slot, expires);
        }
        Ok((slot, is_over))
    }

    /// Goes on with an open watch, whose lifetime may be over, or closes it as lost.
    fn go_on_with(
        &mut self,
        (slot, is_over): (usize, bool),
        found: FoundWatch,
        uncommitted: &Uncommitted,
        revive: &dyn Revive,
    ) {
        faults::word(&found.watch.name);
        let is_closing = found.state.closing;
        let place = self.place_of(&found);
        let resumed = revive
            .revive(&self.shared.principal, &found)
            .and_then(|watch| {
                self.watches[slot].watch = Some(watch);
                let of = found.state.of.ok_or_else(not_kept)?;
                let files = kept::descriptors_of(of.clone()).into_iter();
                let numbers: Vec<_> = files.map(|file| file.number).collect();
                let kept = Resumption {
                    of,
                    progress: found.progress,
                    uncommitted: uncommitted.of(&numbers),
                    unsent: found.unsent,
                    place,
                    in_doubt: found.in_doubt,
                    paths: self.shared.paths.lock().clone(),
                };
                let polled = self.is_polled();
                self.call(slot, polled, |watch, cx| watch.resume(cx, kept))
                    .unwrap_or_else(|| Err(not_kept()))
            });
        if let Err(error) = resumed {
            let record = &mut self.watches[slot];
            record.watch = None;
            record.closing = true;
            record.control.finished = true;
            record.control.end = Some(Box::new(End {
                reason: CloseReason::Lost,
                error: Some(SystemError::lost(error.to_string())),
                failed_attempts: Vec::new(),
            }));
            self.record_closed(slot);
            return;
        }
        if is_over {
            self.lifetime_over(slot, CloseReason::ProcessEnded);
        }
        if is_closing {
            self.end(slot, CloseReason::Removed);
        }
        self.with_watch(slot, |_, _| ());
    }
}

fn not_kept() -> Error {
    Error::wrong_state("nothing of it was kept")
}
