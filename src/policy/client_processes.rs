//! Client processes to which a context or loops are bound: when such a process ends, its context is
//! removed and its loops are closed.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::task::{AbortHandle, JoinSet};

use super::{Binding, Caller, ContextKey, Inner, Registry};
use crate::access::{ClientProcess, ProcessKey};
use crate::event::CloseReason;
use crate::event_loop::Handle;

/// A process whose end the daemon waits for, with one task for everything that is bound to it.
#[derive(Debug)]
pub(super) struct AwaitedProcess {
    waiter: AbortHandle,
    loops: HashSet<u64>,
}

impl Registry {
    /// Binds a context to a loop, or unsets it. The context of a process is removed when the
    /// process ends.
    pub(super) fn bind(
        self: &Arc<Self>,
        inner: &mut Inner,
        key: &ContextKey,
        binding: Binding,
        caller: &Caller,
    ) {
        inner.set_context(key, caller.process.as_deref(), binding);
        if let (ContextKey::Process(..), Some(process)) = (key, &caller.process) {
            self.bind_to_process(inner, process, None);
        }
    }

    /// Arranges that the process's context is removed, and the loop `on` closed if there is one,
    /// when the process ends; at once if it has ended already.
    pub(super) fn bind_to_process(
        self: &Arc<Self>,
        inner: &mut Inner,
        process: &Arc<ClientProcess>,
        on: Option<u64>,
    ) {
        let key = process.key();
        let awaited = inner.processes.entry(key).or_insert_with(|| {
            let (registry, process) = (Arc::downgrade(self), Arc::clone(process));
            let waiter = self.services.runtime.spawn(async move {
                process.ended().await;
                if let Some(registry) = registry.upgrade() {
                    registry.process_ended(key).await;
                }
            });
            AwaitedProcess {
                waiter: waiter.abort_handle(),
                loops: HashSet::new(),
            }
        });
        awaited.loops.extend(on);
    }

    async fn process_ended(self: &Arc<Self>, process: ProcessKey) {
        let mut closing = JoinSet::new();
        for handle in self.inner.lock().process_ended(process) {
            let registry = Arc::clone(self);
            closing.spawn(async move {
                registry
                    .lifetime_over(&handle, CloseReason::ProcessEnded)
                    .await;
            });
        }
        closing.join_all().await;
    }
}

impl Inner {
    /// Removes the context of a process that has ended, and returns the loops to close.
    fn process_ended(&mut self, process: ProcessKey) -> Vec<Handle> {
        self.retain_contexts(|key, _| key.process() != Some(process));
        let awaited = self.processes.remove(&process);
        let loops = awaited.into_iter().flat_map(|awaited| awaited.loops);
        loops
            .filter_map(|id| self.loops.get(&id).cloned())
            .collect()
    }

    /// Unbinds a loop from its process or lease. The daemon no longer waits for a process to which nothing
    /// is bound any more.
    pub(super) fn unbind(&mut self, id: u64) {
        if let Some(waiter) = self.leases.remove(&id) {
            waiter.abort();
        }
        let contexts: HashSet<ProcessKey> = self
            .contexts
            .keys()
            .filter_map(ContextKey::process)
            .collect();
        self.processes.retain(|process, awaited| {
            awaited.loops.remove(&id);
            let needed = !awaited.loops.is_empty() || contexts.contains(process);
            if !needed {
                awaited.waiter.abort();
            }
            needed
        });
    }
}
