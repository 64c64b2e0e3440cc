//! What later lives of the daemon find of its loops, and how they take them up.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use prost::Message as _;

use super::table::{Binding, Inner};
use super::{ContextKey, Registry};
use crate::access::{ClientProcess, Principal};
use crate::config::{Policy, Survives};
use crate::driver::Backend;
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Recovered};
use crate::event_loop::{
    Blueprint, Clients, Handle, Remains, Revive, kept_lifetime_of, lifetime_of,
};
use crate::faults::{self, Point};
use crate::journal;
use crate::proto::state::{KeptChoice, KeptContext, KeptLoop, KeptProcess, kept_context};
use crate::state::{Arena, Cell, DAEMON, Entry, Found, Keep, Kind, Owner, Records};

/// The kinds of the daemon's records. The numbers stand in memory that later versions read.
const LOOP: u8 = 1;
/// The newest id of a loop.
const NEWEST: u8 = 2;
/// What is set for a context; the ids have no meaning.
const CONTEXT: u8 = 3;
/// A policy that was set; the ids have no meaning.
const CHOICE: u8 = 4;

/// What an earlier life has left, and what the loops that go on need.
pub struct Revived {
    /// All memory that was found.
    pub found: Vec<Found>,
    /// Whether no memory is missing.
    pub is_whole: bool,
    /// The descriptors that tell what the drivers of its loops have transferred last, by the id of the
    /// loop; see [`needed`](crate::driver::needed).
    pub needed: BTreeMap<Owner, OwnedFd>,
    /// How the loops go on.
    pub revival: Revival,
}

/// How loops go on.
pub struct Revival {
    /// What their readers are told.
    pub told: Recovered,
    /// Makes watches again.
    pub revive: Arc<dyn Revive>,
    /// Whether the life before died by a fault: a loop that many die of is set aside.
    pub by_fault: bool,
    /// Whether the life before was killed for lack of memory: nothing is kept that nobody has asked for.
    pub short_of_memory: bool,
}

impl std::fmt::Debug for Revival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revival")
            .field("told", &self.told)
            .field("by_fault", &self.by_fault)
            .finish_non_exhaustive()
    }
}

/// The lives that may die when they go on with a loop before it is set aside.
const TRIES: u64 = 2;

/// A loop that is set aside, with all that was found of it: its children live, and wait at their pipes.
struct SetAside {
    name: String,
    _rest: (
        journal::Recovered,
        Vec<Found>,
        Option<OwnedFd>,
        Arc<dyn Revive>,
    ),
}

/// The loops with which no life can go on.
#[derive(Default)]
pub(super) struct AllSetAside(Vec<SetAside>);

impl std::fmt::Debug for AllSetAside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.0.iter().map(|one| &one.name);
        f.debug_list().entries(names).finish()
    }
}

impl std::fmt::Debug for Revived {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revived").finish_non_exhaustive()
    }
}

/// The records of the loops that exist.
#[derive(Debug)]
pub(super) struct KeptLoops {
    records: Records,
    loops: HashMap<u64, Entry>,
    newest: Option<Cell<1>>,
    contexts: HashMap<ContextKey, Entry>,
    /// `None`: for all that have set none.
    choices: HashMap<Option<Principal>, Entry>,
    /// The newest id of a context or choice.
    last_id: u64,
}

impl KeptLoops {
    pub(super) fn new(arena: Arc<Arena>) -> Self {
        Self::with(Records::new(arena, DAEMON, Kind::Records))
    }

    fn with(records: Records) -> Self {
        Self {
            records,
            loops: HashMap::new(),
            newest: None,
            contexts: HashMap::new(),
            choices: HashMap::new(),
            last_id: 0,
        }
    }

    fn put(&mut self, place: Option<Entry>, kind: u8, bytes: &[u8]) -> Option<Entry> {
        self.last_id += 1;
        let put = match place {
            Some(mut entry) => {
                let put = self.records.replace_now(&mut entry, bytes);
                put.map(|()| entry)
            }
            None => self.records.put_now(kind, self.last_id, bytes),
        };
        put.inspect_err(
            |errno| tracing::error!(%errno, "the next life will not know all that is set"),
        )
        .ok()
    }

