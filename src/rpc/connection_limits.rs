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

/// Counts the connections and enforces both limits.
#[derive(Debug)]
pub(super) struct ConnectionLimits {
    served: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    of_principal: usize,
    usages: Mutex<HashMap<Principal, Weak<PrincipalUsage>>>,
}

/// What all connections of one principal take together.
#[derive(Debug, Default)]
pub(super) struct PrincipalUsage {
    connections: AtomicUsize,
    /// The bytes of the memory budget that their calls hold.
    pub(super) taken: AtomicU64,
}

/// The permit of one connection. Dropping it returns the permit.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    usage: Arc<PrincipalUsage>,
    permit: Option<OwnedSemaphorePermit>,
}

impl ConnectionLimits {
    /// Allows `all` connections at once, and at most `of_principal` of one principal.
    pub(super) fn new(all: usize, of_principal: usize) -> Self {
        Self {
            served: Arc::new(Semaphore::new(all)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE)),
            of_principal,
            usages: Mutex::default(),
        }
    }

    /// Waits for the permit of a new connection; later connections wait in the kernel meanwhile. If
    /// the peer's principal already has all of its permits, the peer is not served. Peers that are
    /// not served take permits of a small number of their own; returns `None` if those are taken.
    pub(super) async fn take(&self, admitted: Admitted) -> (Admitted, Option<ConnectionPermit>) {
        let usage = match &admitted {
            Ok(peer) => self.usage(&peer.principal),
            Err(_) => Arc::default(),
        };
        let before = usage.connections.fetch_add(1, Ordering::Relaxed);
        let mut granted = ConnectionPermit {
            usage,
            permit: None,
        };
        let admitted = match admitted {
            Ok(_) if before >= self.of_principal => {
                let limit = "server.max_connections_per_principal";
                Err(Error::limit(limit, self.of_principal as u64))
            }
            admitted => admitted,
        };
        granted.permit = match admitted {
            Ok(_) => Arc::clone(&self.served).acquire_owned().await.ok(),
            Err(_) => Arc::clone(&self.turned_away).try_acquire_owned().ok(),
        };
        let granted = granted.permit.is_some().then_some(granted);
        (admitted, granted)
    }

    fn usage(&self, principal: &Principal) -> Arc<PrincipalUsage> {
        let mut usages = self.usages.lock();
        if let Some(usage) = usages.get(principal).and_then(Weak::upgrade) {
            return usage;
        }
        usages.retain(|_, usage| usage.strong_count() > 0);
        let usage = Arc::default();
        usages.insert(principal.clone(), Arc::downgrade(&usage));
        usage
    }

    /// Waits until all served connections have returned their permits.
    pub(super) async fn all_free(&self, all: usize) {
        // The configuration allows fewer than `u32::MAX`.
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        let _ = self.served.acquire_many(all).await;
    }
}

impl ConnectionPermit {
    pub(super) const fn usage(&self) -> &Arc<PrincipalUsage> {
        &self.usage
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.usage.connections.fetch_sub(1, Ordering::Relaxed);
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
    async fn one_principal_leaves_connections_to_others() {
        let limits = ConnectionLimits::new(4, 3);
        let mut held = Vec::new();
        for _ in 0..3 {
            let (admitted, permit) = limits.take(peer(1)).await;
            assert!(admitted.is_ok());
            held.push(permit.unwrap());
        }
        let (refused, told) = limits.take(peer(1)).await;
        assert!(matches!(refused, Err(Error::Limit { value: 3, .. })));
        assert!(told.is_some(), "it is told so");
        let (admitted, other) = limits.take(peer(2)).await;
        assert!(admitted.is_ok() && other.is_some());
        // A refused connection counts until it is closed.
        drop((told, held.pop()));
        let (admitted, permit) = limits.take(peer(1)).await;
        assert!(admitted.is_ok());
        drop((held, permit, other));
        limits.all_free(4).await;
        limits.take(peer(3)).await.1.unwrap();
        assert_eq!(limits.usages.lock().len(), 1);
    }
}
