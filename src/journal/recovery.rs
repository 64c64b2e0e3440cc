//! Journals that later lives of the daemon find: what they leave, and how it is taken over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use prost::Message as _;
use rustix::io::Errno;

use super::consumers::Consumers;
use super::labels::LabelSets;
use super::log::{Known, Log, Remains};
use super::monitor::Monitor;
use super::progress::Progress;
use super::{Inner, Journal, Limits, Memory, Outbox, Room};
use crate::clock::Now;
use crate::error::{Error, Result, SystemError};
use crate::event::{Epoch, Labels, Scanned};
use crate::proto::state::KeptConsumer;
use crate::state::{Arena, Cell, Entry, Found, Keep, Kind, Owner, Piece, Records, Turns, Writer};

/// The kinds of a journal's records. The numbers stand in memory that later versions read.
pub(super) const CONSUMER: u8 = 1;
/// How far a consumer has acknowledged.
pub(super) const ACKED: u8 = 2;
/// An event that stays although its neighbours are gone; the id is its sequence number.
pub(super) const ISLAND: u8 = 3;
/// The labels of the events of a watch from one on; the id is its sequence number.
pub(super) const LABELS: u8 = 4;

/// The error for an epoch that cannot be made.
pub(super) const NO_RANDOM: Error = Error::Internal("the system has no random bytes for an epoch");

/// Returns the error for memory that cannot be had.
pub(super) fn no_memory(errno: Errno) -> Error {
    SystemError::new(errno, "memory", "memory that outlives the daemon").into()
}

/// What the writer of a kept journal has.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) writer: Writer,
    pub(super) turns: Turns,
}

/// What an earlier life has left of a journal.
#[derive(Debug)]
pub struct Recovered {
    arena: Arc<Arena>,
    owner: Owner,
    turns: Turns,
    newest: u64,
    pieces: Vec<Piece>,
    next_ordinal: u64,
    records: Records,
    islands: Vec<Entry>,
    labels: Vec<Entry>,
    consumers: Vec<(KeptConsumer, Entry, Cell<1>)>,
    is_damaged: bool,
    gives_back: bool,
}

impl Recovered {
    /// Sorts what was found of one owner, which is not all unless it `is_whole`; the rest is returned.
    /// `None` if there is no journal.
    #[must_use]
    pub fn sort(
        arena: &Arc<Arena>,
        owner: Owner,
        (found, is_whole): (Vec<Found>, bool),
    ) -> Option<(Self, Vec<Found>)> {
        let (mut turns, mut events, mut slabs, mut rest) = (None, vec![], vec![], vec![]);
        for found in found {
            match found.kind {
                Kind::Turns => turns = Turns::recover(found),
                Kind::Events => events.push(found),
                Kind::JournalRecords => slabs.push(found),
                Kind::Records
                | Kind::Receipts
                | Kind::Arrivals
                | Kind::Buffers
                | Kind::Starts
                | Kind::Requests
                | Kind::Slots => {
                    rest.push(found);
                }
            }
        }
        let (turns, newest) = turns?;
        events.sort_by_key(Found::ordinal);
        let next_ordinal = events.last().map_or(0, |last| last.ordinal() + 1);
        let all = events.len();
        let pieces: Vec<_> = events.into_iter().filter_map(Found::into_piece).collect();
        let (mut records, entries, damaged) = Records::recover(
            Arc::clone(arena),
            owner,
            Kind::JournalRecords,
            slabs,
            turns.current() - 1,
        );
        let is_damaged = !is_whole || turns.is_lossy() || pieces.len() < all || !damaged.is_empty();
        let (mut islands, mut named, mut acked, mut labels) = (vec![], vec![], vec![], vec![]);
        for entry in entries {
            match entry.kind() {
                ISLAND => islands.push(entry),
                CONSUMER => named.push(entry),
                ACKED => acked.push(entry),
                LABELS => labels.push(entry),
                _ => {}
            }
        }
        let mut consumers = Vec::new();
        for entry in named {
            let at = acked.iter().position(|acked| acked.id() == entry.id());
            match (at, KeptConsumer::decode(entry.bytes())) {
                (Some(at), Ok(consumer)) => {
                    let acked = Cell::recover(acked.swap_remove(at), u64::MAX);
                    consumers.push((consumer, entry, acked));
                }
                _ => records.free_now(entry),
            }
        }
        for entry in acked {
            records.free_now(entry);
        }
        islands.sort_by_key(Entry::id);
        let recovered = Self {
            arena: Arc::clone(arena),
            owner,
            turns,
            newest,
            pieces,
            next_ordinal,
            records,
            islands,
            labels,
            consumers,
            is_damaged,
            gives_back: false,
        };
        Some((recovered, rest))
    }

