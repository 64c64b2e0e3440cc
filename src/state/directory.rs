//! The directory with the files of an arena: they outlive all processes that have them open.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Dir, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// The file of the table.
const TABLE: &str = "table";
/// File systems that are memory (statfs(2)).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
/// The part of a file system that is left to others.
const LEFT: u64 = 8;

/// A directory that one daemon has for itself, with all of its lives.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    is_memory: bool,
}

impl Directory {
    /// Opens it. Makes it if it is missing, with mode 0700; its parent must be there.
    ///
    /// # Errors
    /// EPERM if it belongs to another user, or other users may use it; those of mkdir(2) and open(2).
    pub fn open(path: &Path) -> Result<Self, Errno> {
        match fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty())?;
        let found = fs::fstat(&fd)?;
        if found.st_uid != rustix::process::geteuid().as_raw() || found.st_mode & 0o077 != 0 {
            return Err(Errno::PERM);
        }
        Ok(Self::of_earlier_life(fd))
    }

    /// Takes it over from an earlier life.
    #[must_use]
    pub fn of_earlier_life(fd: OwnedFd) -> Self {
        let kind = fs::fstatfs(&fd).map_or(0, |found| found.f_type.cast_unsigned());
        Self {
            fd,
            is_memory: IN_MEMORY.contains(&kind),
        }
    }

    /// Returns it for later lives.
    #[must_use]
    pub const fn file(&self) -> &OwnedFd {
        &self.fd
    }

    /// Returns where it is; `None` if it was removed.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let found = fs::fstat(&self.fd).ok()?;
        (found.st_nlink > 0).then_some(())?;
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let path = fs::readlink(link, Vec::new()).ok()?;
        Some(OsString::from_vec(path.into_bytes()).into())
    }

    /// Returns whether its files are memory, so that nobody who uses them waits for a disk.
    pub(super) const fn is_memory(&self) -> bool {
        self.is_memory
    }

    /// Returns whether it has room for that many bytes, beside what is left to others.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        fs::fstatvfs(&self.fd).is_ok_and(|found| {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let all = found.f_blocks.saturating_mul(found.f_frsize);
            // A file system in memory without a limit says that it has no blocks.
            all == 0 || free >= bytes.saturating_add(all / LEFT)
        })
    }

    /// Opens the file of the table, which may be new and empty, and locks it for all lives that have it.
    ///
    /// # Errors
    /// EWOULDBLOCK if another daemon has locked it; those of open(2).
    pub(super) fn table(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let table = fs::openat(&self.fd, TABLE, flags, Mode::RUSR | Mode::WUSR)?;
        fs::flock(&table, FlockOperation::NonBlockingLockExclusive)?;
        Ok(table)
    }

    /// Makes a file anew, with that many bytes, which are there.
    ///
    /// # Errors
    /// ENOSPC; EOPNOTSUPP of file systems that cannot promise the room; others of the system.
    pub(super) fn create(&self, name: &str, len: usize) -> Result<OwnedFd, Errno> {
        self.remove(name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?;
        allocate(&file, len).inspect_err(|_| self.remove(name))?;
        Ok(file)
    }

    /// Opens a file that an earlier life has made.
    ///
    /// # Errors
    /// Those of open(2).
    pub(super) fn existing(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&self.fd, name, flags, Mode::empty())
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) {
        let _ = fs::unlinkat(&self.fd, name, AtFlags::empty());
    }

    /// Removes all files but the table and those that `is_used` names.
    pub(super) fn clean(&self, is_used: impl Fn(&str) -> bool) {
        let Ok(entries) = Dir::read_from(&self.fd) else {
            return;
        };
        let names =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(String::from));
        let unused = names.filter(|name| !matches!(&**name, "." | ".." | TABLE) && !is_used(name));
        for name in unused.collect::<Vec<_>>() {
            self.remove(&name);
        }
    }

    /// Removes it with all of its files: nothing is left for anybody.
    pub(super) fn remove_all(&self) {
        let path = self.path();
        self.clean(|_| false);
        self.remove(TABLE);
        if let Some(path) = path {
            let _ = fs::rmdir(&path);
        }
    }
}

/// Gives a file exactly that many bytes, all of which are there.
pub(super) fn allocate(file: &OwnedFd, len: usize) -> Result<(), Errno> {
    fs::ftruncate(file, len as u64)?;
    fs::fallocate(file, FallocateFlags::empty(), 0, len as u64)
}
