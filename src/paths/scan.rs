//! Looking at directories: watching them, and finding what was there before.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, RawDirEntry, ResolveFlags, fstat, openat2, statat,
};
use rustix::io::Errno;

use super::engine::{Engine, Reading, Work};
use super::filesystems::silent;
use super::refused::Refused;
use super::spec::Kinds;
use super::sub::{Root, Sub};
use super::told::RescanReason;
use super::tree::{Aim, NodeId, Visit};
use super::watches::{AddError, Place, Wd};
use super::way::inode;

/// Why a directory is not watched.
#[derive(Debug, Clone, Copy)]
enum Obstacle {
    /// Its path leads elsewhere: an event that says so is in the kernel's queue.
    Elsewhere(Errno),
    Errno(Errno),
    Full,
    Silent(&'static str),
    TooDeep,
}

impl From<Errno> for Obstacle {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::STALE => {
                Self::Elsewhere(errno)
            }
            other => Self::Errno(other),
        }
    }
}

/// Room for the longest entry, and some more.
const SCAN_PIECE_MIN: usize = 4 << 10;

fn is_directory(dir: &OwnedFd, entry: &RawDirEntry<'_>) -> bool {
    let kind = match entry.file_type() {
        FileType::Unknown => statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            .map_or(FileType::Unknown, |stat| {
                FileType::from_raw_mode(stat.st_mode)
            }),
        known => known,
    };
    kind == FileType::Directory
}

impl Sub {
    /// Does one queued visit.
    pub(super) fn visit(&mut self, engine: &mut Engine, id: NodeId) {
        let visit = self.tree.get_mut(id).and_then(|node| node.visit.take());
        if let Some(Visit { aim, attempts }) = visit
            && let Err(obstacle) = self.enter(engine, id, aim)
        {
            if let Obstacle::Elsewhere(_) = obstacle
                && attempts < engine.limits.attempts
                && let Some(node) = self.tree.get_mut(id)
            {
                // After the events that wait, its path is right or it is gone.
                node.visit = Some(Visit {
                    aim,
                    attempts: attempts + 1,
                });
                engine.work.push_back(Work::Visit(self.id, id));
                return;
            }
            self.give_up(engine, id, obstacle);
        }
        self.done(engine);
    }

