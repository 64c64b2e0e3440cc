//! asyncio's policy model for a host: which loop belongs to which context, and how loops are made.
//!
//! One lock guards the maps from names and contexts to loops. It is held only briefly, never
//! while a loop is made or a command is sent to a loop.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::task::JoinSet;

use crate::access::Principal;
use crate::config::{Config, OnMissing, Policy};
use crate::error::{Error, Result};
use crate::event::{LoopState, PolicyChanged, PolicyScope};
use crate::event_loop::{Handle, Lifetime, LoopEnd};
use crate::journal::Memory;
use crate::state::Arena;
use crate::watch::Services;

mod backends;
mod client_processes;
mod context;
mod creation;
mod kept;
mod leases;
mod table;

pub use backends::backend_of;
pub use context::{
    Caller, ContextKey, LOOP_NAME_MAX, LoopName, SESSION_NAME_MAX, check_loop_name, is_loop_name,
};
use context::{context_key, shown};
pub use creation::NewLoop;
use kept::KeptLoops;
pub use kept::{Revival, Revived};
use table::{Binding, Inner};

/// The number of names that are tried for the loop of a context: `default`, `default-2`, ...
const NAMES_TRIED: u32 = 100;

/// All loops, and the policies by which they are made.
#[derive(Debug)]
pub struct Registry {
    config: Arc<Config>,
    limits: Arc<crate::config::Limits>,
    policies: BTreeMap<String, Arc<Policy>>,
    services: Arc<Services>,
    memory: Arc<Memory>,
    draining: AtomicBool,
    /// Where loops are kept for later lives of the daemon; `None` if they are not.
    arena: Option<Arc<Arena>>,
    set_aside: Mutex<kept::AllSetAside>,
    inner: Mutex<Inner>,
    /// Notified when a loop was made or could not be made. Calls that wait for its name or context
    /// then check again.
    made: Condvar,
}

impl Registry {
    /// Makes a registry with the configuration's policies and without loops.
    ///
    /// # Errors
    /// The default policy does not exist.
    pub fn new(
        config: Arc<Config>,
        services: Arc<Services>,
        memory: Arc<Memory>,
        arena: Option<Arc<Arena>>,
    ) -> Result<Arc<Self>> {
        let policies: BTreeMap<String, Arc<Policy>> = config
            .policies
            .iter()
            .map(|(name, policy)| (name.clone(), Arc::new(policy.clone())))
            .collect();
        let default = policies.get(&config.default_policy);
        let common = default
            .cloned()
            .ok_or_else(|| unknown(&policies, &config.default_policy))?;
        Ok(Arc::new(Self {
            limits: Arc::new(config.limits.clone()),
            config,
            policies,
            services,
            memory,
            set_aside: Mutex::default(),
            draining: AtomicBool::new(false),
            arena: arena.clone(),
            made: Condvar::new(),
            inner: Mutex::new(Inner {
                loops: BTreeMap::new(),
                names: HashMap::new(),
                contexts: HashMap::new(),
                chosen: HashMap::new(),
                common,
                last_id: 0,
                making: HashSet::new(),
                making_for: HashSet::new(),
                closed: HashSet::new(),
                processes: HashMap::new(),
                leases: HashMap::new(),
                kept: arena.map(KeptLoops::new),
            }),
        }))
    }

    /// Returns the configuration.
    #[must_use]
    pub const fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Returns the services that all loops share.
    #[must_use]
    pub const fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// Returns the memory that outlives the daemon; `None` without a keeper.
    #[must_use]
    pub const fn arena(&self) -> Option<&Arc<Arena>> {
        self.arena.as_ref()
    }

