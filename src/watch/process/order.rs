//! The order of a process watch: a child, and how to watch it.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::DupFlags;

use super::child::Child;
use super::spawn::{self, Recipe, Spawned};
use super::timeout::Timeout;
use super::watcher::Waiter;
use super::{Attributes, EndSignals, Process};
use crate::config::ChildWatcher;
use crate::error::{Result, SystemError};
use crate::event::largest;
use crate::proto::TerminalSize;
use crate::watch::{Need, Services, Watch, WaterMarks};

/// The program to execute.
#[derive(Debug, Clone)]
pub enum Program {
    /// The program and its arguments; at least the program.
    Exec(Vec<CString>),
    /// A command line for `/bin/sh -c`.
    Shell(CString),
}

/// The target of a child's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// `/dev/null`.
    Null,
    /// A pipe to the daemon.
    Pipe,
    /// The child's terminal.
    Pty,
}

/// The treatment of a child that still runs when its watch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// Its group gets SIGTERM, then SIGKILL.
    KillTree,
    /// The child is left running.
    Keep,
}

/// The treatment of a stream that other processes keep open after the child has ended and
/// `pipe_grace` has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterGrace {
    /// The stream ends; later bytes are read and discarded.
    Drain,
    /// The stream is delivered until its end of file.
    KeepReading,
}

/// The receiver of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTarget {
    /// The child process.
    Process,
    /// The child's process group.
    Group,
    /// The process group in the foreground of the child's terminal.
    Foreground,
}

/// The checked order of a process watch.
#[derive(Debug)]
pub struct ProcessOrder {
    /// The program to execute.
    pub program: Program,
    /// The whole environment, `NAME=value`.
    pub env: Arc<[CString]>,
    /// Working directory, absolute.
    pub cwd: CString,
    /// The targets of stdin, stdout and stderr.
    pub stdio: [Stdio; 3],
    /// The size of its terminal, if one of them is it.
    pub terminal: TerminalSize,
    /// When WritePaused and WriteResumed are appended for a stdin that is a pipe.
    pub stdin_marks: WaterMarks,
    /// The attributes that the client requests; they override all others.
    pub attributes: Attributes,
    /// The attributes of the client itself.
    pub inherited: Attributes,
    /// How long other processes may keep its output open after it has ended; `None` means the
    /// configured time.
    pub pipe_grace: Option<Duration>,
    /// The time between SIGTERM and SIGKILL; `None` means the configured time.
    pub kill_grace: Option<Duration>,
    /// How long it may run; `None` means without limit.
    pub timeout: Option<Duration>,
    /// What happens to it if it still runs when the watch ends.
    pub at_end: AtEnd,
    /// What happens to its output if other processes keep it open.
    pub after_grace: AfterGrace,
    /// How its end is detected.
    pub watcher: ChildWatcher,
    /// The signals that ask it to end.
    pub signals: EndSignals,
}

impl ProcessOrder {
    /// Returns what the watch needs.
    #[must_use]
    pub fn need(&self) -> Need {
        let pipes = self.stdio.iter().map(|s| u32::from(*s == Stdio::Pipe));
        let terminal = u32::from(self.stdio.contains(&Stdio::Pty));
        let [_, stdout, stderr] = self.stdio;
        let streams = [stdout != Stdio::Null, stderr == Stdio::Pipe];
        let streams = streams.into_iter().filter(|is_stream| *is_stream);
        let pidfd = u32::from(self.watcher == ChildWatcher::Pidfd);
        let need = Need::sources(pipes.sum::<u32>() + terminal + pidfd)
            .and(largest::STARTED)
            .and(largest::EXITED);
        streams.fold(need, |need, _| need.and(largest::STREAM_END))
    }

    /// Starts the child and builds the watch. May block.
    ///
    /// # Errors
    /// The limit on children is reached, or the system refused a step. Then no child runs.
    pub fn build(self, services: &Services) -> Result<Box<dyn Watch>> {
        let permit = services.children.take()?;
        let inherited = self.inherited.over(&services.own).within_our_own();
        let recipe = Recipe {
            program: self.program,
            env: self.env,
            cwd: self.cwd,
            stdio: self.stdio,
            terminal: self.terminal,
            attributes: self.attributes.over(&services.configured).over(&inherited),
        };
        // Everything that can be refused is done before the child starts.
        let (place, waiter) = match self.watcher {
            ChildWatcher::Pidfd => (Some(placeholder_fd()?), None),
            ChildWatcher::Thread => (None, Some(Waiter::start()?)),
            ChildWatcher::Sigchld => (None, None),
        };
        let born = crate::clock::boot_ticks();
        let spawned = spawn::spawn(recipe, &services.cgroups)?;
        let Spawned {
            pid,
            pidfd,
            pipes,
            group,
            terminal,
        } = spawned;
        let watched_fd = match place {
            Some(mut place) => {
                // dup3(2) needs no free descriptor here, because it replaces an open one.
                let dup = rustix::io::dup3(&pidfd, &mut place, DupFlags::CLOEXEC);
                dup.map(|()| Some(place)).unwrap_or_default()
            }
            None => None,
        };
        let child = Child::new(
            (pid, pidfd),
            born,
            permit,
            &services.reaper,
            self.signals,
            group.map(Arc::new),
        );
        if let Some(waiter) = &waiter {
            waiter.set_child(&child);
        }
        Ok(Box::new(Process {
            pid,
            child: Some(child),
            watched_fd,
            watched: None,
            waiter,
            subscription: None,
            pipes,
            pty: terminal,
            typed_into: self.stdio[0] == Stdio::Pty,
            terminal: None,
            stdin_marks: self.stdin_marks,
            stdin: None,
            outputs: [None, None],
            exited: None,
            at_end: self.at_end,
            after_grace: self.after_grace,
            watcher: self.watcher,
            pipe_grace: self.pipe_grace.unwrap_or(services.pipe_grace),
            has_grace: false,
            kill_grace: self.kill_grace.unwrap_or(services.kill_grace),
            stdin_bytes: 0,
            unsent: 0,
            timeout: self.timeout.map_or(Timeout::None, Timeout::In),
            check_at: None,
            killing: false,
            kills: 0,
        }))
    }
}

/// Opens a descriptor whose number the duplicate of a child's pidfd will get. It is a duplicate of
/// standard error only because that is always open.
fn placeholder_fd() -> Result<OwnedFd> {
    let any = rustix::stdio::stderr();
    let placed = rustix::io::fcntl_dupfd_cloexec(any, 3);
    placed.map_err(|errno| SystemError::new(errno, "pidfd", "").into())
}
