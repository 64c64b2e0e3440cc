//! Converts socket addresses between the kernel's form and the protocol's.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, netdevice,
};

use crate::error::{Error, Result};
use crate::proto::{self, socket_address::Address, unix_address::Name};

/// An IP address as clients write it: an address, and for IPv6 maybe the interface to which it
/// belongs, such as `fe80::1%eth0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    ip: IpAddr,
    zone: Option<Box<str>>,
}

/// Returns the port of an IP address; `None` for a Unix socket.
pub(super) fn port(address: &proto::SocketAddress) -> Option<u32> {
    match address.address.as_ref()? {
        Address::Inet(inet) => Some(inet.port),
        Address::Unix(_) => None,
    }
}

/// The longest name of an interface, in bytes.
const ZONE_MAX: usize = 15;

impl HostAddress {
    /// Parses an address. Returns `None` if the text is not an address: it may be a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let Some((ip, zone)) = text.split_once('%') else {
            let ip = text.parse().ok()?;
            return Some(Self { ip, zone: None });
        };
        let ip = IpAddr::V6(ip.parse().ok()?);
        let fits = !zone.is_empty() && zone.len() <= ZONE_MAX && !zone.contains('\0');
        fits.then(|| Self {
            ip,
            zone: Some(zone.into()),
        })
    }

    /// Returns the address with a port.
    ///
    /// # Errors
    /// The host has no such interface.
    pub fn with_port(&self, port: u16) -> rustix::io::Result<SocketAddr> {
        match (self.ip, &self.zone) {
            (IpAddr::V6(ip), Some(zone)) => {
                let index = match zone.parse() {
                    Ok(index) => index,
                    Err(_) => netdevice::name_to_index(any_socket()?, zone)?,
                };
                Ok(SocketAddrV6::new(ip, port, 0, index).into())
            }
            (ip, _) => Ok(SocketAddr::new(ip, port)),
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.zone {
            Some(zone) => write!(f, "{}%{zone}", self.ip),
            None => self.ip.fmt(f),
        }
    }
}

/// Makes a socket to ask the kernel about interfaces.
fn any_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
}

/// Returns an IP address as text, with its interface if it has one.
pub(super) fn ip_text(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            let index = v6.scope_id();
            let name = any_socket().and_then(|socket| netdevice::index_to_name(socket, index));
            // The interface may be gone.
            let name = name.unwrap_or_else(|_| index.to_string());
            format!("{}%{name}", v6.ip())
        }
        other => other.ip().to_string(),
    }
}

/// Returns an address as text, such as `127.0.0.1:80`, `[::1]:80`, `/run/a.sock` or `@abstract`.
#[must_use]
pub fn text(address: &SocketAddrAny) -> String {
    match describe(address).and_then(|described| described.address) {
        Some(Address::Inet(inet)) if inet.ip.contains(':') => {
            format!("[{}]:{}", inet.ip, inet.port)
        }
        Some(Address::Inet(inet)) => format!("{}:{}", inet.ip, inet.port),
        Some(Address::Unix(unix)) => match unix.name {
            Some(Name::Path(path)) => path,
            Some(Name::AbstractName(name)) => format!("@{}", String::from_utf8_lossy(&name)),
            None => String::new(),
        },
        None => String::new(),
    }
}

/// The checked address of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnixName {
    /// An absolute path.
    Path(PathBuf),
    /// A name in the abstract namespace, without the leading NUL.
    Abstract(Vec<u8>),
}

impl UnixName {
    /// Checks the address in a request; `field` names it in errors.
    ///
    /// # Errors
    /// The name is missing, the path is relative, or the name is too long for the kernel (107
    /// bytes).
    pub fn check(field: &str, address: &proto::UnixAddress) -> Result<Self> {
        let name = match &address.name {
            Some(Name::Path(path)) if path.starts_with('/') => Self::Path(PathBuf::from(path)),
            Some(Name::Path(_)) => {
                return Err(Error::invalid(
                    format!("{field}.path"),
                    "must be an absolute path",
                ));
            }
            Some(Name::AbstractName(name)) if !name.is_empty() => Self::Abstract(name.to_vec()),
            _ => {
                return Err(Error::invalid(
                    field.to_owned(),
                    "must have an absolute path or an abstract name that is not empty",
                ));
            }
        };
        name.kernel().map_err(|_| {
            Error::invalid(
                field.to_owned(),
                "must be at most 107 bytes, without NUL in a path",
            )
        })?;
        Ok(name)
    }

