//! What later lives of the daemon find of a loop beside its journal: its state, and its watches.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

pub use self::forms::{Clients, kept_lifetime_of, lifetime_of};
pub(super) use self::forms::{ending_of, need_of};
use self::forms::{kept_state, kept_watch};
pub(super) use self::found::descriptors_of;
pub use self::found::{FoundWatch, descriptors, listening};
use super::EventLoop;
use crate::id_map::IdMap;
use crate::proto::LoopState;
use crate::proto::state::{KeptBytes, KeptDescriptor, KeptWatch, KeptWatchState};
use crate::state::{Arena, Cell, Entry, Found, Kind, Owner, Records};
use crate::watch::{Doubts, Progress, Unsent};

mod forms;
mod found;

/// The kinds of a loop's records. The numbers stand in memory that later versions read.
const LOOP: u8 = 1;
const WATCH: u8 = 2;
const WATCH_STATE: u8 = 3;
/// Bytes that a watch has taken to send; the ids have no meaning.
const UNSENT: u8 = 4;
/// The numbers of [`Progress`].
const PROGRESS: u8 = 5;
/// The socket of a connection that was reported; the id is the number of its descriptor.
const ACCEPTED: u8 = 6;
/// What of a watch is in doubt if this life is killed before the turn is committed.
const DOUBT: u8 = 7;

/// What is kept of one watch.
#[derive(Debug, Default)]
struct Entries {
    watch: Option<Entry>,
    state: Option<Entry>,
    progress: Option<Cell<{ Progress::NUMBERS }>>,
    /// Parts of its outgoing stream, each with its end in it.
    unsent: VecDeque<(u64, Entry)>,
    doubt: Option<Cell<1>>,
}

impl Entries {
    fn into_all(self) -> impl Iterator<Item = Entry> {
        let unsent = self.unsent.into_iter().map(|(_, entry)| entry);
        let doubt = self.doubt.map(Cell::into_entry);
        let progress = self.progress.map(Cell::into_entry);
        let others = [self.watch, self.state, doubt, progress]
            .into_iter()
            .flatten();
        others.chain(unsent)
    }
}

/// The records of a loop.
#[derive(Debug)]
pub(super) struct Kept {
    records: Records,
    /// The state of the loop, and the newest id of a watch.
    state: Option<Cell<2>>,
    watches: IdMap<Entries>,
    /// By the numbers of their descriptors.
    accepted: HashMap<RawFd, Entry>,
    /// The ids of watches whose streams have progressed in this turn, with whether anything else of
    /// their state has changed.
    changed: BTreeMap<u64, bool>,
    /// The number of the newest record of unsent bytes.
    newest_unsent: u64,
    /// Something found no memory: it is missing in later lives.
    is_lossy: bool,
}

impl Kept {
    pub(super) fn new(arena: Arc<Arena>, owner: Owner) -> Self {
        Self::with(Records::new(arena, owner, Kind::Records))
    }

    fn with(records: Records) -> Self {
        Self {
            records,
            state: None,
            watches: IdMap::default(),
            accepted: HashMap::new(),
            changed: BTreeMap::new(),
            newest_unsent: 0,
            is_lossy: false,
        }
    }

