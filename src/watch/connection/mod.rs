//! Stream connections: made by the daemon, accepted by it, or handed over by a client.
//!
//! A name is resolved by the [`Resolver`](super::Resolver), then its addresses are tried as in RFC 8305 (Happy
//! Eyeballs): address families alternate, and the next address is tried when one fails or a delay
//! after the one before, however many attempts are pending.
//!
//! An end from outside is an orderly close: the connection sends the bytes that it has taken, ends
//! the outgoing stream, and [lingers](linger) so that none of them are lost. Only an abort resets
//! the connection.

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::Shutdown;

pub use self::attempts::Dialling;
use self::attempts::{ADDRESSES_MAX, Attempts};
use self::linger::Linger;
use super::address::{self, HostAddress, UnixName};
use super::places::Place;
use super::transport::{Ended, Incoming, Outgoing, WaterMarks};
use super::{Context, Need, Notice, Taken, Teardown, Watch};
use crate::access::Principal;
use crate::clock::nanos;
use crate::driver::{Claim, Done, Lane, Nonblocking, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Connected, Eof, Kind, Stream, largest};
use crate::proto;

mod attempts;
mod linger;

const IN: Lane = Lane(0);
const OUT: Lane = Lane(1);

/// The options of an established connection.
#[derive(Debug, Clone, Copy)]
pub struct StreamOptions {
    /// Whether to stay open after the peer's end of file.
    pub keep_half_open: bool,
    /// Whether reading starts only with ResumeReading.
    pub paused: bool,
    /// When WritePaused and WriteResumed are appended.
    pub marks: WaterMarks,
}

/// The origin of a connection.
#[derive(Debug)]
pub enum Target {
    /// A TCP connection to make.
    Tcp {
        /// The name or address of the host.
        host: String,
        /// The port, 1 to 65535.
        port: u16,
        /// How the attempts are made.
        dialling: Box<Dialling>,
        /// The principal for whom the name is resolved.
        owner: Principal,
    },
    /// A Unix socket to connect to.
    Unix(UnixName),
    /// A connected socket that a client handed over.
    Adopted(Claim),
}

impl Target {
    /// Returns the number of addresses that are tried at most.
    fn attempts(&self) -> u32 {
        match self {
            Self::Tcp { host, .. } if HostAddress::parse(host).is_none() => {
                u32::try_from(ADDRESSES_MAX).unwrap_or(u32::MAX)
            }
            Self::Tcp { .. } | Self::Unix(_) => 1,
            Self::Adopted(_) => 0,
        }
    }
}

/// The checked order of a connection.
#[derive(Debug)]
pub struct ConnectionOrder {
    /// The origin of the connection.
    pub target: Target,
    /// The options of the connection.
    pub options: StreamOptions,
    /// The time limit for resolving and connecting together.
    pub timeout: Duration,
}

impl ConnectionOrder {
    /// The need of the watch, including its Connected and Eof.
    pub const NEED: Need = Need::sources(1)
        .and(largest::CONNECTED)
        .and(largest::EOF)
        .and_detail();

    /// The need of the watch. The room for failed attempts is released once it is connected.
    #[must_use]
    pub fn need(&self) -> Need {
        Need {
            bytes: Self::NEED.bytes + self.target.attempts() * largest::FAILED_ATTEMPT,
            ..Self::NEED
        }
    }

    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        Box::new(Connection::new(
            Phase::New(self.target, self.timeout),
            self.options,
        ))
    }
}

/// Builds a watch of a connection that a listener accepted. It is connected from the start.
pub(super) fn accepted(
    fd: OwnedFd,
    options: StreamOptions,
    place: Option<Place>,
) -> Box<dyn Watch> {
    let mut connection = Connection::new(Phase::Ready(fd), options);
    connection.place = place;
    Box::new(connection)
}

#[derive(Debug)]
enum Phase {
    New(Target, Duration),
    Ready(OwnedFd),
    Connecting(Attempts),
    Open(Streams),
    Closed,
}

#[derive(Debug)]
struct Streams {
    input: Incoming,
    output: Outgoing,
    /// Whether shutdown(2) of the outgoing direction was called.
    shut: bool,
    /// The state of its orderly close, once that has begun.
    linger: Option<Linger>,
}

/// Operations that were cancelled, and their sources.
type CancelledOps = Vec<(Lane, SourceId)>;

#[derive(Debug)]
struct Connection {
    phase: Phase,
    options: StreamOptions,
    local: Option<proto::SocketAddress>,
    peer: Option<proto::SocketAddress>,
    connected: bool,
    /// Whether it is not read because the journal has no room.
    held: bool,
    /// The number of attempts to connect for which room is reserved.
    attempts_max: u32,
    /// Its place among the connections of the listener that accepted it.
    place: Option<Place>,
    /// The attempts that were cancelled because another one succeeded.
    losers: CancelledOps,
}

