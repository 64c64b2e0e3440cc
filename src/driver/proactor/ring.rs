//! The io_uring: submission and completion of operations, and the memory that they use.
//!
//! Memory in flight (the buffers that the kernel fills, and the bytes that it sends) belongs to
//! the [`Ring`] until the kernel has reported that it is done with it. Dropping a ring cancels the
//! operations in flight and waits for them; if they do not end in time, their memory is leaked,
//! never freed.

use crate::faults::{self, Point};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
#[cfg(test)]
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::buffers::{Buffers, GROUP};
use super::entry::{Entry, Outcome, Token};
use super::kept::Kept;
use super::probe::{self, Refused};
use crate::driver::wait::timespec;
use crate::driver::{Direction, Offset, Received, transfer::Chunk};
use crate::state::{Arrival, Keep};

/// Size of the submission queue. When it is full, the queue is submitted with an extra call.
const SUBMISSIONS: u32 = 64;
/// Size of the completion queue. The kernel keeps further entries itself, and ends multishot
/// operations meanwhile.
const COMPLETIONS: u32 = 512;
/// The same for a ring that later lives look into: they do not find what the kernel keeps itself.
const COMPLETIONS_KEPT: u32 = 4096;
/// The offset that stands for the current file position: pipes and terminals have no positions.
const HERE: u64 = u64::MAX;
/// The number of results that a call asks for where there are many.
pub(super) const MUCH: usize = 128;
/// How long dropping a ring waits for operations in flight.
const FAREWELL: Duration = Duration::from_secs(1);

/// The operation that receives bytes from a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    /// A multishot receive, for sockets.
    Recv,
    /// A multishot read, for other descriptors.
    ReadMany,
    /// A single read.
    Read,
}

