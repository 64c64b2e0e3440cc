//! A subscription, as the hub's thread sees it.

use std::cmp::Reverse;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rustix::fs::inotify::WatchFlags;

use super::engine::{Engine, Work};
use super::ignore::Ignore;
use super::inbox::Inbox;
use super::spec::Kinds;
use super::told::{Change, Move, RescanReason, Synced, Told};
use super::tree::{Aim, Arrival, NodeId, Tree, Visit};
use super::unwatched::Unwatched;
use super::watches::{Owner, Place, SubId};
use super::way::Step;
use super::window::Window;

/// A checked `Spec`.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) path: Vec<u8>,
    pub(super) recursive: bool,
    pub(super) kinds: Kinds,
    pub(super) ignore: Ignore,
    pub(super) window: Window,
    pub(super) inbox: Arc<Inbox>,
    pub(super) ended: Arc<AtomicBool>,
    pub(super) again: bool,
}

/// What the path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    Absent,
    File,
    Dir,
}

/// The first half of a move.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) cookie: u32,
    pub(super) parent: NodeId,
    pub(super) name: Box<[u8]>,
    /// The directory, taken out of its parent.
    pub(super) node: Option<NodeId>,
    pub(super) is_dir: bool,
    pub(super) ignored: bool,
    /// The rename that has just brought what leaves, or what leaves was exchanged for it.
    pub(super) onto: Option<Box<Arrival>>,
    pub(super) due: Instant,
}

/// A subscription's state.
#[derive(Debug)]
pub(super) struct Sub {
    pub(super) id: SubId,
    pub(super) order: Order,
    pub(super) steps: Vec<Step>,
    pub(super) root: Root,
    /// The path of the root's directory without links.
    pub(super) dir: PathBuf,
    pub(super) tree: Tree,
    /// Oldest first.
    pub(super) moves: Vec<Leaving>,
    /// Pieces of work that wait or go on.
    pub(super) outstanding: usize,
    pub(super) resolving: bool,
    /// The root's name was taken away or given since it was last looked at.
    pub(super) touched: bool,
    pub(super) unsynced: bool,
    /// A `Rescan` was told, and its `Synced` was not.
    stale: bool,
    pub(super) entries: u64,
    /// Directories that exist and cannot be watched.
    pub(super) unwatched: Unwatched,
    /// When those and a way that cannot be watched are tried again.
    pub(super) retry: Option<Instant>,
    armed: Option<Instant>,
}

/// Directories that are tried again in one round.
const RETRIES: usize = 256;

impl Sub {
    pub(super) fn new(id: SubId, order: Order) -> Self {
        Self {
            id,
            order,
            steps: Vec::new(),
            root: Root::Absent,
            dir: PathBuf::new(),
            tree: Tree::new(0),
            moves: Vec::new(),
            outstanding: 0,
            resolving: false,
            touched: false,
            unsynced: false,
            stale: false,
            entries: 0,
            unwatched: Unwatched::default(),
            retry: None,
            armed: None,
        }
    }

    pub(super) fn owner(&self, place: Place) -> Owner {
        Owner {
            sub: self.id,
            place,
        }
    }

    /// What is asked of the kernel for a directory of the tree.
    pub(super) fn mask(&self, node: NodeId) -> WatchFlags {
        let mut mask = self.order.kinds.mask();
        if self.order.recursive {
            mask |= Kinds::STRUCTURE.mask();
        }
        if node == self.tree.root() {
            mask |= WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        }
        mask
    }

    /// Tells what is asked for of `kinds`.
    pub(super) fn changed(
        &mut self,
        engine: &mut Engine,
        path: Vec<u8>,
        kinds: Kinds,
        is_dir: bool,
    ) {
        let kinds = kinds & self.order.kinds;
        if kinds.is_empty() {
            return;
        }
        let change = Change {
            path,
            kinds,
            is_dir,
            count: 1,
        };
        if !self.order.window.is_open() {
            self.order.inbox.push(Told::Changed(change));
            return;
        }
        self.order.window.hold(change, engine.now);
        // As much again in the window as in the inbox: the merged ones leave holes.
        if self.order.window.len() >= self.order.inbox.limits().entries {
            self.flush();
        }
        self.arm(engine);
    }

    pub(super) fn moved(&mut self, engine: &mut Engine, from: Vec<u8>, to: Vec<u8>, is_dir: bool) {
        if !self.order.kinds.intersects(Kinds::MOVED) {
            return;
        }
        self.tell(Told::Moved(Move {
            from,
            to: to.clone(),
            is_dir,
        }));
        let to_be_listed = self.stale || !self.order.inbox.listed_before(engine.emptied);
        if is_dir && self.order.recursive && to_be_listed {
            // The reader lists `from` later, or its list shows what is there since this move.
            self.rescan(engine, RescanReason::Raced, to);
        }
    }

    /// Tells something that is not held back, after what was.
    pub(super) fn tell(&mut self, told: Told) {
        self.flush();
        self.order.inbox.push(told);
    }

    fn flush(&mut self) {
        for change in self.order.window.flush() {
            self.order.inbox.push(Told::Changed(change));
        }
    }

    /// Tells a `Rescan`; a `Synced` follows.
    pub(super) fn rescan(&mut self, engine: &mut Engine, reason: RescanReason, path: Vec<u8>) {
        self.unsync(engine);
        self.stale = true;
        self.tell(Told::Rescan { reason, path });
    }

    pub(super) fn unsync(&mut self, engine: &mut Engine) {
        self.unsynced = true;
        self.order.inbox.unsynced();
        engine.settled.push(self.id);
    }

