//! Converts socket addresses between the kernel's form and the protocol's.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::net::{SocketAddrAny, SocketAddrUnix};

use crate::error::{Error, Result};
use crate::proto::{self, socket_address::Address, unix_address::Name};

/// The checked address of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
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
            ip: inet.ip().to_string(),
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
