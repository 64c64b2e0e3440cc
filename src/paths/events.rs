//! What one event of the kernel means to a subscription.

use rustix::fs::inotify::ReadFlags;

use super::engine::Engine;
use super::spec::Kinds;
use super::sub::{Leaving, Root, Sub};
use super::told::RescanReason;
use super::tree::{Aim, Arrival, NodeId};
use super::watches::Wd;

/// An event as it was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event<'a> {
    pub(super) wd: Wd,
    pub(super) flags: ReadFlags,
    pub(super) cookie: u32,
    /// None: it concerns the directory itself.
    pub(super) name: Option<&'a [u8]>,
}

impl Event<'_> {
    fn is_dir(&self) -> bool {
        self.flags.contains(ReadFlags::ISDIR)
    }
}

/// What happened to the directory that is watched itself.
const SELF: ReadFlags = ReadFlags::DELETE_SELF
    .union(ReadFlags::MOVE_SELF)
    .union(ReadFlags::UNMOUNT)
    .union(ReadFlags::IGNORED);

impl Sub {
    /// An event in a directory on the way.
    pub(super) fn on_way(&mut self, engine: &mut Engine, event: Event<'_>) {
        if event.flags.contains(ReadFlags::IGNORED) {
            for step in self
                .steps
                .iter_mut()
                .filter(|step| step.wd == Some(event.wd))
            {
                step.wd = None;
            }
        }
        let Some(name) = event.name else {
            if event.flags.intersects(SELF) {
                self.resolve_later(engine);
            }
            return;
        };
        let mut steps = self
            .steps
            .iter()
            .filter(|step| step.wd == Some(event.wd) && step.name == name);
        let Some(first) = steps.next() else { return };
        let last = first.last || steps.any(|step| step.last);
        let kinds = Kinds::of(event.flags);
        let structure = kinds.intersects(Kinds::STRUCTURE);
        if structure {
            self.touched |= last;
            self.resolve_later(engine);
        }
        // What else happens to a directory, its own watch tells.
        if last && (structure || self.root != Root::Dir) {
            self.changed(engine, Vec::new(), kinds, event.is_dir());
        }
    }

    /// An event in a directory of the tree.
    pub(super) fn on_node(&mut self, engine: &mut Engine, id: NodeId, event: Event<'_>) {
        let Some(name) = event.name else {
            return self.on_itself(engine, id, event);
        };
        let kinds = Kinds::of(event.flags);
        let Some(node) = self.tree.get_mut(id) else {
            return;
        };
        let latest = if kinds.intersects(Kinds::STRUCTURE) {
            node.arrived.take()
        } else {
            None
        };
        let path = self.tree.path(id, name);
        let is_dir = event.is_dir();
        let ignored = self.order.ignore.matches(&path, is_dir);
        match kinds {
            Kinds::MOVED_AWAY => {
                let onto = latest.filter(|latest| *latest.name == *name && !ignored);
                return self.moved_from(engine, id, name, event, ignored, onto);
            }
            Kinds::MOVED_HERE => return self.moved_to(engine, id, name, event, ignored),
            _ if ignored => return,
            Kinds::CREATED => return self.created(engine, id, name, path, is_dir),
            Kinds::DELETED => {
                self.unsee(id, name);
                if let Some(child) = self.tree.child(id, name) {
                    self.forget(engine, child);
                }
            }
            _ => {}
        }
        self.changed(engine, path, kinds, is_dir);
    }

    fn on_itself(&mut self, engine: &mut Engine, id: NodeId, event: Event<'_>) {
        let is_root = id == self.tree.root();
        if event.flags.contains(ReadFlags::IGNORED)
            && let Some(node) = self.tree.get_mut(id)
            && node.wd == Some(event.wd)
        {
            node.wd = None;
            if !is_root {
                // Removed, and then its parent tells too; or unmounted, and something else is there.
                self.visit_later(engine, id, Aim::Check);
            }
        }
        if event.flags.contains(ReadFlags::UNMOUNT) {
            let path = self.tree.path(id, b"");
            self.rescan(engine, RescanReason::Unmounted, path);
            self.visit_later(engine, id, Aim::Survey);
        }
        if is_root {
            if event.flags.intersects(SELF) {
                self.resolve_later(engine);
            }
            self.changed(engine, Vec::new(), Kinds::of(event.flags), true);
        }
    }

    fn created(
        &mut self,
        engine: &mut Engine,
        id: NodeId,
        name: &[u8],
        path: Vec<u8>,
        is_dir: bool,
    ) {
        self.expire_name(engine, id, name);
        if !self.see(engine, id, name) {
            // The scan was faster; it has told it, and watches it if it is a directory.
            return;
        }
        self.changed(engine, path, Kinds::CREATED, is_dir);
        if is_dir && self.order.recursive {
            self.replace(engine, id, name, Aim::Tell);
        }
    }

    /// Puts a new directory in the place of what has `name`.
    pub(super) fn replace(&mut self, engine: &mut Engine, id: NodeId, name: &[u8], aim: Aim) {
        if let Some(old) = self.tree.child(id, name) {
            self.forget(engine, old);
        }
        let child = self.tree.add(id, name);
        self.visit_later(engine, child, aim);
    }

