//! Makes the socket of a datagram watch. May block.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{SocketAddrUnix, SocketFlags, SocketType};

use super::groups::{Group, Groups, Membership};
use super::names::{self, Family};
use super::{DatagramWatch, Socket};
use crate::driver::{Claim, Nonblocking};
use crate::error::{Error, Result, SystemError};
use crate::sys::datagram;
use crate::watch::address::{HostAddress, UnixName};
use crate::watch::listener::{SocketFile, bind_unix, refused};
use crate::watch::{Links, Services, Watch, WaterMarks};

/// An address to bind or to connect to.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A host and a port.
    Ip {
        /// Its name or address; empty for every address of this host.
        host: String,
        /// The port; 0 lets the kernel choose one.
        port: u16,
    },
    /// A Unix socket.
    Unix(UnixName),
}

impl Endpoint {
    /// Returns whether it is the name of a host, which only a name server may know.
    #[must_use]
    pub fn is_name(&self) -> bool {
        match self {
            Self::Ip { host, .. } => !host.is_empty() && HostAddress::parse(host).is_none(),
            Self::Unix(_) => false,
        }
    }
}

/// The options of a new socket.
#[derive(Debug, Clone, Default)]
pub struct DatagramOptions {
    /// Whether to allow datagrams to broadcast addresses.
    pub broadcast: bool,
    /// Whether to set SO_REUSEPORT.
    pub reuse_port: bool,
    /// Whether to set SO_REUSEADDR.
    pub reuse_address: bool,
    /// Whether an IPv6 socket takes no part in IPv4.
    pub ipv6_only: bool,
    /// The time to live of datagrams to one host, hops.
    pub ttl: Option<u8>,
    /// The time to live of datagrams to a group, hops.
    pub multicast_ttl: Option<u8>,
    /// Whether datagrams to a group reach this host.
    pub multicast_loop: Option<bool>,
    /// The name of the interface for datagrams to a group; empty if the kernel chooses.
    pub multicast_interface: String,
    /// The groups to join.
    pub groups: Vec<Group>,
    /// The size of the receive buffer to ask for, bytes.
    pub receive_buffer: Option<usize>,
}

/// The socket of a datagram watch.
#[derive(Debug)]
pub enum DatagramSocket {
    /// A socket to make. At least one of the addresses is there.
    New {
        /// The address to bind to.
        local: Option<Endpoint>,
        /// The peer to connect to.
        peer: Option<Endpoint>,
        /// Its options.
        options: Box<DatagramOptions>,
    },
    /// A socket that a client handed over.
    Adopted(Claim),
}

/// The checked order of a datagram watch.
#[derive(Debug)]
pub struct DatagramOrder {
    /// The socket.
    pub socket: DatagramSocket,
    /// Whether reading starts only with ResumeReading.
    pub paused: bool,
    /// The most bytes of a datagram that are kept.
    pub max_size: u32,
    /// When WritePaused and WriteResumed are appended.
    pub marks: WaterMarks,
}

impl DatagramOrder {
    /// Builds the watch again of a socket that an earlier life has left open. The rest of what is known of
    /// it comes when the watch goes on. `local` and `peer` are the Unix sockets of its specification, and
    /// `file` are the device and the inode of its socket file.
    #[must_use]
    pub fn again(
        claim: Claim,
        (local, peer): (Option<UnixName>, Option<&UnixName>),
        file: Option<(u64, u64)>,
        (max_size, marks): (u32, WaterMarks),
        services: &Services,
    ) -> Option<Box<dyn Watch>> {
        let family = Family::of(claim.fd.as_fd())?;
        let mut socket = Socket::new(claim.fd, claim.mode, family);
        socket.groups = (family != Family::Unix).then(|| Groups::new(&services.links));
        socket.reconnect = peer.and_then(|peer| peer.kernel().ok());
        if let (Some(UnixName::Path(path)), Some(_)) = (local, file) {
            // Somebody else's stays where it is.
            if inode_of(&path) == file {
                (socket.file, socket.file_is) = (Some(SocketFile::new(path)), file);
            }
        }
        Some(Box::new(DatagramWatch::new(socket, false, max_size, marks)))
    }

