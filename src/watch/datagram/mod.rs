//! Datagram sockets: UDP and Unix, bound, connected or both (asyncio's create_datagram_endpoint).
//!
//! The driver tells only when the socket is ready; the watch itself receives and sends, in the same
//! way on every backend. It receives at the end of a turn's completions, by its alarm, because only
//! then is it known how much room the journal has left.
//!
//! io_uring's multishot recvmsg does not fit: what it has taken cannot be left in the socket when the
//! journal becomes full, as a Unix sender would have to wait for, and each of its buffers must have room
//! for the largest datagram.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::listener::SocketFile;
use super::{Alarm, Context, Notice, Resumption, Teardown, Watch, WaterMarks};
use crate::driver::{Direction, Done, Driver, Lane, Nonblocking, Op, Readiness, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{DatagramError, Kind};
use crate::proto;
use crate::proto::state::KeptDatagrams;
use crate::proto::state::kept_watch_state::Of;
use crate::state::descriptor;
use drops::{Drops, Loss};
use names::{Described, Family};
use outgoing::Outgoing;

mod drops;
mod groups;
mod incoming;
mod names;
mod open;
mod outgoing;

pub use groups::{Group, Groups, Membership};
pub use names::Parcel;
pub use open::{DatagramOptions, DatagramOrder, DatagramSocket, Endpoint};

const READ: Lane = Lane(0);
const WRITE: Lane = Lane(1);

/// The most datagrams, or errors, that one turn takes from a socket or sends.
const AT_ONCE: usize = 256;
/// How long a watch waits before it tries again what the system or the journal had no room for, in
/// nanoseconds.
const RETRY: u64 = 10_000_000;

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
    /// Its device and inode.
    file_is: Option<(u64, u64)>,
    /// The groups of an IP socket.
    groups: Option<Arc<Groups>>,
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
            file_is: None,
            groups: None,
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
    /// To look for drops.
    look: Option<u64>,
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
    /// Its device and inode.
    file_is: Option<(u64, u64)>,
    /// The groups of an IP socket.
    groups: Option<Arc<Groups>>,
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
    /// A turn, and how many datagrams and errors were taken in it.
    taken: (u64, u64),
    /// What is to be told of an earlier life.
    loss: Loss,
    described: Described,
    output: Outgoing,
    drops: Drops,
    receive_buffer: u64,
}

impl DatagramWatch {
    fn new(socket: Socket, paused: bool, max_size: u32, marks: WaterMarks) -> Self {
        let drops = Drops::of(socket.fd.as_fd());
        let buffer = rustix::net::sockopt::socket_recv_buffer_size(&socket.fd);
        Self {
            fd: Some((socket.fd, socket.mode)),
            source: None,
            family: socket.family,
            local: socket.local,
            peer: socket.peer,
            reconnect: socket.reconnect,
            file: socket.file,
            file_is: socket.file_is,
            groups: socket.groups,
            max_size,
            paused,
            held: false,
            ready: Readiness::default(),
            due: Due::default(),
            received: 0,
            taken: (0, 0),
            loss: Loss::default(),
            described: Described::default(),
            output: Outgoing::new(marks),
            drops,
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
            look,
        } = self.due;
        match [receive, arm, send, close, look]
            .into_iter()
            .flatten()
            .min()
        {
            Some(at) => cx.set_alarm(Alarm::Monotonic(at)),
            None => cx.clear_alarm(),
        }
    }
}

