//! What a client asks for, and what a listener has accepted.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::attempts::{ADDRESSES_MAX, Dialling};
use super::{Connection, Phase};
use crate::access::Principal;
use crate::driver::Claim;
use crate::event::largest;
use crate::watch::address::{HostAddress, UnixName};
use crate::watch::places::Place;
use crate::watch::water::WaterMarks;
use crate::watch::{Need, Secured, TlsOrder, Watch};

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
    pub(super) fn attempts(&self) -> u32 {
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
    /// How TLS begins once it is connected.
    pub tls: Option<TlsOrder>,
}

impl ConnectionOrder {
    /// The need of the watch, including its Connected and Eof.
    pub const NEED: Need = Need::sources(1)
        .and(largest::CONNECTED)
        .and(largest::EOF)
        .and_detail();

    /// The room that TLS needs until Connected.
    pub(super) const TLS: u32 = largest::TLS_SESSION + largest::CERTIFICATES_MAX;

    /// The need of the watch. The room for failed attempts and for the certificates of TLS is
    /// released once it is connected.
    #[must_use]
    pub fn need(&self) -> Need {
        let attempts = self.target.attempts() * largest::FAILED_ATTEMPT;
        let need = Self::adopted_need(self.tls.is_some());
        Need {
            bytes: need.bytes + attempts,
            ..need
        }
    }

    /// As [`ConnectionOrder::need`], of a socket that was handed over.
    #[must_use]
    pub const fn adopted_need(with_tls: bool) -> Need {
        let tls = if with_tls { Self::TLS } else { 0 };
        Need {
            bytes: Self::NEED.bytes + tls,
            ..Self::NEED
        }
    }

    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        let phase = Phase::New(self.target, self.timeout);
        let mut connection = Connection::new(phase, self.options);
        connection.tls = self.tls;
        Box::new(connection)
    }
}

/// A connection that a listener accepted, without TLS or with its handshake complete.
#[derive(Debug)]
pub(in crate::watch) enum Accepted {
    Plain(OwnedFd),
    Secured(Box<Secured>),
}

/// Builds the watch of an accepted connection. It is connected from the start.
pub(in crate::watch) fn accepted(
    accepted: Accepted,
    options: StreamOptions,
    place: Option<Place>,
) -> Box<dyn Watch> {
    let phase = match accepted {
        Accepted::Plain(fd) => Phase::Ready(fd),
        Accepted::Secured(secured) => Phase::Secured(secured),
    };
    let mut connection = Connection::new(phase, options);
    connection.place = place;
    Box::new(connection)
}

/// The need of an accepted connection, including its Accepted.
pub(in crate::watch) const fn accepted_need(with_tls: bool) -> Need {
    ConnectionOrder::adopted_need(with_tls).and(largest::ACCEPTED)
}
