//! The whole tree of a child: the child and all of its descendants, as far as they can be found.
//!
//! Each process is held by a pidfd that was opened and then compared with what was seen, so that no
//! later process with the same pid gets a signal. If the child has a cgroup of its own, that tells its
//! descendants. Else a descendant is known by its parent, its group or its session. One that has left all three (double fork and setsid(2)) is an orphan that the daemon
//! adopts as a subreaper: it may belong to any child, so it is counted and not ended.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::child::EndSignals;
use super::reaper::{KILLED_WITHIN, Reaper, wait_for_end};
use super::relatives::{self, Relative};
use crate::cgroup::Group;
use crate::error::{Error, Result, SystemError};
use crate::sys::{self, pidfd};

/// Most processes of the host that one look examines.
const LOOKED_AT_MAX: usize = 1 << 20;
/// Most looks for processes that have been started since, while a tree is ended. Each look stops what
/// it finds, so that more are needed only for descendants that were started during the one before.
const LOOKS_MAX: usize = 64;
/// Most processes that the answer names.
const NAMED_MAX: usize = 64;
/// Most looks at /proc at once, for all trees.
static LOOKS: Semaphore = Semaphore::const_new(2);

/// A child with its descendants, to be signalled off the loop's thread.
#[derive(Debug, Clone)]
pub struct Tree {
    pub(super) pid: i32,
    pub(super) pidfd: Arc<OwnedFd>,
    /// Clock ticks from boot to a time right before its start.
    pub(super) born: u64,
    pub(super) signals: EndSignals,
    pub(super) kill_grace: Duration,
    pub(super) reaper: Reaper,
    pub(super) group: Option<Arc<Group>>,
}

/// What a signal to a tree has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The processes that got the signal.
    pub processes: u32,
    /// The processes that belong to another user and did not get it.
    pub refused: u32,
}

/// The end of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The processes that have ended.
    pub ended: u32,
    /// Whether some did not end in time and were killed.
    pub killed: bool,
    /// The processes that have not ended, some of them.
    pub survivors: Vec<i32>,
    /// The processes that may have descended from the child and could not be told from others.
    pub escaped: u32,
    /// Some of these.
    pub escaped_pids: Vec<i32>,
}

impl Tree {
    /// Sends a signal to all processes of the tree.
    ///
    /// # Errors
    /// The child and all of its descendants have ended; none may be signalled; /proc cannot be read.
    pub async fn signal(self, number: i32) -> Result<Reached> {
        let (_, reached) = look(Hunt::new(self), move |hunt| {
            hunt.find()?;
            Ok(hunt.tell(number))
        })
        .await?;
        match reached {
            Reached {
                processes: 0,
                refused: 0,
            } => Err(Error::wrong_state(
                "the child and its descendants have ended",
            )),
            Reached { processes: 0, .. } => Err(SystemError::new(Errno::PERM, "signal", "").into()),
            reached => Ok(reached),
        }
    }

    /// Ends the tree: sends `signal` (`None`: as the spec says), then SIGKILL to what has not ended
    /// after `grace` (`None`: as the spec says). Returns once all has ended, or will not.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub async fn stop(self, signal: Option<i32>, grace: Option<Duration>) -> Result<Stopped> {
        let signals = signal.map_or(self.signals, EndSignals::only);
        let grace = grace.unwrap_or(self.kill_grace);
        let (mut hunt, ()) = look(Hunt::new(self), move |hunt| {
            hunt.find()?;
            for number in signals.in_order() {
                hunt.tell(number);
            }
            Ok(())
        })
        .await?;
        let mut killed = false;
        let in_time = Instant::now() + grace;
        let mut gone;
        (hunt, gone) = hunt.gone(in_time).await?;
        if !gone {
            killed = true;
            (hunt, ()) = look(hunt, Hunt::kill).await?;
            (hunt, gone) = hunt.gone(Instant::now() + KILLED_WITHIN).await?;
        }
        if !gone {
            // Some were started while the others were killed.
            (hunt, ()) = look(hunt, Hunt::kill).await?;
            (hunt, _) = hunt.gone(Instant::now() + KILLED_WITHIN).await?;
        }
        let (_, mut stopped) = look(hunt, Hunt::count).await?;
        stopped.killed = killed;
        Ok(stopped)
    }
}

