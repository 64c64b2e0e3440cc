//! Receives datagrams and the errors that hosts report.

use std::cell::RefCell;

use rustix::io::Errno;

use super::names::{self, Family};
use super::{AT_ONCE, DatagramWatch, RETRY, passes, tell_error};
use crate::error::SystemError;
use crate::event::{CloseReason, largest};
use crate::faults::{self, Point};
use crate::sys::datagram::{self, Incoming, Queue};
use crate::watch::Context;

/// The most bytes of datagrams that one turn takes from a socket, though it may exceed them by the
/// last one.
const BYTES_AT_ONCE: u64 = 256 * 1024;
/// The size in bytes of the buffer for what one system call receives. A datagram that is larger has
/// the buffer for itself.
const BUFFER_BYTES: usize = 1 << 20;

thread_local! {
    /// The buffer into which the watches of a loop receive, as large as the largest has needed.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl DatagramWatch {
    /// Takes a bounded number of datagrams and errors from the socket, then waits for more.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>) {
        if self.paused || self.held || cx.is_closing() {
            return;
        }
        self.tell_loss(cx);
        let found = match self.ready.error && self.family != Family::Unix {
            true => self.receive_errors(cx).and_then(|()| self.receive_all(cx)),
            false => self.receive_all(cx),
        };
        match found {
            Ok(()) => self.tell_drops(cx),
            Err(Stop::NoRoom) => self.due.arm = Some(cx.now.monotonic.saturating_add(RETRY)),
            Err(Stop::Failed(errno)) => cx.fail(errno, "receive"),
            Err(Stop::Shut) => cx.close(CloseReason::Completed),
        }
        self.arm(cx);
    }

    fn receive_all(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        BUFFER.with_borrow_mut(|buffer| {
            let size = self.max_size as usize;
            let len = size * (BUFFER_BYTES / size).clamp(1, datagram::RECEIVED_AT_ONCE);
            if buffer.len() < len {
                // New zeros cost nothing until they are used, unlike those that a resize writes.
                *buffer = vec![0; len];
            }
            self.receive_into(cx, &mut buffer[..len])
        })
    }

    fn receive_into(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Result<(), Stop> {
        let queue = match self.family {
            Family::Unix => Queue::Unix,
            Family::V4 | Family::V6 => Queue::Ip,
        };
        let size = self.max_size as usize;
        // A datagram, or an error.
        let most = (largest::DATAGRAM + self.max_size).max(largest::DATAGRAM_ERROR);
        let mut bytes = BYTES_AT_ONCE.min(cx.read_budget());
        let mut taken = 0;
        while taken < AT_ONCE {
            let fit = cx.room_for(most);
            if fit == 0 {
                return Err(Stop::NoRoom);
            }
            // As many as fit even if all are as large as one can be.
            let count = fit.min((bytes / u64::from(most)).max(1));
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let count = count.min(AT_ONCE - taken).min(buffer.len() / size);
            let mut got = Vec::with_capacity(count);
            let space = &mut buffer[..count * size];
            let received = self.next(cx, queue, (&mut *space, size), |incoming, data| {
                // An empty one counts what its event takes.
                bytes = bytes.saturating_sub(u64::from(largest::DATAGRAM) + data.len() as u64);
                got.push((incoming.clone(), data.len()));
            });
            match received {
                Ok(received) => {
                    taken += received;
                    self.received += received as u64;
                    cx.changed();
                    for ((incoming, kept), bytes) in got.iter().zip(space.chunks_exact(size)) {
                        let head = self.described.of(incoming, *kept);
                        cx.emit_datagram(&head, &bytes[..*kept]);
                    }
                    if received < count || bytes == 0 {
                        return Ok(());
                    }
                }
                // Somebody has shut the socket down: it stays readable, and nothing comes.
                Err(Errno::AGAIN) if taken == 0 && self.is_shut() => return Err(Stop::Shut),
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) if !passes(errno) => return Err(Stop::Failed(errno)),
                // The errors of IP are in the error queue too, with the peer.
                Err(_) if queue == Queue::Ip => {
                    taken += 1;
                    self.receive_errors(cx)?;
                }
                Err(errno) => {
                    taken += 1;
                    let peer = self.peer.clone();
                    tell_error(cx, peer, &SystemError::new(errno, "receive", ""), None);
                }
            }
        }
        Ok(())
    }

    const fn is_shut(&self) -> bool {
        self.ready.half_closed || self.ready.hangup
    }

    /// Takes what hosts have reported by ICMP.
    fn receive_errors(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        for _ in 0..AT_ONCE {
            if !cx.has_room_for(largest::DATAGRAM_ERROR) {
                return Err(Stop::NoRoom);
            }
            // The datagram that comes with an error is not kept, but recvmmsg(2) needs some space.
            let mut found = None;
            let take =
                |error: &Incoming, _: &[u8]| found = error.reported.zip(Some(error.peer.clone()));
            match self.next(cx, Queue::Errors, (&mut [0], 1), take) {
                Ok(_) => {
                    // What no host has reported concerns a send that has failed, and was told there.
                    if let Some((reported, peer)) = found {
                        let peer = peer.as_ref().and_then(names::describe);
                        let error = SystemError::new(reported.errno, "deliver", "");
                        tell_error(cx, peer, &error, reported.by);
                    }
                }
                Err(errno) if passes(errno) => break,
                Err(errno) => return Err(Stop::Failed(errno)),
            }
        }
        Ok(())
    }

    /// Receives the datagrams, or the errors, that wait and fit into the buffer, which has room for
    /// datagrams of that size. No kernel counts them, so they are in doubt until the turn is committed.
    fn next(
        &mut self,
        cx: &mut Context<'_>,
        queue: Queue,
        (buffer, size): (&mut [u8], usize),
        mut take: impl FnMut(&Incoming, &[u8]),
    ) -> Result<usize, Errno> {
        let turn = cx.turn();
        let before = if self.taken.0 == turn {
            self.taken.1
        } else {
            0
        };
        cx.in_doubt(before + (buffer.len() / size.max(1)) as u64);
        let fd = self.source.and_then(|source| cx.fd(source));
        let fd = fd.ok_or(Errno::BADF)?;
        faults::point(Point::DatagramsInDoubt);
        let received =
            rustix::io::retry_on_intr(|| datagram::receive(fd, buffer, size, queue, &mut take));
        faults::point(Point::DatagramsReceived);
        let taken = match received {
            Ok(received) => received as u64,
            Err(Errno::AGAIN) => 0,
            // The error of an earlier send, which is taken with that.
            Err(_) => 1,
        };
        self.taken = (turn, before + taken);
        cx.in_doubt(before + taken);
        faults::point(Point::DatagramsNoted);
        received
    }
}

/// Why a watch stops receiving.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// The journal has no room.
    NoRoom,
    /// The socket cannot be used.
    Failed(Errno),
    /// The socket was shut down.
    Shut,
}
