//! File descriptors between two hands: each in a slot, for a while.

use std::collections::HashMap;
use std::fmt;
use std::iter::repeat_n;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use scopeguard::ScopeGuard;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::access::{ClientProcess, Principal};
use crate::error::{Error, Result, SystemError};

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 16;

/// Names a file descriptor that was handed over. Nobody can guess it.
pub type Slot = [u8; SLOT_BYTES];

/// Default of `limits.slots`.
pub const SLOTS_DEFAULT: usize = 4096;

/// How long a slot lives.
pub const SLOT_TTL: Duration = Duration::from_secs(30);

struct Held {
    owner: Principal,
    giver: Option<Arc<ClientProcess>>,
    deadline: Instant,
    /// `None` while a claim is undecided, which keeps the place.
    fd: Option<OwnedFd>,
}

/// The table of slots; [`serve`](super::serve) closes what expires.
pub struct Slots {
    capacity: usize,
    ttl: Duration,
    held: Mutex<HashMap<Slot, Held>>,
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
            held: Mutex::default(),
            rescheduled: Notify::new(),
        })
    }

    /// How many slots are taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.lock().len()
    }

    /// No slot is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts each descriptor into a slot that only `owner` can claim; in order. `giver` is
    /// the process it came from, if that is a client's.
    ///
    /// # Errors
    /// [`Error::Limit`] if there is no room for all of them, or the system's; then all
    /// are closed.
    pub fn give(
        &self,
        owner: &Principal,
        giver: Option<Arc<ClientProcess>>,
        fds: Vec<OwnedFd>,
    ) -> Result<Vec<Slot>> {
        let slots = match random_slots(fds.len()) {
            Ok(slots) => slots,
            Err(error) => {
                close_aside(fds);
                return Err(error);
            }
        };
        let mut held = self.held.lock();
        if fds.len() > self.capacity.saturating_sub(held.len()) {
            drop(held);
            close_aside(fds);
            return Err(Error::Limit {
                limit: "limits.slots",
                value: u64::try_from(self.capacity).unwrap_or(u64::MAX),
                hint: "claim what was handed over, or let it expire",
            });
        }
        let first = held.is_empty();
        let deadline = Instant::now() + self.ttl;
        let givers = repeat_n(giver, slots.len());
        for ((slot, fd), giver) in slots.iter().zip(fds).zip(givers) {
            let place = Held {
                owner: owner.clone(),
                giver,
                deadline,
                fd: Some(fd),
            };
            held.insert(*slot, place);
        }
        drop(held);
        if first {
            self.rescheduled.notify_one();
        }
        Ok(slots)
    }

    /// Sets a slot aside for a descriptor of `owner`'s that is still to come.
    ///
    /// # Errors
    /// [`Error::Limit`] if there is no room, or the system's.
    pub fn reserve(self: &Arc<Self>, owner: &Principal) -> Result<Reserved> {
        let slot = random_slots(1)?.pop().unwrap_or_default();
        let mut held = self.held.lock();
        if held.len() >= self.capacity {
            return Err(Error::Limit {
                limit: "limits.slots",
                value: u64::try_from(self.capacity).unwrap_or(u64::MAX),
                hint: "claim what was handed over, or let it expire",
            });
        }
        let place = Held {
            owner: owner.clone(),
            giver: None,
            deadline: Instant::now(),
            fd: None,
        };
        held.insert(slot, place);
        drop(held);
        Ok(Reserved {
            slots: Arc::clone(self),
            slot,
        })
    }

    /// Takes the descriptor out of a slot; once [kept](Claimed::keep), the slot is used up.
    /// `field` is the request's name for the slot.
    ///
    /// # Errors
    /// [`Error::InvalidField`] if it is not 16 bytes; [`Error::SlotNotFound`] if it was never
    /// given, is claimed, expired, or another principal's.
    pub fn claim(
        self: &Arc<Self>,
        field: &'static str,
        owner: &Principal,
        slot: &[u8],
    ) -> Result<Claimed> {
        let slot = Slot::try_from(slot).map_err(|_| {
            let given = slot.len();
            Error::invalid(
                field,
                format!("{given} bytes: a slot has {SLOT_BYTES} bytes"),
            )
        })?;
        let mut table = self.held.lock();
        let held = table
            .get_mut(&slot)
            .filter(|held| held.owner == *owner && Instant::now() < held.deadline);
        let (fd, giver) = held
            .and_then(|held| Some((held.fd.take()?, held.giver.clone())))
            .ok_or(Error::SlotNotFound {
                field: field.into(),
            })?;
        drop(table);
        let slots = Arc::clone(self);
        let put_back: PutBack = Box::new(move |fd| slots.put_back(&slot, fd));
        Ok(Claimed {
            slots: Arc::clone(self),
            slot,
            fd: scopeguard::guard(fd, put_back),
            giver,
        })
    }

    fn put_back(&self, slot: &Slot, fd: OwnedFd) {
        let mut table = self.held.lock();
        if let Some(held) = table.get_mut(slot) {
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
            let expired = self.take_expired(Instant::now());
            if !expired.is_empty() {
                tracing::debug!(count = expired.len(), "slots expired");
                close_aside(expired);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let table = self.held.lock();
        let waiting = table.values().filter(|held| held.fd.is_some());
        waiting.map(|held| held.deadline).min()
    }

    fn take_expired(&self, now: Instant) -> Vec<OwnedFd> {
        let mut table = self.held.lock();
        let expired = table.extract_if(|_, held| held.fd.is_some() && held.deadline <= now);
        expired.filter_map(|(_, held)| held.fd).collect()
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
        let mut held = self.slots.held.lock();
        if let Some(place) = held.get_mut(&self.slot) {
            place.deadline = Instant::now() + self.slots.ttl;
            place.fd = Some(fd);
        }
        drop(held);
        self.slots.rescheduled.notify_one();
        self.slot
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut held = self.slots.held.lock();
        if held.get(&self.slot).is_some_and(|place| place.fd.is_none()) {
            held.remove(&self.slot);
        }
    }
}

/// A descriptor out of its slot, on approval: dropped without [`Claimed::keep`] it goes
/// back, to expire when it would have.
#[derive(Debug)]
pub struct Claimed {
    slots: Arc<Slots>,
    slot: Slot,
    fd: ScopeGuard<OwnedFd, PutBack>,
    /// The client process it came from, if any.
    pub giver: Option<Arc<ClientProcess>>,
}

impl Claimed {
    /// Takes it for good, with the client process it came from.
    #[must_use]
    pub fn keep(self) -> (OwnedFd, Option<Arc<ClientProcess>>) {
        self.slots.held.lock().remove(&self.slot);
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
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::unix::pipe;

    use super::*;

    fn pipe() -> (OwnedFd, pipe::Receiver) {
        let (sender, receiver) = pipe::pipe().unwrap();
        (sender.into_blocking_fd().unwrap(), receiver)
    }

    async fn assert_closed(mut receiver: pipe::Receiver) {
        assert_eq!(receiver.read(&mut [0]).await.unwrap(), 0);
    }

    fn not_found(result: Result<Claimed>) -> bool {
        matches!(result, Err(Error::SlotNotFound { field }) if field == "spec.fd.slot")
    }

    #[tokio::test]
    async fn a_slot_is_claimed_once_and_by_its_owner() {
        let slots = Slots::new(4, SLOT_TTL);
        let (owner, other) = (Principal::uid(1), Principal::uid(2));
        let (fd, receiver) = pipe();
        let slot = slots.give(&owner, None, vec![fd]).unwrap()[0];
        let claim = |principal, slot: &[u8]| slots.claim("spec.fd.slot", principal, slot);

        assert!(not_found(claim(&other, &slot)));
        assert!(not_found(claim(&owner, &[0; SLOT_BYTES])));
        let short = claim(&owner, &slot[1..]).unwrap_err();
        assert_eq!(
            short.to_string(),
            "spec.fd.slot: 15 bytes: a slot has 16 bytes"
        );

        let claimed = claim(&owner, &slot).unwrap();
        assert!(not_found(claim(&owner, &slot)));
        let (fd, _) = claimed.keep();
        assert!(slots.is_empty());
        assert!(not_found(claim(&owner, &slot)));
        drop(fd);
        assert_closed(receiver).await;
    }

    #[tokio::test(start_paused = true)]
    async fn expired_slots_are_closed_in_time() {
        let slots = Slots::new(4, SLOT_TTL);
        let owner = Principal::uid(1);
        let start = Instant::now();
        let expiry = Arc::clone(&slots);
        let expiry = tokio::spawn(async move { expiry.expire().await });
        let (fd, receiver) = pipe();
        let slot = slots.give(&owner, None, vec![fd]).unwrap()[0];
        assert_closed(receiver).await;
        assert_eq!(start.elapsed().as_secs(), SLOT_TTL.as_secs());
        assert!(slots.is_empty());
        assert!(not_found(slots.claim("spec.fd.slot", &owner, &slot)));
        expiry.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_is_not_kept_goes_back_with_its_deadline() {
        let slots = Slots::new(1, SLOT_TTL);
        let owner = Principal::uid(1);
        let expiry = Arc::clone(&slots);
        let expiry = tokio::spawn(async move { expiry.expire().await });
        let start = Instant::now();
        let (fd, receiver) = pipe();
        let slot = slots.give(&owner, None, vec![fd]).unwrap()[0];
        let claim = || slots.claim("spec.fd.slot", &owner, &slot);
        drop(claim().unwrap());
        let claimed = claim().unwrap();

        // Undecided, it keeps its place and does not expire.
        tokio::time::sleep(SLOT_TTL * 2).await;
        assert_eq!(slots.len(), 1);
        drop(claimed);
        assert!(not_found(claim()));
        assert_closed(receiver).await;
        assert_eq!(start.elapsed().as_secs(), 2 * SLOT_TTL.as_secs());
        expiry.abort();
    }

    #[tokio::test]
    async fn beyond_the_limit_all_are_closed() {
        let slots = Slots::new(2, SLOT_TTL);
        let owner = Principal::uid(1);
        let (first, _first) = pipe();
        slots.give(&owner, None, vec![first]).unwrap();
        let ((a, a_end), (b, b_end)) = (pipe(), pipe());
        let error = slots.give(&owner, None, vec![a, b]).unwrap_err();
        assert!(matches!(
            error,
            Error::Limit {
                limit: "limits.slots",
                value: 2,
                ..
            }
        ));
        assert_closed(a_end).await;
        assert_closed(b_end).await;
        assert_eq!(slots.len(), 1);
    }
}