/// A process of the tree.
#[derive(Debug)]
struct Member {
    seen: Relative,
    pidfd: Arc<OwnedFd>,
}

impl Member {
    /// Holds a process that was seen, in that cgroup if one is given; `None` if it has ended, or is
    /// another one by now.
    fn hold(seen: Relative, group: Option<&Group>) -> Option<Self> {
        let pidfd = pidfd::open(seen.pid).ok()?;
        let still = Relative::of(seen.pid)?;
        let same = still.start == seen.start
            && group.is_none_or(|group| group.contains(seen.pid))
            && pidfd::is_there(pidfd.as_fd());
        (same && !has_ended(&pidfd)).then(|| Self {
            seen,
            pidfd: Arc::new(pidfd),
        })
    }

    fn lives(&self) -> bool {
        !has_ended(&self.pidfd)
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// A tree and the processes of it that were found so far.
#[derive(Debug)]
struct Hunt {
    tree: Tree,
    members: BTreeMap<(i32, u64), Member>,
}

/// Runs what may block on a thread that may.
async fn look<T: Send + 'static>(
    mut hunt: Hunt,
    work: impl FnOnce(&mut Hunt) -> Result<T> + Send + 'static,
) -> Result<(Hunt, T)> {
    let lost = Error::Internal("the thread that looks at processes gave no result");
    let Ok(_turn) = LOOKS.acquire().await else {
        return Err(lost);
    };
    let done = tokio::task::spawn_blocking(move || work(&mut hunt).map(|it| (hunt, it))).await;
    done.unwrap_or(Err(lost))
}

impl Hunt {
    const fn new(tree: Tree) -> Self {
        Self {
            tree,
            members: BTreeMap::new(),
        }
    }

    /// Looks for processes of the tree that are not known yet. Returns how many there are.
    fn find(&mut self) -> Result<usize> {
        let mut found = 0;
        for seen in self.seen()? {
            let key = (seen.pid, seen.start);
            if let std::collections::btree_map::Entry::Vacant(place) = self.members.entry(key)
                && let Some(member) = Member::hold(seen, self.tree.group.as_deref())
            {
                place.insert(member);
                found += 1;
            }
        }
        Ok(found)
    }

    /// Returns the processes of the tree.
    fn seen(&self) -> Result<Vec<Relative>> {
        if let Some(group) = &self.tree.group {
            let pids = group.processes();
            let pids =
                pids.map_err(|error| SystemError::from_io(&error, "read", "cgroup.procs"))?;
            return Ok(pids.into_iter().filter_map(Relative::of).collect());
        }
        let all = processes()?;
        // Numbers are compared only now: what has not been reaped by now had its number to itself
        // while the processes were looked at.
        let mut known = BTreeSet::new();
        let mut leaders = BTreeSet::new();
        for one in &all {
            let member = self.members.get(&(one.pid, one.start));
            if member.is_some_and(|member| pidfd::is_there(member.pidfd.as_fd())) {
                known.insert(one.pid);
                // A number in use as that of a session or group is given to no other process.
                leaders.extend([one.group, one.session]);
            }
        }
        let pidfd = self.tree.pidfd.as_fd();
        if pidfd::is_there(pidfd) {
            known.insert(self.tree.pid);
        } else if matches!(sys::signal_group(pidfd, 0), Ok(()) | Err(Errno::PERM)) {
            leaders.insert(self.tree.pid);
        }
        let own = rustix::process::getpid().as_raw_pid();
        leaders.retain(|leader| *leader > 1 && !self.is_of_daemon(*leader, own));
        let mut found = relatives::descendants(&all, &known, &leaders, self.tree.born);
        found.retain(|one| one.pid != own && one.pid > 1);
        Ok(found)
    }

