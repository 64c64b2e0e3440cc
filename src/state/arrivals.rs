//! What a kernel has received and sent by itself for a loop, so that the next life finds bytes that
//! were received or sent, which is not committed.
//!
//! The kernel puts bytes into [`Buffer`]s, which outlive a life, and reports them in a completion queue,
//! which outlives it, too. A completion gets a receipt when it is processed. What was reported and not
//! processed stands in the queue: the receipts tell from where on, and where in the buffers those bytes
//! begin.

use std::ops::Range;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::arena::{Arena, Found, HEADER, Kind, Owner, Run};
use super::memory::{Part, WORD};
use super::uncommitted::{Sent, Uncommitted, Unrecorded};
use crate::faults::{self, Point};

/// The receipts there can be at once.
const RECEIPTS: usize = 8192;
/// The buffers there can be.
const BUFFERS: usize = 256;

/// The words at the beginning: the number of the ring's descriptor, how many completions were processed,
/// and the numbers of the first receipt that is needed and of the next one.
const RING: usize = 0;
const SEEN: usize = WORD;
const FIRST: usize = 2 * WORD;
const NEXT: usize = 3 * WORD;
/// The place of the buffer in a receipt of sent bytes.
const NO_BUFFER: u64 = 0xffff_ffff;
/// The offset of a stream that ends with its life: it has a receipt only for the place in the buffer.
const NO_OFFSET: u64 = u64::MAX;
/// For each buffer, where the next bytes in it begin.
const STARTS: usize = 4 * WORD;
/// The words of a receipt: the descriptor and the buffer, the bytes of the stream before it, where in
/// the buffer its bytes lie, and how many completions were processed with it.
const LOG: usize = STARTS + BUFFERS * WORD;
const RECEIPT: usize = 4 * WORD;
const LEN: usize = LOG + RECEIPTS * RECEIPT;

/// Memory that the kernel fills.
#[derive(Debug)]
pub struct Buffer {
    part: Part,
    _run: Run,
}

impl Buffer {
    #[cfg(test)]
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        self.part.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Returns where it begins. Whoever reads from it sees to it that the kernel does not write there.
    #[must_use]
    pub fn at(&mut self) -> NonNull<u8> {
        NonNull::from(self.part.bytes_mut()).cast()
    }
}

/// Bytes that the kernel has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The number of the descriptor.
    pub number: RawFd,
    /// The buffer that has them.
    pub buffer: u16,
    /// How many they are.
    pub len: usize,
}

/// What a ring has completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completed {
    /// It has received bytes.
    Arrived(Arrival),
    /// It has sent bytes.
    Sent {
        /// The number of the descriptor.
        number: RawFd,
        /// How many they are.
        len: usize,
    },
    /// Anything else.
    Other,
}

/// The receipts of one loop.
#[derive(Debug)]
pub struct Arrivals {
    arena: Arc<Arena>,
    owner: Owner,
    _run: Run,
    words: Part,
    seen: u32,
    first: u64,
    next: u64,
}

impl Arrivals {
    /// The bytes by which a buffer is shorter than the memory that it takes.
    pub const OVERHEAD: usize = HEADER;

