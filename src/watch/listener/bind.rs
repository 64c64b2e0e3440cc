//! Makes the sockets of listeners.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::SOCKETS_MAX;
use crate::error::{Error, Result, SystemError};
use crate::watch::address::{HostAddress, UnixName};

pub(in crate::watch) fn refused(
    errno: Errno,
    step: &'static str,
    detail: impl Into<String>,
) -> Error {
    SystemError::new(errno, step, detail).into()
}

/// How TCP sockets are bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binding {
    pub(super) reuse_port: bool,
    pub(super) ipv6_only: bool,
    pub(super) backlog: i32,
}

pub(super) fn bind_tcp(hosts: &[String], port: u16, how: Binding) -> Result<Vec<OwnedFd>> {
    let mut addresses = Vec::new();
    for host in hosts {
        if let Some(address) = HostAddress::parse(host) {
            let address = address.with_port(port);
            let address = address.map_err(|errno| refused(errno, "resolve", host))?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
            continue;
        }
        let found = (host.as_str(), port)
            .to_socket_addrs()
            .map_err(|error| SystemError::from_io(&error, "resolve", host))?;
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    let any = hosts.is_empty();
    if any {
        addresses.push(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
        addresses.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    if addresses.len() > SOCKETS_MAX {
        return Err(Error::limit("sockets of a listener", SOCKETS_MAX as u64));
    }
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for mut address in addresses {
        if port == 0
            && let Some(first) = sockets.first()
            && let Ok(bound) = rustix::net::getsockname(first)
            && let Ok(bound) = SocketAddr::try_from(bound)
        {
            address.set_port(bound.port());
        }
        match bind_one(address, how) {
            Ok(socket) => {
                sockets.push(socket);
                if any && !how.ipv6_only {
                    break;
                }
            }
            // A host without IPv6 listens on its IPv4 addresses only.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if any && address.is_ipv6() => {}
            Err(errno) => return Err(refused(errno, "bind", address.to_string())),
        }
    }
    Ok(sockets)
}

fn bind_one(address: SocketAddr, how: Binding) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if how.reuse_port {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, how.ipv6_only)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, how.backlog)?;
    Ok(socket)
}

/// Makes a Unix socket of that type and binds it. A socket file that no process uses is replaced.
pub(in crate::watch) fn bind_unix(name: &UnixName, kind: SocketType) -> Result<OwnedFd> {
    let shown = || name.shown();
    let kernel = name.kernel().map_err(|e| refused(e, "bind", shown()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let new = || rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None);
    let socket = new().map_err(|e| refused(e, "socket", ""))?;
    let mut bound = rustix::net::bind(&socket, &kernel);
    if bound == Err(Errno::ADDRINUSE)
        && let UnixName::Path(path) = name
        && new().and_then(|probe| rustix::net::connect(&probe, &kernel)) == Err(Errno::CONNREFUSED)
        && std::fs::remove_file(path).is_ok()
    {
        bound = rustix::net::bind(&socket, &kernel);
    }
    bound.map_err(|e| refused(e, "bind", shown()))?;
    Ok(socket)
}

/// The file of a Unix socket, which is removed on drop if it is still the one that the watch made.
#[derive(Debug)]
pub(in crate::watch) struct SocketFile {
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl SocketFile {
    pub(in crate::watch) fn new(path: PathBuf) -> Self {
        let inode = inode(&path);
        Self { path, inode }
    }

    /// Returns the file that an earlier life has made, by its device and inode.
    pub(super) const fn of_earlier_life(path: PathBuf, inode: (u64, u64)) -> Self {
        Self {
            path,
            inode: Some(inode),
        }
    }

    /// Returns the device and inode by which it is known.
    pub(super) const fn inode(&self) -> Option<(u64, u64)> {
        self.inode
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::lstat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            // If the removal fails, the next listener that binds this path finds the file stale and
            // removes it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
