//! Finds processes by what /proc tells of their parents, groups and sessions.

use std::collections::BTreeSet;
use std::fs;
use std::io;

/// A process as proc_pid_stat(5) shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Relative {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    /// Clock ticks from boot to its start. With the pid it names one process.
    pub(super) start: u64,
}

impl Relative {
    /// Returns a process; `None` if there is none with that pid.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = stat.split_once(" (")?;
        // The name may contain anything, parentheses and spaces too.
        let (_, rest) = rest.rsplit_once(") ")?;
        let mut fields = rest.split_ascii_whitespace().skip(1);
        let mut number = || fields.next()?.parse().ok();
        Some(Self {
            pid: pid.parse().ok()?,
            parent: number()?,
            group: number()?,
            session: number()?,
            start: fields.nth(15)?.parse().ok()?,
        })
    }
}

/// Returns the processes that /proc shows, at most `most`. One that starts or ends meanwhile may be
/// missing. May block.
///
/// # Errors
/// /proc cannot be read.
pub(super) fn all(most: usize) -> io::Result<Vec<Relative>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if let Some(relative) = pid.and_then(Relative::of) {
            found.push(relative);
            if found.len() == most {
                break;
            }
        }
    }
    Ok(found)
}

/// Returns those processes that are in `known`, descend from one that is, or belong to a group or
/// session that one of them or of `leaders` has led. None was started before `since`.
pub(super) fn descendants(
    all: &[Relative],
    known: &BTreeSet<i32>,
    leaders: &BTreeSet<i32>,
    since: u64,
) -> Vec<Relative> {
    let (mut ours, mut leaders) = (known.clone(), leaders | known);
    let mut rest: Vec<_> = all.iter().filter(|r| r.start >= since).collect();
    let mut found = Vec::new();
    loop {
        let before = rest.len();
        rest.retain(|one| {
            let related = ours.contains(&one.pid)
                || ours.contains(&one.parent)
                || leaders.contains(&one.group)
                || leaders.contains(&one.session);
            if related {
                ours.insert(one.pid);
                leaders.insert(one.pid);
                found.push(**one);
            }
            !related
        });
        if rest.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_is_no_field() {
        let stat = "7 (a) b (c) S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 420106 0 0 1";
        let relative = Relative {
            pid: 7,
            parent: 1,
            group: 2,
            session: 3,
            start: 420_106,
        };
        assert_eq!(Relative::parse(stat), Some(relative));
        let own = i32::try_from(std::process::id()).unwrap();
        let own = Relative::of(own).unwrap();
        assert_eq!(own.session, nix::unistd::getsid(None).unwrap().as_raw());
        assert_eq!(Some(own.start), crate::access::start_ticks(own.pid));
    }

    #[test]
    fn descendants_are_found_by_parent_group_and_session_and_strangers_are_not() {
        let of = |pid, parent, group, session, start| Relative {
            pid,
            parent,
            group,
            session,
            start,
        };
        let all = [
            // Found before its parent is.
            of(9, 8, 9, 9, 60),
            of(5, 2, 5, 5, 50),
            of(6, 5, 5, 5, 51),
            // Its parent has ended, and it is in the session of one that was found.
            of(7, 1, 7, 5, 52),
            of(8, 7, 8, 8, 53),
            // A stranger, one that is older, and the daemon.
            of(20, 1, 20, 20, 55),
            of(4, 5, 5, 5, 49),
            of(2, 1, 2, 2, 10),
        ];
        let pids = |known: &[i32], leaders: &[i32]| -> BTreeSet<i32> {
            let (known, leaders) = (known.iter().copied(), leaders.iter().copied());
            let found = descendants(&all, &known.collect(), &leaders.collect(), 50);
            found.iter().map(|one| one.pid).collect()
        };
        assert_eq!(pids(&[5], &[]), [5, 6, 7, 8, 9].into());
        // The child itself has ended; its session has not.
        assert_eq!(pids(&[], &[5]), [5, 6, 7, 8, 9].into());
        assert_eq!(pids(&[8], &[]), [8, 9].into());
        assert_eq!(pids(&[], &[]), [].into());
    }
}