    /// Returns whether the daemon itself is in that session or group, so that it is not the tree's.
    fn is_of_daemon(&self, leader: i32, own: i32) -> bool {
        let session = nix::unistd::getsid(None).map(nix::unistd::Pid::as_raw);
        leader == own || session == Ok(leader) || nix::unistd::getpgrp().as_raw() == leader
    }

    /// Sends a signal to all members that live.
    fn tell(&mut self, number: i32) -> Reached {
        let mut reached = Reached {
            processes: 0,
            refused: 0,
        };
        for member in self.members.values().filter(|member| member.lives()) {
            match sys::signal_process(member.pidfd.as_fd(), number) {
                Ok(()) => reached.processes += 1,
                Err(Errno::SRCH) => {}
                Err(_) => reached.refused += 1,
            }
        }
        reached
    }

    /// Kills all processes of the tree. Each is stopped first: a stopped process starts no others,
    /// and its children keep their parent until all are found.
    fn kill(&mut self) -> Result<()> {
        if let Some(group) = self.tree.group.clone() {
            // What has been started since is counted too.
            self.find()?;
            if group.kill().is_ok() {
                return Ok(());
            }
        }
        for _ in 0..LOOKS_MAX {
            self.tell(libc::SIGSTOP);
            if self.find()? == 0 {
                break;
            }
        }
        self.tell(libc::SIGKILL);
        Ok(())
    }

    /// Waits until all processes of the tree have ended, also those that are started meanwhile, but
    /// no longer than `until`. Returns whether they have.
    async fn gone(self, until: Instant) -> Result<(Self, bool)> {
        let mut hunt = self;
        for _ in 0..LOOKS_MAX {
            for member in hunt.members.values() {
                if timeout_at(until, wait_for_end(&member.pidfd))
                    .await
                    .is_err()
                {
                    return Ok((hunt, false));
                }
            }
            let found;
            (hunt, found) = look(hunt, Self::find).await?;
            if found == 0 {
                return Ok((hunt, true));
            }
        }
        Ok((hunt, false))
    }

    /// Counts what has ended, what has not, and what may have escaped.
    fn count(&mut self) -> Result<Stopped> {
        let (live, ended): (Vec<_>, Vec<_>) = self.members.values().partition(|m| m.lives());
        let escaped = self.escaped()?;
        let named = |all: &mut dyn Iterator<Item = i32>| all.take(NAMED_MAX).collect();
        Ok(Stopped {
            ended: u32::try_from(ended.len()).unwrap_or(u32::MAX),
            killed: false,
            survivors: named(&mut live.iter().map(|member| member.seen.pid)),
            escaped: u32::try_from(escaped.len()).unwrap_or(u32::MAX),
            escaped_pids: named(&mut escaped.iter().map(|one| one.pid)),
        })
    }

    /// Returns the orphans that the daemon has adopted since the child's start, and that are not
    /// known to descend from another child.
    fn escaped(&self) -> Result<Vec<Relative>> {
        if self.tree.group.is_some() {
            return Ok(Vec::new());
        }
        let own = rustix::process::getpid().as_raw_pid();
        let mut orphans = processes()?;
        orphans.retain(|one| {
            one.parent == own
                && one.start >= self.tree.born
                && !self.members.contains_key(&(one.pid, one.start))
        });
        // A child of the daemon that was just started is known by now.
        orphans.retain(|one| {
            let known = [one.pid, one.session, one.group];
            let is_anothers = known.iter().any(|pid| self.tree.reaper.is_child(*pid));
            !is_anothers && Member::hold(*one, None).is_some()
        });
        Ok(orphans)
    }
}

fn processes() -> Result<Vec<Relative>> {
    relatives::all(LOOKED_AT_MAX)
        .map_err(|error| SystemError::from_io(&error, "read", "/proc").into())
}
