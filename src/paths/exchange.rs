//! Two names that are exchanged in one step (`renameat2` with `RENAME_EXCHANGE`).
//!
//! The kernel tells it as two renames, `a` to `b` and then `b` to `a`, with no other change of a name in
//! either directory between them. So it tells a rename there and back too. Only a look at `b` shows
//! which it was: it is there, or it is not.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2, statat};
use rustix::io::Errno;

use super::engine::Engine;
use super::sub::{Leaving, Sub};
use super::told::RescanReason;
use super::tree::{Aim, Arrival, NodeId};
use super::way::inode;

impl Sub {
    /// Notes that a rename gave `name` to something.
    pub(super) fn arrived(&mut self, id: NodeId, name: &[u8], from: Option<(NodeId, Box<[u8]>)>) {
        if let Some(node) = self.tree.get_mut(id) {
            let name = name.into();
            node.arrived = Some(Box::new(Arrival { name, from }));
        }
    }

    /// Whether the rename of `leaving` to `name` is the second half of an exchange. What both names
    /// have is then looked for anew.
    pub(super) fn exchanged(
        &mut self,
        engine: &mut Engine,
        leaving: &mut Leaving,
        id: NodeId,
        name: &[u8],
    ) -> bool {
        let back = leaving.onto.as_ref().is_some_and(|onto| {
            // Of equal neighbours the kernel tells one, whatever their cookies: where it came from may
            // have gone untold.
            let from = onto.from.as_ref();
            from.is_none_or(|(parent, from)| *parent == id && **from == *name)
        });
        if !back || !self.look_again(engine, leaving.parent, &leaving.name) {
            return false;
        }
        if let Some(node) = leaving.node.take() {
            self.forget(engine, node);
        }
        self.survey(engine, id, name, leaving.is_dir);
        true
    }

    /// Looks whether `name`, which something has left, is there nevertheless. False: it is not, and if
    /// it was, its removal is told.
    pub(super) fn look_again(&mut self, engine: &mut Engine, id: NodeId, name: &[u8]) -> bool {
        match self.look(id, name) {
            Ok(None) => return false,
            Ok(Some(is_dir)) => self.survey(engine, id, name, is_dir),
            Err(_) => {
                // The directory is itself being renamed.
                let path = self.tree.path(id, b"");
                self.rescan(engine, RescanReason::Raced, path);
                self.visit_later(engine, id, Aim::Survey);
            }
        }
        true
    }

    fn survey(&mut self, engine: &mut Engine, id: NodeId, name: &[u8], is_dir: bool) {
        let path = self.tree.path(id, name);
        self.rescan(engine, RescanReason::Exchanged, path);
        if is_dir && self.order.recursive {
            self.replace(engine, id, name, Aim::Survey);
        }
    }

    /// Whether the directory that is watched has `name`, and whether that is a directory.
    fn look(&self, id: NodeId, name: &[u8]) -> Result<Option<bool>, Errno> {
        let node = self.tree.get(id).ok_or(Errno::STALE)?;
        let dir = openat2(
            CWD,
            self.absolute(id),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )?;
        if inode(&fstat(&dir)?) != node.inode {
            return Err(Errno::STALE);
        }
        match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let kind = FileType::from_raw_mode(stat.st_mode);
                Ok(Some(kind == FileType::Directory))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}
