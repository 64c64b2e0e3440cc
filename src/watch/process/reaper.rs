//! Reaps children that no watch waits for any longer, and inherited children.
//!
//! A child is reaped through its pidfd, by its watch or by [`Reaper`]. Inherited children
//! are children of the process that no watch started: the children that the process had before it
//! executed the daemon, and orphans, which the kernel gives to process 1 of a container and to a
//! subreaper (PR_SET_CHILD_SUBREAPER(2const)). Both are children of the main thread. Watches start children
//! only on the lasting threads of [`Starters`](crate::watch::Starters), so [`reap_inherited`],
//! which reaps children of the main thread only, never reaps a child of a watch.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::cgroup::Group;
use crate::descriptors::Closing;
use crate::driver::Key;
use crate::keeper::Life;
use crate::signals::{Received, SignalHub};
use crate::state::Stray;
use crate::sys::{self, Waited};
use crate::watch::services::{Count, Permit};
use crate::watch::{Notice, Notifier};

/// The longest time to wait for the end of a killed child while its loop is stopped, or of a tree.
pub(super) const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// The time between two checks of a child that cannot be reaped although its pidfd reports its end.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The number of inherited children that are reaped before other tasks of the runtime run.
const INHERITED_AT_ONCE: usize = 64;

/// Reaps the children that were left to it, each in a task of the runtime. There are at most
/// `limits.children` of them, because each holds its permit until it has ended.
#[derive(Debug, Clone)]
pub struct Reaper {
    runtime: Handle,
    kept: Arc<Count>,
    /// How often each pid is that of a child that was not reaped yet. A pid may be given to a new
    /// child while the old one is still counted.
    children: Arc<Mutex<BTreeMap<i32, u32>>>,
    orphans: Arc<Orphans>,
}

/// Children of dead lives, which the keeper reaps.
#[derive(Debug, Default)]
struct Orphans {
    /// Tells of those that were reaped; `None` without a keeper.
    life: Option<Life>,
    /// Those that watches have taken over, by pid and start time.
    known: Mutex<BTreeSet<(i32, u64)>>,
    /// No more of them are taken over: what else ends is a stranger.
    settled: AtomicBool,
}

impl Orphans {
    fn forget_strangers(&self, known: &BTreeSet<(i32, u64)>) {
        if let Some(life) = self.life.filter(|_| self.settled.load(Ordering::Acquire)) {
            life.forget_exits(|exit| !known.iter().any(|(pid, start)| exit.is_of(*pid, *start)));
        }
    }
}

/// By what children are known whose start nobody has recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strays {
    /// The keeper has become their parent.
    Keepers,
    /// The keeper has ended, too: they were started soon after their start began.
    Strangers,
    /// Their pids mean nothing here.
    Unknown,
}

/// The longest time from the beginning of a start until there is a child, seconds.
const START_TAKES: u64 = 10;

/// Kills a process and its group if it is that child. Returns whether it was.
fn end_stray(stray: Stray, strays: Strays, keeper: Option<i32>) -> bool {
    let pid = stray.pid;
    // Opened first: what is found then is of the process that is killed.
    let Ok(pidfd) = sys::pidfd::open(pid) else {
        return false;
    };
    let is_it = match strays {
        Strays::Keepers => keeper.is_some() && crate::access::parent_of(pid) == keeper,
        Strays::Strangers => {
            let most = START_TAKES * rustix::param::clock_ticks_per_second();
            let start = crate::access::start_ticks(pid);
            start.is_some_and(|start| (stray.since..=stray.since + most).contains(&start))
        }
        Strays::Unknown => false,
    };
    if !is_it {
        return false;
    }
    let _ = sys::signal_group(pidfd.as_fd(), libc::SIGKILL);
    sys::signal_process(pidfd.as_fd(), libc::SIGKILL).is_ok()
}

impl Reaper {
    /// Returns a reaper for at most `children` children at once.
    #[must_use]
    pub fn new(runtime: Handle, children: usize, life: Option<Life>) -> Self {
        Self {
            runtime,
            kept: Count::new("limits.children", children),
            children: Arc::default(),
            orphans: Arc::new(Orphans {
                life,
                known: Mutex::default(),
                settled: AtomicBool::new(false),
            }),
        }
    }

    /// Takes a child of a dead life over.
    pub(super) fn adopt(&self, pid: i32, start: u64) {
        self.orphans.known.lock().insert((pid, start));
    }

    /// Says that all children of dead lives are taken over that ever will be. Of the others, those with
    /// these pids, whose start nobody has recorded, are ended: who has asked for them was not answered,
    /// and will ask again.
    pub fn settle(&self, unrecorded: &[Stray], strays: Strays) {
        let keeper = self.orphans.life.and_then(|life| life.keeper());
        for stray in unrecorded {
            let pid = stray.pid;
            if !self.is_child(pid) && end_stray(*stray, strays, keeper) {
                tracing::warn!(pid, "a child whose start was not recorded is ended");
            }
        }
        self.orphans.settled.store(true, Ordering::Release);
        self.orphans.forget_strangers(&self.orphans.known.lock());
    }

