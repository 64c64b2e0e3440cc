//! Makes a log of what an earlier life of the daemon has appended.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::giving_way::is_fact;
use super::{Chunk, Island, IslandBytes, Log, REMOVED};
use crate::event::Scanned;
use crate::journal::labels::LabelSets;
use crate::journal::outbox::Entry;
use crate::journal::watches::Fate;
use crate::journal::{LabelSet, Limits, Memory, Room};
use crate::proto::EventKind;
use crate::state::{self, Piece, Records};

/// What a log has of an earlier life.
pub(in crate::journal) struct Remains {
    /// Encoded events, the oldest first.
    pub(in crate::journal) pieces: Vec<Piece>,
    /// The newest event that counts.
    pub(in crate::journal) newest: u64,
    /// Older events that stay, the oldest first.
    pub(in crate::journal) islands: Vec<state::Entry>,
    pub(in crate::journal) records: Records,
    /// The labels of events.
    pub(in crate::journal) labels: Vec<state::Entry>,
}

/// A watch that is not removed.
#[derive(Debug, Clone, Copy)]
pub(in crate::journal) struct Known {
    pub(in crate::journal) labels: LabelSet,
    /// The sequence number of its Added.
    pub(in crate::journal) added: u64,
}

impl Log {
    /// Makes a log of what is left. If some events are missing between others, only those after them are
    /// taken; if the newest are, none. `each` is called for every event that is taken, with its encoding.
    pub(in crate::journal) fn recover(
        limits: Limits,
        memory: Arc<Memory>,
        remains: Remains,
        watches: &HashMap<u64, Known>,
        labels: &mut LabelSets,
        mut each: impl FnMut(&Scanned, &[u8]),
    ) -> Self {
        let Remains {
            pieces,
            newest,
            islands,
            records,
            labels: marks,
        } = remains;
        let pieces = newest_without_hole(pieces, newest);
        let mut log = Self::new(limits, memory);
        log.records = Some(records);
        log.recover_marks(marks, newest, labels);
        log.first = pieces.first().map_or(newest + 1, |(first, _)| *first);
        let mut birth: HashMap<u64, bool> = HashMap::new();
        for entry in islands {
            log.recover_island(entry, watches, labels, |event, encoded| {
                let known = watches.get(&event.watch);
                birth.insert(
                    event.watch,
                    known.is_some_and(|known| known.added == event.seq),
                );
                each(event, encoded);
            });
        }
        // To let it grow would copy all of it again and again.
        log.entries
            .reserve(usize::try_from(newest + 1 - log.first).unwrap_or(0));
        let mut end = 0;
        // Events of one watch often follow each other.
        let mut last = (0, watches.get(&0));
        for (_, bytes) in pieces {
            let start = end;
            let mut rest = &bytes[..];
            while let Some(event) = Scanned::read(rest) {
                let (encoded, after) = rest.split_at(event.size);
                rest = after;
                end += event.size as u64;
                each(&event, encoded);
                if last.0 != event.watch {
                    last = (event.watch, watches.get(&event.watch));
                }
                let known = last.1;
                let now = known.map(|known| known.labels);
                let set = log.labels_of(event.watch, event.seq, now);
                labels.hold(set);
                let upto = log
                    .watches
                    .append(event.watch, event.size as u64, event.monotonic);
                log.entries.push_back(Entry {
                    end,
                    watch: event.watch,
                    upto,
                    labels: set,
                    kind: event.kind,
                });
                if event.kind == REMOVED {
                    log.note_removed(event.watch, event.seq);
                    log.watches.remove(event.watch);
                }
            }
            log.chunks.push_back(Chunk { start, bytes });
        }
        for (watch, known) in watches {
            let was_there = birth.get(watch).copied().unwrap_or(false);
            if known.added < log.first && !was_there {
                log.watches.lost_before(*watch, log.first - 1);
            }
        }
        log.forget_other_marks(watches, labels);
        log.counted = log.newest();
        let held = Room {
            events: log.events(),
            bytes: log.bytes(),
        };
        log.memory.add(held.cost());
        log
    }

    fn recover_island(
        &mut self,
        entry: state::Entry,
        watches: &HashMap<u64, Known>,
        labels: &mut LabelSets,
        mut each: impl FnMut(&Scanned, &[u8]),
    ) {
        let event = Scanned::read(entry.bytes()).filter(|event| event.seq < self.first);
        let known = event.and_then(|event| watches.get(&event.watch));
        let (Some(event), Some(known)) = (event, known) else {
            // It is still in the ring, or its watch was removed.
            if let Some(records) = &mut self.records {
                records.free_now(entry);
            }
            return;
        };
        each(&event, entry.bytes());
        let size = event.size as u64;
        let is_fact = EventKind::try_from(i32::from(event.kind)).is_ok_and(is_fact);
        let fate = if is_fact { Fate::Fact } else { Fate::Island };
        let upto = self.watches.append(event.watch, size, event.monotonic);
        let set = self.labels_of(event.watch, event.seq, Some(known.labels));
        labels.hold(set);
        self.island_bytes += size;
        if is_fact {
            self.facts.events += 1;
            self.facts.bytes += size;
        }
        let island = Island {
            bytes: IslandBytes::Kept(entry),
            entry: Entry {
                end: 0,
                watch: event.watch,
                upto,
                labels: set,
                kind: event.kind,
            },
            is_fact,
        };
        self.islands.insert(event.seq, Box::new(island));
        self.watches.islanded(event.watch, event.seq, size, fate);
    }

    /// Returns where the newest event ends, counted over all bytes of the ring.
    pub(in crate::journal) fn end(&self) -> u64 {
        self.entries.back().map_or(self.start, |last| last.end)
    }
}

/// Cuts off what comes after `newest`, and drops what lies before a hole. Returns the pieces, each with
/// the number of its first event.
fn newest_without_hole(pieces: Vec<Piece>, newest: u64) -> Vec<(u64, Bytes)> {
    let mut kept: Vec<(u64, Bytes)> = Vec::new();
    let mut next = 1;
    for piece in pieces {
        let mut rest = piece.bytes();
        let mut first = None;
        while let Some(event) = Scanned::read(rest)
            && event.seq <= newest
        {
            if first.is_none() && event.seq != next {
                kept.clear();
                next = event.seq;
            }
            if event.seq != next {
                break;
            }
            first.get_or_insert(next);
            next += 1;
            rest = &rest[event.size..];
        }
        let len = piece.bytes().len() - rest.len();
        let bytes = piece.cut(len);
        kept.extend(first.map(|first| (first, bytes)));
    }
    if next != newest + 1 {
        kept.clear();
    }
    kept
}