    /// Returns the memory budget of all journals.
    #[must_use]
    pub const fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Refuses new loops and watches from now on. Waits until all loops that are being made exist.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        let mut inner = self.inner.lock();
        while !inner.making.is_empty() {
            self.made.wait(&mut inner);
        }
    }

    /// Whether the daemon is ending.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Refuses new work once the daemon is ending.
    ///
    /// # Errors
    /// [`Error::Draining`].
    pub fn check_draining(&self) -> Result<()> {
        if self.is_draining() {
            return Err(Error::Draining);
        }
        Ok(())
    }

    /// Tells all loops that time zones were replaced.
    pub fn zones_changed(&self) {
        let loops: Vec<Handle> = self.inner.lock().loops.values().cloned().collect();
        for on in loops {
            on.zones_changed();
        }
    }

    /// Returns all configured policies, sorted by name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// Returns the caller's context; none if the policy in force gives it none.
    #[must_use]
    pub fn context_of(&self, caller: &Caller) -> Option<ContextKey> {
        let (policy, _) = self.policy_of(&caller.principal);
        context_key(&policy, caller).ok()
    }

    /// Returns the policy in force for a principal, and whether the principal or the daemon chose
    /// it.
    #[must_use]
    pub fn policy_of(&self, principal: &Principal) -> (Arc<Policy>, PolicyScope) {
        let inner = self.inner.lock();
        match inner.chosen.get(principal) {
            Some(policy) => (Arc::clone(policy), PolicyScope::Principal),
            None => (Arc::clone(&inner.common), PolicyScope::Daemon),
        }
    }

    /// Switches the policy in force; `None` restores the default of that scope. Every open
    /// loop of the principals affected gets an event before this returns.
    ///
    /// # Errors
    /// An unknown policy, or a scope that the caller may not change.
    pub async fn set_policy(
        &self,
        caller: &Caller,
        name: Option<&str>,
        scope: PolicyScope,
    ) -> Result<Arc<Policy>> {
        let named = match name {
            Some(name) => {
                let policy = self.policies.get(name).cloned();
                Some(policy.ok_or_else(|| unknown(&self.policies, name))?)
            }
            None => None,
        };
        let daemon = scope == PolicyScope::Daemon;
        if daemon && !caller.administrator {
            return Err(Error::PermissionDenied {
                message: "only administrators may switch the daemon's policy".to_owned(),
            });
        }
        let (old, new, affected) = {
            let mut inner = self.inner.lock();
            let old = inner.policy_of(&caller.principal, daemon);
            if daemon {
                let default = self.policies.get(&self.config.default_policy).cloned();
                inner.set_common(named.or(default).unwrap_or_else(|| Arc::clone(&old)));
            } else {
                inner.choose(&caller.principal, named);
            }
            let new = inner.policy_of(&caller.principal, daemon);
            let affected = inner.affected(&caller.principal, daemon);
            (old, new, affected)
        };
        if old.name != new.name {
            let changed = PolicyChanged {
                scope: scope.into(),
                old_policy: old.name.clone(),
                new_policy: new.name.clone(),
            };
            let mut noting = JoinSet::new();
            for handle in affected {
                let changed = changed.clone();
                noting.spawn(async move { handle.policy_changed(changed).await });
            }
            for noted in noting.join_all().await {
                match noted {
                    // A loop that has closed meanwhile needs no event.
                    Ok(()) | Err(Error::LoopClosed { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(self.policy_of(&caller.principal).0)
    }

    /// Returns the loop of the caller's context. Makes, runs and sets one if there is none and the
    /// policy says so; the second value says whether this call made it.
    ///
    /// # Errors
    /// [`Error::NoLoopInContext`], a missing session, and the errors of making a loop.
    pub fn get_event_loop(self: &Arc<Self>, caller: &Caller) -> Result<(Handle, bool)> {
        let (policy, _) = self.policy_of(&caller.principal);
        let key = context_key(&policy, caller)?;
        let mut inner = self.inner.lock();
        while inner.making_for.contains(&key) {
            self.made.wait(&mut inner);
        }
        let why = match inner.bound(&key) {
            Some(Ok(handle)) => return Ok((handle, false)),
            Some(Err(())) => "none is made since it was unset",
            None if policy.on_missing == OnMissing::Error => "the policy makes none",
            None => {
                let handle = self.make_for_context(inner, &key, &policy, caller)?;
                return Ok((handle, true));
            }
        };
        Err(Error::NoLoopInContext {
            context: shown(&key, caller),
            why,
        })
    }

    fn make_for_context(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, Inner>,
        key: &ContextKey,
        policy: &Arc<Policy>,
        caller: &Caller,
    ) -> Result<Handle> {
        self.check_context_room(&inner, key)?;
        let base = match (key, &caller.process) {
            (ContextKey::Session(_, session), _) => format!("{}-{session}", policy.loop_name),
            (ContextKey::Process(..), Some(process)) => {
                format!("{}-{}", policy.loop_name, process.pid())
            }
            _ => policy.loop_name.clone(),
        };
        let free = |inner: &mut Inner, name: &String| {
            inner.is_free(&caller.principal, name) && is_loop_name(name)
        };
        let mut names = (2..=NAMES_TRIED).map(|n| format!("{base}-{n}"));
        let name = std::iter::once(base.clone())
            .chain(&mut names)
            .find(|name| free(&mut inner, name))
            .ok_or(Error::NameTaken {
                what: "loop",
                name: base.clone(),
                differs: None,
            })?;
        let backend = backends::choose(policy, "")?;
        let mut reservation = self.reserve(&mut inner, &caller.principal, name)?;
        reservation.make_for(&mut inner, key);
        drop(inner);
        let lifetime = match (key, &caller.process) {
            (ContextKey::Process(..), Some(process)) => Lifetime::of_process(Arc::clone(process)),
            _ => Lifetime::Daemon,
        };
        let (handle, mut inner) = reservation.create(policy, backend, true, &lifetime)?;
        self.bind(&mut inner, key, Binding::Loop(handle.id()), caller);
        Ok(handle)
    }

    /// Sets the loop of the caller's context; `None` unsets it.
    ///
    /// # Errors
    /// There is no such loop, it is closed, the caller may not use it, or there are too many
    /// contexts.
    pub fn set_event_loop(self: &Arc<Self>, caller: &Caller, name: Option<&str>) -> Result<()> {
        let (policy, _) = self.policy_of(&caller.principal);
        let key = context_key(&policy, caller)?;
        let mut inner = self.inner.lock();
        let binding = match name {
            None => Binding::Unset,
            Some(name) => {
                let handle = self.named(&mut inner, caller, name)?;
                if handle.state() == LoopState::Closed {
                    let name = handle.full_name().to_owned();
                    return Err(Error::LoopClosed { name });
                }
                Binding::Loop(handle.id())
            }
        };
        self.check_context_room(&inner, &key)?;
        self.bind(&mut inner, &key, binding, caller);
        Ok(())
    }

    fn check_context_room(&self, inner: &Inner, key: &ContextKey) -> Result<()> {
        let most = self.limits.contexts;
        if inner.contexts.len() >= most && !inner.contexts.contains_key(key) {
            return Err(Error::limit("limits.contexts", most as u64));
        }
        Ok(())
    }

    /// Returns the loop that a request names. Makes one only for [`LoopName::Context`] with
    /// `create`.
    ///
    /// # Errors
    /// There is no such loop, or the caller may not use it.
    pub fn find(
        self: &Arc<Self>,
        caller: &Caller,
        name: &LoopName,
        create: bool,
    ) -> Result<Handle> {
        match name {
            LoopName::Context if create => self.get_event_loop(caller).map(|(handle, _)| handle),
            LoopName::Context => {
                let (policy, _) = self.policy_of(&caller.principal);
                let key = context_key(&policy, caller)?;
                let bound = self.inner.lock().bound(&key);
                bound
                    .and_then(std::result::Result::ok)
                    .ok_or_else(|| Error::NoLoopInContext {
                        context: shown(&key, caller),
                        why: "this call makes none",
                    })
            }
            LoopName::Name(name) => self.named(&mut self.inner.lock(), caller, name),
            LoopName::Id(id) => {
                let found = self.inner.lock().loops.get(id).cloned();
                let handle = found.ok_or_else(|| Error::LoopNotFound {
                    name: format!("@{id}"),
                })?;
                allow(caller, handle.principal())?;
                Ok(handle)
            }
        }
    }

    fn named(&self, inner: &mut Inner, caller: &Caller, name: &str) -> Result<Handle> {
        let (principal, short) = match name.split_once('/') {
            Some((principal, short)) => (principal.parse()?, short),
            None => (caller.principal.clone(), name),
        };
        allow(caller, &principal)?;
        let open = inner.by_name(&principal, short);
        // A closed loop is still found by its name while no open loop has that name.
        let closed = || {
            let mut all = inner.loops.values().rev();
            all.find(|l| l.name() == short && *l.principal() == principal)
                .cloned()
        };
        open.or_else(closed).ok_or_else(|| Error::LoopNotFound {
            name: name.to_owned(),
        })
    }

    /// Returns the loops with an id above `after` that the caller may see.
    #[must_use]
    pub fn list(&self, caller: &Caller, after: u64, include_closed: bool) -> Vec<Handle> {
        let inner = self.inner.lock();
        let visible = inner
            .loops
            .range((Bound::Excluded(after), Bound::Unbounded))
            .map(|(_, handle)| handle);
        visible
            .filter(|l| caller.administrator || *l.principal() == caller.principal)
            .filter(|l| include_closed || l.state() != LoopState::Closed)
            .cloned()
            .collect()
    }

    /// Closes a loop. Its name and contexts are free at once; its journal stays
    /// readable for the policy's `closed_ttl`.
    ///
    /// # Errors
    /// The loop is running, and `force` is not set.
    pub async fn close(
        self: &Arc<Self>,
        handle: &Handle,
        end: LoopEnd,
    ) -> Result<crate::event::Cursor> {
        let cursor = handle.close(end).await?;
        let id = handle.id();
        let mut inner = self.inner.lock();
        if let Some(kept) = &mut inner.kept {
            kept.forget(id);
        }
        let released = inner.release_closed(id);
        drop(inner);
        if !released {
            // It was closed before.
            return Ok(cursor);
        }
        let ttl = handle.policy().closed_ttl;
        let registry = Arc::downgrade(self);
        self.services.runtime.spawn(async move {
            tokio::time::sleep(ttl).await;
            if let Some(registry) = registry.upgrade() {
                registry.inner.lock().forget(id);
                if let Some(arena) = &registry.arena {
                    arena.give_idle_back();
                }
            }
        });
        Ok(cursor)
    }
}

fn allow(caller: &Caller, owner: &Principal) -> Result<()> {
    if caller.administrator || caller.principal == *owner {
        return Ok(());
    }
    Err(Error::PermissionDenied {
        message: format!("{} may not use loops of {owner}", caller.principal),
    })
}

fn unknown(policies: &BTreeMap<String, Arc<Policy>>, name: &str) -> Error {
    Error::PolicyNotFound {
        name: name.to_owned(),
        known: policies.keys().cloned().collect::<Vec<_>>().join(", "),
    }
}
