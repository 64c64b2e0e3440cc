//! Connecting to one of several addresses, whichever answers first (RFC 8305).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType};

use crate::clock::nanos;
use crate::driver::{Lane, Nonblocking, Op, SourceId};
use crate::error::SystemError;
use crate::watch::{Alarm, Context, Notice};

/// Most addresses of a name that are tried.
pub(super) const ADDRESSES_MAX: usize = 16;
/// Attempts under way at once: as many sources are set aside.
pub(super) const ATTEMPTS_AT_ONCE: usize = 2;
/// RFC 8305's Connection Attempt Delay.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How far connecting is.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) waiting: VecDeque<SocketAddrAny>,
    pub(super) live: Vec<(Lane, SourceId)>,
    pub(super) local: Option<IpAddr>,
    pub(super) next_lane: u8,
    /// When connecting fails as a whole, monotonic nanoseconds.
    pub(super) deadline: u64,
    pub(super) resolving: bool,
    pub(super) error: SystemError,
}

/// Has a name resolved elsewhere.
pub(super) fn resolve(cx: &Context<'_>, host: String, port: u16) {
    let (key, notifier) = (cx.key(), std::sync::Arc::clone(cx.notifier));
    cx.services.runtime.spawn_blocking(move || {
        let found = (host.as_str(), port).to_socket_addrs();
        let found = match found {
            Ok(addresses) => Ok(alternate(addresses)),
            Err(error) => Err(SystemError::from_io(&error, "resolve", host)),
        };
        notifier.notify(key, Notice::Resolved(found));
    });
}

/// The resolver's order, but families take turns (RFC 8305, section 4).
fn alternate(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut first = VecDeque::new();
    let mut other = VecDeque::new();
    for address in addresses {
        let same = first
            .front()
            .is_none_or(|f: &SocketAddr| f.is_ipv6() == address.is_ipv6());
        if same { &mut first } else { &mut other }.push_back(address);
    }
    let mut found = Vec::new();
    while found.len() < ADDRESSES_MAX && !(first.is_empty() && other.is_empty()) {
        found.extend(first.pop_front());
        found.extend(other.pop_front());
    }
    found
}

impl Attempts {
    /// Starts the next attempt if it is time for one, and sets the alarm. `delayed`: the
    /// delay after the attempt before is over.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>, delayed: bool) {
        if cx.is_closing() {
            return;
        }
        if cx.now.monotonic >= self.deadline {
            cx.fail_with(SystemError::new(
                Errno::TIMEDOUT,
                self.error.step,
                "connect_timeout",
            ));
            return;
        }
        let due = self.live.is_empty() || delayed;
        while due && self.live.len() < ATTEMPTS_AT_ONCE {
            let Some(address) = self.waiting.pop_front() else {
                break;
            };
            match self.socket(cx, &address) {
                Ok(source) => {
                    let lane = Lane(self.next_lane);
                    self.next_lane += 1;
                    self.live.push((lane, source));
                    cx.start(lane, source, Op::Connect(Box::new(address)));
                    break;
                }
                Err(error) => self.error = error,
            }
        }
        if self.live.is_empty() && self.waiting.is_empty() && !self.resolving {
            cx.fail_with(self.error.clone());
            return;
        }
        let next = cx.now.monotonic.saturating_add(nanos(ATTEMPT_DELAY));
        let alarm = if self.waiting.is_empty() {
            self.deadline
        } else {
            next.min(self.deadline)
        };
        cx.set_alarm(Alarm::Monotonic(alarm));
    }

    fn socket(&self, cx: &mut Context<'_>, to: &SocketAddrAny) -> Result<SourceId, SystemError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let failed = |errno, step| SystemError::new(errno, step, "");
        let family = to.address_family();
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(|errno| failed(errno, "socket"))?;
        if family != AddressFamily::UNIX {
            // Small writes go out at once, as asyncio does since 3.6.
            rustix::net::sockopt::set_tcp_nodelay(&fd, true).map_err(|e| failed(e, "socket"))?;
        }
        if let Some(local) = self.local {
            rustix::net::bind(&fd, &SocketAddr::new(local, 0)).map_err(|e| failed(e, "bind"))?;
        }
        cx.attach(fd, Nonblocking::Own)
            .ok_or_else(|| failed(Errno::NOSPC, "watch"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_in_the_order_of_the_resolver() {
        let parse = |s: &&str| s.parse::<SocketAddr>().unwrap();
        let found = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.2:1"];
        let mixed = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"];
        let expected: Vec<_> = mixed.iter().map(parse).collect();
        assert_eq!(alternate(found.iter().map(parse)), expected);
    }
}
