//! Watches a process that the daemon has not started, by its pidfd: its end, and its exit status once
//! its parent has reaped it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Alarm, Change, Context, Need, Resumption, Services, Watch};
use crate::driver::{Direction, Done, Driver, Lane, Nonblocking, Op, SourceId};
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Ended, Exited, Kind, largest};
use crate::proto::state::KeptPid;
use crate::proto::state::kept_watch_state::Of;
use crate::proto::{self, exited::Status};
use crate::state::descriptor;
use crate::sys::pidfd;

const END: Lane = Lane(0);
const REAPED: Lane = Lane(1);

const ROOT: u32 = 0;
/// Why nobody is told the status of a process that another user could have ended.
const NOT_OURS: &str =
    "the process belongs to another user: its status is told to that user and to root";

/// How the process is named.
#[derive(Debug)]
pub enum PidSource {
    /// By its process id.
    Pid(i32),
    /// By a pidfd that was handed over.
    Fd(OwnedFd),
}

/// The checked order of a pid watch.
#[derive(Debug)]
pub struct PidOrder {
    /// The process.
    pub source: PidSource,
    /// When it was started, in clock ticks since boot. `None`: whenever.
    pub start_ticks: Option<u64>,
    /// How long to wait for its parent to reap it; `None` means the configured time.
    pub reap_wait: Option<Duration>,
    /// The user that asks.
    pub caller: u32,
}

impl PidOrder {
    /// What the watch needs.
    pub const NEED: Need = Need::sources(1).and(largest::ENDED).and(largest::EXITED);

    /// Opens the process and builds the watch. May block: it reads from `/proc`.
    ///
    /// # Errors
    /// There is no such process, it was started at another time, or the system refused a step.
    pub fn build(self, services: &Services) -> Result<Box<dyn Watch>> {
        let (fd, pid) = match self.source {
            PidSource::Pid(pid) => (open(pid)?, pid),
            PidSource::Fd(fd) => {
                let pid = pid_of(fd.as_fd())?;
                (fd, pid)
            }
        };
        let identity = Identity::read(pid, fd.as_fd());
        if let Some(wanted) = self.start_ticks {
            check_start(pid, wanted, identity.start_ticks)?;
        }
        Ok(Box::new(PidWatch {
            fd: Some(fd),
            source: None,
            pid,
            start_ticks: identity.start_ticks,
            told: identity.is_told_to(self.caller),
            reap_wait: self.reap_wait.unwrap_or(services.reap_wait),
            reap_until: None,
            ended: false,
            exited: None,
        }))
    }

    /// Builds the watch again of a process that an earlier life has watched. The rest of what is known of
    /// it comes when the watch goes on. Without a pidfd the process has ended, and nobody can tell how.
    #[must_use]
    pub fn again(
        pidfd: Option<OwnedFd>,
        reap_wait: Option<Duration>,
        services: &Services,
    ) -> Box<dyn Watch> {
        Box::new(PidWatch {
            fd: pidfd,
            source: None,
            pid: 0,
            start_ticks: None,
            told: false,
            reap_wait: reap_wait.unwrap_or(services.reap_wait),
            reap_until: None,
            ended: false,
            exited: None,
        })
    }
}

fn not_found(field: &'static str, why: impl Into<String>) -> Error {
    Error::ProcessNotFound {
        field: field.into(),
        why: why.into(),
    }
}

fn open(pid: i32) -> Result<OwnedFd> {
    let field = "spec.pid.pid";
    pidfd::open(pid).map_err(|errno| match errno {
        Errno::SRCH => not_found(field, format!("there is no process {pid}")),
        // EINVAL before Linux 6.9.
        Errno::NOENT | Errno::INVAL => {
            not_found(field, format!("{pid} is a thread: give the process's id"))
        }
        errno => SystemError::new(errno, "pidfd_open", format!("process {pid}")).into(),
    })
}

