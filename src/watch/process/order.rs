//! What a client asks for: a child, and how to watch it.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::DupFlags;

use super::child::Child;
use super::spawn::{self, Recipe, Spawned};
use super::timeout::Timeout;
use super::watcher::Waiter;
use super::{Attributes, Process};
use crate::config::ChildWatcher;
use crate::error::{Result, SystemError};
use crate::event::largest;
use crate::watch::{Need, Services, Watch};

/// What to execute.
#[derive(Debug, Clone)]
pub enum Program {
    /// Program and arguments, at least the program.
    Exec(Vec<CString>),
    /// A line for `/bin/sh -c`.
    Shell(CString),
}

/// Where a child's stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// `/dev/null`.
    Null,
    /// A pipe to the daemon.
    Pipe,
}

/// What happens to a child that still runs when its watch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// SIGTERM to its group, then SIGKILL.
    KillTree,
    /// It is left running.
    Keep,
}

/// What happens to a stream that other processes keep open after the child has ended and
/// `pipe_grace` has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterGrace {
    /// It ends; what comes after is read and discarded.
    Drain,
    /// It is delivered on, until its end of file.
    KeepReading,
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTarget {
    /// The child.
    Process,
    /// Its process group.
    Group,
}

/// A child as asked for.
#[derive(Debug)]
pub struct ProcessOrder {
    /// What to execute.
    pub program: Program,
    /// The whole environment, `NAME=value`.
    pub env: Arc<[CString]>,
    /// Working directory, absolute.
    pub cwd: CString,
    /// stdin, stdout, stderr.
    pub stdio: [Stdio; 3],
    /// What is asked for, over all that the child would have otherwise.
    pub attributes: Attributes,
    /// What the client itself has.
    pub inherited: Attributes,
    /// How long others may keep its output open after it has ended; `None`: the configuration's.
    pub pipe_grace: Option<Duration>,
    /// Between SIGTERM and SIGKILL; `None`: the configuration's.
    pub kill_grace: Option<Duration>,
    /// How long it may run; `None`: as long as it likes.
    pub timeout: Option<Duration>,
    /// If it still runs at the end.
    pub at_end: AtEnd,
    /// If others keep its output open.
    pub after_grace: AfterGrace,
    /// How its end is noticed.
    pub watcher: ChildWatcher,
}

impl ProcessOrder {
    /// What the watch takes.
    #[must_use]
    pub fn need(&self) -> Need {
        let pipes = self.stdio.iter().filter(|s| **s == Stdio::Pipe).count();
        let streams = self.stdio[1..].iter().filter(|s| **s == Stdio::Pipe);
        let pidfd = usize::from(self.watcher == ChildWatcher::Pidfd);
        let need = Need::sources(pipes + pidfd)
            .and(largest::STARTED)
            .and(largest::EXITED);
        streams.fold(need, |need, _| need.and(largest::STREAM_END))
    }

    /// The watch, with the child started. May block.
    ///
    /// # Errors
    /// The limit on children, or the system's refusal and at which step. Nothing runs then.
    pub fn build(self, services: &Services) -> Result<Box<dyn Watch>> {
        let permit = services.children.take()?;
        let inherited = self.inherited.over(&services.own).within_our_own();
        let recipe = Recipe {
            program: self.program,
            env: self.env,
            cwd: self.cwd,
            stdio: self.stdio,
            attributes: self.attributes.over(&services.configured).over(&inherited),
        };
        // All that can be refused comes before the child is started.
        let (place, waiter) = match self.watcher {
            ChildWatcher::Pidfd => (Some(place()?), None),
            ChildWatcher::Thread => (None, Some(Waiter::start()?)),
            ChildWatcher::Sigchld => (None, None),
        };
        let Spawned { pid, pidfd, pipes } = spawn::spawn(recipe)?;
        let watched_fd = match place {
            Some(mut place) => {
                // It takes the place of a descriptor that is open: none is needed (dup2(2)).
                let dup = rustix::io::dup3(&pidfd, &mut place, DupFlags::CLOEXEC);
                dup.map(|()| Some(place)).unwrap_or_default()
            }
            None => None,
        };
        let child = Child::new(pid, pidfd, permit, &services.reaper);
        if let Some(waiter) = &waiter {
            waiter.wait_for(&child);
        }
        Ok(Box::new(Process {
            pid,
            child: Some(child),
            watched_fd,
            watched: None,
            waiter,
            subscription: None,
            pipes,
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
            look_at: None,
            killing: false,
            kills: 0,
        }))
    }
}

/// A descriptor whose number a child's pidfd will have. Whatever it is of: ours are all open.
fn place() -> Result<OwnedFd> {
    let any = rustix::stdio::stderr();
    let placed = rustix::io::fcntl_dupfd_cloexec(any, 3);
    placed.map_err(|errno| SystemError::new(errno, "pidfd", "").into())
}
