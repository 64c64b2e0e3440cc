//! The access that a watch has to its loop during a call.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::{Adoption, Afterwards, ControlBlock, End, Need, Notifier, Reaping, Services};
use crate::clock::{Jumps, Now};
use crate::descriptors::Closing;
use crate::driver::{AttachError, Driver, Key, Lane, Nonblocking, Op, OpId, Relays, SourceId};
use crate::error::{Result, SystemError};
use crate::event::{CloseReason, DatagramHead, FailedAttempt, Kind, Stream, largest};
use crate::journal::{Outbox, Room};
use crate::state::Start;

/// The room that [`Context::reserve`] reserves.
pub(crate) const ONE_BY_ONE: Room = Room::event(largest::ONE_BY_ONE);

/// The time at which a watch wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// A time of `CLOCK_MONOTONIC`, in nanoseconds.
    Monotonic(u64),
    /// A time of `CLOCK_BOOTTIME`, in nanoseconds; comes also while the host is suspended.
    Boottime(u64),
    /// A time of `CLOCK_REALTIME`, in nanoseconds; follows when that clock is set.
    Realtime(u64),
}

/// The access of one watch to its loop, for the length of one call.
#[derive(Debug)]
pub struct Context<'a> {
    /// The time of the turn.
    pub now: Now,
    /// The latest jumps of the clocks.
    pub jumps: &'a Jumps,
    /// The step of the clock by which timers fire, in nanoseconds; 0: none.
    pub(crate) timer_tick: u64,
    /// The services that all loops share.
    pub services: &'a Arc<Services>,
    /// The receiver of notices from other threads.
    pub notifier: &'a Arc<dyn Notifier>,
    pub(crate) control: &'a mut ControlBlock,
    pub(crate) need: &'a mut Need,
    pub(crate) driver: &'a mut dyn Driver,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) adoptions: &'a mut Vec<Adoption>,
    /// What is done once the turn is committed.
    pub(crate) afterwards: &'a mut Vec<Afterwards>,
    /// Reads the pipes through which terminals are read.
    pub(crate) relays: &'a mut Relays,
    pub(crate) ledger: &'a mut dyn Grants,
    pub(crate) doubts: &'a mut dyn Doubts,
    /// Whether the loop polls its sources, so that their operations complete.
    pub(crate) polled: bool,
    /// The alarm that the watch sets or removes in this call; `None` if it leaves its alarm as it
    /// is.
    pub(crate) alarm: Option<Option<Alarm>>,
    /// Whether what [`Watch::keep`](super::Watch::keep) returns has changed in this call.
    pub(crate) changed: bool,
    /// Whether what [`Watch::progress`](super::Watch::progress) returns has changed in this call.
    pub(crate) progressed: bool,
}

/// Reserves resources for watches that a listener will accept.
pub trait Grants: std::fmt::Debug {
    /// Reserves what up to `count` watches of this need take. Returns for how many there was room,
    /// at least one.
    ///
    /// # Errors
    /// A limit leaves no room for any.
    fn grant(&mut self, outbox: &mut Outbox, need: Need, count: u32) -> Result<u32>;
    /// Releases what was reserved for `count` watches.
    fn give_back(&mut self, outbox: &mut Outbox, need: Need, count: u32);
    /// Reserves one more source for a watch that exists. Returns false if there is none.
    fn grant_source(&mut self) -> bool;
    /// Releases that many sources.
    fn give_back_sources(&mut self, count: u32);
}

/// Notes for later lives what nothing counts.
pub trait Doubts: std::fmt::Debug {
    /// See [`Context::in_doubt`].
    fn in_doubt(&mut self, turn: u64, watch: u64, most: u64);
}

