//! What a watch can do while it is being told something.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use thin_vec::ThinVec;

use super::{Need, Notifier, Services, Watch};
use crate::clock::Now;
use crate::driver::{AttachError, Driver, Key, Lane, Nonblocking, Op, OpId, SourceId};
use crate::error::{Result, SystemError};
use crate::event::{CloseReason, Kind, Stream, largest};
use crate::journal::{About, Outbox, Room};

/// What [`Context::reserve`] sets aside.
pub(crate) const ONE_BY_ONE: Room = Room::event(largest::ONE_BY_ONE);

/// When a watch wants to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// At a time of `CLOCK_MONOTONIC`, nanoseconds.
    Monotonic(u64),
    /// At a time of `CLOCK_REALTIME`, nanoseconds; follows when that clock is set.
    Realtime(u64),
}

/// How and why a watch ends.
#[derive(Debug, Clone)]
pub struct End {
    /// Why.
    pub reason: CloseReason,
    /// What the system refused, with [`CloseReason::Error`].
    pub error: Option<SystemError>,
}

impl End {
    /// In order.
    #[must_use]
    pub fn completed() -> Self {
        Self {
            reason: CloseReason::Completed,
            error: None,
        }
    }
}

/// A connection that a listener took, to become a watch of its own.
#[derive(Debug)]
pub struct Adoption {
    /// The new watch.
    pub watch: Box<dyn Watch>,
    /// Who connected.
    pub peer: Option<crate::proto::SocketAddress>,
}

/// What a loop keeps of a watch and its [`Context`] changes.
#[derive(Debug)]
pub struct Seat {
    /// Names it to the driver.
    pub key: Key,
    /// Names it in events.
    pub about: About,
    /// Live operations, and on what.
    pub ops: ThinVec<(Lane, SourceId)>,
    /// What it has attached.
    pub sources: ThinVec<SourceId>,
    /// Events set aside one by one, beside those of its [`Need`].
    pub reserved: u64,
    /// When it wants to be woken.
    pub alarm: Option<Alarm>,
    /// The loop does not know of the alarm yet.
    pub alarm_changed: bool,
    /// Set once its end is asked for.
    pub end: Option<Box<End>>,
    /// It said that it has ended its operations itself.
    pub finished: bool,
    /// Its operations were cancelled because it ends.
    pub cancelling: bool,
}

impl Seat {
    /// Of a watch that has nothing yet.
    #[must_use]
    pub fn new(key: Key, about: About) -> Self {
        Self {
            key,
            about,
            ops: ThinVec::new(),
            sources: ThinVec::new(),
            reserved: 0,
            alarm: None,
            alarm_changed: false,
            end: None,
            finished: false,
            cancelling: false,
        }
    }

    /// When the watch wants to be woken from now on.
    pub fn wake(&mut self, at: Option<Alarm>) {
        if self.alarm != at {
            self.alarm = at;
            self.alarm_changed = true;
        }
    }
}

/// The loop, as one watch sees it for the length of one call.
#[derive(Debug)]
pub struct Context<'a> {
    /// The turn's time.
    pub now: Now,
    /// What is shared by all loops.
    pub services: &'a Arc<Services>,
    /// Where to report what was done elsewhere.
    pub notifier: &'a Arc<dyn Notifier>,
    pub(crate) seat: &'a mut Seat,
    pub(crate) need: &'a mut Need,
    pub(crate) driver: &'a mut dyn Driver,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) adoptions: &'a mut Vec<Adoption>,
    pub(crate) ledger: &'a mut dyn Grants,
    /// The loop polls its sources: what they have to tell will come.
    pub(crate) polled: bool,
}

/// Room that is set aside for watches to come.
pub trait Grants: std::fmt::Debug {
    /// Sets aside what up to `count` watches of this need take; returns for how many there
    /// was room, at least one.
    ///
    /// # Errors
    /// The limit that leaves no room for any.
    fn grant(&mut self, outbox: &mut Outbox, need: Need, count: u32) -> Result<u32>;
    /// Gives back what `count` of them did not use.
    fn give_back(&mut self, outbox: &mut Outbox, need: Need, count: u32);
    /// Sets one source more aside for a watch that exists; false if there is none.
    fn grant_source(&mut self) -> bool;
    /// Gives back so many sources.
    fn give_back_sources(&mut self, count: usize);
}

