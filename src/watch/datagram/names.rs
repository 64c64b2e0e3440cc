//! Addresses of datagrams: what a client names, and what it is told.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use prost::Message as _;
use rustix::net::{AddressFamily, SocketAddrAny};

use crate::error::{Error, Result};
use crate::event::DatagramHead;
use crate::proto::{self, socket_address::Address};
use crate::sys::datagram::{Incoming, Source};
use crate::watch::address::{self, UnixName};

/// The family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Unix,
    V4,
    V6,
}

impl Family {
    /// Returns the family of addresses to the kernel.
    pub(super) const fn kernel(self) -> AddressFamily {
        match self {
            Self::Unix => AddressFamily::UNIX,
            Self::V4 => AddressFamily::INET,
            Self::V6 => AddressFamily::INET6,
        }
    }

    /// Returns the family of a socket; `None` if it is another one.
    pub(super) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        match rustix::net::sockopt::socket_domain(fd).ok()? {
            AddressFamily::UNIX => Some(Self::Unix),
            AddressFamily::INET => Some(Self::V4),
            AddressFamily::INET6 => Some(Self::V6),
            _ => None,
        }
    }

    /// Returns the family of an IP address.
    pub(super) const fn of_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Returns the address as a socket of this family takes it: an IPv6 socket reaches IPv4 by
    /// mapped addresses. `None` if it cannot reach it.
    pub(super) fn fit(self, ip: IpAddr) -> Option<IpAddr> {
        match (self, ip.to_canonical()) {
            (Self::V4, v4 @ IpAddr::V4(_)) => Some(v4),
            (Self::V6, IpAddr::V4(v4)) => Some(v4.to_ipv6_mapped().into()),
            (Self::V6, v6 @ IpAddr::V6(_)) => Some(v6),
            (Self::V4, IpAddr::V6(_)) | (Self::Unix, _) => None,
        }
    }

    /// As [`Family::fit`], for an address with its port.
    pub(super) fn fit_socket(self, mut to: SocketAddr) -> Option<SocketAddr> {
        let ip = self.fit(to.ip())?;
        if Self::of_ip(ip) != Self::of_ip(to.ip()) {
            to.set_ip(ip);
        }
        Some(to)
    }
}

/// One datagram to send.
#[derive(Debug)]
pub struct Parcel {
    /// Its bytes.
    pub data: Bytes,
    /// The receiver; `None` for the peer that the socket is connected to.
    pub(super) peer: Option<Receiver>,
    /// Where to send it from.
    pub(super) source: Source,
}

/// The receiver of a datagram.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Receiver {
    Ip(SocketAddr),
    Unix(UnixName),
}

impl Parcel {
    /// Checks a request to send a datagram.
    ///
    /// # Errors
    /// An address is not valid; the error names the field.
    pub fn check(
        data: Bytes,
        peer: Option<&proto::SocketAddress>,
        source: &str,
        interface: u32,
    ) -> Result<Self> {
        let peer = match peer.map(|peer| &peer.address) {
            None => None,
            Some(Some(Address::Unix(unix))) => {
                Some(Receiver::Unix(UnixName::check("peer.unix", unix)?))
            }
            Some(Some(Address::Inet(inet))) => {
                let port = u16::try_from(inet.port).ok().filter(|port| *port > 0);
                let wrong = || Error::invalid("peer.inet.port", "must be 1 to 65535");
                let port = port.ok_or_else(wrong)?;
                let ip = parse_ip(&inet.ip, port);
                let wrong = || Error::invalid("peer.inet.ip", "must be an IP address, not a name");
                Some(Receiver::Ip(ip.ok_or_else(wrong)?))
            }
            Some(None) => return Err(Error::invalid("peer", "must have inet or unix")),
        };
        if i32::try_from(interface).is_err() {
            let allowed = "must be the index of an interface, at most 2147483647";
            return Err(Error::invalid("source_interface_index", allowed));
        }
        let ip = match source {
            "" => None,
            ip => {
                let parsed = ip.parse::<IpAddr>();
                let wrong = |_| Error::invalid("source_ip", "must be an IP address");
                Some(parsed.map_err(wrong)?)
            }
        };
        let source = Source { ip, interface };
        Ok(Self { data, peer, source })
    }