    /// Returns how a child of a dead life has ended, once it has.
    pub(super) fn orphan_exit(&self, pid: i32, start: u64) -> Option<Waited> {
        self.orphans.forget_strangers(&self.orphans.known.lock());
        let exit = self.orphans.life?.orphan_exit(pid, start)?;
        Some(exit.waited)
    }

    /// Returns whether the keeper has ended, so that it reaps no more children of dead lives.
    pub(super) fn has_lost_keeper(&self) -> bool {
        let life = self.orphans.life;
        life.is_some_and(|life| life.keeper().is_none())
    }

    /// Forgets a child of a dead life whose exit is recorded.
    pub(super) fn forget_orphan(&self, pid: i32, start: u64) {
        let mut known = self.orphans.known.lock();
        known.remove(&(pid, start));
        self.orphans.forget_strangers(&known);
        drop(known);
        self.reaped(pid);
    }

    /// Counts a child that was started.
    pub(super) fn started(&self, pid: i32) {
        *self.children.lock().entry(pid).or_default() += 1;
    }

    /// Counts a child that was reaped.
    pub(super) fn reaped(&self, pid: i32) {
        let mut children = self.children.lock();
        if let Some(count) = children.get_mut(&pid) {
            *count -= 1;
            if *count == 0 {
                children.remove(&pid);
            }
        }
    }

    /// Returns whether the pid is that of a child that was started by a watch and not reaped yet.
    pub(super) fn is_child(&self, pid: i32) -> bool {
        self.children.lock().contains_key(&pid)
    }

    /// Returns the number of children that it waits for.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.used()
    }

    /// Reaps the child once it has ended.
    pub(super) fn take(
        &self,
        pid: i32,
        pidfd: Arc<OwnedFd>,
        rest: (Option<Permit>, Option<Arc<Group>>),
    ) {
        // This is not refused, because each child has one of as many permits.
        let kept = self.kept.take();
        let reaper = self.clone();
        self.runtime.spawn(async move {
            wait_for_end(&pidfd).await;
            // The child cannot be reaped yet because a tracer is to get its exit first (ptrace(2)),
            // or because waiting for its end failed.
            while sys::reap(pidfd.as_fd()) == Ok(false) {
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
            reaper.reaped(pid);
            drop((kept, rest, pidfd, Closing));
        });
    }

    /// Kills all processes of a cgroup, on a thread that may wait for other changes of cgroups.
    pub(super) fn kill(&self, group: Arc<Group>) {
        self.runtime.spawn_blocking(move || {
            if let Err(error) = group.kill() {
                tracing::warn!(path = %group.path().display(), %error, "cannot kill a cgroup");
            }
        });
    }

    /// Notifies the watch once the child has ended, or when it has not ended in time although it
    /// was killed.
    pub(super) fn notify_end(&self, pidfd: Arc<OwnedFd>, key: Key, notifier: Arc<dyn Notifier>) {
        self.runtime.spawn(async move {
            // In both cases the watch checks the child itself.
            let _ = tokio::time::timeout(KILLED_WITHIN, wait_for_end(&pidfd)).await;
            notifier.notify(key, Notice::ChildKilled);
        });
    }

    /// Notifies the watch once a child of a dead life has ended, as the keeper may not live to tell.
    pub(super) fn notify_end_of_orphan(
        &self,
        pidfd: Arc<OwnedFd>,
        key: Key,
        notifier: Arc<dyn Notifier>,
    ) {
        self.runtime.spawn(async move {
            wait_for_end(&pidfd).await;
            notifier.notify(key, Notice::ChildEnded);
        });
    }
}

/// Returns once the process has ended, or at once if waiting for that fails.
pub(super) async fn wait_for_end(pidfd: &Arc<OwnedFd>) {
    let readable = async {
        let watched = sys::async_fd(Arc::clone(pidfd), Interest::READABLE)?;
        watched.readable().await.map(drop)
    };
    if let Err(error) = readable.await {
        tracing::warn!(%error, "waiting for the end of a child failed");
    }
}

/// Returns whether the calling thread, the main thread, has children or may inherit some.
fn may_inherit_children() -> bool {
    let adopts = rustix::process::getpid().is_init()
        || !matches!(rustix::process::child_subreaper(), Ok(None));
    adopts || sys::has_own() != Err(Errno::CHILD)
}

/// Reaps the inherited children that end. Must be polled on the main thread, as long as the daemon
/// runs.
pub async fn reap_inherited(hub: &SignalHub) -> Infallible {
    if !may_inherit_children() {
        return std::future::pending().await;
    }
    let ended = Arc::new(Notify::new());
    let sink = {
        let ended = Arc::clone(&ended);
        move |_: Received| ended.notify_one()
    };
    let _told = hub.subscribe(&[libc::SIGCHLD], Arc::new(sink));
    loop {
        for _ in 0..INHERITED_AT_ONCE {
            match sys::reap_own() {
                Ok(true) => {}
                // No inherited child has ended, or there is none.
                Ok(false) | Err(Errno::CHILD) => {
                    ended.notified().await;
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "reaping inherited child processes failed; they stay zombies");
                    return std::future::pending().await;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}
