//! Child processes: started before the watch exists, reaped in one place, done when
//! the child has ended *and* its streams have.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nix::libc;
use rustix::io::Errno;

use super::services::Permit;
use super::transport::{Ended, Incoming, Outgoing};
use super::{Context, Notice, Taken, Teardown, Watch};
use crate::config::ChildWatcher;
use crate::driver::{Direction, Done, Lane, Nonblocking, Op, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Exited, Kind, Started, Stream, StreamEnd, StreamEndReason};
use crate::proto::{self, exited::Status};
use crate::signals::Subscription;

mod attributes;
mod child;
mod order;
mod spawn;
mod watcher;

pub use attributes::Attributes;
pub use order::{AtEnd, ProcessOrder, Program, SignalTarget, Stdio};
use watcher::{ChildSignals, Pidfd, Waiter};

const EXIT: Lane = Lane(0);
const STDIN: Lane = Lane(1);
const STDOUT: Lane = Lane(2);
const STDERR: Lane = Lane(3);

/// Between one SIGKILL and the next, for a child that does not end by it at once.
const KILL_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Process {
    pid: i32,
    pidfd: Pidfd,
    /// A duplicate for the driver, with the pidfd watcher.
    watched_fd: Option<OwnedFd>,
    /// The driver's care of a duplicate, with the pidfd watcher.
    watched: Option<SourceId>,
    waiter: Option<Waiter>,
    subscription: Option<(Subscription, Arc<AtomicBool>)>,
    pipes: [Option<OwnedFd>; 3],
    stdin: Option<Outgoing>,
    outputs: [Option<Incoming>; 2],
    exited: Option<Exited>,
    at_end: AtEnd,
    watcher: ChildWatcher,
    pipe_grace: Duration,
    kill_grace: Duration,
    stdin_bytes: u64,
    /// Of stdin, when it was closed.
    unsent: u64,
    /// Its group was told to end.
    killing: bool,
    permit: Option<Permit>,
}

impl Process {
    fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.0.as_ref().map(AsFd::as_fd)
    }

    fn is_done(&self) -> bool {
        self.exited.is_some() && self.outputs.iter().flatten().all(|o| o.ended)
    }

    fn watch_exit(&mut self, cx: &mut Context<'_>) {
        match self.watcher {
            ChildWatcher::Pidfd => {
                let fd = self.watched_fd.take();
                self.watched = fd.and_then(|fd| cx.attach(fd, Nonblocking::ReadinessOnly));
                if let Some(source) = self.watched {
                    cx.start(EXIT, source, Op::Ready(Direction::Read));
                }
            }
            ChildWatcher::Thread => {
                if let Some(Waiter(sender)) = self.waiter.take() {
                    // The thread holds the receiver until it has told.
                    let _ = sender.send((cx.key(), Arc::clone(cx.notifier)));
                }
            }
            ChildWatcher::Sigchld => {
                let told = Arc::new(AtomicBool::new(false));
                let sink = Arc::new(ChildSignals {
                    key: cx.key(),
                    notifier: Arc::clone(cx.notifier),
                    told: Arc::clone(&told),
                });
                let subscription = cx.services.signals.subscribe(&[libc::SIGCHLD], sink);
                self.subscription = Some((subscription, told));
                // It may have ended before anybody listened.
                self.reap(cx);
            }
        }
    }

    fn reap(&mut self, cx: &mut Context<'_>) {
        if self.exited.is_none()
            && let Some(exited) = self.pidfd().and_then(child::reap)
        {
            self.exited(cx, exited);
        }
    }

    fn exited(&mut self, cx: &mut Context<'_>, exited: Exited) {
        cx.emit(Kind::Exited(exited.clone()));
        self.exited = Some(exited);
        self.subscription = None;
        self.permit = None;
        if self.stdin.is_some() {
            // Nobody is left to read it, or only strangers are.
            cx.cancel(STDIN);
        }
        if cx.is_closing() {
            // Its end was asked for: it does not wait for room.
            self.end_outputs(cx, |output| output.held);
        }
        self.settle(cx);
        if !self.is_done() {
            cx.set_alarm_in(self.pipe_grace);
        }
    }

    fn end_stream(&mut self, cx: &mut Context<'_>, lane: Lane, reason: StreamEndReason) {
        self.end_stream_with(cx, lane, reason, None);
    }

    fn end_stream_with(
        &mut self,
        cx: &mut Context<'_>,
        lane: Lane,
        reason: StreamEndReason,
        errno: Option<Errno>,
    ) {
        let index = usize::from(lane == STDERR);
        let Some(output) = &mut self.outputs[index] else {
            return;
        };
        output.ended = true;
        cx.emit(Kind::StreamEnd(StreamEnd {
            stream: output.stream.into(),
            offset: output.offset,
            reason: reason.into(),
            error: errno.map(|e| (&SystemError::new(e, "read", "")).into()),
        }));
        if !cx.is_live(lane) {
            cx.release(output.source);
        }
    }

    /// Ends the streams in question, whoever keeps them open.
    fn end_outputs(&mut self, cx: &mut Context<'_>, which: impl Fn(&Incoming) -> bool) {
        for lane in [STDOUT, STDERR] {
            let output = &mut self.outputs[usize::from(lane == STDERR)];
            let Some(output) = output.as_mut().filter(|o| !o.ended && which(o)) else {
                continue;
            };
            if !output.end(cx) {
                self.end_stream(cx, lane, StreamEndReason::GraceExpired);
            }
        }
        self.settle(cx);
    }

    /// Ends the watch once the child and its streams have.
    fn settle(&mut self, cx: &mut Context<'_>) {
        if self.is_done() {
            cx.clear_alarm();
            cx.cancel(STDIN);
            cx.close(CloseReason::Completed);
            cx.finish();
        }
    }

    fn close_stdin(&mut self, cx: &mut Context<'_>) {
        if let Some(stdin) = &self.stdin
            && !cx.is_live(STDIN)
        {
            self.unsent = stdin.buffered();
            self.stdin_bytes = stdin.taken;
            cx.release(stdin.source);
            self.stdin = None;
        }
    }

    fn kill(&mut self, signal: i32) {
        if let Some(pidfd) = self.pidfd() {
            // ESRCH: all of the group are gone.
            let _ = child::signal_group(pidfd, self.pid, self.exited.is_some(), signal);
        }
    }
}

