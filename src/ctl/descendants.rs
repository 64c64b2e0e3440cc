//! The processes of a daemon, found and ended without its help: by the socket on which it listens, and
//! by what /proc tells of parents, start times and cgroups.
//!
//! Only what is certainly the daemon's is ended. What descends from a daemon that a keeper has started
//! is. Of what descends from the keeper, or from a daemon without one, only that is which began after
//! the daemon had bound its socket, or is in a cgroup that the daemon made: the program that executed
//! the daemon may have had children before, and process 1 of a container gets orphans of others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::access::bound_since;
use crate::sys::{self, pidfd};

/// The name of a keeper's process, and of a daemon's.
const KEEPER: &str = "evloopd-keeper";
const DAEMON: &str = "evloopd";
/// Flags of a listening socket in /proc/net/unix (__SO_ACCEPTCON).
const LISTENS: &str = "00010000";
/// Most looks for processes that were started while others were stopped.
const LOOKS_MAX: usize = 64;
/// How long processes may take to end that got SIGKILL.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// A daemon and its keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    keeper: Option<i32>,
    /// `None` between two lives.
    pub(super) daemon: Option<i32>,
    /// When the daemon bound its socket, clock ticks since the boot, if that is known.
    since: Option<u64>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) name: String,
    parent: i32,
    start: u64,
    is_zombie: bool,
}

/// What became of a daemon's processes.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) ended: Vec<Process>,
    /// Those that have not ended, not even by SIGKILL, or may not be signalled.
    pub(super) left: Vec<Process>,
    /// Those of which it is not known whether they are the daemon's.
    pub(super) doubtful: Vec<Process>,
}

impl Process {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.split_once(" (")?;
        // The name may contain anything, parentheses too.
        let (name, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split_ascii_whitespace().collect();
        Some(Self {
            pid,
            name: name.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
            is_zombie: matches!(*fields.first()?, "Z" | "X"),
        })
    }
}

