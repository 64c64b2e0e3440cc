//! Child processes: started before the watch exists, reaped in one place, done when
//! the child has ended *and* its streams have.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nix::libc;
use rustix::io::Errno;

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
mod drain;
mod order;
mod reaper;
mod spawn;
mod watcher;

pub use attributes::Attributes;
use child::{Child, State};
pub use drain::{Drain, DrainLimits};
pub use order::{AfterGrace, AtEnd, ProcessOrder, Program, SignalTarget, Stdio};
use reaper::LOOK_AGAIN;
pub use reaper::{Reaper, reap_strangers};
use watcher::{ChildSignals, Waiter};

const EXIT: Lane = Lane(0);
const STDIN: Lane = Lane(1);
const STDOUT: Lane = Lane(2);
const STDERR: Lane = Lane(3);

/// Between one SIGKILL and the next, for a child that does not end by it at once.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// Bytes at most that a driver has taken out of a pipe and not handed over.
const UNDER_WAY: u64 = 1 << 20;
/// After so many it is not waited for any longer: a tracer has it (ptrace(2)), or a device.
const KILLS_MAX: u32 = 5;

#[derive(Debug)]
struct Process {
    pid: i32,
    /// Present until it is closed.
    child: Option<Child>,
    /// A duplicate of its pidfd for the driver, with the pidfd watcher.
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
    after_grace: AfterGrace,
    watcher: ChildWatcher,
    pipe_grace: Duration,
    /// It runs, or is over.
    has_grace: bool,
    kill_grace: Duration,
    stdin_bytes: u64,
    /// Of stdin, when it was closed.
    unsent: u64,
    /// Its group was told to end.
    killing: bool,
    /// How often it was killed, and did not end.
    kills: u32,
}

impl Process {
    fn is_done(&self) -> bool {
        self.exited.is_some() && self.outputs.iter().flatten().all(|o| o.ended)
    }