    /// Takes over what an earlier life has left after the turn `committed`: the loop's state and the
    /// newest id of a watch, and the watches, in the order of their ids.
    pub(super) fn recover(
        arena: Arc<Arena>,
        owner: Owner,
        found: Vec<Found>,
        committed: u64,
    ) -> (Self, LoopState, u64, Vec<FoundWatch>) {
        let found = found
            .into_iter()
            .filter(|found| found.kind == Kind::Records);
        let (records, entries, damaged) =
            Records::recover(arena, owner, Kind::Records, found, committed);
        let mut kept = Self::with(records);
        kept.is_lossy = !damaged.is_empty();
        let (mut state, mut last_id) = (LoopState::Running, 0);
        let (mut unsent, mut doubts) = (Vec::new(), BTreeMap::new());
        for entry in entries {
            let id = entry.id();
            match entry.kind() {
                LOOP => {
                    let cell = Cell::<2>::recover(entry, committed);
                    let [number, last] = cell.get();
                    let number = i32::try_from(number).unwrap_or_default();
                    state = LoopState::try_from(number).unwrap_or(state);
                    last_id = last;
                    kept.state = Some(cell);
                }
                WATCH => kept.watches.get_or_insert_with(id, Entries::default).watch = Some(entry),
                WATCH_STATE => {
                    kept.watches.get_or_insert_with(id, Entries::default).state = Some(entry);
                }
                PROGRESS => {
                    let cell = Cell::recover(entry, committed);
                    kept.watches
                        .get_or_insert_with(id, Entries::default)
                        .progress = Some(cell);
                }
                ACCEPTED => {
                    if let Ok(number) = RawFd::try_from(id) {
                        kept.accepted.insert(number, entry);
                    }
                }
                UNSENT => {
                    kept.newest_unsent = kept.newest_unsent.max(id);
                    unsent.push(entry);
                }
                DOUBT => {
                    let (cell, uncommitted) = Cell::<1>::with_uncommitted(entry, committed);
                    doubts.insert(id, uncommitted.map_or(0, |[most]| most));
                    kept.watches.get_or_insert_with(id, Entries::default).doubt = Some(cell);
                }
                _ => kept.records.free_now(entry),
            }
        }
        let mut parts = kept.sort_unsent(unsent);
        let mut watches = Vec::new();
        let mut after = 0;
        while let Some(id) = kept.watches.next_after(after) {
            after = id;
            let Some(entries) = kept.watches.get(id) else {
                continue;
            };
            let bytes = |entry: &Option<Entry>| entry.as_ref().map(|entry| entry.bytes().to_vec());
            let watch = bytes(&entries.watch).and_then(|b| KeptWatch::decode(&*b).ok());
            let state = bytes(&entries.state).and_then(|b| KeptWatchState::decode(&*b).ok());
            match (watch, state) {
                (Some(watch), Some(state)) => watches.push(FoundWatch {
                    id,
                    watch,
                    state,
                    progress: entries
                        .progress
                        .as_ref()
                        .map(|cell| Progress::of(cell.get()))
                        .unwrap_or_default(),
                    unsent: parts.remove(&id).unwrap_or_default(),
                    in_doubt: doubts.remove(&id).unwrap_or_default(),
                }),
                _ => {
                    kept.is_lossy = true;
                    kept.forget_now(id);
                }
            }
        }
        (kept, state, last_id, watches)
    }

    fn forget_now(&mut self, id: u64) {
        let Some(entries) = self.watches.remove(id) else {
            return;
        };
        for entry in entries.into_all() {
            self.records.free_now(entry);
        }
    }

    /// Sorts what was found of bytes to send by their watches.
    fn sort_unsent(&mut self, found: Vec<Entry>) -> BTreeMap<u64, Vec<(u64, Bytes)>> {
        let mut sorted = Vec::new();
        for entry in found {
            match KeptBytes::decode(entry.bytes()) {
                Ok(kept) if self.watches.get(kept.watch_id).is_some() => {
                    sorted.push((kept.offset, kept, entry));
                }
                _ => self.records.free_now(entry),
            }
        }
        sorted.sort_by_key(|(offset, ..)| *offset);
        let mut parts: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        for (offset, kept, entry) in sorted {
            let end = offset + kept.data.len() as u64;
            if let Some(entries) = self.watches.get_mut(kept.watch_id) {
                entries.unsent.push_back((end, entry));
            }
            let of = parts.entry(kept.watch_id).or_default();
            of.push((offset, Bytes::from(kept.data)));
        }
        parts
    }

