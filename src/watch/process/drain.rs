//! The pipes of watches that have ended, with a writer that lives on. Closed, they would end it
//! by SIGPIPE at its next write: what it writes is read and discarded instead.

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

use crate::event::Stream;
use crate::sys;
use crate::watch::services::{Count, Permit};

/// Bytes of one read; as many as a pipe holds, if nobody has changed that.
const PIECE: usize = 64 << 10;
/// Between one read, of whichever pipe, and the next. It bounds what all pipes together cost, to a
/// thousand reads and 64 MiB a second; a writer that is faster waits, as for any reader.
const PAUSE: Duration = Duration::from_millis(1);

/// Bounds of a [`Drain`].
#[derive(Debug, Clone, Copy)]
pub struct DrainLimits {
    /// Pipes at once.
    pub pipes: usize,
    /// Bytes of one pipe.
    pub bytes: u64,
    /// How long one pipe is read.
    pub time: Duration,
}

/// Reads pipes to their ends, in turns, and discards what comes.
#[derive(Debug)]
pub struct Drain {
    runtime: Handle,
    limits: DrainLimits,
    pipes: Arc<Count>,
    discarded: AtomicU64,
    /// Whose turn it is to read, and where to.
    turn: Mutex<Box<[u8; PIECE]>>,
}

impl Drain {
    /// With nothing to read yet.
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

    /// Pipes that are read now.
    #[must_use]
    pub fn pipes(&self) -> usize {
        self.pipes.used()
    }

    /// Bytes discarded so far.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// Takes the reading end (non-blocking) of a child's stream. Beyond the bounds it is closed.
    pub(super) fn take(self: &Arc<Self>, pipe: OwnedFd, pid: i32, stream: Stream) {
        let span = tracing::info_span!("drain", pid, ?stream);
        match self.pipes.take() {
            Ok(permit) => {
                let reading = Arc::clone(self).read(pipe, permit);
                self.runtime.spawn(reading.instrument(span));
            }
            Err(error) => span.in_scope(|| closed(&error)),
        }
    }

    async fn read(self: Arc<Self>, pipe: OwnedFd, _permit: Permit) {
        let pipe = match sys::async_fd(Arc::new(pipe), Interest::READABLE) {
            Ok(pipe) => pipe,
            Err(error) => return closed(&error),
        };
        tracing::info!("the pipe of a watch that has ended is read on: what comes is discarded");
        let DrainLimits { bytes, time, .. } = self.limits;
        match tokio::time::timeout(time, self.read_all(&pipe)).await {
            Ok(Ok(true)) => tracing::debug!("nobody holds the pipe any longer"),
            Ok(Ok(false)) => closed(&format_args!("{bytes} bytes were discarded (drain_bytes)")),
            Ok(Err(error)) => closed(&error),
            Err(_) => closed(&format_args!("it was read for {time:?} (drain_time)")),
        }
    }

    /// Reads to the end of file; false: there may be more than it may read.
    async fn read_all(&self, pipe: &AsyncFd<Arc<OwnedFd>>) -> std::io::Result<bool> {
        let mut left = self.limits.bytes;
        while left > 0 {
            let mut ready = pipe.readable().await?;
            let mut turn = self.turn.lock().await;
            match rustix::io::read(pipe, &mut turn[..]) {
                Ok(0) => return Ok(true),
                Ok(read) => {
                    let read = read as u64;
                    self.discarded.fetch_add(read, Ordering::Relaxed);
                    left = left.saturating_sub(read);
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            // With the turn: the others wait as well.
            tokio::time::sleep(PAUSE).await;
        }
        Ok(false)
    }
}

fn closed(why: &dyn std::fmt::Display) {
    tracing::warn!(%why, "the pipe is closed, and its writers get SIGPIPE");
}
