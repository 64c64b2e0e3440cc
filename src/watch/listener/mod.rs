//! Listeners. Each accepted connection becomes a watch of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

pub(super) use self::bind::{SocketFile, bind_unix, refused};
pub use self::kept::{EarlierListener, Unreported};
pub use self::order::{Accepting, ListenOrder, ListenTarget, SOCKETS_MAX};
use self::secure::Securing;
use super::address;
use super::connection::{self, Accepted, StreamOptions};
use super::places::Places;
use super::{Adoption, Alarm, Change, Context, Need, Notice, Place, Progress, Resumption, Watch};
use crate::clock::nanos;
use crate::descriptors;
use crate::driver::{Direction, Done, Driver, Lane, Nonblocking, Op, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{AcceptPaused, Kind};
use crate::proto;
use crate::proto::state::kept_watch_state::Of;
use crate::state::descriptor;
use crate::sys;
use crate::tls::session::timestamp;

mod bind;
mod kept;
mod order;
mod secure;

/// The number of connections accepted from one socket before other sources are served.
const ACCEPT_AT_ONCE: u32 = 16;
/// How long accepting pauses after a failure at most (asyncio's `ACCEPT_RETRY_DELAY`). A shortage is
/// over once no accept has failed for as long.
const RETRY: Duration = Duration::from_secs(1);
/// What a listener knows of a shortage, usually of file descriptors, that keeps it from accepting.
#[derive(Debug, Default)]
struct Shortage {
    /// Whether AcceptPaused was appended.
    told: bool,
    /// Whether an accept has failed since the last alarm.
    failed: bool,
    /// Whether a notice comes when a descriptor is closed.
    waits: bool,
    /// For each socket, how many descriptors had been closed when it began to accept.
    closings: Vec<u64>,
}

#[derive(Debug)]
struct Listener {
    sockets: Vec<OwnedFd>,
    mode: Nonblocking,
    addresses: Vec<proto::SocketAddress>,
    sources: Vec<SourceId>,
    /// For each socket, the number of connections that it may still accept, for which room is
    /// reserved and places are taken.
    granted: Vec<u32>,
    /// For each socket, whether a connection waits. Only known if the sockets share a limit.
    ready: Vec<bool>,
    shortage: Shortage,
    max_connections: u32,
    /// The places of its connections, from its start on.
    places: Option<Arc<Places>>,
    /// The connections between being accepted and their Accepted, with TLS.
    securing: Option<Securing>,
    /// When accepting is tried again after a failure, in nanoseconds of the monotonic clock.
    retry_at: Option<u64>,
    options: StreamOptions,
    accepted: u64,
    /// Whether accepting is paused because the journal has no room.
    held: bool,
    file: Option<SocketFile>,
    /// What earlier lives have accepted and not reported, until it is looked for.
    unreported: Option<Unreported>,
}

/// The need of an accepted connection without TLS.
const PLAIN: Need = connection::accepted_need(false);

impl Listener {
    fn new(
        (sockets, mode): (Vec<OwnedFd>, Nonblocking),
        addresses: Vec<proto::SocketAddress>,
        accepting: Accepting,
    ) -> Self {
        let tls = accepting.tls;
        Self {
            addresses,
            sockets,
            mode,
            sources: Vec::new(),
            options: accepting.options,
            accepted: 0,
            held: false,
            granted: Vec::new(),
            ready: Vec::new(),
            shortage: Shortage::default(),
            max_connections: accepting.max_connections,
            places: None,
            securing: tls.map(|(order, most)| Securing::new(order, most)),
            retry_at: None,
            file: None,
            unreported: None,
        }
    }

    /// Gives its sockets to the driver. Returns false if the system refuses, which ends the watch.
    fn attach(&mut self, cx: &mut Context<'_>) -> bool {
        for socket in std::mem::take(&mut self.sockets) {
            let Some(source) = cx.attach(socket, self.mode) else {
                return false;
            };
            self.sources.push(source);
            self.granted.push(0);
            self.ready.push(false);
            self.shortage.closings.push(0);
        }
        let notifier = Arc::clone(cx.notifier);
        self.places = Some(Places::new(self.max_connections, cx.key(), notifier));
        cx.changed();
        true
    }

    /// Starts to accept from each socket that does not.
    fn accept_all(&mut self, cx: &mut Context<'_>) {
        self.report_earlier(cx);
        for index in 0..self.sources.len() {
            self.accept(cx, index);
        }
    }

    fn accept(&mut self, cx: &mut Context<'_>, index: usize) {
        let (lane, source) = (lane(index), self.sources[index]);
        if cx.is_closing() || cx.is_live(lane) || self.held {
            return;
        }
        if let Some(securing) = &self.securing {
            let granted: u32 = self.granted.iter().sum();
            let limit = securing.room().saturating_sub(granted).min(ACCEPT_AT_ONCE);
            if limit > 0 {
                self.granted[index] = limit;
                cx.start(lane, source, Op::Accept { limit });
            }
            return;
        }
        let Some(places) = self.places.as_ref().map(Arc::clone) else {
            return;
        };
        if self.shares_limit() && !self.ready[index] {
            // A socket takes a place only when a connection waits, so that the last places are where
            // clients are.
            cx.start(lane, source, Op::Ready(Direction::Read));
            return;
        }
        self.shortage.closings[index] = descriptors::closings();
        let most = if self.shares_limit() {
            1
        } else {
            ACCEPT_AT_ONCE
        };
        let most = places.take(most);
        if most == 0 {
            // A place may be held for a connection that was gone when it was to be accepted.
            for (other, _) in self.granted.iter().enumerate().filter(|(_, n)| **n > 0) {
                cx.cancel(self::lane(other));
            }
            return;
        }
        let granted = match cx.grant(PLAIN, most) {
            Ok(granted) => granted,
            Err(full) => {
                places.give_back(most);
                let seen = self.shortage.closings[index];
                self.pause(cx, seen, no_room(&full));
                return;
            }
        };
        places.give_back(most - granted);
        self.granted[index] = granted;
        cx.start(lane, source, Op::Accept { limit: granted });
    }

    /// Returns whether several sockets share a limit of open connections.
    fn shares_limit(&self) -> bool {
        self.max_connections < u32::MAX && self.sources.len() > 1
    }

    /// Makes watches of the connections whose handshake is complete, as far as there are places and
    /// room, and accepts others in their stead.
    fn admit(&mut self, cx: &mut Context<'_>) {
        let Some(places) = self.places.as_ref().map(Arc::clone) else {
            return;
        };
        while !self.held
            && !cx.is_closing()
            && self.securing.as_ref().is_some_and(Securing::waits)
            && places.take(1) == 1
        {
            let need = connection::accepted_need(true);
            if let Err(full) = cx.grant(need, 1) {
                places.give_back(1);
                self.pause(cx, descriptors::closings(), no_room(&full));
                break;
            }
            let Some((secured, peer)) = self.securing.as_mut().and_then(Securing::next) else {
                break;
            };
            self.adopt(cx, Accepted::Secured(secured), need, peer);
        }
        self.accept_all(cx);
        self.set_timer(cx);
    }

    /// Adds a watch for a connection, for which a place is taken and room is granted.
    fn adopt(
        &mut self,
        cx: &mut Context<'_>,
        accepted: Accepted,
        need: Need,
        peer: Option<proto::SocketAddress>,
    ) {
        self.accepted += 1;
        cx.progressed();
        let place = self.places.as_ref().map(Places::fill);
        let socket = match &accepted {
            Accepted::Plain(socket) => descriptor(socket.as_fd()),
            // What earlier lives have accepted is not taken up with TLS.
            Accepted::Secured(_) => None,
        };
        let watch = connection::accepted(accepted, self.options, place);
        cx.adopt(Adoption {
            watch,
            need,
            peer,
            socket,
        });
    }

    /// Sets the alarm for what is due next, and reports failed handshakes if that is due.
    fn set_timer(&mut self, cx: &mut Context<'_>) {
        let report = self
            .securing
            .as_mut()
            .and_then(|securing| securing.report(cx));
        match [self.retry_at, report].into_iter().flatten().min() {
            Some(at) => cx.set_alarm(Alarm::Monotonic(at)),
            None => cx.clear_alarm(),
        }
    }

    /// Waits until more descriptors of the daemon are closed than `seen`, which may also free a place
    /// within a limit, or [`RETRY`] is over.
    fn pause(&mut self, cx: &mut Context<'_>, seen: u64, error: proto::SystemError) {
        self.shortage.failed = true;
        // If the event has no room, the client sees that from the state of the journal.
        if !self.shortage.told && cx.has_room() {
            self.shortage.told = true;
            cx.emit(Kind::AcceptPaused(AcceptPaused {
                error: Some(error),
                retry_after: Some(crate::clock::duration(RETRY)),
            }));
        }
        self.retry_at = Some(cx.now.monotonic.saturating_add(nanos(RETRY)));
        self.set_timer(cx);
        if !self.shortage.waits {
            self.shortage.waits = true;
            let (key, notifier) = (cx.key(), Arc::clone(cx.notifier));
            descriptors::when_closed(seen, move || {
                notifier.notify(key, Notice::DescriptorClosed);
            });
        }
    }

    /// Returns the places that are taken for connections that are not accepted yet.
    fn accepting(&self) -> u32 {
        match &self.securing {
            Some(_) => 0,
            None => self.granted.iter().sum(),
        }
    }

    fn give_back(&mut self, cx: &mut Context<'_>, index: usize) {
        self.ready[index] = false;
        let unused = std::mem::take(&mut self.granted[index]);
        if self.securing.is_some() {
            return;
        }
        cx.give_back(PLAIN, unused);
        if let Some(places) = &self.places {
            places.give_back(unused);
        }
    }
}

fn no_room(full: &Error) -> proto::SystemError {
    proto::SystemError {
        step: "accept".to_owned(),
        message: full.to_string(),
        ..proto::SystemError::default()
    }
}

fn lane(index: usize) -> Lane {
    // The index is below SOCKETS_MAX.
    Lane(u8::try_from(index).unwrap_or(u8::MAX))
}

impl Watch for Listener {
    fn start(&mut self, cx: &mut Context<'_>) {
        if self.attach(cx) {
            self.accept_all(cx);
        }
    }

    fn keep(&self, driver: &dyn Driver) -> Option<Of> {
        self.kept(driver).map(Of::Listener)
    }

    fn progress(&self) -> Option<Progress> {
        Some(Progress {
            received: [self.accepted, 0],
            ..Progress::default()
        })
    }

    fn place(&self) -> Option<Place> {
        self.places.as_ref().map(Places::of_earlier_life)
    }

    fn resume(&mut self, cx: &mut Context<'_>, rest: Resumption) -> Result<()> {
        self.accepted = rest.progress.received[0];
        if self.attach(cx) {
            // Its connections take their places before any other does.
            cx.set_alarm(Alarm::Monotonic(cx.now.monotonic));
        }
        Ok(())
    }

    fn complete(&mut self, cx: &mut Context<'_>, at: Lane, done: Done) {
        let index = usize::from(at.0);
        match done {
            Done::Accepted(fd, peer) => {
                self.granted[index] -= 1;
                let peer = peer.and_then(|p| address::describe(&p));
                if let Some(securing) = &mut self.securing {
                    securing.begin(cx, fd, peer);
                } else {
                    self.adopt(cx, Accepted::Plain(fd), PLAIN, peer);
                }
            }
            Done::Ready(_) => {
                self.ready[index] = true;
                self.accept(cx, index);
                return;
            }
            Done::Failed(errno) => {
                self.give_back(cx, index);
                match errno {
                    // The socket accepts no more: it was shut down, for example.
                    Errno::BADF | Errno::FAULT | Errno::INVAL | Errno::NOTSOCK | Errno::NOSYS => {
                        cx.fail(errno, "accept");
                    }
                    _ => {
                        let error = SystemError::new(errno, "accept", "");
                        let seen = self.shortage.closings[index];
                        self.pause(cx, seen, (&error).into());
                    }
                }
                return;
            }
            _ => {}
        }
        if !cx.is_live(at) {
            self.give_back(cx, index);
            self.accept_all(cx);
        }
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        if self.retry_at.is_some_and(|at| at <= cx.now.monotonic) {
            let failed = std::mem::take(&mut self.shortage.failed);
            self.shortage.told &= failed;
            let again = cx.now.monotonic.saturating_add(nanos(RETRY));
            self.retry_at = failed.then_some(again);
        }
        self.admit(cx);
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        match (notice, &mut self.securing) {
            (Notice::Handshake(number, result), Some(securing)) => securing.ended(number, result),
            (Notice::DescriptorClosed, _) => self.shortage.waits = false,
            (Notice::PlaceFree, _) => {}
            _ => return,
        }
        self.admit(cx);
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        self.held = hold;
        for index in 0..self.sources.len() {
            if hold {
                cx.cancel(lane(index));
            } else {
                self.accept(cx, index);
            }
        }
        if !hold {
            self.admit(cx);
        }
        true
    }

    fn change(&mut self, cx: &mut Context<'_>, change: Change) -> Result<()> {
        let Change::Accepting(options, most) = change else {
            return Err(super::unsupported("what is to be changed"));
        };
        (self.options, self.max_connections) = (options, most);
        if let Some(places) = &self.places {
            places.set_most(most);
        }
        // What is under way was begun within the earlier limit.
        for index in 0..self.sources.len() {
            cx.cancel(lane(index));
        }
        self.admit(cx);
        Ok(())
    }

    fn closing(&mut self, cx: &mut Context<'_>) -> super::Teardown {
        cx.clear_alarm();
        super::Teardown::Now
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        // The watch stays to be read, but it keeps no sockets.
        if let Some(securing) = &mut self.securing {
            securing.give_up();
        }
        if let Some(file) = self.file.take() {
            cx.drop_later(file);
        }
        0
    }

    fn unaccepted(&self, cx: &Context<'_>) -> Option<u64> {
        let waiting = |source: &SourceId| sys::waiting_connections(cx.fd(*source)?);
        self.sources.iter().map(waiting).sum()
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        Some(proto::watch::Status::Listener(proto::ListenerStatus {
            addresses: self.addresses.clone(),
            accepted: self.accepted,
            open_connections: self
                .places
                .as_ref()
                .map_or(0, |places| places.taken() - self.accepting()),
            handshakes: self.securing.as_ref().map_or(0, Securing::count),
            failed_handshakes: self.securing.as_ref().map_or(0, |securing| securing.failed),
            certificate_expires: self.securing.as_ref().and_then(|securing| {
                let expires = securing.order.setup.expires()?;
                timestamp(expires)
            }),
        }))
    }
}
