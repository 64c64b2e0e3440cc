//! Writes input of evloopctl to a watch: the stdin of a process, a connection or a pipe.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::isatty;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Notify;

use super::failure::Failure;
use super::session::{Session, answer};
use super::terminal::is_foreground;
use crate::proto::{LoopRef, WatchRef, WriteEofRequest, WriteRequest};

/// The largest number of bytes that are read at a time.
const CHUNK: usize = 64 * 1024;
/// The number of unsent bytes above which the daemon reports `WritePaused`. It reports `WriteResumed` once there are fewer.
const HIGH_WATER: u64 = 64 * 1024;
/// The longest wait for `WriteResumed` before the next attempt to write: the event may have come before evloopctl read
/// events.
const RECHECK: Duration = Duration::from_secs(1);
/// The largest number of attempts of a call whose connection breaks.
const ATTEMPTS_MAX: u32 = 8;
/// The time between two attempts.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// How sending the input ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The daemon has taken all input, and the end of the input if it was to be sent.
    Sent,
    /// The terminal from which the input came is closed.
    TerminalLost,
    /// Reading the input failed; the end of the input was not sent.
    Unreadable(io::Error),
}

/// Writes to one watch.
pub(super) struct Feeder<'a> {
    pub(super) session: &'a Session,
    pub(super) loop_ref: Option<LoopRef>,
    pub(super) watch: WatchRef,
    /// Notified of each `WriteResumed` event of the watch.
    pub(super) resumed: &'a Notify,
    /// Whether the end of the input ends the outgoing direction.
    pub(super) eof: bool,
}

impl Feeder<'_> {
    /// Sends all of `input` after the bytes that the watch has taken before.
    ///
    /// # Errors
    /// The daemon refuses a write, or the connection stays broken.
    pub(super) async fn send(&self, mut input: impl AsyncRead + Unpin) -> Result<Ended, Failure> {
        let terminal = isatty(io::stdin());
        let mut taken = self.write(Bytes::new(), None).await?.0;
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            buffer.reserve(CHUNK);
            let read = input.read_buf(&mut buffer).await;
            if terminal && !matches!(read, Ok(1..)) && hung_up(io::stdin()) {
                return Ok(Ended::TerminalLost);
            }
            match read {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Ok(Ended::Unreadable(error)),
            }
            taken = self.all(taken, buffer.split().freeze()).await?;
        }
        if self.eof {
            self.end().await?;
        }
        Ok(Ended::Sent)
    }

    /// Sends `data` at the offset `at`, as fast as the watch takes it. Returns the offset after it.
    async fn all(&self, mut at: u64, mut data: Bytes) -> Result<u64, Failure> {
        while !data.is_empty() {
            let (taken, buffered) = self.write(data.clone(), Some(at)).await?;
            let accepted = usize::try_from(taken.saturating_sub(at)).unwrap_or(usize::MAX);
            let rest = data.split_off(accepted.min(data.len()));
            let paused = buffered > HIGH_WATER || !rest.is_empty();
            (at, data) = (taken, rest);
            if paused {
                // After a timeout too, the next write shows whether the watch takes bytes.
                let _ = tokio::time::timeout(RECHECK, self.resumed.notified()).await;
            }
        }
        Ok(at)
    }

    /// Writes once. Returns how many bytes the watch has taken in all, and how many of them are unsent.
    async fn write(&self, data: Bytes, offset: Option<u64>) -> Result<(u64, u64), Failure> {
        let request = WriteRequest {
            r#loop: self.loop_ref.clone(),
            watch: Some(self.watch.clone()),
            data,
            offset,
            ..WriteRequest::default()
        };
        let response =
            retried(async || answer(self.session.transports().write(request.clone()).await));
        let response = response.await?;
        Ok((response.taken, response.buffered_bytes))
    }

    /// Ends the outgoing direction.
    pub(super) async fn end(&self) -> Result<(), Failure> {
        let request = WriteEofRequest {
            r#loop: self.loop_ref.clone(),
            watch: Some(self.watch.clone()),
            ..WriteEofRequest::default()
        };
        let ended =
            retried(async || answer(self.session.transports().write_eof(request.clone()).await));
        ended.await.map(drop)
    }
}

/// Makes a call, and makes it again after its connection broke. Repeats are safe: a write carries its offset, and a
/// second end of the input changes nothing.
async fn retried<T>(call: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut attempts = 1;
    loop {
        match call().await {
            Err(failure) if failure.lost && attempts < ATTEMPTS_MAX => {
                attempts += 1;
                tokio::time::sleep(RETRY_WAIT).await;
            }
            answered => return answered,
        }
    }
}

/// Returns whether the daemon refused the call because the watch or its loop does not exist, has ended, or takes no bytes.
pub(super) fn refused(failure: &Failure) -> bool {
    let reasons = [
        "WATCH_CLOSED",
        "WRONG_STATE",
        "WATCH_NOT_FOUND",
        "LOOP_NOT_FOUND",
    ];
    reasons.contains(&failure.reason.as_str())
}

/// Returns whether evloopctl is a background job of its terminal. The kernel stops a background job that reads the
/// terminal (SIGTTIN).
pub(super) fn in_background() -> bool {
    is_foreground(io::stdin()) == Some(false)
}

/// Returns whether the terminal is closed. A read returns its end also for Ctrl-D, after which it is still open.
fn hung_up(terminal: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&terminal, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let _ = poll(&mut fds, Some(&at_once));
    fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
}
