//! Appends bytes to runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use crc32fast::Hasher;

use super::arena::{Arena, Found, HEADER, Kind, Owner, Run};
use super::memory::{Part, into_bytes};
use crate::faults::{self, Point};

/// The run that is written to.
#[derive(Debug)]
struct Open {
    run: Arc<Run>,
    /// What is written and not committed, and what is free.
    rest: Part,
    written: usize,
    committed: usize,
    checksum: Hasher,
}

impl Open {
    fn room(&self) -> usize {
        self.rest.len() - self.written
    }

    /// Returns what is written, and the word that commits it.
    fn seal(&mut self) -> (u64, Bytes) {
        self.checksum.update(&self.rest.bytes()[..self.written]);
        self.committed += self.written;
        let rest = self.rest.split_off(self.written);
        let part = std::mem::replace(&mut self.rest, rest);
        self.written = 0;
        let word = (self.committed as u64) << 32 | u64::from(self.checksum.clone().finalize());
        (word, into_bytes(part, Arc::clone(&self.run)))
    }
}

/// Bytes that are written to a run which is full by now, and not committed.
#[derive(Debug)]
struct Sealed {
    /// The run, and the word that commits them; `None` if they are in other memory.
    run: Option<(Arc<Run>, u64)>,
    bytes: Bytes,
}

/// Appends bytes to runs of one owner. What is committed is found by the next life, each run's bytes
/// whole or up to an earlier commit.
#[derive(Debug)]
pub struct Writer {
    arena: Arc<Arena>,
    owner: Owner,
    /// Of the next run.
    ordinal: u64,
    open: Option<Open>,
    sealed: Vec<Sealed>,
    /// What is written where no run could be had, and not committed.
    lost: Vec<u8>,
    is_whole: bool,
    /// The most bytes of the next run, its header included, unless one piece needs more.
    next: usize,
}

/// Bytes of the first run. Each further one has twice as many, up to what is asked for: the memory of
/// runs is all there, so that many small journals should take little.
const FIRST: usize = 4 << 10;

impl Writer {
    /// Makes a writer. Its runs come after those with a lower ordinal.
    #[must_use]
    pub const fn new(arena: Arc<Arena>, owner: Owner, ordinal: u64) -> Self {
        Self {
            arena,
            owner,
            ordinal,
            open: None,
            sealed: Vec::new(),
            lost: Vec::new(),
            is_whole: true,
            next: FIRST,
        }
    }

    /// Returns room for exactly `bytes` bytes in one piece, all of which the caller then writes. A new
    /// run for them has about `block` bytes, the first ones less. If there is no memory that would outlive this life, they
    /// are in other memory, and [`Writer::is_whole`] is false from then on.
    pub fn room(&mut self, bytes: usize, block: impl FnOnce() -> usize) -> &mut [u8] {
        if self.open.as_ref().is_none_or(|open| open.room() < bytes) {
            self.next_run(bytes, block());
        }
        match &mut self.open {
            Some(open) => {
                let at = open.written;
                open.written += bytes;
                &mut open.rest.bytes_mut()[at..at + bytes]
            }
            None => {
                let at = self.lost.len();
                self.lost.resize(at + bytes, 0);
                &mut self.lost[at..]
            }
        }
    }

    fn next_run(&mut self, bytes: usize, block: usize) {
        self.seal();
        let len = bytes.max(block.min(self.next).saturating_sub(HEADER));
        self.next = (self.next * 2).min(block.max(FIRST));
        let run = self.arena.take(Kind::Events, self.owner, self.ordinal, len);
        self.ordinal += 1;
        match run {
            Ok(run) => {
                let run = Arc::new(run);
                self.open = Some(Open {
                    rest: run.part(),
                    run,
                    written: 0,
                    committed: 0,
                    checksum: Hasher::new(),
                });
            }
            Err(errno) => {
                if std::mem::replace(&mut self.is_whole, false) {
                    tracing::error!(%errno, "no memory that outlives the daemon: events are lost if it dies");
                }
            }
        }
    }

    /// Ends the run that is written to.
    fn seal(&mut self) {
        if !self.lost.is_empty() {
            let bytes = std::mem::take(&mut self.lost).into();
            self.sealed.push(Sealed { run: None, bytes });
        }
        if let Some(mut full) = self.open.take()
            && full.written > 0
        {
            let (word, bytes) = full.seal();
            let run = Some((full.run, word));
            self.sealed.push(Sealed { run, bytes });
        }
    }

    /// Returns whether the next life finds all that was committed.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Returns the bytes that are written and not committed, in pieces, the oldest first.
    pub fn pending(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        let sealed = self.sealed.iter().map(|sealed| &sealed.bytes[..]);
        let open = self.open.iter().filter(|open| open.written > 0);
        let open = open.map(|open| &open.rest.bytes()[..open.written]);
        let lost = Some(&self.lost[..]).filter(|lost| !lost.is_empty());
        sealed.chain(lost).chain(open)
    }

    /// Commits all that is written, and passes it to `take` in pieces.
    pub fn commit(&mut self, mut take: impl FnMut(Bytes)) {
        if !self.lost.is_empty() {
            self.seal();
        }
        for Sealed { run, bytes } in self.sealed.drain(..) {
            if let Some((run, word)) = run {
                run.committed().store(word, Ordering::Release);
                faults::point(Point::RunCommitted);
            }
            take(bytes);
        }
        if let Some(open) = self.open.as_mut().filter(|open| open.written > 0) {
            let (word, bytes) = open.seal();
            open.run.committed().store(word, Ordering::Release);
            faults::point(Point::RunCommitted);
            take(bytes);
        }
    }
}

/// Bytes that an earlier life has committed. Their memory is kept as long as they are.
#[derive(Debug)]
pub struct Piece {
    run: Arc<Run>,
    bytes: Bytes,
}

impl Found {
    /// Returns what was committed of appended bytes; `None` if it is damaged.
    #[must_use]
    pub fn into_piece(self) -> Option<Piece> {
        let word = self.run.committed().load(Ordering::Acquire);
        let len = usize::try_from(word >> 32).unwrap_or(usize::MAX);
        let mut part = self.run.part();
        if self.kind != Kind::Events || len > part.len() {
            return None;
        }
        drop(part.split_off(len));
        let checksum = u64::from(crc32fast::hash(part.bytes()));
        let run = Arc::new(self.run);
        (checksum == word & 0xffff_ffff).then(|| Piece {
            bytes: into_bytes(part, Arc::clone(&run)),
            run,
        })
    }

    /// Returns its place among the runs of its kind and owner.
    #[must_use]
    pub fn ordinal(&self) -> u64 {
        self.run.ordinal()
    }
}

impl Piece {
    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the first `len` bytes. No later life finds the rest.
    #[must_use]
    pub fn cut(mut self, len: usize) -> Bytes {
        if len < self.bytes.len() {
            self.bytes.truncate(len);
            let checksum = u64::from(crc32fast::hash(&self.bytes));
            let word = (len as u64) << 32 | checksum;
            self.run.committed().store(word, Ordering::Release);
        }
        self.bytes
    }
}
