//! Connects to one of several addresses, whichever answers first (RFC 8305).

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType};

use super::CancelledOps;
use crate::access::Principal;
use crate::clock::nanos;
use crate::driver::{Direction, Done, Driver, Lane, Nonblocking, Op, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::FailedAttempt;
use crate::proto::state::{KeptAttempt, KeptAttempts};
use crate::state::descriptor;
use crate::watch::address::{self, HostAddress};
use crate::watch::tcp::TcpOptions;
use crate::watch::{Alarm, Context, Lookup, Notice};

/// The largest number of addresses of a name that are tried, and so of attempts at once.
pub(super) const ADDRESSES_MAX: usize = 16;
/// The first and the longest delay before an address that could not be tried is tried again. The
/// delay doubles each time.
const RETRY_MIN: Duration = Duration::from_millis(1);
const RETRY_MAX: Duration = Duration::from_millis(100);
/// The first lane that attempts use.
const FIRST_LANE: u8 = 2;

/// How the attempts to connect are made.
#[derive(Debug)]
pub struct Dialling {
    /// The address to connect from; `None` lets the kernel choose.
    pub local: Option<HostAddress>,
    /// The port to connect from; 0 lets the kernel choose.
    pub local_port: u16,
    /// How long an attempt has no answer before the next one begins (RFC 8305's Connection Attempt
    /// Delay).
    pub delay: Duration,
    /// The number of addresses of the first family that are tried before the families take turns
    /// (RFC 8305's First Address Family Count); 0 keeps the resolver's order.
    pub interleave: usize,
    /// The options of each socket.
    pub options: TcpOptions,
}

impl Default for Dialling {
    fn default() -> Self {
        Self {
            local: None,
            local_port: 0,
            delay: Duration::from_millis(250),
            interleave: 1,
            options: TcpOptions::default(),
        }
    }
}

/// The progress of connecting.
#[derive(Debug)]
pub(super) struct Attempts {
    waiting: VecDeque<SocketAddrAny>,
    /// The attempts in progress, the oldest first.
    live: Vec<Attempt>,
    dialling: Dialling,
    /// The time before which no attempt begins, in nanoseconds of the monotonic clock.
    next: u64,
    retry: Duration,
    /// When connecting fails as a whole, in nanoseconds of the monotonic clock.
    deadline: u64,
    /// The lookup of the name, until its addresses are known.
    lookup: Option<Lookup>,
    /// The reason why connecting fails if no attempt succeeds.
    error: SystemError,
    /// The attempts that have failed.
    failed: Vec<FailedAttempt>,
}

#[derive(Debug)]
struct Attempt {
    lane: Lane,
    source: SourceId,
    to: SocketAddrAny,
}

/// Returns the addresses in the resolver's order, but with the address families alternating after
/// `count` addresses of the first one (RFC 8305, section 4). If that is 0, the order stays as it is.
fn interleave(addresses: impl Iterator<Item = SocketAddr>, count: usize) -> Vec<SocketAddr> {
    if count == 0 {
        return addresses.take(ADDRESSES_MAX).collect();
    }
    let mut first = VecDeque::new();
    let mut other = VecDeque::new();
    for address in addresses {
        let same = first
            .front()
            .is_none_or(|f: &SocketAddr| f.is_ipv6() == address.is_ipv6());
        if same { &mut first } else { &mut other }.push_back(address);
    }
    let ahead = first.len().min(count - 1).min(ADDRESSES_MAX);
    let mut found: Vec<_> = first.drain(..ahead).collect();
    while found.len() < ADDRESSES_MAX && !(first.is_empty() && other.is_empty()) {
        found.extend(first.pop_front());
        found.extend(other.pop_front());
    }
    found.truncate(ADDRESSES_MAX);
    found
}

impl Attempts {
    /// Returns attempts that fail at `deadline`, in nanoseconds of the monotonic clock.
    pub(super) fn new(deadline: u64, dialling: Dialling) -> Self {
        Self {
            waiting: VecDeque::new(),
            live: Vec::new(),
            dialling,
            next: 0,
            retry: RETRY_MIN,
            deadline,
            lookup: None,
            error: SystemError::new(Errno::TIMEDOUT, "connect", "no address answered in time"),
            failed: Vec::new(),
        }
    }

    /// Adds an address, to be tried after the others.
    pub(super) fn add(&mut self, address: impl Into<SocketAddrAny>) {
        self.waiting.push_back(address.into());
    }

    /// Resolves a name, whose addresses are tried once they are [known](Self::resolved).
    /// The lookup is a job of `owner`, which reports its result by a notice.
    pub(super) fn resolve(&mut self, cx: &Context<'_>, owner: &Principal, host: String, port: u16) {
        self.error.step = "resolve";
        let (key, notifier) = (cx.key(), Arc::clone(cx.notifier));
        let count = self.dialling.interleave;
        let work = move || match (host.as_str(), port).to_socket_addrs() {
            Ok(addresses) => Ok(interleave(addresses, count)),
            Err(error) => Err(SystemError::from_io(&error, "resolve", host).into()),
        };
        let tell = move |found| notifier.notify(key, Notice::Resolved(found));
        self.lookup = Some(cx.services.resolver.run(owner, work, tell));
    }

    pub(super) fn resolved(&mut self, cx: &mut Context<'_>, found: Result<Vec<SocketAddr>>) {
        self.lookup = None;
        self.error.step = "connect";
        match found {
            Ok(addresses) => self.waiting.extend(addresses.into_iter().map(Into::into)),
            Err(Error::System(error)) => self.error = error,
            Err(other) => {
                let detail = other.to_string();
                self.error = SystemError::new(Errno::IO, "resolve", detail);
            }
        }
        self.advance(cx);
    }

    /// Begins the attempts that are due, and sets the alarm.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>) {
        if cx.is_closing() {
            return;
        }
        let now = cx.now.monotonic;
        if now >= self.deadline {
            let step = if self.lookup.is_some() {
                "resolve"
            } else {
                "connect"
            };
            self.error = SystemError::new(Errno::TIMEDOUT, step, "connect_timeout");
            let silent = self.live.iter().map(|live| &live.to).chain(&self.waiting);
            let silent = silent.map(|to| failed_attempt(to, Errno::TIMEDOUT, "connect"));
            self.failed.extend(silent);
            self.fail(cx);
            return;
        }
        while now >= self.next
            && let Some(to) = self.waiting.pop_front()
        {
            self.begin(cx, to);
        }
        if self.live.is_empty() && self.waiting.is_empty() && self.lookup.is_none() {
            self.fail(cx);
            return;
        }
        let alarm = if self.waiting.is_empty() {
            self.deadline
        } else {
            self.next.min(self.deadline)
        };
        cx.set_alarm(Alarm::Monotonic(alarm));
    }

    /// Requests the end of the watch, because no attempt can succeed any more.
    fn fail(&mut self, cx: &mut Context<'_>) {
        let mut failed = std::mem::take(&mut self.failed);
        // A retry of a full backlog adds nothing, so there is one for each address.
        failed.truncate(ADDRESSES_MAX);
        cx.close_with_attempts(self.error.clone(), failed);
    }

    /// Records why an attempt failed.
    fn record(&mut self, to: &SocketAddrAny, error: SystemError) {
        let errno = Errno::from_raw_os_error(error.errno);
        self.failed.push(failed_attempt(to, errno, error.step));
        self.error = error;
    }

    fn begin(&mut self, cx: &mut Context<'_>, to: SocketAddrAny) {
        let delay = nanos(self.dialling.delay);
        self.next = cx.now.monotonic.saturating_add(delay);
        if !self.live.is_empty() && !cx.one_more_source() {
            // The loop has no source left for one more attempt: the oldest attempt is cancelled,
            // and this one begins when that has ended.
            cx.cancel(self.live[0].lane);
            self.waiting.push_front(to);
            return;
        }
        let lane = (FIRST_LANE..=u8::MAX)
            .map(Lane)
            .find(|lane| !cx.is_live(*lane));
        let source = self.socket(&to).map(|fd| cx.attach(fd, Nonblocking::Own));
        match (source, lane) {
            (Ok(Some(source)), Some(lane)) => {
                cx.start(lane, source, Op::Connect(Box::new(to.clone())));
                self.live.push(Attempt { lane, source, to });
            }
            // `attach` failed and has requested the end of the watch.
            (Ok(_), _) => {}
            (Err(error), _) => {
                self.record(&to, error);
                self.next = cx.now.monotonic;
                cx.keep_sources(1);
            }
        }
    }

    /// Makes the socket of an attempt.
    fn socket(&self, to: &SocketAddrAny) -> Result<OwnedFd, SystemError> {
        let failed = |errno, step| SystemError::new(errno, step, address::text(to));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let family = to.address_family();
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(|errno| failed(errno, "socket"))?;
        if family == AddressFamily::UNIX {
            return Ok(fd);
        }
        let set = self.dialling.options.set(fd.as_fd());
        set.map_err(|error| failed(Errno::from_raw_os_error(error.errno), "setsockopt"))?;
        if let Some(local) = self.local(family)? {
            bind(&fd, local).map_err(|errno| refused(errno, local))?;
        }
        Ok(fd)
    }

    /// Returns the address to connect from, if it is given, with its port.
    fn local(&self, family: AddressFamily) -> Result<Option<SocketAddr>, SystemError> {
        let port = self.dialling.local_port;
        let local = match &self.dialling.local {
            Some(local) => {
                let known = local.with_port(port);
                known.map_err(|errno| SystemError::new(errno, "bind", local.to_string()))?
            }
            None if port == 0 => return Ok(None),
            None if family == AddressFamily::INET6 => (Ipv6Addr::UNSPECIFIED, port).into(),
            None => (Ipv4Addr::UNSPECIFIED, port).into(),
        };
        if local.is_ipv6() != (family == AddressFamily::INET6) {
            return Err(refused(Errno::AFNOSUPPORT, local));
        }
        Ok(Some(local))
    }

    /// Returns what later lives need.
    pub(super) fn kept(&self, driver: &dyn Driver) -> KeptAttempts {
        let live = self.live.iter().filter_map(|attempt| {
            Some(KeptAttempt {
                descriptor: Some(descriptor(driver.fd(attempt.source)?)?),
                to: kept_address(&attempt.to),
            })
        });
        KeptAttempts {
            deadline: self.deadline,
            live: live.collect(),
            waiting: self.waiting.iter().map(kept_address).collect(),
            resolving: self.lookup.is_some(),
            failed: self.failed.clone(),
        }
    }

    /// Goes on with the attempts of an earlier life, whose sockets these are. `unix` is the address of
    /// all if they are no IP addresses.
    pub(super) fn go_on(
        &mut self,
        cx: &mut Context<'_>,
        kept: &KeptAttempts,
        sockets: Vec<Option<OwnedFd>>,
        unix: Option<&SocketAddrAny>,
    ) {
        let address = |text: &String| match text.parse::<SocketAddr>() {
            Ok(address) => Some(address.into()),
            Err(_) => unix.cloned(),
        };
        self.failed.clone_from(&kept.failed);
        self.waiting.extend(kept.waiting.iter().filter_map(address));
        for (attempt, socket) in kept.live.iter().zip(sockets) {
            let lane = (FIRST_LANE..=u8::MAX)
                .map(Lane)
                .find(|lane| !cx.is_live(*lane));
            let (Some(lane), Some(to), Some(socket)) = (lane, address(&attempt.to), socket) else {
                continue;
            };
            let Some(source) = cx.attach(socket, Nonblocking::Own) else {
                return;
            };
            // It may have connected meanwhile, or not have begun.
            cx.start(lane, source, Op::Ready(Direction::Write));
            self.live.push(Attempt { lane, source, to });
            let delay = nanos(self.dialling.delay);
            self.next = cx.now.monotonic.saturating_add(delay);
        }
    }

    /// Handles a completion of an attempt. Once one is connected, cancels the others and returns
    /// its source and those others.
    pub(super) fn complete(
        &mut self,
        cx: &mut Context<'_>,
        lane: Lane,
        done: &Done,
    ) -> Option<(SourceId, CancelledOps)> {
        let at = self.live.iter().position(|live| live.lane == lane)?;
        let Attempt { source, to, .. } = self.live.remove(at);
        let found = match (done, cx.fd(source)) {
            (Done::Ready(_), Some(fd)) => look_at(fd),
            _ => None,
        };
        if let (Done::Ready(_), None) = (done, &found) {
            cx.start(lane, source, Op::Connect(Box::new(to.clone())));
            self.live.insert(at, Attempt { lane, source, to });
            return None;
        }
        let failed = match *found.as_ref().unwrap_or(done) {
            Done::Connected if cx.is_closing() => None,
            // The socket is connected to itself: nobody listens on the port, and the kernel has
            // chosen the same one as the local port.
            Done::Connected if cx.fd(source).is_some_and(is_self_connected) => {
                Some(Errno::CONNREFUSED)
            }
            Done::Connected => {
                let losers = std::mem::take(&mut self.live).into_iter();
                let losers: CancelledOps = losers.map(|live| (live.lane, live.source)).collect();
                for (lane, _) in &losers {
                    cx.cancel(*lane);
                }
                return Some((source, losers));
            }
            Done::Failed(errno) => Some(errno),
            _ => None,
        };
        self.next = cx.now.monotonic;
        match failed {
            // The backlog of a Unix socket is full. Its non-blocking connect(2) does not wait for
            // room, so it is retried.
            Some(Errno::AGAIN) => {
                self.waiting.push_front(to);
                self.next = self.next.saturating_add(nanos(self.retry));
                self.retry = RETRY_MAX.min(self.retry * 2);
            }
            Some(errno) => {
                self.record(&to, SystemError::new(errno, "connect", address::text(&to)));
            }
            None => {}
        }
        cx.release(source);
        cx.keep_sources(1);
        self.advance(cx);
        None
    }
}