fn pids() -> io::Result<Vec<i32>> {
    let entries = fs::read_dir("/proc")?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

impl Holder {
    /// Finds the daemon that listens at this path. `None`: none does that the caller may look at.
    ///
    /// # Errors
    /// /proc cannot be read; several daemons listen there.
    pub(super) fn find(socket: &Path) -> io::Result<Option<Self>> {
        let table = fs::read_to_string("/proc/net/unix")?;
        let links: BTreeSet<_> = listening(&table, socket)
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        if links.is_empty() {
            return Ok(None);
        }
        let holds = |pid: &i32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd"));
            let mut open = open.into_iter().flatten().filter_map(Result::ok);
            open.any(|fd| {
                let link = fs::read_link(fd.path());
                link.is_ok_and(|link| link.to_str().is_some_and(|link| links.contains(link)))
            })
        };
        let named = |pid: i32| {
            Process::of(pid).filter(|one| !one.is_zombie && [KEEPER, DAEMON].contains(&&*one.name))
        };
        let found = pids()?.into_iter().filter_map(named);
        let found: Vec<_> = found.filter(|one| holds(&one.pid)).collect();
        let since = bound_since(socket);
        Self::among(&found, since)
            .map_err(|()| io::Error::other("several daemons listen there, under one name"))
    }

    /// Tells the keeper and the daemon from children that have not executed their programs yet.
    fn among(found: &[Process], since: Option<u64>) -> Result<Option<Self>, ()> {
        let is_daemon = |pid: i32| {
            let mut others = found.iter();
            others.any(|one| one.pid == pid && one.name == DAEMON)
        };
        let only = |mut all: Vec<i32>| match all.len() {
            0 | 1 => Ok(all.pop()),
            _ => Err(()),
        };
        let keepers = found.iter().filter(|one| one.name == KEEPER);
        let keeper = only(keepers.map(|one| one.pid).collect())?;
        let daemons = found.iter().filter(|one| {
            let is_own = keeper.is_none_or(|keeper| one.parent == keeper);
            one.name == DAEMON && is_own && !is_daemon(one.parent)
        });
        let daemon = only(daemons.map(|one| one.pid).collect())?;
        let holder = Self {
            keeper,
            daemon,
            since,
        };
        Ok((keeper.is_some() || daemon.is_some()).then_some(holder))
    }

    /// Returns the daemon's processes, and those of which that is not known.
    fn processes(&self) -> io::Result<(Vec<Process>, Vec<Process>)> {
        let all = pids()?.into_iter().filter_map(Process::of);
        let mut by_parent: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
        for one in all {
            by_parent.entry(one.parent).or_default().push(one);
        }
        let mut children = |of: Option<i32>| of.and_then(|pid| by_parent.remove(&pid));
        let of_daemon = children(self.daemon).unwrap_or_default();
        let mut of_keeper = children(self.keeper).unwrap_or_default();
        of_keeper.retain(|one| Some(one.pid) != self.daemon);
        let groups = self.groups();
        let is_proven = |parent: Option<i32>, one: &Process| {
            let began_later = self.since.is_some_and(|since| one.start > since);
            began_later && !parent.is_some_and(is_init) || is_in(one.pid, &groups)
        };
        let (mut ours, mut doubtful) = (Vec::new(), Vec::new());
        for one in of_keeper {
            match is_proven(self.keeper, &one) {
                true => ours.push(one),
                false => doubtful.push(one),
            }
        }
        for one in of_daemon {
            match self.keeper.is_some() || is_proven(self.daemon, &one) {
                true => ours.push(one),
                false => doubtful.push(one),
            }
        }
        let mut next = 0;
        while let Some(one) = ours.get(next) {
            ours.extend(by_parent.remove(&one.pid).unwrap_or_default());
            next += 1;
        }
        let own = std::process::id().cast_signed();
        ours.retain(|one| one.pid != own && !one.is_zombie);
        doubtful.retain(|one| one.pid != own && !one.is_zombie);
        Ok((ours, doubtful))
    }

    /// Returns the beginnings of the names of cgroups that this daemon, or an earlier life, has made.
    fn groups(&self) -> Vec<String> {
        let own = self.daemon.or(self.keeper).and_then(cgroup_of);
        let Some(own) = own else { return Vec::new() };
        let above = own.strip_suffix("/daemon").map(str::to_owned);
        let below = |of: String| format!("{}/evloopd-", of.trim_end_matches('/'));
        above.into_iter().chain([own]).map(below).collect()
    }

    /// Ends the daemon's processes: by SIGTERM first, if they have time for it, then by SIGKILL. May
    /// block.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub(super) fn end(&self, time: Option<Duration>) -> io::Result<Ended> {
        let mut hunt = Hunt::default();
        if let Some(time) = time {
            hunt.add(self.processes()?.0);
            hunt.tell(libc::SIGTERM);
            // One that is stopped takes no other signal.
            hunt.tell(libc::SIGCONT);
            hunt.wait(time);
        }
        let mut looks = 0..LOOKS_MAX;
        loop {
            // A stopped process starts no others.
            while hunt.add(self.processes()?.0) > 0 && looks.next().is_some() {
                hunt.tell(libc::SIGSTOP);
            }
            hunt.tell(libc::SIGKILL);
            hunt.wait(KILLED_WITHIN);
            if looks.next().is_none() || hunt.add(self.processes()?.0) == 0 {
                break;
            }
        }
        let (ended, left) = hunt.members.into_values().partition::<Vec<_>, _>(ended);
        let processes = |all: Vec<Member>| all.into_iter().map(|one| one.seen).collect();
        Ok(Ended {
            ended: processes(ended),
            left: processes(left),
            doubtful: self.processes()?.1,
        })
    }
}

/// A process that is held, so that no later one with its pid gets a signal.
#[derive(Debug)]
struct Member {
    seen: Process,
    pidfd: OwnedFd,
}

fn ended(one: &Member) -> bool {
    ends_within(one, Duration::ZERO)
}

fn ends_within(one: &Member, time: Duration) -> bool {
    let mut fds = [PollFd::new(&one.pidfd, PollFlags::IN)];
    let time = Timespec::try_from(time).ok();
    poll(&mut fds, time.as_ref()).is_ok_and(|ready| ready > 0)
}

#[derive(Debug, Default)]
struct Hunt {
    members: BTreeMap<(i32, u64), Member>,
}

impl Hunt {
    /// Holds those that are not held yet. Returns how many.
    fn add(&mut self, found: Vec<Process>) -> usize {
        let before = self.members.len();
        for seen in found {
            let key = (seen.pid, seen.start);
            if !self.members.contains_key(&key)
                && let Ok(pidfd) = pidfd::open(seen.pid)
                // Read after it was opened: it is the process that was seen.
                && Process::of(seen.pid).is_some_and(|now| now.start == seen.start)
            {
                self.members.insert(key, Member { seen, pidfd });
            }
        }
        self.members.len() - before
    }

