//! A cgroup (version 2) of its own for each child: so that all that descends from the child can be
//! found, killed and accounted for, whatever it does to hide.
//!
//! Below the cgroup that the daemon is in there is one directory `evloopd-INSTANCE`, and in it one for
//! each child. If that cgroup is delegated to the daemon (`Delegate=` of systemd.resource-control(5)),
//! the daemon moves to a part of it, since memory is only counted below a cgroup without processes.
//! The daemon holds a lock on its directory: one without a lock is that of a daemon that has died. All
//! lives of a daemon with a keeper have the same directory, and the lock is held between them, too.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use tokio::runtime::Handle;

mod limit;
mod oom;
mod place;
mod removal;
mod scope;

pub use limit::memory_limit;
pub use oom::oom_kills;
pub use removal::Removals;

/// The beginning of the name of each daemon's directory.
const PREFIX: &str = "evloopd-";
/// Attempts to make the daemon's directory.
const TRIES: usize = 5;
/// Most processes that are read of the cgroup of one child.
const PROCESSES_MAX: usize = 1 << 20;
/// Most cgroups below that of a child that are looked at: those that the child itself has made.
const NESTED_MAX: usize = 4096;

/// The cgroups of the daemon's children.
#[derive(Debug)]
pub struct Cgroups {
    state: Mutex<State>,
    last: AtomicU64,
    /// The numbers of cgroups of earlier lives whose children nobody has taken over yet.
    unclaimed: Mutex<BTreeSet<u64>>,
    removals: Arc<Removals>,
}

#[derive(Debug)]
enum State {
    On(Base),
    /// There are none, and why.
    Off(String),
}

/// The directory of this daemon.
#[derive(Debug)]
struct Base {
    path: PathBuf,
    /// As in /proc/PID/cgroup.
    name: String,
    /// The directory, locked as long as it is open.
    lock: OwnedFd,
}