/// Returns the process id of a pidfd that was handed over; 0 if the process was reaped.
fn pid_of(fd: BorrowedFd<'_>) -> Result<i32> {
    let field = "spec.pid.slot";
    let failed = |errno| SystemError::new(errno, "fcntl", "the pidfd");
    // PIDFD_THREAD of pidfd_open(2) has the value of O_EXCL.
    if rustix::fs::fcntl_getfl(fd)
        .map_err(failed)?
        .contains(OFlags::EXCL)
    {
        let allowed = "must be the pidfd of a process; this one is that of a thread (PIDFD_THREAD)";
        return Err(Error::invalid(field, allowed));
    }
    match pidfd::pid(fd) {
        Ok(Some(0)) => Err(not_found(
            field,
            "the process is in a pid namespace that the daemon cannot see",
        )),
        Ok(pid) => Ok(pid.unwrap_or(0)),
        Err(error) => Err(SystemError::from_io(&error, "fdinfo", "the pidfd").into()),
    }
}

fn check_start(pid: i32, wanted: u64, found: Option<u64>) -> Result<()> {
    let why = match found {
        Some(found) if found == wanted => return Ok(()),
        Some(found) => format!(
            "process {pid} was started at {found} ticks, not at {wanted}: it is another process \
             with the same pid"
        ),
        None => format!("process {pid} has ended, or the daemon cannot read /proc/{pid}"),
    };
    Err(not_found("spec.pid.start_ticks", why))
}

/// What /proc tells of a process; `None` where it tells nothing.
#[derive(Debug, Default)]
struct Identity {
    start_ticks: Option<u64>,
    /// Its only user id. `None` if it has several, as a set-user-ID program does.
    uid: Option<u32>,
}

impl Identity {
    fn read(pid: i32, fd: BorrowedFd<'_>) -> Self {
        let read = Self {
            start_ticks: crate::access::start_ticks(pid),
            uid: only_uid(pid),
        };
        // If the process was not reaped by now, what was read is its own, and not that of a later
        // process with the same pid.
        if pidfd::is_there(fd) {
            read
        } else {
            Self::default()
        }
    }

    fn is_told_to(&self, caller: u32) -> bool {
        caller == ROOT || self.uid == Some(caller)
    }
}

fn only_uid(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut uids = line.split_ascii_whitespace().map(str::parse::<u32>);
    let first = uids.next()?.ok()?;
    uids.all(|uid| uid == Ok(first)).then_some(first)
}

struct PidWatch {
    /// Its pidfd, until the driver has it.
    fd: Option<OwnedFd>,
    source: Option<SourceId>,
    /// 0 if it was reaped before.
    pid: i32,
    start_ticks: Option<u64>,
    /// Whether the caller may know the exit status.
    told: bool,
    reap_wait: Duration,
    /// Until when it is waited for its parent, monotonic nanoseconds; `None` while it runs.
    reap_until: Option<u64>,
    ended: bool,
    exited: Option<Exited>,
}

impl fmt::Debug for PidWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PidWatch")
            .field("pid", &self.pid)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl PidWatch {
    /// Waits for its parent to reap it, from now on.
    fn wait_for_reaper(&mut self, cx: &mut Context<'_>) {
        let wait = crate::clock::nanos(self.reap_wait);
        let until = cx.now.monotonic.saturating_add(wait);
        self.reap_until = Some(until);
        cx.set_alarm(Alarm::Monotonic(until));
        cx.changed();
    }

    /// Tells the exit status, as far as it can be known, and ends the watch.
    fn exit(&mut self, cx: &mut Context<'_>) {
        if self.exited.is_some() {
            return;
        }
        let found = self.source.and_then(|source| cx.fd(source));
        let (status, core_dumped) = self.exit_status(found.map(pidfd::exit_status));
        let exited = Exited {
            status: Some(status),
            core_dumped,
            ..Exited::default()
        };
        cx.emit(Kind::Exited(exited.clone()));
        self.exited = Some(exited);
        cx.changed();
        cx.clear_alarm();
        cx.close(CloseReason::Completed);
    }

    fn exit_status(
        &self,
        found: Option<std::result::Result<Option<pidfd::Ended>, Errno>>,
    ) -> (Status, bool) {
        let unknown = |why: String| (Status::Unknown(why), false);
        match found {
            _ if !self.told => unknown(NOT_OURS.to_owned()),
            Some(Ok(Some(pidfd::Ended::Code(code)))) => (Status::Code(code), false),
            Some(Ok(Some(pidfd::Ended::Signal(signal, core)))) => (Status::Signal(signal), core),
            Some(Ok(None)) => unknown(format!(
                "its parent has not reaped it within {}",
                humantime::format_duration(self.reap_wait)
            )),
            Some(Err(Errno::NOTTY | Errno::INVAL)) => unknown(
                "this kernel does not tell the status of a process that is no child: Linux 6.15 does"
                    .to_owned(),
            ),
            Some(Err(errno)) => unknown(format!("asking the kernel failed: {errno}")),
            None => unknown("the daemon and its keeper ended before it".to_owned()),
        }
    }
}