/// Most have one at a time: the first gets no room for more.
fn push_first<T>(list: &mut ThinVec<T>, item: T) {
    if list.capacity() == 0 {
        list.reserve_exact(1);
    }
    list.push(item);
}

impl Context<'_> {
    /// Whether the loop polls its sources, or is stopped.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.polled
    }

    /// Names the watch, for notices.
    #[must_use]
    pub fn key(&self) -> Key {
        self.seat.key
    }

    /// Appends an event of this watch; returns its sequence number.
    pub fn emit(&mut self, kind: Kind) -> u64 {
        self.outbox.push(self.now, self.seat.about, kind)
    }

    /// Appends a `Data` event of this watch: bytes that lie at that offset of the stream.
    #[inline]
    pub fn emit_data(&mut self, stream: Stream, offset: u64, data: &[u8]) {
        let place = (stream, offset);
        self.outbox
            .push_data(self.now, self.seat.about, place, data);
    }

    /// Whether an event for which nothing was set aside fits. If not, the watch is
    /// [`held`](super::Watch::hold), and told when it does.
    pub fn has_room(&mut self) -> bool {
        self.outbox.has_room(1)
    }

    /// Sets aside room for an event to come: `Ready`, `WritePaused` or `WriteResumed`.
    ///
    /// # Errors
    /// There is none; as with [`Context::has_room`].
    pub fn reserve(&mut self) -> Result<()> {
        let reserved = self.outbox.reserve(ONE_BY_ONE);
        if reserved.is_ok() {
            self.seat.reserved += 1;
        } else {
            self.outbox.lack_room();
        }
        reserved
    }

    /// As [`Context::emit`], of an event that room was set aside for by [`Context::reserve`].
    pub fn emit_reserved(&mut self, kind: Kind) -> u64 {
        self.unreserve();
        self.emit(kind)
    }

    /// An event that room was set aside for will not come.
    pub fn unreserve(&mut self) {
        if self.seat.reserved > 0 {
            self.seat.reserved -= 1;
            self.outbox.unreserve(ONE_BY_ONE);
        }
    }

    /// See [`Grants::grant`].
    ///
    /// # Errors
    /// As there.
    pub fn grant(&mut self, need: Need, count: u32) -> Result<u32> {
        self.ledger.grant(self.outbox, need, count)
    }

    /// See [`Grants::give_back`].
    pub fn give_back(&mut self, need: Need, count: u32) {
        self.ledger.give_back(self.outbox, need, count);
    }

    /// Sets a source aside beyond those of its [`Need`]; false if the loop has no more.
    pub fn one_more_source(&mut self) -> bool {
        let granted = self.ledger.grant_source();
        self.need.sources += usize::from(granted);
        granted
    }

    /// Gives back the sources set aside beyond `most` that it has not attached.
    pub fn keep_sources(&mut self, most: usize) {
        let kept = self.seat.sources.len().max(most).min(self.need.sources);
        self.ledger.give_back_sources(self.need.sources - kept);
        self.need.sources = kept;
    }

    /// Gives a file descriptor into the driver's care. Room was set aside for it; if
    /// the system refuses, the watch is asked to close with that error.
    pub fn attach(&mut self, fd: OwnedFd, mode: Nonblocking) -> Option<SourceId> {
        match self.driver.attach(fd, mode) {
            Ok(source) => {
                push_first(&mut self.seat.sources, source);
                Some(source)
            }
            Err(error) => {
                let errno = match error {
                    AttachError::Limit(_) => Errno::NOSPC,
                    AttachError::System(errno) => errno,
                };
                self.fail(errno, "watch");
                None
            }
        }
    }

    /// Starts an operation. Its lane must be free.
    pub fn start(&mut self, lane: Lane, source: SourceId, op: Op) {
        debug_assert!(!self.is_live(lane), "lane {lane:?} is taken");
        push_first(&mut self.seat.ops, (lane, source));
        let id = OpId {
            watch: self.seat.key,
            lane,
        };
        self.driver.start(id, source, op);
    }

    /// Whether the lane's operation has not ended.
    #[must_use]
    pub fn is_live(&self, lane: Lane) -> bool {
        self.seat.ops.iter().any(|(live, _)| *live == lane)
    }

    /// Asks for the end of the lane's operation, if it has one.
    pub fn cancel(&mut self, lane: Lane) {
        let watch = self.seat.key;
        if let Some((_, source)) = self.seat.ops.iter().find(|(live, _)| *live == lane) {
            self.driver.cancel(OpId { watch, lane }, *source);
        }
    }

    /// Takes a source without live operations out of the driver and closes it.
    pub fn release(&mut self, source: SourceId) {
        let shared = self.driver.is_shared(source);
        if let Some(fd) = self.take(source) {
            self.services.close(fd, shared);
        }
    }

    /// Takes a source without live operations out of the driver, open.
    pub fn take(&mut self, source: SourceId) -> Option<OwnedFd> {
        self.seat.sources.retain(|s| *s != source);
        self.driver.detach(source)
    }

    /// The file descriptor of a source, to ask it things.
    #[must_use]
    pub fn fd(&self, source: SourceId) -> Option<BorrowedFd<'_>> {
        self.driver.fd(source)
    }

    /// Sets the watch's one alarm.
    pub fn set_alarm(&mut self, at: Alarm) {
        self.seat.wake(Some(at));
    }

    /// Sets the watch's one alarm to so many nanoseconds from now.
    pub fn set_alarm_in(&mut self, delay: std::time::Duration) {
        let at = self
            .now
            .monotonic
            .saturating_add(crate::clock::nanos(delay));
        self.set_alarm(Alarm::Monotonic(at));
    }

    /// Takes the alarm back.
    pub fn clear_alarm(&mut self) {
        self.seat.wake(None);
    }

    /// Asks for the end of the watch. The first reason counts.
    pub fn close(&mut self, reason: CloseReason) {
        if self.seat.end.is_none() {
            self.seat.end = Some(Box::new(End {
                reason,
                error: None,
            }));
        }
    }

    /// Asks for the end of the watch because the system refused something.
    pub fn fail(&mut self, errno: Errno, step: &'static str) {
        self.fail_with(SystemError::new(errno, step, ""));
    }

    /// As [`Context::fail`], with all that is known.
    pub fn fail_with(&mut self, error: SystemError) {
        if self.seat.end.is_none() {
            self.seat.end = Some(Box::new(End {
                reason: CloseReason::Error,
                error: Some(error),
            }));
        }
    }

    /// Whether an end was asked for.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.seat.end.is_some()
    }

    /// Whether its end was asked for from outside, and is not an abort.
    #[must_use]
    pub fn ends_in_order(&self) -> bool {
        let end = self.seat.end.as_ref();
        end.is_some_and(|end| {
            use CloseReason::{LoopClosed, ProcessEnded, Removed};
            matches!(end.reason, Removed | LoopClosed | ProcessEnded)
        })
    }

    /// Until when (monotonic nanoseconds) its end may be put off so that what was taken is still
    /// sent. `None`: it may not, as the end is none in order or nothing is polled.
    #[must_use]
    pub fn linger(&self) -> Option<u64> {
        let until = crate::clock::nanos(self.services.transport.close_linger);
        let until = self.now.monotonic.saturating_add(until);
        (self.ends_in_order() && self.polled).then_some(until)
    }

    /// Whether its operations were cancelled because it ends.
    #[must_use]
    pub fn is_cancelling(&self) -> bool {
        self.seat.cancelling
    }

    /// Everything is done that [`super::Teardown::Later`] put off.
    pub fn finish(&mut self) {
        self.seat.finished = true;
    }

    /// Makes a watch of an accepted connection; its room was granted.
    pub fn adopt(&mut self, adoption: Adoption) {
        self.adoptions.push(adoption);
    }
}