    fn watch_exit(&mut self, cx: &mut Context<'_>) {
        match self.watcher {
            ChildWatcher::Pidfd => {
                let fd = self.watched_fd.take();
                self.watched = fd.and_then(|fd| cx.attach(fd, Nonblocking::ReadinessOnly));
                match self.watched {
                    Some(source) => cx.start(EXIT, source, Op::Ready(Direction::Read)),
                    // There is no descriptor to wait with.
                    None => cx.set_alarm_in(LOOK_AGAIN),
                }
            }
            ChildWatcher::Thread => {
                if let Some(waiter) = &self.waiter {
                    waiter.tell(cx.key(), Arc::clone(cx.notifier));
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
                self.look(cx);
            }
        }
    }

    /// Looks whether the child has ended. All that notice its end come here.
    fn look(&mut self, cx: &mut Context<'_>) {
        if self.exited.is_none()
            && let Some(child) = &self.child
            && let State::Ended(exited) = child.state()
        {
            self.exited(cx, exited);
        }
    }

    /// As [`Self::look`], of a child that is said to have ended: if it cannot be seen yet, because
    /// a tracer has it first (ptrace(2)), it is looked at again.
    fn look_again(&mut self, cx: &mut Context<'_>) {
        self.look(cx);
        if self.exited.is_none() && !cx.is_closing() {
            cx.set_alarm_in(LOOK_AGAIN);
        }
    }

    fn exited(&mut self, cx: &mut Context<'_>, exited: Exited) {
        cx.emit(Kind::Exited(exited.clone()));
        self.exited = Some(exited);
        if let Some(child) = &mut self.child {
            child.told();
        }
        for output in self.outputs.iter_mut().flatten() {
            output.own_end = output.offset + unread(cx, output.source) + UNDER_WAY;
        }
        self.subscription = None;
        self.waiter = None;
        if self.stdin.is_some() {
            // Nobody is left to read it, or only strangers are.
            cx.cancel(STDIN);
        }
        if cx.is_closing() && !cx.is_polled() {
            // Nothing more comes of a stopped loop.
            cx.finish();
        } else if cx.is_closing() {
            // Its end was asked for: it does not wait for room.
            self.end_outputs(cx, |output| output.held);
        }
        self.settle(cx);
        self.give_grace(cx);
    }

    /// Bounds how long others may keep the output of a child that has ended open.
    fn give_grace(&mut self, cx: &mut Context<'_>) {
        let bounded = self.after_grace == AfterGrace::Drain || cx.is_closing();
        if self.exited.is_some() && !self.is_done() && bounded && !self.has_grace {
            self.has_grace = true;
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
        if cx.is_live(lane) {
            return;
        }
        match reason {
            StreamEndReason::GraceExpired | StreamEndReason::Released => {
                if let Some(pipe) = cx.take(output.source) {
                    cx.services.drain.take(pipe, self.pid, output.stream);
                }
            }
            _ => cx.release(output.source),
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

    fn kill(&self) {
        if let Some(child) = &self.child {
            child.kill();
        }
    }

    /// Its end is asked for while the loop is stopped: nothing of the loop will tell how it ends,
    /// and no alarm bounds an orderly end.
    fn close_unpolled(&mut self, cx: &mut Context<'_>) -> Teardown {
        if self.at_end == AtEnd::KillTree {
            self.killing = true;
            self.kill();
        }
        match self.child.as_ref().and_then(Child::pidfd_shared) {
            Some(pidfd) if self.exited.is_none() => {
                let notifier = Arc::clone(cx.notifier);
                cx.services.reaper.tell(pidfd, cx.key(), notifier);
                // In case the loop runs again before.
                cx.set_alarm_in(KILL_AGAIN);
                Teardown::Later
            }
            _ => Teardown::Now,
        }
    }
}

/// Bytes that wait in a pipe.
fn unread(cx: &Context<'_>, source: SourceId) -> u64 {
    cx.fd(source)
        .and_then(|fd| rustix::io::ioctl_fionread(fd).ok())
        .unwrap_or(0)
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
                self.look_again(cx);
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
                        let reason = if cx.is_torn_down() {
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
            self.look_again(cx);
            if self.exited.is_none() && cx.is_closing() {
                if self.kills == KILLS_MAX {
                    cx.finish();
                    return;
                }
                self.kills += 1;
                self.kill();
                cx.set_alarm_in(KILL_AGAIN);
            }
            return;
        }
        // The child is gone and somebody keeps its output open. It ends once nothing is unread that
        // may be from the child.
        let closing = cx.is_closing();
        let sources = self.outputs.each_ref().map(|output| {
            let source = output.as_ref().map(|output| output.source);
            source.is_some_and(|source| unread(cx, source) == 0)
        });
        self.end_outputs(cx, |output| {
            let is_empty = sources[usize::from(output.lane == STDERR)];
            closing || is_empty || output.offset >= output.own_end
        });
        if !self.is_done() {
            cx.set_alarm_in(LOOK_AGAIN);
        }
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        match notice {
            Notice::ChildEnded => self.look_again(cx),
            Notice::ChildSignal => {
                if let Some((_, told)) = &self.subscription {
                    told.store(false, Ordering::Release);
                }
                self.look(cx);
            }
            Notice::ChildKilled => {
                self.look(cx);
                if !cx.is_polled() {
                    cx.finish();
                }
            }
            _ => {}
        }
    }

    fn closing(&mut self, cx: &mut Context<'_>) -> Teardown {
        // It may have ended, and the loop not have told it: one that is stopped does not.
        self.look(cx);
        if self.is_done() || (self.at_end == AtEnd::Keep && self.exited.is_none()) {
            return Teardown::Now;
        }
        if !cx.is_polled() {
            return self.close_unpolled(cx);
        }
        // What it has written is still delivered, also if the reading was paused.
        for output in self.outputs.iter_mut().flatten() {
            output.pause(cx, false);
        }
        if self.at_end == AtEnd::KillTree
            && let Some(child) = &self.child
        {
            self.killing = true;
            child.ask_to_end();
        }
        if self.exited.is_none() {
            cx.set_alarm_in(self.kill_grace);
        } else {
            self.give_grace(cx);
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
            self.kill();
        }
        self.look(cx);
        if self.exited.is_none() {
            let why = match self.at_end {
                AtEnd::Keep => "it was left running",
                AtEnd::KillTree => "it was killed, and had not ended when its watch was closed",
            };
            let exited = Exited {
                status: Some(Status::Unknown(why.to_owned())),
                ..Exited::default()
            };
            cx.emit(Kind::Exited(exited.clone()));
            self.exited = Some(exited);
        }
        (self.subscription, self.waiter) = (None, None);
        if let Some(mut child) = self.child.take() {
            child.reap();
            child.let_go();
        }
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
        if hold && cx.is_closing() && self.exited.is_some() {
            // As when it exits while its end is asked for: that does not wait for room.
            self.end_outputs(cx, |output| output.held);
        }
        held
    }

    fn pause_reading(&mut self, cx: &mut Context<'_>, pause: bool) -> Result<()> {
        for output in self.outputs.iter_mut().flatten() {
            output.pause(cx, pause);
        }
        Ok(())
    }

    fn signal(&mut self, number: i32, target: SignalTarget) -> Result<()> {
        let gone = || Error::wrong_state("the child has ended");
        let child = self.child.as_ref().ok_or_else(gone)?;
        let sent = match target {
            SignalTarget::Process if self.exited.is_some() => Err(Errno::SRCH),
            SignalTarget::Process => child.signal(number),
            SignalTarget::Group => child.signal_group(number),
        };
        sent.map_err(|errno| match errno {
            Errno::SRCH => gone(),
            errno => SystemError::new(errno, "signal", "").into(),
        })
    }

    fn kill_now(&mut self) {
        if self.at_end == AtEnd::KillTree {
            self.kill();
        }
    }

    fn status(&self) -> Option<proto::watch::Status> {
        let [stdout, stderr] = &self.outputs;
        let bytes = |o: &Option<Incoming>| o.as_ref().map_or(0, |o| o.offset);
        let alive = self.child.as_ref().filter(|_| self.exited.is_none());
        let state = alive.map_or(State::Running, Child::state);
        Some(proto::watch::Status::Process(proto::ProcessStatus {
            pid: self.pid,
            exited: self.exited.clone(),
            stdin_bytes: self.stdin_bytes,
            stdout_bytes: bytes(stdout),
            stderr_bytes: bytes(stderr),
            stopped: matches!(state, State::Stopped),
            ended_untold: matches!(state, State::Ended(_)),
        }))
    }
}