    /// Keeps how far the streams of a watch are.
    fn keep_progress(&mut self, turn: u64, id: u64, progress: Progress) {
        let entries = self.watches.get_or_insert_with(id, Entries::default);
        let numbers = progress.numbers();
        match &entries.progress {
            Some(cell) => cell.set(turn, numbers),
            None => match self.records.cell(turn, PROGRESS, id, numbers) {
                Ok(cell) => entries.progress = Some(cell),
                Err(_) => self.is_lossy = true,
            },
        }
    }

    /// Keeps what a watch has to send, and forgets what it has sent.
    fn keep_unsent(&mut self, turn: u64, id: u64, unsent: Option<Unsent<'_>>) {
        let entries = self.watches.get_or_insert_with(id, Entries::default);
        let Some(unsent) = unsent else {
            for (_, entry) in std::mem::take(&mut entries.unsent) {
                self.records.free(turn, entry);
            }
            return;
        };
        let is_sent = |(end, _): &(u64, Entry)| *end <= unsent.sent;
        while entries.unsent.front().is_some_and(is_sent)
            && let Some((_, sent)) = entries.unsent.pop_front()
        {
            self.records.free(turn, sent);
        }
        let mut kept_to = entries.unsent.back().map_or(unsent.sent, |(end, _)| *end);
        let mut at = unsent.sent;
        for part in unsent.queue {
            let end = at + part.len() as u64;
            if end > kept_to {
                let known = usize::try_from(kept_to - at).unwrap_or(0);
                let bytes = KeptBytes {
                    watch_id: id,
                    offset: kept_to,
                    data: part[known..].to_vec(),
                };
                self.newest_unsent += 1;
                let number = self.newest_unsent;
                match self
                    .records
                    .put(turn, UNSENT, number, &bytes.encode_to_vec())
                {
                    Ok(entry) => entries.unsent.push_back((end, entry)),
                    Err(_) => self.is_lossy = true,
                }
                kept_to = end;
            }
            at = end;
        }
    }

    /// Forgets the socket of a connection, which is closed.
    pub(super) fn forget_accepted(&mut self, number: RawFd) {
        if let Some(entry) = self.accepted.remove(&number) {
            self.records.free_now(entry);
        }
    }

    /// Passes the sockets of connections that were reported to `close`, and forgets those for which it
    /// returns true.
    pub(super) fn sift_accepted(&mut self, close: impl Fn(&KeptDescriptor) -> bool) {
        let closed = self.accepted.extract_if(|_, entry| {
            KeptDescriptor::decode(entry.bytes()).is_ok_and(|socket| close(&socket))
        });
        for (_, entry) in closed {
            self.records.free_now(entry);
        }
    }

    fn put(
        records: &mut Records,
        place: &mut Option<Entry>,
        turn: u64,
        (kind, id): (u8, u64),
        bytes: &[u8],
    ) -> bool {
        let put = match place {
            Some(entry) => records.replace(turn, entry, bytes),
            None => records
                .put(turn, kind, id, bytes)
                .map(|entry| *place = Some(entry)),
        };
        put.is_ok()
    }
}

impl Doubts for Option<Kept> {
    fn in_doubt(&mut self, turn: u64, watch: u64, most: u64) {
        let Some(kept) = self else { return };
        let entries = kept.watches.get_or_insert_with(watch, Entries::default);
        match &entries.doubt {
            Some(cell) => cell.set_one(turn, most),
            None => match kept.records.cell_now(turn, DOUBT, watch, [most]) {
                Ok(cell) => entries.doubt = Some(cell),
                Err(_) => kept.is_lossy = true,
            },
        }
    }
}

impl EventLoop {
    /// Notes that what is kept of how a watch stands has changed in this turn.
    pub(super) fn kept_changes(&mut self, slot: usize) {
        if let Some(kept) = &mut self.kept
            && let Some(record) = self.watches.get(slot)
        {
            kept.changed.insert(record.id(), true);
        }
    }

