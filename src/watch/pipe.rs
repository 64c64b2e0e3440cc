//! Read and write pipes: one end of a FIFO, socket or character device (asyncio's connect_read_pipe
//! and connect_write_pipe).

use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::transport::{Ended, Incoming, Outgoing};
use super::water::WaterMarks;
use super::{Alarm, Context, Progress, Resumption, Taken, Teardown, Unsent, Watch};
use crate::driver::{Claim, Direction, Done, Driver, FileKind, Lane, Nonblocking, Op, SourceId};
use crate::error::{Error, Result};
use crate::event::{CloseReason, Eof, Kind, Stream};
use crate::proto;
use crate::proto::state::kept_watch_state::Of;
use crate::proto::state::{KeptMode, KeptPipe};
use crate::state::descriptor;
use crate::sys;

const DATA: Lane = Lane(0);
/// The lane that detects that the reader of a write pipe has gone. On every backend a write end
/// becomes readable by that.
const PEER: Lane = Lane(1);

/// How long a pipe waits before it looks again at a terminal that no process has open. The kernel
/// reports nothing when one opens it.
const TERMINAL_RETRY: Duration = Duration::from_millis(100);

/// The end that the daemon holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipeEnd {
    /// The daemon reads.
    Read {
        /// Whether reading starts only with ResumeReading.
        paused: bool,
    },
    /// The daemon writes.
    Write {
        /// When WritePaused and WriteResumed are appended.
        marks: WaterMarks,
    },
}

/// The checked order of a pipe.
#[derive(Debug)]
pub struct PipeOrder {
    /// The daemon's descriptor, and how the driver avoids blocking on it.
    pub claim: Claim,
    /// The end that the daemon holds.
    pub end: PipeEnd,
}

impl PipeOrder {
    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        match self.end {
            PipeEnd::Read { paused } => Box::new(ReadPipe {
                end: End::of(&self.claim),
                claim: Some(self.claim),
                paused,
                input: None,
            }),
            PipeEnd::Write { marks } => Box::new(WritePipe {
                marks,
                end: End::of(&self.claim),
                claim: Some(self.claim),
                output: None,
            }),
        }
    }
}

/// What both kinds of pipe remember of what they were given.
#[derive(Debug, Clone, Copy)]
struct End {
    mode: Nonblocking,
    /// See [`Claim::blocks`].
    blocks: bool,
    /// Whether later lives go on with it: a device does not tell what was transferred.
    survives: bool,
}

impl End {
    const fn of(claim: &Claim) -> Self {
        Self {
            mode: claim.mode,
            blocks: claim.blocks,
            survives: matches!(
                claim.kind,
                FileKind::Pipe | FileKind::Fifo | FileKind::Socket { .. }
            ),
        }
    }

    /// Returns what later lives need; `None` if they do not go on with it.
    fn kept(self, driver: &dyn Driver, source: SourceId) -> Option<KeptPipe> {
        self.survives.then_some(KeptPipe {
            descriptor: Some(descriptor(driver.fd(source)?)?),
            mode: KeptMode::from(self.mode).into(),
            blocks: self.blocks,
            paused: false,
            eof: false,
        })
    }
}

/// Returns what an earlier life has left of a pipe.
fn kept_pipe(rest: &Resumption) -> Result<&KeptPipe> {
    match &rest.of {
        Of::Pipe(pipe) => Ok(pipe),
        _ => Err(Error::Internal("what was kept is no pipe")),
    }
}

#[derive(Debug)]
struct ReadPipe {
    claim: Option<Claim>,
    end: End,
    paused: bool,
    input: Option<Incoming>,
}

impl ReadPipe {
    fn incoming(&self, source: SourceId) -> Incoming {
        let new = match self.end.survives {
            true => Incoming::that_survives,
            false => Incoming::new,
        };
        new(DATA, source, Stream::Input, self.paused)
    }
}

impl Watch for ReadPipe {
    fn start(&mut self, cx: &mut Context<'_>) {
        let Some(claim) = self.claim.take() else {
            return;
        };
        let Some(source) = cx.attach(claim.fd, claim.mode) else {
            return;
        };
        let input = self.incoming(source);
        input.start(cx);
        self.input = Some(input);
        cx.changed();
    }

    fn keep(&self, driver: &dyn Driver) -> Option<Of> {
        let input = self.input.as_ref()?;
        Some(Of::Pipe(KeptPipe {
            paused: input.paused,
            ..self.end.kept(driver, input.source)?
        }))
    }

    fn progress(&self) -> Option<Progress> {
        Some(Progress {
            received: [self.input.as_ref()?.offset, 0],
            ..Progress::default()
        })
    }

