//! Registers watches in three steps, so that nothing is started for a watch that the loop must
//! refuse. First, room and the name are reserved. Second, everything that may block or fail is
//! prepared off the loop's thread. Third, the watch is added.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::command::Command;
use super::compare;
use super::mailbox::{Mailbox, Message, Reply};
use super::{EventLoop, Registration};
use crate::access::Principal;
use crate::error::{Error, Result};
use crate::journal::Reader;
use crate::proto;
use crate::watch::{Need, Order, Prepare, Watch};

/// The largest number of registrations that wait until another registration of the same name is
/// decided.
const WAITERS_MAX: usize = 1024;

/// A registration that was begun and not decided.
#[derive(Debug)]
struct Pending {
    name: Option<Arc<str>>,
    need: Need,
    /// The registrations of the same name that wait until this one is decided.
    waiters: Vec<oneshot::Sender<()>>,
}

/// The registrations that were begun and not decided, by ticket, and their names.
#[derive(Debug, Default)]
pub(super) struct Registrations {
    pending: HashMap<u64, Pending>,
    names: HashMap<Arc<str>, u64>,
    last_ticket: u64,
}

impl Registrations {
    /// Returns `None` if no registration of that name is undecided. Otherwise returns a channel
    /// that reports when it is decided.
    ///
    /// # Errors
    /// Too many registrations wait for it already.
    fn undecided(&mut self, name: &str) -> Result<Option<oneshot::Receiver<()>>> {
        let ticket = self.names.get(name);
        let Some(pending) = ticket.and_then(|ticket| self.pending.get_mut(ticket)) else {
            return Ok(None);
        };
        if pending.waiters.len() >= WAITERS_MAX {
            let limit = "registrations waiting for one name";
            return Err(Error::limit(limit, WAITERS_MAX as u64));
        }
        let (sender, receiver) = oneshot::channel();
        pending.waiters.push(sender);
        Ok(Some(receiver))
    }

    /// Begins a registration for which room was reserved. Returns its ticket.
    fn begin(&mut self, name: Option<&Arc<str>>, need: Need) -> u64 {
        self.last_ticket += 1;
        if let Some(name) = name {
            self.names.insert(Arc::clone(name), self.last_ticket);
        }
        let pending = Pending {
            name: name.map(Arc::clone),
            need,
            waiters: Vec::new(),
        };
        self.pending.insert(self.last_ticket, pending);
        self.last_ticket
    }

    /// Decides a registration: frees its name and wakes those that wait for it. Returns what was
    /// reserved; `None` if the loop began to close after the ticket was given.
    fn decide(&mut self, ticket: u64) -> Option<Need> {
        let pending = self.pending.remove(&ticket)?;
        if let Some(name) = &pending.name {
            self.names.remove(name);
        }
        Some(pending.need)
    }

    /// Drops all registrations. Returns what was reserved for each.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = Need> + use<> {
        self.names.clear();
        std::mem::take(&mut self.pending)
            .into_values()
            .map(|pending| pending.need)
    }
}

/// The right to add a watch: room is reserved for it, and no load of the loop can refuse the
/// command that uses the ticket. A ticket that is dropped releases its room.
#[derive(Debug)]
pub(super) struct Ticket {
    mailbox: Arc<Mailbox>,
    number: u64,
    /// Whether the ticket has not been used.
    open: bool,
}

impl Ticket {
    /// Sends the loop the command that uses the room of this ticket.
    pub(super) fn complete(self, command: impl FnOnce(u64) -> Command) {
        let mailbox = Arc::clone(&self.mailbox);
        mailbox.push(Message::Internal(command(self.into_number())));
    }

    /// Returns the ticket's number. The caller must use or release its room.
    fn into_number(mut self) -> u64 {
        self.open = false;
        self.number
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            let ticket = self.number;
            self.mailbox
                .push(Message::Internal(Command::Abandon { ticket }));
        }
    }
}

/// The result of setting room aside for a registration.
#[derive(Debug)]
enum Admission {
    /// Room is set aside.
    Ticket(Ticket),
    /// A watch of that name and an equal specification exists.
    Exists(Box<Registered>),
    /// Another registration of that name is not decided yet. The channel reports when it is.
    Undecided(oneshot::Receiver<()>),
}

/// The answer to a request to add a watch.
#[derive(Debug)]
pub(super) enum AddOutcome {
    /// The watch exists.
    Exists(Box<Registered>),
    /// Another registration of that name is being decided; then this one is to be sent again.
    Undecided(oneshot::Receiver<()>, Box<(Registration, Order)>),
}

/// A watch that exists.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) watch: proto::Watch,
    pub(super) existed: bool,
    pub(super) reader: Option<Reader>,
}

