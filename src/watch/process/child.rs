//! A child process. Only this type signals it, and only it and [`super::reaper`] reap it. All child
//! watchers check the child's state here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::libc;
use rustix::io::Errno;

use super::reaper::Reaper;
use super::reaping::Reaping;
use super::tree::Tree;
use crate::cgroup::Group;
use crate::driver::Key;
use crate::event::Exited;
use crate::proto::state::KeptDescriptor;
use crate::proto::{ResourceUsage, exited::Status};
use crate::state::{Start, descriptor};
use crate::sys::pidfd::{self, Ended};
use crate::sys::{self, ChildState, Waited};
use crate::watch::Notifier;
use crate::watch::services::Permit;

/// The signals that ask a child to end, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndSignals {
    /// The first signal: SIGTERM, or the `stop_signal` of the spec.
    pub first: i32,
    /// Whether SIGHUP follows: for the shell of a terminal, which ignores SIGTERM.
    pub hang_up: bool,
}

impl EndSignals {
    /// Returns one signal.
    pub(super) const fn only(first: i32) -> Self {
        Self {
            first,
            hang_up: false,
        }
    }

    /// Returns the signals. The last one is SIGCONT, since a stopped process does not act on others
    /// until it continues.
    pub(super) fn in_order(self) -> impl Iterator<Item = i32> {
        let hang_up = self.hang_up.then_some(libc::SIGHUP);
        let all = [Some(self.first), hang_up, Some(libc::SIGCONT)];
        all.into_iter().flatten()
    }
}

impl Default for EndSignals {
    fn default() -> Self {
        Self::only(libc::SIGTERM)
    }
}

/// Whose child a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This life's.
    Own,
    /// A dead life's: the keeper reaps it.
    Keepers,
    /// A dead life's whose keeper is dead, too: the process that has adopted it reaps it.
    Strangers,
}

/// The state of a child as the kernel reports it.
#[derive(Debug)]
pub(super) enum State {
    Running,
    Stopped,
    Ended(Box<Exited>),
}

/// A child of the daemon, until it is reaped. A child that is dropped before that is killed with
/// its group and reaped by the reaper, so that a failed registration leaves no process.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    /// The pidfd. Present until the child is left to the reaper.
    pidfd: Option<Arc<OwnedFd>>,
    /// Whether its group can be signalled by number only (before Linux 6.9). The number is its own
    /// until the child is reaped; after that the kernel may reuse it.
    by_number: bool,
    reaped: bool,
    /// Its unit of `limits.children`, held until it is reaped.
    permit: Option<Permit>,
    reaper: Reaper,
    pub(super) signals: EndSignals,
    born: u64,
    /// The cgroup of its own.
    group: Option<Arc<Group>>,
    whose: Whose,
    /// Its start, until its watch has started.
    pub(super) start: Option<Start>,
}

impl Child {
    /// Takes over a child of a dead life, which was started at `born`, clock ticks since boot.
    pub(super) fn adopt(
        whose: Whose,
        (pid, pidfd): (i32, OwnedFd),
        born: u64,
        permit: Permit,
        reaper: &Reaper,
        signals: EndSignals,
        group: Option<Arc<Group>>,
    ) -> Self {
        if whose == Whose::Keepers {
            reaper.adopt(pid, born);
        }
        let mut child = Self::new((pid, pidfd), born, permit, reaper, signals, group);
        child.whose = whose;
        child
    }

    /// Returns whether neither this process nor its keeper reaps it.
    pub(super) fn is_strangers(&self) -> bool {
        self.whose == Whose::Strangers
    }

    /// Returns how later lives find its pidfd.
    pub(super) fn pidfd_for_later(&self) -> Option<KeptDescriptor> {
        descriptor(self.pidfd.as_ref()?.as_fd())
    }

