//! From `/` to the root of a subscription, name by name.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::WatchFlags;
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use rustix::io::Errno;

use super::filesystems::silent;
use super::refused::Refused;
use super::tree::Inode;
use super::watches::{AddError, Owner, Watches, Wd};

/// Links followed on one way, as the kernel does.
const LINKS_MAX: usize = 40;

/// What changes in a directory on the way can concern a name in it.
const NAMES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// A name that was looked up, and the watch of the directory it was looked up in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// None: the directory may be searched but not watched.
    pub(super) wd: Option<Wd>,
    /// The directory, without links in its path.
    pub(super) dir: PathBuf,
    pub(super) name: Vec<u8>,
    /// Whether it is the last name of the way: that of the root, all links followed.
    pub(super) last: bool,
}

/// Where a way leads.
#[derive(Debug)]
pub(super) enum Found {
    Missing,
    File,
    Dir {
        fd: OwnedFd,
        path: PathBuf,
        inode: Inode,
    },
    Unreachable(Errno),
}

/// Follows `path`. Each directory is watched before a name is looked up in it, so that whatever
/// changes on the way afterwards is in the kernel's queue. The steps count even if it fails.
///
/// # Errors
/// A limit is reached, or the root is where nothing is told.
pub(super) fn follow(
    path: &[u8],
    watches: &mut Watches,
    owner: Owner,
    last_mask: WatchFlags,
) -> (Vec<Step>, Result<Found, Refused>) {
    let mut walk = Walk {
        steps: Vec::new(),
        at: PathBuf::from("/"),
        left: Vec::new(),
    };
    walk.push(path);
    let found = walk.run(watches, owner, last_mask);
    (walk.steps, found)
}

struct Walk {
    steps: Vec<Step>,
    /// Where it has come to: no link is in it.
    at: PathBuf,
    /// The names to come, the next one last.
    left: Vec<Vec<u8>>,
}

impl Walk {
    fn push(&mut self, path: &[u8]) {
        let names = path
            .split(|byte| *byte == b'/')
            .filter(|name| !matches!(*name, b"" | b"."));
        self.left.extend(names.rev().map(<[u8]>::to_vec));
    }

    fn run(
        &mut self,
        watches: &mut Watches,
        owner: Owner,
        last_mask: WatchFlags,
    ) -> Result<Found, Refused> {
        let mut links = 0;
        let mut dir = open(CWD, b"/").map_err(|errno| self.refused(errno, watches))?;
        while let Some(name) = self.left.pop() {
            if name == b".." {
                dir = open(&dir, b"..").map_err(|errno| self.refused(errno, watches))?;
                self.at.pop();
                continue;
            }
            let last = self.left.is_empty();
            let tells_nothing = silent(&dir).map_err(|errno| self.refused(errno, watches))?;
            let watched = match tells_nothing {
                Some(_) => None,
                None => self.watch(&dir, watches, owner, NAMES)?,
            };
            self.steps.push(Step {
                wd: watched,
                dir: self.at.clone(),
                name: name.clone(),
                last,
            });
            // Without a watch on it, its names can be followed but not awaited.
            let await_here =
                |walk: &Self, watches: &mut Watches, found: Found| match (watched, tells_nothing) {
                    // Changes from here on; for those before, a `Synced` or `RootAppeared` is yet to come.
                    (Some(_), _) if last => {
                        walk.watch(&dir, watches, owner, last_mask).map(|_| found)
                    }
                    (Some(_), _) => Ok(found),
                    (None, Some(file_system)) => Err(Refused::Silent {
                        path: walk.at.clone(),
                        file_system,
                    }),
                    (None, None) => Err(Refused::Unreadable {
                        path: walk.at.clone(),
                    }),
                };

            let (fd, stat) =
                match open(&dir, &name).and_then(|fd| fstat(&fd).map(|stat| (fd, stat))) {
                    Ok(opened) => opened,
                    Err(Errno::NOENT) => return await_here(self, watches, Found::Missing),
                    Err(errno) => return Ok(Found::Unreachable(errno)),
                };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Ok(Found::Unreachable(Errno::LOOP));
                    }
                    let target = match readlinkat(&fd, c"", Vec::new()) {
                        Ok(target) => target.into_bytes(),
                        Err(errno) => return Ok(Found::Unreachable(errno)),
                    };
                    if target.starts_with(b"/") {
                        dir = open(CWD, b"/").map_err(|errno| self.refused(errno, watches))?;
                        self.at = PathBuf::from("/");
                    }
                    self.push(&target);
                }
                FileType::Directory => {
                    self.at.push(OsStr::from_bytes(&name));
                    dir = fd;
                }
                _ if !last => return await_here(self, watches, Found::Missing),
                _ => {
                    let file = self.at.join(OsStr::from_bytes(&name));
                    self.tells(&fd, file, watches)?;
                    return await_here(self, watches, Found::File);
                }
            }
        }
        self.tells(&dir, self.at.clone(), watches)?;
        let inode = inode(&fstat(&dir).map_err(|errno| self.refused(errno, watches))?);
        Ok(Found::Dir {
            fd: dir,
            path: self.at.clone(),
            inode,
        })
    }

    /// Watches `dir` for `owner`. None: it may not be read.
    fn watch(
        &self,
        dir: &OwnedFd,
        watches: &mut Watches,
        owner: Owner,
        mask: WatchFlags,
    ) -> Result<Option<Wd>, Refused> {
        match watches.add(dir, owner, mask) {
            Ok(wd) => Ok(Some(wd)),
            Err(AddError::Kernel(Errno::ACCESS | Errno::PERM)) => Ok(None),
            Err(AddError::Kernel(errno)) => Err(self.refused(errno, watches)),
            Err(AddError::Full) => Err(Refused::HubWatches {
                limit: watches.limit(),
                needed: self.left.len() + 1,
            }),
        }
    }

    fn refused(&self, errno: Errno, watches: &Watches) -> Refused {
        Refused::watch(errno, self.at.clone(), watches.len(), self.left.len() + 1)
    }

    fn tells(&self, fd: &OwnedFd, path: PathBuf, watches: &Watches) -> Result<(), Refused> {
        match silent(fd).map_err(|errno| self.refused(errno, watches))? {
            Some(file_system) => Err(Refused::Silent { path, file_system }),
            None => Ok(()),
        }
    }
}

fn open(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(
        dir,
        Path::new(OsStr::from_bytes(name)),
        flags,
        Mode::empty(),
    )
}

/// The identity in `stat`.
pub(super) fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}