    fn tell(&self, number: i32) {
        for one in self.members.values() {
            match sys::signal_process(one.pidfd.as_fd(), number) {
                // Whoever may not be signalled is told as left.
                Ok(()) | Err(Errno::SRCH | _) => {}
            }
        }
    }

    /// Waits until all have ended, but no longer than this.
    fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        for one in self.members.values() {
            let _ = ends_within(one, until.saturating_duration_since(Instant::now()));
        }
    }
}

/// Returns the inodes of the sockets that listen at this path.
fn listening<'a>(table: &'a str, socket: &'a Path) -> impl Iterator<Item = &'a str> {
    let real = |path: &Path| {
        let parent = path.parent()?.canonicalize().ok()?;
        Some(parent.join(path.file_name()?))
    };
    let wanted = real(socket);
    table.lines().filter_map(move |line| {
        let mut fields = line.splitn(8, ' ').filter(|field| !field.is_empty());
        let flags = fields.nth(3)?;
        // The fields before are padded, so that the path is what follows the last of them.
        let (before, path) = line.split_once(" /")?;
        let inode = before.rsplit(' ').next()?;
        let path = Path::new("/").join(path);
        let is_there = path == socket || wanted.is_some() && real(&path) == wanted;
        (flags == LISTENS && is_there).then_some(inode)
    })
}

/// Returns whether a process is process 1 of its namespace, so that orphans of others are its
/// children.
fn is_init(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let own = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    own.and_then(|pids| pids.split_ascii_whitespace().last()) == Some("1")
}

fn cgroup_of(pid: i32) -> Option<String> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let name = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    name.map(str::to_owned)
}

/// Returns whether a process is in a cgroup whose name is one of these beginnings and an instance.
fn is_in(pid: i32, beginnings: &[String]) -> bool {
    let Some(name) = cgroup_of(pid) else {
        return false;
    };
    let rest = beginnings.iter().find_map(|of| name.strip_prefix(&**of));
    let instance = rest.and_then(|rest| rest.split_once('/'));
    instance.is_some_and(|(id, _)| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, name: &str, parent: i32) -> Process {
        Process {
            pid,
            name: name.to_owned(),
            parent,
            start: 1,
            is_zombie: false,
        }
    }

    #[test]
    fn the_daemon_is_told_from_its_keeper_and_from_children_that_begin() {
        let holder = |found: &[Process]| Holder::among(found, None).map(|found| found.unwrap());
        let (keeper, life) = (process(5, KEEPER, 2), process(6, DAEMON, 5));
        let begins = process(7, DAEMON, 6);
        let found = holder(&[keeper.clone(), life.clone(), begins.clone()]).unwrap();
        assert_eq!((found.keeper, found.daemon), (Some(5), Some(6)));
        let found = holder(&[process(6, DAEMON, 2), begins]).unwrap();
        assert_eq!((found.keeper, found.daemon), (None, Some(6)));
        let found = holder(std::slice::from_ref(&keeper)).unwrap();
        assert_eq!((found.keeper, found.daemon), (Some(5), None));
        assert!(Holder::among(&[keeper, life, process(9, KEEPER, 2)], None).is_err());
        assert_eq!(Holder::among(&[], None), Ok(None));
    }

    #[test]
    fn listening_sockets_are_found_by_their_path() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01  4711 /run/e v/e.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03  4712 /run/e v/e.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 12345 @/run/e\n\
            0000000000000000: 00000002 00000000 00010000 0005 01 4713 /run/e v/e.handover\n";
        let found: Vec<_> = listening(table, Path::new("/run/e v/e.sock")).collect();
        assert_eq!(found, ["4711"]);
    }

    #[test]
    fn a_process_of_this_program_is_seen_as_it_is() {
        let pid = std::process::id().cast_signed();
        let own = Process::of(pid).unwrap();
        assert_eq!(Some(own.parent), crate::access::parent_of(pid));
        assert_eq!(Some(own.start), crate::access::start_ticks(pid));
        assert!(!own.is_zombie && !is_in(pid, &[String::new()]));
    }
}
