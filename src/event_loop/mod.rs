//! One named loop: a thread that owns all of its state by value.
//!
//! It works in turns: wait on the backend, take its completions in the backend's
//! order, then due timers by deadline, then commands first in, first out. What a turn
//! starts is seen by a later one. Events and the replies to commands leave together
//! at its end: a reply is sent after its effect is readable.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::access::{Principal, ProcessKey};
use crate::clock::Now;
use crate::config::{Limits, Policy, Start};
use crate::driver::{self, Backend, Completion, Driver, Key};
use crate::error::Result;
use crate::event::{Kind, LoopState, LoopStateChanged, PolicyChanged, largest};
use crate::journal::{About, Journal, Outbox, Room};
use crate::proto::PausedSource;
use crate::watch::{Adoption, Notice, Notifier, Services};

mod adding;
mod broken;
mod command;
mod commands;
mod compare;
mod fence;
mod handle;
mod index;
mod ledger;
mod life;
mod mailbox;
mod pressure;
mod realtime;
mod record;
mod registration;
mod snapshot;
mod sweeps;
mod timers;
mod waiting;
mod waker;
mod watches;

pub use adding::Added;
pub use commands::{Page, Posting, WatchFilter, WatchName};
pub use fence::Rearmed;
pub use handle::Handle;
use ledger::Ledger;
use mailbox::{Deferred, LoopNotifier, Mailbox, Message, Reply};
use pressure::{EVENT_OVERHEAD, PausedKey, Pressure};
use realtime::{CLOCK, RealtimeClock};
pub use record::{Lifetime, Registration, TakenFd};
use registration::Registrations;
use snapshot::Snapshots;
pub use snapshot::{Part, Snapshot, Wanted};
use sweeps::{Sweep, Sweeps};
use timers::Timers;
use watches::Watches;

/// How much later than asked for the kernel may end a short wait of a loop, nanoseconds.
const TIMER_SLACK_NS: u64 = 1000;
/// What an event of the loop's own state takes.
const STATE_CHANGE: Room = Room::event(largest::LOOP_STATE);

/// Everything that a loop is made from.
#[derive(Debug)]
pub struct Blueprint {
    /// Never reused.
    pub id: u64,
    /// Unique among the owner's open loops.
    pub name: String,
    /// Whose it is.
    pub principal: Principal,
    /// By whose rules it was made.
    pub policy: Arc<Policy>,
    /// What it waits with.
    pub backend: Backend,
    /// The client process it is bound to; whoever makes it closes it when that ends.
    pub process: Option<ProcessKey>,
    /// The daemon's limits.
    pub limits: Arc<Limits>,
    /// What all loops share.
    pub services: Arc<Services>,
    /// The budget of all journals.
    pub memory: Arc<crate::journal::Memory>,
}

/// What is known of a loop from outside its thread.
#[derive(Debug)]
pub struct Shared {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) full_name: String,
    pub(super) principal: Principal,
    pub(super) policy: Arc<Policy>,
    pub(super) backend: Backend,
    pub(super) process: Option<ProcessKey>,
    pub(super) created: u64,
    pub(super) journal: Arc<Journal>,
    pub(super) state: AtomicU8,
    pub(super) watches: AtomicU64,
    pub(super) open_watches: AtomicU64,
    pub(super) turns: AtomicU64,
    /// Watches whose source is not read for want of room, those paused longest first.
    pub(super) paused: Mutex<BTreeMap<PausedKey, PausedSource>>,
    /// Once it is closed: snapshots that are not read to their ends.
    left: Mutex<Snapshots>,
}

