//! Slots: each keeps a file descriptor, for a limited time, between its handover and its claim.

use std::collections::HashSet;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use scopeguard::ScopeGuard;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::table::{Held, Name, Table};
use crate::access::{ClientProcess, Peer, Principal};
use crate::descriptors::Closing;
use crate::error::{Error, Result, SystemError};

/// The number of bytes of a slot.
pub const SLOT_BYTES: usize = 16;

/// The number that names a file descriptor which was handed over. One that the daemon has chosen
/// cannot be guessed; one that a client process has chosen cannot be used by another process.
pub type Slot = [u8; SLOT_BYTES];

/// Default of `limits.slots`.
pub const SLOTS_DEFAULT: usize = 4096;

/// How long a request waits for a slot that it names and that has not arrived yet.
pub const SLOT_WAIT: Duration = Duration::from_secs(1);

/// How long a slot can be claimed.
pub const SLOT_TTL: Duration = Duration::from_secs(30);

/// The table of slots; [`serve`](super::serve) closes expired ones.
pub struct Slots {
    capacity: usize,
    ttl: Duration,
    table: Mutex<Table>,
    /// Notified when the earliest deadline may have changed.
    rescheduled: Notify,
}

impl Slots {
    /// Makes a table of at most `capacity` slots, each of which can be claimed for `ttl`.
    #[must_use]
    pub fn new(capacity: usize, ttl: Duration) -> Arc<Self> {
        Self::with(capacity, ttl, Table::default())
    }

