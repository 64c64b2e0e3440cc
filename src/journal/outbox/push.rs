//! Numbers and encodes events. Readers see them after [`Outbox::commit`].

use super::{About, Entry, Outbox};
use crate::clock::Now;
use crate::event::{
    DataEvent, DatagramEvent, DatagramHead, Encode, Event, EventHead, Kind, Stream, WholeEvent,
};
use crate::journal::Room;
use crate::journal::log::may_change;
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
        self.put(now, about, number, WholeEvent::new(&event))
    }

    /// Appends a `Data` event with the bytes at that offset of a stream. Returns its sequence number.
    #[inline]
    pub fn push_data(&mut self, now: Now, about: About, place: (Stream, u64), data: &[u8]) -> u64 {
        let head = self.head(now, about);
        self.put(now, about, DATA, DataEvent::new(&head, place, data))
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
        let event = DatagramEvent::new(&head, of, data);
        self.put(now, about, EventKind::Datagram as u8, event)
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
    fn put(&mut self, now: Now, about: About, kind: u8, event: impl Encode) -> u64 {
        let memory = &self.journal.memory;
        let block = || {
            let part = memory.part(memory.limit() / SPARE);
            let block = usize::try_from(part).unwrap_or(BLOCK);
            block.clamp(BLOCK_MIN, BLOCK)
        };
        let bytes = self.buf.append(event, block);
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
        self.has_marks |= may_change(kind);
        self.now = now.monotonic;
        self.newest
    }
}
