//! The session of one connection: turns the bytes of the wire into plaintext and back.

use std::io::{BufRead as _, Write as _};

use rustls::pki_types::CertificateDer;
use rustls::{Connection, ProtocolVersion};

use super::facts::Facts;
use super::words;
use crate::error::SystemError;
use crate::event::largest::{CERTIFICATES_MAX, TLS_NAME_MAX};
use crate::proto;

/// The bytes before the content of a record: its type, a version, its length (RFC 8446, section
/// 5.1).
const HEADER: usize = 5;
/// The bytes of the peer's first message that an error text needs.
const FIRST: usize = 8;

/// Counts the bytes of a record that has not arrived as a whole: the session holds these, and they
/// become plaintext once the rest of the record arrives.
#[derive(Debug, Default, Clone, Copy)]
pub struct Framing {
    header: [u8; HEADER],
    /// The bytes of the record that have arrived, its header included.
    have: usize,
}

impl Framing {
    /// Takes the next bytes of the wire.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while let Some(next) = bytes.first() {
            if let Some(place) = self.header.get_mut(self.have) {
                *place = *next;
                self.have += 1;
                bytes = &bytes[1..];
            } else {
                let length = u16::from_be_bytes([self.header[3], self.header[4]]);
                let missing = HEADER + usize::from(length) - self.have;
                let taken = missing.min(bytes.len());
                self.have += taken;
                bytes = &bytes[taken..];
            }
            let length = u16::from_be_bytes([self.header[3], self.header[4]]);
            if self.have >= HEADER && self.have == HEADER + usize::from(length) {
                self.have = 0;
            }
        }
    }

    /// Returns how many bytes of an unfinished record have arrived.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.have
    }
}

/// A session.
#[derive(Debug)]
pub struct Session {
    connection: Box<Connection>,
    framing: Framing,
    allow_truncation: bool,
    /// The peer has sent close_notify.
    ended: bool,
    /// The peer has sent data.
    heard: bool,
    /// The first bytes that the peer sent.
    first: Vec<u8>,
}

impl Session {
    pub(super) fn new(connection: Connection, allow_truncation: bool) -> Self {
        let mut connection = Box::new(connection);
        // The caller bounds what it writes.
        connection.set_buffer_limit(None);
        Self {
            connection,
            framing: Framing::default(),
            allow_truncation,
            ended: false,
            heard: false,
            first: Vec::new(),
        }
    }

    /// Takes bytes of the wire and passes on the plaintext that they complete, in order.
    ///
    /// # Errors
    /// The peer violates the protocol, its certificate is refused, or it has sent an alert. An
    /// alert for the peer may be [to be sent](Self::take_output).
    pub fn feed(
        &mut self,
        mut wire: &[u8],
        mut plain: impl FnMut(&[u8]),
    ) -> Result<(), SystemError> {
        if self.first.len() < FIRST {
            let more = wire.len().min(FIRST - self.first.len());
            self.first.extend_from_slice(&wire[..more]);
        }
        self.framing.take(wire);
        while !wire.is_empty() && !self.ended {
            if let Err(error) = self.connection.read_tls(&mut wire) {
                return Err(words::refused(error.to_string()));
            }
            self.process()?;
            self.drain(&mut plain);
        }
        Ok(())
    }

    /// As [`Session::feed`] during the handshake: keeps the plaintext that follows the handshake
    /// for [`Session::drain`].
    ///
    /// # Errors
    /// As for [`Session::feed`], or the peer sends too much before the handshake is complete.
    pub fn feed_handshake(&mut self, mut wire: &[u8]) -> Result<(), SystemError> {
        if self.first.len() < FIRST {
            let more = wire.len().min(FIRST - self.first.len());
            self.first.extend_from_slice(&wire[..more]);
        }
        self.framing.take(wire);
        while !wire.is_empty() && !self.ended {
            if let Err(error) = self.connection.read_tls(&mut wire) {
                return Err(words::refused(error.to_string()));
            }
            self.process()?;
        }
        Ok(())
    }

    fn process(&mut self) -> Result<(), SystemError> {
        let state = self.connection.process_new_packets();
        let state = state.map_err(|error| words::failed(&error, &self.first))?;
        self.ended |= state.peer_has_closed();
        Ok(())
    }

