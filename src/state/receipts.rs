//! What is read from descriptors and sent to them, so that the next life finds bytes that were taken
//! from the kernel or by it, which is not committed.
//!
//! Each read has a receipt. It is written before the read, with how many bytes are read at most: as
//! many as are there. The bytes lie in the memory of the receipts. Where they will be there is first
//! what they are not, so that a life which is killed in the middle leaves behind whether they were
//! taken. A receipt says where in the stream its bytes begin: what is committed is known by that.
//!
//! What is sent goes through a pipe that nobody else has, the *relay*, and from there to its receiver
//! without a copy. So how many bytes the receiver has taken is known by how many are left in the relay.
//! Not everything can be sent so; of any other send it is known whether it was under way.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::arena::{Arena, Found, Kind, Owner, Run};
use super::memory::{Part, WORD};
use super::uncommitted::{Sent, Uncommitted, Unrecorded};

/// The most reads that have receipts at once.
const READS: usize = 512;
/// The bytes that these reads have together.
const ROOM: usize = 256 << 10;
/// The words before the reads: how many there are, and one more than the number of the relay's
/// descriptor, 0 without one.
const COUNT: usize = 0;
const RELAY: usize = WORD;
const FIRST: usize = 2 * WORD;
/// The words of a read: the descriptor, the bytes of the stream before it, where its bytes lie and how
/// many they are at most, the mark in their place, and one more than how many were taken; 0 if that is
/// not known. Of a send through the relay the first has [`RELAYED`], and the third is one more than how
/// many bytes are in the relay, 0 before they are. Of any other send it has [`SEND`].
const READ: usize = 5 * WORD;
const NUMBER: usize = 0;
const OFFSET: usize = WORD;
const PLACE: usize = 2 * WORD;
const MARK: usize = 3 * WORD;
const TAKEN: usize = 4 * WORD;
const DATA: usize = FIRST + READS * READ;
const RELAYED: u64 = 1 << 32;
const SEND: u64 = 1 << 33;

/// The receipts of one loop. They are of no more use once the turn with their bytes is committed.
#[derive(Debug)]
pub struct Receipts {
    arena: Arc<Arena>,
    owner: Owner,
    /// Where they are; `None` before the first read, as many loops never read.
    memory: Option<Memory>,
    /// Something was transferred without a receipt, for want of memory.
    is_lossy: bool,
    reads: usize,
    used: usize,
    mark: u64,
}

#[derive(Debug)]
struct Memory {
    _run: Arc<Run>,
    head: Part,
    data: Part,
}

impl Memory {
    fn new(arena: &Arc<Arena>, owner: Owner) -> Result<Self, Errno> {
        let run = arena.take(Kind::Receipts, owner, 0, DATA + ROOM)?;
        let mut head = run.part();
        let data = head.split_off(DATA);
        for word in [COUNT, RELAY] {
            head.word(word).store(0, Ordering::Release);
        }
        Ok(Self {
            _run: Arc::new(run),
            head,
            data,
        })
    }
}

/// The place for the bytes of one read.
#[derive(Debug)]
pub struct Place<'a> {
    data: &'a mut [u8],
    taken: &'a AtomicU64,
}

impl Place<'_> {
    /// Returns where the bytes go, all of which are read at once.
    pub const fn bytes(&mut self) -> &mut [u8] {
        self.data
    }

    /// Says how many bytes were taken.
    pub fn took(self, bytes: usize) {
        self.taken.store(bytes as u64 + 1, Ordering::Release);
    }
}

/// A send that has begun.
#[derive(Debug)]
pub struct Sending<'a> {
    relayed: &'a AtomicU64,
    taken: &'a AtomicU64,
}

impl Sending<'_> {
    /// Says that so many bytes are in the relay, and nothing else is.
    pub fn relayed(&self, bytes: usize) {
        self.relayed.store(bytes as u64 + 1, Ordering::Release);
    }

    /// Says how many bytes were taken out of the relay by the receiver.
    pub fn sent(self, bytes: usize) {
        self.taken.store(bytes as u64 + 1, Ordering::Release);
    }
}

impl Receipts {
    /// The bytes in whose place a mark is too short to be told from them: they must be known before.
    pub const SHORT: usize = WORD;