    /// Notes that the streams of a watch have progressed in this turn.
    pub(super) fn kept_progresses(&mut self, slot: usize) {
        if let Some(kept) = &mut self.kept
            && let Some(record) = self.watches.get(slot)
        {
            kept.changed.entry(record.id()).or_default();
        }
    }

    /// Keeps that the connection of this socket was reported. Until the socket is closed, a later life
    /// may find it without a watch, and must not report it again.
    pub(super) fn keep_accepted(&mut self, socket: &KeptDescriptor) {
        let turn = self.outbox.turn();
        let Some(kept) = &mut self.kept else { return };
        let id = u64::from(socket.number.unsigned_abs());
        let mut entry = kept.accepted.remove(&socket.number);
        let bytes = socket.encode_to_vec();
        let put = Kept::put(&mut kept.records, &mut entry, turn, (ACCEPTED, id), &bytes);
        kept.is_lossy |= !put;
        kept.accepted
            .extend(entry.map(|entry| (socket.number, entry)));
    }

    /// Keeps a watch as it was added or updated.
    pub(super) fn keep_watch_as_it_is(&mut self, slot: usize) {
        let turn = self.outbox.turn();
        let (Some(kept), Some(record)) = (&mut self.kept, self.watches.get(slot)) else {
            return;
        };
        let id = record.id();
        let bytes = kept_watch(record).encode_to_vec();
        let entries = kept.watches.get_or_insert_with(id, Entries::default);
        let put = Kept::put(
            &mut kept.records,
            &mut entries.watch,
            turn,
            (WATCH, id),
            &bytes,
        );
        kept.is_lossy |= !put;
        kept.changed.insert(id, true);
    }

    /// Forgets a watch that is removed.
    pub(super) fn keep_no_more(&mut self, id: u64) {
        let turn = self.outbox.turn();
        let Some(kept) = &mut self.kept else { return };
        kept.changed.remove(&id);
        let Some(entries) = kept.watches.remove(id) else {
            return;
        };
        for entry in entries.into_all() {
            kept.records.free(turn, entry);
        }
        self.outbox.mark_kept();
    }

    /// Writes what has changed in this turn to where later lives find it.
    pub(super) fn keep_changes(&mut self) {
        let turn = self.outbox.turn();
        let Some(kept) = &mut self.kept else { return };
        let own = [
            u64::from(i32::from(self.state).unsigned_abs()),
            self.watches.last_id(),
        ];
        match &kept.state {
            Some(cell) if cell.get() == own => {}
            Some(cell) => {
                cell.set(turn, own);
                self.outbox.mark_kept();
            }
            None => {
                match kept.records.cell(turn, LOOP, 0, own) {
                    Ok(cell) => kept.state = Some(cell),
                    Err(_) => kept.is_lossy = true,
                }
                self.outbox.mark_kept();
            }
        }
        for (id, has_changed) in std::mem::take(&mut kept.changed) {
            let record = self.watches.by_id(id).map(|slot| &self.watches[slot]);
            let Some(record) = record else { continue };
            if has_changed {
                let bytes = kept_state(record, &*self.driver).encode_to_vec();
                let entries = kept.watches.get_or_insert_with(id, Entries::default);
                let put = Kept::put(
                    &mut kept.records,
                    &mut entries.state,
                    turn,
                    (WATCH_STATE, id),
                    &bytes,
                );
                kept.is_lossy |= !put;
            }
            let watch = record.watch.as_ref();
            if let Some(progress) = watch.and_then(|watch| watch.progress()) {
                kept.keep_progress(turn, id, progress);
            }
            kept.keep_unsent(turn, id, watch.and_then(|watch| watch.unsent()));
            self.outbox.mark_kept();
        }
        if kept.is_lossy {
            self.outbox.lose();
        }
    }

    /// Frees what was kept before, once the turn is committed.
    pub(super) fn changes_are_kept(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.records.committed();
        }
    }
}
