//! Finds bytes of a stream again that were appended before.

use bytes::Bytes;
use prost::Message as _;

use super::push::DATA;
use super::{Entry, Outbox};
use crate::event::Kind;
use crate::proto::{Batch, Data};

/// The most events that are looked at.
const LOOK_MAX: usize = 16 * 1024;

impl Outbox {
    /// Returns the bytes of a watch's stream from `offset` on, of which `end` were appended. `None`
    /// if they are not among the newest events any more. The watch has one incoming stream.
    #[must_use]
    pub fn data_since(&self, watch: u64, offset: u64, end: u64) -> Option<Vec<u8>> {
        let mut found = Found {
            watch,
            offset,
            next: end,
            chunks: Vec::new(),
        };
        let mut limit = LOOK_MAX;
        let mut begins = self.entries.iter().rev().skip(1).map(|entry| entry.end);
        let committed = self.end - self.buf.len() as u64;
        for entry in self.entries.iter().rev().take(limit) {
            let begin = begins.next().unwrap_or(committed);
            if found.wants(entry) {
                let at = |place: u64| usize::try_from(place - committed).ok();
                let bytes = self.buf.get(at(begin)?, at(entry.end)?)?;
                found.take(bytes);
            }
        }
        limit = limit.saturating_sub(self.entries.len());
        let newest = self.newest - self.entries.len() as u64;
        self.journal.monitor.with(|inner| {
            for seq in (0..=newest).rev().take(limit) {
                let Some(entry) = inner.log.entry(seq).filter(|_| found.next > offset) else {
                    return;
                };
                if found.wants(entry) {
                    let mut bytes = Vec::new();
                    let mut add = |slice: Bytes| bytes.extend_from_slice(&slice);
                    inner.log.slices(seq..seq + 1, &mut add);
                    found.take(&bytes);
                }
            }
        });
        let Found { next, chunks, .. } = found;
        (next == offset).then(|| chunks.into_iter().rev().flatten().collect())
    }
}

/// The search, from the newest event back.
struct Found {
    watch: u64,
    /// Where the wanted bytes begin.
    offset: u64,
    /// Where the bytes that are found begin.
    next: u64,
    /// The found bytes, the newest chunk first.
    chunks: Vec<Bytes>,
}

impl Found {
    fn wants(&self, entry: &Entry) -> bool {
        self.next > self.offset && entry.watch == self.watch && entry.kind == DATA
    }

    /// Takes what is wanted of one encoded event.
    fn take(&mut self, event: &[u8]) {
        let batch = Batch::decode(event).ok();
        let event = batch.and_then(|batch| batch.events.into_iter().next());
        let Some(Kind::Data(Data { offset, data, .. })) = event.and_then(|event| event.kind) else {
            return;
        };
        if offset + data.len() as u64 == self.next {
            let unwanted = self.offset.saturating_sub(offset);
            let unwanted = usize::try_from(unwanted).unwrap_or(usize::MAX);
            self.chunks.push(data.slice(unwanted.min(data.len())..));
            self.next = offset.max(self.offset);
        }
    }
}