    /// Keeps what is set for a context; of that of a process its pid and start time are needed.
    pub(super) fn set_context(
        &mut self,
        key: &ContextKey,
        process: Option<(i32, u64)>,
        binding: Binding,
    ) {
        let (principal, of) = match key {
            ContextKey::Principal(principal) => (principal, None),
            ContextKey::Session(principal, session) => {
                (principal, Some(kept_context::Of::Session(session.clone())))
            }
            ContextKey::Process(principal, _) => {
                let Some((pid, start_time)) = process else {
                    return;
                };
                let process = KeptProcess { pid, start_time };
                (principal, Some(kept_context::Of::Process(process)))
            }
        };
        let kept = KeptContext {
            principal: principal.to_string(),
            of,
            loop_id: match binding {
                Binding::Loop(id) => id,
                Binding::Unset => 0,
            },
        };
        let place = self.contexts.remove(key);
        if let Some(entry) = self.put(place, CONTEXT, &kept.encode_to_vec()) {
            self.contexts.insert(key.clone(), entry);
        }
    }

    /// Forgets what was set for contexts that are not in use any more.
    pub(super) fn forget_contexts(&mut self, in_use: impl Fn(&ContextKey) -> bool) {
        let over: Vec<_> = self.contexts.extract_if(|key, _| !in_use(key)).collect();
        for (_, entry) in over {
            self.records.free_now(entry);
        }
    }

    /// Keeps the policy that a principal, or the daemon, has set; `None`: no more than the default.
    pub(super) fn set_choice(&mut self, of: Option<&Principal>, policy: Option<&str>) {
        let of = of.cloned();
        let place = self.choices.remove(&of);
        match policy {
            Some(policy) => {
                let kept = KeptChoice {
                    principal: of.as_ref().map_or_else(String::new, ToString::to_string),
                    policy_name: policy.to_owned(),
                };
                if let Some(entry) = self.put(place, CHOICE, &kept.encode_to_vec()) {
                    self.choices.insert(of, entry);
                }
            }
            None => {
                if let Some(entry) = place {
                    self.records.free_now(entry);
                }
            }
        }
    }

    /// Keeps a loop that has just been made, if it survives, and that its id was used.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn keep(&mut self, on: &Handle) -> Result<()> {
        let no_memory =
            |errno| SystemError::new(errno, "memory", "memory that outlives the daemon");
        let id = on.id();
        match &self.newest {
            Some(newest) => newest.set(id, [id]),
            None => {
                let cell = self.records.cell_now(id, NEWEST, 0, [id]);
                self.newest = Some(cell.map_err(no_memory)?);
            }
        }
        faults::point(Point::LoopNumbered);
        if on.survives() == Survives::None {
            return Ok(());
        }
        let policy = on.policy().carry();
        let kept = KeptLoop {
            name: on.name().to_owned(),
            principal: on.principal().to_string(),
            policy: policy.map_err(|_| Error::Internal("a policy cannot be written"))?,
            backend: on.backend().name().to_owned(),
            lifetime: kept_lifetime_of(&on.lifetime()),
            created: on.created(),
            epoch: on.journal().epoch().to_string(),
            policy_name: on.policy().name.clone(),
        };
        let entry = self.records.put_now(LOOP, id, &kept.encode_to_vec());
        self.loops.insert(id, entry.map_err(no_memory)?);
        Ok(())
    }

    /// Forgets a loop that has closed.
    pub(super) fn forget(&mut self, id: u64) {
        if let Some(entry) = self.loops.remove(&id) {
            self.records.free_now(entry);
        }
    }
}

impl Registry {
    /// Returns where a loop with that policy is kept for later lives.
    pub(super) fn keep(&self, id: u64, policy: &Policy) -> Keep {
        match &self.arena {
            Some(arena) if policy.survives == Survives::Crash => Keep::Kept(Arc::clone(arena), id),
            _ => Keep::Own,
        }
    }

