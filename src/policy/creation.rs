//! Creates loops.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{Binding, Caller, ContextKey, Inner, Registry, backends, check_loop_name, unknown};
use crate::access::Principal;
use crate::config::{History, Policy};
use crate::driver::Backend;
use crate::error::{Error, Result};
use crate::event::LoopState;
use crate::event_loop::{Blueprint, Handle, Lifetime};
use crate::faults::{self, Point};

/// A request for a new loop.
#[derive(Debug, Clone, Default)]
pub struct NewLoop {
    /// The loop's name. Empty: a generated one.
    pub name: String,
    /// The policy's name. Empty: the policy in force.
    pub policy: String,
    /// The backend's name. Empty: the policy's choice.
    pub backend: String,
    /// Whether events stay once they are read. None: as the policy says.
    pub history: Option<History>,
    /// The process, or the daemon, that the loop ends with.
    pub lifetime: Lifetime,
    /// Whether an existing loop of the same name, policy, backend, history and lifetime is returned
    /// instead of an error.
    pub or_existing: bool,
}

impl Registry {
    /// Makes a loop by a policy's rules, without setting it for a context. The second value says
    /// whether this call made it.
    ///
    /// # Errors
    /// A bad or taken name, an unknown policy, a backend that is not allowed or not
    /// available, the limit on loops, or an error of the system.
    pub fn new_event_loop(
        self: &Arc<Self>,
        caller: &Caller,
        new: &NewLoop,
    ) -> Result<(Handle, bool)> {
        if !new.name.is_empty() {
            check_loop_name("name", &new.name)?;
        }
        let mut policy = match new.policy.as_str() {
            "" => self.policy_of(&caller.principal).0,
            name => {
                let policy = self.policies.get(name).cloned();
                policy.ok_or_else(|| unknown(&self.policies, name))?
            }
        };
        if let Some(history) = new.history.filter(|history| *history != policy.history) {
            Arc::make_mut(&mut policy).history = history;
        }
        let mut inner = self.inner.lock();
        let wanted = (caller.principal.clone(), new.name.clone());
        while inner.making.contains(&wanted) {
            self.made.wait(&mut inner);
        }
        if let Some(existing) = inner.by_name(&caller.principal, &new.name) {
            let differs = if !new.or_existing {
                Some(None)
            } else if existing.policy().name != policy.name {
                Some(Some("policy".to_owned()))
            } else if !new.backend.is_empty() && existing.backend().name() != new.backend {
                Some(Some("backend".to_owned()))
            } else if new.history.is_some() && existing.policy().history != policy.history {
                Some(Some("history".to_owned()))
            } else if !new.lifetime.is_like(&existing.lifetime()) {
                Some(Some("lifetime".to_owned()))
            } else {
                None
            };
            return match differs {
                None => Ok((existing, false)),
                Some(differs) => Err(Error::NameTaken {
                    what: "loop",
                    name: new.name.clone(),
                    differs,
                }),
            };
        }
        let backend = backends::choose(&policy, &new.backend)?;
        let name = new.name.clone();
        let reservation = self.reserve(&mut inner, &caller.principal, name)?;
        drop(inner);
        let (handle, _) = reservation.create(&policy, backend, false, &new.lifetime)?;
        Ok((handle, true))
    }