/// An io_uring and the memory that its operations use.
pub(super) struct Ring {
    uring: IoUring,
    buffers: ManuallyDrop<Buffers>,
    /// What later lives find of it; `None` if they find nothing.
    kept: Option<Kept>,
    /// Bytes being sent, by source.
    sending: ManuallyDrop<Vec<Option<Bytes>>>,
    /// Memory that files are read into, by source.
    reading: ManuallyDrop<HashMap<usize, Vec<u8>>>,
    /// Size of the memory in `reading`, bytes.
    lent: usize,
    in_flight: usize,
    enabled: bool,
    /// The kernel has reported an impossible result, so it is unknown which memory it still uses.
    distrusted: bool,
    chunk: Chunk,
    /// Entries of the completion queue that were not processed yet.
    results: Vec<Entry>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight)
            .field("exposed", &self.buffers.exposed())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Creates a disabled ring, which belongs to no thread until [`Ring::enable`]. For `bitwise`,
    /// see [`Buffers::new`].
    pub(super) fn new(bitwise: bool, keep: &Keep) -> Result<Self, Refused> {
        let completions = match keep {
            Keep::Own => COMPLETIONS,
            Keep::Kept(..) => COMPLETIONS_KEPT,
        };
        let uring: IoUring = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(completions)
            .build(SUBMISSIONS)
            .map_err(|error| probe::no_ring(&error))?;
        probe::check_features(uring.params())?;
        let mut known = Probe::new();
        uring
            .submitter()
            .register_probe(&mut known)
            .map_err(|error| probe::no_register(&error))?;
        probe::check_operations(&known)?;
        let buffers = Buffers::new(&uring, &known, bitwise).map_err(Refused::System)?;
        uring
            .submitter()
            .register_restrictions(&mut probe::restrictions(&known))
            .map_err(|error| probe::no_register(&error))?;
        let kept = Kept::new(keep, uring.as_raw_fd());
        Ok(Self {
            uring,
            kept,
            buffers: ManuallyDrop::new(buffers),
            sending: ManuallyDrop::new(Vec::new()),
            reading: ManuallyDrop::new(HashMap::new()),
            lent: 0,
            in_flight: 0,
            enabled: false,
            distrusted: false,
            chunk: Chunk::default(),
            results: Vec::new(),
        })
    }

    /// Returns its descriptor.
    #[cfg(test)]
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.uring.as_fd()
    }

    /// Enables the ring. From now on only the calling thread can submit to it.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.uring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Returns whether multishot reads (for descriptors other than sockets) are available.
    pub(super) fn reads_many(&self) -> bool {
        // Every kernel with incremental buffers that are usable (Linux 6.16) has them.
        self.buffers.are_bitwise()
    }

    /// Returns the number of bytes that the kernel may receive into provided buffers.
    pub(super) fn exposed(&self) -> usize {
        self.buffers.exposed()
    }

    /// Provides buffers for at most `room` bytes more.
    pub(super) fn replenish(&mut self, room: usize) {
        self.buffers
            .replenish(&self.uring, room, self.kept.as_mut());
    }

    /// Takes the provided buffers back, if all bytes in them are committed. No [`Ring::receive`] may be
    /// in flight.
    pub(super) fn withdraw(&mut self) {
        if self.kept.as_ref().is_none_or(Kept::is_committed) {
            self.buffers.withdraw(&self.uring);
        }
    }

    /// Returns the number of the next receipt.
    pub(super) fn next_receipt(&self) -> u64 {
        self.kept.as_ref().map_or(0, Kept::next)
    }

    /// Says that all is committed that has receipts with smaller numbers.
    pub(super) fn committed(&mut self, first: u64) {
        if let Some(kept) = &mut self.kept {
            kept.committed(first);
            self.buffers.committed(first);
        }
    }

    /// Returns whether results may come for which there is no room for receipts.
    pub(super) fn is_crowded(&self) -> bool {
        self.kept.as_ref().is_some_and(Kept::is_crowded)
    }

    /// Returns whether something was transferred without a receipt.
    pub(super) fn is_lossy(&self) -> bool {
        self.kept.as_ref().is_some_and(Kept::is_lossy)
    }

    /// Notes that a result was processed that is not passed to [`Ring::read`].
    pub(super) fn saw(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.saw();
        }
    }

    /// Notes that a receive found no buffer.
    pub(super) fn ran_out_of_buffers(&mut self) {
        self.buffers.grow();
    }

    /// Submits a single-shot poll of the source.
    pub(super) fn poll(&mut self, token: Token, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let wanted = match token.direction() {
            Direction::Read => PollFlags::IN | PollFlags::RDHUP,
            Direction::Write => PollFlags::OUT,
        };
        self.poll_for(token, fd, wanted)
    }

    /// As [`Self::poll`], for a hang-up or an error alone, which the kernel always reports.
    pub(super) fn poll_hang_up(&mut self, token: Token, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.poll_for(token, fd, PollFlags::empty())
    }

    fn poll_for(
        &mut self,
        token: Token,
        fd: BorrowedFd<'_>,
        wanted: PollFlags,
    ) -> Result<(), Errno> {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), wanted.bits().into()).build();
        self.push(entry, token, 0)
    }

    /// Submits a receive into the provided buffers. `max` limits a single read only.
    pub(super) fn receive(
        &mut self,
        token: Token,
        fd: BorrowedFd<'_>,
        way: Receive,
        max: u32,
    ) -> Result<(), Errno> {
        let on = Fd(fd.as_raw_fd());
        let entry = match way {
            Receive::Recv => opcode::RecvMulti::new(on, GROUP).build(),
            Receive::ReadMany => opcode::ReadMulti::new(on, 0, GROUP).offset(HERE).build(),
            Receive::Read => opcode::Read::new(on, ptr::null_mut(), max)
                .offset(HERE)
                .buf_group(GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
        };
        self.push(entry, token, fd.as_raw_fd())
    }

    /// Submits one read of a file. Its memory stays in `reading` until the kernel is done with it.
    pub(super) fn read_at(
        &mut self,
        token: Token,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
    ) -> Result<(), Errno> {
        let source = token.source();
        if self.reading.contains_key(&source) {
            return Err(Errno::BUSY);
        }
        let mut memory = vec![0; len];
        let most = u32::try_from(len).unwrap_or(u32::MAX >> 1);
        let entry = opcode::Read::new(Fd(fd.as_raw_fd()), memory.as_mut_ptr(), most)
            .offset(offset)
            .build();
        // Stored before it is submitted. Moving the vector does not move its bytes.
        self.reading.insert(source, memory);
        let pushed = self.push(entry, token, fd.as_raw_fd());
        if pushed.is_err() {
            self.reading.remove(&source);
        } else {
            self.lent += len;
        }
        pushed
    }

    /// Returns the size of the memory that files are being read into, bytes.
    pub(super) const fn lent(&self) -> usize {
        self.lent
    }

    /// Submits bytes to be sent. They stay in `sending` until the kernel is done with them.
    pub(super) fn send(
        &mut self,
        token: Token,
        fd: BorrowedFd<'_>,
        socket: bool,
        bytes: Bytes,
        offset: Offset,
    ) -> Result<(), Errno> {
        let source = token.source();
        if let Some(kept) = self.kept.as_mut().filter(|_| offset.get().is_some()) {
            kept.expect();
            faults::point(Point::RingExpected);
        }
        if self.sending.len() <= source {
            self.sending.resize(source + 1, None);
        }
        if self.sending[source].is_some() {
            return Err(Errno::BUSY);
        }
        let on = Fd(fd.as_raw_fd());
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX >> 1);
        let entry = if socket {
            // MSG_NOSIGNAL is the same bit in a signed integer.
            let flags = SendFlags::NOSIGNAL.bits().cast_signed();
            opcode::Send::new(on, bytes.as_ptr(), len)
                .flags(flags)
                .build()
        } else {
            opcode::Write::new(on, bytes.as_ptr(), len)
                .offset(HERE)
                .build()
        };
        self.sending[source] = Some(bytes);
        let pushed = self.push(entry, token, fd.as_raw_fd());
        if pushed.is_err() {
            self.sending[source] = None;
        }
        pushed
    }

    /// Submits a cancellation of the operation with that token. `number` is that of the descriptor if it
    /// transfers bytes, else 0.
    pub(super) fn cancel(&mut self, token: Token, number: RawFd) -> Result<(), Errno> {
        let entry = opcode::AsyncCancel::new(token.user_data(number))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Token::CANCELLATION.number());
        self.queue(&entry)
    }

    fn push(&mut self, entry: squeue::Entry, token: Token, number: RawFd) -> Result<(), Errno> {
        self.queue(&entry.user_data(token.user_data(number)))?;
        self.in_flight += 1;
        Ok(())
    }

    /// Queues an entry. If the queue is full, submits it first.
    fn queue(&mut self, entry: &squeue::Entry) -> Result<(), Errno> {
        for _ in 0..2 {
            // SAFETY: an entry refers to no memory, or to bytes that `send` or `read_at` keeps
            // until the kernel is done with them and that do not move when their owner moves.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            // After a failure the queue is still full, and the next push fails.
            let _ = self.uring.submit();
            self.collect();
        }
        Err(Errno::AGAIN)
    }

    /// Submits the queued entries and waits for at most `wait` (`None`: without limit) until there
    /// is a result. A call without a wait brings at most 20 results; with `much`, up to [`MUCH`].
    pub(super) fn enter(&mut self, wait: Option<Duration>, much: bool) -> io::Result<()> {
        let (submitter, queue, _) = self.uring.split();
        let queued = u32::try_from(queue.len()).unwrap_or(u32::MAX);
        let due = queued > 0 || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        let entered = match wait {
            Some(Duration::ZERO) if !due => return Ok(()),
            Some(Duration::ZERO) if much => {
                submitter.submit_with_args(MUCH, &SubmitArgs::new().timespec(&Timespec::new()))
            }
            Some(Duration::ZERO) => {
                let flags = EnterFlags::GETEVENTS.bits();
                // SAFETY: no argument is passed, so the kernel reads no memory.
                unsafe { submitter.enter::<()>(queued, 0, flags, None) }
            }
            Some(wait) => {
                let wait = timespec(wait);
                // `timespec` is not negative and at most a day, so both conversions are exact.
                let wait = Timespec::new()
                    .sec(wait.tv_sec.unsigned_abs())
                    .nsec(u32::try_from(wait.tv_nsec).unwrap_or(0));
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&wait))
            }
            None => submitter.submit_and_wait(1),
        };
        faults::point(Point::RingEntered);
        self.collect();
        faults::point(Point::CompletionsTaken);
        match entered.as_ref().map_err(Errno::from_io_error) {
            // The wait timed out, a signal came, or the kernel takes no more entries for now.
            Err(Some(Errno::TIME | Errno::INTR | Errno::AGAIN | Errno::BUSY)) => Ok(()),
            _ => entered.map(drop),
        }
    }

    /// Returns whether another call of io_uring_enter(2) may bring results at once.
    pub(super) fn has_more(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    fn collect(&mut self) {
        let results = self.uring.completion();
        self.results.extend(results.map(|entry| Entry::new(&entry)));
    }

    /// Takes the completion entries since the last call, each to be passed to [`Ring::read`].
    pub(super) fn take_results(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.results)
    }

    /// Reuses the vector that [`Ring::take_results`] returned.
    pub(super) fn recycle(&mut self, mut results: Vec<Entry>) {
        results.clear();
        if self.results.is_empty() {
            self.results = results;
        }
    }

    /// Records that the kernel has reported an impossible result. The memory in flight is never
    /// freed then.
    pub(super) const fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// Returns the result of an operation in flight, with its bytes. Must be called once for every
    /// entry, in order. `offset` are the bytes of its stream before them, if later lives go on with it.
    ///
    /// Returns `None` if the entry is impossible.
    pub(super) fn read(&mut self, entry: &Entry, offset: Option<u64>) -> Option<Outcome> {
        let Entry {
            token,
            number,
            result,
            flags,
        } = *entry;
        let last = !cqueue::more(flags);
        let mut data = Received::default();
        let len = result.unwrap_or(0);
        if let Some(buffer) = cqueue::buffer_select(flags) {
            let more = cqueue::buffer_more(flags);
            let taken = self.buffers.take(buffer, len, more)?;
            let (start, is_used_up) = (taken.start, taken.is_used_up);
            data = self.chunk.copy(taken.bytes, len);
            faults::point(Point::ArrivalCopied);
            if let Some(kept) = &mut self.kept {
                let arrival = Arrival {
                    number,
                    buffer,
                    len,
                };
                kept.took(&arrival, offset, start);
            }
            if is_used_up {
                let after = self.kept.as_ref().map(Kept::next);
                self.buffers.give_back(buffer, after);
            }
        } else if let Some(kept) = &mut self.kept {
            match offset.filter(|_| token.direction() == Direction::Write && len > 0) {
                Some(offset) => kept.sent(number, offset, len),
                None => kept.saw(),
            }
        }
        if last {
            self.in_flight = self.in_flight.saturating_sub(1);
            match token.direction() {
                Direction::Read => {
                    if let Some(mut memory) = self.reading.remove(&token.source()) {
                        self.lent -= memory.len();
                        memory.truncate(result.unwrap_or(0));
                        data = Bytes::from(memory).into();
                    }
                }
                Direction::Write => {
                    if let Some(sent) = self.sending.get_mut(token.source()) {
                        *sent = None;
                    }
                }
            }
        }
        Some(Outcome {
            token,
            result,
            data,
            last,
        })
    }

    /// Adds a result as if the kernel had reported it.
    #[cfg(test)]
    pub(super) fn inject(&mut self, token: Token, result: Result<usize, Errno>, flags: u32) {
        self.results.push(Entry {
            token,
            number: 0,
            result,
            flags,
        });
    }

    /// Cancels all operations in flight and waits until they have ended. Returns whether they have.
    fn cancel_all(&mut self) -> bool {
        let begun = Instant::now();
        let all = opcode::AsyncCancel2::new(CancelBuilder::any().all())
            .build()
            .user_data(Token::CANCELLATION.number());
        while self.in_flight > 0 {
            let left = FAREWELL.saturating_sub(begun.elapsed());
            if left.is_zero() || self.queue(&all).is_err() || self.enter(Some(left), false).is_err()
            {
                return false;
            }
            for entry in self.take_results() {
                let cancellation = entry.token == Token::CANCELLATION;
                if !cancellation && self.read(&entry, None).is_none() {
                    return false;
                }
            }
        }
        true
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.distrusted || (self.in_flight > 0 && !self.cancel_all()) {
            // Closing the ring ends the operations some time later.
            tracing::error!(
                ring = ?self,
                "io_uring operations may still be in flight: their memory is leaked"
            );
            return;
        }
        // SAFETY: nothing is in flight, so the kernel uses none of this memory, and the fields are
        // not used after this.
        unsafe {
            ManuallyDrop::drop(&mut self.buffers);
            ManuallyDrop::drop(&mut self.sending);
            ManuallyDrop::drop(&mut self.reading);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_possible_but_what_is_used() {
        let mut ring = Ring::new(true, &Keep::Own).unwrap();
        ring.enable().unwrap();
        ring.queue(&opcode::Nop::new().build().user_data(1))
            .unwrap();
        ring.enter(Some(Duration::from_secs(20)), false).unwrap();
        let results = ring.take_results();
        assert_eq!(results[0].result, Err(Errno::ACCESS));
        assert!(ring.uring.submitter().register_eventfd(0).is_err());
    }
}
