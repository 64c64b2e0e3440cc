//! Safe wrappers of system calls that no crate wraps safely.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

mod clone3;
pub(crate) mod datagram;
pub(crate) mod file;
#[cfg(test)]
pub(crate) mod idle_child;
pub(crate) mod keeper;
pub(crate) mod pidfd;
mod spawn;
mod terminal;

pub(crate) use spawn::{
    Credentials, Launch, Origin, Place, Scheduling, Step, close_inherited_on_exec, spawn,
};
pub(crate) use terminal::{PACKET_FLUSHED, set_packet_mode, signal_foreground, terminal_is_locked};

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error();
        return Err(Errno::from_raw_os_error(errno.unwrap_or(0)));
    }
    Ok(result)
}

/// The size of a freed block up to which the allocator keeps its memory, in bytes.
#[cfg(target_env = "gnu")]
const FREED_KEPT: libc::c_int = 4 << 20;

/// Has glibc's allocator keep freed blocks of up to 4 MiB and return larger ones to the system at
/// once, see mallopt(3).
///
/// Without this, it adapts both limits to the largest block that was freed. Messages of a few
/// hundred KiB then cost page faults each time, and after one large message the memory of many
/// small objects stays scattered: for 12,000 watches, 630 bytes each instead of 480.
pub(crate) fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for limit in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt takes two integers and locks what it changes. If it refuses, the limit
        // stays as it was.
        unsafe { libc::mallopt(limit, FREED_KEPT) };
    }
}

/// The end of a child: its kind, its status and the resources that the child used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waited {
    /// `CLD_EXITED`, `CLD_KILLED` or `CLD_DUMPED`.
    pub(crate) code: i32,
    /// The exit code, or the number of the signal.
    pub(crate) status: i32,
    /// The resources used, as in getrusage(2).
    pub(crate) usage: libc::rusage,
}

/// The state of a child.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ChildState {
    Running,
    /// Stopped by SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU, until SIGCONT.
    Stopped,
    Ended(Waited),
}

/// Returns the state of a child with waitid(2), without waiting and without reaping it, so that a
/// later call returns the same.
///
/// # Errors
/// ECHILD if the process is not a child, or was reaped.
pub(crate) fn child_state(pidfd: BorrowedFd<'_>) -> Result<ChildState, Errno> {
    let options = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
    let waited = waitid(libc::P_PIDFD, pidfd.as_raw_fd(), options)?;
    Ok(match waited {
        None => ChildState::Running,
        Some(Waited { code, .. }) if code == libc::CLD_STOPPED => ChildState::Stopped,
        Some(waited) => ChildState::Ended(waited),
    })
}

/// Reaps the child of a pidfd; returns false if it has not ended.
///
/// # Errors
/// ECHILD if the process is not a child, or was reaped.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let options = libc::WEXITED | libc::WNOHANG;
    waitid(libc::P_PIDFD, pidfd.as_raw_fd(), options).map(|waited| waited.is_some())
}

/// The options for ended children of the calling thread alone: children that other threads of the
/// process started are not reaped.
const OWN: libc::c_int = libc::WEXITED | libc::WNOHANG | libc::__WNOTHREAD | libc::__WALL;

/// Reaps one ended child of the calling thread; returns false if none has ended.
///
/// # Errors
/// ECHILD if the thread has no children.
pub(crate) fn reap_own() -> Result<bool, Errno> {
    waitid(libc::P_ALL, 0, OWN).map(|waited| waited.is_some())
}

/// Looks whether the calling thread has a child.
///
/// # Errors
/// ECHILD if it has none.
pub(crate) fn has_own() -> Result<(), Errno> {
    waitid(libc::P_ALL, 0, OWN | libc::WNOWAIT).map(drop)
}

/// Calls waitid(2). The options must contain WNOHANG. Returns `None` if no child has changed.
fn waitid(
    kind: libc::idtype_t,
    id: libc::c_int,
    options: libc::c_int,
) -> Result<Option<Waited>, Errno> {
    Ok(waitid_of(kind, id, options)?.map(|(_, waited)| waited))
}

/// Does the same, and returns the pid of the child, too.
/// Returns resources of which none was used.
pub(crate) fn no_usage() -> libc::rusage {
    // SAFETY: all-zero bytes are a valid rusage.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn waitid_of(
    kind: libc::idtype_t,
    id: libc::c_int,
    options: libc::c_int,
) -> Result<Option<(libc::pid_t, Waited)>, Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are valid for writes of their types for the whole call; the system
    // call, unlike glibc's wrapper, takes the rusage.
    let result = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            kind,
            id,
            info.as_mut_ptr(),
            options,
            usage.as_mut_ptr(),
        )
    };
    check(result)?;
    // SAFETY: all-zero bytes are a valid siginfo_t and a valid rusage, and the kernel
    // has overwritten only whole fields.
    let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
    // SAFETY: waitid fills in the child fields; without a child they are zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let waited = Waited {
        code: info.si_code,
        status,
        usage,
    };
    Ok((pid != 0).then_some((pid, waited)))
}

/// Sends a signal with pidfd_send_signal(2) to the process group that the pidfd's process leads.
/// Needs Linux 6.9.
///
/// # Errors
/// EINVAL on older kernels, ESRCH if the group is empty, EPERM.
pub(crate) fn signal_group(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks the kernel to fill in the ordinary one.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            info,
            PIDFD_SIGNAL_PROCESS_GROUP,
        )
    };
    check(result).map(drop)
}