/// Whether a failure to receive or to send concerns only one datagram, or passes by itself.
const fn passes(errno: Errno) -> bool {
    !matches!(
        errno,
        Errno::BADF | Errno::NOTSOCK | Errno::FAULT | Errno::OPNOTSUPP
    )
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
            self.look_soon(cx);
            self.connect_groups(cx);
            self.set_alarm(cx);
            cx.changed();
        }
    }

    fn keep(&self, driver: &dyn Driver) -> Option<Of> {
        let (drops_seen, drops_counted, drops_told) = self.drops.kept();
        Some(Of::Datagrams(KeptDatagrams {
            descriptor: Some(descriptor(driver.fd(self.source?)?)?),
            max_size: self.max_size,
            paused: self.paused,
            received: self.received,
            sent: self.output.sent,
            drops_seen,
            drops_counted,
            drops_told,
            groups: self.groups.as_ref().map_or_else(Vec::new, |g| g.keep()),
            file_device: self.file_is.map(|(device, _)| device),
            file_inode: self.file_is.map_or(0, |(_, inode)| inode),
            waiting: self.output.count(),
            write_paused: self.output.is_paused(),
            in_doubt: self.loss.in_doubt,
            unsent: self.loss.unsent,
            queue_lost: self.loss.queue_lost,
            port: self
                .local
                .as_ref()
                .and_then(super::address::port)
                .unwrap_or_default(),
        }))
    }

    fn resume(&mut self, cx: &mut Context<'_>, kept: Resumption) -> Result<()> {
        let (Of::Datagrams(before), Some((fd, mode))) = (kept.of, self.fd.take()) else {
            return Err(Error::Internal("what was kept is no datagram socket"));
        };
        (self.paused, self.received) = (before.paused, before.received);
        let is_new = descriptor(fd.as_fd()) != before.descriptor;
        let drops_seen = if is_new { 0 } else { before.drops_seen };
        let drops = (drops_seen, before.drops_counted, before.drops_told);
        self.drops.go_on(drops);
        self.loss = Loss {
            in_doubt: before.in_doubt + kept.in_doubt,
            unsent: before.unsent + before.waiting,
            queue_lost: before.queue_lost || is_new,
        };
        if let Some(groups) = &self.groups {
            groups.go_on(fd.as_fd(), before.groups);
        }
        self.output.go_on(cx, before.sent, before.write_paused);
        self.source = cx.attach(fd, mode);
        self.tell_loss(cx);
        self.arm(cx);
        self.look_soon(cx);
        self.connect_groups(cx);
        self.set_alarm(cx);
        cx.changed();
        Ok(())
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
        if is_due(&mut self.due.look) {
            self.look(cx);
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
            self.tell_loss(cx);
            self.arm(cx);
        }
        self.look_soon(cx);
        self.set_alarm(cx);
        self.source.is_some()
    }

    fn pause_reading(&mut self, cx: &mut Context<'_>, pause: bool) -> Result<()> {
        self.paused = pause;
        cx.changed();
        if pause {
            cx.cancel(READ);
        } else {
            self.arm(cx);
        }
        self.look_soon(cx);
        self.set_alarm(cx);
        Ok(())
    }

    fn set_water_marks(&mut self, cx: &mut Context<'_>, marks: WaterMarks) -> Result<()> {
        self.output.set_marks(cx, marks)
    }

    fn group_socket(&self) -> Result<(SourceId, Arc<Groups>)> {
        let none = || Error::wrong_state("a Unix socket has no multicast groups");
        let groups = self.groups.as_ref().ok_or_else(none)?;
        Ok((self.takeable()?, Arc::clone(groups)))
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        if matches!(notice, Notice::Woken) {
            self.groups_changed(cx);
            self.set_alarm(cx);
        }
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
        self.tell_last_drops(cx);
        self.source = None;
        if let Some(file) = self.file.take() {
            cx.drop_later(file);
        }
        self.output.unsent()
    }

    fn can_abort(&self) -> bool {
        true
    }

    fn status(&self, driver: &dyn Driver) -> Option<proto::watch::Status> {
        let fd = self.source.and_then(|source| driver.fd(source));
        let dropped = self.drops.as_of_now(fd);
        Some(proto::watch::Status::Datagram(proto::DatagramStatus {
            local: self.local.clone(),
            peer: self.peer.clone(),
            reading_paused: self.paused,
            received: self.received,
            sent: self.output.sent,
            buffered_bytes: self.output.buffered(),
            dropped,
            untold_drops: dropped - self.drops.told(),
            groups: self.groups.as_ref().map_or_else(Vec::new, |g| g.status()),
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
