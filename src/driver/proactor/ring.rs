//! The ring shared with the kernel: what is asked of it goes in, what came of it comes
//! out. All that an operation's memory needs to be safe is here.
//!
//! Memory in flight belongs to the [`Ring`] until the kernel has said that it is done
//! with it: the buffers it fills, and the bytes it sends. A ring that is dropped cancels
//! what is in flight and waits for it; what does not end in time is leaked, never freed.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::buffers::{Buffers, GROUP};
use super::entry::{Entry, Said, Token};
use super::probe::{self, Refused};
use crate::driver::turn::timespec;
use crate::driver::{Direction, transfer::Chunk};

/// Entries that can be queued between two calls of the kernel; more take more calls.
const SUBMISSIONS: u32 = 64;
/// Entries the kernel can leave for us; it keeps what is beyond, and ends what repeats.
const COMPLETIONS: u32 = 512;
/// "Where the file is": pipes and terminals have no places.
const HERE: u64 = u64::MAX;
/// How long a ring that is dropped waits for what is in flight.
const FAREWELL: Duration = Duration::from_secs(1);

/// How bytes get from a source to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Again and again, of a socket.
    Recv,
    /// Again and again, of anything else.
    ReadMany,
    /// Once.
    Read,
}

/// See the module.
pub(super) struct Ring {
    uring: IoUring,
    buffers: ManuallyDrop<Buffers>,
    /// Bytes being sent, by source.
    sending: ManuallyDrop<Vec<Option<Bytes>>>,
    /// Memory that files are read into, by source.
    reading: ManuallyDrop<HashMap<usize, Vec<u8>>>,
    /// Bytes of it.
    lent: usize,
    in_flight: usize,
    enabled: bool,
    /// The kernel said what cannot be: what it is done with is not known.
    distrusted: bool,
    chunk: Chunk,
    /// What the kernel has left for us and was not looked at yet.
    said: Vec<Entry>,
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
    /// Makes a ring that any thread may take over: it is asleep until [`Ring::enable`].
    /// `bitwise`: see [`Buffers::new`].
    pub(super) fn new(bitwise: bool) -> Result<Self, Refused> {
        let uring: IoUring = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETIONS)
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
            .register_restrictions(&mut probe::restrictions())
            .map_err(|error| probe::no_register(&error))?;
        Ok(Self {
            uring,
            buffers: ManuallyDrop::new(buffers),
            sending: ManuallyDrop::new(Vec::new()),
            reading: ManuallyDrop::new(HashMap::new()),
            lent: 0,
            in_flight: 0,
            enabled: false,
            distrusted: false,
            chunk: Chunk::default(),
            said: Vec::new(),
        })
    }

    /// Wakes the ring: from now on it is the calling thread's.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.uring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Whether one read can bring bytes again and again from what is no socket.
    pub(super) fn reads_many(&self) -> bool {
        // Both are there since Linux 6.16 at the latest.
        self.buffers.are_bitwise()
    }

    /// Bytes that the kernel may still receive by itself.
    pub(super) fn exposed(&self) -> usize {
        self.buffers.exposed()
    }

    /// Lets it receive at most `room` bytes more.
    pub(super) fn replenish(&mut self, room: usize) {
        self.buffers.replenish(&self.uring, room);
    }

    /// Lets it receive nothing more by itself. No [`Ring::receive`] is in flight.
    pub(super) fn withdraw(&mut self) {
        self.buffers.withdraw(&self.uring);
    }

    /// It could have received more than it had buffers for.
    pub(super) fn starved(&mut self) {
        self.buffers.grow();
    }

    /// Asks whether the source is ready, once.
    pub(super) fn poll(&mut self, token: Token, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let wanted = match token.direction() {
            Direction::Read => PollFlags::IN | PollFlags::RDHUP,
            Direction::Write => PollFlags::OUT,
        };
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), wanted.bits().into()).build();
        self.push(entry, token)
    }

    /// Asks for bytes, into the buffers.
    pub(super) fn receive(
        &mut self,
        token: Token,
        fd: BorrowedFd<'_>,
        way: Way,
        max: usize,
    ) -> Result<(), Errno> {
        let fd = Fd(fd.as_raw_fd());
        let entry = match way {
            Way::Recv => opcode::RecvMulti::new(fd, GROUP).build(),
            Way::ReadMany => opcode::ReadMulti::new(fd, 0, GROUP).offset(HERE).build(),
            Way::Read => {
                let max = u32::try_from(max).unwrap_or(u32::MAX >> 1);
                opcode::Read::new(fd, ptr::null_mut(), max)
                    .offset(HERE)
                    .buf_group(GROUP)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
            }
        };
        self.push(entry, token)
    }

    /// Reads of a file, once, into memory that stays here until the kernel is done with it.
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
        // Before the kernel can know of it; the move leaves the bytes where they are.
        self.reading.insert(source, memory);
        let pushed = self.push(entry, token);
        if pushed.is_err() {
            self.reading.remove(&source);
        } else {
            self.lent += len;
        }
        pushed
    }

    /// Bytes that files are being read into.
    pub(super) const fn lent(&self) -> usize {
        self.lent
    }

    /// Sends bytes, which stay here until the kernel is done with them.
    pub(super) fn send(
        &mut self,
        token: Token,
        fd: BorrowedFd<'_>,
        socket: bool,
        bytes: Bytes,
    ) -> Result<(), Errno> {
        let source = token.source();
        if self.sending.len() <= source {
            self.sending.resize(source + 1, None);
        }
        if self.sending[source].is_some() {
            return Err(Errno::BUSY);
        }
        let fd = Fd(fd.as_raw_fd());
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX >> 1);
        let entry = if socket {
            // It is the same bit whichever way it is counted.
            let flags = SendFlags::NOSIGNAL.bits().cast_signed();
            opcode::Send::new(fd, bytes.as_ptr(), len)
                .flags(flags)
                .build()
        } else {
            opcode::Write::new(fd, bytes.as_ptr(), len)
                .offset(HERE)
                .build()
        };
        self.sending[source] = Some(bytes);
        let pushed = self.push(entry, token);
        if pushed.is_err() {
            self.sending[source] = None;
        }
        pushed
    }

    /// Asks for the end of what is in flight under that name.
    pub(super) fn cancel(&mut self, token: Token) -> Result<(), Errno> {
        let entry = opcode::AsyncCancel::new(token.number())
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Token::CANCELLATION.number());
        self.queue(&entry)
    }

    fn push(&mut self, entry: squeue::Entry, token: Token) -> Result<(), Errno> {
        self.queue(&entry.user_data(token.number()))?;
        self.in_flight += 1;
        Ok(())
    }

    /// Queues an entry; a full queue goes to the kernel first.
    fn queue(&mut self, entry: &squeue::Entry) -> Result<(), Errno> {
        for _ in 0..2 {
            // SAFETY: an entry names no memory, or bytes that `send` or `read_at` keeps until the
            // kernel is done with them and that do not move with what owns them.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            // If this fails, the queue is still full.
            let _ = self.uring.submit();
            self.collect();
        }
        Err(Errno::AGAIN)
    }

    /// Gives the kernel what is queued, and waits until it has said something, or not.
    pub(super) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let (submitter, queue, _) = self.uring.split();
        let queued = u32::try_from(queue.len()).unwrap_or(u32::MAX);
        let due = queued > 0 || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        let entered = match wait {
            Some(Duration::ZERO) if !due => return Ok(()),
            Some(Duration::ZERO) => {
                let flags = EnterFlags::GETEVENTS.bits();
                // SAFETY: there is no argument.
                unsafe { submitter.enter::<()>(queued, 0, flags, None) }
            }
            Some(wait) => {
                let wait = timespec(wait);
                // Not negative, and below a day: both fit.
                let wait = Timespec::new()
                    .sec(wait.tv_sec.unsigned_abs())
                    .nsec(u32::try_from(wait.tv_nsec).unwrap_or(0));
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&wait))
            }
            None => submitter.submit_and_wait(1),
        };
        self.collect();
        match entered.as_ref().map_err(Errno::from_io_error) {
            // The time is over, a signal came; or it takes no more now, and will.
            Err(Some(Errno::TIME | Errno::INTR | Errno::AGAIN | Errno::BUSY)) => Ok(()),
            _ => entered.map(drop),
        }
    }

    /// Whether the kernel has more to say right now.
    pub(super) fn has_more(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    fn collect(&mut self) {
        let said = self.uring.completion();
        self.said.extend(said.map(|entry| Entry::new(&entry)));
    }

    /// Takes what the kernel has said since the last time, to be read by [`Ring::read`].
    pub(super) fn said(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.said)
    }

    /// Gives the memory back.
    pub(super) fn recycle(&mut self, mut said: Vec<Entry>) {
        said.clear();
        if self.said.is_empty() {
            self.said = said;
        }
    }

    /// The kernel said what cannot be. What is in flight keeps its memory for good.
    pub(super) const fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// Reads what the kernel has said of something in flight. In order: each once, all of them.
    ///
    /// None: that cannot be.
    pub(super) fn read(&mut self, entry: &Entry) -> Option<Said> {
        let Entry {
            token,
            result,
            flags,
        } = *entry;
        let last = !cqueue::more(flags);
        let mut data = Bytes::new();
        if let Some(number) = cqueue::buffer_select(flags) {
            let len = result.unwrap_or(0);
            let more = cqueue::buffer_more(flags);
            let bytes = self.buffers.take(number, len, more)?;
            data = self.chunk.copy(bytes);
        }
        if last {
            self.in_flight = self.in_flight.saturating_sub(1);
            match token.direction() {
                Direction::Read => {
                    if let Some(mut memory) = self.reading.remove(&token.source()) {
                        self.lent -= memory.len();
                        memory.truncate(result.unwrap_or(0));
                        data = Bytes::from(memory);
                    }
                }
                Direction::Write => {
                    if let Some(sent) = self.sending.get_mut(token.source()) {
                        *sent = None;
                    }
                }
            }
        }
        Some(Said {
            token,
            result,
            data,
            last,
        })
    }

    /// As if the kernel had said so.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, token: Token, result: Result<usize, Errno>, flags: u32) {
        self.said.push(Entry {
            token,
            result,
            flags,
        });
    }

    /// Ends what is in flight. False: it does not end.
    fn settle(&mut self) -> bool {
        let begun = Instant::now();
        let all = opcode::AsyncCancel2::new(CancelBuilder::any().all())
            .build()
            .user_data(Token::CANCELLATION.number());
        while self.in_flight > 0 {
            let left = FAREWELL.saturating_sub(begun.elapsed());
            if left.is_zero() || self.queue(&all).is_err() || self.enter(Some(left)).is_err() {
                return false;
            }
            for entry in self.said() {
                let cancellation = entry.token == Token::CANCELLATION;
                if !cancellation && self.read(&entry).is_none() {
                    return false;
                }
            }
        }
        true
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.distrusted || (self.in_flight > 0 && !self.settle()) {
            // Closing the ring ends them some time later.
            tracing::error!(ring = ?self, "operations may not have ended: their memory is lost");
            return;
        }
        // SAFETY: nothing is in flight, so the kernel uses none of it; and none of it is used
        // after this.
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
        let mut ring = Ring::new(true).unwrap();
        ring.enable().unwrap();
        ring.queue(&opcode::Nop::new().build().user_data(1))
            .unwrap();
        ring.enter(Some(Duration::from_secs(20))).unwrap();
        let said = ring.said();
        assert_eq!(said[0].result, Err(Errno::ACCESS));
        assert!(ring.uring.submitter().register_eventfd(0).is_err());
    }
}
