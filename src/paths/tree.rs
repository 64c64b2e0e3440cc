//! The directories of a subscription, each with its name in its parent.

use std::collections::{HashMap, HashSet};

use super::watches::Wd;

/// Number of a directory in its tree. None is given twice.
pub(super) type NodeId = u64;

/// Device and inode: the identity of a directory while it is watched.
pub(super) type Inode = (u64, u64);

/// A directory. Its path is found through its parents, so that a rename changes one name only.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: Option<NodeId>,
    pub(super) name: Box<[u8]>,
    pub(super) wd: Option<Wd>,
    pub(super) inode: Inode,
    pub(super) children: HashMap<Box<[u8]>, NodeId>,
    /// Names that were told since this directory is watched, while it is scanned.
    pub(super) seen: Option<HashSet<Box<[u8]>>>,
    /// The visit that waits in the queue of work.
    pub(super) visit: Option<Visit>,
    /// What the latest change of a name in it was, if a rename brought something.
    pub(super) arrived: Option<Box<Arrival>>,
}

/// Something got its name by a rename.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) name: Box<[u8]>,
    /// Where it was. None: outside of what is watched.
    pub(super) from: Option<(NodeId, Box<[u8]>)>,
}

/// What a visit to a directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Visit {
    pub(super) aim: Aim,
    /// How often it was put off since the path led elsewhere.
    pub(super) attempts: u8,
}

/// In rising order: a visit that waits for a lesser aim takes on the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Aim {
    /// See whether the path still leads to the directory that is watched.
    Check,
    /// Watch and scan it and all below, without telling what is found.
    Survey,
    /// Watch and scan it, and tell what is found.
    Tell,
}

/// A tree with a root.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<NodeId, Node>,
    root: NodeId,
    next: NodeId,
}

impl Tree {
    /// Numbers start at `first`, so that a later tree of the subscription has other ones.
    pub(super) fn new(first: NodeId) -> Self {
        let mut tree = Self {
            nodes: HashMap::new(),
            root: first,
            next: first,
        };
        tree.insert(None, &[]);
        tree
    }

    pub(super) fn root(&self) -> NodeId {
        self.root
    }

    pub(super) fn next(&self) -> NodeId {
        self.next
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub(super) fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    pub(super) fn children(&self, parent: NodeId) -> impl Iterator<Item = NodeId> {
        let nodes = self.nodes.get(&parent).into_iter();
        nodes.flat_map(|node| node.children.values().copied())
    }

    /// Adds a directory. What had its name before must have been removed.
    pub(super) fn add(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        let id = self.insert(Some(parent), name);
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children.insert(name.into(), id);
        }
        id
    }

    fn insert(&mut self, parent: Option<NodeId>, name: &[u8]) -> NodeId {
        let id = self.next;
        self.next += 1;
        let node = Node {
            parent,
            name: name.into(),
            wd: None,
            inode: (0, 0),
            children: HashMap::new(),
            seen: None,
            visit: None,
            arrived: None,
        };
        self.nodes.insert(id, node);
        id
    }

    /// Takes a directory out of its parent. It keeps its path until it is attached or removed.
    pub(super) fn detach(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.nodes.get_mut(&parent)?.children.remove(name)
    }

    /// Gives a detached directory a new name.
    pub(super) fn attach(&mut self, id: NodeId, parent: NodeId, name: &[u8]) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.parent = Some(parent);
            node.name = name.into();
        }
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children.insert(name.into(), id);
        }
    }

    /// Removes a directory and all below it; they are given to `each`.
    pub(super) fn remove(&mut self, id: NodeId, mut each: impl FnMut(NodeId, Node)) {
        let place = self
            .nodes
            .get(&id)
            .and_then(|node| Some((node.parent?, node.name.clone())));
        if let Some((parent, name)) = place
            && self.child(parent, &name) == Some(id)
        {
            self.detach(parent, &name);
        }
        let mut left = vec![id];
        while let Some(id) = left.pop() {
            if let Some(node) = self.nodes.remove(&id) {
                left.extend(node.children.values());
                each(id, node);
            }
        }
    }

    /// The path of `name` in `id`, relative to the root.
    pub(super) fn path(&self, id: NodeId, name: &[u8]) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = self.nodes.get(&id);
        while let Some(node) = at {
            if !node.name.is_empty() {
                names.push(&node.name[..]);
            }
            at = node.parent.and_then(|parent| self.nodes.get(&parent));
        }
        names.reverse();
        if !name.is_empty() {
            names.push(name);
        }
        names.join(&b'/')
    }

    /// How many directories `id` is below the root.
    pub(super) fn depth(&self, id: NodeId) -> usize {
        self.ancestors(id).count()
    }

    /// Whether `id` is `dir` or below it.
    pub(super) fn is_within(&self, id: NodeId, dir: NodeId) -> bool {
        id == dir || self.ancestors(id).any(|above| above == dir)
    }

    fn ancestors(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let parent = |id: &NodeId| self.nodes.get(id).and_then(|node| node.parent);
        std::iter::successors(parent(&id), parent)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.keys().copied()
    }
}