    /// Takes up the loops of an earlier life. Call it before any loop is made.
    pub fn take_up(self: &Arc<Self>, revived: Revived) {
        let Some(arena) = &self.arena else { return };
        let mut needed = revived.needed;
        let mut by_owner: BTreeMap<u64, Vec<Found>> = BTreeMap::new();
        for found in revived.found {
            by_owner.entry(found.owner).or_default().push(found);
        }
        let own = by_owner.remove(&DAEMON).unwrap_or_default();
        let (records, entries, damaged) =
            Records::recover(Arc::clone(arena), DAEMON, Kind::Records, own, 0);
        if !damaged.is_empty() {
            tracing::error!(damaged = damaged.len(), "loops of the life before are lost");
        }
        let mut kept = KeptLoops::with(records);
        let mut settings = Vec::new();
        let mut loops = BTreeMap::new();
        let mut last_id = 0;
        for entry in entries {
            match entry.kind() {
                LOOP => drop(loops.insert(entry.id(), entry)),
                NEWEST => {
                    let cell = Cell::<1>::recover(entry, u64::MAX);
                    last_id = cell.get()[0];
                    kept.newest = Some(cell);
                }
                CONTEXT | CHOICE => {
                    kept.last_id = kept.last_id.max(entry.id());
                    settings.push(entry);
                }
                _ => kept.records.free_now(entry),
            }
        }
        if revived.revival.short_of_memory {
            tracing::warn!("memory is short: all history is given back that no consumer waits for");
        }
        let mut handles = Vec::new();
        for (id, entry) in loops {
            last_id = last_id.max(id);
            let found = by_owner.remove(&id).unwrap_or_default();
            let found = ((found, revived.is_whole), needed.remove(&id));
            match self.go_on(arena, id, &entry, found, &revived.revival) {
                Ok(None) => {
                    kept.loops.insert(id, entry);
                }
                Ok(Some((handle, is_over))) => {
                    // The epoch may be a new one.
                    kept.records.free_now(entry);
                    if let Err(error) = kept.keep(&handle) {
                        tracing::error!(on = handle.full_name(), %error, "the next life will not find a loop");
                    }
                    handles.push((handle, is_over));
                    faults::point(Point::LoopTakenUp);
                }
                Err(error) => {
                    tracing::error!(id, %error, "a loop of the life before is lost");
                    kept.records.free_now(entry);
                }
            }
        }
        // A killed process does not give back what the keeper holds, too.
        arena.give_idle_back();
        let mut inner = self.inner.lock();
        inner.last_id = inner.last_id.max(last_id);
        inner.kept = Some(kept);
        for (handle, is_over) in handles {
            self.enter(&mut inner, handle, is_over);
        }
        for entry in settings {
            match entry.kind() {
                CONTEXT => self.set_context_again(&mut inner, entry.bytes()),
                _ => self.set_choice_again(&mut inner, entry.bytes()),
            }
            if let Some(kept) = &mut inner.kept {
                kept.records.free_now(entry);
            }
        }
    }

    /// Sets for a context what an earlier life had set, if its loop and its process are still there.
    fn set_context_again(self: &Arc<Self>, inner: &mut Inner, bytes: &[u8]) {
        let Ok(kept) = KeptContext::decode(bytes) else {
            return;
        };
        let Ok(principal) = kept.principal.parse::<Principal>() else {
            return;
        };
        let mut process = None;
        let key = match kept.of {
            None => ContextKey::Principal(principal),
            Some(kept_context::Of::Session(session)) => ContextKey::Session(principal, session),
            Some(kept_context::Of::Process(of)) => {
                let found = ClientProcess::again(of.pid, of.start_time);
                let Ok(Some(found)) = found.inspect_err(|error| {
                    tracing::error!(pid = of.pid, %error, "the loop of a client process is not set any more");
                }) else {
                    return;
                };
                let key = ContextKey::Process(principal, found.key());
                process = Some(Arc::new(found));
                key
            }
        };
        let binding = match kept.loop_id {
            0 => Binding::Unset,
            id if inner.loops.contains_key(&id) => Binding::Loop(id),
            _ => return,
        };
        inner.set_context(&key, process.as_deref(), binding);
        if let Some(process) = process {
            self.bind_to_process(inner, &process, None);
        }
    }