    /// Makes receipts without any reads.
    #[must_use]
    pub fn new(arena: Arc<Arena>, owner: Owner) -> Self {
        let mut seed = [0; WORD];
        // Any mark does that bytes do not have by chance.
        let _ = getrandom::fill(&mut seed);
        Self {
            arena,
            owner,
            memory: None,
            is_lossy: false,
            reads: 0,
            used: 0,
            mark: u64::from_ne_bytes(seed) | 1,
        }
    }

    /// Forgets all reads: their bytes are committed.
    pub fn clear(&mut self) {
        if let Some(memory) = self.memory.as_ref().filter(|_| self.reads > 0) {
            memory.head.word(COUNT).store(0, Ordering::Release);
        }
        (self.reads, self.used) = (0, 0);
    }

    /// Returns whether something was read without a receipt, for want of memory.
    #[must_use]
    pub const fn is_lossy(&self) -> bool {
        self.is_lossy
    }

    /// Says that something is sent without a receipt.
    pub const fn lose(&mut self) {
        self.is_lossy = true;
    }

    /// Returns how many bytes the next read may have; 0: there is no room before the next commit. `None`:
    /// there is no memory for receipts, and what is read without one is [lost](Receipts::is_lossy) if this
    /// life is killed before it is committed.
    pub fn room(&mut self) -> Option<usize> {
        if self.memory.is_none() {
            match Memory::new(&self.arena, self.owner) {
                Ok(memory) => self.memory = Some(memory),
                Err(_) => {
                    self.is_lossy = true;
                    return None;
                }
            }
        }
        Some(if self.reads < READS {
            ROOM - self.used
        } else {
            0
        })
    }

    /// Returns whether there is memory for receipts. What is transferred without is
    /// [lost](Receipts::is_lossy) if this life is killed before it is committed.
    pub fn has_memory(&mut self) -> bool {
        self.room().is_some()
    }

    /// Names the descriptor of the relay. Returns false if there is no memory.
    pub fn set_relay(&mut self, number: RawFd) -> bool {
        let known = self.room().is_some();
        if let Some(memory) = self.memory.as_ref() {
            let word = memory.head.word(RELAY);
            word.store(u64::from(number.unsigned_abs()) + 1, Ordering::Release);
        }
        known
    }

