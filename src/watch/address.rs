//! Socket addresses between the kernel's form and the protocol's.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::net::{SocketAddrAny, SocketAddrUnix};

use crate::error::{Error, Result};
use crate::proto::{self, socket_address::Address, unix_address::Name};

/// A Unix socket's checked address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnixName {
    /// Absolute path.
    Path(PathBuf),
    /// In the abstract namespace, without the leading NUL.
    Abstract(Vec<u8>),
}

impl UnixName {
    /// Checks what a request says; `field` names it in errors.
    ///
    /// # Errors
    /// No name, a relative path, one too long for the kernel (107 bytes).
    pub fn check(field: &str, address: &proto::UnixAddress) -> Result<Self> {
        let name = match &address.name {
            Some(Name::Path(path)) if path.starts_with('/') => Self::Path(PathBuf::from(path)),
            Some(Name::Path(_)) => {
                return Err(Error::invalid(format!("{field}.path"), "must be absolute"));
            }
            Some(Name::AbstractName(name)) if !name.is_empty() => Self::Abstract(name.to_vec()),
            _ => {
                return Err(Error::invalid(
                    field.to_owned(),
                    "needs a path or an abstract name",
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

    /// As system calls take it.
    ///
    /// # Errors
    /// Too long, or a path with a NUL.
    pub fn kernel(&self) -> rustix::io::Result<SocketAddrUnix> {
        match self {
            Self::Path(path) => SocketAddrUnix::new(path.as_path()),
            Self::Abstract(name) => SocketAddrUnix::new_abstract_name(name),
        }
    }
}

/// An address as the protocol says it; absent for an unnamed socket.
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

/// A socket's own address.
#[must_use]
pub fn local(fd: BorrowedFd<'_>) -> Option<proto::SocketAddress> {
    describe(&rustix::net::getsockname(fd).ok()?)
}

/// The address of a socket's peer.
#[must_use]
pub fn peer(fd: BorrowedFd<'_>) -> Option<proto::SocketAddress> {
    describe(&rustix::net::getpeername(fd).ok()??)
}
