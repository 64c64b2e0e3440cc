//! What all loops of a daemon share, for their watches.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{AddressFamily, sockopt};

use super::process::{Drain, Reaper};
use super::{Attributes, Notice, Starters};
use crate::driver::Key;
use crate::error::{Error, Result};
use crate::signals::SignalHub;

/// Reports to a watch from outside its loop's thread.
pub trait Notifier: Send + Sync + fmt::Debug {
    /// Hands a notice over; lost if the watch is gone. The number of notices on their
    /// way is bounded by the operations that cause them: one each.
    fn notify(&self, to: Key, notice: Notice);
}

/// Bounds of a transport.
#[derive(Debug, Clone, Copy)]
pub struct TransportLimits {
    /// Bytes of one read.
    pub read_size: usize,
    /// Bytes held unsent before Write takes no more.
    pub write_buffer: usize,
    /// Unsent bytes above which a transport says WritePaused; WriteResumed comes at a quarter.
    pub high_water: usize,
    /// How long a transport that is closed in order may take to send what it holds.
    pub close_linger: Duration,
}

/// What all loops share.
#[derive(Debug)]
pub struct Services {
    /// Where blocking work runs.
    pub runtime: tokio::runtime::Handle,
    /// The one thread that takes signals.
    pub signals: Arc<SignalHub>,
    /// Bounds of transports.
    pub transport: TransportLimits,
    /// How long others may keep an ended child's output open.
    pub pipe_grace: Duration,
    /// Between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// What children have unless their spec says otherwise.
    pub configured: Attributes,
    /// What they would have of the daemon, had it not changed it for itself.
    pub own: Attributes,
    /// Children that run, and how many may.
    pub children: Arc<Count>,
    /// Watches of all loops, and how many there may be.
    pub watches: Arc<Count>,
    /// Who reaps children that were let go.
    pub reaper: Reaper,
    /// Who reads the pipes of watches that have ended.
    pub drain: Arc<Drain>,
    /// Where the blocking part of registrations runs.
    pub starters: Starters,
    /// Who closes what may block.
    pub closer: Closer,
}

/// A count with a bound.
#[derive(Debug)]
pub struct Count {
    name: &'static str,
    limit: usize,
    used: AtomicUsize,
}

/// One of a [`Count`], given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Count>);

impl Count {
    /// At most `limit`; `name` is the limit's in the configuration.
    #[must_use]
    pub fn new(name: &'static str, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            limit,
            used: AtomicUsize::new(0),
        })
    }

    /// Takes one, until the permit is dropped.
    ///
    /// # Errors
    /// [`Error::Limit`] when all are taken.
    pub fn take(self: &Arc<Self>) -> Result<Permit> {
        self.acquire().map(|()| Permit(Arc::clone(self)))
    }

    /// Takes one, until [`Count::release`].
    ///
    /// # Errors
    /// [`Error::Limit`] when all are taken.
    pub fn acquire(&self) -> Result<()> {
        let more = |used| (used < self.limit).then_some(used + 1);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map(drop)
            .map_err(|_| Error::limit(self.name, self.limit as u64))
    }

    /// Gives one back that was acquired.
    pub fn release(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many are taken.
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
    /// Closes a file descriptor, off the loop's thread if that can block: a socket with SO_LINGER
    /// set waits for its peer (socket(7)), which whoever `shared` says has it too may set at any
    /// moment; a terminal waits for its output.
    pub fn close(&self, fd: OwnedFd, shared: bool) {
        match sockopt::socket_domain(&fd) {
            Ok(AddressFamily::UNIX) => drop(fd),
            Ok(_) => {
                let linger = sockopt::socket_linger(&fd);
                if matches!(linger, Ok(Some(time)) if !time.is_zero()) {
                    self.runtime.spawn_blocking(move || drop(fd));
                } else if shared {
                    self.closer.close(&self.runtime, fd);
                }
            }
            Err(_) if rustix::termios::isatty(&fd) => {
                self.runtime.spawn_blocking(move || drop(fd));
            }
            Err(_) => drop(fd),
        }
    }
}

/// Closes sockets, many at once, on a thread where it may block.
#[derive(Debug, Clone, Default)]
pub struct Closer(Arc<Mutex<Vec<OwnedFd>>>);

impl Closer {
    fn close(&self, runtime: &tokio::runtime::Handle, fd: OwnedFd) {
        let mut waiting = self.0.lock();
        waiting.push(fd);
        if waiting.len() == 1 {
            // It takes those that come until it begins. Where one blocks after all, only those
            // that it took wait with it.
            let waiting = Arc::clone(&self.0);
            runtime.spawn_blocking(move || {
                let taken = std::mem::take(&mut *waiting.lock());
                drop(taken);
            });
        }
    }
}