    /// Tells `Synced` if nothing is left to scan. Called when the kernel's queue is empty.
    pub(super) fn settle(&mut self) {
        if !self.unsynced || self.outstanding > 0 {
            return;
        }
        self.unsynced = false;
        self.stale = false;
        let directories = if self.root == Root::Dir {
            self.tree.len() - self.unwatched.len()
        } else {
            0
        };
        let synced = Synced {
            directories: directories as u64,
            entries: std::mem::take(&mut self.entries),
            unwatched: self.unwatched.len() as u64,
        };
        self.tell(Told::Synced(synced));
    }

    /// Queues a visit to a directory, once.
    pub(super) fn visit_later(&mut self, engine: &mut Engine, id: NodeId, aim: Aim) {
        let Some(node) = self.tree.get_mut(id) else {
            return;
        };
        if let Some(visit) = &mut node.visit {
            visit.aim = visit.aim.max(aim);
            return;
        }
        node.visit = Some(Visit { aim, attempts: 0 });
        self.outstanding += 1;
        engine.work.push_back(Work::Visit(self.id, id));
    }

    /// Queues following the way again, once.
    pub(super) fn resolve_later(&mut self, engine: &mut Engine) {
        if !self.resolving {
            self.resolving = true;
            self.outstanding += 1;
            engine.work.push_back(Work::Resolve(self.id));
        }
    }

    /// A piece of work was done.
    pub(super) fn done(&mut self, engine: &mut Engine) {
        self.outstanding -= 1;
        if self.outstanding == 0 && self.unsynced {
            engine.settled.push(self.id);
        }
    }

    /// Removes a directory and all below it, and what waits for them.
    pub(super) fn forget(&mut self, engine: &mut Engine, id: NodeId) {
        let (sub, unwatched) = (self.id, &mut self.unwatched);
        self.tree.remove(id, |id, node| {
            unwatched.remove(id);
            if let Some(wd) = node.wd
                && engine.watches.release(
                    wd,
                    Owner {
                        sub,
                        place: Place::Node(id),
                    },
                )
            {
                engine.work.push_back(Work::Narrow(wd));
            }
        });
        while let Some(at) = self
            .moves
            .iter()
            .position(|leaving| self.tree.get(leaving.parent).is_none())
        {
            if let Some(node) = self.moves.remove(at).node {
                self.forget(engine, node);
            }
        }
    }

    /// Ends all watches.
    pub(super) fn leave(&mut self, engine: &mut Engine) {
        self.forget(engine, self.tree.root());
        self.tree = Tree::new(self.tree.next());
        for step in std::mem::take(&mut self.steps) {
            self.release_step(engine, &step);
        }
    }

    pub(super) fn release_step(&self, engine: &mut Engine, step: &Step) {
        if let Some(wd) = step.wd
            && engine.watches.release(wd, self.owner(Place::Way))
        {
            engine.work.push_back(Work::Narrow(wd));
        }
    }

    /// Events were lost: everything may have changed.
    pub(super) fn overflowed(&mut self, engine: &mut Engine) {
        while let Some(leaving) = self.moves.pop() {
            if let Some(node) = leaving.node {
                self.forget(engine, node);
            }
        }
        let ids: Vec<_> = self.tree.ids().collect();
        for id in ids {
            if let Some(node) = self.tree.get_mut(id) {
                node.seen = None;
            }
        }
        self.rescan(engine, RescanReason::QueueOverflow, Vec::new());
        self.resolve_later(engine);
        if self.root == Root::Dir {
            self.visit_later(engine, self.tree.root(), Aim::Survey);
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, engine: &mut Engine) {
        self.armed = None;
        let now = engine.now;
        while self.moves.first().is_some_and(|leaving| leaving.due <= now) {
            self.expire(engine, 0);
        }
        if self.order.window.due().is_some_and(|due| due <= now) {
            self.flush();
        }
        if self.retry.is_some_and(|due| due <= now) {
            self.retry = None;
            if self.is_unsure() {
                self.resolve_later(engine);
            }
            let (ids, more) = self.unwatched.retry(RETRIES);
            for id in ids {
                self.visit_later(engine, id, Aim::Check);
            }
            if more {
                self.retry_later(engine);
            }
        }
        self.arm(engine);
    }

    /// Whether a change of the way may go unnoticed.
    pub(super) fn is_unsure(&self) -> bool {
        self.steps.is_empty() && self.root == Root::Absent
            || self.steps.iter().any(|step| step.wd.is_none())
    }

    /// Sees to it that `tick` is called when something is due.
    pub(super) fn arm(&mut self, engine: &mut Engine) {
        let dues = [
            self.moves.first().map(|leaving| leaving.due),
            self.order.window.due(),
            self.retry,
        ];
        if let Some(due) = dues.into_iter().flatten().min()
            && self.armed.is_none_or(|armed| due < armed)
        {
            self.armed = Some(due);
            engine.timers.push(Reverse((due, self.id)));
        }
    }

    /// Directories have come nearer to the root: some may not be too deep any more.
    pub(super) fn risen(&mut self, engine: &mut Engine) {
        let (tree, limit) = (&self.tree, engine.limits.depth);
        for id in self.unwatched.no_longer_deep(|id| tree.depth(id) < limit) {
            self.visit_later(engine, id, Aim::Check);
        }
    }

    pub(super) fn retry_later(&mut self, engine: &mut Engine) {
        self.retry.get_or_insert(engine.now + engine.limits.retry);
        self.arm(engine);
    }
}
