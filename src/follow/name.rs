//! Where a name leads.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirEntryExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags, open, statx};
use rustix::io::{Errno, pread, retry_on_intr};

use super::error::{Doing, Error, NotRegular};
use super::identity::Identity;

/// How many entries of a directory are looked at for a file that lost its name.
const ENTRIES_MAX: usize = 10_000;

/// Device and inode number. Two files that exist at the same time differ in it, and a file exists
/// as long as it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode {
    device: (u32, u32),
    number: u64,
}

impl Inode {
    pub(super) fn of(stat: &Statx) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            number: stat.stx_ino,
        }
    }
}

/// A regular file that was just opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: OwnedFd,
    pub(super) stat: Statx,
    pub(super) identity: Identity,
}

impl Opened {
    /// Whether it has bytes, but the file system says that it has none, as procfs does.
    pub(super) fn tells_no_size(&self) -> bool {
        let mut byte = [0];
        self.stat.stx_size == 0
            && retry_on_intr(|| pread(&self.file, &mut byte, 0)) == Ok(1)
            // It may have been written since.
            && stat(&self.file).is_ok_and(|stat| stat.stx_size == 0)
    }
}

/// Where the name leads: None, to nothing.
pub(super) fn find(path: &Path) -> Result<Option<Statx>, Error> {
    match statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS) {
        Ok(stat) => regular(path, stat).map(Some),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Error::Io {
            doing: Doing::Find,
            path: path.into(),
            errno,
        }),
    }
}

/// Opens the file that the name leads to. To be called when `find` has seen a regular file there,
/// as opening something else can have effects, such as waking the writer of a FIFO.
pub(super) fn open_regular(path: &Path) -> Result<Option<Opened>, Error> {
    let failed = |errno| Error::Io {
        doing: Doing::Open,
        path: path.into(),
        errno,
    };
    // NONBLOCK: if it has become a FIFO since, open must not wait for a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = match open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    let stat = regular(path, stat(&file).map_err(failed)?)?;
    let identity = Identity::of(&file, &stat);
    Ok(Some(Opened {
        file,
        stat,
        identity,
    }))
}

/// The file with this identity in the directory of `path`, under whatever name.
pub(super) fn find_renamed(path: &Path, identity: &Identity) -> Option<Opened> {
    let real = fs::canonicalize(path);
    let directory = real.as_deref().unwrap_or(path).parent()?;
    fs::read_dir(directory)
        .ok()?
        .take(ENTRIES_MAX)
        .flatten()
        .filter(|entry| entry.ino() == identity.inode())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .find_map(|entry| {
            let opened = open_regular(&entry.path()).ok()??;
            opened.identity.is_same_file(identity).then_some(opened)
        })
}

pub(super) fn stat(file: impl AsFd) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    statx(file, "", AtFlags::EMPTY_PATH, wanted)
}

fn regular(path: &Path, stat: Statx) -> Result<Statx, Error> {
    match NotRegular::of(FileType::from_raw_mode(stat.stx_mode.into())) {
        None => Ok(stat),
        Some(what) => Err(Error::NotRegular {
            path: path.into(),
            what,
        }),
    }
}