    /// Opens what should be the directory that `wd` watches for `place`, to ask less of the kernel.
    pub(super) fn narrow(&self, engine: &mut Engine, wd: Wd, place: Place) {
        let path = match place {
            Place::Node(id) => Some(self.absolute(id)),
            Place::Way => self
                .steps
                .iter()
                .find(|step| step.wd == Some(wd))
                .map(|step| step.dir.clone()),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Some(path) = path
            && let Ok(fd) = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        {
            engine.watches.narrow(wd, &fd);
        }
    }

    /// The path of a directory without links, as far as the kernel told of renames.
    pub(super) fn absolute(&self, id: NodeId) -> PathBuf {
        match &self.tree.path(id, b"")[..] {
            b"" => self.dir.clone(),
            path => self.dir.join(OsStr::from_bytes(path)),
        }
    }

    fn enter(&mut self, engine: &mut Engine, id: NodeId, aim: Aim) -> Result<(), Obstacle> {
        let Some(node) = self.tree.get(id) else {
            return Ok(());
        };
        // One that is watched already stays so when it is moved down.
        if node.wd.is_none() && self.tree.depth(id) >= engine.limits.depth {
            return Err(Obstacle::TooDeep);
        }
        let flags = OFlags::RDONLY
            | OFlags::DIRECTORY
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let fd = openat2(
            CWD,
            self.absolute(id),
            flags,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )?;
        let found = inode(&fstat(&fd)?);
        if let Some(parent) = node.parent.and_then(|parent| self.tree.get(parent)) {
            // The path may have led through a directory that took the place of its parent.
            if inode(&statat(&fd, c"..", AtFlags::empty())?) != parent.inode {
                return Err(Obstacle::Elsewhere(Errno::STALE));
            }
            if found.0 != parent.inode.0
                && let Some(file_system) = silent(&fd)?
            {
                return Err(Obstacle::Silent(file_system));
            }
        }
        let known = node.wd;
        let owner = self.owner(Place::Node(id));
        let wd = engine
            .watches
            .add(&fd, owner, self.mask(id))
            .map_err(|error| match error {
                AddError::Full => Obstacle::Full,
                AddError::Kernel(errno) => errno.into(),
            })?;
        let again = self.unwatched.remove(id);
        if known == Some(wd) && aim == Aim::Check && !again {
            return Ok(());
        }
        if id == self.tree.root() && known != Some(wd) {
            engine.watches.release(wd, owner);
            self.resolve_later(engine);
            return Ok(());
        }
        let aim = self.rebind(engine, id, known.filter(|known| *known != wd), again, aim);
        let unmet = self.tree.children(id).collect();
        if let Some(node) = self.tree.get_mut(id) {
            node.wd = Some(wd);
            node.inode = found;
            node.seen = (aim == Aim::Tell).then(HashSet::new);
        }
        self.outstanding += 1;
        engine.reading = Some(Reading {
            sub: self.id,
            node: id,
            dir: Arc::new(fd),
            aim,
            unmet,
        });
        Ok(())
    }

    /// Another directory is where `old` was, or one is watched that could not be.
    fn rebind(
        &mut self,
        engine: &mut Engine,
        id: NodeId,
        old: Option<Wd>,
        again: bool,
        aim: Aim,
    ) -> Aim {
        let path = self.tree.path(id, b"");
        if let Some(old) = old {
            self.let_go(engine, id, old);
        }
        let reason = if again {
            RescanReason::WatchedAgain
        } else if aim == Aim::Check || (old.is_some() && aim == Aim::Tell) {
            RescanReason::Raced
        } else {
            return aim;
        };
        self.rescan(engine, reason, path);
        Aim::Survey
    }

    /// Ends the watch `old` of a directory, and those of all below it.
    fn let_go(&mut self, engine: &mut Engine, id: NodeId, old: Wd) {
        let children: Vec<_> = self.tree.children(id).collect();
        for child in children {
            self.forget(engine, child);
        }
        if engine.watches.release(old, self.owner(Place::Node(id))) {
            engine.work.push_back(Work::Narrow(old));
        }
    }

    fn give_up(&mut self, engine: &mut Engine, id: NodeId, obstacle: Obstacle) {
        let path = self.tree.path(id, b"");
        if id == self.tree.root() {
            return self.resolve_later(engine);
        }
        if let Obstacle::Silent(_) = obstacle
            && let Some(old) = self.tree.get_mut(id).and_then(|node| node.wd.take())
        {
            // It was mounted over what is watched.
            self.let_go(engine, id, old);
        }
        let too_deep = matches!(obstacle, Obstacle::TooDeep);
        if !too_deep {
            self.retry_later(engine);
        }
        if !self.unwatched.insert(id, too_deep) {
            return;
        }
        let waiting = self.outstanding;
        let refused =
            |errno, path| Arc::new(Refused::watch(errno, path, engine.watches.len(), waiting));
        let reason = match obstacle {
            Obstacle::Silent(file_system) => RescanReason::Silent { file_system },
            Obstacle::TooDeep => RescanReason::TooDeep {
                limit: engine.limits.depth,
            },
            Obstacle::Full => RescanReason::TooManyWatches(Arc::new(Refused::HubWatches {
                limit: engine.watches.limit(),
                needed: waiting,
            })),
            Obstacle::Errno(errno @ (Errno::NOSPC | Errno::MFILE | Errno::NFILE)) => {
                RescanReason::TooManyWatches(refused(errno, self.absolute(id)))
            }
            Obstacle::Errno(errno) | Obstacle::Elsewhere(errno) => RescanReason::ScanFailed {
                errno: errno.raw_os_error(),
            },
        };
        self.rescan(engine, reason, path);
    }

    /// Reads a piece of a directory: what one call of the kernel gives, and that to its end. An entry kept
    /// for later could be told after its removal. True: it goes on.
    pub(super) fn read(&mut self, engine: &mut Engine, reading: &mut Reading) -> bool {
        let id = reading.node;
        if self.tree.get(id).is_none() {
            return false;
        }
        let mut buffer = Vec::with_capacity(engine.limits.scan_piece.max(SCAN_PIECE_MIN));
        let dir = Arc::clone(&reading.dir);
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        loop {
            match entries.next() {
                Some(Ok(entry)) => {
                    let name = entry.file_name().to_bytes();
                    if name != b"." && name != b".." {
                        self.found(engine, reading, name, is_directory(&dir, &entry));
                    }
                }
                Some(Err(errno)) => {
                    let path = self.tree.path(id, b"");
                    self.rescan(
                        engine,
                        RescanReason::ScanFailed {
                            errno: errno.raw_os_error(),
                        },
                        path,
                    );
                    return false;
                }
                None => {
                    self.read_to_the_end(engine, reading);
                    return false;
                }
            }
            if entries.is_buffer_empty() {
                return true;
            }
        }
    }

    fn found(&mut self, engine: &mut Engine, reading: &mut Reading, name: &[u8], is_dir: bool) {
        let id = reading.node;
        let path = self.tree.path(id, name);
        if self.order.ignore.matches(&path, is_dir) {
            return;
        }
        self.entries += 1;
        self.expire_name(engine, id, name);
        if reading.aim == Aim::Tell && self.see(engine, id, name) {
            self.changed(engine, path, Kinds::CREATED, is_dir);
        }
        if !is_dir || !self.order.recursive {
            return;
        }
        match self.tree.child(id, name) {
            Some(child) => {
                reading.unmet.remove(&child);
                if reading.aim == Aim::Survey {
                    self.visit_later(engine, child, Aim::Survey);
                }
            }
            None => self.replace(engine, id, name, reading.aim),
        }
    }

    fn read_to_the_end(&mut self, engine: &mut Engine, reading: &mut Reading) {
        for id in std::mem::take(&mut reading.unmet) {
            // One that was moved meanwhile has another parent, where it is met.
            if self
                .tree
                .get(id)
                .is_some_and(|node| node.parent == Some(reading.node))
            {
                self.forget(engine, id);
            }
        }
        engine.scanned.push((self.id, reading.node));
    }

    /// What happened during a scan has been read: names told so far are of no more use.
    pub(super) fn scanned(&mut self, id: NodeId) {
        if self.root == Root::Dir
            && let Some(node) = self.tree.get_mut(id)
        {
            node.seen = None;
        }
    }
}
