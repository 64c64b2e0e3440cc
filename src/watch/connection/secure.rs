//! TLS on a connection: its session between socket and journal, and its start in mid-stream.

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};

use super::IN;
use super::linger;
use crate::driver::{Done, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::largest;
use crate::tls::Session;
use crate::watch::transport::{Incoming, Outgoing};
use crate::watch::{Context, TlsOrder};

/// Bytes that are encrypted at once.
const CHUNK: usize = 64 * 1024;
/// Chunks that are encrypted ahead: while one is sent, the next one is there.
const AHEAD: usize = 2;
/// The most bytes that a handshake takes before it answers.
const BEFORE_MAX: u64 = 64 * 1024;
/// More than an event adds to the bytes of its `Data`.
const DATA_OVERHEAD: usize = 128;

/// The session of a connection.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) session: Session,
    /// The bytes that arrived together with the handshake and are not appended yet.
    rest: Vec<u8>,
    /// Whether close_notify was made.
    end_made: bool,
    /// Why nothing can be sent any more; input is still read.
    pub(super) broken: Option<Errno>,
    /// Whether the peer refused the daemon's certificate.
    pub(super) refused: bool,
    /// The bytes that [`Context::keep`] knows of.
    kept: usize,
}

impl Tls {
    pub(super) fn new(cx: &mut Context<'_>, mut session: Session) -> Self {
        let mut rest = Vec::new();
        session.drain(&mut |plain: &[u8]| rest.extend_from_slice(plain));
        let mut tls = Self {
            session,
            rest,
            end_made: false,
            broken: None,
            refused: false,
            kept: 0,
        };
        tls.keep(cx);
        tls
    }

    /// Tells the loop how many bytes may be appended beyond those that it reads.
    fn keep(&mut self, cx: &mut Context<'_>) {
        let kept = self.rest.len() + self.session.held();
        cx.keep(self.kept, kept);
        self.kept = kept;
    }

    /// Appends what has arrived with the handshake. Returns false if there is no room for it yet.
    pub(super) fn deliver_rest(&mut self, cx: &mut Context<'_>, input: &mut Incoming) -> bool {
        if self.rest.is_empty() {
            return true;
        }
        let rest = std::mem::take(&mut self.rest);
        self.keep(cx);
        let needed = u32::try_from(rest.len() + DATA_OVERHEAD).unwrap_or(u32::MAX);
        if cx.has_room_for(needed) {
            input.deliver(cx, &rest);
            return true;
        }
        self.rest = rest;
        self.keep(cx);
        false
    }

    /// Appends the plaintext of received bytes.
    pub(super) fn decrypt(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut Incoming,
        wire: &[u8],
    ) -> Result<(), SystemError> {
        let fed = self.session.feed(wire, |plain| input.deliver(cx, plain));
        self.keep(cx);
        fed
    }

    /// Encrypts what waits to be sent, as far as it is time, and sends it.
    pub(super) fn pump(&mut self, cx: &mut Context<'_>, output: &mut Outgoing) {
        if self.broken.is_some() {
            return;
        }
        while output.encoded() < AHEAD {
            let mut plain = Vec::new();
            output.pull(&mut plain, CHUNK);
            if !plain.is_empty() {
                self.session.write(&plain);
            } else if output.eof && !self.end_made {
                self.end_made = true;
                self.session.end();
            }
            let mut wire = Vec::new();
            self.session.take_output(&mut wire);
            if wire.is_empty() {
                break;
            }
            output.push_encoded(wire, plain.len());
        }
        output.send(cx);
    }

    /// Sends the alert that says why the connection ends, if the kernel takes it at once.
    pub(super) fn send_last(&mut self, cx: &Context<'_>, source: SourceId) {
        let mut wire = Vec::new();
        self.session.take_output(&mut wire);
        if let Some(fd) = cx.fd(source) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // What the peer does not get to know, it sees from the end of the connection.
            let _ = rustix::net::send(fd, &wire, flags);
            let _ = rustix::net::shutdown(fd, Shutdown::Write);
        }
        // Unread input would reset the connection, and the alert with it.
        linger::drop_unread(cx, source);
    }

    /// Sends close_notify, unless that was made before.
    pub(super) fn send_end(&mut self, cx: &Context<'_>, source: SourceId) {
        if !std::mem::replace(&mut self.end_made, true) {
            self.session.end();
            self.send_last(cx, source);
        }
    }

    pub(super) fn closed(&mut self, cx: &mut Context<'_>) {
        cx.keep(std::mem::take(&mut self.kept), 0);
    }
}

/// The room that `TlsStarted` takes at most.
pub(super) const TLS_STARTED: u32 = largest::TLS_STARTED + largest::CERTIFICATES_MAX;

/// A checked request to begin TLS in mid-stream.
#[derive(Debug)]
pub struct StartTls {
    /// How TLS begins.
    pub tls: TlsOrder,
    /// The bytes of the incoming stream that are plaintext.
    pub offset: u64,
}

/// The start of TLS in mid-stream.
#[derive(Debug)]
pub(super) struct Starting {
    pub(super) order: TlsOrder,
    /// The bytes that were received and belong to the handshake.
    pub(super) before: Vec<u8>,
}

impl Starting {
    /// Checks a request against what has been received.
    ///
    /// # Errors
    /// The offset is wrong, or the bytes after it are not there any more.
    pub(super) fn check(cx: &Context<'_>, order: StartTls, received: u64) -> Result<Self> {
        let StartTls { tls: order, offset } = order;
        let Some(after) = received.checked_sub(offset) else {
            let allowed = format!("must be at most {received}, the bytes received so far");
            return Err(Error::invalid("offset", allowed));
        };
        if after > BEFORE_MAX {
            let least = received - BEFORE_MAX;
            let allowed =
                format!("must be at least {least}: a handshake begins with at most 64 KiB");
            return Err(Error::invalid("offset", allowed));
        }
        if after > 0 && !order.setup.is_server() {
            return Err(Error::wrong_state(format!(
                "{after} bytes were received after offset {offset}: a server sends nothing before \
                 the handshake, so they are not from TLS"
            )));
        }
        let before = match after {
            0 => Some(Vec::new()),
            _ => cx.data_since(offset, received),
        };
        let before = before.ok_or_else(|| {
            Error::wrong_state(format!(
                "the journal does not have the bytes from offset {offset} on any more"
            ))
        })?;
        Ok(Self { order, before })
    }

    /// Handles a completion of the incoming direction, which was cancelled.
    pub(super) fn received(&mut self, cx: &mut Context<'_>, input: &mut Incoming, done: &Done) {
        match done {
            Done::Data(data) => self.before.extend_from_slice(data),
            Done::Eof => {
                input.ended = true;
                let what = "the peer closed the connection before it began";
                let error = SystemError::new(Errno::CONNRESET, "handshake", what);
                cx.close_with_error(error);
            }
            Done::Failed(errno) => {
                input.ended = true;
                cx.fail(*errno, "read");
            }
            _ => {}
        }
    }

    /// Returns whether nothing is under way in the clear any more, so that the handshake can begin.
    pub(super) fn is_due(&self, cx: &Context<'_>, output: &Outgoing) -> bool {
        output.is_held_back() && !cx.is_live(IN) && !cx.is_live(output.lane) && !cx.is_closing()
    }
}