impl Connection {
    const fn new(phase: Phase, options: StreamOptions) -> Self {
        Self {
            phase,
            options,
            local: None,
            peer: None,
            connected: false,
            held: false,
            attempts_max: 0,
            place: None,
            losers: Vec::new(),
        }
    }

    fn connect(&mut self, cx: &mut Context<'_>, target: Target, timeout: Duration) {
        let deadline = cx.now.monotonic.saturating_add(nanos(timeout));
        self.attempts_max = target.attempts();
        let mut attempts = Attempts::new(deadline, Dialling::default());
        match target {
            Target::Adopted(claim) => {
                self.opened(cx, claim.fd, claim.mode);
                return;
            }
            Target::Unix(name) => match name.kernel() {
                Ok(kernel) => attempts.add(kernel),
                Err(errno) => cx.fail(errno, "connect"),
            },
            Target::Tcp {
                host,
                port,
                dialling,
                owner,
            } => {
                attempts = Attempts::new(deadline, *dialling);
                match HostAddress::parse(&host).map(|ip| ip.with_port(port)) {
                    Some(Ok(address)) => attempts.add(address),
                    Some(Err(errno)) => {
                        cx.close_with_error(SystemError::new(errno, "resolve", host));
                    }
                    None => attempts.resolve(cx, &owner, host, port),
                }
            }
        }
        attempts.advance(cx);
        self.phase = Phase::Connecting(attempts);
    }

    fn opened(&mut self, cx: &mut Context<'_>, fd: OwnedFd, mode: Nonblocking) {
        if let Some(source) = cx.attach(fd, mode) {
            self.open(cx, source);
        }
    }

    fn open(&mut self, cx: &mut Context<'_>, source: SourceId) {
        if let Some(fd) = cx.fd(source) {
            (self.local, self.peer) = (address::local(fd), address::peer(fd));
        }
        cx.clear_alarm();
        let attempts = std::mem::take(&mut self.attempts_max);
        cx.release_room(attempts * largest::FAILED_ATTEMPT);
        self.connected = true;
        cx.emit(Kind::Connected(Connected {
            local: self.local.clone(),
            peer: self.peer.clone(),
        }));
        let mut input = Incoming::new(IN, source, Stream::Input, self.options.paused);
        input.hold(cx, self.held);
        input.start(cx);
        self.phase = Phase::Open(Streams {
            input,
            output: Outgoing::new(OUT, source, self.options.marks),
            shut: false,
            linger: None,
        });
    }

    /// Sends the end of the outgoing stream, and closes the connection, as far as its directions
    /// have ended.
    fn close_if_ended(&mut self, cx: &mut Context<'_>) {
        let Phase::Open(streams) = &mut self.phase else {
            return;
        };
        if cx.is_closing() && streams.linger.is_none() {
            // The connection was aborted, is broken, or its socket was taken: the socket is left as
            // it is.
            return;
        }
        if streams.input.ended && !self.options.keep_half_open {
            streams.output.eof = true;
        }
        if !streams.output.is_finished() {
            return;
        }
        if !streams.shut {
            streams.shut = true;
            if let Some(fd) = cx.fd(streams.output.source) {
                // This fails if the peer is gone, which the incoming stream reports.
                let _ = rustix::net::shutdown(fd, Shutdown::Write);
            }
        }
        match &streams.linger {
            None if streams.input.ended => cx.close(CloseReason::Completed),
            Some(linger) if linger.peer_ended => cx.finish(),
            _ => {}
        }
    }

    fn received(&mut self, cx: &mut Context<'_>, done: Done) {
        let Phase::Open(streams) = &mut self.phase else {
            return;
        };
        let source = streams.input.source;
        match (done, &mut streams.linger) {
            (Done::Ready(found), Some(linger)) => linger.ready(cx, source, found),
            (done, linger) => match streams.input.complete(cx, done) {
                Some(Ended::Eof) => {
                    let offset = streams.input.offset;
                    cx.emit(Kind::Eof(Eof { offset }));
                    if let Some(linger) = linger {
                        linger.peer_ended = true;
                    }
                }
                Some(Ended::Failed(errno)) => {
                    cx.fail(errno, "read");
                    cx.finish();
                }
                Some(Ended::Cancelled) => {
                    if let Some(linger) = linger {
                        linger.listen(cx, source);
                    }
                }
                None => return,
            },
        }
        self.close_if_ended(cx);
    }
}

