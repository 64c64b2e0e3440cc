//! What a client asks for.

use std::os::fd::AsFd;

use rustix::net::SocketType;

use super::Listener;
use super::bind::{Binding, SocketFile, bind_tcp, bind_unix, refused};
use crate::driver::{Claim, Nonblocking};
use crate::error::Result;
use crate::watch::address::{self, UnixName};
use crate::watch::connection::StreamOptions;
use crate::watch::{TcpOptions, TlsOrder, Watch};

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
    /// How they speak TLS, and how many handshakes may be under way at once.
    pub tls: Option<(TlsOrder, usize)>,
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
        let accepting = Accepting {
            options: self.options,
            max_connections: self.max_connections,
            tls: self.tls,
        };
        let addresses = addresses.collect();
        let mut listener = Listener::new((sockets, mode), addresses, accepting);
        listener.file = file;
        Ok(Box::new(listener))
    }
}

/// What a listener does with the connections that it accepts.
#[derive(Debug)]
pub struct Accepting {
    /// Their options.
    pub options: StreamOptions,
    /// How many may be open at once.
    pub max_connections: u32,
    /// How they speak TLS, and how many handshakes may be under way at once.
    pub tls: Option<(TlsOrder, usize)>,
}
