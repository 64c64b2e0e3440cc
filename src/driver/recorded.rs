//! Transfers of the selector backends, so that later lives of the daemon know which bytes were taken.

use std::fmt;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use bytes::Bytes;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::transfer::{self, Attempt, CallError, Intake, READ_MAX};
use super::{Direction, Nonblocking, Offset, Outbound, Received};
use crate::faults::{self, Point};
use crate::state::{Keep, Receipts};

/// A pipe with its two ends.
type Pipe = (OwnedFd, OwnedFd);

/// Most bytes that go through the relay at once: what a pipe holds by default.
const RELAY_MAX: usize = 64 * 1024;

/// Reads and sends.
pub(super) struct Transfers {
    intake: Intake,
    /// Where later lives find what is transferred; `None` if they do not.
    receipts: Option<Box<Receipts>>,
    /// A pipe by which it is looked at what another pipe holds.
    peek: Option<Pipe>,
    /// The pipe through which is sent what has a receipt. Empty between two sends.
    relay: Option<Pipe>,
}

impl fmt::Debug for Transfers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfers").finish_non_exhaustive()
    }
}

/// Reads pipes of the daemon's own beside a driver, so that later lives know which bytes were taken:
/// [`uncommitted`](super::uncommitted) tells them.
#[derive(Debug)]
pub struct Relays {
    keep: Keep,
    /// `None` before the first read, as few loops have any.
    transfers: Option<Box<Transfers>>,
}

impl Relays {
    /// Makes it for the loop whose driver has the same `keep`.
    #[must_use]
    pub const fn new(keep: Keep) -> Self {
        Self {
            keep,
            transfers: None,
        }
    }

    /// Returns whether later lives go on with the loop.
    #[must_use]
    pub const fn survive(&self) -> bool {
        matches!(self.keep, Keep::Kept(..))
    }

    fn transfers(&mut self) -> &mut Transfers {
        let keep = &self.keep;
        self.transfers
            .get_or_insert_with(|| Box::new(Transfers::new(keep)))
    }

    /// Returns how many bytes can be read before the next commit.
    #[must_use]
    pub fn room(&mut self) -> usize {
        let receipts = self.transfers().receipts.as_mut();
        let room = receipts.and_then(|receipts| receipts.room());
        room.unwrap_or(usize::MAX)
    }

    /// Reads what is in a pipe, at most `max` bytes, of which `offset` were read before. There must be
    /// [room](Self::room). `None` if nothing is there.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn read(
        &mut self,
        pipe: BorrowedFd<'_>,
        offset: u64,
        max: usize,
    ) -> Result<Option<Received>, Errno> {
        let transfers = self.transfers();
        match transfers.read(pipe, Nonblocking::Own, Offset::at(offset), max) {
            Ok(received) => Ok(Some(received)),
            Err(CallError::WouldBlock) => Ok(None),
            Err(CallError::Failed(errno)) => Err(errno),
        }
    }

    /// Says that all that was read is committed.
    pub fn committed(&mut self) {
        if let Some(transfers) = &mut self.transfers {
            transfers.committed();
        }
    }

    /// Returns whether something was read without a receipt, for want of memory.
    #[must_use]
    pub fn is_lossy(&self) -> bool {
        let transfers = self.transfers.as_ref();
        transfers.is_some_and(|transfers| transfers.is_lossy())
    }
}

fn pipe() -> Result<Pipe, Errno> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
}

impl Transfers {
    pub(super) fn new(keep: &Keep) -> Self {
        let receipts = match keep {
            Keep::Own => None,
            Keep::Kept(arena, owner) => Some(Receipts::new(arena.clone(), *owner)),
        };
        Self {
            intake: Intake::default(),
            receipts: receipts.map(Box::new),
            peek: None,
            relay: None,
        }
    }

    pub(super) fn committed(&mut self) {
        if let Some(receipts) = &mut self.receipts {
            receipts.clear();
        }
    }

    pub(super) fn is_lossy(&self) -> bool {
        let receipts = self.receipts.as_ref();
        receipts.is_some_and(|receipts| receipts.is_lossy())
    }

