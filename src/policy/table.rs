//! The table of loops, and the loops and policies that are set for contexts and principals.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tokio::task::AbortHandle;

use super::client_processes::AwaitedProcess;
use super::context::ContextKey;
use super::kept::KeptLoops;
use crate::access::{ClientProcess, Principal, ProcessKey};
use crate::config::Policy;
use crate::event::LoopState;
use crate::event_loop::Handle;

/// The setting of a context. A context whose loop was never set is not in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binding {
    Loop(u64),
    /// Unset by a client: no loop is made for the context until one is set again.
    Unset,
}

/// The state of the registry, under one lock.
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
    /// Owner and name of the loops that are being made; the names are taken.
    pub(super) making: HashSet<(Principal, String)>,
    /// Contexts whose loop is being made.
    pub(super) making_for: HashSet<ContextKey>,
    /// Ids of closed loops that are removed after `closed_ttl`.
    pub(super) closed: HashSet<u64>,
    /// Client processes to which loops or contexts are bound.
    pub(super) processes: HashMap<ProcessKey, AwaitedProcess>,
    /// The tasks that wait until the leases of loops run out.
    pub(super) leases: HashMap<u64, AbortHandle>,
    /// What later lives of the daemon find.
    pub(super) kept: Option<KeptLoops>,
}

impl Inner {
    /// Sets what a context is bound to; `process` is that of the context of a process.
    pub(super) fn set_context(
        &mut self,
        key: &ContextKey,
        process: Option<&ClientProcess>,
        binding: Binding,
    ) {
        self.contexts.insert(key.clone(), binding);
        if let Some(kept) = &mut self.kept {
            let process = process.map(|process| (process.pid(), process.started()));
            kept.set_context(key, process, binding);
        }
    }

    /// Keeps only what is set for contexts of which `in_use` says so.
    pub(super) fn retain_contexts(&mut self, in_use: impl Fn(&ContextKey, Binding) -> bool) {
        self.contexts.retain(|key, binding| in_use(key, *binding));
        if let Some(kept) = &mut self.kept {
            kept.forget_contexts(|key| self.contexts.contains_key(key));
        }
    }

    /// Sets the policy of a principal; `None`: that of everybody else.
    pub(super) fn choose(&mut self, principal: &Principal, policy: Option<Arc<Policy>>) {
        if let Some(kept) = &mut self.kept {
            kept.set_choice(Some(principal), policy.as_ref().map(|policy| &*policy.name));
        }
        match policy {
            Some(policy) => drop(self.chosen.insert(principal.clone(), policy)),
            None => drop(self.chosen.remove(principal)),
        }
    }

    /// Sets the policy of everybody else.
    pub(super) fn set_common(&mut self, policy: Arc<Policy>) {
        if let Some(kept) = &mut self.kept {
            kept.set_choice(None, Some(&policy.name));
        }
        self.common = policy;
    }

    pub(super) fn policy_of(&self, principal: &Principal, daemon: bool) -> Arc<Policy> {
        let own = self.chosen.get(principal).filter(|_| !daemon);
        Arc::clone(own.unwrap_or(&self.common))
    }

    /// Returns the open loops whose owner is affected by a switch of the policy.
    pub(super) fn affected(&self, principal: &Principal, daemon: bool) -> Vec<Handle> {
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

    /// Returns the loop of a context; `Err` if it was unset by a client, `None` if none is set.
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

    /// Returns the open loop of that name.
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

    /// Frees the name and the contexts of a loop that has closed. Returns false if they were free
    /// already, or if the loop was removed.
    pub(super) fn release_closed(&mut self, id: u64) -> bool {
        if !self.loops.contains_key(&id) || !self.closed.insert(id) {
            return false;
        }
        self.names.retain(|_, named| *named != id);
        self.retain_contexts(|_, bound| bound != Binding::Loop(id));
        self.unbind(id);
        true
    }

    /// Whether no open loop has that name and no loop is being made under it.
    pub(super) fn is_free(&mut self, principal: &Principal, name: &str) -> bool {
        let key = (principal.clone(), name.to_owned());
        !self.making.contains(&key) && self.by_name(principal, name).is_none()
    }

    pub(super) fn forget(&mut self, id: u64) {
        if !self.closed.remove(&id) {
            // It closed without `release_closed`, which would have unbound it.
            self.unbind(id);
        }
        self.loops.remove(&id);
    }

    /// Removes the oldest closed loops beyond `most`, which is the limit on open loops.
    pub(super) fn forget_old(&mut self, most: usize) {
        let closed = |l: &&Handle| l.state() == LoopState::Closed;
        let ids: Vec<u64> = self.loops.values().filter(closed).map(Handle::id).collect();
        for id in &ids[..ids.len().saturating_sub(most)] {
            self.forget(*id);
        }
    }
}
