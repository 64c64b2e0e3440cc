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
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::attempts::Attempts;
pub use self::attempts::Dialling;
pub use self::kept::EarlierConnection;
pub(super) use self::order::{Accepted, accepted, accepted_need};
pub use self::order::{ConnectionOrder, StreamOptions, Target};
pub use self::secure::StartTls;
use self::secure::{Starting, TLS_STARTED};
use self::streams::Streams;
use super::address::{self, HostAddress};
use super::handshakes::{Handshake, reset_when_closed};
use super::places::Place;
use super::water::WaterMarks;
use super::{
    Context, Notice, Progress, Resumption, Secured, Taken, Teardown, TlsOrder, Unsent, Watch,
};
use crate::clock::nanos;
use crate::driver::{Done, Driver, Lane, Nonblocking, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Connected, Kind, TlsSession, TlsStarted, largest};
use crate::proto;
use crate::proto::state::kept_watch_state::Of;
use crate::tls::Session;

mod attempts;
mod kept;
mod linger;
mod order;
mod secure;
mod streams;

const IN: Lane = Lane(0);
const OUT: Lane = Lane(1);

#[derive(Debug)]
enum Phase {
    New(Target, Duration),
    Ready(OwnedFd),
    /// Of an earlier life.
    Earlier(Box<EarlierConnection>),
    /// Accepted, with its handshake complete.
    Secured(Box<Secured>),
    Connecting(Box<Attempts>),
    /// The socket is given away for the handshake of TLS, at the begin or in mid-stream.
    Securing {
        streams: Option<Box<Streams>>,
        /// Is given up if this is dropped.
        handshake: Handshake,
    },
    Open(Box<Streams>),
    Closed,
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
    /// How the socket avoids to block.
    mode: Nonblocking,
    /// How TLS begins once it is connected.
    tls: Option<TlsOrder>,
    /// What TLS has negotiated, without certificates.
    negotiated: Option<Box<TlsSession>>,
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
            mode: Nonblocking::Own,
            tls: None,
            negotiated: None,
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
        self.phase = Phase::Connecting(Box::new(attempts));
        cx.changed();
    }

    fn opened(&mut self, cx: &mut Context<'_>, fd: OwnedFd, mode: Nonblocking) {
        self.mode = mode;
        if let Some(source) = cx.attach(fd, mode) {
            self.open(cx, source);
        }
    }

    /// Goes on with a connected socket: by the handshake of TLS, if there is one.
    fn open(&mut self, cx: &mut Context<'_>, source: SourceId) {
        if let Some(fd) = cx.fd(source) {
            (self.local, self.peer) = (address::local(fd), address::peer(fd));
        }
        cx.clear_alarm();
        let attempts = std::mem::take(&mut self.attempts_max);
        cx.release_room(attempts * largest::FAILED_ATTEMPT);
        match self.tls.take() {
            Some(order) => self.shake(cx, source, &order, None),
            None => self.established(cx, source, None),
        }
    }

    /// Gives the socket away for the handshake.
    fn shake(
        &mut self,
        cx: &mut Context<'_>,
        source: SourceId,
        order: &TlsOrder,
        streams: Option<(Box<Streams>, Vec<u8>)>,
    ) {
        let Some(fd) = cx.take(source) else { return };
        let (streams, before) = streams.map_or((None, Vec::new()), |(s, b)| (Some(s), b));
        let services = Arc::clone(cx.services);
        match services.handshakes.begin(cx, (0, fd), order, before) {
            Ok(handshake) => self.phase = Phase::Securing { streams, handshake },
            Err(error) => cx.close_with_error(error),
        }
    }

    /// Handles the end of the handshake.
    fn shaken(&mut self, cx: &mut Context<'_>, shaken: Result<Box<Secured>, SystemError>) {
        let Phase::Securing { streams, .. } = std::mem::replace(&mut self.phase, Phase::Closed)
        else {
            return;
        };
        match shaken {
            Ok(secured) => self.secured(cx, *secured, streams),
            Err(error) => {
                // They have the bytes that were taken and will not be sent.
                if let Some(streams) = streams {
                    self.phase = Phase::Open(streams);
                }
                cx.close_with_error(error);
            }
        }
    }

    fn secured(
        &mut self,
        cx: &mut Context<'_>,
        Secured { fd, session }: Secured,
        streams: Option<Box<Streams>>,
    ) {
        let Some(source) = cx.attach(fd, self.mode) else {
            return;
        };
        let Some(mut streams) = streams else {
            if let Some(fd) = cx.fd(source) {
                (self.local, self.peer) = (address::local(fd), address::peer(fd));
            }
            self.established(cx, source, Some(session));
            return;
        };
        let description = self.negotiated(&session);
        cx.release_event(TLS_STARTED);
        cx.emit(Kind::TlsStarted(TlsStarted {
            tls: Some(description),
            input_offset: streams.input.offset,
            output_offset: streams.output.taken - streams.output.buffered(),
        }));
        streams.secure(cx, source, session);
        self.phase = Phase::Open(streams);
        self.start_streams(cx);
    }

    /// Remembers what was negotiated and returns it with the certificates.
    fn negotiated(&mut self, session: &Session) -> TlsSession {
        let description = session.description();
        self.negotiated = Some(Box::new(TlsSession {
            peer_certificates: Vec::new(),
            omitted_certificates: 0,
            ..description.clone()
        }));
        description
    }

    fn established(&mut self, cx: &mut Context<'_>, source: SourceId, session: Option<Session>) {
        self.connected = true;
        let tls = session.as_ref().map(|session| self.negotiated(session));
        cx.emit(Kind::Connected(Connected {
            local: self.local.clone(),
            peer: self.peer.clone(),
            tls,
        }));
        let mut streams = Box::new(Streams::new(cx, source, self.options));
        if let Some(session) = session {
            cx.release_room(ConnectionOrder::TLS);
            streams.secure(cx, source, session);
        }
        self.phase = Phase::Open(streams);
        self.start_streams(cx);
    }

    fn start_streams(&mut self, cx: &mut Context<'_>) {
        cx.changed();
        if let Phase::Open(streams) = &mut self.phase {
            (streams.input.held, streams.input.paused) = (self.held, self.options.paused);
            streams.start(cx);
        }
    }

    /// Begins the handshake that StartTls asked for, once nothing is under way in the clear.
    fn shake_if_due(&mut self, cx: &mut Context<'_>) {
        let Phase::Open(streams) = &mut self.phase else {
            return;
        };
        let due = |starting: &mut Box<Starting>| starting.is_due(cx, &streams.output);
        let Some(starting) = streams.starting.take_if(due) else {
            return;
        };
        let source = streams.input.source;
        if let Phase::Open(streams) = std::mem::replace(&mut self.phase, Phase::Closed) {
            let Starting { order, before } = *starting;
            self.shake(cx, source, &order, Some((streams, before)));
        }
    }

    const fn streams_mut(&mut self) -> Option<&mut Streams> {
        match &mut self.phase {
            Phase::Open(streams)
            | Phase::Securing {
                streams: Some(streams),
                ..
            } => Some(streams),
            _ => None,
        }
    }

    const fn streams(&self) -> Option<&Streams> {
        match &self.phase {
            Phase::Open(streams)
            | Phase::Securing {
                streams: Some(streams),
                ..
            } => Some(streams),
            _ => None,
        }
    }
}

