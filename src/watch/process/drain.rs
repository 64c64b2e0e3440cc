//! Reads the pipes of watches that have ended and whose writer lives on. If such a pipe were
//! closed, the writer's next write would end the writer by SIGPIPE. So the pipe is read on, and its
//! bytes are discarded. The same holds for a terminal, whose processes would get SIGHUP.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tracing::Instrument as _;

use crate::descriptors::Closing;
use crate::event::Stream;
use crate::sys;
use crate::watch::services::{Count, Permit};

/// The largest number of bytes of one read; the default capacity of a pipe.
const PIECE: usize = 64 << 10;
/// The pause after each read of any pipe. It limits the cost of all pipes together to a thousand
/// reads and 64 MiB a second. A faster writer waits, as for any reader.
const PAUSE: Duration = Duration::from_millis(1);

/// The limits of a [`Drain`].
#[derive(Debug, Clone, Copy)]
pub struct DrainLimits {
    /// The largest number of pipes at once.
    pub pipes: usize,
    /// The largest number of bytes read from one pipe.
    pub bytes: u64,
    /// The longest time for which one pipe is read.
    pub time: Duration,
}

/// Reads pipes to their ends, one read at a time, and discards the bytes.
#[derive(Debug)]
pub struct Drain {
    runtime: Handle,
    limits: DrainLimits,
    pipes: Arc<Count>,
    discarded: AtomicU64,
    /// The buffer. The task that has it may read.
    turn: Mutex<Box<[u8; PIECE]>>,
}

impl Drain {
    /// Returns a drain without pipes.
    #[must_use]
    pub fn new(runtime: Handle, limits: DrainLimits) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            limits,
            pipes: Count::new("children.drained_pipes", limits.pipes),
            discarded: AtomicU64::new(0),
            turn: Mutex::new(Box::new([0; PIECE])),
        })
    }

    /// Returns the number of pipes that are being read.
    #[must_use]
    pub fn pipes(&self) -> usize {
        self.pipes.used()
    }

    /// Returns the number of bytes discarded so far.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// Reads the read end (non-blocking) of a child's stream to its end. Closes it if a limit is
    /// reached.
    pub(in crate::watch) fn take(self: &Arc<Self>, pipe: OwnedFd, pid: i32, stream: Stream) {
        let span = tracing::info_span!("drain", pid, ?stream);
        match self.pipes.take() {
            Ok(permit) => {
                let reading = Arc::clone(self).read(pipe, permit);
                self.runtime.spawn(reading.instrument(span));
            }
            Err(error) => span.in_scope(|| log_closed(&error)),
        }
    }

    async fn read(self: Arc<Self>, pipe: OwnedFd, _permit: Permit) {
        // Dropped after the pipe.
        let _closing = Closing;
        let pipe = match sys::async_fd(Arc::new(pipe), Interest::READABLE) {
            Ok(pipe) => pipe,
            Err(error) => return log_closed(&error),
        };
        tracing::info!("reading the pipe of a watch that has ended; its bytes are discarded");
        let DrainLimits { bytes, time, .. } = self.limits;
        match tokio::time::timeout(time, self.read_all(&pipe)).await {
            Ok(Ok(true)) => tracing::debug!("the pipe has no writer any more"),
            Ok(Ok(false)) => {
                log_closed(&format_args!("{bytes} bytes were discarded (drain_bytes)"));
            }
            Ok(Err(error)) => log_closed(&error),
            Err(_) => log_closed(&format_args!("it was read for {time:?} (drain_time)")),
        }
    }

    /// Reads up to the limit on bytes. Returns whether the pipe ended.
    async fn read_all(&self, pipe: &AsyncFd<Arc<OwnedFd>>) -> std::io::Result<bool> {
        let mut left = self.limits.bytes;
        while left > 0 {
            let mut ready = pipe.readable().await?;
            let mut turn = self.turn.lock().await;
            match rustix::io::read(pipe, &mut turn[..]) {
                // The second one is a terminal that no process has open any more.
                Ok(0) | Err(Errno::IO) => return Ok(true),
                Ok(read) => {
                    let read = read as u64;
                    self.discarded.fetch_add(read, Ordering::Relaxed);
                    left = left.saturating_sub(read);
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            // Sleeps while it holds the buffer, so that the other pipes wait as well.
            tokio::time::sleep(PAUSE).await;
        }
        Ok(false)
    }
}

fn log_closed(why: &dyn std::fmt::Display) {
    tracing::warn!(%why, "closing the pipe; its writers get SIGPIPE");
}