/// The thread's side.
pub(super) struct EventLoop {
    shared: Arc<Shared>,
    limits: Arc<Limits>,
    services: Arc<Services>,
    notifier: Arc<dyn Notifier>,
    mailbox: Arc<Mailbox>,
    bell: waker::Bell,
    driver: Box<dyn Driver>,
    outbox: Outbox,
    timers: Timers,
    ledger: Ledger,
    now: Now,
    state: LoopState,
    /// Told the cursor of the loop's last event.
    closing: Option<Vec<Reply<crate::event::Cursor>>>,
    watches: Watches,
    registrations: Registrations,
    realtime: RealtimeClock,
    adoptions: Vec<Adoption>,
    /// Bounded by the calls that wait.
    fences: Vec<fence::Fence>,
    pressure: Pressure,
    snapshots: Snapshots,
    sweeps: Sweeps,
    /// A switch of the policy that there was no room to tell.
    unsaid_switch: Option<PolicyChanged>,
    /// Notices that came while the loop was stopped; bounded as notices are.
    held: Vec<(Key, Notice)>,
    /// Replies of this turn, sent once its events can be read.
    replies: Vec<Deferred>,
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop")
            .field("name", &self.shared.full_name)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl EventLoop {
    /// Starts the loop's thread.
    ///
    /// # Errors
    /// The system's: no descriptor, no thread, a backend that does not work after all.
    pub(super) fn start(blueprint: Blueprint) -> Result<Handle> {
        let Blueprint {
            id,
            name,
            principal,
            policy,
            backend,
            process,
            limits,
            services,
            memory,
        } = blueprint;
        let system = |error: &io::Error, step| crate::error::SystemError::from_io(error, step, "");
        let (mailbox, bell) = Mailbox::new(limits.mailbox, limits.mailbox_wait, memory.budget())
            .map_err(|errno| system(&errno.into(), "eventfd"))?;
        let driver =
            driver::open(backend, bell.eventfd()).map_err(|error| system(&error, "backend"))?;
        let journal = Journal::new(pressure::journal_limits(&policy, limits.consumers), &memory)?;
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
            set_aside_max: Ledger::set_aside_max(policy.journal_events, policy.journal_bytes),
            sources: 0,
            watches: 0,
            everywhere: Arc::clone(&services.watches),
        };
        let start = policy.start;
        let shared = Arc::new(Shared {
            id,
            full_name: format!("{principal}/{name}"),
            name,
            principal,
            policy,
            backend,
            process,
            created: now.realtime,
            journal: Arc::clone(&journal),
            state: AtomicU8::new(LoopState::Created as u8),
            watches: AtomicU64::new(0),
            open_watches: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            paused: Mutex::default(),
            left: Mutex::default(),
        });
        let mut event_loop = Self {
            shared: Arc::clone(&shared),
            limits,
            services,
            notifier: Arc::new(LoopNotifier(Arc::clone(&mailbox))),
            mailbox: Arc::clone(&mailbox),
            bell,
            driver,
            outbox: Outbox::new(journal),
            timers: Timers::default(),
            ledger,
            now,
            state: LoopState::Created,
            closing: None,
            watches: Watches::default(),
            registrations: Registrations::default(),
            realtime: RealtimeClock::default(),
            adoptions: Vec::new(),
            fences: Vec::new(),
            pressure: Pressure::default(),
            snapshots: Snapshots::new(memory.budget()),
            sweeps: Sweeps::default(),
            unsaid_switch: None,
            held: Vec::new(),
            replies: Vec::new(),
        };
        // For its stop and its close.
        event_loop.outbox.reserve(STATE_CHANGE.times(2))?;
        // Before anybody can hold its handle: what `New` answers is what was made.
        event_loop.enter(LoopState::Created);
        if start == Start::Running {
            event_loop.enter(LoopState::Running);
        }
        event_loop.commit();
        let thread = std::thread::Builder::new()
            .name(format!("loop-{id}"))
            .stack_size(512 * 1024);
        thread
            .spawn(move || event_loop.run())
            .map_err(|error| system(&error, "thread"))?;
        Ok(Handle::new(shared, mailbox))
    }

    fn run(mut self) {
        // Also if a turn panics: nobody may wait for a thread that is gone.
        let (mailbox, shared) = (Arc::clone(&self.mailbox), Arc::clone(&self.shared));
        let _over = scopeguard::guard((mailbox, shared), |(mailbox, shared)| {
            // The enum's values are small numbers.
            shared
                .state
                .store(LoopState::Closed as u8, Ordering::Release);
            mailbox.close();
            shared.journal.close();
        });
        // Short waits end late by the thread's slack (prctl(2), PR_SET_TIMERSLACK), 50 µs unless
        // said; where it cannot be set, they do.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS));
        let mut completions = Vec::new();
        let mut messages = Vec::new();
        // Writes to the eventfd that are on their way: one for each kick out of a sleep.
        let mut owed: u64 = 0;
        while !self.is_over() {
            if self.timers.follows_realtime() && self.is_polled() && !self.realtime.is_followed() {
                self.follow_clock();
            }
            let slept = self.mailbox.waker.sleep();
            // What came while the loop was stopped is told as it runs again.
            let told = self.held.is_empty() || !self.is_polled();
            let idle = told && self.fences.is_empty() && !self.has_more_to_do();
            let timeout = if slept && idle && self.mailbox.is_empty() {
                self.until_next()
            } else {
                Some(Duration::ZERO)
            };
            self.begin_look();
            let waited = self.wait(timeout, &mut completions);
            let found = completions.len();
            owed += u64::from(self.mailbox.waker.awake() && slept);
            self.outbox.set_exposed(self.driver.exposed() as u64);
            if owed > 0 {
                owed = owed.saturating_sub(self.bell.drain());
            }
            // After the kicks were taken: one that comes from here on ends the next wait.
            self.outbox.refresh();
            self.now = Now::sample();
            self.sweeps.begin_turn();
            if let Err(error) = waited {
                self.broken(&error);
            }
            for completion in completions.drain(..) {
                self.completed(completion);
            }
            if self.takes_in() {
                self.fire_timers();
            }
            if self.takes_in() {
                for (key, notice) in std::mem::take(&mut self.held) {
                    self.notice(key, notice);
                }
            }
            self.mailbox.take(self.limits.turn_events, &mut messages);
            for message in messages.drain(..) {
                self.received(message);
            }
            self.go_on();
            self.tidy_snapshots();
            self.expire();
            self.outbox.expire(self.now);
            self.close_if_done();
            self.commit();
            // What was let go on may have something to tell, and what others acknowledged since.
            while self.balance() && !self.is_over() {
                self.commit();
            }
            self.end_look(found);
        }
        self.leave_snapshots();
    }

