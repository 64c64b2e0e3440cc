//! The limits on connections: a number in all, and a number for each principal.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::Admitted;
use crate::access::Principal;
use crate::error::Error;

/// Most connections at once of peers that are not served, which last only until the peer knows.
/// More of them are closed at once.
const TURNED_AWAY_AT_ONCE: usize = 16;

/// The places of all connections.
#[derive(Debug)]
pub(super) struct Places {
    served: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    of_principal: usize,
    parties: Mutex<HashMap<Principal, Weak<Party>>>,
}

/// The counts of all connections of one principal.
#[derive(Debug, Default)]
pub(super) struct Party {
    connections: AtomicUsize,
    /// The bytes of the memory budget that their calls hold.
    pub(super) taken: AtomicU64,
}

/// The place of one connection. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    party: Arc<Party>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// Makes `all` places, of which one principal gets at most `of_principal`.
    pub(super) fn new(all: usize, of_principal: usize) -> Self {
        Self {
            served: Arc::new(Semaphore::new(all)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE)),
            of_principal,
            parties: Mutex::default(),
        }
    }

    /// Waits for a place for a new connection; connections after it wait in the kernel meanwhile.
    /// If the peer's principal already has all of its places, the peer is not served. Peers that
    /// are not served take none of these places, but a few others; returns `None` if those are
    /// taken.
    pub(super) async fn take(&self, admitted: Admitted) -> (Admitted, Option<Place>) {
        let party = match &admitted {
            Ok(peer) => self.party(&peer.principal),
            Err(_) => Arc::default(),
        };
        let before = party.connections.fetch_add(1, Ordering::Relaxed);
        let mut place = Place {
            party,
            permit: None,
        };
        let admitted = match admitted {
            Ok(_) if before >= self.of_principal => {
                let limit = "server.max_connections_per_principal";
                Err(Error::limit(limit, self.of_principal as u64))
            }
            admitted => admitted,
        };
        place.permit = match admitted {
            Ok(_) => Arc::clone(&self.served).acquire_owned().await.ok(),
            Err(_) => Arc::clone(&self.turned_away).try_acquire_owned().ok(),
        };
        let place = place.permit.is_some().then_some(place);
        (admitted, place)
    }

    fn party(&self, principal: &Principal) -> Arc<Party> {
        let mut parties = self.parties.lock();
        if let Some(party) = parties.get(principal).and_then(Weak::upgrade) {
            return party;
        }
        parties.retain(|_, party| party.strong_count() > 0);
        let party = Arc::default();
        parties.insert(principal.clone(), Arc::downgrade(&party));
        party
    }

    /// Waits until the places of all served connections are free.
    pub(super) async fn all_free(&self, all: usize) {
        // The configuration bounds it below that.
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        let _ = self.served.acquire_many(all).await;
    }
}

impl Place {
    pub(super) const fn party(&self) -> &Arc<Party> {
        &self.party
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.party.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Peer;

    fn peer(uid: u32) -> Admitted {
        Ok(Arc::new(Peer {
            principal: Principal::uid(uid),
            uid,
            gid: uid,
            pid: 0,
            process: None,
            administrator: false,
        }))
    }

    #[tokio::test]
    async fn one_principal_leaves_places_to_others() {
        let places = Places::new(4, 3);
        let mut held = Vec::new();
        for _ in 0..3 {
            let (admitted, place) = places.take(peer(1)).await;
            assert!(admitted.is_ok());
            held.push(place.unwrap());
        }
        let (refused, told) = places.take(peer(1)).await;
        assert!(matches!(refused, Err(Error::Limit { value: 3, .. })));
        assert!(told.is_some(), "it is told so");
        let (admitted, other) = places.take(peer(2)).await;
        assert!(admitted.is_ok() && other.is_some());
        // A refused connection counts until it is closed.
        drop((told, held.pop()));
        let (admitted, place) = places.take(peer(1)).await;
        assert!(admitted.is_ok());
        drop((held, place, other));
        places.all_free(4).await;
        places.take(peer(3)).await.1.unwrap();
        assert_eq!(places.parties.lock().len(), 1);
    }
}