/// Returns an address as text; empty for that of a Unix socket.
fn kept_address(address: &SocketAddrAny) -> String {
    let inet = SocketAddr::try_from(address.clone());
    inet.map(|inet| inet.to_string()).unwrap_or_default()
}

/// Returns how an attempt of an earlier life has ended; `None` if it has not begun.
fn look_at(socket: BorrowedFd<'_>) -> Option<Done> {
    match rustix::net::sockopt::socket_error(socket) {
        Ok(Err(errno)) | Err(errno) => Some(Done::Failed(errno)),
        Ok(Ok(())) => rustix::net::getpeername(socket)
            .is_ok()
            .then_some(Done::Connected),
    }
}

/// Binds a socket to the address to connect from.
fn bind(fd: &OwnedFd, local: SocketAddr) -> Result<(), Errno> {
    if local.port() == 0 {
        // Without this, each port of the address would serve one connection only, whatever its
        // destination. Without the option, connecting still works.
        let _ = nix::sys::socket::setsockopt(fd, IpBindAddressNoPort, &true);
    } else {
        // Attempts side by side have the same port, and earlier connections may be in TIME_WAIT.
        rustix::net::sockopt::set_socket_reuseaddr(fd, true)?;
    }
    rustix::net::bind(fd, &local)
}

