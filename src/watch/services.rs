//! The services that all loops of a daemon share, for their watches.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{AddressFamily, sockopt};

use super::process::{Drain, Reaper};
use super::{Attributes, Handshakes, Links, Notice, Resolver, Starters, TimeZones};
use crate::cgroup::Cgroups;
use crate::descriptors::Closing;
use crate::driver::Key;
use crate::error::{Error, Result};
use crate::signals::SignalHub;
use crate::state::Starts;
use crate::tls::Sections;

/// Sends reports to a watch from outside its loop's thread.
pub trait Notifier: Send + Sync + fmt::Debug {
    /// Sends a notice, which is lost if the watch is gone. Each operation that causes notices has
    /// at most one that is not handled yet, so their number is bounded.
    fn notify(&self, to: Key, notice: Notice);
}

/// The limits of a transport.
#[derive(Debug, Clone, Copy)]
pub struct TransportLimits {
    /// The largest number of bytes of one read.
    pub read_size: usize,
    /// The largest number of unsent bytes that a transport holds; beyond it, Write takes no more.
    pub write_buffer: usize,
    /// The number of unsent bytes above which a transport appends WritePaused. WriteResumed follows
    /// at a quarter of it.
    pub high_water: usize,
    /// How long a transport that is closed in order may take to send the bytes that it holds.
    pub close_linger: Duration,
}

/// The services that all loops share.
#[derive(Debug)]
pub struct Services {
    /// The runtime on which blocking work runs.
    pub runtime: tokio::runtime::Handle,
    /// The one thread that receives signals.
    pub signals: Arc<SignalHub>,
    /// The time zones of calendars.
    pub time_zones: Arc<TimeZones>,
    /// The limits of transports.
    pub transport: TransportLimits,
    /// How long other processes may keep the output of an ended child open.
    pub pipe_grace: Duration,
    /// The time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// How long a pid watch waits until its process is reaped.
    pub reap_wait: Duration,
    /// The most bytes of changes that wait in one path watch.
    pub path_inbox: usize,
    /// The configured attributes of children, which their spec can override.
    pub configured: Attributes,
    /// The attributes that children would inherit if the daemon had not changed its own.
    pub own: Attributes,
    /// The cgroups of children.
    pub cgroups: Arc<Cgroups>,
    /// The count of running children, with its limit.
    pub children: Arc<Count>,
    /// The count of the watches of all loops, with its limit.
    pub watches: Arc<Count>,
    /// The reaper of children whose watch has left them to it.
    pub reaper: Reaper,
    /// Where starts of children stand for later lives; `None` if none comes.
    pub starts: Option<Arc<Starts>>,
    /// The reader of pipes whose watch has ended.
    pub drain: Arc<Drain>,
    /// The threads on which the blocking part of registrations runs.
    pub starters: Starters,
    /// The threads on which names are resolved.
    pub resolver: Resolver,
    /// The interfaces of the host.
    pub links: Arc<Links>,
    /// The certificates and keys of the configuration.
    pub tls: Arc<Sections>,
    /// The threads on which handshakes of TLS run.
    pub handshakes: Handshakes,
    /// The closer of sockets whose close(2) may block.
    pub closer: Closer,
}

/// A count with a limit.
#[derive(Debug)]
pub struct Count {
    name: &'static str,
    limit: usize,
    used: AtomicUsize,
}

/// One unit of a [`Count`], which is released on drop.
#[derive(Debug)]
pub struct Permit(Arc<Count>);

impl Count {
    /// Returns a count of at most `limit`; `name` is the name of the limit in the configuration.
    #[must_use]
    pub fn new(name: &'static str, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            limit,
            used: AtomicUsize::new(0),
        })
    }

    /// Takes one unit, until the permit is dropped.
    ///
    /// # Errors
    /// [`Error::Limit`] if all units are taken.
    pub fn take(self: &Arc<Self>) -> Result<Permit> {
        self.acquire().map(|()| Permit(Arc::clone(self)))
    }

    /// Takes one unit, until [`Count::release`].
    ///
    /// # Errors
    /// [`Error::Limit`] if all units are taken.
    pub fn acquire(&self) -> Result<()> {
        let more = |used| (used < self.limit).then_some(used + 1);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map(drop)
            .map_err(|_| Error::limit(self.name, self.limit as u64))
    }

    /// Releases one acquired unit.
    pub fn release(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns how many units are taken.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Services {
    /// Closes a file descriptor, off the loop's thread if close(2) can block. A socket with
    /// SO_LINGER waits for its peer (socket(7)); if the socket is `shared`, another process may set
    /// SO_LINGER at any moment. A terminal waits for its output.
    pub fn close(&self, fd: OwnedFd, shared: bool) {
        // Dropped after the descriptor.
        let fd = (fd, Closing);
        match sockopt::socket_domain(&fd.0) {
            Ok(AddressFamily::UNIX) => drop(fd),
            Ok(_) => {
                let linger = sockopt::socket_linger(&fd.0);
                if matches!(linger, Ok(Some(time)) if !time.is_zero()) {
                    self.runtime.spawn_blocking(move || drop(fd));
                } else if shared {
                    self.closer.close(&self.runtime, fd);
                }
            }
            Err(_) if rustix::termios::isatty(&fd.0) => {
                self.runtime.spawn_blocking(move || drop(fd));
            }
            Err(_) => drop(fd),
        }
    }
}

/// Closes sockets, many in one job, on a thread that may block.
#[derive(Debug, Clone, Default)]
pub struct Closer(Arc<Mutex<Vec<(OwnedFd, Closing)>>>);

impl Closer {
    fn close(&self, runtime: &tokio::runtime::Handle, fd: (OwnedFd, Closing)) {
        let mut waiting = self.0.lock();
        waiting.push(fd);
        if waiting.len() == 1 {
            // The job closes all sockets that are queued before it starts. If one of them blocks,
            // only the sockets of the same job wait with it.
            let waiting = Arc::clone(&self.0);
            runtime.spawn_blocking(move || {
                let taken = std::mem::take(&mut *waiting.lock());
                drop(taken);
            });
        }
    }
}
