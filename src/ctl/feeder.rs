//! Our input, on its way into a process's stdin or another transport.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{isatty, tcgetpgrp};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Notify;

use super::failure::Failure;
use super::session::{Session, answer};
use crate::proto::{LoopRef, WatchRef, WriteEofRequest, WriteRequest};

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;
/// Above so many unsent bytes the daemon reports `WritePaused`, and `WriteResumed` later.
const HIGH_WATER: u64 = 64 * 1024;
/// A `WriteResumed` may have been before our time: look again after this long.
const RECHECK: Duration = Duration::from_secs(1);
/// Attempts to write over a broken connection, and the wait between them.
const ATTEMPTS_MAX: u32 = 8;
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// How the input ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// All of it was taken, and the end too if that was asked for.
    Sent,
    /// The terminal it came from is gone.
    TerminalLost,
    /// It could not be read any further; its end was not sent.
    Unreadable(io::Error),
}

/// Writes into one watch.
pub(super) struct Feeder<'a> {
    pub(super) session: &'a Session,
    pub(super) loop_ref: Option<LoopRef>,
    pub(super) watch: WatchRef,
    /// Hears of the watch's `WriteResumed` events.
    pub(super) resumed: &'a Notify,
    /// End the outgoing direction at the end of the input.
    pub(super) eof: bool,
}

impl Feeder<'_> {
    /// Sends all of `input`, from where the watch's stream stands now.
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

    /// Sends `data` from offset `at`, as fast as it is taken; the offset after it.
    async fn all(&self, mut at: u64, mut data: Bytes) -> Result<u64, Failure> {
        while !data.is_empty() {
            let (taken, buffered) = self.write(data.clone(), Some(at)).await?;
            let accepted = usize::try_from(taken.saturating_sub(at)).unwrap_or(usize::MAX);
            let rest = data.split_off(accepted.min(data.len()));
            let paused = buffered > HIGH_WATER || !rest.is_empty();
            (at, data) = (taken, rest);
            if paused {
                // Whether it came or the time is up: the next write tells.
                let _ = tokio::time::timeout(RECHECK, self.resumed.notified()).await;
            }
        }
        Ok(at)
    }

    /// Bytes taken so far, and of those the unsent ones.
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

/// Makes a call again over a broken connection. A repeat is safe: writes carry offsets, and there is but one end.
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

/// The watch or its loop is gone, has ended, or never took any bytes.
pub(super) fn refused(failure: &Failure) -> bool {
    let reasons = [
        "WATCH_CLOSED",
        "WRONG_STATE",
        "WATCH_NOT_FOUND",
        "LOOP_NOT_FOUND",
    ];
    reasons.contains(&failure.reason.as_str())
}

/// In the background of a terminal, reading it would stop us.
pub(super) fn in_background() -> bool {
    let group = tcgetpgrp(io::stdin());
    group.is_ok_and(|group| group != rustix::process::getpgrp())
}

/// The end of a terminal's input is its user's Ctrl-D, or that it is gone.
fn hung_up(terminal: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&terminal, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let _ = poll(&mut fds, Some(&at_once));
    fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
}