impl EventLoop {
    /// Reserves everything that a watch needs.
    fn admit(&mut self, registration: &Registration) -> Result<Admission> {
        self.check_open()?;
        if let Some(name) = &registration.name {
            if let Some(slot) = self.watches.by_name(name) {
                return self.existing(slot, registration);
            }
            if let Some(decided) = self.registrations.undecided(name)? {
                return Ok(Admission::Undecided(decided));
            }
        }
        let need = registration.need;
        self.ledger.take(&mut self.outbox, need)?;
        Ok(Admission::Ticket(Ticket {
            mailbox: Arc::clone(&self.mailbox),
            number: self.registrations.begin(registration.name.as_ref(), need),
            open: true,
        }))
    }

    /// Adds a watch: at once if it can be built here, else once it is prepared elsewhere.
    pub(super) fn add(
        &mut self,
        registration: Registration,
        order: Order,
        reply: Reply<AddOutcome>,
    ) {
        let result = match (self.admit(&registration), order) {
            (Ok(Admission::Ticket(ticket)), Order::Later(prepare)) => {
                return self.prepare(registration, None, prepare, ticket, reply);
            }
            (Ok(Admission::Ticket(ticket)), Order::Resolved(owner, prepare)) => {
                return self.prepare(registration, Some(owner), prepare, ticket, reply);
            }
            (Ok(Admission::Ticket(ticket)), Order::Now(build)) => {
                let ticket = ticket.into_number();
                let built = build().inspect_err(|_| self.abandon(ticket));
                built.and_then(|watch| self.register(ticket, registration, watch))
            }
            (Ok(Admission::Exists(registered)), _) => Ok(*registered),
            (Ok(Admission::Undecided(decided)), order) => {
                let asked = Box::new((registration, order));
                return self.reply(reply, Ok(AddOutcome::Undecided(decided, asked)));
            }
            (Err(error), _) => Err(error),
        };
        let result = result.map(|registered| AddOutcome::Exists(registered.into()));
        self.reply(reply, result);
    }

    /// Prepares the watch on another thread, which then sends the loop the command to add it: a
    /// thread that resolves names for `resolves`, if that is set. The preparation begins with the
    /// turn's replies, when the journal shows that room is set aside.
    fn prepare(
        &mut self,
        registration: Registration,
        resolves: Option<Principal>,
        prepare: Prepare,
        ticket: Ticket,
        reply: Reply<AddOutcome>,
    ) {
        let services = Arc::clone(&self.services);
        let work = {
            let services = Arc::clone(&services);
            move || prepare(&services)
        };
        let tell = move |prepared| match prepared {
            Ok(watch) => ticket.complete(|ticket| Command::Register {
                ticket,
                registration: Box::new(registration),
                watch,
                reply,
            }),
            Err(error) => {
                // Sends the loop the command that releases the room, before the caller gets the
                // error.
                drop(ticket);
                reply.send(Err(error));
            }
        };
        self.replies.push(Box::new(move || match resolves {
            Some(owner) => services.resolver.run(&owner, work, tell).keep(),
            None => services.starters.run(work, tell),
        }));
    }

    fn existing(&self, slot: usize, registration: &Registration) -> Result<Admission> {
        let record = &self.watches[slot];
        let taken = |differs: Option<String>| Error::NameTaken {
            what: "watch",
            name: record.name_text(),
            differs,
        };
        if !registration.or_existing {
            return Err(taken(None));
        }
        let differs = match (record.spec.decode(), &registration.spec) {
            (Some(theirs), Some(ours)) => compare::difference(&theirs, ours),
            (None, None) => None,
            _ => Some("spec".to_owned()),
        };
        if let Some(field) = differs {
            return Err(taken(Some(field)));
        }
        Ok(Admission::Exists(Box::new(Registered {
            watch: record.view(&self.shared.journal, &*self.driver, self.shared.survives),
            existed: true,
            reader: None,
        })))
    }

    /// Adds the watch for which `ticket` reserved room.
    pub(super) fn register(
        &mut self,
        ticket: u64,
        registration: Registration,
        watch: Box<dyn Watch>,
    ) -> Result<Registered> {
        // A loop that began to close meanwhile has decided all of its tickets.
        let decided = self.registrations.decide(ticket);
        decided.ok_or_else(|| self.closed_error())?;
        let id = self.watches.next_id();
        let journal = &self.shared.journal;
        let attached = registration.attached;
        let reader = attached.then(|| journal.reader_from_birth(id, self.outbox.newest()));
        let slot = self.insert(registration, watch, 0);
        let gone = Error::Internal("a watch was removed while it was added");
        let record = self.watches.get(slot).filter(|record| record.id() == id);
        Ok(Registered {
            watch: record.ok_or(gone)?.view(
                &self.shared.journal,
                &*self.driver,
                self.shared.survives,
            ),
            existed: false,
            reader,
        })
    }

    /// Releases the room and the name of a registration whose preparation failed.
    pub(super) fn abandon(&mut self, ticket: u64) {
        if let Some(need) = self.registrations.decide(ticket) {
            self.ledger.release(&mut self.outbox, need);
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
