//! Listeners. Each accepted connection becomes a watch of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::address::{self, HostAddress, UnixName};
use super::connection::{self, StreamOptions};
use super::places::Places;
use super::{Adoption, Context, Need, Notice, TcpOptions, Watch};
use crate::driver::{Claim, Direction, Done, Lane, Nonblocking, Op, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{AcceptPaused, Kind, largest};
use crate::proto;

/// The number of connections accepted from one socket before other sources are served.
const ACCEPT_AT_ONCE: u32 = 16;
/// How long accepting pauses after a failure (asyncio's `ACCEPT_RETRY_DELAY`).
const RETRY: Duration = Duration::from_secs(1);
/// The largest number of sockets of one listener.
pub const SOCKETS_MAX: usize = 16;

/// The addresses to listen on.
#[derive(Debug)]
pub enum ListenTarget {
    /// Names or addresses and a port.
    Tcp {
        /// Names or addresses; if empty, every address of the host.
        hosts: Vec<String>,
        /// The port of all addresses; 0 lets the kernel choose one port.
        port: u16,
        /// Whether to set SO_REUSEPORT.
        reuse_port: bool,
        /// Whether IPv6 sockets accept IPv6 connections only.
        ipv6_only: bool,
    },
    /// A Unix socket.
    Unix(UnixName),
    /// A listening socket that a client handed over.
    Adopted(Claim),
}

/// The checked order of a listener.
#[derive(Debug)]
pub struct ListenOrder {
    /// The addresses to listen on.
    pub target: ListenTarget,
    /// The number of connections that the kernel may queue.
    pub backlog: i32,
    /// The options of accepted connections.
    pub options: StreamOptions,
    /// The number of connections that may be open at once.
    pub max_connections: u32,
    /// The options of their sockets, which are set on the listening sockets.
    pub tcp: TcpOptions,
}

impl ListenOrder {
    /// Builds the watch, bound to all of its addresses. May block.
    ///
    /// # Errors
    /// An address cannot be resolved or bound. Then none stays bound.
    pub fn build(self) -> Result<Box<dyn Watch>> {
        let mut file = None;
        let mut mode = Nonblocking::Own;
        let sockets = match self.target {
            ListenTarget::Adopted(claim) => {
                mode = claim.mode;
                vec![claim.fd]
            }
            ListenTarget::Unix(name) => {
                let socket = bind_unix(&name, SocketType::STREAM)?;
                rustix::net::listen(&socket, self.backlog)
                    .map_err(|e| refused(e, "listen", name.shown()))?;
                if let UnixName::Path(path) = name {
                    file = Some(SocketFile::new(path));
                }
                vec![socket]
            }
            ListenTarget::Tcp {
                hosts,
                port,
                reuse_port,
                ipv6_only,
            } => {
                let how = Binding {
                    reuse_port,
                    ipv6_only,
                    backlog: self.backlog,
                };
                bind_tcp(&hosts, port, how)?
            }
        };
        for socket in &sockets {
            self.tcp.set(socket.as_fd())?;
        }
        let addresses = sockets.iter().filter_map(|s| address::local(s.as_fd()));
        Ok(Box::new(Listener {
            addresses: addresses.collect(),
            sockets,
            mode,
            sources: Vec::new(),
            options: self.options,
            accepted: 0,
            held: false,
            granted: Vec::new(),
            ready: Vec::new(),
            max_connections: self.max_connections,
            places: None,
            file,
        }))
    }
}

pub(super) fn refused(errno: Errno, step: &'static str, detail: impl Into<String>) -> Error {
    SystemError::new(errno, step, detail).into()
}

/// How TCP sockets are bound.
#[derive(Debug, Clone, Copy)]
struct Binding {
    reuse_port: bool,
    ipv6_only: bool,
    backlog: i32,
}

fn bind_tcp(hosts: &[String], port: u16, how: Binding) -> Result<Vec<OwnedFd>> {
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
pub(super) fn bind_unix(name: &UnixName, kind: SocketType) -> Result<OwnedFd> {
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
pub(super) struct SocketFile {
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl SocketFile {
    pub(super) fn new(path: PathBuf) -> Self {
        let inode = inode(&path);
        Self { path, inode }
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

#[derive(Debug)]
struct Listener {
    sockets: Vec<OwnedFd>,
    mode: Nonblocking,
    addresses: Vec<proto::SocketAddress>,
    sources: Vec<SourceId>,
    /// For each socket, the number of connections that it may still accept, for which room is
    /// reserved and places are taken.
    granted: Vec<u32>,
    /// For each socket, whether a connection waits. Only known if the sockets share a limit.
    ready: Vec<bool>,
    max_connections: u32,
    /// The places of its connections, from its start on.
    places: Option<Arc<Places>>,
    options: StreamOptions,
    accepted: u64,
    /// Whether accepting is paused because the journal has no room.
    held: bool,
    file: Option<SocketFile>,
}

/// The need of an accepted connection, including its Accepted.
pub(crate) const ACCEPTED: Need = connection::ConnectionOrder::NEED.and(largest::ACCEPTED);

impl Listener {
    /// Starts to accept from each socket that does not.
    fn accept_all(&mut self, cx: &mut Context<'_>) {
        for index in 0..self.sources.len() {
            self.accept(cx, index);
        }
    }

    fn accept(&mut self, cx: &mut Context<'_>, index: usize) {
        let (lane, source) = (lane(index), self.sources[index]);
        if cx.is_closing() || cx.is_live(lane) || self.held {
            return;
        }
        let Some(places) = self.places.as_ref().map(Arc::clone) else {
            return;
        };
        if self.shares_limit() && !self.ready[index] {
            // A socket takes a place only when a connection waits, so that the last places are where
            // clients are.
            cx.start(lane, source, Op::Ready(Direction::Read));
            return;
        }
        let most = if self.shares_limit() {
            1
        } else {
            ACCEPT_AT_ONCE
        };
        let most = places.take(most);
        if most == 0 {
            // A place may be held for a connection that was gone when it was to be accepted.
            for (other, _) in self.granted.iter().enumerate().filter(|(_, n)| **n > 0) {
                cx.cancel(self::lane(other));
            }
            return;
        }
        let granted = match cx.grant(ACCEPTED, most) {
            Ok(granted) => granted,
            Err(full) => {
                places.give_back(most);
                let error = proto::SystemError {
                    step: "accept".to_owned(),
                    message: full.to_string(),
                    ..proto::SystemError::default()
                };
                self.pause(cx, error);
                return;
            }
        };
        places.give_back(most - granted);
        self.granted[index] = granted;
        cx.start(lane, source, Op::Accept { limit: granted });
    }

    /// Returns whether several sockets share a limit of open connections.
    fn shares_limit(&self) -> bool {
        self.max_connections < u32::MAX && self.sources.len() > 1
    }

    fn pause(&self, cx: &mut Context<'_>, error: proto::SystemError) {
        // If the event has no room, the client sees that from the state of the journal.
        if cx.has_room() {
            cx.emit(Kind::AcceptPaused(AcceptPaused {
                error: Some(error),
                retry_after: Some(crate::clock::duration(RETRY)),
            }));
        }
        cx.set_alarm_in(RETRY);
    }

    fn give_back(&mut self, cx: &mut Context<'_>, index: usize) {
        self.ready[index] = false;
        let unused = std::mem::take(&mut self.granted[index]);
        cx.give_back(ACCEPTED, unused);
        if let Some(places) = &self.places {
            places.give_back(unused);
        }
    }
}

fn lane(index: usize) -> Lane {
    // The index is below SOCKETS_MAX.
    Lane(u8::try_from(index).unwrap_or(u8::MAX))
}

impl Watch for Listener {
    fn start(&mut self, cx: &mut Context<'_>) {
        for socket in std::mem::take(&mut self.sockets) {
            let Some(source) = cx.attach(socket, self.mode) else {
                return;
            };
            self.sources.push(source);
            self.granted.push(0);
            self.ready.push(false);
        }
        let notifier = Arc::clone(cx.notifier);
        self.places = Some(Places::new(self.max_connections, cx.key(), notifier));
        self.accept_all(cx);
    }

    fn complete(&mut self, cx: &mut Context<'_>, at: Lane, done: Done) {
        let index = usize::from(at.0);
        match done {
            Done::Accepted(fd, peer) => {
                self.accepted += 1;
                self.granted[index] -= 1;
                let peer = peer.and_then(|p| address::describe(&p));
                let place = self.places.as_ref().map(Places::fill);
                let watch = connection::accepted(fd, self.options, place);
                cx.adopt(Adoption { watch, peer });
            }
            Done::Ready(_) => {
                self.ready[index] = true;
                self.accept(cx, index);
                return;
            }
            Done::Failed(errno) => {
                self.give_back(cx, index);
                match errno {
                    Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => {
                        let error = SystemError::new(errno, "accept", "");
                        self.pause(cx, (&error).into());
                    }
                    _ => cx.fail(errno, "accept"),
                }
                return;
            }
            _ => {}
        }
        if !cx.is_live(at) {
            self.give_back(cx, index);
            self.accept_all(cx);
        }
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        self.accept_all(cx);
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        if matches!(notice, Notice::PlaceFree) {
            self.accept_all(cx);
        }
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        self.held = hold;
        for index in 0..self.sources.len() {
            if hold {
                cx.cancel(lane(index));
            } else {
                self.accept(cx, index);
            }
        }
        true
    }

    fn closing(&mut self, cx: &mut Context<'_>) -> super::Teardown {
        cx.clear_alarm();
        super::Teardown::Now
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        if let Some(file) = self.file.take() {
            cx.services.runtime.spawn_blocking(move || drop(file));
        }
        0
    }

    fn status(&self) -> Option<proto::watch::Status> {
        Some(proto::watch::Status::Listener(proto::ListenerStatus {
            addresses: self.addresses.clone(),
            accepted: self.accepted,
            open_connections: self.places.as_ref().map_or(0, |places| {
                places.taken() - self.granted.iter().sum::<u32>()
            }),
        }))
    }
}