    /// Begins to send through the relay, which is empty, to a stream that was sent `offset` bytes
    /// before. `None` if there is no room for it before the next commit.
    pub fn expect_sent(&mut self, number: RawFd, offset: u64) -> Option<Sending<'_>> {
        self.send(RELAYED, number, offset)
    }

    /// As [`Receipts::expect_sent`], without the relay: there must be [room](Receipts::room). A later life does not know how many bytes were
    /// sent if this one is killed before [`Sending::sent`].
    pub fn expect_in_doubt(&mut self, number: RawFd, offset: u64) -> Option<Sending<'_>> {
        self.send(SEND, number, offset)
    }

    fn send(&mut self, how: u64, number: RawFd, offset: u64) -> Option<Sending<'_>> {
        let at = FIRST + self.reads * READ;
        let memory = self.memory.as_ref().filter(|_| self.reads < READS)?;
        let head = &memory.head;
        for (word, value) in [
            (NUMBER, how | u64::from(number.unsigned_abs())),
            (OFFSET, offset),
            (PLACE, 0),
            (TAKEN, 0),
        ] {
            head.word(at + word).store(value, Ordering::Relaxed);
        }
        self.reads += 1;
        head.word(COUNT).store(self.reads as u64, Ordering::Release);
        Some(Sending {
            relayed: head.word(at + PLACE),
            taken: head.word(at + TAKEN),
        })
    }

    /// Begins a read of exactly `bytes` bytes, before which the stream had `offset`. `known` are the
    /// bytes, if they are [short](Receipts::SHORT). `None` if there is no [room](Receipts::room).
    pub fn expect(
        &mut self,
        number: RawFd,
        offset: u64,
        bytes: usize,
        known: Option<&[u8]>,
    ) -> Option<Place<'_>> {
        let at = FIRST + self.reads * READ;
        let start = self.used;
        let memory = self.memory.as_mut().filter(|_| self.reads < READS)?;
        let place = memory.data.bytes_mut().get_mut(start..start + bytes)?;
        let mark = match known {
            Some(known) => {
                for (place, byte) in place.iter_mut().zip(known) {
                    *place = !byte;
                }
                let mut mark = [0; WORD];
                mark[..bytes.min(WORD)].copy_from_slice(&place[..bytes.min(WORD)]);
                u64::from_ne_bytes(mark)
            }
            None => {
                self.mark = self
                    .mark
                    .wrapping_mul(0x5851_f42d_4c95_7f2d)
                    .wrapping_add(1);
                let last = bytes.saturating_sub(WORD);
                let mark = self.mark.to_ne_bytes();
                let len = place[last..].len();
                place[last..].copy_from_slice(&mark[..len]);
                self.mark
            }
        };
        let head = &memory.head;
        for (word, value) in [
            (NUMBER, number.unsigned_abs().into()),
            (OFFSET, offset),
            (PLACE, (start as u64) << 32 | bytes as u64),
            (MARK, mark),
            (TAKEN, 0),
        ] {
            head.word(at + word).store(value, Ordering::Relaxed);
        }
        self.reads += 1;
        self.used += bytes.next_multiple_of(WORD).min(ROOM - start);
        head.word(COUNT).store(self.reads as u64, Ordering::Release);
        Some(Place {
            data: place,
            taken: head.word(at + TAKEN),
        })
    }

    /// Returns the number of the descriptor of an earlier life's relay, if it had one.
    #[must_use]
    pub fn relay(found: &Found) -> Option<RawFd> {
        let (head, _) = parts(found)?;
        let number = head.word(RELAY).load(Ordering::Acquire).checked_sub(1)?;
        RawFd::try_from(number).ok()
    }

    /// Returns what an earlier life has transferred last. Some of it may be committed. `relayed` is how
    /// many bytes are in the relay.
    #[must_use]
    pub fn recover(found: &Found, relayed: Option<u64>) -> Uncommitted {
        let mut all = Uncommitted::default();
        let Some((head, data)) = parts(found) else {
            return all;
        };
        let count = usize::try_from(head.word(COUNT).load(Ordering::Acquire)).unwrap_or(0);
        for at in (0..count.min(READS)).map(|read| FIRST + read * READ) {
            if head.word(at + NUMBER).load(Ordering::Acquire) & (RELAYED | SEND) == 0 {
                all.taken.extend(unrecorded(&head, &data, at));
            } else {
                all.sent.extend(sent(&head, at, relayed));
            }
        }
        all
    }
}

fn parts(found: &Found) -> Option<(Part, Part)> {
    let mut head = (found.kind == Kind::Receipts).then(|| found.run.part())?;
    (head.len() >= DATA).then(|| {
        let data = head.split_off(DATA);
        (head, data)
    })
}

/// Returns what one send has sent, unless that is nothing.
fn sent(head: &Part, at: usize, relayed: Option<u64>) -> Option<Sent> {
    let word = |word: usize| head.word(at + word).load(Ordering::Acquire);
    let number = word(NUMBER);
    let len = match (word(TAKEN), word(PLACE)) {
        (0, _) if number & SEND != 0 => None,
        // Nothing leaves the relay before it is known what is in it.
        (0, 0) => Some(0),
        (0, put) => Some((put - 1).saturating_sub(relayed?)),
        (taken, _) => Some(taken - 1),
    };
    let number = RawFd::try_from(number & !(RELAYED | SEND)).ok()?;
    (len != Some(0)).then(|| Sent {
        number,
        offset: Some(word(OFFSET)),
        len,
    })
}

/// Returns what one read took, if it took something.
fn unrecorded(head: &Part, data: &Part, at: usize) -> Option<Unrecorded> {
    let word = |word: usize| head.word(at + word).load(Ordering::Acquire);
    let place = word(PLACE);
    let start = usize::try_from(place >> 32).ok()?;
    let wanted = usize::try_from(place & 0xffff_ffff).ok()?;
    let bytes = data.bytes().get(start..start + wanted)?;
    let taken = match word(TAKEN) {
        0 => {
            let mark = word(MARK).to_ne_bytes();
            let last = &bytes[wanted.saturating_sub(WORD)..];
            if last == &mark[..last.len()] {
                0
            } else {
                wanted
            }
        }
        taken => usize::try_from(taken - 1).ok()?.min(wanted),
    };
    let number = RawFd::try_from(word(NUMBER)).ok()?;
    (taken > 0).then(|| Unrecorded {
        number,
        offset: Some(word(OFFSET)),
        bytes: bytes[..taken].to_vec(),
    })
}