impl Context<'_> {
    /// Says, before the watch takes something from the kernel that nothing counts, how much it has taken
    /// in this turn then at most. If this life is killed before the turn is committed, the next one gets
    /// the number said last as [`super::Resumption::in_doubt`].
    pub fn in_doubt(&mut self, most: u64) {
        let turn = self.outbox.turn();
        self.doubts.in_doubt(turn, self.control.about.watch, most);
    }

    /// Returns the number of the turn.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.outbox.turn()
    }

    /// Returns whether the loop polls its sources; it does not while it is stopped.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.polled
    }

    /// Returns the name of the watch for notices.
    #[must_use]
    pub fn key(&self) -> Key {
        self.control.key
    }

    /// Appends an event of this watch. Returns its sequence number.
    pub fn emit(&mut self, kind: Kind) -> u64 {
        self.outbox.push(self.now, self.control.about, kind)
    }

    /// Appends a `Data` event of this watch: bytes that lie at that offset of the stream.
    #[inline]
    pub fn emit_data(&mut self, stream: Stream, offset: u64, data: &[u8]) {
        let place = (stream, offset);
        self.outbox
            .push_data(self.now, self.control.about, place, data);
    }

    /// Appends a `Datagram` event of this watch.
    pub fn emit_datagram(&mut self, of: &DatagramHead<'_>, data: &[u8]) {
        self.outbox
            .push_datagram(self.now, self.control.about, of, data);
    }

    /// Records that the watch, which kept `before` bytes to append as `Data` later, now keeps
    /// `after`, so that the loop reads no more than the journal has room for.
    pub fn keep(&mut self, before: usize, after: usize) {
        if before != after {
            self.outbox.keep(before as u64, after as u64);
        }
    }

    /// Returns the bytes of the watch's incoming stream from `offset` on, of which `end` were
    /// appended. `None` if the journal does not have them any more.
    #[must_use]
    pub fn data_since(&self, offset: u64, end: u64) -> Option<Vec<u8>> {
        self.outbox
            .data_since(self.control.about.watch, offset, end)
    }

    /// Returns whether an event for which no room was set aside fits. If not, the watch is
    /// [held](super::Watch::hold) until it fits.
    pub fn has_room(&mut self) -> bool {
        self.outbox.has_room(1)
    }

    /// Returns whether an event of at most that many bytes, for which no room was set aside, fits.
    /// If not, the rest is as with [`Context::has_room`].
    pub fn has_room_for(&mut self, bytes: u32) -> bool {
        self.room_for(bytes) > 0
    }

    /// Returns whether so many events of at most that many bytes each fit, for which no room was set
    /// aside. If not, the rest is as with [`Context::has_room`].
    pub fn has_room_for_all(&mut self, events: u64, bytes: u32) -> bool {
        let fit = events == 0 || self.room_for(bytes) >= events;
        if !fit {
            self.outbox.mark_full();
        }
        fit
    }

    /// Returns how many events of at most that many bytes each fit, for which no room was set aside.
    /// If none does, the rest is as with [`Context::has_room`].
    pub fn room_for(&mut self, bytes: u32) -> u64 {
        let fit = self.outbox.room().over(Room::event(bytes));
        if fit == 0 {
            self.outbox.mark_full();
        }
        fit
    }

    /// Returns how many bytes the watch may read now, without the driver, so that all loops together
    /// stay within the memory.
    #[must_use]
    pub fn read_budget(&self) -> u64 {
        self.outbox.turn_bytes() / 2
    }

    /// Reserves room for an event to come: `Ready`, `WritePaused` or `WriteResumed`.
    ///
    /// # Errors
    /// There is no room; the rest is as with [`Context::has_room`].
    pub fn reserve(&mut self) -> Result<()> {
        let reserved = self.outbox.reserve(ONE_BY_ONE);
        if reserved.is_ok() {
            self.control.reserved += 1;
        } else {
            self.outbox.mark_full();
        }
        reserved
    }

    /// Reserves room for one event to come, of at most that many bytes, as part of its [`Need`].
    ///
    /// # Errors
    /// There is no room; the rest is as with [`Context::has_room`].
    pub fn reserve_event(&mut self, bytes: u32) -> Result<()> {
        let reserved = self.outbox.reserve(Room::event(bytes));
        match reserved {
            Ok(()) => *self.need = self.need.and(bytes),
            Err(_) => self.outbox.mark_full(),
        }
        reserved
    }

    /// Releases the room of [`Context::reserve_event`], right before that event.
    pub fn release_event(&mut self, bytes: u32) {
        *self.need = self.need.without(bytes);
        self.outbox.unreserve(Room::event(bytes));
    }

    /// As [`Context::emit`], for an event whose room was reserved by [`Context::reserve`].
    pub fn emit_reserved(&mut self, kind: Kind) -> u64 {
        self.unreserve();
        self.emit(kind)
    }

    /// Releases the room of one event that was reserved and will not come.
    pub fn unreserve(&mut self) {
        if self.control.reserved > 0 {
            self.control.reserved -= 1;
            self.outbox.unreserve(ONE_BY_ONE);
        }
    }

    /// See [`Grants::grant`].
    ///
    /// # Errors
    /// As for [`Grants::grant`].
    pub fn grant(&mut self, need: Need, count: u32) -> Result<u32> {
        self.ledger.grant(self.outbox, need, count)
    }

    /// See [`Grants::give_back`].
    pub fn give_back(&mut self, need: Need, count: u32) {
        self.ledger.give_back(self.outbox, need, count);
    }

    /// Reserves a source beyond those of its [`Need`]. Returns false if the loop has no more.
    pub fn one_more_source(&mut self) -> bool {
        let granted = self.ledger.grant_source();
        self.need.sources += u32::from(granted);
        granted
    }

    /// Releases room of its [`Need`] in the journal, that many bytes.
    pub fn release_room(&mut self, bytes: u32) {
        let bytes = bytes.min(self.need.bytes);
        self.need.bytes -= bytes;
        self.outbox.unreserve(Room {
            events: 0,
            bytes: bytes.into(),
        });
    }

    /// Releases the sources reserved beyond `most` that it has not attached.
    pub fn keep_sources(&mut self, most: u32) {
        let kept = self
            .control
            .sources
            .count()
            .max(most)
            .min(self.need.sources);
        self.ledger.give_back_sources(self.need.sources - kept);
        self.need.sources = kept;
    }

    /// Gives a file descriptor to the driver. A source was reserved for it. If the system refuses,
    /// the end of the watch is requested with that error.
    pub fn attach(&mut self, fd: OwnedFd, mode: Nonblocking) -> Option<SourceId> {
        match self.driver.attach(fd, mode) {
            Ok(source) => {
                self.control.sources.attach(source);
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

    /// Starts an operation. The lane must be free. Does nothing while operations are cancelled because
    /// the watch ends, since the end would wait for this one: it would be cancelled, and perhaps started
    /// again, for ever.
    pub fn start(&mut self, lane: Lane, source: SourceId, op: Op) {
        debug_assert!(!self.is_live(lane), "lane {lane:?} is taken");
        if self.is_cancelling() {
            return;
        }
        self.control.sources.start(lane, source, op.direction());
        let id = OpId {
            watch: self.control.key,
            lane,
        };
        self.driver.start(id, source, op);
    }

    /// Returns whether the lane has a live operation.
    #[must_use]
    pub fn is_live(&self, lane: Lane) -> bool {
        self.control.sources.of_lane(lane).is_some()
    }

    /// Cancels the lane's operation, if it has one.
    pub fn cancel(&mut self, lane: Lane) {
        let watch = self.control.key;
        if let Some(source) = self.control.sources.of_lane(lane) {
            self.driver.cancel(OpId { watch, lane }, source);
        }
    }

    /// Removes a source without live operations from the driver. It is closed with the next commit.
    pub fn release(&mut self, source: SourceId) {
        let shared = self.driver.is_shared(source);
        if let Some(fd) = self.take(source) {
            self.afterwards.push(Afterwards::Close(fd, shared));
        }
    }

    /// Removes a source without live operations from the driver and returns its descriptor.
    pub fn take(&mut self, source: SourceId) -> Option<OwnedFd> {
        self.control.sources.detach(source);
        self.driver.detach(source)
    }

    /// Closes files that are no sources with the next commit.
    pub(crate) fn close_files(&mut self, files: Vec<OwnedFd>) {
        if !files.is_empty() {
            self.drop_later((files, Closing));
        }
    }

    /// Drops something with the next commit, on a thread that may block.
    pub(crate) fn drop_later(&mut self, it: impl Send + 'static) {
        self.afterwards.push(Afterwards::Drop(Box::new(it)));
    }

    /// Has the rest of the output of its child read and dropped from the next commit on.
    pub(crate) fn drain(&mut self, output: OwnedFd, pid: i32, stream: Stream) {
        self.afterwards.push(Afterwards::Drain(output, pid, stream));
    }

    /// Has the start of its child count as recorded with the next commit.
    pub(crate) fn started(&mut self, start: Start) {
        self.afterwards.push(Afterwards::Started(start));
    }

    /// Has a child reaped with the next commit.
    pub(crate) fn reap(&mut self, reaping: Reaping) {
        self.afterwards.push(Afterwards::Reap(Box::new(reaping)));
    }

    /// Returns the file descriptor of a source, for system calls on it.
    #[must_use]
    pub fn fd(&self, source: SourceId) -> Option<BorrowedFd<'_>> {
        self.driver.fd(source)
    }

    /// Returns the first time at or after `at` at which timers of this loop fire, in nanoseconds of
    /// any clock.
    #[must_use]
    pub fn at_tick(&self, at: u64) -> u64 {
        match self.timer_tick {
            0 => at,
            tick => at.checked_next_multiple_of(tick).unwrap_or(u64::MAX),
        }
    }

    /// Says that what [`Watch::keep`](super::Watch::keep) returns has changed.
    pub const fn changed(&mut self) {
        self.changed = true;
    }

    /// Says that what [`Watch::progress`](super::Watch::progress) returns has changed.
    pub const fn progressed(&mut self) {
        self.progressed = true;
    }

    /// Sets the watch's one alarm.
    pub fn set_alarm(&mut self, at: Alarm) {
        self.alarm = Some(Some(at));
    }

    /// Sets the watch's one alarm to `delay` after the time of the turn.
    pub fn set_alarm_in(&mut self, delay: std::time::Duration) {
        let at = self
            .now
            .monotonic
            .saturating_add(crate::clock::nanos(delay));
        self.set_alarm(Alarm::Monotonic(at));
    }

    /// Removes the alarm.
    pub fn clear_alarm(&mut self) {
        self.alarm = Some(None);
    }

    /// Requests the end of the watch. Only the first request counts.
    pub fn close(&mut self, reason: CloseReason) {
        if self.control.end.is_none() {
            self.control.end = Some(Box::new(End {
                reason,
                error: None,
                failed_attempts: Vec::new(),
            }));
        }
    }

    /// Requests the end of the watch because of an error of the system.
    pub fn fail(&mut self, errno: Errno, step: &'static str) {
        self.close_with_error(SystemError::new(errno, step, ""));
    }

    /// As [`Context::fail`], with a whole error.
    pub fn close_with_error(&mut self, error: SystemError) {
        self.close_with_attempts(error, Vec::new());
    }

    /// As [`Context::close_with_error`], for a connection that could not be made. The watch has
    /// reserved room for its attempts, see [`largest::FAILED_ATTEMPT`].
    pub fn close_with_attempts(&mut self, error: SystemError, failed_attempts: Vec<FailedAttempt>) {
        if self.control.end.is_none() {
            self.control.end = Some(Box::new(End {
                reason: CloseReason::Error,
                error: Some(error),
                failed_attempts,
            }));
        }
    }

    /// Returns whether the end of the watch was requested.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.control.end.is_some()
    }

    /// Returns whether its end was requested from outside, and not as an abort.
    #[must_use]
    pub fn ends_in_order(&self) -> bool {
        let end = self.control.end.as_ref();
        end.is_some_and(|end| {
            use CloseReason::{LoopClosed, ProcessEnded, Removed};
            matches!(end.reason, Removed | LoopClosed | ProcessEnded)
        })
    }

    /// Returns until when (monotonic nanoseconds) the watch may delay its end to send the bytes
    /// that it has taken. `None` if it may not, because the end is not orderly or nothing is
    /// polled.
    #[must_use]
    pub fn linger_deadline(&self) -> Option<u64> {
        let until = crate::clock::nanos(self.services.transport.close_linger);
        let until = self.now.monotonic.saturating_add(until);
        (self.ends_in_order() && self.polled).then_some(until)
    }

    /// Returns whether its operations were cancelled because it ends.
    #[must_use]
    pub fn is_cancelling(&self) -> bool {
        self.control.cancelling
    }

    /// Records that the watch has ended its operations, as [`super::Teardown::Later`] requires.
    pub fn finish(&mut self) {
        self.control.finished = true;
    }

    /// Adds a watch for an accepted connection, whose room was granted.
    pub fn adopt(&mut self, adoption: Adoption) {
        self.adoptions.push(adoption);
    }
}
