//! Sends datagrams, and keeps those that the kernel has no room for.

use std::collections::VecDeque;

use rustix::io::Errno;

use super::names::{Family, Parcel};
use super::{AT_ONCE, DatagramWatch, RETRY, WRITE, names, passes, tell_error};
use crate::driver::{Direction, Op};
use crate::error::{Error, Result, SystemError};
use crate::event::{Kind, WritePaused, WriteResumed, largest};
use crate::sys::datagram;
use crate::watch::Context;

/// The bytes that a datagram which waits counts beside its own.
const HEADER: usize = 64;
/// How long a watch waits for a receiver that has just taken datagrams, nanoseconds.
const RETRY_SOON: u64 = 1_000_000;
/// How often a send is tried that errors of earlier sends fail.
const ATTEMPTS: usize = 8;

/// The datagrams that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    queue: VecDeque<Parcel>,
    buffered: usize,
    /// Whether WritePaused was appended, and WriteResumed is due.
    paused: bool,
    /// The datagrams that the kernel has taken.
    pub(super) sent: u64,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) const fn buffered(&self) -> u64 {
        self.buffered as u64
    }

    /// Returns the bytes of the datagrams that wait, without anything beside them.
    pub(super) fn unsent(&self) -> u64 {
        (self.buffered - self.queue.len() * HEADER) as u64
    }

    fn push(&mut self, cx: &mut Context<'_>, parcel: Parcel) -> Result<()> {
        let limits = cx.services.transport;
        let buffered = self.buffered + parcel.data.len() + HEADER;
        if buffered > limits.write_buffer && !self.is_empty() {
            return Err(Error::limit(
                "limits.write_buffer",
                limits.write_buffer as u64,
            ));
        }
        let pauses = buffered > limits.high_water && !self.paused;
        if pauses {
            // Room for WritePaused, and for the WriteResumed that must follow.
            cx.reserve()?;
            cx.reserve().inspect_err(|_| cx.unreserve())?;
        }
        self.buffered = buffered;
        self.queue.push_back(parcel);
        if pauses {
            self.paused = true;
            cx.emit_reserved(Kind::WritePaused(WritePaused {
                buffered_bytes: self.buffered(),
            }));
        }
        Ok(())
    }

    fn pop(&mut self, cx: &mut Context<'_>) {
        if let Some(parcel) = self.queue.pop_front() {
            self.buffered -= parcel.data.len() + HEADER;
        }
        if self.paused && self.buffered <= cx.services.transport.high_water / 4 {
            self.paused = false;
            cx.emit_reserved(Kind::WriteResumed(WriteResumed {
                buffered_bytes: self.buffered(),
            }));
        }
    }
}

impl DatagramWatch {
    /// Sends a datagram, or keeps it if there is no room for it. Returns the bytes that wait.
    pub(super) fn send_or_queue(&mut self, cx: &mut Context<'_>, parcel: Parcel) -> Result<u64> {
        parcel.addressed(self.family)?;
        if parcel.peer.is_none() && self.peer.is_none() && self.reconnect.is_none() {
            return Err(Error::invalid(
                "peer",
                "must be set: the socket is not connected",
            ));
        }
        if self.output.is_empty() && cx.is_polled() {
            match self.transmit(cx, &parcel) {
                Ok(()) => return Ok(0),
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(SystemError::new(errno, "send", "").into()),
            }
        }
        self.output.push(cx, parcel)?;
        self.wait_to_send(cx, false);
        Ok(self.output.buffered())
    }

    /// Sends what waits, in order, as far as there is room.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) {
        let mut stuck = false;
        for tried in 0..AT_ONCE {
            let Some(parcel) = self.output.queue.pop_front() else {
                break;
            };
            let sent = self.transmit(cx, &parcel);
            let peer = parcel.shown().or_else(|| self.peer.clone());
            // It still counts, until `pop`.
            self.output.queue.push_front(parcel);
            match sent {
                Ok(()) => self.output.pop(cx),
                Err(Errno::AGAIN) => {
                    stuck = tried == 0;
                    break;
                }
                Err(errno) if !passes(errno) => {
                    cx.fail(errno, "send");
                    cx.finish();
                    return;
                }
                // It is tried again when its error can be told.
                Err(_) if !cx.has_room_for(largest::DATAGRAM_ERROR) => {
                    stuck = true;
                    break;
                }
                Err(errno) => {
                    tell_error(cx, peer, &SystemError::new(errno, "send", ""), None);
                    self.output.pop(cx);
                }
            }
        }
        if !self.output.is_empty() {
            self.wait_to_send(cx, stuck);
        } else if cx.is_closing() {
            cx.finish();
        }
    }

    /// Waits until there may be room for the next datagram. A timer is used if the readiness of the
    /// socket tells nothing: it is writable and yet has taken nothing (`stuck`), or the receiver is
    /// one that a Unix socket is not connected to, whose queue may be full.
    fn wait_to_send(&mut self, cx: &mut Context<'_>, stuck: bool) {
        let front = self.output.queue.front();
        let elsewhere = self.family == Family::Unix && front.is_some_and(|p| p.peer.is_some());
        if stuck || elsewhere {
            let delay = if stuck { RETRY } else { RETRY_SOON };
            let at = cx.now.monotonic.saturating_add(delay);
            self.due.send.get_or_insert(at);
        } else if let Some(source) = self.source
            && !cx.is_live(WRITE)
        {
            cx.start(WRITE, source, Op::Ready(Direction::Write));
        }
    }

    /// Sends one datagram. An error that an earlier send has caused, to whichever peer, fails the
    /// next call once; it is told when it is received, and the send is repeated.
    fn transmit(&mut self, cx: &Context<'_>, parcel: &Parcel) -> Result<(), Errno> {
        let fd = self.source.and_then(|source| cx.fd(source));
        let fd = fd.ok_or(Errno::BADF)?;
        let (peer, source) = parcel.addressed(self.family).map_err(|_| Errno::INVAL)?;
        let mut last = None;
        let mut reconnected = false;
        for _ in 0..ATTEMPTS {
            match datagram::send(fd, &parcel.data, peer.as_ref(), source) {
                Ok(()) => {
                    self.output.sent += 1;
                    if self.local.is_none() {
                        let local = rustix::net::getsockname(fd).ok();
                        self.local = local.and_then(|local| names::describe(&local));
                    }
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Errno::AGAIN),
                Err(errno) => {
                    let again = match (&self.reconnect, self.family) {
                        (Some(to), _) if peer.is_none() && !reconnected => {
                            reconnected = true;
                            rustix::net::connect(fd, to).is_ok()
                        }
                        (_, Family::Unix) => false,
                        // The same error twice is an error of this send.
                        (_, Family::V4 | Family::V6) => last != Some(errno),
                    };
                    if !again {
                        return Err(errno);
                    }
                    last = Some(errno);
                }
            }
        }
        Err(last.unwrap_or(Errno::INTR))
    }
}
