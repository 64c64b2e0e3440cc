//! What later lives of the daemon need of a child, and how they go on with it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::child::{Child, Whose};
use super::terminal::{EarlierTerminal, Terminal};
use super::timeout::Timeout;
use super::{AfterGrace, Process, ProcessChange, STDERR, STDIN, STDOUT};
use crate::clock::nanos;
use crate::config::ChildWatcher;
use crate::driver::{Driver, Nonblocking, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{Exited, Kind, Stream, StreamEnd, StreamEndReason};
use crate::proto::exited::Status;
use crate::proto::state::kept_watch_state::Of;
use crate::proto::state::{KeptChild, KeptStream};
use crate::state::descriptor;
use crate::watch::transport::{Incoming, Outgoing};
use crate::watch::{Context, Resumption, Services, Watch, WaterMarks};

/// A child of a dead life.
#[derive(Debug)]
pub struct Orphan {
    /// Its pid.
    pub pid: i32,
    /// When it was started, clock ticks since the boot.
    pub start_time: u64,
    /// Whose child it is now.
    pub whose: Whose,
    /// Its pidfd; `None` if it has ended and nobody can tell how.
    pub pidfd: Option<OwnedFd>,
    /// The number of its cgroup; 0 if it has none of its own.
    pub cgroup: u64,
    /// The daemon's ends of its pipes; `None` for one that is closed.
    pub pipes: [Option<OwnedFd>; 3],
    /// Its terminal, if it has one whose output has not ended.
    pub terminal: Option<EarlierTerminal>,
    /// How it ends.
    pub ending: ProcessChange,
    /// What happens to its output if other processes keep it open.
    pub after_grace: AfterGrace,
    /// When WritePaused and WriteResumed are appended.
    pub stdin_marks: WaterMarks,
}

impl Orphan {
    /// Takes it over. The watch is not started.
    ///
    /// # Errors
    /// The limit on children.
    pub fn adopt(self, services: &Services) -> Result<Box<dyn Watch>> {
        let permit = services.children.take()?;
        let (whose, pidfd) = (self.whose, self.pidfd);
        let watched_fd = match (&pidfd, whose) {
            (Some(pidfd), Whose::Strangers) => {
                let copy = rustix::io::fcntl_dupfd_cloexec(pidfd, 3);
                Some(copy.map_err(|errno| SystemError::new(errno, "dup", "pidfd"))?)
            }
            _ => None,
        };
        let child = pidfd.map(|pidfd| {
            Child::adopt(
                whose,
                (self.pid, pidfd),
                self.start_time,
                permit,
                &services.reaper,
                self.ending.signals,
                services.cgroups.again(self.cgroup).map(Arc::new),
            )
        });
        Ok(Box::new(Process {
            pid: self.pid,
            child,
            watched_fd,
            watched: None,
            waiter: None,
            subscription: None,
            pipes: self.pipes,
            terminal: self.terminal.map(Terminal::of_earlier_life),
            types: false,
            stdin_marks: self.stdin_marks,
            stdin: None,
            outputs: [None, None],
            exited: None,
            at_end: self.ending.at_end,
            after_grace: self.after_grace,
            watcher: match whose {
                Whose::Strangers => ChildWatcher::Pidfd,
                // The keeper reaps it, and then sends SIGCHLD.
                Whose::Own | Whose::Keepers => ChildWatcher::Sigchld,
            },
            pipe_grace: self.ending.pipe_grace.unwrap_or(services.pipe_grace),
            has_grace: false,
            kill_grace: self.ending.kill_grace.unwrap_or(services.kill_grace),
            stdin_bytes: 0,
            ended_bytes: [0; 2],
            unsent: 0,
            timeout: Timeout::None,
            started: 0,
            check_at: None,
            killing: false,
            kills: 0,
            start_time: self.start_time,
        }))
    }
}

impl Process {
    pub(super) fn kept(&self, driver: &dyn Driver) -> Option<Of> {
        let terminal = match &self.terminal {
            Some(terminal) => Some(terminal.kept()?),
            None => None,
        };
        let file = |source: SourceId| descriptor(driver.fd(source)?);
        let stream = |output: &Option<Incoming>| {
            output.as_ref().map(|output| KeptStream {
                descriptor: Some(output.source).filter(|_| !output.ended).and_then(file),
                paused: output.paused,
            })
        };
        let stdin = self.stdin.as_ref();
        let group = self.child.as_ref().and_then(Child::group);
        Some(Of::Child(KeptChild {
            pid: self.pid,
            start_time: self.start_time,
            pidfd: self.child.as_ref().and_then(Child::pidfd_for_later),
            stdin: stdin.and_then(|stdin| file(stdin.source)),
            stdout: stream(&self.outputs[0]),
            stderr: stream(&self.outputs[1]),
            stdin_eof: stdin.is_some_and(|stdin| stdin.eof),
            exited: self.exited.clone(),
            started: self.started,
            timeout_at: match self.timeout {
                Timeout::At(at) | Timeout::KillAt(at) => Some(at),
                Timeout::In(time) => Some(self.started.saturating_add(nanos(time))),
                Timeout::None | Timeout::Killed => None,
            },
            timed_out: self.timeout.is_over(),
            killing: self.killing,
            terminal,
            strangers: self.child.as_ref().is_some_and(Child::is_strangers),
            cgroup: group.map_or(0, |group| group.number()),
        }))
    }

    /// Goes on with a child of a dead life.
    pub(super) fn go_on(&mut self, cx: &mut Context<'_>, rest: &Resumption) -> Result<()> {
        let Of::Child(child) = &rest.of else {
            return Err(Error::Internal("what was kept is no child"));
        };
        let mut kept = child.clone();
        let kept_terminal = kept.terminal.take();
        self.started = kept.started;
        self.timeout = match (kept.timeout_at, kept.timed_out) {
            (Some(at), false) => Timeout::At(at),
            (Some(at), true) => Timeout::KillAt(at),
            (None, true) => Timeout::Killed,
            (None, false) => Timeout::None,
        };
        (self.killing, self.stdin_bytes) = (kept.killing, rest.progress.taken);
        let [stdin, stdout, stderr] = std::mem::take(&mut self.pipes);
        let mut attach = |fd: Option<OwnedFd>| cx.attach(fd?, Nonblocking::Own);
        let sources = [attach(stdin), attach(stdout), attach(stderr)];
        let sent = rest.sent(kept.stdin.as_ref())?;
        self.stdin = sources[0].map(|source| {
            let mut stdin = Outgoing::that_survives(STDIN, source, self.stdin_marks);
            stdin.eof = kept.stdin_eof;
            stdin.go_on(cx, sent, rest);
            stdin
        });
        if self.stdin.as_ref().is_some_and(Outgoing::is_finished) {
            self.close_stdin(cx);
        }
        let is_terminal = self.terminal.is_some();
        let output = |lane, index: usize, stream, kept: &Option<KeptStream>| {
            let kept = kept.as_ref()?;
            let of = match is_terminal && lane == STDOUT {
                true => Incoming::of_terminal,
                false => Incoming::of_pipe,
            };
            let mut output = of(lane, sources[index + 1]?, stream);
            output.paused = kept.paused;
            Some(output)
        };
        self.outputs = [
            output(STDOUT, 0, Stream::Stdout, &kept.stdout),
            output(STDERR, 1, Stream::Stderr, &kept.stderr),
        ];
        for (index, kept) in [kept.stdout, kept.stderr].into_iter().enumerate() {
            if let Some(output) = &mut self.outputs[index] {
                let from = kept.and_then(|kept| kept.descriptor);
                output.take_up(cx, from.as_ref(), index, rest);
                let terminal = self.terminal.as_mut().filter(|_| index == 0);
                if let (Some(terminal), Some(kept)) = (terminal, &kept_terminal) {
                    self.stdin_bytes = terminal.go_on(cx, output, kept, rest);
                }
                output.start(cx);
            }
        }
        self.ended_bytes = rest.progress.received;
        for (index, kept) in [kept.stdout, kept.stderr].iter().enumerate() {
            if self.outputs[index].is_none() && kept.is_some_and(|kept| kept.descriptor.is_some()) {
                let flushes = kept_terminal.as_ref().filter(|_| index == 0);
                self.lose_output(cx, index, flushes.map_or(0, |terminal| terminal.flushes));
            }
        }
        if kept.stdin.is_some() && self.stdin.is_none() {
            let unsent = rest.unsent.iter().map(|(_, bytes)| bytes.len() as u64);
            self.unsent = unsent.sum();
        }
        self.exited = kept.exited;
        if self.exited.is_none() && self.child.is_none() {
            self.exited(cx, gone());
        } else if self.exited.is_none() {
            self.watch_exit(cx);
            self.set_next_alarm(cx);
            if let Some(child) = &self.child {
                child.notify_end_of_orphan(cx.key(), cx.notifier);
            }
        } else {
            self.start_grace(cx);
            self.close_if_done(cx);
        }
        cx.changed();
        Ok(())
    }
}

impl Process {
    /// Tells that an output has ended with the process that read it.
    fn lose_output(&mut self, cx: &mut Context<'_>, index: usize, flushes: u64) {
        let stream = [Stream::Stdout, Stream::Stderr][index];
        cx.emit(Kind::StreamEnd(StreamEnd {
            stream: stream.into(),
            offset: self.ended_bytes[index],
            reason: StreamEndReason::Lost.into(),
            error: None,
            flushes,
        }));
    }
}

/// The exit of a child that nobody has seen.
fn gone() -> Exited {
    let why = "it ended when neither the daemon nor its keeper lived";
    Exited {
        status: Some(Status::Unknown(why.to_owned())),
        ..Exited::default()
    }
}