impl Cgroups {
    /// Returns no cgroups.
    #[must_use]
    pub fn off(why: impl Into<String>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::Off(why.into())),
            last: AtomicU64::new(0),
            unclaimed: Mutex::default(),
            removals: Removals::new(runtime),
        })
    }

    /// Makes the directory of this daemon, and removes those of daemons that have died, as far as they
    /// are empty. If the daemon may make none where it is, it asks the user's service manager for a
    /// place; if that gives none either, there are no cgroups. `keeper` is the pid of the daemon's
    /// keeper, which has to be where the daemon is. `earlier` is the directory of the life before, which
    /// is taken over. May block.
    #[must_use]
    pub fn open(
        instance: &str,
        keeper: Option<i32>,
        earlier: Option<OwnedFd>,
        runtime: Handle,
    ) -> Arc<Self> {
        if let Some(base) = earlier.and_then(|lock| Base::again(lock, instance)) {
            return Self::on(base, runtime);
        }
        let make = |own: place::Own| Ok((Base::make(&own, instance)?, own));
        let made = place::own(keeper).and_then(|own| {
            make(own).or_else(|why: String| {
                scope::ask(instance, keeper).map_err(|no_scope| format!("{why}; {no_scope}"))?;
                make(place::delegated(keeper)?)
            })
        });
        match made {
            Ok((base, own)) => {
                removal::remove_stale(&own.path, PREFIX);
                Self::on(base, runtime)
            }
            Err(why) => {
                tracing::info!(why, "children have no cgroups of their own");
                Self::off(why, runtime)
            }
        }
    }

    fn on(base: Base, runtime: Handle) -> Arc<Self> {
        let numbers = below(&base.path).into_iter();
        let numbers = numbers.filter_map(|path| path.file_name()?.to_str()?.parse().ok());
        let numbers: BTreeSet<u64> = numbers.collect();
        let cgroups = Self::off("", runtime);
        let last = numbers.last().copied().unwrap_or(0);
        cgroups.last.store(last, Ordering::Relaxed);
        *cgroups.unclaimed.lock() = numbers;
        *cgroups.state.lock() = State::On(base);
        cgroups
    }

    /// Returns the directory below which each child has one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn place(&self) -> Result<PathBuf, String> {
        match &*self.state.lock() {
            State::On(base) => Ok(base.path.clone()),
            State::Off(why) => Err(why.clone()),
        }
    }

    /// Passes the directory, which is locked as long as it is open; it does nothing if there is none.
    pub fn with_lock(&self, take: impl FnOnce(BorrowedFd<'_>)) {
        if let State::On(base) = &*self.state.lock() {
            take(base.lock.as_fd());
        }
    }

    /// Takes over the cgroup of a child of an earlier life, by its number. `None` if it is gone.
    #[must_use]
    pub fn again(&self, number: u64) -> Option<Group> {
        let State::On(base) = &*self.state.lock() else {
            return None;
        };
        let is_there = self.unclaimed.lock().remove(&number);
        is_there.then(|| base.group(number, &self.removals))
    }

    /// Removes the cgroups of earlier lives whose children nobody has taken over, once they are empty.
    pub fn remove_unclaimed(&self) {
        let State::On(base) = &*self.state.lock() else {
            return;
        };
        for number in std::mem::take(&mut *self.unclaimed.lock()) {
            drop(base.group(number, &self.removals));
        }
    }

    /// Makes a cgroup for one child. `None` if there are no cgroups, or the system refuses this one.
    /// May block.
    #[must_use]
    pub fn make(&self) -> Option<Group> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let path = match &*self.state.lock() {
            State::On(base) => base.path_of(number),
            State::Off(_) => return None,
        };
        let made = fs::create_dir(&path);
        match (made, &*self.state.lock()) {
            (Ok(()), State::On(base)) => Some(base.group(number, &self.removals)),
            (Ok(()), State::Off(_)) => {
                Arc::clone(&self.removals).remove(path);
                None
            }
            (Err(error), _) => {
                // Such as a limit on their number (cgroup.max.descendants).
                tracing::warn!(path = %path.display(), %error, "a child gets no cgroup of its own");
                None
            }
        }
    }

    /// Makes no more cgroups if the system refuses to start children in them for a reason that stays.
    /// Returns whether it does.
    pub fn refused(&self, errno: Errno) -> bool {
        let stays = matches!(
            errno,
            Errno::ACCESS
                | Errno::PERM
                | Errno::OPNOTSUPP
                | Errno::NOSYS
                | Errno::INVAL
                | Errno::TOOBIG
                | Errno::BUSY
                | Errno::NODEV
        );
        if stays {
            let why = format!("starting a child in one of its own failed: {errno}");
            tracing::warn!(why, "children have no cgroups of their own any more");
            *self.state.lock() = State::Off(why);
        }
        stays
    }

    /// Removes all that is empty, at the end of the daemon. May block.
    pub fn close(&self) {
        if let State::On(base) = &*self.state.lock() {
            removal::remove_all(&base.path);
        }
    }
}

impl Base {
    /// Finds the directory of the life before, which is `lock`, from where the daemon is now. `None` if it
    /// is not there any more.
    fn again(lock: OwnedFd, instance: &str) -> Option<Self> {
        let present = place::present().ok()?;
        let above = present.parent();
        let directory = format!("{PREFIX}{instance}");
        let found = rustix::fs::fstat(&lock).ok()?;
        let mut places = [Some(present), above].into_iter().flatten();
        let own = places.find(|own| {
            let there = rustix::fs::stat(own.path.join(&directory));
            there.is_ok_and(|there| (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino))
        })?;
        Some(Self::at(&own, &directory, lock))
    }

    fn at(own: &place::Own, directory: &str, lock: OwnedFd) -> Self {
        Self {
            name: format!("{}/{directory}", own.name.trim_end_matches('/')),
            path: own.path.join(directory),
            lock,
        }
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.path.join(number.to_string())
    }

    fn group(&self, number: u64, removals: &Arc<Removals>) -> Group {
        Group {
            number,
            path: self.path_of(number),
            name: format!("{}/{number}", self.name),
            removals: Arc::clone(removals),
        }
    }