    /// Returns the receiver and the source as a socket of that family takes them.
    ///
    /// # Errors
    /// The socket cannot reach such an address; the error names the field.
    pub(super) fn addressed(&self, family: Family) -> Result<(Option<SocketAddrAny>, Source)> {
        let peer = match &self.peer {
            None => None,
            Some(Receiver::Unix(name)) if family == Family::Unix => {
                let long = |_| Error::invalid("peer.unix", "must be at most 107 bytes");
                Some(name.kernel().map_err(long)?.into())
            }
            Some(Receiver::Ip(ip)) if family != Family::Unix => {
                let v4 = || Error::invalid("peer.inet.ip", "must be IPv4: the socket has no IPv6");
                Some(family.fit_socket(*ip).ok_or_else(v4)?.into())
            }
            Some(Receiver::Unix(_)) => {
                return Err(Error::invalid("peer", "must be inet: this is a UDP socket"));
            }
            Some(Receiver::Ip(_)) => {
                return Err(Error::invalid(
                    "peer",
                    "must be unix: this is a Unix socket",
                ));
            }
        };
        let mut source = self.source;
        if family == Family::Unix && source != Source::default() {
            let (field, allowed) = match source.ip {
                Some(_) => ("source_ip", "must be empty: this is a Unix socket"),
                None => ("source_interface_index", "must be 0: this is a Unix socket"),
            };
            return Err(Error::invalid(field, allowed));
        }
        if let Some(ip) = source.ip {
            let v4 = || Error::invalid("source_ip", "must be IPv4: the socket has no IPv6");
            source.ip = Some(family.fit(ip).ok_or_else(v4)?);
        }
        Ok((peer, source))
    }

    /// Returns the receiver for clients; `None` if it is the peer of the socket.
    pub(super) fn shown(&self) -> Option<proto::SocketAddress> {
        match self.peer.as_ref()? {
            Receiver::Ip(ip) => Some(inet(*ip)),
            Receiver::Unix(name) => describe(&name.kernel().ok()?.into()),
        }
    }
}

/// Reads an IP address, with an interface if it is link-local: `fe80::1%eth0`, `fe80::1%2`.
pub(super) fn parse_ip(text: &str, port: u16) -> Option<SocketAddr> {
    let Some((ip, scope)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, port));
    };
    let ip: Ipv6Addr = ip.parse().ok()?;
    let scope = match scope.parse() {
        Ok(index) => index,
        Err(_) => interface(scope).ok()?,
    };
    Some(SocketAddrV6::new(ip, port, 0, scope).into())
}

/// Returns the index of the interface of that name, 0 for an empty name.
///
/// # Errors
/// Those of netdevice(7); ENODEV if there is none.
pub(super) fn interface(name: &str) -> rustix::io::Result<u32> {
    if name.is_empty() {
        return Ok(0);
    }
    let kind = rustix::net::SocketType::DGRAM;
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let any = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::netdevice::name_to_index(any, name)
}

/// Returns the IP address of an address as clients see it.
pub(super) fn ip_of(address: &proto::SocketAddress) -> Option<IpAddr> {
    match &address.address {
        Some(Address::Inet(inet)) => parse_ip(&inet.ip, 0).map(|ip| ip.ip()),
        _ => None,
    }
}

fn inet(of: SocketAddr) -> proto::SocketAddress {
    let ip = match (of.ip().to_canonical(), of) {
        (IpAddr::V6(ip), SocketAddr::V6(v6)) if v6.scope_id() != 0 => {
            format!("{ip}%{}", v6.scope_id())
        }
        (ip, _) => ip.to_string(),
    };
    proto::SocketAddress {
        address: Some(Address::Inet(proto::InetAddress {
            ip,
            port: of.port().into(),
        })),
    }
}

/// Returns an address for clients: IPv4 as such on an IPv6 socket too, link-local IPv6 with its
/// interface. `None` for an unnamed socket.
pub(super) fn describe(of: &SocketAddrAny) -> Option<proto::SocketAddress> {
    match SocketAddr::try_from(of.clone()) {
        Ok(ip) => Some(inet(ip)),
        Err(_) => address::describe(of),
    }
}

