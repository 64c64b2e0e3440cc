//! Counts the datagrams that the kernel has dropped, and tells them.
//!
//! It drops mostly while the buffer is full, and a full buffer is read, so that a look after each
//! read finds those. What it drops while the watch does not read, or because a datagram is damaged or
//! UDP as a whole has no memory left, is found by looks at a slow pace.

use std::os::fd::BorrowedFd;

use super::DatagramWatch;
use super::names::Family;
use crate::event::{DatagramsDropped, Kind, largest};
use crate::sys::datagram;
use crate::watch::Context;

/// How long after the watch was added, paused or resumed it looks first, nanoseconds. Each later look
/// takes twice as long to come, so that a watch that goes on dropping does not fill the journal.
const FIRST_LOOK: u64 = 1_000_000_000;
/// The longest time between two looks, nanoseconds: the first one, doubled four times.
const LAST_LOOK: u64 = FIRST_LOOK << 4;

/// The drops of one socket. Those of a Unix socket do not exist: its sender waits.
#[derive(Debug)]
pub(super) struct Drops {
    /// The kernel's number that was seen last, modulo 2^32.
    seen: u32,
    /// Those that were counted.
    counted: u64,
    /// Those of them that were told.
    told: u64,
    /// The time between two looks, nanoseconds.
    pace: u64,
}

impl Drops {
    /// Counts what the socket drops from now on.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Self {
        Self {
            seen: datagram::dropped(fd).unwrap_or(0),
            counted: 0,
            told: 0,
            pace: FIRST_LOOK,
        }
    }

    /// Returns those that were counted and those that came since; `None` is a socket that is gone.
    pub(super) fn as_of_now(&self, fd: Option<BorrowedFd<'_>>) -> u64 {
        let seen = fd.and_then(|fd| datagram::dropped(fd).ok());
        let seen = seen.unwrap_or(self.seen);
        self.counted + u64::from(seen.wrapping_sub(self.seen))
    }

    pub(super) const fn told(&self) -> u64 {
        self.told
    }

    fn count(&mut self, fd: BorrowedFd<'_>) {
        if let Ok(seen) = datagram::dropped(fd) {
            self.counted += u64::from(seen.wrapping_sub(self.seen));
            self.seen = seen;
        }
    }

    /// Returns the event that tells those that were not told, and records that it is appended.
    fn tell(&mut self) -> Kind {
        let count = self.counted - self.told;
        self.told = self.counted;
        Kind::DatagramsDropped(DatagramsDropped {
            count,
            total: self.counted,
            ..DatagramsDropped::default()
        })
    }

    /// Returns the kernel's number that was seen last, those that were counted, and those of them that
    /// were told.
    pub(super) const fn kept(&self) -> (u32, u64, u64) {
        (self.seen, self.counted, self.told)
    }

    /// Goes on as the drops of an earlier life.
    pub(super) const fn go_on(&mut self, (seen, counted, told): (u32, u64, u64)) {
        (self.seen, self.counted, self.told) = (seen, counted, told);
    }

    const fn has_news(&self) -> bool {
        self.counted > self.told
    }
}

/// What an earlier life may have taken without telling it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) in_doubt: u64,
    pub(super) unsent: u64,
    pub(super) queue_lost: bool,
}

impl DatagramWatch {
    fn count_drops(&mut self, cx: &Context<'_>) {
        if self.family != Family::Unix
            && let Some(fd) = self.source.and_then(|source| cx.fd(source))
        {
            self.drops.count(fd);
        }
    }

    /// Tells what the kernel has dropped, if the journal has room for that.
    pub(super) fn tell_drops(&mut self, cx: &mut Context<'_>) {
        self.count_drops(cx);
        if self.drops.has_news() && !self.held && cx.has_room_for(largest::DATAGRAMS_DROPPED) {
            let told = self.drops.tell();
            cx.emit(told);
            cx.changed();
        }
    }

    /// Tells what the death of an earlier life has left in doubt, if the journal has room for that.
    pub(super) fn tell_loss(&mut self, cx: &mut Context<'_>) {
        if self.loss == Loss::default() || !cx.has_room_for(largest::DATAGRAMS_DROPPED) {
            return;
        }
        let Loss {
            in_doubt,
            unsent,
            queue_lost,
        } = std::mem::take(&mut self.loss);
        cx.emit(Kind::DatagramsDropped(DatagramsDropped {
            count: 0,
            total: self.drops.counted,
            in_doubt,
            unsent,
            queue_lost,
        }));
        cx.changed();
    }

    /// As [`Self::tell_drops`], for the last time, in the room that is set aside for it.
    pub(super) fn tell_last_drops(&mut self, cx: &mut Context<'_>) {
        self.count_drops(cx);
        if self.drops.has_news() {
            cx.release_event(largest::DATAGRAMS_DROPPED);
            let told = self.drops.tell();
            cx.emit(told);
        }
    }

    /// Looks for drops again, at first soon.
    pub(super) fn look_soon(&mut self, cx: &Context<'_>) {
        self.drops.pace = FIRST_LOOK;
        self.look_later(cx);
    }

    /// Looks for drops and for groups that can be joined again, and later again.
    pub(super) fn look(&mut self, cx: &mut Context<'_>) {
        self.tell_drops(cx);
        self.tell_loss(cx);
        self.tell_groups(cx);
        self.rejoin(cx);
        self.drops.pace = (self.drops.pace * 2).min(LAST_LOOK);
        self.look_later(cx);
    }

    /// Sets the time of the next look. The looks of all watches of one pace come at the same times,
    /// so that a loop with many watches wakes up once for all of them.
    fn look_later(&mut self, cx: &Context<'_>) {
        if self.family != Family::Unix {
            let pace = self.drops.pace;
            self.due.look = Some((cx.now.monotonic / pace + 1) * pace);
        }
    }
}