    /// Returns a child that nobody has waited for, and that leads a process group. It was started
    /// not earlier than `born`, in clock ticks since boot.
    pub(super) fn new(
        (pid, pidfd): (i32, OwnedFd),
        born: u64,
        permit: Permit,
        reaper: &Reaper,
        signals: EndSignals,
        group: Option<Arc<Group>>,
    ) -> Self {
        static BY_NUMBER: OnceLock<bool> = OnceLock::new();
        // Signal 0 only checks whether the kernel can signal a group by pidfd, which does not depend
        // on the child.
        let ask = || sys::signal_group(pidfd.as_fd(), 0) == Err(Errno::INVAL);
        let by_number = *BY_NUMBER.get_or_init(ask);
        reaper.started(pid);
        Self {
            pid,
            pidfd: Some(Arc::new(pidfd)),
            by_number,
            reaped: false,
            permit: Some(permit),
            reaper: reaper.clone(),
            signals,
            born,
            group,
            whose: Whose::Own,
            start: None,
        }
    }

    /// Returns the cgroup of its own, if it has one.
    pub(super) fn group(&self) -> Option<&Arc<Group>> {
        self.group.as_ref()
    }

    /// Returns the child with its descendants; `None` if it was left to the reaper.
    pub(super) fn tree(&self, kill_grace: Duration) -> Option<Tree> {
        Some(Tree {
            pid: self.pid,
            pidfd: self.pidfd_shared()?,
            born: self.born,
            signals: self.signals,
            kill_grace,
            reaper: self.reaper.clone(),
            group: self.group.clone(),
        })
    }

    fn pidfd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.pidfd.as_ref().map(|fd| fd.as_fd()).ok_or(Errno::SRCH)
    }

    /// Returns its pidfd, which is readable once the child has ended; `None` if it was left
    /// to the reaper.
    pub(super) fn pidfd_shared(&self) -> Option<Arc<OwnedFd>> {
        self.pidfd.as_ref().map(Arc::clone)
    }

    /// Returns its state from the kernel, without reaping it: see [`Self::exit_reported`].
    pub(super) fn state(&self) -> State {
        match self.whose {
            Whose::Own => {}
            Whose::Keepers => {
                // In this order: the keeper may end after it has recorded the exit.
                let without_keeper = self.reaper.has_lost_keeper();
                return match self.reaper.orphan_exit(self.pid, self.born) {
                    Some(waited) => State::Ended(Box::new(describe(&waited))),
                    None if without_keeper => self.state_of_a_strangers(),
                    None => State::Running,
                };
            }
            Whose::Strangers => return self.state_of_a_strangers(),
        }
        match self.pidfd().and_then(sys::child_state) {
            Ok(ChildState::Running) => State::Running,
            Ok(ChildState::Stopped) => State::Stopped,
            Ok(ChildState::Ended(waited)) => State::Ended(Box::new(describe(&waited))),
            Err(errno) => State::Ended(Box::new(unknown(errno))),
        }
    }

    /// Returns the state of a child of a dead life, which another process than the keeper reaps.
    fn state_of_a_strangers(&self) -> State {
        let Ok(pidfd) = self.pidfd() else {
            return State::Running;
        };
        let (status, core_dumped) = match pidfd::end_of_stranger(pidfd, self.pid) {
            Ok(None) => return State::Running,
            Ok(Some(Ended::Code(code))) => (Status::Code(code), false),
            Ok(Some(Ended::Signal(signal, dumped))) => (Status::Signal(signal), dumped),
            Err(why) => (Status::Unknown(why.to_owned()), false),
        };
        State::Ended(Box::new(Exited {
            status: Some(status),
            core_dumped,
            ..Exited::default()
        }))
    }

    /// Has the watch notified of the end of a child of a dead life, whatever happens to the keeper.
    pub(super) fn notify_end_of_orphan(&self, key: Key, notifier: &Arc<dyn Notifier>) {
        if let Some(pidfd) = self.pidfd_shared().filter(|_| self.whose == Whose::Keepers) {
            self.reaper
                .notify_end_of_orphan(pidfd, key, Arc::clone(notifier));
        }
    }

    /// Returns how the child is reaped after its exit was appended as an event, unless its number is
    /// still needed to signal its group.
    pub(super) fn exit_reported(&mut self) -> Option<Reaping> {
        (!self.by_number).then(|| self.reaping())
    }

    /// Returns how the child is reaped if it has ended, or else left to the reaper, which does not end
    /// it. It counts as a child until it has ended.
    pub(super) fn end(mut self) -> Reaping {
        self.reaping()
    }

    /// Counts as reaped from now on.
    fn reaping(&mut self) -> Reaping {
        let is_due = !std::mem::replace(&mut self.reaped, true);
        Reaping {
            pid: self.pid,
            pidfd: self.pidfd_shared(),
            is_due,
            born: (self.whose == Whose::Keepers).then_some(self.born),
            rest: (self.permit.take(), self.group.as_ref().map(Arc::clone)),
            reaper: self.reaper.clone(),
        }
    }

    /// Sends the child a signal.
    ///
    /// # Errors
    /// ESRCH if the child was reaped; EPERM.
    pub(super) fn signal(&self, number: i32) -> Result<(), Errno> {
        sys::signal_process(self.pidfd()?, number)
    }

    /// Sends its process group a signal.
    ///
    /// # Errors
    /// ESRCH if no process of the group is left, or if the child was reaped and the group could be
    /// named by its number only; EPERM.
    pub(super) fn signal_group(&self, number: i32) -> Result<(), Errno> {
        if !self.by_number {
            sys::signal_group(self.pidfd()?, number)
        } else if self.reaped {
            Err(Errno::SRCH)
        } else {
            sys::kill_group(self.pid, number)
        }
    }

    /// Asks its whole group to end.
    pub(super) fn ask_to_end(&self) {
        for number in self.signals.in_order() {
            // ESRCH: no process of the group is left. EPERM: they belong to another user now.
            let _ = self.signal_group(number);
        }
    }

    /// Kills its whole group, and all of its descendants if it has a cgroup of its own.
    pub(super) fn kill(&self) {
        // As in `ask_to_end`.
        let _ = self.signal_group(libc::SIGKILL);
        if let Some(group) = &self.group {
            self.reaper.kill(Arc::clone(group));
        }
    }

    /// As [`Self::kill`], on the calling thread, which may have to wait for other changes of cgroups.
    pub(super) fn kill_now(&self) {
        let _ = self.signal_group(libc::SIGKILL);
        if let Some(group) = &self.group {
            // Before Linux 5.14 there is no such file: its group was killed.
            let _ = group.kill();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped && self.pidfd.is_some() {
            self.kill();
            // The child may have moved to another group.
            let _ = self.signal(libc::SIGKILL);
            self.reaping().run();
        }
    }
}