    pub(super) fn with(capacity: usize, ttl: Duration, table: Table) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            ttl,
            table: Mutex::new(table),
            rescheduled: Notify::new(),
        })
    }

    /// Returns the number of slots in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Whether no slot is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts each descriptor into a slot, and returns the slots in order. Only the giver's principal
    /// can claim them. If the giver chose the slots itself (`own`, one per descriptor), only the
    /// giver's process can.
    ///
    /// # Errors
    /// [`Error::Limit`] if there is no room for all descriptors, [`Error::NameTaken`] if a slot of
    /// `own` is in use, or an error of the system. Then all descriptors are closed.
    pub fn give(
        &self,
        giver: &Peer,
        own: Option<&[Slot]>,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Vec<Slot>> {
        let given = self.try_give(giver, own, &mut fds);
        close_in_background(fds);
        given
    }

    /// Like `give`, but leaves all descriptors in `fds` if it fails.
    fn try_give(
        &self,
        giver: &Peer,
        own: Option<&[Slot]>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Vec<Slot>> {
        let named = |slot: &Slot| match own {
            Some(_) => Name::own(giver, *slot),
            None => Name::Issued(*slot),
        };
        let slots = match own {
            Some(own) => own.to_vec(),
            None => random_slots(fds.len())?,
        };
        let mut table = self.table.lock();
        self.check_room(&table, &giver.principal, fds.len())?;
        let mut seen = HashSet::new();
        let again = slots
            .iter()
            .find(|slot| !seen.insert(**slot) || table.contains(&named(slot)));
        if let Some(slot) = again {
            return Err(Error::NameTaken {
                what: "slot",
                name: format!("{:032x}", u128::from_be_bytes(*slot)),
                differs: None,
            });
        }
        // `expire` waits for deadlines of slots with a descriptor only. If there was none, it must
        // be woken for the new ones.
        let first = !table.held().any(|held| held.fd.is_some());
        let deadline = Instant::now() + self.ttl;
        for (slot, fd) in slots.iter().zip(fds.drain(..)) {
            let held = Held {
                owner: giver.principal.clone(),
                giver: giver.process.clone(),
                deadline,
                fd: Some(fd),
                kept: None,
            };
            let name = named(slot);
            table.insert(name.clone(), held);
            // Before the client is told.
            table.keep(&name);
        }
        drop(table);
        if first {
            self.rescheduled.notify_one();
        }
        Ok(slots)
    }

    fn check_room(&self, table: &Table, owner: &Principal, more: usize) -> Result<()> {
        let Some(most) = table.exceeded(owner, more, self.capacity) else {
            return Ok(());
        };
        let limit = if most < self.capacity {
            "three quarters of limits.slots (the share of one principal)"
        } else {
            "limits.slots"
        };
        Err(Error::Limit {
            limit,
            value: u64::try_from(most).unwrap_or(u64::MAX),
            hint: "claim what was handed over, or let it expire".into(),
        })
    }

    /// Waits until all of these slots have been given, since a request may overtake the datagram
    /// that gives its slots. It waits [`SLOT_WAIT`] in all at most. Values that are not slots are
    /// skipped.
    pub async fn arrived(&self, peer: &Peer, slots: impl Iterator<Item = &[u8]>) {
        let wait = async {
            for slot in slots.filter_map(|slot| Slot::try_from(slot).ok()) {
                self.arrives(peer, slot).await;
            }
        };
        // After the time, claiming a slot that has not arrived fails with an error.
        let _ = timeout(SLOT_WAIT, wait).await;
    }

    async fn arrives(&self, peer: &Peer, slot: Slot) {
        let name = Name::own(peer, slot);
        let comes = {
            let mut table = self.table.lock();
            if table.contains(&Name::Issued(slot)) || table.contains(&name) {
                return;
            }
            table.wait_for(&name)
        };
        scopeguard::defer!(self.table.lock().wait_no_more(&name));
        comes.await;
    }

    /// Reserves a slot for a descriptor of `owner` that is still to come.
    ///
    /// # Errors
    /// [`Error::Limit`] if there is no room, or an error of the system.
    pub fn reserve(self: &Arc<Self>, owner: &Principal) -> Result<EmptySlot> {
        let slot = random_slots(1)?.pop().unwrap_or_default();
        let mut table = self.table.lock();
        self.check_room(&table, owner, 1)?;
        let place = Held {
            owner: owner.clone(),
            giver: None,
            deadline: Instant::now(),
            fd: None,
            kept: None,
        };
        table.insert(Name::Issued(slot), place);
        drop(table);
        Ok(EmptySlot {
            slots: Arc::clone(self),
            slot,
        })
    }

    /// Takes the descriptor out of a slot, whether the daemon or the peer has chosen the slot. The
    /// slot is used up once the descriptor is [kept](Claimed::keep). `field` is the field of the
    /// request that names the slot.
    ///
    /// # Errors
    /// [`Error::InvalidField`] if the slot is not 16 bytes; [`Error::SlotNotFound`] if it was never
    /// given, is claimed, has expired, or belongs to another client.
    pub fn claim(
        self: &Arc<Self>,
        field: &'static str,
        peer: &Peer,
        slot: &[u8],
    ) -> Result<Claimed> {
        let slot = Slot::try_from(slot).map_err(|_| {
            let given = slot.len();
            Error::invalid(field, format!("must have {SLOT_BYTES} bytes, not {given}"))
        })?;
        let mut table = self.table.lock();
        let names = [Name::Issued(slot), Name::own(peer, slot)];
        let name = names.into_iter().find(|name| table.contains(name));
        let not_found = || Error::SlotNotFound {
            field: field.into(),
        };
        let name = name.ok_or_else(not_found)?;
        let held = table
            .get_mut(&name)
            .filter(|held| held.owner == peer.principal && Instant::now() < held.deadline);
        let (fd, giver) = held
            .and_then(|held| Some((held.fd.take()?, held.giver.clone())))
            .ok_or_else(not_found)?;
        drop(table);
        let slots = Arc::clone(self);
        let back = name.clone();
        let put_back: PutBack = Box::new(move |fd| slots.put_back(&back, fd));
        Ok(Claimed {
            slots: Arc::clone(self),
            name,
            fd: scopeguard::guard(fd, put_back),
            giver,
        })
    }

    fn put_back(&self, name: &Name, fd: OwnedFd) {
        let mut table = self.table.lock();
        if let Some(held) = table.get_mut(name) {
            held.fd = Some(fd);
        }
        table.keep(name);
        drop(table);
        self.rescheduled.notify_one();
    }

    /// Closes the descriptors of slots when they expire; never returns.
    pub(super) async fn expire(&self) {
        loop {
            let next = self.next_deadline();
            tokio::select! {
                () = self.rescheduled.notified() => {}
                () = sleep_until(next) => {}
            }
            let expired = self.table.lock().take_expired(Instant::now());
            if !expired.is_empty() {
                tracing::debug!(count = expired.len(), "slots expired");
                close_in_background(expired);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let table = self.table.lock();
        let waiting = table.held().filter(|held| held.fd.is_some());
        waiting.map(|held| held.deadline).min()
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots")
            .field("len", &self.len())
            .field("capacity", &self.capacity)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

type PutBack = Box<dyn FnOnce(OwnedFd) + Send + Sync>;

/// A slot whose descriptor is still to come. Dropping it without [`EmptySlot::fill`] frees the slot.
#[derive(Debug)]
pub struct EmptySlot {
    slots: Arc<Slots>,
    slot: Slot,
}

impl EmptySlot {
    /// Puts the descriptor into the slot. Its time to be claimed begins now.
    #[must_use]
    pub fn fill(self, fd: OwnedFd) -> Slot {
        let mut table = self.slots.table.lock();
        let name = Name::Issued(self.slot);
        if let Some(place) = table.get_mut(&name) {
            place.deadline = Instant::now() + self.slots.ttl;
            place.fd = Some(fd);
        }
        table.keep(&name);
        drop(table);
        self.slots.rescheduled.notify_one();
        self.slot
    }
}

impl Drop for EmptySlot {
    fn drop(&mut self) {
        let mut table = self.slots.table.lock();
        let name = Name::Issued(self.slot);
        if table.get_mut(&name).is_some_and(|place| place.fd.is_none()) {
            table.remove(&name);
        }
    }
}

/// A descriptor that was taken out of its slot. Dropping it without [`Claimed::keep`] puts it back,
/// and it expires at the same time as before.
#[derive(Debug)]
pub struct Claimed {
    slots: Arc<Slots>,
    name: Name,
    fd: ScopeGuard<OwnedFd, PutBack>,
    /// The client process that gave it, if known.
    pub giver: Option<Arc<ClientProcess>>,
}

impl Claimed {
    /// Has later lives not find the slot: its descriptor is about to leave the daemon. That does not
    /// hold if it is put back after all.
    pub(super) fn promise(&self) {
        self.slots.table.lock().forget(&self.name);
    }

    /// Keeps the descriptor and frees the slot. Returns it with the client process that gave it.
    #[must_use]
    pub fn keep(self) -> (OwnedFd, Option<Arc<ClientProcess>>) {
        self.slots.table.lock().remove(&self.name);
        (ScopeGuard::into_inner(self.fd), self.giver)
    }
}

impl AsFd for Claimed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn random_slots(count: usize) -> Result<Vec<Slot>> {
    let mut slots = vec![Slot::default(); count];
    getrandom::fill(slots.as_flattened_mut()).map_err(|error| SystemError {
        errno: error.raw_os_error().unwrap_or_default(),
        step: "getrandom",
        detail: String::new(),
    })?;
    Ok(slots)
}

/// Closes descriptors on a thread that may block, since the last close(2) of a socket with
/// SO_LINGER blocks.
pub(super) fn close_in_background(fds: Vec<OwnedFd>) {
    if fds.is_empty() {
        return;
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || drop((fds, Closing)));
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
