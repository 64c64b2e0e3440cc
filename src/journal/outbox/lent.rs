//! Room that other threads may use while the loop's thread waits.

use super::{AMPLE, Outbox};
use crate::journal::Room;

/// One part in this many of the room is lent.
const PART: u64 = 8;

impl Outbox {
    /// Sets aside room for what other threads append while the loop's thread waits.
    /// [`Outbox::room`] leaves it out, so that sources do not use it meanwhile. Nothing is lent
    /// while the journal is short of room, or has work for the loop.
    pub fn lend(&mut self) {
        let busy = self.sources_paused || self.behind || self.unsynchronized || self.marked_full;
        if busy || !self.entries.is_empty() {
            return;
        }
        let room = self.room();
        self.lent = Room {
            events: (room.events / PART).min(AMPLE.events),
            bytes: (room.bytes / PART).min(AMPLE.bytes),
        };
    }

    /// Ends what [`Outbox::lend`] began.
    pub fn take_back(&mut self) {
        self.lent = Room::default();
    }

    /// Takes room out of what is lent. Returns false if there is too little, also because other
    /// loops have used up the memory since.
    pub fn borrow_room(&mut self, wanted: Room) -> bool {
        let fits = self.lent.holds(wanted) && self.room().holds(wanted);
        if fits {
            self.lent = self.lent.less(wanted);
        }
        fits
    }

    /// Does the same as [`Outbox::commit`], on another thread than the loop's. Returns whether the
    /// loop has to call [`Outbox::expire`] earlier than it expects.
    pub fn commit_lent(&mut self) -> bool {
        let before = self.next_expiry;
        self.commit_and(|woken, _| woken.for_each(std::task::Waker::wake));
        let earlier = |at| before.is_none_or(|before| at < before);
        self.next_expiry.is_some_and(earlier)
    }
}