    /// Passes on the plaintext that has arrived.
    pub fn drain(&mut self, plain: &mut impl FnMut(&[u8])) {
        loop {
            let mut reader = self.connection.reader();
            let Ok(chunk) = reader.fill_buf() else { return };
            let len = chunk.len();
            if len == 0 {
                return;
            }
            plain(chunk);
            self.heard = true;
            reader.consume(len);
        }
    }

    /// Encrypts bytes, to be sent by [`Session::take_output`].
    pub fn write(&mut self, plain: &[u8]) {
        // Writing to memory without a limit takes everything.
        let _ = self.connection.writer().write_all(plain);
    }

    /// Says that no more bytes will be written.
    pub fn end(&mut self) {
        self.connection.send_close_notify();
    }

    /// Appends the bytes that must be sent: encrypted data, messages of the handshake, alerts.
    pub fn take_output(&mut self, onto: &mut Vec<u8>) {
        while self.connection.wants_write() {
            match self.connection.write_tls(onto) {
                Ok(written) if written > 0 => {}
                _ => return,
            }
        }
    }

    /// Returns whether the handshake is not complete yet.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Returns whether the peer has ended its data, by close_notify.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns whether the end of the connection without close_notify is taken as its end.
    #[must_use]
    pub const fn allows_truncation(&self) -> bool {
        self.allow_truncation
    }

    /// Returns how many bytes of an unfinished record it holds.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.framing.held()
    }

    /// Returns whether `error` says that the server refused the daemon's certificate and took no
    /// data. In TLS 1.3 the client learns this only after it has sent data.
    #[must_use]
    pub fn was_refused(&self, error: &SystemError) -> bool {
        let client = matches!(*self.connection, Connection::Client(_));
        client && !self.heard && words::is_refusal(error)
    }

    /// Returns what was negotiated. The handshake must be complete.
    #[must_use]
    pub fn description(&self) -> proto::TlsSession {
        let version = match self.connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "",
        };
        let suite = self.connection.negotiated_cipher_suite();
        let suite = suite.and_then(|suite| suite.suite().as_str());
        // This library's own names of the suites of TLS 1.3 begin otherwise than IANA's.
        let suite = suite.map(|suite| suite.replacen("TLS13_", "TLS_", 1));
        let alpn = self.connection.alpn_protocol().unwrap_or_default();
        let server_name = match &*self.connection {
            Connection::Server(server) => server.server_name().unwrap_or_default(),
            Connection::Client(_) => "",
        };
        let kind = self.connection.handshake_kind();
        let chain = self.connection.peer_certificates().unwrap_or_default();
        let (peer_certificates, omitted) = fitting(chain);
        let expires = chain.first().and_then(|first| Facts::of(first));
        proto::TlsSession {
            version: version.to_owned(),
            cipher_suite: suite.unwrap_or_default(),
            alpn: shortened(&String::from_utf8_lossy(alpn)),
            server_name: shortened(server_name),
            resumed: kind == Some(rustls::HandshakeKind::Resumed),
            peer_certificates,
            omitted_certificates: omitted,
            peer_certificate_expires: expires.and_then(|facts| timestamp(facts.not_after)),
        }
    }
}

/// Returns a time, given in seconds since the Unix epoch.
#[must_use]
pub fn timestamp(seconds: u64) -> Option<prost_types::Timestamp> {
    let seconds = i64::try_from(seconds).ok()?;
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

/// Returns the first certificates of a chain that fit into an event, and how many are left out.
fn fitting(chain: &[CertificateDer<'_>]) -> (Vec<bytes::Bytes>, u32) {
    let mut room = CERTIFICATES_MAX as usize;
    let mut kept = Vec::new();
    for certificate in chain {
        // The key of the field and the length take up to 4 bytes.
        let Some(rest) = room.checked_sub(certificate.len() + 4) else {
            break;
        };
        room = rest;
        kept.push(bytes::Bytes::copy_from_slice(certificate));
    }
    let omitted = u32::try_from(chain.len() - kept.len()).unwrap_or(u32::MAX);
    (kept, omitted)
}

fn shortened(text: &str) -> String {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=text.len().min(TLS_NAME_MAX as usize)).rev().find(fits);
    text[..end.unwrap_or_default()].to_owned()
}