    /// Makes them for the ring of that descriptor, of which `seen` completions were processed.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(arena: Arc<Arena>, owner: Owner, ring: RawFd, seen: u32) -> Result<Self, Errno> {
        let run = arena.take(Kind::Arrivals, owner, 0, LEN)?;
        let words = run.part();
        for word in [FIRST, NEXT] {
            words.word(word).store(0, Ordering::Relaxed);
        }
        words.word(SEEN).store(seen.into(), Ordering::Relaxed);
        let ring = ring.unsigned_abs().into();
        words.word(RING).store(ring, Ordering::Release);
        Ok(Self {
            arena,
            owner,
            _run: run,
            words,
            seen,
            first: 0,
            next: 0,
        })
    }

    /// Returns memory for the buffers from this number on.
    ///
    /// # Errors
    /// There is none.
    pub fn buffer(&self, first: u16, len: usize) -> Result<Buffer, Errno> {
        let run = self
            .arena
            .take(Kind::Buffers, self.owner, first.into(), len)?;
        Ok(Buffer {
            part: run.part(),
            _run: run,
        })
    }

    /// Says that the kernel fills a buffer from its beginning.
    pub fn provided(&self, buffer: u16) {
        self.start(buffer, 0);
    }

    fn start(&self, buffer: u16, at: usize) {
        let word = STARTS + usize::from(buffer) % BUFFERS * WORD;
        self.words.word(word).store(at as u64, Ordering::Release);
    }

    /// Returns the number of the next receipt. All before the one that [`Arrivals::committed`] is told
    /// are of no more use.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Says that a completion without bytes was processed.
    pub fn saw(&mut self) {
        self.seen = self.seen.wrapping_add(1);
        let seen = self.words.word(SEEN);
        seen.store(self.seen.into(), Ordering::Release);
    }

    /// Returns whether no receipt is of use any more.
    #[must_use]
    pub const fn is_committed(&self) -> bool {
        self.first == self.next
    }

    /// Returns how many more receipts there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        let used = usize::try_from(self.next - self.first).unwrap_or(RECEIPTS);
        RECEIPTS.saturating_sub(used)
    }

    /// Says that a completion was processed whose bytes lie at that place of a buffer; the stream had
    /// `offset` before, `None` for one that ends with this life. Returns false if there is no room for
    /// its receipt.
    pub fn took(&mut self, arrival: &Arrival, offset: Option<u64>, start: usize) -> bool {
        let place = (start as u64) << 32 | arrival.len as u64;
        let buffer = u64::from(arrival.buffer);
        let written = self.write(arrival.number, buffer, offset.unwrap_or(NO_OFFSET), place);
        self.start(arrival.buffer, start + arrival.len);
        self.saw();
        faults::point(Point::ArrivalSeen);
        written
    }

    /// Says that a completion was processed by which so many bytes of a stream were sent, after its first
    /// `offset`. Returns false if there is no room for its receipt.
    pub fn sent(&mut self, number: RawFd, offset: u64, len: usize) -> bool {
        let written = self.write(number, NO_BUFFER, offset, len as u64);
        self.saw();
        faults::point(Point::ArrivalSeen);
        written
    }

    fn write(&mut self, number: RawFd, buffer: u64, offset: u64, place: u64) -> bool {
        if self.room() == 0 {
            return false;
        }
        let at = receipt(self.next);
        let who = u64::from(number.unsigned_abs()) << 32 | buffer;
        for (word, value) in [
            (0, who),
            (1, offset),
            (2, place),
            (3, self.seen.wrapping_add(1).into()),
        ] {
            let word = self.words.word(at + word * WORD);
            word.store(value, Ordering::Relaxed);
        }
        faults::point(Point::ArrivalWritten);
        self.next += 1;
        // From here on the completion counts as processed.
        self.words.word(NEXT).store(self.next, Ordering::Release);
        faults::point(Point::ArrivalNoted);
        true
    }

    /// Says that all bytes are committed that have receipts with smaller numbers.
    pub fn committed(&mut self, first: u64) {
        if first > self.first {
            self.first = first.min(self.next);
            self.words.word(FIRST).store(self.first, Ordering::Release);
        }
    }

    /// Returns the number of the descriptor of an earlier life's ring.
    #[must_use]
    pub fn ring(found: &Found) -> Option<RawFd> {
        let words = words(found)?;
        RawFd::try_from(words.word(RING).load(Ordering::Acquire)).ok()
    }

    /// Returns what an earlier life's ring has transferred last. Some of it may be committed. `buffers`
    /// are all that were found of the loop; `queue` returns what the ring has completed after that many
    /// completions.
    ///
    /// # Errors
    /// Those of `queue`; something does not fit together.
    pub fn recover(
        found: &Found,
        buffers: &[Found],
        queue: impl FnOnce(u32) -> Result<Vec<Completed>, Errno>,
    ) -> Result<Uncommitted, Errno> {
        let words = words(found).ok_or(Errno::PROTO)?;
        let get = |at| words.word(at).load(Ordering::Acquire);
        let low = |word: u64| usize::try_from(word & 0xffff_ffff).unwrap_or(usize::MAX);
        let high = |word: u64| usize::try_from(word >> 32).unwrap_or(usize::MAX);
        let memory = Memory::of(buffers);
        let mut starts: Vec<_> = (0..BUFFERS).map(|n| low(get(STARTS + n * WORD))).collect();
        let mut seen = u32::try_from(get(SEEN)).map_err(|_| Errno::PROTO)?;
        let mut all = Uncommitted::default();
        let (first, next) = (get(FIRST), get(NEXT));
        for at in (first..next).take(RECEIPTS).map(receipt) {
            let [who, offset, place, after] = [0, 1, 2, 3].map(|word| get(at + word * WORD));
            let number = RawFd::try_from(who >> 32).map_err(|_| Errno::PROTO)?;
            if who & 0xffff_ffff == NO_BUFFER {
                all.sent.push(Sent {
                    number,
                    offset: Some(offset),
                    len: Some(place),
                });
            } else {
                let (start, len) = (high(place), low(place));
                let buffer = u16::try_from(who & 0xffff_ffff).map_err(|_| Errno::PROTO)?;
                let end = start.checked_add(len).ok_or(Errno::PROTO)?;
                if offset != NO_OFFSET {
                    all.taken.push(Unrecorded {
                        number,
                        offset: Some(offset),
                        bytes: memory.get(buffer, start..end)?,
                    });
                }
                *starts.get_mut(usize::from(buffer)).ok_or(Errno::PROTO)? = end;
            }
            let after = u32::try_from(after).map_err(|_| Errno::PROTO)?;
            // A receipt is written before what was seen, so it may be ahead by one.
            if after == seen.wrapping_add(1) {
                seen = after;
            }
        }
        for completed in queue(seen)? {
            let arrival = match completed {
                Completed::Arrived(arrival) => arrival,
                Completed::Sent { number, len } => {
                    let own = |one: &&Sent| one.number == number;
                    let before = all.sent.iter().rev().find(own);
                    let offset = before.and_then(|one| Some(one.offset? + one.len?));
                    let len = Some(len as u64);
                    all.sent.push(Sent {
                        number,
                        offset,
                        len,
                    });
                    continue;
                }
                Completed::Other => continue,
            };
            let start = starts.get_mut(usize::from(arrival.buffer));
            let start = start.ok_or(Errno::PROTO)?;
            let end = start.checked_add(arrival.len).ok_or(Errno::PROTO)?;
            let own = |one: &&Unrecorded| one.number == arrival.number;
            let offset = all.taken.iter().rev().find(own).and_then(Unrecorded::end);
            all.taken.push(Unrecorded {
                number: arrival.number,
                offset,
                bytes: memory.get(arrival.buffer, *start..end)?,
            });
            *start = end;
        }
        Ok(all)
    }
}

const fn receipt(number: u64) -> usize {
    // The remainder is small.
    #[allow(clippy::cast_possible_truncation)]
    let place = (number % RECEIPTS as u64) as usize;
    LOG + place * RECEIPT
}

fn words(found: &Found) -> Option<Part> {
    let words = (found.kind == Kind::Arrivals).then(|| found.run.part())?;
    (words.len() >= LEN).then_some(words)
}

/// The buffers of an earlier life, by the number of the first in each part.
struct Memory(Vec<(u64, Part)>);

impl Memory {
    fn of(found: &[Found]) -> Self {
        let buffers = found.iter().filter(|found| found.kind == Kind::Buffers);
        Self(
            buffers
                .map(|found| (found.run.ordinal(), found.run.part()))
                .collect(),
        )
    }

    fn get(&self, buffer: u16, range: Range<usize>) -> Result<Vec<u8>, Errno> {
        let own = |(first, _): &&(u64, Part)| *first == u64::from(buffer);
        let (_, part) = self.0.iter().find(own).ok_or(Errno::PROTO)?;
        let bytes = part.bytes().get(range).ok_or(Errno::PROTO)?;
        Ok(bytes.to_vec())
    }
}