    /// Reserves an id and the name of a loop that will be made. Without a name it gets a generated
    /// one.
    pub(super) fn reserve(
        self: &Arc<Self>,
        inner: &mut Inner,
        principal: &Principal,
        mut name: String,
    ) -> Result<Reservation<'_>> {
        self.check_draining()?;
        let open = inner
            .loops
            .values()
            .filter(|l| l.state() != LoopState::Closed);
        if open.count() + inner.making.len() >= self.limits.loops {
            return Err(Error::limit("limits.loops", self.limits.loops as u64));
        }
        inner.last_id += 1;
        let id = inner.last_id;
        if name.is_empty() {
            let mut numbers = (id..).map(|n| format!("loop-{n}"));
            let free = numbers.find(|name| inner.is_free(principal, name));
            name = free.unwrap_or_default();
        }
        let key = (principal.clone(), name);
        inner.making.insert(key.clone());
        Ok(Reservation {
            registry: self,
            id,
            key,
            context: None,
            open: true,
        })
    }

    /// Makes the loops of the configuration.
    ///
    /// # Errors
    /// The error of the first loop that cannot be made.
    pub fn start_configured(self: &Arc<Self>) -> Result<()> {
        for entry in &self.config.loops {
            let own = Principal::uid(rustix::process::geteuid().as_raw());
            let principal = match &entry.principal {
                Some(principal) => principal.parse()?,
                None => own,
            };
            let caller = Caller {
                principal,
                administrator: true,
                session: None,
                process: None,
            };
            let new = NewLoop {
                name: entry.name.clone(),
                policy: entry.policy.clone().unwrap_or_default(),
                // An earlier life may have left it.
                or_existing: true,
                ..NewLoop::default()
            };
            let (handle, _) = self.new_event_loop(&caller, &new)?;
            if entry.bind {
                let key = ContextKey::Principal(caller.principal.clone());
                let mut inner = self.inner.lock();
                inner.set_context(&key, None, Binding::Loop(handle.id()));
            }
        }
        Ok(())
    }
}

/// The id and the name that are reserved for a loop while it is being made. Dropping the reservation
/// frees the name and the context again.
pub(super) struct Reservation<'a> {
    registry: &'a Arc<Registry>,
    id: u64,
    key: (Principal, String),
    context: Option<ContextKey>,
    /// Whether the name and the context are still reserved.
    open: bool,
}

impl<'a> Reservation<'a> {
    /// Makes calls that ask for the loop of `context` wait for this loop.
    pub(super) fn make_for(&mut self, inner: &mut Inner, context: &ContextKey) {
        inner.making_for.insert(context.clone());
        self.context = Some(context.clone());
    }

    /// Makes the loop. It does not hold the registry's lock, since it starts a thread and opens
    /// descriptors. With `run` the loop runs whatever the policy's `start` says. The loop closes
    /// when the process that it is bound to ends.
    pub(super) fn create(
        mut self,
        policy: &Arc<Policy>,
        backend: Backend,
        run: bool,
        lifetime: &Lifetime,
    ) -> Result<(Handle, MutexGuard<'a, Inner>)> {
        let registry = self.registry;
        let (principal, name) = &self.key;
        let mut rules = Arc::clone(policy);
        if run && rules.start != crate::config::Start::Running {
            Arc::make_mut(&mut rules).start = crate::config::Start::Running;
        }
        let keep = registry.keep(self.id, &rules);
        let handle = Handle::start(Blueprint {
            id: self.id,
            name: name.clone(),
            principal: principal.clone(),
            policy: rules,
            backend,
            lifetime: lifetime.clone(),
            limits: Arc::clone(&registry.limits),
            services: Arc::clone(&registry.services),
            memory: Arc::clone(&registry.memory),
            keep,
            remains: None,
        })?;
        faults::point(Point::LoopStarted);
        let mut inner = registry.inner.lock();
        if let Some(kept) = &mut inner.kept {
            kept.keep(&handle)?;
        }
        faults::point(Point::LoopKept);
        inner.loops.insert(self.id, handle.clone());
        inner.names.insert(self.key.clone(), self.id);
        inner.forget_old(registry.limits.loops);
        if let Some(process) = lifetime.process() {
            registry.bind_to_process(&mut inner, process, Some(self.id));
        }
        if lifetime.lease().is_some() {
            registry.follow_lease(&mut inner, handle.clone());
        }
        self.free(&mut inner);
        Ok((handle, inner))
    }

    fn free(&mut self, inner: &mut Inner) {
        self.open = false;
        inner.making.remove(&self.key);
        if let Some(context) = &self.context {
            inner.making_for.remove(context);
        }
        self.registry.made.notify_all();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.open {
            let registry = self.registry;
            self.free(&mut registry.inner.lock());
        }
    }
}
