//! Options of TCP sockets.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::sockopt;

use crate::error::SystemError;

/// The options of a TCP socket, see tcp(7). What is `None` is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Whether small writes are sent at once.
    pub nodelay: Option<bool>,
    /// How a silent peer is asked whether it is still there.
    pub keep_alive: Option<KeepAlive>,
    /// How long sent bytes may stay unacknowledged, milliseconds.
    pub user_timeout: Option<u32>,
}

/// When and how often a silent peer is asked. What is `None` is as the kernel is set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeepAlive {
    /// How long nothing is received before the peer is asked, whole seconds.
    pub idle: Option<Duration>,
    /// The time between two questions, whole seconds.
    pub interval: Option<Duration>,
    /// The number of questions without an answer after which the connection ends.
    pub count: Option<u32>,
}

impl TcpOptions {
    /// Sets the options on a socket.
    ///
    /// # Errors
    /// It is not a TCP socket, or the kernel refuses a value.
    pub fn set(&self, socket: BorrowedFd<'_>) -> Result<(), SystemError> {
        let set = |option, result: rustix::io::Result<()>| {
            result.map_err(|errno| SystemError::new(errno, "setsockopt", option))
        };
        if let Some(nodelay) = self.nodelay {
            let result = sockopt::set_tcp_nodelay(socket, nodelay);
            set("TCP_NODELAY", result)?;
        }
        if let Some(keep_alive) = &self.keep_alive {
            set("SO_KEEPALIVE", sockopt::set_socket_keepalive(socket, true))?;
            if let Some(idle) = keep_alive.idle {
                set("TCP_KEEPIDLE", sockopt::set_tcp_keepidle(socket, idle))?;
            }
            if let Some(interval) = keep_alive.interval {
                let result = sockopt::set_tcp_keepintvl(socket, interval);
                set("TCP_KEEPINTVL", result)?;
            }
            if let Some(count) = keep_alive.count {
                set("TCP_KEEPCNT", sockopt::set_tcp_keepcnt(socket, count))?;
            }
        }
        if let Some(timeout) = self.user_timeout {
            let result = sockopt::set_tcp_user_timeout(socket, timeout);
            set("TCP_USER_TIMEOUT", result)?;
        }
        Ok(())
    }
}
