//! The mount table. inotify does not tell that something is mounted over a directory, nor that it is
//! unmounted while it is in use.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::engine::Engine;
use super::sub::{Root, Sub};
use super::told::RescanReason;
use super::tree::Aim;

/// Bytes of the table that are read at most: more than the kernel's default of 100,000 mounts take.
const TABLE_BYTES: u64 = 64 << 20;
/// How often the table is looked at while there is other work.
const LOOK: Duration = Duration::from_millis(100);

/// The mounts that this process sees.
#[derive(Debug)]
pub(super) struct Mounts {
    /// None: it cannot be read, and mounts are not noticed.
    table: Option<File>,
    /// Each mount up to the end of its mount point, as the table has it.
    known: HashSet<Vec<u8>>,
    looked: Instant,
}

impl Mounts {
    pub(super) fn open() -> Self {
        let mut mounts = Self {
            table: File::open("/proc/self/mountinfo").ok(),
            known: HashSet::new(),
            looked: Instant::now(),
        };
        mounts.known = mounts.read().unwrap_or_default();
        mounts
    }

    /// What is to be waited for.
    pub(super) fn wanted(&self) -> Option<PollFd<'_>> {
        let table = self.table.as_ref()?;
        Some(PollFd::new(table, PollFlags::PRI))
    }

    /// Whether the table has changed, if it was not looked at lately.
    pub(super) fn have_changed(&mut self, now: Instant) -> bool {
        if now < self.looked + LOOK {
            return false;
        }
        self.looked = now;
        let Some(wanted) = self.wanted() else {
            return false;
        };
        let mut fds = [wanted];
        let _ = poll(&mut fds, Some(&Timespec::default()));
        fds[0].revents().intersects(PollFlags::PRI)
    }

    /// The mount points that have changed, each with whether something is mounted there anew.
    pub(super) fn changes(&mut self) -> BTreeMap<PathBuf, bool> {
        let Ok(found) = self.read() else {
            return BTreeMap::new();
        };
        let mut changes = BTreeMap::new();
        for gone in self.known.difference(&found) {
            changes.extend(mount_point(gone).map(|at| (at, false)));
        }
        for new in found.difference(&self.known) {
            changes.extend(mount_point(new).map(|at| (at, true)));
        }
        self.known = found;
        changes
    }

    fn read(&mut self) -> io::Result<HashSet<Vec<u8>>> {
        let Some(table) = &mut self.table else {
            return Ok(HashSet::new());
        };
        let mut text = Vec::new();
        table.rewind()?;
        table.take(TABLE_BYTES).read_to_end(&mut text)?;
        let lines = text.split(|byte| *byte == b'\n');
        Ok(lines.filter_map(identity).map(<[u8]>::to_vec).collect())
    }
}

/// The first five fields of a line: the mount's number, its parent's, the device, what of it is
/// mounted, and where. See proc_pid_mountinfo(5).
fn identity(line: &[u8]) -> Option<&[u8]> {
    let spaces = line.iter().enumerate().filter(|(_, byte)| **byte == b' ');
    let (end, _) = spaces.into_iter().nth(4)?;
    line.get(..end)
}

fn mount_point(identity: &[u8]) -> Option<PathBuf> {
    let mut escaped = identity.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(escaped.len());
    while let [first, rest @ ..] = escaped {
        // A space is `\040`.
        let code = rest.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = code.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(byte.unwrap_or(*first));
        escaped = byte.and_then(|_| rest.get(3..)).unwrap_or(rest);
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

impl Sub {
    /// Something was mounted at `at`, or unmounted.
    pub(super) fn remounted(&mut self, engine: &mut Engine, at: &Path, mounted: bool) {
        let here = |step: &super::way::Step| {
            let name = at.file_name().map(OsStrExt::as_bytes);
            at.parent() == Some(&step.dir) && name == Some(&step.name[..])
        };
        let mut steps = self.steps.iter();
        if steps.any(|step| step.dir.starts_with(at) || here(step)) {
            self.touched = true;
            self.resolve_later(engine);
            return;
        }
        let below = at.strip_prefix(&self.dir).ok();
        let Some(below) = below.filter(|_| self.root == Root::Dir) else {
            return;
        };
        let found = below.iter().try_fold(self.tree.root(), |id, name| {
            self.tree.child(id, name.as_bytes())
        });
        if let Some(id) = found {
            let reason = if mounted {
                RescanReason::Mounted
            } else {
                RescanReason::Unmounted
            };
            let path = self.tree.path(id, b"");
            self.rescan(engine, reason, path);
            self.visit_later(engine, id, Aim::Survey);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_read_with_its_escapes() {
        let line = b"36 35 98:0 /mnt1 /mnt/a\\040b\\134\\x rw,noatime master:1 - ext3 /dev/root rw";
        let identity = identity(line).unwrap();
        assert_eq!(identity, b"36 35 98:0 /mnt1 /mnt/a\\040b\\134\\x");
        assert_eq!(mount_point(identity).unwrap(), Path::new("/mnt/a b\\\\x"));
        assert_eq!(mount_point(b"36 35"), None);
    }
}