    fn is_over(&self) -> bool {
        self.state == LoopState::Closed
    }

    /// Whether sources are polled and timers fire.
    fn is_polled(&self) -> bool {
        self.state == LoopState::Running || self.closing.is_some()
    }

    /// Whether what sources and timers have to tell is taken: a loop that closes while it is stopped
    /// first ends all of its watches.
    fn takes_in(&self) -> bool {
        self.is_polled() && (self.state == LoopState::Running || !self.sweeps.is_ending())
    }

    fn completed(&mut self, completion: Completion) {
        if completion.id.watch == CLOCK.watch {
            self.clock_was_set();
            return;
        }
        let Some(slot) = self.watches.slot(completion.id.watch) else {
            return;
        };
        let record = &mut self.watches[slot];
        if completion.last {
            let lane = completion.id.lane;
            record.seat.ops.retain(|(live, _)| *live != lane);
        }
        self.tell(slot, |watch, cx| {
            watch.complete(cx, completion.id.lane, completion.done);
        });
    }

    fn fire_timers(&mut self) {
        for _ in 0..self.limits.turn_events {
            let Some((key, id)) = self.timers.due(self.now) else {
                break;
            };
            let Some(slot) = self.watches.slot(key) else {
                continue;
            };
            let record = &mut self.watches[slot];
            if record.alarm == Some(id) {
                record.alarm = None;
                record.seat.alarm = None;
                self.tell(slot, |watch, cx| watch.alarm(cx));
            }
        }
    }

    fn received(&mut self, message: Message) {
        match message {
            Message::Command(command, held) => {
                self.carry_out(command);
                drop(held);
            }
            Message::Internal(command) => self.carry_out(command),
            Message::Notice(key, notice) if self.hears(key) => self.notice(key, notice),
            // What sources have to tell waits until they are polled again.
            Message::Notice(key, notice) => self.held.push((key, notice)),
            Message::ClientEnded(process) => self.sweep(Sweep::ClientEnded(process)),
        }
    }

    /// Whether a watch is told of what was done elsewhere: also on a stopped loop if it ends.
    fn hears(&self, key: Key) -> bool {
        let closing = |slot| self.watches[slot].closing;
        self.takes_in() || self.watches.slot(key).is_some_and(closing)
    }

    fn notice(&mut self, key: Key, notice: Notice) {
        if let Some(slot) = self.watches.slot(key) {
            self.tell(slot, |watch, cx| watch.notice(cx, notice));
        }
    }

    fn enter(&mut self, state: LoopState) -> u64 {
        self.state = state;
        // The enum's values are small numbers.
        self.shared.state.store(state as u8, Ordering::Release);
        let changed = LoopStateChanged {
            state: state.into(),
        };
        self.emit(Kind::LoopStateChanged(changed))
    }

    /// Appends an event of the loop itself.
    fn emit(&mut self, kind: Kind) -> u64 {
        self.outbox.push(self.now, About::default(), kind)
    }

    /// Makes the turn's events readable, then sends its replies.
    fn commit(&mut self) {
        self.outbox.commit();
        let shared = &self.shared;
        shared.turns.fetch_add(1, Ordering::Relaxed);
        let (watches, open) = (self.watches.len(), self.watches.open());
        shared.watches.store(watches as u64, Ordering::Relaxed);
        shared.open_watches.store(open as u64, Ordering::Relaxed);
        for reply in self.replies.drain(..) {
            reply();
        }
    }
}
