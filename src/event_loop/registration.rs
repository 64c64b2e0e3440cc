//! Registering in two steps, so that nothing is started for a watch that cannot be:
//! room and name are set aside, then what may block or fail is prepared off the
//! loop's thread, then the watch exists.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::compare;
use super::mailbox::{Mailbox, Message};
use super::{EventLoop, Registration};
use crate::error::{Error, Result};
use crate::journal::Reader;
use crate::proto;
use crate::watch::{Build, Need, Watch};

/// Registrations that wait for another one of the same name to be decided.
const WAITERS_MAX: usize = 1024;

/// A registration that was begun.
#[derive(Debug)]
pub(super) struct Pending {
    name: Option<Arc<str>>,
    need: Need,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Pending {
    pub(super) const fn need(&self) -> Need {
        self.need
    }
}

/// Room set aside for a watch, and a place in the mailbox for what comes of it: no load of the
/// loop can refuse what was started under a ticket. Dropped, it gives the room back.
#[derive(Debug)]
pub(super) struct Ticket {
    mailbox: Arc<Mailbox>,
    number: u64,
    /// Nothing has come of it yet.
    open: bool,
}

impl Ticket {
    /// Has the loop do this with the room of that number.
    pub(super) fn complete(self, with: impl FnOnce(&mut EventLoop, u64) + Send + 'static) {
        let mailbox = Arc::clone(&self.mailbox);
        let number = self.used();
        let command = Box::new(move |on: &mut EventLoop| with(on, number));
        mailbox.push(Message::Internal(command));
    }

    /// Its number, whose room is the caller's to use or give back from now on.
    fn used(mut self) -> u64 {
        self.open = false;
        self.number
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            let number = self.number;
            let command = Box::new(move |on: &mut EventLoop| on.abandon(number));
            self.mailbox.push(Message::Internal(command));
        }
    }
}

/// What came of asking for room.
#[derive(Debug)]
pub(super) enum Reserved {
    /// Room is set aside.
    Ticket(Ticket),
    /// A watch of that name and an equal specification exists.
    Exists(Box<Registered>),
    /// Another registration of that name is being decided.
    Undecided(oneshot::Receiver<()>),
}

/// A watch that exists.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) watch: proto::Watch,
    pub(super) existed: bool,
    pub(super) reader: Option<Reader>,
}

impl EventLoop {
    /// Sets aside everything that a watch takes.
    pub(super) fn reserve(&mut self, registration: &Registration) -> Result<Reserved> {
        self.check_open()?;
        if let Some(name) = &registration.name {
            if let Some(slot) = self.watches.by_name(name) {
                return self.existing(slot, registration);
            }
            if let Some(pending) = self.pending_names.get(name)
                && let Some(pending) = self.pending.get_mut(pending)
            {
                if pending.waiters.len() >= WAITERS_MAX {
                    let limit = "registrations waiting for one name";
                    return Err(Error::limit(limit, WAITERS_MAX as u64));
                }
                let (sender, receiver) = oneshot::channel();
                pending.waiters.push(sender);
                return Ok(Reserved::Undecided(receiver));
            }
        }
        self.ledger.take(&mut self.outbox, registration.need)?;
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        if let Some(name) = &registration.name {
            self.pending_names.insert(Arc::clone(name), ticket);
        }
        let pending = Pending {
            name: registration.name.clone(),
            need: registration.need,
            waiters: Vec::new(),
        };
        self.pending.insert(ticket, pending);
        Ok(Reserved::Ticket(Ticket {
            mailbox: Arc::clone(&self.mailbox),
            number: ticket,
            open: true,
        }))
    }

    /// As [`Self::reserve`], and the watch exists at once if it can be built here. What
    /// was not used is given back.
    pub(super) fn reserve_and_build(
        &mut self,
        registration: Registration,
        build: Option<Build>,
    ) -> Result<(Reserved, Option<Build>)> {
        match (self.reserve(&registration)?, build) {
            (Reserved::Ticket(ticket), Some(build)) => {
                let ticket = ticket.used();
                let built = build().inspect_err(|_| self.abandon(ticket))?;
                let registered = self.register(ticket, registration, built)?;
                Ok((Reserved::Exists(Box::new(registered)), None))
            }
            (reserved, build) => Ok((reserved, build)),
        }
    }

    fn existing(&self, slot: usize, registration: &Registration) -> Result<Reserved> {
        let record = &self.watches[slot];
        let taken = |differs: Option<String>| Error::NameTaken {
            what: "watch",
            name: record.name_text(),
            differs,
        };
        if !registration.or_existing {
            return Err(taken(None));
        }
        let differs = match (&record.spec, &registration.spec) {
            (Some(theirs), Some(ours)) => compare::difference(&theirs.decode(), ours),
            (None, None) => None,
            _ => Some("spec".to_owned()),
        };
        if let Some(field) = differs {
            return Err(taken(Some(field)));
        }
        Ok(Reserved::Exists(Box::new(Registered {
            watch: record.view(&self.shared.journal),
            existed: true,
            reader: None,
        })))
    }

    /// Makes the watch exist that `ticket` has set room aside for.
    pub(super) fn register(
        &mut self,
        ticket: u64,
        registration: Registration,
        watch: Box<dyn Watch>,
    ) -> Result<Registered> {
        // A loop that closed in between has let go of its tickets.
        let pending = self
            .pending
            .remove(&ticket)
            .ok_or_else(|| self.closed_error())?;
        if let Some(name) = &pending.name {
            self.pending_names.remove(name);
        }
        let id = self.watches.next_id();
        let journal = &self.shared.journal;
        let attached = registration.attached;
        let reader = attached.then(|| journal.reader_from_birth(id, self.outbox.newest()));
        let slot = self.insert(registration, watch, 0);
        let gone = Error::Internal("a watch went as it came");
        let record = self.watches.get(slot).filter(|record| record.id() == id);
        Ok(Registered {
            watch: record.ok_or(gone)?.view(&self.shared.journal),
            existed: false,
            reader,
        })
    }

    /// The preparation failed: room and name are free again.
    pub(super) fn abandon(&mut self, ticket: u64) {
        if let Some(pending) = self.pending.remove(&ticket) {
            if let Some(name) = &pending.name {
                self.pending_names.remove(name);
            }
            self.ledger.release(&mut self.outbox, pending.need);
        }
    }

    pub(super) fn closed_error(&self) -> Error {
        Error::LoopClosed {
            name: self.shared.full_name.clone(),
        }
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.closing.is_some() || self.is_over() {
            return Err(self.closed_error());
        }
        Ok(())
    }
}