    /// Builds the watch, bound and connected. May block.
    ///
    /// # Errors
    /// An address cannot be resolved, bound or connected to, or an option is refused.
    pub fn build(self, services: &Services) -> Result<Box<dyn Watch>> {
        let links = &services.links;
        let socket = match self.socket {
            DatagramSocket::Adopted(claim) => adopt(claim, links)?,
            DatagramSocket::New {
                local,
                peer,
                options,
            } => match (local, peer) {
                (Some(Endpoint::Unix(local)), None) => unix(Some(local), None, &options)?,
                (None, Some(Endpoint::Unix(peer))) => unix(None, Some(&peer), &options)?,
                (Some(Endpoint::Unix(local)), Some(Endpoint::Unix(peer))) => {
                    unix(Some(local), Some(&peer), &options)?
                }
                (local, peer) => udp(local.as_ref(), peer.as_ref(), &options, links)?,
            },
        };
        Ok(Box::new(DatagramWatch::new(
            socket,
            self.paused,
            self.max_size,
            self.marks,
        )))
    }
}

/// Returns the device and the inode of a file.
fn inode_of(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::lstat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

fn step(name: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| refused(errno, name, "")
}

fn adopt(claim: Claim, links: &Arc<Links>) -> Result<Socket> {
    let unknown = || refused(Errno::AFNOSUPPORT, "getsockopt", "");
    let family = Family::of(claim.fd.as_fd()).ok_or_else(unknown)?;
    if family != Family::Unix {
        datagram::tell_all(claim.fd.as_fd(), family == Family::V6).map_err(step("setsockopt"))?;
    }
    let mut made = Socket::new(claim.fd, claim.mode, family);
    made.groups = (family != Family::Unix).then(|| Groups::new(links));
    Ok(made)
}

fn set_buffer(socket: &OwnedFd, options: &DatagramOptions) -> Result<()> {
    match options.receive_buffer {
        Some(bytes) => {
            sockopt::set_socket_recv_buffer_size(socket, bytes).map_err(step("setsockopt"))
        }
        None => Ok(()),
    }
}

fn unix(
    local: Option<UnixName>,
    peer: Option<&UnixName>,
    options: &DatagramOptions,
) -> Result<Socket> {
    let socket = match &local {
        Some(local) => bind_unix(local, SocketType::DGRAM)?,
        None => new_socket(Family::Unix).map_err(step("socket"))?,
    };
    let mut made = Socket::new(socket, Nonblocking::Own, Family::Unix);
    if let Some(UnixName::Path(path)) = local {
        made.file_is = inode_of(&path);
        made.file = Some(SocketFile::new(path));
    }
    set_buffer(&made.fd, options)?;
    if let Some(peer) = peer {
        let failed = |errno| refused(errno, "connect", peer.shown());
        let kernel: SocketAddrUnix = peer.kernel().map_err(failed)?;
        rustix::net::connect(&made.fd, &kernel).map_err(failed)?;
        made.reconnect = Some(kernel);
    }
    made.look_up();
    Ok(made)
}

fn udp(
    local: Option<&Endpoint>,
    peer: Option<&Endpoint>,
    options: &DatagramOptions,
    links: &Arc<Links>,
) -> Result<Socket> {
    let local = resolve(local)?;
    let peer = resolve(peer)?;
    let everywhere = local.first().is_some_and(|ip| ip.ip().is_unspecified());
    let made = match (local.first(), peer.first()) {
        (Some(first), _) => match bind(Some(*first), Family::of_ip(first.ip()), options, links) {
            // A host without IPv6 serves its IPv4 addresses only.
            Err(error) if everywhere && local.len() > 1 && lacks_v6(&error) => {
                bind(local.get(1).copied(), Family::V4, options, links)?
            }
            made => made?,
        },
        (None, Some(first)) => bind(None, Family::of_ip(first.ip()), options, links)?,
        (None, None) => return Err(Error::Internal("a datagram watch has no address")),
    };
    if !peer.is_empty() {
        let reachable = peer.iter().find_map(|to| made.family.fit_socket(*to));
        let to = reachable.unwrap_or(peer[0]);
        let failed = |errno| refused(errno, "connect", to.to_string());
        rustix::net::connect(&made.fd, &to).map_err(failed)?;
    }
    let mut made = made;
    made.look_up();
    Ok(made)
}

fn lacks_v6(error: &Error) -> bool {
    let lacking = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(Errno::raw_os_error);
    matches!(error, Error::System(error) if lacking.contains(&error.errno))
}

/// Returns the addresses of an endpoint, in the order in which they are tried.
fn resolve(endpoint: Option<&Endpoint>) -> Result<Vec<SocketAddr>> {
    match endpoint {
        None => Ok(Vec::new()),
        Some(Endpoint::Unix(_)) => Err(Error::Internal("a UDP socket has a Unix address")),
        Some(Endpoint::Ip { host, port }) if host.is_empty() => Ok(vec![
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port),
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), *port),
        ]),
        Some(Endpoint::Ip { host, port }) => {
            if let Some(ip) = HostAddress::parse(host) {
                let ip = ip.with_port(*port);
                return Ok(vec![ip.map_err(|errno| refused(errno, "resolve", host))?]);
            }
            let found = (host.as_str(), *port).to_socket_addrs();
            let found: Vec<_> = found
                .map_err(|error| SystemError::from_io(&error, "resolve", host))?
                .collect();
            if found.is_empty() {
                return Err(refused(Errno::ADDRNOTAVAIL, "resolve", host));
            }
            Ok(found)
        }
    }
}