    fn resume(&mut self, cx: &mut Context<'_>, rest: Resumption) -> Result<()> {
        let kept = kept_pipe(&rest)?;
        let Some(claim) = self.claim.take() else {
            return Ok(());
        };
        let Some(source) = cx.attach(claim.fd, claim.mode) else {
            return Ok(());
        };
        let mut input = self.incoming(source);
        input.paused = kept.paused;
        input.take_up(cx, kept.descriptor.as_ref(), 0, &rest);
        input.start(cx);
        self.input = Some(input);
        cx.changed();
        Ok(())
    }

    fn complete(&mut self, cx: &mut Context<'_>, _lane: Lane, done: Done) {
        let Some(input) = &mut self.input else { return };
        match input.complete(cx, done) {
            Some(Ended::Eof) => end(cx, input.offset),
            Some(Ended::Failed(Errno::IO)) => match terminal(cx, input.source) {
                Terminal::MayReturn => {
                    input.ended = false;
                    cx.set_alarm_in(TERMINAL_RETRY);
                }
                Terminal::Gone => end(cx, input.offset),
                Terminal::None => cx.fail(Errno::IO, "read"),
            },
            Some(Ended::Failed(errno)) => cx.fail(errno, "read"),
            Some(Ended::Cancelled) | None => {}
        }
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        if let Some(input) = &self.input
            && !cx.is_closing()
        {
            input.start(cx);
        }
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        let source = self.input.as_ref().map(|i| i.source);
        block_again(cx, source.filter(|_| self.end.blocks));
        0
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        let input = self.input.as_mut();
        input.is_some_and(|input| input.hold(cx, hold))
    }

    fn pause_reading(&mut self, cx: &mut Context<'_>, pause: bool) -> Result<()> {
        if let Some(input) = &mut self.input {
            input.pause(cx, pause);
            cx.changed();
        }
        Ok(())
    }

    fn can_abort(&self) -> bool {
        true
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        let input = self.input.as_ref();
        Some(proto::watch::Status::Transport(proto::TransportStatus {
            connected: input.is_some_and(|i| !i.ended),
            reading_paused: input.is_some_and(|i| i.paused),
            received_bytes: input.map_or(0, |i| i.offset),
            ..proto::TransportStatus::default()
        }))
    }

    fn takeable(&self) -> Result<SourceId> {
        takeable(self.input.as_ref().map(|i| i.source))
    }
}

fn end(cx: &mut Context<'_>, offset: u64) {
    cx.emit(Kind::Eof(Eof { offset }));
    cx.close(CloseReason::Completed);
}

/// What EIO says of a descriptor that is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terminal {
    /// No process has the terminal of this master open. One may open it again, by its name.
    MayReturn,
    /// The other side has gone, and nothing brings it back.
    Gone,
    /// It is an error and not an end.
    None,
}

/// Finds out what EIO means. Only the kernel knows: a terminal can be opened again unless it is
/// locked (TIOCSPTLCK of ioctl_tty(2)). One whose master is closed has hung up.
fn terminal(cx: &Context<'_>, source: SourceId) -> Terminal {
    let Some(fd) = cx.fd(source) else {
        return Terminal::None;
    };
    match sys::terminal_is_locked(fd) {
        Some(false) => return Terminal::MayReturn,
        Some(true) => return Terminal::Gone,
        None => {}
    }
    let mut found = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let polled = rustix::event::poll(&mut found, Some(&Timespec::default()));
    match polled.is_ok() && found[0].revents().contains(PollFlags::HUP) {
        true => Terminal::Gone,
        false => Terminal::None,
    }
}

/// Clears `O_NONBLOCK` of a descriptor that a client takes, because the one that was handed over
/// blocks. Until then only the daemon has this open file description.
fn block_again(cx: &Context<'_>, source: Option<SourceId>) {
    if let Some(fd) = source.and_then(|source| cx.fd(source)) {
        // This fails only for a descriptor that is not open.
        let _ = rustix::io::ioctl_fionbio(fd, false);
    }
}

fn takeable(source: Option<SourceId>) -> Result<SourceId> {
    source.ok_or(Error::Internal("an open pipe has no source"))
}

/// Ends the watch with an error. If it is ending already, ends it now, without sending the bytes
/// that are left.
fn fail_now(cx: &mut Context<'_>, errno: Errno, step: &'static str) {
    cx.fail(errno, step);
    cx.finish();
}

#[derive(Debug)]
struct WritePipe {
    claim: Option<Claim>,
    marks: WaterMarks,
    end: End,
    output: Option<Outgoing>,
}

impl WritePipe {
    fn outgoing(&self, source: SourceId) -> Outgoing {
        let new = match self.end.survives {
            true => Outgoing::that_survives,
            false => Outgoing::new,
        };
        new(DATA, source, self.marks)
    }

    fn watch_peer(&self, cx: &mut Context<'_>, source: SourceId) {
        if !cx.is_live(PEER) {
            cx.start(PEER, source, Op::Ready(Direction::Read));
        }
    }
}

