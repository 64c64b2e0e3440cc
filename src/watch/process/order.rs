//! The order of a process watch: a child, and how to watch it.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::DupFlags;

use super::child::Child;
use super::spawn::{self, Recipe, Spawned};
use super::terminal::Terminal;
use super::timeout::Timeout;
use super::user::UserOrder;
use super::watcher::Waiter;
use super::{Attributes, EndSignals, Process};
use crate::config::ChildWatcher;
use crate::error::{Result, SystemError};
use crate::event::largest;
use crate::faults::{self, Point};
use crate::proto::TerminalSize;
use crate::state;
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdio {
    /// `/dev/null`.
    Null,
    /// A pipe to the daemon.
    Pipe,
    /// The child's terminal.
    Pty,
    /// A file.
    File(FileTarget),
    /// The descriptor that was handed over and has this index.
    Given(usize),
    /// The target of stdout; for stderr only.
    Stdout,
}

/// A file that a child's stream is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTarget {
    /// Its absolute path.
    pub path: CString,
    /// How it is opened.
    pub flags: OFlags,
    /// The permissions if it is made, less the umask.
    pub permissions: Mode,
}

/// How the kernel schedules the child, see sched_setscheduler(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduling {
    /// The policy, with `SCHED_RESET_ON_FORK` if that is wanted.
    pub policy: i32,
    /// The priority.
    pub priority: i32,
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
    /// The targets of stdin, stdout and stderr. If stdin or stderr is the terminal, stdout is too.
    pub stdio: [Stdio; 3],
    /// Further descriptors, by ascending number from 3: the number, and the index of the descriptor
    /// that was handed over.
    pub passed: Vec<(i32, usize)>,
    /// The size of the terminal, if there is one.
    pub terminal: TerminalSize,
    /// The user that it runs as.
    pub user: UserOrder,
    /// How it is scheduled; `None`: as the daemon.
    pub scheduling: Option<Scheduling>,
    /// Whether it leads a new session, not only a new process group.
    pub new_session: bool,
    /// The signal that it gets when the daemon ends.
    pub death_signal: Option<i32>,
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
        let [_, stdout, stderr] = &self.stdio;
        let pipes = self.stdio.iter().map(|s| u32::from(*s == Stdio::Pipe));
        let terminal = u32::from(*stdout == Stdio::Pty);
        let streams = [
            matches!(stdout, Stdio::Pipe | Stdio::Pty),
            *stderr == Stdio::Pipe,
        ];
        let streams = streams.iter().filter(|is_read| **is_read);
        let pidfd = u32::from(self.watcher == ChildWatcher::Pidfd);
        let need = Need::sources(pipes.sum::<u32>() + terminal + pidfd)
            .and(largest::STARTED)
            .and(largest::EXITED);
        streams.fold(need, |need, _| need.and(largest::STREAM_END))
    }

    /// Starts the child and builds the watch. `given` are the descriptors that were handed over. May
    /// block.
    ///
    /// # Errors
    /// The limit on children is reached, the user is not known or not allowed, or the system refused
    /// a step. Then no child runs.
    pub fn build(self, services: &Services, given: &[BorrowedFd<'_>]) -> Result<Box<dyn Watch>> {
        let permit = services.children.take()?;
        let user = self.user.resolve()?;
        let types = self.stdio[0] == Stdio::Pty;
        let inherited = self.inherited.over(&services.own).within_our_own();
        let recipe = Recipe {
            program: self.program,
            env: self.env,
            cwd: self.cwd,
            stdio: self.stdio,
            given,
            passed: self.passed,
            terminal: self.terminal,
            user,
            scheduling: self.scheduling,
            new_session: self.new_session,
            death_signal: self.death_signal,
            attributes: self.attributes.over(&services.configured).over(&inherited),
        };
        // Everything that can be refused is done before the child starts.
        let (place, waiter) = match self.watcher {
            ChildWatcher::Pidfd => (Some(placeholder_fd()?), None),
            ChildWatcher::Thread => (None, Some(Waiter::start()?)),
            ChildWatcher::Sigchld => (None, None),
        };
        let start = services.starts.as_ref().map(|starts| {
            let too_many = SystemError::new(
                rustix::io::Errno::AGAIN,
                "start",
                "too many children start at once",
            );
            starts.begin().ok_or(too_many)
        });
        let start = start.transpose()?;
        faults::point(Point::StartIntended);
        let born = crate::clock::boot_ticks();
        let Spawned {
            pid,
            pidfd,
            mut pipes,
            group,
            terminal,
        } = spawn::spawn(
            &recipe,
            &services.cgroups,
            start.as_ref().map(state::Start::word),
        )?;
        faults::point(Point::ChildExecuted);
        let terminal = terminal.map(|opened| {
            let (terminal, master) = Terminal::new(opened, self.terminal);
            pipes[1] = Some(master);
            terminal
        });
        let watched_fd = match place {
            Some(mut place) => {
                // dup3(2) needs no free descriptor here, because it replaces an open one.
                let dup = rustix::io::dup3(&pidfd, &mut place, DupFlags::CLOEXEC);
                dup.map(|()| Some(place)).unwrap_or_default()
            }
            None => None,
        };
        let mut child = Child::new(
            (pid, pidfd),
            born,
            permit,
            &services.reaper,
            self.signals,
            group.map(Arc::new),
        );
        child.start = start;
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
            terminal,
            types,
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
            ended_bytes: [0; 2],
            unsent: 0,
            timeout: self.timeout.map_or(Timeout::None, Timeout::In),
            started: 0,
            check_at: None,
            killing: false,
            kills: 0,
            start_time: 0,
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