impl Watch for Process {
    fn start(&mut self, cx: &mut Context<'_>) {
        cx.emit(Kind::Started(Started { pid: self.pid }));
        let [stdin, stdout, stderr] = std::mem::take(&mut self.pipes);
        let mut attach = |fd: Option<OwnedFd>| cx.attach(fd?, Nonblocking::Own);
        let sources = [attach(stdin), attach(stdout), attach(stderr)];
        self.stdin = sources[0].map(|source| Outgoing::new(STDIN, source));
        let output = |lane, source: Option<SourceId>, stream| {
            source.map(|source| Incoming::new(lane, source, stream, false))
        };
        self.outputs = [
            output(STDOUT, sources[1], Stream::Stdout),
            output(STDERR, sources[2], Stream::Stderr),
        ];
        for output in self.outputs.iter().flatten() {
            output.start(cx);
        }
        self.watch_exit(cx);
    }

    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done) {
        match lane {
            EXIT => {
                if let Done::Failed(errno) = done {
                    cx.fail(errno, "watch");
                }
                self.reap(cx);
                if self.exited.is_none()
                    && let Some(source) = self.watched
                    && matches!(done, Done::Ready(_))
                {
                    cx.start(EXIT, source, Op::Ready(Direction::Read));
                }
            }
            STDIN => {
                let Some(stdin) = &mut self.stdin else { return };
                let broken = stdin.complete(cx, &done).is_err();
                if broken || stdin.is_finished() || matches!(done, Done::Cancelled) {
                    self.close_stdin(cx);
                }
            }
            lane => {
                let index = usize::from(lane == STDERR);
                let Some(output) = &mut self.outputs[index] else {
                    return;
                };
                match output.complete(cx, done) {
                    None => return,
                    Some(Ended::Eof) => self.end_stream(cx, lane, StreamEndReason::Eof),
                    Some(Ended::Failed(errno)) => {
                        self.end_stream_with(cx, lane, StreamEndReason::Error, Some(errno));
                    }
                    Some(Ended::Cancelled) => {
                        let kept = self.at_end == AtEnd::Keep && self.exited.is_none();
                        let reason = if kept {
                            StreamEndReason::Released
                        } else {
                            StreamEndReason::GraceExpired
                        };
                        self.end_stream(cx, lane, reason);
                    }
                }
                self.settle(cx);
            }
        }
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        if self.exited.is_none() {
            // Whatever became of the watcher.
            self.reap(cx);
            if self.exited.is_none() {
                self.kill(libc::SIGKILL);
                cx.set_alarm_in(KILL_AGAIN);
            }
            return;
        }
        // The child is gone and somebody keeps its output open. What is not read now, by the
        // client's wish or for want of room, may still be from the child.
        self.end_outputs(cx, |output| !output.paused && !output.held);
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        match notice {
            Notice::ChildExited(exited) if self.exited.is_none() => self.exited(cx, exited),
            Notice::ChildSignal => {
                if let Some((_, told)) = &self.subscription {
                    told.store(false, Ordering::Release);
                }
                self.reap(cx);
            }
            _ => {}
        }
    }

    fn closing(&mut self, cx: &mut Context<'_>) -> Teardown {
        if self.is_done() || (self.at_end == AtEnd::Keep && self.exited.is_none()) {
            return Teardown::Now;
        }
        if !cx.is_polled() {
            // Its end cannot be seen while the loop is stopped.
            self.kill(libc::SIGKILL);
            return Teardown::Now;
        }
        // What it has written is still delivered, also if the reading was paused.
        for output in self.outputs.iter_mut().flatten() {
            output.pause(cx, false);
        }
        if self.at_end == AtEnd::KillTree {
            self.killing = true;
            self.kill(libc::SIGTERM);
        }
        if self.exited.is_none() {
            cx.set_alarm_in(self.kill_grace);
        } else {
            cx.set_alarm_in(self.pipe_grace);
            self.end_outputs(cx, |output| output.held);
        }
        Teardown::Later
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        for lane in [STDOUT, STDERR] {
            let index = usize::from(lane == STDERR);
            if self.outputs[index].as_ref().is_some_and(|o| !o.ended) {
                self.end_stream(cx, lane, StreamEndReason::Released);
            }
        }
        self.close_stdin(cx);
        if self.killing {
            // Who of the group did not end by SIGTERM.
            self.kill(libc::SIGKILL);
        }
        if self.exited.is_none()
            && let Some(exited) = self.pidfd().and_then(child::reap)
        {
            cx.emit(Kind::Exited(exited.clone()));
            self.exited = Some(exited);
        }
        let pidfd = self.pidfd.0.take();
        if self.exited.is_none() {
            let why = match self.at_end {
                AtEnd::Keep => "it was left running",
                AtEnd::KillTree => "it was killed while its loop was stopped",
            };
            let exited = Exited {
                status: Some(Status::Unknown(why.to_owned())),
                ..Exited::default()
            };
            cx.emit(Kind::Exited(exited.clone()));
            self.exited = Some(exited);
            if let Some(pidfd) = pidfd
                && self.watcher != ChildWatcher::Thread
            {
                child::reap_elsewhere(pidfd);
            }
        }
        self.subscription = None;
        self.permit = None;
        self.unsent
    }

    fn write(&mut self, cx: &mut Context<'_>, data: Bytes, at: Option<u64>) -> Result<Taken> {
        match &mut self.stdin {
            Some(stdin) => {
                let taken = stdin.write(cx, data, at)?;
                self.stdin_bytes = taken.taken;
                Ok(taken)
            }
            None => Err(Error::wrong_state("stdin is not a pipe, or is closed")),
        }
    }

    fn write_eof(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if let Some(stdin) = &mut self.stdin {
            stdin.eof = true;
            if stdin.is_finished() {
                self.close_stdin(cx);
            }
        }
        Ok(())
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        let mut held = false;
        for output in self.outputs.iter_mut().flatten() {
            held |= output.hold(cx, hold);
        }
        if !hold && self.exited.is_some() {
            cx.set_alarm_in(self.pipe_grace);
        }
        held
    }

    fn pause_reading(&mut self, cx: &mut Context<'_>, pause: bool) -> Result<()> {
        for output in self.outputs.iter_mut().flatten() {
            output.pause(cx, pause);
        }
        if !pause && self.exited.is_some() {
            cx.set_alarm_in(self.pipe_grace);
        }
        Ok(())
    }

    fn signal(&mut self, number: i32, target: SignalTarget) -> Result<()> {
        let gone = || Error::wrong_state("the child has ended");
        let pidfd = self.pidfd().ok_or_else(gone)?;
        let sent = match target {
            SignalTarget::Process => crate::sys::signal_process(pidfd, number),
            SignalTarget::Group => {
                child::signal_group(pidfd, self.pid, self.exited.is_some(), number)
            }
        };
        sent.map_err(|errno| match errno {
            Errno::SRCH => gone(),
            errno => SystemError::new(errno, "signal", "").into(),
        })
    }

    fn kill_now(&mut self) {
        if self.at_end == AtEnd::KillTree {
            self.kill(libc::SIGKILL);
        }
    }

    fn status(&self) -> Option<proto::watch::Status> {
        let [stdout, stderr] = &self.outputs;
        let bytes = |o: &Option<Incoming>| o.as_ref().map_or(0, |o| o.offset);
        Some(proto::watch::Status::Process(proto::ProcessStatus {
            pid: self.pid,
            exited: self.exited.clone(),
            stdin_bytes: self.stdin_bytes,
            stdout_bytes: bytes(stdout),
            stderr_bytes: bytes(stderr),
        }))
    }
}