impl Watch for WritePipe {
    fn start(&mut self, cx: &mut Context<'_>) {
        let Some(claim) = self.claim.take() else {
            return;
        };
        let Some(source) = cx.attach(claim.fd, claim.mode) else {
            return;
        };
        self.output = Some(self.outgoing(source));
        self.watch_peer(cx, source);
        cx.changed();
    }

    fn keep(&self, driver: &dyn Driver) -> Option<Of> {
        let output = self.output.as_ref()?;
        Some(Of::Pipe(KeptPipe {
            eof: output.eof,
            ..self.end.kept(driver, output.source)?
        }))
    }

    fn progress(&self) -> Option<Progress> {
        Some(self.output.as_ref()?.progress())
    }

    fn unsent(&self) -> Option<Unsent<'_>> {
        self.output.as_ref()?.unsent()
    }

    fn resume(&mut self, cx: &mut Context<'_>, rest: Resumption) -> Result<()> {
        let kept = kept_pipe(&rest)?;
        let sent = rest.sent(kept.descriptor.as_ref())?;
        let Some(claim) = self.claim.take() else {
            return Ok(());
        };
        let Some(source) = cx.attach(claim.fd, claim.mode) else {
            return Ok(());
        };
        let mut output = self.outgoing(source);
        output.eof = kept.eof;
        output.go_on(cx, sent, &rest);
        let is_finished = output.is_finished();
        self.output = Some(output);
        self.watch_peer(cx, source);
        if is_finished {
            cx.close(CloseReason::Completed);
        }
        cx.changed();
        Ok(())
    }

    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done) {
        let Some(output) = &mut self.output else {
            return;
        };
        match (lane, done) {
            (PEER, Done::Ready(ready)) => {
                let gone = ready.error || ready.hangup || ready.half_closed;
                let locked = cx.fd(output.source).and_then(sys::terminal_is_locked);
                match (gone, locked) {
                    (true, None | Some(true)) => fail_now(cx, Errno::PIPE, "write"),
                    // The other side of a pseudoterminal has written, or may be opened again.
                    (_, Some(_)) if !cx.is_closing() => cx.set_alarm_in(TERMINAL_RETRY),
                    // The peer of a socket has sent something, which a write pipe ignores.
                    _ => {}
                }
            }
            (PEER, Done::Failed(errno)) => fail_now(cx, errno, "watch"),
            (PEER, _) => {}
            (_, done) => match output.complete(cx, &done) {
                Err(errno) => fail_now(cx, errno, "write"),
                Ok(()) if output.is_finished() => {
                    cx.close(CloseReason::Completed);
                    cx.finish();
                }
                Ok(()) => {}
            },
        }
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        match &self.output {
            Some(output) if !cx.is_closing() => self.watch_peer(cx, output.source),
            _ => cx.finish(),
        }
    }

    /// On an orderly end, first sends the bytes that were taken, for as long as `close_linger`
    /// allows.
    fn closing(&mut self, cx: &mut Context<'_>) -> Teardown {
        cx.clear_alarm();
        match (&mut self.output, cx.linger_deadline()) {
            (Some(output), Some(until)) if output.buffered() > 0 => {
                output.eof = true;
                cx.set_alarm(Alarm::Monotonic(until));
                Teardown::Later
            }
            _ => Teardown::Now,
        }
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        let source = self.output.as_ref().map(|o| o.source);
        block_again(cx, source.filter(|_| self.end.blocks));
        self.output.as_mut().map_or(0, Outgoing::close)
    }

    fn write(&mut self, cx: &mut Context<'_>, data: Bytes, at: Option<u64>) -> Result<Taken> {
        match &mut self.output {
            Some(output) => output.write(cx, data, at),
            None => Err(super::unsupported("a pipe")),
        }
    }

    fn set_water_marks(&mut self, cx: &mut Context<'_>, marks: WaterMarks) -> Result<()> {
        if let Some(output) = &mut self.output {
            output.set_marks(cx, marks)?;
        }
        self.marks = marks;
        Ok(())
    }

    fn write_eof(&mut self, cx: &mut Context<'_>) -> Result<()> {
        cx.changed();
        if let Some(output) = &mut self.output {
            output.eof = true;
            if output.is_finished() {
                cx.close(CloseReason::Completed);
            }
        }
        Ok(())
    }

    fn can_abort(&self) -> bool {
        true
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        let output = self.output.as_ref();
        Some(proto::watch::Status::Transport(proto::TransportStatus {
            connected: output.is_some(),
            taken_bytes: output.map_or(0, |o| o.taken),
            buffered_bytes: output.map_or(0, Outgoing::buffered),
            water_marks: Some(self.marks.into()),
            ..proto::TransportStatus::default()
        }))
    }

    fn takeable(&self) -> Result<SourceId> {
        takeable(self.output.as_ref().map(|o| o.source))
    }
}