impl Watch for Connection {
    fn start(&mut self, cx: &mut Context<'_>) {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::New(target, timeout) => self.connect(cx, target, timeout),
            Phase::Ready(fd) => self.opened(cx, fd, Nonblocking::Own),
            other => self.phase = other,
        }
    }

    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done) {
        match &mut self.phase {
            Phase::Connecting(attempts) => {
                if let Some((source, losers)) = attempts.complete(cx, lane, &done) {
                    self.losers = losers;
                    self.open(cx, source);
                }
            }
            Phase::Open(_) if lane == IN => self.received(cx, done),
            Phase::Open(streams) if lane == OUT => {
                if let Err(errno) = streams.output.complete(cx, &done) {
                    cx.fail(errno, "write");
                    cx.finish();
                }
                self.close_if_ended(cx);
            }
            // A cancelled attempt may have connected: its socket is closed, so that the peer does
            // not keep an unused connection.
            _ => {
                if let Some(at) = self.losers.iter().position(|(l, _)| *l == lane) {
                    cx.release(self.losers.swap_remove(at).1);
                    cx.keep_sources(1);
                }
            }
        }
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        match &mut self.phase {
            Phase::Connecting(attempts) => attempts.advance(cx),
            Phase::Open(streams) => {
                let sent = streams.output.is_finished();
                if let Some(linger) = &mut streams.linger
                    && linger.is_over(cx, streams.input.source, sent)
                {
                    cx.finish();
                }
            }
            _ => {}
        }
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        if let (Phase::Connecting(attempts), Notice::Resolved(found)) = (&mut self.phase, notice) {
            attempts.resolved(cx, found);
        }
    }

    fn closing(&mut self, cx: &mut Context<'_>) -> Teardown {
        cx.clear_alarm();
        let (Phase::Open(streams), Some(deadline)) = (&mut self.phase, cx.linger_deadline()) else {
            return Teardown::Now;
        };
        let source = streams.input.source;
        streams.output.eof = true;
        if streams.output.is_finished() && linger::is_idle(cx, source) {
            return Teardown::Now;
        }
        let mut linger = Linger::until(deadline, streams.input.ended);
        if !streams.input.ended && !streams.input.end(cx) {
            streams.input.ended = true;
            linger.listen(cx, source);
        }
        if linger.is_over(cx, source, false) {
            return Teardown::Now;
        }
        streams.linger = Some(linger);
        self.close_if_ended(cx);
        Teardown::Later
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        self.connected = false;
        self.place = None;
        let Phase::Open(streams) = &self.phase else {
            return 0;
        };
        if cx.ends_in_order() {
            linger::drop_unread(cx, streams.input.source);
        }
        streams.output.buffered()
    }

    fn write(&mut self, cx: &mut Context<'_>, data: Bytes, at: Option<u64>) -> Result<Taken> {
        match &mut self.phase {
            Phase::Open(streams) => streams.output.write(cx, data, at),
            _ => Err(Error::wrong_state("the connection is not established yet")),
        }
    }

    fn write_eof(&mut self, cx: &mut Context<'_>) -> Result<()> {
        match &mut self.phase {
            Phase::Open(streams) => streams.output.eof = true,
            _ => return Err(Error::wrong_state("the connection is not established yet")),
        }
        self.close_if_ended(cx);
        Ok(())
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        self.held = hold;
        match &mut self.phase {
            // Input is dropped during a linger, so it takes no room.
            Phase::Open(streams) if streams.linger.is_some() => false,
            Phase::Open(streams) => streams.input.hold(cx, hold),
            _ => false,
        }
    }

    fn pause_reading(&mut self, cx: &mut Context<'_>, pause: bool) -> Result<()> {
        self.options.paused = pause;
        if let Phase::Open(streams) = &mut self.phase {
            streams.input.pause(cx, pause);
        }
        Ok(())
    }

    fn can_abort(&self) -> bool {
        true
    }

    fn abort(&mut self, cx: &mut Context<'_>) {
        if let Phase::Open(streams) = &self.phase
            && let Some(fd) = cx.fd(streams.input.source)
        {
            // A TCP socket with a linger time of 0 is reset when it is closed (socket(7),
            // SO_LINGER). Other sockets cannot be reset.
            let _ = rustix::net::sockopt::set_socket_linger(fd, Some(Duration::ZERO));
        }
        cx.close(CloseReason::Aborted);
        cx.finish();
    }

    fn status(&self) -> Option<proto::watch::Status> {
        let streams = match &self.phase {
            Phase::Open(streams) => Some(streams),
            _ => None,
        };
        Some(proto::watch::Status::Transport(proto::TransportStatus {
            local: self.local.clone(),
            peer: self.peer.clone(),
            connected: self.connected,
            reading_paused: self.options.paused,
            received_bytes: streams.map_or(0, |s| s.input.offset),
            taken_bytes: streams.map_or(0, |s| s.output.taken),
            buffered_bytes: streams.map_or(0, |s| s.output.buffered()),
        }))
    }

    fn takeable(&self) -> Result<SourceId> {
        match &self.phase {
            Phase::Open(streams) if streams.output.buffered() == 0 => Ok(streams.input.source),
            Phase::Open(_) => Err(Error::wrong_state("bytes taken by Write are not sent yet")),
            _ => Err(Error::wrong_state("the connection is not established yet")),
        }
    }
}
