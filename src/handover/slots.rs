//! File descriptors between two hands: each in a slot, for a while.

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
use crate::error::{Error, Result, SystemError};

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 16;

/// Names a file descriptor that was handed over. Nobody can guess one of the daemon's choice, nor use
/// one of another process's.
pub type Slot = [u8; SLOT_BYTES];

/// Default of `limits.slots`.
pub const SLOTS_DEFAULT: usize = 4096;

/// How long a request that names a slot waits for it, if it is none of those there.
pub const SLOT_WAIT: Duration = Duration::from_secs(1);

/// How long a slot lives.
pub const SLOT_TTL: Duration = Duration::from_secs(30);

/// The table of slots; [`serve`](super::serve) closes what expires.
pub struct Slots {
    capacity: usize,
    ttl: Duration,
    table: Mutex<Table>,
    /// The earliest deadline may be another.
    rescheduled: Notify,
}

impl Slots {
    /// At most `capacity` slots, each claimable for `ttl`.
    #[must_use]
    pub fn new(capacity: usize, ttl: Duration) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            ttl,
            table: Mutex::default(),
            rescheduled: Notify::new(),
        })
    }

    /// How many slots are taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// No slot is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts each descriptor into a slot that only the giver's principal can claim, and where the
    /// giver chose them itself (`own`, as many as descriptors) only the giver's process; in order.
    ///
    /// # Errors
    /// [`Error::Limit`] if there is no room for all of them, [`Error::NameTaken`] for a number of the
    /// giver's own that is in use, or the system's; then all are closed.
    pub fn give(
        &self,
        giver: &Peer,
        own: Option<&[Slot]>,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Vec<Slot>> {
        let given = self.try_give(giver, own, &mut fds);
        close_aside(fds);
        given
    }

    /// Takes them all, or none.
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
        // Those whose claims are undecided wake nobody.
        let first = !table.held().any(|held| held.fd.is_some());
        let deadline = Instant::now() + self.ttl;
        for (slot, fd) in slots.iter().zip(fds.drain(..)) {
            let held = Held {
                owner: giver.principal.clone(),
                giver: giver.process.clone(),
                deadline,
                fd: Some(fd),
            };
            table.insert(named(slot), held);
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
            "limits.slots, three quarters of it for one principal,"
        } else {
            "limits.slots"
        };
        Err(Error::Limit {
            limit,
            value: u64::try_from(most).unwrap_or(u64::MAX),
            hint: "claim what was handed over, or let it expire",
        })
    }

    /// Waits until these slots, where they are the peer's own, are there: some may be on their way.
    /// After [`SLOT_WAIT`] in all it waits no longer. What is no slot is not waited for.
    pub async fn arrived(&self, peer: &Peer, slots: impl Iterator<Item = &[u8]>) {
        let wait = async {
            for slot in slots.filter_map(|slot| Slot::try_from(slot).ok()) {
                self.arrives(peer, slot).await;
            }
        };
        // Who claims one that did not come is told so.
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

    /// Sets a slot aside for a descriptor of `owner`'s that is still to come.
    ///
    /// # Errors
    /// [`Error::Limit`] if there is no room, or the system's.
    pub fn reserve(self: &Arc<Self>, owner: &Principal) -> Result<Reserved> {
        let slot = random_slots(1)?.pop().unwrap_or_default();
        let mut table = self.table.lock();
        self.check_room(&table, owner, 1)?;
        let place = Held {
            owner: owner.clone(),
            giver: None,
            deadline: Instant::now(),
            fd: None,
        };
        table.insert(Name::Issued(slot), place);
        drop(table);
        Ok(Reserved {
            slots: Arc::clone(self),
            slot,
        })
    }

    /// Takes the descriptor out of a slot, the daemon's choice or the peer's own; once [kept](Claimed::keep), the slot is used up.
    /// `field` is the request's name for the slot.
    ///
    /// # Errors
    /// [`Error::InvalidField`] if it is not 16 bytes; [`Error::SlotNotFound`] if it was never
    /// given, is claimed, expired, or another's.
    pub fn claim(
        self: &Arc<Self>,
        field: &'static str,
        peer: &Peer,
        slot: &[u8],
    ) -> Result<Claimed> {
        let slot = Slot::try_from(slot).map_err(|_| {
            let given = slot.len();
            Error::invalid(
                field,
                format!("{given} bytes: a slot has {SLOT_BYTES} bytes"),
            )
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
        drop(table);
        self.rescheduled.notify_one();
    }

    /// Closes what expires, when it does; never returns.
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
                close_aside(expired);
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

/// A slot without its descriptor; free again when dropped without [`Reserved::fill`].
#[derive(Debug)]
pub struct Reserved {
    slots: Arc<Slots>,
    slot: Slot,
}

impl Reserved {
    /// Puts the descriptor in, from now on for the slots' usual time.
    #[must_use]
    pub fn fill(self, fd: OwnedFd) -> Slot {
        let mut table = self.slots.table.lock();
        if let Some(place) = table.get_mut(&Name::Issued(self.slot)) {
            place.deadline = Instant::now() + self.slots.ttl;
            place.fd = Some(fd);
        }
        drop(table);
        self.slots.rescheduled.notify_one();
        self.slot
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut table = self.slots.table.lock();
        let name = Name::Issued(self.slot);
        if table.get_mut(&name).is_some_and(|place| place.fd.is_none()) {
            table.remove(&name);
        }
    }
}

/// A descriptor out of its slot, on approval: dropped without [`Claimed::keep`] it goes
/// back, to expire when it would have.
#[derive(Debug)]
pub struct Claimed {
    slots: Arc<Slots>,
    name: Name,
    fd: ScopeGuard<OwnedFd, PutBack>,
    /// The client process it came from, if any.
    pub giver: Option<Arc<ClientProcess>>,
}

impl Claimed {
    /// Takes it for good, with the client process it came from.
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

/// Closes descriptors where it may block, as the last close of a lingering socket does.
pub(super) fn close_aside(fds: Vec<OwnedFd>) {
    if fds.is_empty() {
        return;
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || drop(fds));
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
