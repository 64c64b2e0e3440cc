//! Sends datagrams, and keeps those that the kernel has no room for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use rustix::io::Errno;

use super::names::{Family, Parcel};
use super::{AT_ONCE, DatagramWatch, RETRY, WRITE, names, passes, tell_error};
use crate::driver::{Direction, Op};
use crate::error::{Error, Result, SystemError};
use crate::event::largest;
use crate::sys::datagram;
use crate::watch::address::UnixName;
use crate::watch::water::Gauge;
use crate::watch::{Context, WaterMarks};

/// The bytes that a datagram which waits counts beside its own.
const HEADER: usize = 64;
/// How long a watch waits for a receiver that has just taken datagrams, nanoseconds.
const RETRY_SOON: u64 = 1_000_000;
/// How often a send is tried that errors of earlier sends fail.
const ATTEMPTS: usize = 8;

/// The datagrams that wait to be sent. Those to one receiver are sent in order; the others do not
/// wait for it.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The datagrams that wait, for each receiver; no queue is empty.
    queues: BTreeMap<Receiver, VecDeque<Parcel>>,
    /// The receiver that was tried last.
    last: Receiver,
    count: usize,
    buffered: usize,
    gauge: Gauge,
    /// The datagrams that the kernel has taken.
    pub(super) sent: u64,
}

/// The receiver whose queue a datagram waits in: the name of a Unix socket that the watch is not
/// connected to. `None` is everything else, which waits for the buffer of the watch's own socket.
type Receiver = Option<UnixName>;

/// Whether the queue of a receiver can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// A datagram was sent, or dropped with its error.
    Made,
    /// There is no room for the first datagram.
    Full,
    /// The error of the first datagram cannot be told now.
    Untold,
    /// The socket is broken.
    Broken,
}

