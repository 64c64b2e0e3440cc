//! Datagram sockets: UDP and Unix, bound, connected or both (asyncio's create_datagram_endpoint).
//!
//! The driver tells only when the socket is ready; the watch itself receives and sends, in the same
//! way on every backend. It receives at the end of a turn's completions, by its alarm, because only
//! then is it known how much room the journal has left.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::listener::SocketFile;
use super::{Alarm, Context, Teardown, Watch, WaterMarks};
use crate::driver::{Direction, Done, Lane, Nonblocking, Op, Readiness, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Datagram, DatagramError, DatagramsDropped, Kind, largest};
use crate::proto;
use crate::sys::datagram::{self, Incoming, Queue};
use names::{Described, Family};
use outgoing::Outgoing;

mod names;
mod open;
mod outgoing;

pub use names::Parcel;
pub use open::{DatagramOptions, DatagramOrder, DatagramSocket, Endpoint, Group, Membership};

const READ: Lane = Lane(0);
const WRITE: Lane = Lane(1);

/// The most datagrams, or errors, that one turn takes from a socket.
const AT_ONCE: usize = 256;
/// The most bytes of datagrams that one turn takes from a socket, though it may exceed them by the
/// last one.
const BYTES_AT_ONCE: u64 = 256 * 1024;
/// The size in bytes of the buffer for what one system call receives. A datagram that is larger has
/// the buffer for itself.
const BUFFER_BYTES: usize = 1 << 20;
/// How long a watch waits before it tries again what the system or the journal had no room for, in
/// nanoseconds.
const RETRY: u64 = 10_000_000;

thread_local! {
    /// The buffer into which the watches of a loop receive, as large as the largest has needed.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A socket that is made, bound and connected, with what is known of it.
#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    mode: Nonblocking,
    family: Family,
    local: Option<proto::SocketAddress>,
    peer: Option<proto::SocketAddress>,
    /// The Unix peer to connect to again when its socket is replaced by another.
    reconnect: Option<SocketAddrUnix>,
    file: Option<SocketFile>,
}

impl Socket {
    fn new(fd: OwnedFd, mode: Nonblocking, family: Family) -> Self {
        let mut new = Self {
            fd,
            mode,
            family,
            local: None,
            peer: None,
            reconnect: None,
            file: None,
        };
        new.look_up();
        new
    }

    /// Finds out the addresses of the socket.
    fn look_up(&mut self) {
        let local = rustix::net::getsockname(&self.fd).ok();
        self.local = local.and_then(|local| names::describe(&local));
        let peer = rustix::net::getpeername(&self.fd).ok().flatten();
        self.peer = peer.and_then(|peer| names::describe(&peer));
    }
}

/// When to do what. All times are nanoseconds of the monotonic clock; `None` if it is not due.
#[derive(Debug, Default)]
struct Due {
    /// To receive.
    receive: Option<u64>,
    /// To wait for datagrams again, because the journal had no room.
    arm: Option<u64>,
    /// To send what waits.
    send: Option<u64>,
    /// To close without sending what waits.
    close: Option<u64>,
}

#[derive(Debug)]
struct DatagramWatch {
    /// The socket until the watch starts.
    fd: Option<(OwnedFd, Nonblocking)>,
    source: Option<SourceId>,
    family: Family,
    local: Option<proto::SocketAddress>,
    peer: Option<proto::SocketAddress>,
    reconnect: Option<SocketAddrUnix>,
    file: Option<SocketFile>,
    /// The most bytes of a datagram that are kept.
    max_size: u32,
    /// Whether the client paused reading.
    paused: bool,
    /// Whether reading is paused because the journal has no room.
    held: bool,
    /// What the driver said last about reading.
    ready: Readiness,
    due: Due,
    received: u64,
    described: Described,
    output: Outgoing,
    /// The kernel's number of drops that was told last, modulo 2^32.
    drops_seen: u32,
    /// The drops that were told.
    dropped: u64,
    receive_buffer: u64,
}

/// Whether a failure to receive or to send concerns only one datagram, or passes by itself.
const fn passes(errno: Errno) -> bool {
    !matches!(
        errno,
        Errno::BADF | Errno::NOTSOCK | Errno::FAULT | Errno::OPNOTSUPP
    )
}