    /// Reads once, at most `max` bytes, before which the stream had `offset`. Empty bytes mean end of
    /// file.
    pub(super) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        mode: Nonblocking,
        offset: Offset,
        max: usize,
    ) -> Attempt<Received> {
        match offset.get().filter(|_| self.receipts.is_some()) {
            Some(offset) => self.read_with_receipt(fd, mode, offset, max),
            None => self.intake.read(fd, mode, max),
        }
    }

    /// Sends as many of the bytes as the kernel takes now.
    pub(super) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        mode: Nonblocking,
        outbound: &Outbound,
    ) -> Attempt<usize> {
        match outbound.offset.get().filter(|_| self.receipts.is_some()) {
            None => {
                let sent = transfer::send(fd, mode, &outbound.bytes);
                faults::point(Point::CountedSent);
                sent
            }
            // splice(2) to a socket blocks unless its open file description says otherwise.
            Some(offset) if mode == Nonblocking::Socket => {
                self.send_in_doubt(fd, offset, &outbound.bytes)
            }
            Some(offset) if self.has_relay() => self.send_with_receipt(fd, offset, &outbound.bytes),
            Some(_) => transfer::send(fd, mode, &outbound.bytes),
        }
    }

    /// Sends to a socket, so that later lives know whether that was under way.
    fn send_in_doubt(&mut self, fd: BorrowedFd<'_>, offset: u64, bytes: &Bytes) -> Attempt<usize> {
        let number = fd.as_raw_fd();
        let send = || transfer::send(fd, Nonblocking::Socket, bytes);
        let Some(receipts) = &mut self.receipts else {
            return send();
        };
        if !receipts.has_memory() {
            return send();
        }
        let Some(sending) = receipts.expect_in_doubt(number, offset) else {
            return Err(CallError::WouldBlock);
        };
        faults::point(Point::SendInDoubt);
        let result = send();
        faults::point(Point::SocketTook);
        sending.sent(*result.as_ref().unwrap_or(&0));
        faults::point(Point::SocketNoted);
        result
    }

    /// Makes the relay at the first call. Returns whether there is one.
    fn has_relay(&mut self) -> bool {
        let Some(receipts) = &mut self.receipts else {
            return false;
        };
        if self.relay.is_none()
            && let Ok(relay) = pipe()
            && receipts.set_relay(relay.0.as_raw_fd())
        {
            self.relay = Some(relay);
        }
        if self.relay.is_none() {
            receipts.lose();
        }
        self.relay.is_some()
    }

    /// Sends through the relay.
    fn send_with_receipt(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: u64,
        bytes: &Bytes,
    ) -> Attempt<usize> {
        let (Some((from, to)), Some(receipts)) = (&self.relay, &mut self.receipts) else {
            return Err(CallError::WouldBlock);
        };
        let Some(sending) = receipts.expect_sent(fd.as_raw_fd(), offset) else {
            return Err(CallError::WouldBlock);
        };
        faults::point(Point::SendIntended);
        let put = rustix::io::write(to, &bytes[..bytes.len().min(RELAY_MAX)])?;
        faults::point(Point::Relayed);
        sending.relayed(put);
        faults::point(Point::RelayNoted);
        let flags = SpliceFlags::NONBLOCK;
        let mut sent = 0;
        let mut result = Ok(0);
        // One call passes on no more than one piece to some receivers.
        while sent < put {
            result = rustix::pipe::splice(from, None, fd, None, put - sent, flags);
            match result {
                Ok(0) | Err(_) => break,
                Ok(more) => sent += more,
            }
            faults::point(Point::Spliced);
        }
        sending.sent(sent);
        faults::point(Point::SpliceNoted);
        let mut left = put - sent;
        let mut rest = [0; 4096];
        while left > 0 {
            let most = left.min(rest.len());
            left -= rustix::io::read(from, &mut rest[..most])?;
        }
        match result {
            Err(errno) if sent == 0 => Err(errno.into()),
            _ if sent == 0 => Err(CallError::WouldBlock),
            _ => Ok(sent),
        }
    }

    /// Reads once, as many bytes as are there, so that later lives know how many were taken.
    fn read_with_receipt(
        &mut self,
        fd: BorrowedFd<'_>,
        mode: Nonblocking,
        offset: u64,
        max: usize,
    ) -> Attempt<Received> {
        let available = rustix::io::ioctl_fionread(fd).unwrap_or(0);
        let available = usize::try_from(available).unwrap_or(usize::MAX);
        if available == 0 {
            return self.read_nothing(fd, mode);
        }
        let room = self.receipts.as_mut().and_then(|receipts| receipts.room());
        let Some(room) = room else {
            return self.intake.read(fd, mode, max);
        };
        let bytes = available.min(max).min(READ_MAX).min(room);
        if bytes == 0 {
            return Err(CallError::WouldBlock);
        }
        let mut short = [0; Receipts::SHORT];
        let known = if bytes < Receipts::SHORT {
            self.peek(fd, mode, &mut short[..bytes])?;
            Some(&short[..bytes])
        } else {
            None
        };
        let number = fd.as_raw_fd();
        let receipts = self.receipts.as_mut();
        let place = receipts.and_then(|r| r.expect(number, offset, bytes, known));
        let Some(mut place) = place else {
            return Err(CallError::WouldBlock);
        };
        faults::point(Point::ReadIntended);
        let result = transfer::read(fd, mode, place.bytes());
        faults::point(Point::BytesRead);
        let len = *result.as_ref().unwrap_or(&0);
        let received = self.intake.chunk.copy(place.bytes(), len);
        place.took(len);
        faults::point(Point::ReadNoted);
        result.map(|_| received).map_err(Into::into)
    }

    /// Reads where nothing is to be taken: the end of the stream, or an error.
    fn read_nothing(&mut self, fd: BorrowedFd<'_>, mode: Nonblocking) -> Attempt<Received> {
        if mode == Nonblocking::Socket {
            let peek = RecvFlags::DONTWAIT | RecvFlags::PEEK;
            return match rustix::net::recv(fd, &mut [0], peek) {
                Ok((0, _)) => Ok(Received::default()),
                // Something has come since: the source is still ready.
                Ok(_) => Err(CallError::WouldBlock),
                Err(errno) => Err(errno.into()),
            };
        }
        let found = transfer::poll(fd, Direction::Read)?;
        if found.contains(PollFlags::IN) {
            // Bytes that have come since; or a device that does not tell how many it has.
            return match rustix::io::ioctl_fionread(fd) {
                Ok(1..) => Err(CallError::WouldBlock),
                _ => {
                    let mut bytes = [0; 4096];
                    let len = transfer::read(fd, mode, &mut bytes)?;
                    Ok(self.intake.chunk.copy(&bytes, len))
                }
            };
        }
        // The end, or an error: no bytes are there, and nobody is left who could write some.
        let mut bytes = [0; 1];
        let len = transfer::read(fd, mode, &mut bytes)?;
        Ok(self.intake.chunk.copy(&bytes, len))
    }

    /// Looks at the bytes that are read next, without taking them.
    fn peek(
        &mut self,
        fd: BorrowedFd<'_>,
        mode: Nonblocking,
        bytes: &mut [u8],
    ) -> Result<(), CallError> {
        if mode == Nonblocking::Socket {
            let peek = RecvFlags::DONTWAIT | RecvFlags::PEEK;
            rustix::net::recv(fd, bytes, peek)?;
            return Ok(());
        }
        if self.peek.is_none() {
            self.peek = Some(pipe()?);
        }
        if let Some((reader, writer)) = &self.peek {
            let flags = SpliceFlags::NONBLOCK;
            // A device has no pipe's pages: then its bytes are not known before.
            if let Ok(copied) = rustix::pipe::tee(fd, writer, bytes.len(), flags) {
                rustix::io::read(reader, &mut bytes[..copied])?;
            }
        }
        Ok(())
    }
}