impl Watch for PidWatch {
    fn start(&mut self, cx: &mut Context<'_>) {
        let Some(fd) = self.fd.take() else { return };
        self.source = cx.attach(fd, Nonblocking::ReadinessOnly);
        if let Some(source) = self.source {
            cx.start(END, source, Op::Ready(Direction::Read));
        }
        cx.changed();
    }

    fn keep(&self, driver: &dyn Driver) -> Option<Of> {
        Some(Of::Pid(KeptPid {
            descriptor: Some(descriptor(driver.fd(self.source?)?)?),
            pid: self.pid,
            start_ticks: self.start_ticks,
            told: self.told,
            ended: self.ended,
            reap_until: self.reap_until,
            exited: self.exited.clone(),
        }))
    }

    fn resume(&mut self, cx: &mut Context<'_>, kept: Resumption) -> Result<()> {
        let Of::Pid(kept) = kept.of else {
            return Err(Error::Internal("what was kept is no pidfd"));
        };
        (self.pid, self.start_ticks, self.told) = (kept.pid, kept.start_ticks, kept.told);
        (self.ended, self.reap_until) = (kept.ended, kept.reap_until);
        self.exited = kept.exited;
        cx.changed();
        let Some(fd) = self.fd.take() else {
            if !std::mem::replace(&mut self.ended, true) {
                cx.emit(Kind::Ended(Ended {}));
            }
            self.exit(cx);
            cx.finish();
            return Ok(());
        };
        self.source = cx.attach(fd, Nonblocking::ReadinessOnly);
        if self.exited.is_some() {
            cx.close(CloseReason::Completed);
        } else if let Some(source) = self.source {
            let (lane, op) = match self.ended {
                true => (REAPED, Op::HangUp),
                false => (END, Op::Ready(Direction::Read)),
            };
            cx.start(lane, source, op);
            if let Some(until) = self.reap_until {
                cx.set_alarm(Alarm::Monotonic(until));
            }
        }
        Ok(())
    }

    fn complete(&mut self, cx: &mut Context<'_>, lane: Lane, done: Done) {
        match (lane, done) {
            (END, Done::Ready(_)) => {
                self.ended = true;
                cx.changed();
                cx.emit(Kind::Ended(Ended {}));
                if let Some(source) = self.source
                    && !cx.is_closing()
                {
                    cx.start(REAPED, source, Op::HangUp);
                    self.wait_for_reaper(cx);
                }
            }
            (END, Done::Failed(errno)) => cx.fail(errno, "watch"),
            (REAPED, Done::Ready(_)) if !cx.is_closing() => self.exit(cx),
            // If the backend cannot wait for a hang-up, the alarm ends the wait.
            _ => {}
        }
    }

    fn change(&mut self, cx: &mut Context<'_>, change: Change) -> Result<()> {
        let Change::ReapWait(wait) = change else {
            return Err(super::unsupported("what is to be changed"));
        };
        self.reap_wait = wait.unwrap_or(cx.services.reap_wait);
        if self.ended && self.exited.is_none() {
            self.wait_for_reaper(cx);
        }
        Ok(())
    }

    fn alarm(&mut self, cx: &mut Context<'_>) {
        if self.ended && !cx.is_closing() {
            self.exit(cx);
        }
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        Some(proto::watch::Status::Pid(proto::PidStatus {
            pid: self.pid,
            start_ticks: self.start_ticks,
            ended: self.ended,
            exited: self.exited.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_to_its_own_user_and_to_root_alone() {
        let of = |uid| Identity {
            start_ticks: None,
            uid,
        };
        assert!(of(Some(1000)).is_told_to(1000));
        assert!(of(Some(1000)).is_told_to(ROOT) && of(None).is_told_to(ROOT));
        assert!(!of(Some(1000)).is_told_to(1001) && !of(Some(ROOT)).is_told_to(1000));
        // A set-user-ID program, or one that had ended before it could be looked at.
        assert!(!of(None).is_told_to(1000));
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(only_uid(own), Some(rustix::process::getuid().as_raw()));
    }
}