impl Watch for Connection {
    fn start(&mut self, cx: &mut Context<'_>) {
        cx.changed();
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::New(target, timeout) => self.connect(cx, target, timeout),
            Phase::Ready(fd) => self.opened(cx, fd, Nonblocking::Own),
            Phase::Secured(secured) => self.secured(cx, *secured, None),
            other => self.phase = other,
        }
    }

    fn keep(&self, driver: &dyn Driver) -> Option<Of> {
        self.kept(driver).map(Of::Connection)
    }

    fn progress(&self) -> Option<Progress> {
        self.streams().map(Streams::progress)
    }

    fn unsent(&self) -> Option<Unsent<'_>> {
        self.streams()?.output.unsent()
    }

    fn resume(&mut self, cx: &mut Context<'_>, rest: Resumption) -> Result<()> {
        self.go_on(cx, rest)
    }

    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done) {
        match &mut self.phase {
            Phase::Connecting(attempts) => {
                cx.changed();
                if let Some((source, losers)) = attempts.complete(cx, lane, &done) {
                    self.losers = losers;
                    self.open(cx, source);
                }
                return;
            }
            Phase::Open(streams) if lane == IN => streams.received(cx, done),
            Phase::Open(streams) if lane == OUT => streams.sent(cx, &done),
            // A cancelled attempt may have connected: its socket is closed, so that the peer does
            // not keep an unused connection.
            _ => {
                if let Some(at) = self.losers.iter().position(|(l, _)| *l == lane) {
                    cx.release(self.losers.swap_remove(at).1);
                    cx.keep_sources(1);
                }
            }
        }
        self.shake_if_due(cx);
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        match &mut self.phase {
            Phase::Connecting(attempts) => {
                cx.changed();
                attempts.advance(cx);
            }
            Phase::Open(streams) => streams.look(cx),
            _ => {}
        }
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        cx.changed();
        match (&mut self.phase, notice) {
            (Phase::Connecting(attempts), Notice::Resolved(found)) => attempts.resolved(cx, found),
            (Phase::Securing { .. }, Notice::Handshake(_, shaken)) => self.shaken(cx, shaken),
            _ => {}
        }
    }

    fn closing(&mut self, cx: &mut Context<'_>) -> Teardown {
        cx.clear_alarm();
        match (&mut self.phase, cx.linger_deadline()) {
            (Phase::Open(streams), Some(deadline)) => streams.closing(cx, deadline),
            _ => Teardown::Now,
        }
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        self.connected = false;
        self.place = None;
        // A handshake that is under way is given up.
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Open(mut streams) => {
                let unsent = streams.closed(cx);
                self.phase = Phase::Open(streams);
                unsent
            }
            Phase::Securing {
                streams: Some(mut streams),
                ..
            } => {
                let unsent = streams.output.close();
                self.phase = Phase::Open(streams);
                unsent
            }
            _ => 0,
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, data: Bytes, at: Option<u64>) -> Result<Taken> {
        match &mut self.phase {
            Phase::Open(streams) => streams.write(cx, data, at),
            // It waits for the end of the handshake.
            Phase::Securing {
                streams: Some(streams),
                ..
            } => streams.output.write(cx, data, at),
            _ => Err(not_established()),
        }
    }

    fn write_eof(&mut self, cx: &mut Context<'_>) -> Result<()> {
        match &mut self.phase {
            Phase::Open(streams) => streams.write_eof(cx),
            Phase::Securing {
                streams: Some(streams),
                ..
            } => streams.output.eof = true,
            _ => return Err(not_established()),
        }
        Ok(())
    }

    fn start_tls(&mut self, cx: &mut Context<'_>, order: StartTls) -> Result<()> {
        let Phase::Open(streams) = &mut self.phase else {
            return Err(match self.streams() {
                Some(_) => Error::wrong_state("TLS is being started already"),
                None => not_established(),
            });
        };
        streams.start_tls(cx, order)?;
        cx.changed();
        self.shake_if_due(cx);
        Ok(())
    }

    fn set_water_marks(&mut self, cx: &mut Context<'_>, marks: WaterMarks) -> Result<()> {
        if let Some(streams) = self.streams_mut() {
            streams.output.set_marks(cx, marks)?;
        }
        self.options.marks = marks;
        cx.changed();
        Ok(())
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        self.held = hold;
        match &mut self.phase {
            Phase::Open(streams) => streams.hold(cx, hold),
            Phase::Securing { .. } => true,
            _ => false,
        }
    }

    fn pause_reading(&mut self, cx: &mut Context<'_>, pause: bool) -> Result<()> {
        self.options.paused = pause;
        cx.changed();
        if let Phase::Open(streams) = &mut self.phase {
            streams.pause(cx, pause);
        }
        Ok(())
    }

    fn can_abort(&self) -> bool {
        true
    }

    fn abort(&mut self, cx: &mut Context<'_>) {
        match &self.phase {
            Phase::Open(streams) => {
                if let Some(fd) = cx.fd(streams.input.source) {
                    reset_when_closed(fd);
                }
            }
            Phase::Securing { handshake, .. } => handshake.reset_when_closed(),
            _ => {}
        }
        cx.close(CloseReason::Aborted);
        cx.finish();
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        let streams = self.streams();
        Some(proto::watch::Status::Transport(proto::TransportStatus {
            local: self.local.clone(),
            peer: self.peer.clone(),
            connected: self.connected,
            reading_paused: self.options.paused,
            received_bytes: streams.map_or(0, |s| s.input.offset),
            taken_bytes: streams.map_or(0, |s| s.output.taken),
            buffered_bytes: streams.map_or(0, |s| s.output.buffered()),
            tls: self.negotiated.as_deref().cloned(),
            water_marks: Some(self.options.marks.into()),
        }))
    }

    fn takeable(&self) -> Result<SourceId> {
        match &self.phase {
            Phase::Open(streams) if streams.tls.is_some() || streams.starting.is_some() => Err(
                Error::wrong_state("the keys of its TLS session stay in the daemon"),
            ),
            Phase::Open(streams) if streams.output.buffered() == 0 => Ok(streams.input.source),
            Phase::Open(_) => Err(Error::wrong_state("bytes taken by Write are not sent yet")),
            _ => Err(not_established()),
        }
    }
}

fn not_established() -> Error {
    Error::wrong_state("the connection is not established yet")
}
