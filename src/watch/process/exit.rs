//! Detects and reports the exit of a child, and ends its output afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use rustix::io::Errno;

use super::child::{Child, State};
use super::watcher::ChildSignals;
use super::{AfterGrace, AtEnd, EXIT, KILL_AGAIN, Process, STDERR, STDIN, STDOUT};
use crate::config::ChildWatcher;
use crate::driver::{Direction, Lane, Nonblocking, Op, SourceId};
use crate::error::SystemError;
use crate::event::{CloseReason, Exited, Kind, StreamEnd, StreamEndReason};
use crate::faults::{self, Point};
use crate::watch::transport::Incoming;
use crate::watch::{Context, Notice, Teardown};

/// The largest number of bytes that a driver has read from a pipe and not reported yet.
const UNDER_WAY: u64 = 1 << 20;

impl Process {
    pub(super) fn is_done(&self) -> bool {
        self.exited.is_some() && self.outputs.iter().flatten().all(|o| o.ended)
    }

    pub(super) fn watch_exit(&mut self, cx: &mut Context<'_>) {
        match self.watcher {
            ChildWatcher::Pidfd => {
                let fd = self.watched_fd.take();
                self.watched = fd.and_then(|fd| cx.attach(fd, Nonblocking::ReadinessOnly));
                match self.watched {
                    Some(source) => cx.start(EXIT, source, Op::Ready(Direction::Read)),
                    // Without a pidfd to wait on, the child is checked periodically.
                    None => self.check_exit_later(cx),
                }
            }
            ChildWatcher::Thread => {
                if let Some(waiter) = &self.waiter {
                    waiter.set_recipient(cx.key(), Arc::clone(cx.notifier));
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
                // The child may have ended before the subscription.
                if cx.is_polled() {
                    self.check_exit(cx);
                } else if let Some((_, told)) = &self.subscription {
                    // The notice waits until the loop runs: a stopped loop appends no exit.
                    told.store(true, Ordering::Release);
                    cx.notifier.notify(cx.key(), Notice::ChildSignal);
                }
            }
        }
    }

    /// Checks whether the child has ended, and reports its exit if it has. All child watchers end
    /// up here.
    pub(super) fn check_exit(&mut self, cx: &mut Context<'_>) {
        if self.exited.is_none()
            && let Some(child) = &self.child
            && let State::Ended(exited) = child.state()
        {
            faults::point(Point::ExitLooked);
            self.exited(cx, *exited);
        }
    }

    /// As [`Self::check_exit`], for a child that is reported to have ended. While it cannot be
    /// reaped, because a tracer is to get its exit first (ptrace(2)), it is checked again later.
    pub(super) fn check_reported_exit(&mut self, cx: &mut Context<'_>) {
        self.check_exit(cx);
        if self.exited.is_none() && !cx.is_closing() {
            self.check_exit_later(cx);
        }
    }

    pub(super) fn exited(&mut self, cx: &mut Context<'_>, mut exited: Exited) {
        exited.timed_out = self.timeout.is_over();
        let group = self.child.as_ref().and_then(Child::group);
        exited.cgroup_usage = group.and_then(|group| group.usage()).map(Into::into);
        cx.clear_alarm();
        cx.emit(Kind::Exited(exited.clone()));
        faults::point(Point::ExitAppended);
        self.exited = Some(exited);
        if let Some(reaping) = self.child.as_mut().and_then(Child::exit_reported) {
            cx.reap(reaping);
        }
        for output in self.outputs.iter_mut().flatten() {
            output.own_end = output.offset + unread(cx, output.source) + UNDER_WAY;
        }
        self.subscription = None;
        self.waiter = None;
        if let Some(terminal) = &mut self.terminal {
            terminal.child_ended(cx);
            cx.cancel(STDIN);
        }
        if self.stdin.is_some() {
            // The child no longer reads stdin; only other processes may still read it.
            cx.cancel(STDIN);
        }
        if cx.is_closing() && !cx.is_polled() {
            // A stopped loop gets no more completions.
            cx.finish();
        } else if cx.is_closing() {
            // The end of the watch was requested, so it does not wait for room in the journal.
            self.end_outputs(cx, |output| output.held);
        }
        self.close_if_done(cx);
        self.start_grace(cx);
    }

    /// Limits how long other processes may keep the output of an ended child open.
    pub(super) fn start_grace(&mut self, cx: &mut Context<'_>) {
        let bounded = self.after_grace == AfterGrace::Drain || cx.is_closing();
        if self.exited.is_some() && !self.is_done() && bounded && !self.has_grace {
            self.has_grace = true;
            cx.set_alarm_in(self.pipe_grace);
        }
    }

    pub(super) fn end_stream(&mut self, cx: &mut Context<'_>, lane: Lane, reason: StreamEndReason) {
        self.end_stream_with(cx, lane, reason, None);
    }

    pub(super) fn end_stream_with(
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
        // The terminal is stdout.
        let terminal = self.terminal.take_if(|_| lane == STDOUT);
        cx.emit(Kind::StreamEnd(StreamEnd {
            stream: output.stream.into(),
            offset: output.offset,
            reason: reason.into(),
            error: errno.map(|e| (&SystemError::new(e, "read", "")).into()),
            flushes: terminal.as_ref().map_or(0, |terminal| terminal.flushes),
        }));
        let goes_on = matches!(
            reason,
            StreamEndReason::GraceExpired | StreamEndReason::Released
        );
        if let Some(terminal) = terminal {
            if goes_on {
                let rest = terminal.into_rest(cx);
                cx.drain(rest, self.pid, output.stream);
            } else {
                terminal.close(cx);
            }
            // It may still wait to be typed into. Then it is released with the watch.
            cx.cancel(STDIN);
            let is_typed = self.types && cx.is_live(STDIN);
            if !cx.is_live(lane) && !is_typed {
                cx.release(output.source);
            }
            return;
        }
        if cx.is_live(lane) {
            return;
        }
        if !goes_on {
            cx.release(output.source);
        } else if let Some(pipe) = cx.take(output.source) {
            cx.drain(pipe, self.pid, output.stream);
        }
    }

    /// Ends the streams that match, even if other processes keep them open.
    pub(super) fn end_outputs(&mut self, cx: &mut Context<'_>, which: impl Fn(&Incoming) -> bool) {
        for lane in [STDOUT, STDERR] {
            let output = &mut self.outputs[usize::from(lane == STDERR)];
            let Some(output) = output.as_mut().filter(|o| !o.ended && which(o)) else {
                continue;
            };
            if !output.end(cx) {
                self.end_stream(cx, lane, StreamEndReason::GraceExpired);
            }
        }
        self.close_if_done(cx);
    }

    /// Ends the watch once the child and its streams have ended.
    pub(super) fn close_if_done(&mut self, cx: &mut Context<'_>) {
        if self.is_done() {
            cx.clear_alarm();
            cx.cancel(STDIN);
            cx.close(CloseReason::Completed);
            cx.finish();
        }
    }

    pub(super) fn close_stdin(&mut self, cx: &mut Context<'_>) {
        if let Some(stdin) = &self.stdin
            && !cx.is_live(STDIN)
        {
            cx.changed();
            self.unsent = stdin.buffered();
            self.stdin_bytes = stdin.taken;
            cx.release(stdin.source);
            self.stdin = None;
        }
    }

    pub(super) fn kill(&self) {
        if let Some(child) = &self.child {
            child.kill();
        }
    }

    /// Begins the end of the watch while the loop is stopped: no completion or alarm will come, so
    /// the reaper reports the end of the child.
    pub(super) fn close_unpolled(&mut self, cx: &mut Context<'_>) -> Teardown {
        if self.at_end == AtEnd::KillTree {
            self.killing = true;
            self.kill();
        }
        match self.child.as_ref().and_then(Child::pidfd_shared) {
            Some(pidfd) if self.exited.is_none() => {
                let notifier = Arc::clone(cx.notifier);
                cx.services.reaper.notify_end(pidfd, cx.key(), notifier);
                // The loop may run again before that.
                cx.set_alarm_in(KILL_AGAIN);
                Teardown::Later
            }
            _ => Teardown::Now,
        }
    }
}

/// Returns the number of unread bytes in a pipe.
pub(super) fn unread(cx: &Context<'_>, source: SourceId) -> u64 {
    cx.fd(source)
        .and_then(|fd| rustix::io::ioctl_fionread(fd).ok())
        .unwrap_or(0)
}