/// Sends a signal to one process with pidfd_send_signal(2). The signal is a plain number, so
/// real-time signals can be sent, too.
///
/// # Errors
/// ESRCH if the process has ended, EPERM.
pub(crate) fn signal_process(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: as in `signal_group`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            info,
            0,
        )
    };
    check(result).map(drop)
}

/// Sends a signal to a process group with kill(2).
///
/// # Errors
/// ESRCH, EPERM.
pub(crate) fn kill_group(leader: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill takes numbers only.
    let result = unsafe { libc::kill(-leader, signal) };
    check(result.into()).map(drop)
}

/// Returns the bytes sent over a TCP socket that the peer's host has not acknowledged yet; the end
/// of the stream counts as one byte (SIOCOUTQ, tcp(7)).
///
/// # Errors
/// EINVAL for a listening socket, ENOTTY for a descriptor that is not a socket.
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request, whose name for sockets is SIOCOUTQ, writes one int, and `bytes` is one.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    check(result.into()).map(|_| usize::try_from(bytes).unwrap_or(0))
}

/// Returns how many bytes a connected TCP socket has taken to send since it was made, but for a
/// constant: the difference between two calls is exact (tcp(7), TCP_INFO and SIOCOUTQ). `None` for any
/// other socket, or if the kernel does not tell.
pub(crate) fn bytes_taken_to_send(socket: BorrowedFd<'_>) -> Option<u64> {
    use rustix::net::{ipproto, sockopt};
    if sockopt::socket_protocol(socket) != Ok(Some(ipproto::TCP)) {
        return None;
    }
    let mut acknowledged = bytes_acknowledged(socket)?;
    for _ in 0..COUNTS_MAX {
        let left = unacknowledged(socket).ok()?;
        let now = bytes_acknowledged(socket)?;
        // An acknowledgement between the two calls would be counted twice.
        if now == acknowledged {
            return Some(now + left as u64);
        }
        acknowledged = now;
    }
    None
}

/// The most times that [`bytes_taken_to_send`] counts while acknowledgements come in.
const COUNTS_MAX: usize = 1000;

/// Returns `tcpi_bytes_acked` of linux/tcp.h, which libc does not have.
fn bytes_acknowledged(socket: BorrowedFd<'_>) -> Option<u64> {
    const AT: usize = 120;
    let mut info = [0_u8; AT + 8];
    let mut len = libc::socklen_t::try_from(info.len()).ok()?;
    // SAFETY: `info` is valid for writes of `len` bytes, and `len` for a write.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    check(result.into()).ok()?;
    let whole = usize::try_from(len).is_ok_and(|len| len >= info.len());
    let bytes = info[AT..].try_into().ok()?;
    whole.then(|| u64::from_ne_bytes(bytes))
}

/// Returns the number of connections that wait in the queue of a listening TCP socket; `None` for
/// any other socket.
pub(crate) fn waiting_connections(socket: BorrowedFd<'_>) -> Option<u64> {
    // SAFETY: tcp_info consists of numbers, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: `info` is valid for writes of `len` bytes, and `len` for a write.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    check(result.into()).ok()?;
    // For a listening socket the kernel puts the length of its queue there.
    Some(info.tcpi_unacked.into())
}

/// Makes a timerfd(2) that becomes readable when the realtime clock is set.
///
/// # Errors
/// Those of timerfd_create(2) and timerfd_settime(2).
pub(crate) fn clock_set_fd() -> Result<OwnedFd, Errno> {
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let fd = rustix::time::timerfd_create(TimerfdClockId::Realtime, flags)?;
    let never = Timespec {
        tv_sec: i64::MAX / 2_000_000_000,
        tv_nsec: 0,
    };
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: never,
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    rustix::time::timerfd_settime(&fd, flags, &once)?;
    Ok(fd)
}

/// Registers a file descriptor with the tokio runtime in which this is called.
///
/// # Errors
/// An error of the system, such as those of epoll_ctl(2).
pub(crate) fn async_fd(
    fd: Arc<OwnedFd>,
    interest: Interest,
) -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `Arc<OwnedFd>` always returns the same descriptor, which is open as long as it
    // lives.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|error| error.into_parts().1)
}

/// Returns the set of signals with these numbers. The type of nix for signals lacks the real-time
/// signals.
///
/// # Errors
/// `EINVAL` for a number that is not a signal.
pub(crate) fn signal_set(numbers: &[i32]) -> nix::Result<SigSet> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is valid for writing; sigemptyset(3) initialises all of it.
    nix::errno::Errno::result(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    for number in numbers {
        // SAFETY: `set` is initialised; a bad number is an error, not undefined behaviour.
        nix::errno::Errno::result(unsafe { libc::sigaddset(set.as_mut_ptr(), *number) })?;
    }
    // SAFETY: `set` is initialised, and only the C library has filled it.
    Ok(unsafe { SigSet::from_sigset_t_unchecked(set.assume_init()) })
}

/// Restores the default action of a signal.
///
/// # Errors
/// `EINVAL` for SIGKILL and SIGSTOP.
pub(crate) fn default_action(signal: Signal) -> nix::Result<()> {
    // SAFETY: the default action runs no code of this process.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.map(drop)
}

/// Whether this process ignores a signal.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one into `action`, which is
    // valid.
    let asked = unsafe { libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a valid sigaction, and the call has written a whole one or
    // nothing.
    let action = unsafe { action.assume_init() };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}
