//! Which loops there are, and what is set for whom.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::context::ContextKey;
use super::departures::Awaited;
use crate::access::{Principal, ProcessKey};
use crate::config::Policy;
use crate::event::LoopState;
use crate::event_loop::Handle;

/// What is set for a context. One that was never set is not in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binding {
    Loop(u64),
    /// Unset on purpose: nothing is made for it until it is set again.
    Unset,
}

/// All of it, under one lock.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) loops: BTreeMap<u64, Handle>,
    pub(super) names: HashMap<(Principal, String), u64>,
    pub(super) contexts: HashMap<ContextKey, Binding>,
    /// Policies that principals have chosen for themselves.
    pub(super) chosen: HashMap<Principal, Arc<Policy>>,
    /// The policy of everybody else.
    pub(super) common: Arc<Policy>,
    pub(super) last_id: u64,
    /// Loops that are being made, by owner and name: their places are taken.
    pub(super) making: HashSet<(Principal, String)>,
    /// Contexts whose loop is being made.
    pub(super) making_for: HashSet<ContextKey>,
    /// Closed loops that are forgotten after their time.
    pub(super) closed: HashSet<u64>,
    /// Client processes that loops or contexts go with.
    pub(super) processes: HashMap<ProcessKey, Awaited>,
}

impl Inner {
    pub(super) fn policy_of(&self, principal: &Principal, daemon: bool) -> Arc<Policy> {
        let own = self.chosen.get(principal).filter(|_| !daemon);
        Arc::clone(own.unwrap_or(&self.common))
    }

    /// Open loops whose owner a switch is about.
    pub(super) fn concerned(&self, principal: &Principal, daemon: bool) -> Vec<Handle> {
        let about = |owner: &Principal| {
            if daemon {
                !self.chosen.contains_key(owner)
            } else {
                owner == principal
            }
        };
        let open = self
            .loops
            .values()
            .filter(|l| l.state() != LoopState::Closed);
        open.filter(|l| about(l.principal())).cloned().collect()
    }

    /// The loop of a context; `Err` if it was unset on purpose, `None` if it never was set.
    pub(super) fn bound(&mut self, key: &ContextKey) -> Option<Result<Handle, ()>> {
        match self.contexts.get(key)? {
            Binding::Unset => Some(Err(())),
            Binding::Loop(id) => {
                let open = |l: &&Handle| l.state() != LoopState::Closed;
                let found = self.loops.get(id).filter(open).cloned();
                if found.is_none() {
                    self.contexts.remove(key);
                }
                found.map(Ok)
            }
        }
    }

    /// The open loop of that name.
    pub(super) fn by_name(&mut self, principal: &Principal, name: &str) -> Option<Handle> {
        let key = (principal.clone(), name.to_owned());
        let id = *self.names.get(&key)?;
        let open = |l: &&Handle| l.state() != LoopState::Closed;
        let found = self.loops.get(&id).filter(open).cloned();
        if found.is_none() {
            self.names.remove(&key);
        }
        found
    }

    /// The loop is closed: its name and its contexts are free. False: they were already, or it is
    /// forgotten.
    pub(super) fn let_go(&mut self, id: u64) -> bool {
        if !self.loops.contains_key(&id) || !self.closed.insert(id) {
            return false;
        }
        self.names.retain(|_, named| *named != id);
        self.contexts.retain(|_, bound| *bound != Binding::Loop(id));
        self.unbind(id);
        true
    }

    /// Nobody has that name, and nobody is being made under it.
    pub(super) fn is_free(&mut self, principal: &Principal, name: &str) -> bool {
        let key = (principal.clone(), name.to_owned());
        !self.making.contains(&key) && self.by_name(principal, name).is_none()
    }

    pub(super) fn forget(&mut self, id: u64) {
        if !self.closed.remove(&id) {
            // It closed by itself.
            self.unbind(id);
        }
        self.loops.remove(&id);
    }

    /// Closed loops stay readable, but no more of them than open ones may exist.
    pub(super) fn forget_old(&mut self, most: usize) {
        let closed = |l: &&Handle| l.state() == LoopState::Closed;
        let ids: Vec<u64> = self.loops.values().filter(closed).map(Handle::id).collect();
        for id in &ids[..ids.len().saturating_sub(most)] {
            self.forget(*id);
        }
    }
}
