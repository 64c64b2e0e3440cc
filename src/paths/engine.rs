//! What all subscriptions of a hub's thread share.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::limits::Limits;
use super::tree::{Aim, NodeId};
use super::watches::{SubId, Watches, Wd};

/// A piece of work, done when the kernel's queue is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Follow the way to the root again.
    Resolve(SubId),
    /// Open a directory: watch it, or see whether it is still the same.
    Visit(SubId, NodeId),
    /// Ask less of the kernel since a subscription that wanted more has ended.
    Narrow(Wd),
}

/// The directory that is being read. There is one at a time, so one descriptor is used.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) sub: SubId,
    pub(super) node: NodeId,
    pub(super) dir: Arc<OwnedFd>,
    pub(super) aim: Aim,
    /// Directories known from before that have not been met.
    pub(super) unmet: HashSet<NodeId>,
}

/// The hub's watches, the queue of work, and the timers.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) watches: Watches,
    pub(super) limits: Arc<Limits>,
    pub(super) work: VecDeque<Work>,
    pub(super) reading: Option<Reading>,
    /// Directories read to the end: what happened meanwhile is in the kernel's queue.
    pub(super) scanned: Vec<(SubId, NodeId)>,
    /// Subscriptions that may have come in sync.
    pub(super) settled: Vec<SubId>,
    pub(super) timers: BinaryHeap<Reverse<(Instant, SubId)>>,
    /// What is read from the kernel's queue now happened after this.
    pub(super) emptied: Instant,
    /// The time of this turn.
    pub(super) now: Instant,
}

impl Engine {
    pub(super) fn new(watches: Watches, limits: Arc<Limits>) -> Self {
        Self {
            watches,
            limits,
            work: VecDeque::new(),
            reading: None,
            scanned: Vec::new(),
            settled: Vec::new(),
            timers: BinaryHeap::new(),
            emptied: Instant::now(),
            now: Instant::now(),
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.reading.is_some() || !self.work.is_empty()
    }
}
