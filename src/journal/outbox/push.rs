//! Numbers and encodes events. Readers see them after [`Outbox::commit`].

use super::{About, Entry, Outbox};
use crate::clock::Now;
use crate::event::{self, DatagramHead, Event, EventHead, Kind, Stream};
use crate::journal::Room;
use crate::kinds::event_kind;
use crate::proto::EventKind;

/// Encoded events are cut out of allocations of this many bytes.
const BLOCK: usize = 64 * 1024;
/// The smallest such allocation, which is used where there are many journals.
const BLOCK_MIN: usize = 4 * 1024;
/// The unused rest of larger allocations takes at most one part in this many of the memory.
const SPARE: u64 = 8;

/// The number of the kind `Data`.
pub(super) const DATA: u8 = EventKind::Data as u8;

impl Outbox {
    /// Appends an event and returns its sequence number.
    pub fn push(&mut self, now: Now, about: About, kind: Kind) -> u64 {
        let number = event_kind(&kind) as u8;
        let event = Event {
            seq: self.newest + 1,
            monotonic_ns: now.monotonic,
            realtime_ns: now.realtime,
            watch_id: about.watch,
            user_data: about.user_data,
            kind: Some(kind),
        };
        self.make_room();
        let bytes = event::encode(&event, &mut self.buf);
        self.pushed(now, about, number, bytes)
    }

    /// Appends a `Data` event with the bytes at that offset of a stream. Returns its sequence number.
    #[inline]
    pub fn push_data(&mut self, now: Now, about: About, place: (Stream, u64), data: &[u8]) -> u64 {
        let head = self.head(now, about);
        self.make_room();
        let bytes = event::encode_data(&head, place, data, &mut self.buf);
        self.pushed(now, about, DATA, bytes)
    }

    /// Appends a `Datagram` with this payload. Returns its sequence number.
    pub fn push_datagram(
        &mut self,
        now: Now,
        about: About,
        of: &DatagramHead<'_>,
        data: &[u8],
    ) -> u64 {
        let head = self.head(now, about);
        self.make_room();
        let bytes = event::encode_datagram(&head, of, data, &mut self.buf);
        self.pushed(now, about, EventKind::Datagram as u8, bytes)
    }

    const fn head(&self, now: Now, about: About) -> EventHead {
        EventHead {
            seq: self.newest + 1,
            now,
            watch: about.watch,
            user_data: about.user_data,
        }
    }

    #[inline]
    fn make_room(&mut self) {
        if self.buf.capacity() - self.buf.len() < 256 {
            let memory = &self.journal.memory;
            let part = memory.part(memory.limit() / SPARE);
            let block = usize::try_from(part).unwrap_or(BLOCK);
            self.buf.reserve(block.clamp(BLOCK_MIN, BLOCK));
        }
    }

    #[inline]
    fn pushed(&mut self, now: Now, about: About, kind: u8, bytes: usize) -> u64 {
        let bytes = bytes as u64;
        self.newest += 1;
        self.end += bytes;
        self.room = self.room.less(Room { events: 1, bytes });
        self.entries.push(Entry {
            end: self.end,
            watch: about.watch,
            upto: 0,
            labels: about.labels,
            kind,
        });
        self.now = now.monotonic;
        self.newest
    }
}