impl Outgoing {
    pub(super) const fn new(marks: WaterMarks) -> Self {
        Self {
            queues: BTreeMap::new(),
            last: None,
            count: 0,
            buffered: 0,
            gauge: Gauge::new(marks),
            sent: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub(super) const fn buffered(&self) -> u64 {
        self.buffered as u64
    }

    /// Returns the bytes of the datagrams that wait, without anything beside them.
    pub(super) const fn unsent(&self) -> u64 {
        (self.buffered - self.count * HEADER) as u64
    }

    /// Returns how many datagrams wait.
    pub(super) const fn count(&self) -> u64 {
        self.count as u64
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.gauge.is_paused()
    }

    /// Goes on as those of an earlier life, of which nothing waits any more.
    pub(super) fn go_on(&mut self, cx: &mut Context<'_>, sent: u64, is_paused: bool) {
        self.sent = sent;
        self.gauge.go_on(cx, is_paused);
        self.gauge.sink(cx, 0);
    }

    pub(super) const fn marks(&self) -> WaterMarks {
        self.gauge.marks()
    }

    pub(super) fn set_marks(&mut self, cx: &mut Context<'_>, marks: WaterMarks) -> Result<()> {
        self.gauge.set(cx, marks, self.buffered)
    }

    fn push(&mut self, cx: &mut Context<'_>, to: Receiver, parcel: Parcel) -> Result<()> {
        let limits = cx.services.transport;
        let buffered = self.buffered + parcel.data.len() + HEADER;
        if buffered > limits.write_buffer && !self.is_empty() {
            return Err(Error::limit(
                "limits.write_buffer",
                limits.write_buffer as u64,
            ));
        }
        let pauses = self.gauge.prepare(cx, buffered, false)?;
        self.buffered = buffered;
        self.count += 1;
        self.queues.entry(to).or_default().push_back(parcel);
        if pauses {
            self.gauge.pause(cx, buffered);
        }
        Ok(())
    }

    /// Returns the receiver after the one that was tried last, in turns.
    fn next(&self) -> Option<Receiver> {
        let after = (Bound::Excluded(&self.last), Bound::Unbounded);
        let next = self.queues.range(after).next();
        next.or_else(|| self.queues.first_key_value())
            .map(|(receiver, _)| receiver.clone())
    }

    /// Takes the first datagram to that receiver out of its queue. It still counts.
    fn take(&mut self, to: &Receiver) -> Option<Parcel> {
        self.queues.get_mut(to)?.pop_front()
    }

    /// Puts the datagram back that was taken last.
    fn put_back(&mut self, to: &Receiver, parcel: Parcel) {
        if let Some(queue) = self.queues.get_mut(to) {
            queue.push_front(parcel);
        }
    }

    /// Counts the datagram that was taken last as gone.
    fn gone(&mut self, cx: &mut Context<'_>, to: &Receiver, parcel: &Parcel) {
        if self.queues.get(to).is_some_and(VecDeque::is_empty) {
            self.queues.remove(to);
        }
        self.count -= 1;
        self.buffered -= parcel.data.len() + HEADER;
        self.gauge.sink(cx, self.buffered);
    }
}

impl DatagramWatch {
    /// Sends a datagram, or keeps it if there is no room for it. Returns the bytes that wait.
    pub(super) fn send_or_queue(&mut self, cx: &mut Context<'_>, parcel: Parcel) -> Result<u64> {
        cx.changed();
        parcel.addressed(self.family)?;
        if parcel.peer.is_none() && self.peer.is_none() && self.reconnect.is_none() {
            return Err(Error::invalid(
                "peer",
                "must be set: the socket is not connected",
            ));
        }
        let to = match &parcel.peer {
            Some(names::Receiver::Unix(name)) => Some(name.clone()),
            Some(names::Receiver::Ip(_)) | None => None,
        };
        if !self.output.queues.contains_key(&to) && cx.is_polled() {
            match self.transmit(cx, &parcel) {
                Ok(()) => return Ok(0),
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(SystemError::new(errno, "send", "").into()),
            }
        }
        let elsewhere = to.is_some();
        self.output.push(cx, to, parcel)?;
        if !elsewhere {
            self.send_when_ready(cx);
        } else if self.due.send.is_none() {
            self.send_in(cx, RETRY_SOON);
        }
        Ok(self.output.buffered())
    }

    /// Sends what waits, as far as there is room, to one receiver after the other.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) {
        cx.changed();
        let mut full = BTreeSet::new();
        let (mut made, mut untold) = (false, false);
        let mut left = AT_ONCE;
        while left > 0
            && !untold
            && full.len() < self.output.queues.len()
            && let Some(to) = self.output.next()
        {
            self.output.last.clone_from(&to);
            if full.contains(&to) {
                continue;
            }
            left -= 1;
            match self.send_first(cx, &to) {
                Progress::Made => made = true,
                Progress::Full => drop(full.insert(to)),
                Progress::Untold => untold = true,
                Progress::Broken => return,
            }
        }
        if self.output.is_empty() {
            if cx.is_closing() {
                cx.finish();
            }
            return;
        }
        // A timer is used where the readiness of the socket tells nothing: it is writable and yet has
        // taken nothing, or the receiver is one that the socket is not connected to.
        let own = self.output.queues.contains_key(&None);
        if left == 0 && made {
            self.send_in(cx, 0);
        } else if untold || !made {
            self.send_in(cx, RETRY);
        } else {
            if own {
                self.send_when_ready(cx);
            }
            if !own || self.output.queues.len() > 1 {
                self.send_in(cx, RETRY_SOON);
            }
        }
    }

    /// Sends the first datagram that waits for that receiver.
    fn send_first(&mut self, cx: &mut Context<'_>, to: &Receiver) -> Progress {
        let Some(parcel) = self.output.take(to) else {
            return Progress::Full;
        };
        let progress = match self.transmit(cx, &parcel) {
            Ok(()) => Progress::Made,
            Err(Errno::AGAIN) => Progress::Full,
            Err(errno) if !passes(errno) => {
                cx.fail(errno, "send");
                cx.finish();
                Progress::Broken
            }
            Err(_) if !cx.has_room_for(largest::DATAGRAM_ERROR) => Progress::Untold,
            Err(errno) => {
                let peer = parcel.shown().or_else(|| self.peer.clone());
                tell_error(cx, peer, &SystemError::new(errno, "send", ""), None);
                Progress::Made
            }
        };
        if progress == Progress::Made {
            self.output.gone(cx, to, &parcel);
        } else {
            self.output.put_back(to, parcel);
        }
        progress
    }

    /// Sends what waits after that time, in nanoseconds, at the latest.
    fn send_in(&mut self, cx: &Context<'_>, delay: u64) {
        let at = cx.now.monotonic.saturating_add(delay);
        let due = self.due.send.get_or_insert(at);
        *due = at.min(*due);
    }

    /// Sends what waits when the socket has room.
    fn send_when_ready(&self, cx: &mut Context<'_>) {
        if let Some(source) = self.source
            && !cx.is_live(WRITE)
        {
            cx.start(WRITE, source, Op::Ready(Direction::Write));
        }
    }

    /// Returns the address, of the family in which the datagram is sent, that leaves the choice to the
    /// kernel.
    fn any_address(&self, parcel: &Parcel) -> IpAddr {
        let peer = match (&parcel.peer, &self.peer) {
            (Some(names::Receiver::Ip(ip)), _) => Some(ip.ip().to_canonical()),
            (_, Some(peer)) => names::ip_of(peer),
            _ => None,
        };
        match (self.family, peer) {
            (Family::V6, Some(IpAddr::V4(_))) => Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(),
            (Family::V6, _) => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    /// Sends one datagram. An error that an earlier send has caused, to whichever peer, fails the
    /// next call once; it is told when it is received, and the send is repeated.
    fn transmit(&mut self, cx: &Context<'_>, parcel: &Parcel) -> Result<(), Errno> {
        let fd = self.source.and_then(|source| cx.fd(source));
        let fd = fd.ok_or(Errno::BADF)?;
        let (peer, mut source) = parcel.addressed(self.family).map_err(|_| Errno::INVAL)?;
        if source.interface != 0 && source.ip.is_none() {
            source.ip = Some(self.any_address(parcel));
        }
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