/// Returns the error of binding to the address to connect from, which it names.
fn refused(errno: Errno, local: SocketAddr) -> SystemError {
    let shown = match local.port() {
        0 => address::ip_text(&local),
        _ => address::text(&local.into()),
    };
    SystemError::new(errno, "bind", shown)
}

fn failed_attempt(to: &SocketAddrAny, errno: Errno, step: &'static str) -> FailedAttempt {
    FailedAttempt {
        address: address::describe(to),
        error: Some((&SystemError::new(errno, step, "")).into()),
    }
}

/// Returns whether a socket is connected to itself (TCP's simultaneous open, RFC 9293, section
/// 3.5).
fn is_self_connected(socket: BorrowedFd<'_>) -> bool {
    let local = rustix::net::getsockname(socket).ok();
    let peer = rustix::net::getpeername(socket).ok().flatten();
    let internet = |name| SocketAddr::try_from(name).ok();
    let local = local.and_then(internet);
    local.is_some() && local == peer.and_then(internet)
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
        assert_eq!(interleave(found.iter().map(parse), 1), expected);

        let mixed = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1", "1.1.1.2:1"];
        let expected: Vec<_> = mixed.iter().map(parse).collect();
        assert_eq!(interleave(found.iter().map(parse), 2), expected);
        let as_found: Vec<_> = found.iter().map(parse).collect();
        assert_eq!(interleave(found.iter().map(parse), 0), as_found);
        assert_eq!(interleave(found.iter().map(parse), 16), as_found);
        for count in [0, 1, 5, 16] {
            let many = (0..40).map(|n| SocketAddr::from(([10, 0, 0, n], 1)));
            assert_eq!(interleave(many, count).len(), ADDRESSES_MAX);
        }
    }

    #[test]
    fn a_connection_to_its_own_port_is_known() {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        rustix::net::bind(&socket, &any).unwrap();
        let own = rustix::net::getsockname(&socket).unwrap();
        rustix::net::connect(&socket, &own).unwrap();
        assert!(is_self_connected(socket.as_fd()));

        let listener = std::net::TcpListener::bind(any).unwrap();
        let other = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!is_self_connected(other.as_fd()));
        let (unix, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_self_connected(unix.as_fd()));
    }
}