    fn moved_from(
        &mut self,
        engine: &mut Engine,
        id: NodeId,
        name: &[u8],
        event: Event<'_>,
        ignored: bool,
        onto: Option<Box<Arrival>>,
    ) {
        self.unsee(id, name);
        while self.moves.len() >= engine.limits.pending_moves.max(1) {
            self.expire(engine, 0);
        }
        if self.tree.get(id).is_none() {
            // It was in what has just been told as gone.
            return;
        }
        self.moves.push(Leaving {
            cookie: event.cookie,
            parent: id,
            name: name.into(),
            node: self.tree.detach(id, name),
            is_dir: event.is_dir(),
            ignored,
            onto,
            due: engine.now + engine.limits.move_expiry,
        });
        self.arm(engine);
    }

    fn moved_to(
        &mut self,
        engine: &mut Engine,
        id: NodeId,
        name: &[u8],
        event: Event<'_>,
        ignored: bool,
    ) {
        if !ignored {
            // Before the first half is looked for: what left from within the former one is gone with it.
            self.expire_name(engine, id, name);
        }
        let half = self
            .moves
            .iter()
            .position(|leaving| leaving.cookie == event.cookie);
        let is_dir = event.is_dir();
        let Some(at) = half.filter(|at| !ignored && !self.moves[*at].ignored) else {
            if let Some(at) = half {
                self.expire(engine, at);
            }
            if !ignored {
                self.moved_here(engine, id, name, is_dir);
            }
            return;
        };
        if self.moves[at]
            .node
            .is_some_and(|node| self.tree.is_within(id, node))
        {
            // This directory has left the one that is moved into it, and its own second half is not known.
            return self.expire(engine, at);
        }
        let mut leaving = self.moves.remove(at);
        let from = self.tree.path(leaving.parent, &leaving.name);
        if let Some(old) = self.tree.child(id, name) {
            // The directory that is left may be one of an earlier time below it.
            self.forget(engine, old);
        }
        self.see(engine, id, name);
        let to = self.tree.path(id, name);
        self.moved(engine, from, to, is_dir);
        self.arrived(id, name, Some((leaving.parent, leaving.name.clone())));
        if self.exchanged(engine, &mut leaving, id, name) {
            return;
        }
        if !is_dir || !self.order.recursive {
            if let Some(node) = leaving.node {
                self.forget(engine, node);
            }
            return;
        }
        // A pattern may ignore below the new place what it did not below the old one.
        match leaving.node.filter(|node| self.tree.get(*node).is_some()) {
            Some(node) if !self.order.ignore.depends_on_place() => {
                let depth = self.tree.depth(node);
                self.tree.attach(node, id, name);
                if self.tree.depth(node) < depth {
                    self.risen(engine);
                }
                if let Some(reading) = engine
                    .reading
                    .as_mut()
                    .filter(|reading| reading.sub == self.id)
                {
                    // The directory that is read may have listed its new place already.
                    reading.unmet.remove(&node);
                }
                self.visit_later(engine, node, Aim::Check);
            }
            node => {
                if let Some(node) = node {
                    self.forget(engine, node);
                }
                self.replace(engine, id, name, Aim::Tell);
            }
        }
    }

    fn moved_here(&mut self, engine: &mut Engine, id: NodeId, name: &[u8], is_dir: bool) {
        self.arrived(id, name, None);
        let new = self.see(engine, id, name);
        if new {
            let path = self.tree.path(id, name);
            self.changed(engine, path, Kinds::MOVED_HERE, is_dir);
        }
        match self.tree.child(id, name) {
            Some(child) if !is_dir => self.forget(engine, child),
            Some(child) if !new => self.visit_later(engine, child, Aim::Check),
            _ if is_dir && self.order.recursive => self.replace(engine, id, name, Aim::Tell),
            _ => {}
        }
    }

    /// Takes the second half of a move as never to come: the entry has left.
    pub(super) fn expire(&mut self, engine: &mut Engine, at: usize) {
        let leaving = self.left(engine, at);
        if leaving.onto.is_some() {
            // Of an exchange with something outside only these halves are told.
            self.look_again(engine, leaving.parent, &leaving.name);
        }
    }

    fn left(&mut self, engine: &mut Engine, at: usize) -> Leaving {
        let mut leaving = self.moves.remove(at);
        if let Some(node) = leaving.node.take() {
            self.forget(engine, node);
        }
        if !leaving.ignored {
            let path = self.tree.path(leaving.parent, &leaving.name);
            self.changed(engine, path, Kinds::MOVED_AWAY, leaving.is_dir);
        }
        leaving
    }

    /// A name is given again, and that is told: what had it must have left before.
    pub(super) fn expire_name(&mut self, engine: &mut Engine, id: NodeId, name: &[u8]) {
        let taken = |leaving: &Leaving| leaving.parent == id && *leaving.name == *name;
        while let Some(at) = self.moves.iter().position(taken) {
            self.left(engine, at);
        }
    }

    /// Notes that `name` is told, while its directory is scanned. False: it was told.
    pub(super) fn see(&mut self, engine: &Engine, id: NodeId, name: &[u8]) -> bool {
        let seen = self.tree.get_mut(id).and_then(|node| node.seen.as_mut());
        let Some(seen) = seen else { return true };
        if seen.len() >= engine.limits.seen_names {
            return !seen.contains(name);
        }
        seen.insert(name.into())
    }

    fn unsee(&mut self, id: NodeId, name: &[u8]) {
        if let Some(seen) = self.tree.get_mut(id).and_then(|node| node.seen.as_mut()) {
            seen.remove(name);
        }
    }
}