    fn make(own: &place::Own, instance: &str) -> Result<Self, String> {
        let directory = format!("{PREFIX}{instance}");
        let path = own.path.join(&directory);
        let failed = |error: &dyn std::fmt::Display| {
            format!(
                "the daemon may make no cgroup in {}: {error}",
                own.path.display()
            )
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let make = || {
            match fs::create_dir(&path) {
                // It is this daemon's, whose keeper was ended with it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            let lock = rustix::fs::open(&path, flags, Mode::empty())?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            rustix::fs::stat(&path)?;
            io::Result::Ok(lock)
        };
        // A daemon that starts at the same moment may take it for one of a dead daemon, and remove it.
        let mut made = make();
        for _ in 1..TRIES {
            if matches!(&made, Err(error) if removed(error)) {
                made = make();
            }
        }
        let lock = made.map_err(|error| failed(&error))?;
        let base = Self::at(own, &directory, lock);
        if own.is_delegated {
            count_memory(&own.path);
        }
        count_memory(&base.path);
        Ok(base)
    }
}

/// Has the kernel count the memory of each cgroup right below that one, where it may.
fn count_memory(path: &Path) {
    if place::has_memory(path)
        && let Err(error) = fs::write(path.join("cgroup.subtree_control"), "+memory")
    {
        tracing::info!(path = %path.display(), %error, "the memory of children is not counted");
    }
}

/// Returns whether another daemon has removed a directory before it was locked.
fn removed(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::WOULDBLOCK | Errno::NODEV))
}

/// What all processes of a cgroup have used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Time in user mode.
    pub user: Duration,
    /// Time in the kernel.
    pub system: Duration,
    /// The most memory at one time, bytes. `None` without the memory controller.
    pub memory_peak: Option<u64>,
    /// The processes that the kernel has killed for lack of memory. `None` without the memory
    /// controller.
    pub oom_kills: Option<u64>,
}

impl From<Usage> for crate::proto::CgroupUsage {
    fn from(usage: Usage) -> Self {
        Self {
            user_time: Some(crate::clock::duration(usage.user)),
            system_time: Some(crate::clock::duration(usage.system)),
            memory_peak_bytes: usage.memory_peak,
            oom_kills: usage.oom_kills,
        }
    }
}

/// The cgroup of one child. It is removed once this is dropped and all of its processes have ended.
#[derive(Debug)]
pub struct Group {
    number: u64,
    path: PathBuf,
    name: String,
    removals: Arc<Removals>,
}

impl Group {
    /// Returns its number, by which later lives of the daemon find it.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Returns its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens its directory, to start a process in it.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// Kills all of its processes. May block.
    ///
    /// # Errors
    /// ENOENT before Linux 5.14, which cannot; EACCES.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Returns the pids of its processes, those of cgroups below it too. May block.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut found = Vec::new();
        let mut left = vec![self.path.clone()];
        for _ in 0..NESTED_MAX {
            let Some(path) = left.pop() else { break };
            let all = match fs::read_to_string(path.join("cgroup.procs")) {
                Ok(all) => all,
                // It was removed meanwhile.
                Err(_) if path != self.path => continue,
                Err(error) => return Err(error),
            };
            let pids = all.lines().filter_map(|line| line.parse::<i32>().ok());
            // 0 is a process of a pid namespace that the daemon cannot see.
            found.extend(pids.filter(|pid| *pid > 0));
            if found.len() >= PROCESSES_MAX {
                break;
            }
            left.extend(below(&path));
        }
        Ok(found)
    }

    /// Returns whether a process is in it or in a cgroup below it.
    #[must_use]
    pub fn contains(&self, pid: i32) -> bool {
        let all = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let name = all.lines().find_map(|line| line.strip_prefix("0::"));
        let rest = name.and_then(|name| name.strip_prefix(&self.name));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Returns what its processes have used, those that have ended too. `None` if the kernel does not
    /// tell. These files are the kernel's memory: reading them waits for no disk.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        usage(&self.path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        Arc::clone(&self.removals).remove(std::mem::take(&mut self.path));
    }
}

/// Returns what the processes of a cgroup have used: see [`Group::usage`].
#[must_use]
pub fn usage(path: &Path) -> Option<Usage> {
    let read = |file: &str| fs::read_to_string(path.join(file)).ok();
    let stat = read("cpu.stat")?;
    let time = |name: &str| value(&stat, name).map(Duration::from_micros);
    Some(Usage {
        user: time("user_usec")?,
        system: time("system_usec")?,
        memory_peak: read("memory.peak").and_then(|peak| peak.trim().parse().ok()),
        oom_kills: read("memory.events").and_then(|events| value(&events, "oom_kill")),
    })
}

/// Returns the value of a key in a file of lines `KEY VALUE`.
fn value(lines: &str, key: &str) -> Option<u64> {
    let mut lines = lines.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines.find(|(found, _)| *found == key)?;
    value.parse().ok()
}

/// Returns the cgroups right below one.
fn below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}
