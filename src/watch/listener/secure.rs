//! The connections of a listener with TLS between accept(2) and their `Accepted`, which comes once
//! the handshake is complete.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

use crate::clock::nanos;
use crate::error::SystemError;
use crate::event::{HandshakesFailed, Kind, largest};
use crate::proto::SocketAddress;
use crate::watch::Context;
use crate::watch::handshakes::{Handshake, Secured, TlsOrder};

/// The time from one `HandshakesFailed` to the next.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The connections that have no watch yet.
#[derive(Debug)]
pub(super) struct Securing {
    pub(super) order: TlsOrder,
    /// The largest number of these connections.
    most: usize,
    /// Those whose handshake is under way, by its number.
    live: Slab<(Handshake, Option<SocketAddress>)>,
    /// Those whose handshake is complete, which wait for a place and for room in the journal.
    complete: VecDeque<(Box<Secured>, Option<SocketAddress>)>,
    /// The handshakes that have failed, and how many of them are reported.
    pub(super) failed: u64,
    reported: u64,
    /// The last failure that is not reported.
    latest: Option<(SystemError, Option<SocketAddress>)>,
    /// The time before which nothing is reported, in nanoseconds of the monotonic clock.
    next_report: u64,
}

impl Securing {
    pub(super) const fn new(order: TlsOrder, most: usize) -> Self {
        Self {
            order,
            most,
            live: Slab::new(),
            complete: VecDeque::new(),
            failed: 0,
            reported: 0,
            latest: None,
            next_report: 0,
        }
    }

    /// Returns the number of connections.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.live.len() + self.complete.len()).unwrap_or(u32::MAX)
    }

    /// Returns how many more may be accepted.
    pub(super) fn room(&self) -> u32 {
        u32::try_from(self.most)
            .unwrap_or(u32::MAX)
            .saturating_sub(self.count())
    }

    /// Begins the handshake of an accepted connection.
    pub(super) fn begin(&mut self, cx: &Context<'_>, fd: OwnedFd, peer: Option<SocketAddress>) {
        let entry = self.live.vacant_entry();
        let services = Arc::clone(cx.services);
        let job = (entry.key(), fd);
        match services.handshakes.begin(cx, job, &self.order, Vec::new()) {
            Ok(handshake) => drop(entry.insert((handshake, peer))),
            Err(error) => self.fail(error, peer),
        }
    }

    /// Closes all connections.
    pub(super) fn give_up(&mut self) {
        self.live.clear();
        self.complete.clear();
    }

    /// Handles the end of a handshake.
    pub(super) fn ended(&mut self, number: usize, result: Result<Box<Secured>, SystemError>) {
        let Some((_, peer)) = self.live.try_remove(number) else {
            return;
        };
        match result {
            Ok(secured) => self.complete.push_back((secured, peer)),
            Err(error) => self.fail(error, peer),
        }
    }

    fn fail(&mut self, error: SystemError, peer: Option<SocketAddress>) {
        self.failed += 1;
        self.latest = Some((error, peer));
    }

    /// Returns whether a connection waits for a place.
    pub(super) fn waits(&self) -> bool {
        !self.complete.is_empty()
    }

    /// Returns the connection that has waited longest.
    pub(super) fn next(&mut self) -> Option<(Box<Secured>, Option<SocketAddress>)> {
        self.complete.pop_front()
    }

    /// Reports the failures, if it is time. Returns when it will be time, in nanoseconds of the
    /// monotonic clock.
    pub(super) fn report(&mut self, cx: &mut Context<'_>) -> Option<u64> {
        let (error, peer) = self.latest.as_ref()?;
        let now = cx.now.monotonic;
        if now < self.next_report {
            return Some(self.next_report);
        }
        // Without room it is reported when the listener is resumed.
        if cx.has_room_for(largest::HANDSHAKES_FAILED) {
            cx.emit(Kind::HandshakesFailed(HandshakesFailed {
                count: self.failed - self.reported,
                total: self.failed,
                error: Some(error.into()),
                peer: peer.clone(),
            }));
            self.latest = None;
            self.reported = self.failed;
            self.next_report = now.saturating_add(nanos(REPORT_INTERVAL));
        }
        None
    }
}
