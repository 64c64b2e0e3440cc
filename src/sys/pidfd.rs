//! What a pidfd tells of its process: see pidfd_open(2) and `PIDFD_GET_INFO`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};
use rustix::process::{Pid, PidfdFlags};

/// `struct pidfd_info` of linux/pidfd.h as Linux 6.15 has it; later fields are not asked for.
#[derive(Debug, Default)]
#[repr(C)]
struct Info {
    mask: u64,
    cgroup_id: u64,
    /// `pid`, `tgid`, `ppid`, and eight user and group ids.
    ids: [u32; 11],
    exit_code: i32,
}

const GET_INFO: Opcode = opcode::read_write::<Info>(0xff, 11);
/// Asks for `exit_code`; in the answer: the process was reaped, and this is its status.
const INFO_EXIT: u64 = 1 << 3;

/// How a process has ended: a status as wait(2) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The exit code.
    Code(i32),
    /// The number of the signal, and whether the kernel wrote a core dump.
    Signal(i32, bool),
}

impl Ended {
    const fn of(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Code(status >> 8 & 0xff),
            signal => Self::Signal(signal, status & 0x80 != 0),
        }
    }
}

/// Opens a pidfd of a process.
///
/// # Errors
/// ESRCH if there is no such process; ENOENT or EINVAL if the number is that of a thread; those of
/// too many descriptors.
pub(crate) fn open(pid: i32) -> Result<OwnedFd, Errno> {
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

/// Returns how the process has ended; `None` if it was not reaped yet.
///
/// # Errors
/// ENOTTY or EINVAL before Linux 6.15, which does not tell.
pub(crate) fn exit_status(pidfd: BorrowedFd<'_>) -> Result<Option<Ended>, Errno> {
    let mut info = Info {
        mask: INFO_EXIT,
        ..Info::default()
    };
    // SAFETY: the opcode has the size of `Info`, which the kernel reads and writes, and which
    // consists of numbers.
    let asked = unsafe { rustix::ioctl::ioctl(pidfd, Updater::<GET_INFO, Info>::new(&mut info)) };
    match asked {
        Ok(()) if info.mask & INFO_EXIT != 0 => Ok(Some(Ended::of(info.exit_code))),
        Ok(()) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Returns how a process that is no child of this one has ended; `None` if it runs.
///
/// # Errors
/// It has ended, and nothing tells how: why.
pub(crate) fn end_of_stranger(
    pidfd: BorrowedFd<'_>,
    pid: i32,
) -> Result<Option<Ended>, &'static str> {
    if !has_ended(pidfd) {
        return Ok(None);
    }
    if let Ok(Some(ended)) = exit_status(pidfd) {
        return Ok(Some(ended));
    }
    // Until its parent reaps it, /proc tells.
    let status = status_of_zombie(pid).filter(|_| is_there(pidfd));
    if let Some(status) = status {
        return Ok(Some(Ended::of(status)));
    }
    match exit_status(pidfd) {
        Ok(Some(ended)) => Ok(Some(ended)),
        Ok(None) => Err("it has ended, and /proc does not tell how"),
        Err(_) => {
            Err("it has ended and was reaped, and this kernel does not tell how: Linux 6.15 does")
        }
    }
}

/// Returns whether all threads of the process have ended.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Returns the status of a zombie as wait(2) has it: the last field of proc_pid_stat(5).
fn status_of_zombie(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may have any characters.
    let (_, fields) = stat.rsplit_once(") ")?;
    let is_zombie = fields.starts_with('Z');
    fields
        .split_whitespace()
        .last()?
        .parse()
        .ok()
        .filter(|_| is_zombie)
}

/// Returns whether the process was not reaped yet: it runs, or is a zombie.
pub(crate) fn is_there(pidfd: BorrowedFd<'_>) -> bool {
    // EPERM: it is there, and belongs to another user.
    super::signal_process(pidfd, 0) != Err(Errno::SRCH)
}

/// Returns the process id of a pidfd: `None` if the process was reaped, 0 if it is in a pid
/// namespace that this process cannot see.
///
/// # Errors
/// /proc cannot be read, or the descriptor is no pidfd.
pub(crate) fn pid(pidfd: BorrowedFd<'_>) -> std::io::Result<Option<i32>> {
    let number = pidfd.as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let pid: i32 = line
        .and_then(|pid| pid.trim().parse().ok())
        .ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((pid >= 0).then_some(pid))
}
