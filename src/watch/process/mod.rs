//! Child processes. A child is started before its watch exists, and is reaped in one place. The
//! watch is done when the child has ended *and* its streams have.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

use super::transport::{Ended, Incoming, Outgoing};
use super::water::WaterMarks;
use super::{Change, Context, Notice, Progress, Resumption, Taken, Teardown, Unsent, Watch};
use crate::config::ChildWatcher;
use crate::driver::{Done, Driver, Lane, Nonblocking, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{Exited, Kind, Started, Stream, StreamEndReason};
use crate::faults::{self, Point};
use crate::proto::state::kept_watch_state::Of;
use crate::proto::{self, TerminalSize, exited::Status};
use crate::signals::Subscription;

mod attributes;
mod change;
mod child;
mod drain;
mod exit;
mod kept;
mod order;
mod pty;
mod reaper;
mod reaping;
mod relatives;
mod relay;
mod spawn;
mod terminal;
mod timeout;
mod tree;
mod typed;
mod user;
mod watcher;

pub use attributes::Attributes;
pub use change::ProcessChange;
use child::{Child, State};
pub use child::{EndSignals, Whose};
pub use drain::{Drain, DrainLimits};
use exit::unread;
pub use kept::Orphan;
pub use order::{
    AfterGrace, AtEnd, FileTarget, ProcessOrder, Program, Scheduling, SignalTarget, Stdio,
};
use reaper::CHECK_INTERVAL;
pub use reaper::{Reaper, Strays, reap_inherited};
pub use reaping::Reaping;
pub use relay::Relay;
pub use terminal::EarlierTerminal;
use terminal::Terminal;
use timeout::Timeout;
pub use tree::{Reached, Stopped, Tree};
pub use user::UserOrder;
use watcher::Waiter;

const EXIT: Lane = Lane(0);
const STDIN: Lane = Lane(1);
const STDOUT: Lane = Lane(2);
const STDERR: Lane = Lane(3);

/// The time between one SIGKILL and the next, for a child that does not end at once.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// The number of SIGKILLs after which the child is not waited for any longer: a tracer (ptrace(2))
/// or a device keeps it.
const KILLS_MAX: u32 = 5;

#[derive(Debug)]
struct Process {
    pid: i32,
    /// The child. Present until the watch is closed.
    child: Option<Child>,
    /// A duplicate of its pidfd for the driver, with the pidfd watcher, until the driver has it.
    watched_fd: Option<OwnedFd>,
    /// The driver's source for that duplicate.
    watched: Option<SourceId>,
    waiter: Option<Waiter>,
    subscription: Option<(Subscription, Arc<AtomicBool>)>,
    /// The daemon's ends of its pipes, until the driver has them; that of its terminal as stdout.
    pipes: [Option<OwnedFd>; 3],
    /// Its terminal, until the terminal's output has ended.
    terminal: Option<Terminal>,
    /// Whether its stdin is the terminal.
    types: bool,
    stdin_marks: WaterMarks,
    stdin: Option<Outgoing>,
    outputs: [Option<Incoming>; 2],
    exited: Option<Exited>,
    at_end: AtEnd,
    after_grace: AfterGrace,
    watcher: ChildWatcher,
    pipe_grace: Duration,
    /// Whether the time of `pipe_grace` has begun.
    has_grace: bool,
    kill_grace: Duration,
    timeout: Timeout,
    /// When its watch started, in nanoseconds of the monotonic clock.
    started: u64,
    /// When to check whether the child has ended although no watcher reported it, in nanoseconds of
    /// the monotonic clock.
    check_at: Option<u64>,
    stdin_bytes: u64,
    /// Of outputs that ended in an earlier life, their bytes.
    ended_bytes: [u64; 2],
    /// The number of unsent bytes of stdin when stdin was closed.
    unsent: u64,
    /// Whether its group was asked to end or killed.
    killing: bool,
    /// The number of times that it was killed and did not end.
    kills: u32,
    /// When the child was started, clock ticks since the boot.
    start_time: u64,
}

impl Watch for Process {
    fn start(&mut self, cx: &mut Context<'_>) {
        cx.emit(Kind::Started(Started { pid: self.pid }));
        faults::point(Point::StartAppended);
        if let Some(start) = self.child.as_mut().and_then(|child| child.start.take()) {
            cx.started(start);
        }
        let [stdin, stdout, stderr] = std::mem::take(&mut self.pipes);
        let mut attach = |fd: Option<OwnedFd>| cx.attach(fd?, Nonblocking::Own);
        let sources = [attach(stdin), attach(stdout), attach(stderr)];
        let marks = self.stdin_marks;
        self.stdin = sources[0].map(|source| Outgoing::that_survives(STDIN, source, marks));
        let stdout = match &mut self.terminal {
            None => Incoming::of_pipe,
            Some(terminal) => {
                terminal.survive(cx);
                if let Some(source) = sources[1].filter(|_| self.types) {
                    terminal.take_input(source);
                }
                Incoming::of_terminal
            }
        };
        self.outputs = [
            sources[1].map(|source| stdout(STDOUT, source, Stream::Stdout)),
            sources[2].map(|source| Incoming::of_pipe(STDERR, source, Stream::Stderr)),
        ];
        for output in self.outputs.iter().flatten() {
            output.start(cx);
        }
        self.watch_exit(cx);
        self.begin_timeout(cx);
        self.start_time = crate::access::start_ticks(self.pid).unwrap_or_default();
        cx.changed();
    }

    fn keep(&self, driver: &dyn Driver) -> Option<Of> {
        self.kept(driver)
    }

    fn progress(&self) -> Option<Progress> {
        let stdin = self.stdin.as_ref().map(Outgoing::progress);
        Some(Progress {
            received: self.output_bytes(),
            relayed: self.terminal.as_ref().map_or(0, Terminal::relayed),
            taken: self.stdin_bytes,
            ..stdin.unwrap_or_default()
        })
    }

    fn unsent(&self) -> Option<Unsent<'_>> {
        self.stdin.as_ref()?.unsent()
    }

    fn resume(&mut self, cx: &mut Context<'_>, kept: Resumption) -> Result<()> {
        self.go_on(cx, &kept)
    }

    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done) {
        if !matches!(done, Done::Data(_) | Done::Sent(_)) {
            cx.changed();
        }
        match lane {
            EXIT => {
                if let Done::Failed(errno) = done {
                    cx.fail(errno, "watch");
                }
                self.check_reported_exit(cx);
            }
            STDIN => {
                if let (Some(terminal), Done::Ready(_)) = (&mut self.terminal, &done) {
                    terminal.takes_more(cx);
                }
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
                let ended = match (done, &mut self.terminal) {
                    (Done::Ready(_), Some(terminal)) => {
                        let ended = terminal.read(cx, output);
                        output.go_on(cx, ended)
                    }
                    (done, _) => output.complete(cx, done),
                };
                match ended {
                    None => return,
                    Some(Ended::Eof) => self.end_stream(cx, lane, StreamEndReason::Eof),
                    Some(Ended::Failed(errno)) => {
                        self.end_stream_with(cx, lane, StreamEndReason::Error, Some(errno));
                    }
                    Some(Ended::Cancelled) => {
                        let reason = if cx.is_cancelling() {
                            StreamEndReason::Released
                        } else {
                            StreamEndReason::GraceExpired
                        };
                        self.end_stream(cx, lane, reason);
                    }
                }
                self.close_if_done(cx);
            }
        }
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        cx.changed();
        if self.exited.is_none() {
            // Checked in case the watcher failed.
            self.check_exit(cx);
            if self.exited.is_none() && cx.is_closing() {
                if self.kills == KILLS_MAX {
                    cx.finish();
                    return;
                }
                self.kills += 1;
                self.kill();
                cx.set_alarm_in(KILL_AGAIN);
            } else if self.exited.is_none() {
                self.enforce_timeout(cx);
            }
            return;
        }
        // The child has ended, and another process keeps its output open. A stream ends once it has
        // no unread bytes that may be from the child.
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
            cx.set_alarm_in(CHECK_INTERVAL);
        }
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        cx.changed();
        match notice {
            Notice::ChildEnded => self.check_reported_exit(cx),
            Notice::ChildSignal => {
                if let Some((_, told)) = &self.subscription {
                    told.store(false, Ordering::Release);
                }
                self.check_exit(cx);
            }
            Notice::ChildKilled => {
                self.check_exit(cx);
                if !cx.is_polled() {
                    cx.finish();
                }
            }
            _ => {}
        }
    }

    fn closing(&mut self, cx: &mut Context<'_>) -> Teardown {
        // The child may have ended without a report: a stopped loop gets no completions.
        self.check_exit(cx);
        if self.is_done() || (self.at_end == AtEnd::Keep && self.exited.is_none()) {
            return Teardown::Now;
        }
        if !cx.is_polled() {
            return self.close_unpolled(cx);
        }
        // The output that it has written is still delivered, even if reading was paused.
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
            self.start_grace(cx);
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
            // Kills the processes of the group that did not end by SIGTERM.
            self.kill();
        }
        self.check_exit(cx);
        if self.exited.is_none() {
            let why = match self.at_end {
                AtEnd::Keep => "it was left running",
                AtEnd::KillTree => "it was killed, and had not ended when its watch was closed",
            };
            let exited = Exited {
                status: Some(Status::Unknown(why.to_owned())),
                timed_out: self.timeout.is_over(),
                ..Exited::default()
            };
            cx.emit(Kind::Exited(exited.clone()));
            self.exited = Some(exited);
        }
        (self.subscription, self.waiter) = (None, None);
        if let Some(terminal) = self.terminal.take() {
            terminal.close(cx);
        }
        if let Some(child) = self.child.take() {
            cx.reap(child.end());
        }
        self.unsent
    }

    fn write(&mut self, cx: &mut Context<'_>, data: Bytes, at: Option<u64>) -> Result<Taken> {
        let closed = || Error::wrong_state("stdin is not a pipe or terminal, or is closed");
        let taken = match (&mut self.stdin, &mut self.terminal) {
            (Some(stdin), _) => stdin.write(cx, data, at)?,
            (None, Some(terminal)) => terminal.write(cx, self.outputs[0].as_mut(), data, at)?,
            (None, None) => return Err(closed()),
        };
        self.stdin_bytes = taken.taken;
        Ok(taken)
    }

    fn set_water_marks(&mut self, cx: &mut Context<'_>, marks: WaterMarks) -> Result<()> {
        let closed = || Error::wrong_state("stdin is not a pipe, or is closed");
        self.stdin.as_mut().ok_or_else(closed)?.set_marks(cx, marks)
    }

    fn write_eof(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if let Some(terminal) = &mut self.terminal {
            terminal.write_eof(cx)?;
        }
        if let Some(stdin) = &mut self.stdin {
            stdin.eof = true;
            if stdin.is_finished() {
                self.close_stdin(cx);
            }
        }
        cx.changed();
        Ok(())
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        let mut held = false;
        for output in self.outputs.iter_mut().flatten() {
            held |= output.hold(cx, hold);
        }
        if hold && cx.is_closing() && self.exited.is_some() {
            // As at an exit during an orderly end: the end does not wait for room.
            self.end_outputs(cx, |output| output.held);
        }
        held
    }

    fn pause_reading(&mut self, cx: &mut Context<'_>, pause: bool) -> Result<()> {
        for output in self.outputs.iter_mut().flatten() {
            output.pause(cx, pause);
        }
        cx.changed();
        Ok(())
    }

    fn signal(&mut self, number: i32, target: SignalTarget) -> Result<()> {
        let gone = || Error::wrong_state("the child has ended");
        let child = self.child.as_ref().ok_or_else(gone)?;
        let sent = match target {
            SignalTarget::Process if self.exited.is_some() => Err(Errno::SRCH),
            SignalTarget::Process => child.signal(number),
            SignalTarget::Group => child.signal_group(number),
            SignalTarget::Foreground => match &self.terminal {
                Some(terminal) => terminal.signal_foreground(self.pid, number),
                None => return Err(no_terminal()),
            },
        };
        sent.map_err(|errno| match errno {
            Errno::SRCH => gone(),
            errno => SystemError::new(errno, "signal", "").into(),
        })
    }

    fn tree(&mut self, cx: &mut Context<'_>) -> Result<Tree> {
        if cx.is_polled() {
            self.check_exit(cx);
        }
        let tree = self
            .child
            .as_ref()
            .and_then(|child| child.tree(self.kill_grace));
        tree.ok_or_else(|| Error::wrong_state("the child has ended"))
    }

    fn resize(&mut self, cx: &mut Context<'_>, size: TerminalSize) -> Result<()> {
        let terminal = self.terminal.as_mut().ok_or_else(no_terminal)?;
        terminal.resize(cx, size)
    }

    fn change(&mut self, cx: &mut Context<'_>, change: Change) -> Result<()> {
        match change {
            Change::Process(change) => self.change_end(cx, &change),
            _ => Err(super::unsupported("what is to be changed")),
        }
    }

    fn kill_at_end(&mut self) {
        self.at_end = AtEnd::KillTree;
    }

    fn kill_now(&mut self) {
        if self.at_end == AtEnd::KillTree
            && let Some(child) = &self.child
        {
            child.kill_now();
        }
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        let [stdout_bytes, stderr_bytes] = self.output_bytes();
        let alive = self.child.as_ref().filter(|_| self.exited.is_none());
        let state = alive.map_or(State::Running, Child::state);
        Some(proto::watch::Status::Process(proto::ProcessStatus {
            pid: self.pid,
            exited: self.exited.clone(),
            stdin_bytes: self.stdin_bytes,
            stdout_bytes,
            stderr_bytes,
            stopped: matches!(state, State::Stopped),
            ended_untold: matches!(state, State::Ended(_)),
            stdin_water_marks: self.stdin.as_ref().map(|stdin| stdin.marks().into()),
            cgroup: alive
                .and_then(Child::group)
                .map_or_else(String::new, |group| {
                    group.path().to_string_lossy().into_owned()
                }),
            cgroup_usage: None,
            terminal: self
                .terminal
                .as_ref()
                .map(|terminal| terminal.status(self.pid)),
        }))
    }
}

impl Process {
    /// Returns how many bytes of its outputs were told.
    fn output_bytes(&self) -> [u64; 2] {
        std::array::from_fn(|index| {
            let output = self.outputs[index].as_ref();
            output.map_or(self.ended_bytes[index], |output| output.offset)
        })
    }
}

fn no_terminal() -> Error {
    Error::wrong_state("the child has no terminal, or its output has ended")
}