fn new_socket(family: Family) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family.kernel(), SocketType::DGRAM, flags, None)
}

/// Makes a UDP socket with these options, and binds it.
fn bind(
    local: Option<SocketAddr>,
    family: Family,
    options: &DatagramOptions,
    links: &Arc<Links>,
) -> Result<Socket> {
    let shown = || local.map(|local| local.to_string()).unwrap_or_default();
    let socket = new_socket(family).map_err(|e| refused(e, "socket", shown()))?;
    set_options(&socket, family, options)?;
    set_buffer(&socket, options)?;
    if let Some(local) = local {
        rustix::net::bind(&socket, &local).map_err(|e| refused(e, "bind", shown()))?;
    }
    let groups = Groups::new(links);
    for group in &options.groups {
        groups.change(socket.as_fd(), Membership::Join, group)?;
    }
    let mut made = Socket::new(socket, Nonblocking::Own, family);
    made.groups = Some(groups);
    Ok(made)
}

fn set_options(socket: &OwnedFd, family: Family, options: &DatagramOptions) -> Result<()> {
    let v6 = family == Family::V6;
    let set = || {
        datagram::tell_all(socket.as_fd(), v6)?;
        datagram::only_own_groups(socket.as_fd(), v6)?;
        if v6 {
            sockopt::set_ipv6_v6only(socket, options.ipv6_only)?;
        }
        if options.broadcast {
            sockopt::set_socket_broadcast(socket, true)?;
        }
        if options.reuse_address {
            sockopt::set_socket_reuseaddr(socket, true)?;
        }
        if options.reuse_port {
            sockopt::set_socket_reuseport(socket, true)?;
        }
        // An IPv6 socket needs the options of IPv4 too, for the peers that it reaches by IPv4.
        if let Some(ttl) = options.ttl {
            sockopt::set_ip_ttl(socket, ttl.into())?;
            if v6 {
                sockopt::set_ipv6_unicast_hops(socket, Some(ttl))?;
            }
        }
        if let Some(ttl) = options.multicast_ttl {
            sockopt::set_ip_multicast_ttl(socket, ttl.into())?;
            if v6 {
                sockopt::set_ipv6_multicast_hops(socket, ttl.into())?;
            }
        }
        if let Some(loops) = options.multicast_loop {
            sockopt::set_ip_multicast_loop(socket, loops)?;
            if v6 {
                sockopt::set_ipv6_multicast_loop(socket, loops)?;
            }
        }
        Ok(())
    };
    set().map_err(step("setsockopt"))?;
    let name = &options.multicast_interface;
    if name.is_empty() {
        return Ok(());
    }
    let set = || {
        let index = names::interface(name)?;
        let any = Ipv4Addr::UNSPECIFIED;
        sockopt::set_ip_multicast_if_with_ifindex(socket, &any, &any, index)?;
        if v6 {
            sockopt::set_ipv6_multicast_if(socket, index)?;
        }
        Ok(())
    };
    set().map_err(|errno| refused(errno, "interface", name))
}