impl DatagramWatch {
    fn new(socket: Socket, paused: bool, max_size: u32, marks: WaterMarks) -> Self {
        let drops = datagram::dropped(socket.fd.as_fd());
        let buffer = rustix::net::sockopt::socket_recv_buffer_size(&socket.fd);
        Self {
            fd: Some((socket.fd, socket.mode)),
            source: None,
            family: socket.family,
            local: socket.local,
            peer: socket.peer,
            reconnect: socket.reconnect,
            file: socket.file,
            max_size,
            paused,
            held: false,
            ready: Readiness::default(),
            due: Due::default(),
            received: 0,
            described: Described::default(),
            output: Outgoing::new(marks),
            drops_seen: drops.unwrap_or(0),
            dropped: 0,
            receive_buffer: buffer.unwrap_or(0) as u64,
        }
    }

    /// Waits for datagrams, unless the watch may not receive.
    fn arm(&self, cx: &mut Context<'_>) {
        let waits = self.due.receive.is_some() || self.due.arm.is_some();
        if let Some(source) = self.source
            && !(self.paused || self.held || waits || cx.is_closing() || cx.is_live(READ))
        {
            cx.start(READ, source, Op::Ready(Direction::Read));
        }
    }

    /// Sets the alarm to what is due first.
    fn set_alarm(&self, cx: &mut Context<'_>) {
        let Due {
            receive,
            arm,
            send,
            close,
        } = self.due;
        match [receive, arm, send, close].into_iter().flatten().min() {
            Some(at) => cx.set_alarm(Alarm::Monotonic(at)),
            None => cx.clear_alarm(),
        }
    }

