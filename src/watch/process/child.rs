//! One child: the only place that signals it, and with [`super::reaper`] the only one that
//! reaps it. Whoever notices its end has it looked at here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use nix::libc;
use rustix::io::Errno;

use super::reaper::Reaper;
use crate::event::Exited;
use crate::proto::{ResourceUsage, exited::Status};
use crate::sys::{self, ChildState, Waited};
use crate::watch::services::Permit;

/// How a child is, as the kernel says.
#[derive(Debug)]
pub(super) enum State {
    Running,
    Stopped,
    Ended(Exited),
}

/// A child of the daemon, until it is reaped. One that is dropped before is killed with its group
/// and reaped elsewhere: a failed registration leaves nothing.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    /// Present until it is let go.
    pidfd: Option<Arc<OwnedFd>>,
    /// Its group can be signalled by its number only (before Linux 6.9). The number is its own
    /// until it is reaped, and may be another's after.
    by_number: bool,
    reaped: bool,
    /// One of `limits.children`, until it is reaped.
    permit: Option<Permit>,
    reaper: Reaper,
}

impl Child {
    /// Of a child that nobody has waited for, and that leads a process group.
    pub(super) fn new(pid: i32, pidfd: OwnedFd, permit: Permit, reaper: &Reaper) -> Self {
        static BY_NUMBER: OnceLock<bool> = OnceLock::new();
        // Signal 0 asks only, and what the kernel can do it can of every child.
        let ask = || sys::signal_group(pidfd.as_fd(), 0) == Err(Errno::INVAL);
        let by_number = *BY_NUMBER.get_or_init(ask);
        Self {
            pid,
            pidfd: Some(Arc::new(pidfd)),
            by_number,
            reaped: false,
            permit: Some(permit),
            reaper: reaper.clone(),
        }
    }

    fn pidfd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.pidfd.as_ref().map(|fd| fd.as_fd()).ok_or(Errno::SRCH)
    }

    /// Its pidfd, which is readable once it has ended; none if it was let go.
    pub(super) fn pidfd_shared(&self) -> Option<Arc<OwnedFd>> {
        self.pidfd.as_ref().map(Arc::clone)
    }

    /// Asks the kernel. A child that has ended stays as it is: see [`Self::told`].
    pub(super) fn state(&self) -> State {
        match self.pidfd().and_then(sys::child_state) {
            Ok(ChildState::Running) => State::Running,
            Ok(ChildState::Stopped) => State::Stopped,
            Ok(ChildState::Ended(waited)) => State::Ended(describe(&waited)),
            Err(errno) => State::Ended(unknown(errno)),
        }
    }

    /// How it ended is told: reaps it, unless its number is still needed to signal its group.
    pub(super) fn told(&mut self) {
        if !self.by_number {
            self.reap();
        }
    }

    /// Reaps it, if it has ended.
    pub(super) fn reap(&mut self) {
        if !self.reaped && self.pidfd().and_then(sys::reap) != Ok(false) {
            self.reaped = true;
            self.permit = None;
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// ESRCH if it was reaped, EPERM.
    pub(super) fn signal(&self, number: i32) -> Result<(), Errno> {
        sys::signal_process(self.pidfd()?, number)
    }

    /// Sends its process group a signal.
    ///
    /// # Errors
    /// ESRCH if all of the group are gone, or it was reaped and only its number would name the
    /// group; EPERM.
    pub(super) fn signal_group(&self, number: i32) -> Result<(), Errno> {
        if !self.by_number {
            sys::signal_group(self.pidfd()?, number)
        } else if self.reaped {
            Err(Errno::SRCH)
        } else {
            sys::kill_group(self.pid, number)
        }
    }

    /// Asks all of its group to end. SIGTERM waits as long as a process is stopped: SIGCONT
    /// follows.
    pub(super) fn ask_to_end(&self) {
        // ESRCH: all of the group are gone. EPERM: they are another user's by now.
        let _ = self.signal_group(libc::SIGTERM);
        let _ = self.signal_group(libc::SIGCONT);
    }

    /// Ends all of its group at once.
    pub(super) fn kill(&self) {
        // As in `ask_to_end`.
        let _ = self.signal_group(libc::SIGKILL);
    }

    /// Leaves it to the reaper, without ending it. It counts as a child until it has ended.
    pub(super) fn let_go(mut self) {
        self.hand_over();
    }

    fn hand_over(&mut self) {
        if !self.reaped
            && let Some(pidfd) = self.pidfd.take()
        {
            self.reaper.take(pidfd, self.permit.take());
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped && self.pidfd.is_some() {
            self.kill();
            // In case it is in another group by now.
            let _ = self.signal(libc::SIGKILL);
            self.hand_over();
        }
    }
}

fn unknown(errno: Errno) -> Exited {
    Exited {
        status: Some(Status::Unknown(format!("waiting for it failed: {errno}"))),
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