fn unknown(errno: Errno) -> Exited {
    Exited {
        status: Some(Status::Unknown(format!(
            "waiting for the child failed: {errno}"
        ))),
        ..Exited::default()
    }
}

fn describe(waited: &Waited) -> Exited {
    let status = match waited.code {
        libc::CLD_EXITED => Status::Code(waited.status),
        libc::CLD_KILLED | libc::CLD_DUMPED => Status::Signal(waited.status),
        code => Status::Unknown(format!("the kernel reports the unknown code {code}")),
    };
    Exited {
        status: Some(status),
        core_dumped: waited.code == libc::CLD_DUMPED,
        usage: Some(usage(&waited.usage)),
        timed_out: false,
        cgroup_usage: None,
    }
}

fn usage(usage: &libc::rusage) -> ResourceUsage {
    let time = |t: libc::timeval| prost_types::Duration {
        seconds: t.tv_sec,
        nanos: i32::try_from(t.tv_usec.saturating_mul(1000)).unwrap_or(0),
    };
    let count = |n: libc::c_long| u64::try_from(n).unwrap_or(0);
    ResourceUsage {
        user_time: Some(time(usage.ru_utime)),
        system_time: Some(time(usage.ru_stime)),
        max_rss_kib: count(usage.ru_maxrss),
        minor_faults: count(usage.ru_minflt),
        major_faults: count(usage.ru_majflt),
        block_inputs: count(usage.ru_inblock),
        block_outputs: count(usage.ru_oublock),
        voluntary_switches: count(usage.ru_nvcsw),
        involuntary_switches: count(usage.ru_nivcsw),
    }
}
