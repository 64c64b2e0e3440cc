//! One child: the only place that signals and reaps it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc;
use rustix::io::Errno;

use crate::event::Exited;
use crate::proto::{ResourceUsage, exited::Status};
use crate::sys::{self, Waited};

/// Reaps the child if it has ended.
///
/// Never waits for any other process: the pidfd names this one.
pub(super) fn reap(pidfd: BorrowedFd<'_>) -> Option<Exited> {
    match sys::wait_pidfd(pidfd, false) {
        Ok(waited) => waited.map(|waited| describe(&waited)),
        Err(errno) => Some(unknown(errno)),
    }
}

/// Waits until the child has ended, and reaps it.
pub(super) fn reap_blocking(pidfd: BorrowedFd<'_>) -> Exited {
    match sys::wait_pidfd(pidfd, true) {
        Ok(Some(waited)) => describe(&waited),
        Ok(None) => unknown(Errno::CHILD),
        Err(errno) => unknown(errno),
    }
}

/// A child that nobody watches any longer must not stay a zombie.
pub(super) fn reap_elsewhere(pidfd: OwnedFd) {
    let thread = std::thread::Builder::new().name("reaper".to_owned());
    if let Err(error) = thread.spawn(move || reap_blocking(pidfd.as_fd())) {
        tracing::warn!(%error, "no thread to reap a child that was let go");
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

/// Signals the group that the child leads. `reaped`: its number may be another's by now.
pub(super) fn signal_group(
    pidfd: BorrowedFd<'_>,
    pid: i32,
    reaped: bool,
    signal: i32,
) -> Result<(), Errno> {
    match sys::signal_group(pidfd, signal) {
        Err(Errno::INVAL) if !reaped => sys::kill_group(pid, signal),
        Err(Errno::INVAL) => Err(Errno::SRCH),
        result => result,
    }
}