    /// Says that a life tries to go on with the loop. Returns how many have done so in vain; none of
    /// them counts unless it died `by_fault`.
    pub fn try_again(&self, by_fault: bool) -> u64 {
        let tries = if by_fault { self.turns.tries() } else { 0 };
        self.turns.set_tries(tries + 1);
        tries
    }

    /// Has all events given back that no consumer waits for: memory is short.
    pub const fn give_history_back(&mut self) {
        self.gives_back = true;
    }

    /// Returns the turn that was committed last.
    #[must_use]
    pub const fn committed(&self) -> u64 {
        self.turns.current() - 1
    }
}

impl Journal {
    /// Makes an empty journal with a new epoch, and its writer.
    ///
    /// # Errors
    /// The system has no random bytes for the epoch, or no memory.
    pub fn open(limits: Limits, memory: &Arc<Memory>, keep: &Keep) -> Result<(Arc<Self>, Outbox)> {
        let journal = Self::new(limits, memory)?;
        let mut outbox = Outbox::new(Arc::clone(&journal));
        if let Keep::Kept(arena, owner) = keep {
            let kept = Kept {
                writer: Writer::new(Arc::clone(arena), *owner, 0),
                turns: Turns::new(arena, *owner).map_err(no_memory)?,
            };
            outbox.keep_in(kept);
            let records = Records::new(Arc::clone(arena), *owner, Kind::JournalRecords);
            journal.monitor.with(|inner| inner.log.keep_in(records));
        }
        Ok((journal, outbox))
    }

    /// Takes over the journal of an earlier life. `watches` are those that are not removed, with their
    /// labels and the sequence number of their Added; `each` is called for every event that is there, the
    /// oldest first, with its encoding.
    ///
    /// The epoch is a new one if something is missing that was told.
    ///
    /// # Errors
    /// The system has no random bytes for a new epoch.
    pub fn recover(
        limits: Limits,
        memory: &Arc<Memory>,
        epoch: Epoch,
        recovered: Recovered,
        watches: impl IntoIterator<Item = (u64, Labels, u64)>,
        each: impl FnMut(&Scanned, &[u8]),
    ) -> Result<(Arc<Self>, Outbox)> {
        let Recovered {
            arena,
            owner,
            turns,
            newest,
            pieces,
            next_ordinal,
            records,
            islands,
            labels: marks,
            consumers,
            is_damaged,
            gives_back,
        } = recovered;
        let mut labels = LabelSets::default();
        let watches: HashMap<u64, Known> = watches
            .into_iter()
            .map(|(id, set, added)| {
                let labels = labels.intern(&set);
                (id, Known { labels, added })
            })
            .collect();
        let remains = Remains {
            pieces,
            newest,
            islands,
            records,
            labels: marks,
        };
        let memory = Arc::clone(memory);
        let log = Log::recover(
            limits,
            Arc::clone(&memory),
            remains,
            &watches,
            &mut labels,
            each,
        );
        // The loop takes them up again when it takes up its watches.
        for known in watches.values() {
            labels.release(known.labels);
        }
        let epoch = match is_damaged {
            false => epoch,
            true => Epoch::random().map_err(|_| NO_RANDOM)?,
        };
        let end = log.end();
        let mut known = Consumers::new(limits.consumers, limits.consumer_ttl);
        let now = Now::sample();
        for (consumer, entry, acked) in consumers {
            known.restore(consumer, entry, acked, newest, now);
        }
        let journal = Arc::new(Self {
            epoch,
            memory: Arc::clone(&memory),
            monitor: Monitor::new(Inner {
                log,
                labels,
                readers: 0,
                progress: Progress::new(limits.history),
                consumers: known,
                sources_paused: false,
                closed: false,
            }),
            changed: AtomicBool::new(false),
            caller: OnceLock::new(),
            gaps: AtomicU64::new(0),
        });
        journal.monitor.with(|inner| {
            inner.repin();
            if gives_back {
                let Inner { log, labels, .. } = inner;
                log.give_back(labels);
            }
            // What had given way before may be there again.
            inner.trim(Room::default());
        });
        memory.join(&journal);
        let mut outbox = Outbox::new(Arc::clone(&journal));
        let writer = Writer::new(arena, owner, next_ordinal);
        outbox.keep_in(Kept { writer, turns });
        outbox.go_on_after(newest, end);
        Ok((journal, outbox))
    }
}