    /// Takes a bounded number of datagrams and errors from the socket, then waits for more.
    fn receive(&mut self, cx: &mut Context<'_>) {
        if self.paused || self.held || cx.is_closing() {
            return;
        }
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
            let described = &mut self.described;
            let received = next(cx, self.source, queue, (space, size), |incoming, data| {
                // An empty one counts what its event takes.
                bytes = bytes.saturating_sub(u64::from(largest::DATAGRAM) + data.len() as u64);
                got.push(told(described, incoming, data));
            });
            match received {
                Ok(received) => {
                    taken += received;
                    self.received += received as u64;
                    for datagram in got {
                        cx.emit(Kind::Datagram(datagram));
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
    fn receive_errors(&self, cx: &mut Context<'_>) -> Result<(), Stop> {
        for _ in 0..AT_ONCE {
            if !cx.has_room_for(largest::DATAGRAM_ERROR) {
                return Err(Stop::NoRoom);
            }
            // The datagram that comes with an error is not kept, but recvmmsg(2) needs some space.
            let mut found = None;
            let take =
                |error: &Incoming, _: &[u8]| found = error.reported.zip(Some(error.peer.clone()));
            match next(cx, self.source, Queue::Errors, (&mut [0], 1), take) {
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

    /// Tells what the kernel has dropped. It drops only while the buffer is full, and a full buffer
    /// is read, so nothing is missed by looking after each read.
    fn tell_drops(&mut self, cx: &mut Context<'_>) {
        if self.family == Family::Unix {
            return;
        }
        let fd = self.source.and_then(|source| cx.fd(source));
        let Some(Ok(drops)) = fd.map(datagram::dropped) else {
            return;
        };
        let count = u64::from(drops.wrapping_sub(self.drops_seen));
        if count > 0 && cx.has_room() {
            self.drops_seen = drops;
            self.dropped += count;
            cx.emit(Kind::DatagramsDropped(DatagramsDropped {
                count,
                total: self.dropped,
            }));
        }
    }
}

/// Receives the datagrams, or the errors, that wait and fit into the buffer, which has room for
/// datagrams of that size.
fn next(
    cx: &Context<'_>,
    source: Option<SourceId>,
    queue: Queue,
    (buffer, size): (&mut [u8], usize),
    mut take: impl FnMut(&Incoming, &[u8]),
) -> Result<usize, Errno> {
    let fd = source.and_then(|source| cx.fd(source));
    let fd = fd.ok_or(Errno::BADF)?;
    rustix::io::retry_on_intr(|| datagram::receive(fd, buffer, size, queue, &mut take))
}

/// Returns what a client is told of a datagram.
fn told(described: &mut Described, incoming: &Incoming, data: &[u8]) -> Datagram {
    let whole = incoming.len == data.len();
    Datagram {
        peer: described.peer(incoming.peer.as_ref()),
        data: Bytes::copy_from_slice(data),
        full_length: if whole { 0 } else { incoming.len as u64 },
        local_ip: described.local(incoming.local),
        interface_index: incoming.interface,
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

fn tell_error(
    cx: &mut Context<'_>,
    peer: Option<proto::SocketAddress>,
    error: &SystemError,
    reporter: Option<std::net::IpAddr>,
) {
    let reporter = reporter.map(|ip| ip.to_string());
    cx.emit(Kind::DatagramError(DatagramError {
        peer,
        error: Some(error.into()),
        reporter_ip: reporter.unwrap_or_default(),
    }));
}

impl Watch for DatagramWatch {
    fn start(&mut self, cx: &mut Context<'_>) {
        if let Some((fd, mode)) = self.fd.take() {
            self.source = cx.attach(fd, mode);
            self.arm(cx);
        }
    }

    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done) {
        match (lane, done) {
            (_, Done::Failed(errno)) => {
                cx.fail(errno, "watch");
                cx.finish();
            }
            (WRITE, Done::Ready(_)) => self.flush(cx),
            (READ, Done::Ready(ready)) => {
                self.ready = ready;
                self.due.receive = Some(cx.now.monotonic);
            }
            (READ, _) => self.arm(cx),
            _ => {}
        }
        self.set_alarm(cx);
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.monotonic;
        let is_due = |at: &mut Option<u64>| at.take_if(|at| *at <= now).is_some();
        if is_due(&mut self.due.arm) {
            self.arm(cx);
        }
        if is_due(&mut self.due.receive) {
            self.receive(cx);
        }
        if is_due(&mut self.due.send) {
            self.flush(cx);
        }
        if is_due(&mut self.due.close) {
            cx.finish();
        }
        self.set_alarm(cx);
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        self.held = hold;
        if hold {
            cx.cancel(READ);
        } else {
            self.arm(cx);
        }
        self.source.is_some()
    }

    fn pause_reading(&mut self, cx: &mut Context<'_>, pause: bool) -> Result<()> {
        self.paused = pause;
        if pause {
            cx.cancel(READ);
        } else {
            self.arm(cx);
        }
        Ok(())
    }

    fn set_water_marks(&mut self, cx: &mut Context<'_>, marks: WaterMarks) -> Result<()> {
        self.output.set_marks(cx, marks)
    }

    fn group_socket(&self) -> Result<SourceId> {
        if self.family == Family::Unix {
            return Err(Error::wrong_state("a Unix socket has no multicast groups"));
        }
        self.takeable()
    }

    fn send_to(&mut self, cx: &mut Context<'_>, parcel: Parcel) -> Result<u64> {
        let sent = self.send_or_queue(cx, parcel);
        self.set_alarm(cx);
        sent
    }

    /// On an orderly end, first sends what waits, for as long as `close_linger` allows.
    fn closing(&mut self, cx: &mut Context<'_>) -> Teardown {
        cx.cancel(READ);
        self.due = Due {
            send: self.due.send,
            ..Due::default()
        };
        let teardown = match cx.linger_deadline() {
            Some(until) if !self.output.is_empty() => {
                self.due.close = Some(until);
                Teardown::Later
            }
            _ => {
                self.due.send = None;
                Teardown::Now
            }
        };
        self.set_alarm(cx);
        teardown
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        if let Some(file) = self.file.take() {
            cx.services.runtime.spawn_blocking(move || drop(file));
        }
        self.output.unsent()
    }

    fn can_abort(&self) -> bool {
        true
    }

    fn status(&self) -> Option<proto::watch::Status> {
        Some(proto::watch::Status::Datagram(proto::DatagramStatus {
            local: self.local.clone(),
            peer: self.peer.clone(),
            reading_paused: self.paused,
            received: self.received,
            sent: self.output.sent,
            buffered_bytes: self.output.buffered(),
            dropped: self.dropped,
            receive_buffer: self.receive_buffer,
            max_size: self.max_size,
            water_marks: Some(self.output.marks().into()),
        }))
    }

    fn takeable(&self) -> Result<SourceId> {
        let gone = Error::Internal("an open datagram watch has no source");
        self.source.ok_or(gone)
    }
}