    /// Returns the name as text: the path, or `@` and the abstract name.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Abstract(name) => format!("@{}", String::from_utf8_lossy(name)),
        }
    }

    /// Returns the address in the kernel's form.
    ///
    /// # Errors
    /// The address is too long, or a path has a NUL.
    pub fn kernel(&self) -> rustix::io::Result<SocketAddrUnix> {
        match self {
            Self::Path(path) => SocketAddrUnix::new(path.as_path()),
            Self::Abstract(name) => SocketAddrUnix::new_abstract_name(name),
        }
    }
}

/// Returns the address in the protocol's form; `None` for an unnamed socket.
#[must_use]
pub fn describe(address: &SocketAddrAny) -> Option<proto::SocketAddress> {
    let address = if let Ok(inet) = SocketAddr::try_from(address.clone()) {
        Address::Inet(proto::InetAddress {
            ip: ip_text(&inet),
            port: inet.port().into(),
        })
    } else {
        let unix = SocketAddrUnix::try_from(address.clone()).ok()?;
        let name = match (unix.path(), unix.abstract_name()) {
            (Some(path), _) => {
                let path = OsStr::from_bytes(path.to_bytes());
                Name::Path(path.to_string_lossy().into_owned())
            }
            (None, Some(name)) => Name::AbstractName(name.to_vec().into()),
            (None, None) => return None,
        };
        Address::Unix(proto::UnixAddress { name: Some(name) })
    };
    Some(proto::SocketAddress {
        address: Some(address),
    })
}

/// Returns a socket's own address.
#[must_use]
pub fn local(fd: BorrowedFd<'_>) -> Option<proto::SocketAddress> {
    describe(&rustix::net::getsockname(fd).ok()?)
}

/// Returns the address of a socket's peer.
#[must_use]
pub fn peer(fd: BorrowedFd<'_>) -> Option<proto::SocketAddress> {
    describe(&rustix::net::getpeername(fd).ok()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_an_interface() {
        let parsed = |text: &str| HostAddress::parse(text).map(|a| a.with_port(80));
        assert_eq!(
            parsed("127.0.0.1"),
            Some(Ok("127.0.0.1:80".parse().unwrap()))
        );
        assert_eq!(parsed("::1"), Some(Ok("[::1]:80".parse().unwrap())));
        // The loopback interface is the first of every host.
        assert_eq!(
            parsed("fe80::1%lo"),
            Some(Ok("[fe80::1%1]:80".parse().unwrap()))
        );
        assert_eq!(
            parsed("fe80::1%7"),
            Some(Ok("[fe80::1%7]:80".parse().unwrap()))
        );
        assert_eq!(
            parsed("fe80::1%nothing"),
            Some(Err(rustix::io::Errno::NODEV))
        );
        for name in ["localhost", "127.0.0.1%lo", "fe80::1%", "a%b", "[::1]"] {
            assert_eq!(parsed(name), None, "{name}");
        }
        assert!(parsed("fe80::1%sixteen-bytes-xx").is_none());
    }

    #[test]
    fn an_address_is_shown_with_its_interface() {
        let shown = |text: &str| super::text(&text.parse::<SocketAddr>().unwrap().into());
        assert_eq!(shown("[fe80::1%1]:80"), "[fe80::1%lo]:80");
        assert_eq!(shown("[::1]:80"), "[::1]:80");
        assert_eq!(shown("[fe80::1%4294967295]:1"), "[fe80::1%4294967295]:1");
        assert_eq!(shown("10.0.0.1:1"), "10.0.0.1:1");
    }
}
