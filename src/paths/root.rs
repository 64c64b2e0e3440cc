//! The root of a subscription: finding it, and what takes its place.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::engine::Engine;
use super::refused::Refused;
use super::sub::{Root, Sub};
use super::told::{GoneReason, RescanReason, Told};
use super::tree::{Aim, Inode, NodeId, Tree};
use super::watches::{AddError, Place, Wd};
use super::way::{Found, follow};

impl Sub {
    /// Follows the way for the first time.
    ///
    /// # Errors
    /// All that stands in the way of watching now.
    pub(super) fn start(&mut self, engine: &mut Engine) -> Result<(), Refused> {
        match self.begin(engine) {
            Err(refused @ Refused::Silent { .. }) => return Err(refused),
            Err(Refused::Unreadable { .. }) if self.order.again => {
                let errno = Errno::ACCESS.raw_os_error();
                let reason = GoneReason::Unreachable { errno };
                self.tell(Told::RootGone { reason });
                self.retry_later(engine);
            }
            Err(refused) if self.order.again => self.root_refused(engine, refused),
            begun => begun?,
        }
        self.after_resolve(engine);
        self.unsync(engine);
        Ok(())
    }

    fn begin(&mut self, engine: &mut Engine) -> Result<(), Refused> {
        match self.follow(engine)? {
            Found::Missing => {}
            Found::File => self.root = Root::File,
            Found::Dir { fd, path, inode } => {
                let wd = self.watch_root(engine, &fd, &path)?;
                self.take_root(engine, wd, path, inode, Aim::Survey);
            }
            Found::Unreachable(errno) => {
                let path = self.path();
                return Err(Refused::watch(errno, path, engine.watches.len(), 1));
            }
        }
        Ok(())
    }

    /// Follows the way again after something on it has changed.
    ///
    /// # Errors
    /// The end of the subscription: the root is where nothing is told.
    pub(super) fn resolve(&mut self, engine: &mut Engine) -> Result<(), Refused> {
        self.resolving = false;
        let steps = self.steps.clone();
        let touched = std::mem::take(&mut self.touched);
        let found = match self.follow(engine) {
            Ok(found) => found,
            Err(refused @ Refused::Silent { .. }) => return Err(refused),
            // A limit: what was watched may be elsewhere by now.
            Err(refused) => {
                self.root_refused(engine, refused);
                return Ok(());
            }
        };
        match found {
            Found::Missing => self.gone(engine, GoneReason::Missing),
            Found::Unreachable(errno) => {
                self.gone(
                    engine,
                    GoneReason::Unreachable {
                        errno: errno.raw_os_error(),
                    },
                );
                self.retry_later(engine);
            }
            Found::File => {
                let same = self.steps.last() == steps.last() && !touched;
                if self.root != Root::File || !same {
                    self.gone(engine, GoneReason::Replaced);
                    self.root = Root::File;
                    self.unsync(engine);
                    self.tell(Told::RootAppeared { is_dir: false });
                }
            }
            Found::Dir { fd, path, inode } => self.found_dir(engine, &fd, path, inode),
        }
        self.after_resolve(engine);
        Ok(())
    }

    fn found_dir(&mut self, engine: &mut Engine, fd: &OwnedFd, path: PathBuf, inode: Inode) {
        let known = if self.root == Root::Dir {
            self.tree.get(self.tree.root()).and_then(|node| node.wd)
        } else {
            None
        };
        match self.watch_root(engine, fd, &path) {
            Ok(wd) if known == Some(wd) => self.dir = path,
            Ok(wd) => {
                // `gone` forgets the root's node and its watch; the new one has a node of its own.
                engine
                    .watches
                    .release(wd, self.owner(Place::Node(self.tree.root())));
                self.gone(engine, GoneReason::Replaced);
                match self.watch_root(engine, fd, &path) {
                    Ok(wd) => {
                        self.tell(Told::RootAppeared { is_dir: true });
                        self.take_root(engine, wd, path, inode, Aim::Tell);
                    }
                    Err(refused) => self.root_refused(engine, refused),
                }
            }
            Err(refused) => {
                self.gone(engine, GoneReason::Replaced);
                self.root_refused(engine, refused);
            }
        }
    }

    fn root_refused(&mut self, engine: &mut Engine, refused: Refused) {
        if let Refused::Unreadable { .. } = refused {
            let errno = Errno::ACCESS.raw_os_error();
            self.gone(engine, GoneReason::Unreachable { errno });
        } else {
            self.rescan(
                engine,
                RescanReason::TooManyWatches(refused.into()),
                Vec::new(),
            );
        }
        self.retry_later(engine);
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(OsStr::from_bytes(&self.order.path))
    }

    fn follow(&mut self, engine: &mut Engine) -> Result<Found, Refused> {
        let mask = self.order.kinds.mask();
        let (steps, found) = follow(
            &self.order.path,
            &mut engine.watches,
            self.owner(Place::Way),
            mask,
        );
        let kept: HashSet<Wd> = steps.iter().filter_map(|step| step.wd).collect();
        let old = std::mem::replace(&mut self.steps, steps);
        for step in old
            .iter()
            .filter(|step| step.wd.is_some_and(|wd| !kept.contains(&wd)))
        {
            self.release_step(engine, step);
        }
        found
    }

    fn watch_root(&self, engine: &mut Engine, fd: &OwnedFd, path: &Path) -> Result<Wd, Refused> {
        let root = self.tree.root();
        engine
            .watches
            .add(fd, self.owner(Place::Node(root)), self.mask(root))
            .map_err(|error| match error {
                AddError::Full => Refused::HubWatches {
                    limit: engine.watches.limit(),
                    needed: 1,
                },
                AddError::Kernel(errno) => {
                    Refused::watch(errno, path.to_owned(), engine.watches.len(), 1)
                }
            })
    }

    fn take_root(&mut self, engine: &mut Engine, wd: Wd, path: PathBuf, inode: Inode, aim: Aim) {
        let root: NodeId = self.tree.root();
        if let Some(node) = self.tree.get_mut(root) {
            node.wd = Some(wd);
            node.inode = inode;
        }
        self.root = Root::Dir;
        self.dir = path;
        self.unsync(engine);
        self.visit_later(engine, root, aim);
    }

    /// The root that was is none any more.
    fn gone(&mut self, engine: &mut Engine, reason: GoneReason) {
        if self.root == Root::Absent {
            return;
        }
        self.root = Root::Absent;
        self.moves.clear();
        self.forget(engine, self.tree.root());
        self.tree = Tree::new(self.tree.next());
        self.tell(Told::RootGone { reason });
    }

    fn after_resolve(&mut self, engine: &mut Engine) {
        if self.is_unsure() {
            self.retry_later(engine);
        }
    }
}
