//! Starts a loop: a new one, or one of an earlier life of the daemon.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64};

use tokio::task::JoinSet;

use super::ledger::Ledger;
use super::lifetime::{KEPT, LifetimeEnd};
use super::mailbox::{LoopNotifier, Mailbox};
use super::pressure::{self, Pressure};
use super::realtime::RealtimeClock;
use super::recovery::{self, Opened};
use super::registration::Registrations;
use super::snapshot::Snapshots;
use super::sweeps::Sweeps;
use super::timers::Timers;
use super::watches::Watches;
use super::{Blueprint, EventLoop, Handle, LoopEnd, STATE_CHANGE, Shared, kept, update};
use crate::clock::{Jumps, Now};
use crate::config::{Start, Survives};
use crate::descriptors;
use crate::driver::{self, Relays};
use crate::error::Result;
use crate::event::{CloseReason, LoopState};
use crate::journal::{Journal, Room};
use crate::paths::{self, Hub};
use crate::poison::Critical;
use crate::state::Keep;
use crate::sync::Mutex;

impl EventLoop {
    /// Starts the loop's thread.
    ///
    /// # Errors
    /// The system refused a descriptor, a thread or random bytes, or the backend does not work.
    pub(super) fn start(blueprint: Blueprint) -> Result<Handle> {
        let Blueprint {
            id,
            name,
            principal,
            policy,
            backend,
            lifetime,
            limits,
            services,
            memory,
            keep,
            remains,
        } = blueprint;
        let system = |error: &io::Error, step| crate::error::SystemError::from_io(error, step, "");
        let (mailbox, wakeup) = Mailbox::new(limits.mailbox, limits.mailbox_wait, memory.budget())
            .map_err(|errno| system(&errno.into(), "eventfd"))?;
        let driver = driver::open(backend, wakeup.eventfd(), &keep)
            .map_err(|error| system(&error, "backend"))?;
        let journal_limits = pressure::journal_limits(&policy, limits.consumers);
        let found = match (&keep, remains) {
            (Keep::Kept(arena, owner), Some(remains)) => Some(remains.look(arena, *owner)),
            _ => None,
        };
        let Opened {
            journal,
            outbox,
            kept,
            before,
        } = match found {
            Some(found) => found.open(journal_limits, &memory)?,
            None => {
                let (journal, outbox) = Journal::open(journal_limits, &memory, &keep)?;
                let kept = match &keep {
                    Keep::Kept(arena, owner) => Some(kept::Kept::new(Arc::clone(arena), *owner)),
                    Keep::Own => None,
                };
                Opened {
                    journal,
                    outbox,
                    kept,
                    before: None,
                }
            }
        };
        let kicked = Arc::downgrade(&mailbox);
        journal.call_on_change(move || {
            if let Some(mailbox) = kicked.upgrade() {
                mailbox.waker.kick();
            }
        });
        let now = Now::sample();
        let most = |limit: Option<u64>| limit.and_then(|n| usize::try_from(n).ok());
        let ledger = Ledger {
            sources_max: most(policy.max_sources)
                .unwrap_or(usize::MAX)
                .min(driver.room()),
            watches_max: most(Some(policy.max_watches)).unwrap_or(usize::MAX),
            reserved_max: Ledger::reserved_max(policy.journal_events, policy.journal_bytes),
            sources: 0,
            watches: 0,
            everywhere: Arc::clone(&services.watches),
        };
        let hub = Hub::new(paths::Limits {
            watches: limits.path_watches,
            subscriptions: limits.path_watches,
            ..paths::Limits::default()
        });
        let start = policy.start;
        let outbox = Arc::new(parking_lot::Mutex::new(outbox));
        let shared = Arc::new(Shared {
            id,
            full_name: format!("{principal}/{name}"),
            name,
            principal,
            policy,
            backend,
            lifetime: Mutex::new(lifetime),
            created: before
                .as_ref()
                .map_or(now.realtime, |before| before.created),
            survives: match keep {
                Keep::Own => Survives::None,
                Keep::Kept(..) => Survives::Crash,
            },
            journal,
            outbox: Arc::clone(&outbox),
            state: AtomicU8::new(LoopState::Created as u8),
            watches: AtomicU64::new(0),
            open_watches: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            paused: Mutex::default(),
            paths: Mutex::new(Some(Arc::new(hub))),
            snapshots_left: Mutex::default(),
            updates: update::Turns::default(),
        });
        let critical = Critical::new();
        let mut event_loop = Self {
            shared: Arc::clone(&shared),
            limits,
            services,
            notifier: Arc::new(LoopNotifier(Arc::clone(&mailbox))),
            mailbox: Arc::clone(&mailbox),
            wakeup,
            driver,
            outbox: outbox.lock_arc(),
            timers: Timers::default(),
            ledger,
            now,
            jumps: Jumps::default(),
            state: LoopState::Created,
            closing: None,
            closes: LoopEnd::default(),
            watches: Watches::default(),
            registrations: Registrations::default(),
            realtime: RealtimeClock::default(),
            adoptions: Vec::new(),
            afterwards: Vec::new(),
            relays: Relays::new(keep.clone()),
            fences: Vec::new(),
            pressure: Pressure::default(),
            snapshots: Snapshots::new(memory.budget()),
            sweeps: Sweeps::default(),
            pending_switch: None,
            held_notices: Vec::new(),
            clients: JoinSet::new(),
            replies: Vec::new(),
            kept,
        };
        // These events are appended before anybody has a handle, so that the reply of NewEventLoop
        // shows the state that the loop was made in.
        let transfers = match before {
            Some(before) => event_loop.go_on(before),
            None => {
                let need = event_loop.own_need(LoopState::Created);
                event_loop.outbox.reserve(need)?;
                event_loop.enter(LoopState::Created, CloseReason::Unspecified);
                if start == Start::Running {
                    event_loop.enter(LoopState::Running, CloseReason::Unspecified);
                }
                recovery::Transfers::default()
            }
        };
        event_loop.commit();
        event_loop.outbox.has_gone_on();
        drop((transfers, critical));
        let thread = std::thread::Builder::new()
            .name(format!("loop-{id}"))
            .stack_size(512 * 1024);
        thread
            .spawn(move || {
                let _critical = Critical::new();
                event_loop.run();
                drop(descriptors::Closing);
            })
            .map_err(|error| system(&error, "thread"))?;
        Ok(Handle::new(shared, mailbox))
    }

    /// Returns the room that a loop in this state needs for its own end.
    pub(super) fn own_need(&self, state: LoopState) -> Room {
        // One event for its stop, unless that is told, and one for its close.
        let changes = if state == LoopState::Stopped { 1 } else { 2 };
        let need = STATE_CHANGE.times(changes);
        match self.shared.lifetime.lock().at_end() {
            LifetimeEnd::Keep => need + Room::event(KEPT),
            _ => need,
        }
    }
}