    /// Sets a policy that was set in an earlier life, if there still is such a one.
    fn set_choice_again(&self, inner: &mut Inner, bytes: &[u8]) {
        let Ok(kept) = KeptChoice::decode(bytes) else {
            return;
        };
        let Some(policy) = self.policies.get(&kept.policy_name).cloned() else {
            return;
        };
        if kept.principal.is_empty() {
            inner.set_common(policy);
        } else if let Ok(principal) = kept.principal.parse() {
            inner.choose(&principal, Some(policy));
        }
    }

    /// Goes on with a loop, or sets it aside.
    fn go_on(
        &self,
        arena: &Arc<Arena>,
        id: u64,
        entry: &Entry,
        (found, needed): ((Vec<Found>, bool), Option<OwnedFd>),
        revival: &Revival,
    ) -> Result<Option<(Handle, bool)>> {
        let unreadable = Error::Internal("its record cannot be read");
        let kept = KeptLoop::decode(entry.bytes()).map_err(|_| unreadable.clone())?;
        let policy = Policy::carried(&kept.policy_name, &kept.policy);
        let policy = policy.map_err(|_| unreadable.clone())?;
        let backend = Backend::ALL
            .into_iter()
            .find(|known| known.name() == kept.backend);
        let epoch = kept.epoch.parse().map_err(|_| unreadable.clone())?;
        let (mut journal, records) =
            journal::Recovered::sort(arena, id, found).ok_or_else(|| unreadable.clone())?;
        if revival.short_of_memory {
            journal.give_history_back();
        }
        if journal.try_again(revival.by_fault) >= TRIES {
            let name = format!("{}/{}", kept.principal, kept.name);
            tracing::error!(
                on = name,
                "lives of the daemon die of a loop, which is set aside"
            );
            self.set_aside.lock().0.push(SetAside {
                name,
                _rest: (journal, records, needed, Arc::clone(&revival.revive)),
            });
            return Ok(None);
        }
        let (lifetime, is_over) = lifetime_of(kept.lifetime.as_ref(), &mut Clients::default());
        let keep = self.keep(id, &policy);
        let handle = Handle::start(Blueprint {
            id,
            name: kept.name,
            principal: kept.principal.parse()?,
            policy: Arc::new(policy),
            backend: backend.ok_or(unreadable)?,
            lifetime,
            limits: Arc::clone(&self.limits),
            services: Arc::clone(&self.services),
            memory: Arc::clone(&self.memory),
            keep,
            remains: Some(Remains {
                journal,
                records,
                needed,
                epoch,
                created: kept.created,
                told: revival.told.clone(),
                revive: Arc::clone(&revival.revive),
            }),
        })?;
        Ok(Some((handle, is_over)))
    }

    /// Returns the names of the loops that are set aside, because lives of the daemon died of them.
    pub fn set_aside(&self) -> Vec<String> {
        let set_aside = self.set_aside.lock();
        set_aside.0.iter().map(|one| one.name.clone()).collect()
    }

    /// Enters a loop of an earlier life in the tables.
    fn enter(self: &Arc<Self>, inner: &mut Inner, handle: Handle, is_over: bool) {
        let id = handle.id();
        let key = (handle.principal().clone(), handle.name().to_owned());
        inner.loops.insert(id, handle.clone());
        inner.names.insert(key, id);
        let lifetime = handle.lifetime();
        if let Some(process) = lifetime.process() {
            self.bind_to_process(inner, process, Some(id));
        }
        if lifetime.lease().is_some() {
            self.follow_lease(inner, handle.clone());
        }
        if is_over {
            let registry = Arc::clone(self);
            self.services.runtime.spawn(async move {
                registry
                    .lifetime_over(&handle, CloseReason::ProcessEnded)
                    .await;
            });
        }
    }
}