/// The addresses of the last datagram as clients see them, the peer's encoded: most often the next
/// one has the same, and to make their texts takes longer than to copy them.
#[derive(Debug, Default)]
pub(super) struct Described {
    peer: Option<SocketAddrAny>,
    encoded: Vec<u8>,
    local: Option<IpAddr>,
    text: String,
}

impl Described {
    /// Returns what a client is told of a datagram, of which so many bytes are kept.
    pub(super) fn of(&mut self, incoming: &Incoming, kept: usize) -> DatagramHead<'_> {
        if self.peer != incoming.peer {
            let described = incoming.peer.as_ref().and_then(describe);
            self.encoded = described.map_or_else(Vec::new, |peer| peer.encode_to_vec());
            // The interface of a link-local address may get another name.
            self.peer = incoming.peer.clone().filter(|peer| !is_link_local(peer));
        }
        if self.local != incoming.local {
            self.local = incoming.local;
            self.text = self.local.map_or_else(String::new, |ip| ip.to_string());
        }
        let whole = incoming.len == kept;
        DatagramHead {
            peer: if incoming.peer.is_some() {
                &self.encoded
            } else {
                &[]
            },
            full_length: if whole { 0 } else { incoming.len as u64 },
            local_ip: &self.text,
            interface_index: incoming.interface,
        }
    }
}

fn is_link_local(of: &SocketAddrAny) -> bool {
    matches!(SocketAddr::try_from(of.clone()), Ok(SocketAddr::V6(v6)) if v6.scope_id() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(ip: &str, port: u32) -> proto::SocketAddress {
        let ip = ip.to_owned();
        proto::SocketAddress {
            address: Some(Address::Inet(proto::InetAddress { ip, port })),
        }
    }

    fn parcel(ip: &str, source: &str) -> Result<Parcel> {
        Parcel::check(Bytes::new(), Some(&peer(ip, 9)), source, 0)
    }

    #[test]
    fn an_ipv6_socket_reaches_ipv4_by_mapped_addresses_which_nobody_sees() {
        let sent = parcel("192.0.2.1", "192.0.2.2").unwrap();
        let (to, from) = sent.addressed(Family::V6).unwrap();
        let to = SocketAddr::try_from(to.unwrap()).unwrap();
        assert_eq!(to.to_string(), "[::ffff:192.0.2.1]:9");
        assert_eq!(from.ip.unwrap().to_string(), "::ffff:192.0.2.2");
        assert_eq!(describe(&to.into()).unwrap(), peer("192.0.2.1", 9));
        let sent = parcel("2001:db8::1", "").unwrap();
        assert!(sent.addressed(Family::V4).is_err());
        assert!(sent.addressed(Family::Unix).is_err());
    }

    #[test]
    fn a_link_local_address_keeps_its_interface() {
        let sent = parcel("fe80::1%lo", "").unwrap();
        let (to, _) = sent.addressed(Family::V6).unwrap();
        let loopback = interface("lo").unwrap();
        let shown = describe(&to.unwrap()).unwrap();
        assert_eq!(shown, peer(&format!("fe80::1%{loopback}"), 9));
        let again = Parcel::check(Bytes::new(), Some(&shown), "", 0).unwrap();
        assert_eq!(again.peer, sent.peer);
    }

    #[test]
    fn a_bad_address_is_refused_by_the_name_of_its_field() {
        let field = |found: Result<Parcel>| match found.unwrap_err() {
            Error::InvalidField { field, .. } => field.into_owned(),
            other => panic!("{other}"),
        };
        assert_eq!(field(parcel("localhost", "")), "peer.inet.ip");
        assert_eq!(field(parcel("fe80::1%nosuch0", "")), "peer.inet.ip");
        assert_eq!(field(parcel("::1", "x")), "source_ip");
        let without = |peer| field(Parcel::check(Bytes::new(), Some(&peer), "", 0));
        let odd = Parcel::check(Bytes::new(), None, "", u32::MAX);
        assert_eq!(field(odd), "source_interface_index");
        assert_eq!(without(peer("::1", 0)), "peer.inet.port");
        assert_eq!(without(peer("::1", 65_536)), "peer.inet.port");
        assert_eq!(without(proto::SocketAddress::default()), "peer");
    }
}
