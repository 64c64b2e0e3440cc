//! A client's process, held by a pidfd so that a later process with the same id is not taken for
//! it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FsWord;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::OnceCell;

use crate::sys;

/// The time between two attempts to watch a process.
const RETRY: Duration = Duration::from_secs(1);
/// The type of pidfs. Since Linux 6.9 a pidfd has an inode number there, which belongs to its
/// process and is never reused.
const PID_FS_MAGIC: FsWord = 0x5049_4446;

/// A key of a process. Process ids are reused, keys are not as long as the host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProcessKey {
    /// The inode number in pidfs.
    Inode(u64),
    /// The key on kernels without pidfs.
    Started {
        /// Process id.
        pid: i32,
        /// Clock ticks from boot to its start, as in proc_pid_stat(5).
        ticks: u64,
    },
}

/// The process of a client.
#[derive(Debug)]
pub struct ClientProcess {
    pidfd: Arc<OwnedFd>,
    pid: i32,
    key: ProcessKey,
    exit: OnceCell<AsyncFd<Arc<OwnedFd>>>,
    /// See [`ClientProcess::started`].
    started: OnceLock<u64>,
}

impl ClientProcess {
    /// Returns the process that connected; `None` if the daemon cannot see it or it has ended.
    pub(super) fn of_peer(stream: &impl AsFd, pid: i32) -> rustix::io::Result<Option<Self>> {
        use nix::errno::Errno as Nix;

        let pidfd = match getsockopt(stream, PeerPidfd) {
            Ok(pidfd) => Ok(pidfd),
            Err(Nix::ENODATA | Nix::EINVAL | Nix::ESRCH) => return Ok(None),
            // Before Linux 6.5 there is only the pid, which another process may have if the peer has
            // ended.
            Err(Nix::ENOPROTOOPT) => match Pid::from_raw(pid) {
                Some(pid) => pidfd_open(pid, PidfdFlags::empty()),
                None => return Ok(None),
            },
            Err(errno) => Err(Errno::from_raw_os_error(errno as i32)),
        };
        match pidfd.and_then(|pidfd| Self::new(pidfd, pid)) {
            Ok(process) => Ok(Some(process)),
            Err(Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn new(pidfd: OwnedFd, pid: i32) -> rustix::io::Result<Self> {
        let key = if rustix::fs::fstatfs(&pidfd)?.f_type == PID_FS_MAGIC {
            ProcessKey::Inode(rustix::fs::fstat(&pidfd)?.st_ino)
        } else {
            let ticks = start_ticks(pid).ok_or(Errno::SRCH)?;
            // If the process still runs, the `/proc/PID` that was read is its own, not that of a
            // later process with the same pid.
            if has_ended(&pidfd)? {
                return Err(Errno::SRCH);
            }
            ProcessKey::Started { pid, ticks }
        };
        Ok(Self {
            pidfd: Arc::new(pidfd),
            pid,
            key,
            exit: OnceCell::new(),
            started: OnceLock::new(),
        })
    }

    /// Returns the process that had this pid and start time; `None` if it has ended.
    ///
    /// # Errors
    /// The system does not say, such as when no descriptor is left.
    pub(crate) fn again(pid: i32, started: u64) -> rustix::io::Result<Option<Self>> {
        let open = || {
            let pid_of = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
            let pidfd = pidfd_open(pid_of, PidfdFlags::empty())?;
            // If it still runs after that, what was read is its own.
            let is_same = start_ticks(pid) == Some(started);
            let process = Self::new(pidfd, pid)?;
            Ok((is_same && !has_ended(&process.pidfd)?).then_some(process))
        };
        match open() {
            Err(Errno::SRCH) => Ok(None),
            found => found,
        }
    }

    /// Returns when it was started, clock ticks since the boot; 0 if it has ended.
    pub(crate) fn started(&self) -> u64 {
        let read = || start_ticks(self.pid).unwrap_or_default();
        *self.started.get_or_init(read)
    }

    /// Returns its process id, for people to read.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns its key, which differs from those of all other processes, past and future.
    #[must_use]
    pub const fn key(&self) -> ProcessKey {
        self.key
    }

    /// Waits until the process has ended. While the system cannot watch the process (`epoll_ctl`
    /// without memory or watches), it tries again every second.
    pub async fn ended(&self) {
        let watch = || async { sys::async_fd(Arc::clone(&self.pidfd), Interest::READABLE) };
        let mut told = false;
        loop {
            let exit = self.exit.get_or_try_init(watch).await;
            let ended = match exit {
                Ok(exit) => exit.readable().await.map(drop),
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(pid = self.pid, %error, "cannot watch a client process yet");
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl AsFd for ClientProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn has_ended(pidfd: &OwnedFd) -> rustix::io::Result<bool> {
    let now = Timespec::default();
    Ok(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now))? > 0)
}

/// Reads field 22 of `/proc/PID/stat`, the start time in clock ticks.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    field(pid, 22)?.parse().ok()
}

/// Returns the pid of a process's parent; `None` if the process is gone.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    field(pid, 4)?.parse().ok()
}

/// Returns a field of proc_pid_stat(5), from 3 on.
fn field(pid: i32, number: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may contain any characters.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = fields.split_ascii_whitespace().nth(number.checked_sub(3)?);
    field.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::idle_child;

    fn open(pid: u32) -> ClientProcess {
        let pid = i32::try_from(pid).unwrap();
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        ClientProcess::new(pidfd, pid).unwrap()
    }

    #[tokio::test]
    async fn ended_returns_when_the_process_ends_and_ever_after() {
        let mut child = idle_child::start();
        let process = open(child.id());
        assert!(!has_ended(&process.pidfd).unwrap());
        drop(child.stdin.take());
        let (first, second) = tokio::join!(process.ended(), process.ended());
        let ((), ()) = (first, second);
        child.wait().unwrap();
        process.ended().await;
    }

    #[test]
    fn keys_tell_processes_apart() {
        let own = std::process::id();
        let mut child = idle_child::start();
        assert_eq!(open(own).key(), open(own).key());
        assert_ne!(open(own).key(), open(child.id()).key());
        let ticks = |pid| start_ticks(i32::try_from(pid).unwrap()).unwrap();
        assert!(ticks(own) > 0 && ticks(own) <= ticks(child.id()));
        child.wait().unwrap();
    }
}
