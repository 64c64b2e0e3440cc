//! A named loop: a thread that owns all of the loop's state by value.
//!
//! The loop works in turns: it waits on the backend, takes the completions in the backend's order,
//! fires due timers by deadline, then carries out commands first in, first out. What a turn starts
//! is seen by a later turn. At the end of a turn its events become readable, then its replies are
//! sent: so a reply is sent after its effect can be read.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::access::Principal;
use crate::clock::{Jumps, Now};
use crate::config::{Limits, Policy, Survives};
use crate::driver::{Backend, Completion, Driver, Key, Relays};
use crate::event::{CloseReason, Kind, LoopState, LoopStateChanged, PolicyChanged, largest};
use crate::faults::{self, Point};
use crate::journal::{About, Journal, Outbox, Room};
use crate::paths::Hub;
use crate::proto::PausedSource;
use crate::state::Keep;
use crate::sync::Mutex;
use crate::watch::{Adoption, Afterwards, Notice, Notifier, Services, TimeChange};

mod adding;
mod broken;
mod command;
mod commands;
mod compare;
mod direct;
mod fence;
mod handle;
mod kept;
mod ledger;
mod life;
mod lifetime;
mod mailbox;
mod pressure;
mod realtime;
mod record;
mod recovery;
mod registration;
mod snapshot;
mod start;
mod sweeps;
mod timers;
mod update;
mod waiting;
mod waker;
mod watches;

pub use adding::Added;
pub use commands::{LoopEnd, Page, Posting, WatchFilter, WatchName};
pub use fence::Rearmed;
pub use handle::Handle;
pub use kept::{Clients, FoundWatch, descriptors, kept_lifetime_of, lifetime_of, listening};
use ledger::Ledger;
pub use lifetime::{Bound, BoundTo, KEPT, LEASE_MAX, LEASE_MIN, Lease, Lifetime, LifetimeEnd};
use mailbox::{Deferred, Mailbox, Message, Reply};
use pressure::{EVENT_OVERHEAD, PausedKey, Pressure};
use realtime::{CLOCK, RealtimeClock};
pub use record::{Registration, TakenFd};
pub use recovery::{Remains, Revive};
use registration::Registrations;
use snapshot::Snapshots;
pub use snapshot::{Part, Snapshot, Wanted};
use sweeps::{Sweep, Sweeps};
use timers::Timers;
pub use update::{Update, UpdateOutcome};
use watches::Watches;

/// The timer slack of a loop's thread in nanoseconds: how much late the kernel may end a short
/// wait.
const TIMER_SLACK_NS: u64 = 1000;
/// The time that alarms may take of a turn, in nanoseconds, and after how many of them it is looked
/// at.
const ALARMS_TIME_NS: u64 = 5_000_000;
const ALARMS_AT_ONCE: usize = 8;
/// The room of one `LoopStateChanged` event.
const STATE_CHANGE: Room = Room::event(largest::LOOP_STATE);

/// The arguments for starting a loop.
#[derive(Debug)]
pub struct Blueprint {
    /// The loop's id, which is never reused.
    pub id: u64,
    /// The name, unique among the open loops of the owner.
    pub name: String,
    /// The owner.
    pub principal: Principal,
    /// The policy that the loop is made with.
    pub policy: Arc<Policy>,
    /// The backend that the loop waits on.
    pub backend: Backend,
    /// The lifetime that the loop is bound to. The maker of the loop must act at its end.
    pub lifetime: Lifetime,
    /// The limits of the daemon.
    pub limits: Arc<Limits>,
    /// The services that all loops share.
    pub services: Arc<Services>,
    /// The memory budget of all journals.
    pub memory: Arc<crate::journal::Memory>,
    /// Where later lives of the daemon find it.
    pub keep: Keep,
    /// What an earlier life has left of it; `None` for a new loop.
    pub remains: Option<Remains>,
}

/// The state of a loop that other threads can read.
#[derive(Debug)]
pub struct Shared {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) full_name: String,
    pub(super) principal: Principal,
    pub(super) policy: Arc<Policy>,
    pub(super) backend: Backend,
    /// Changed by the loop's thread, and when a lease is renewed.
    pub(super) lifetime: Mutex<Lifetime>,
    pub(super) created: u64,
    pub(super) survives: Survives,
    pub(super) journal: Arc<Journal>,
    /// The writer of the journal. The loop's thread holds the lock, except while it waits.
    pub(super) outbox: Arc<parking_lot::Mutex<Outbox>>,
    pub(super) state: AtomicU8,
    pub(super) watches: AtomicU64,
    pub(super) open_watches: AtomicU64,
    pub(super) turns: AtomicU64,
    /// The watches whose source is paused because the journal has no room, the longest paused
    /// first.
    pub(super) paused: Mutex<BTreeMap<PausedKey, PausedSource>>,
    /// What watches the paths of the loop's watches; `None` once the loop is closed.
    paths: Mutex<Option<Arc<Hub>>>,
    /// The snapshots that were not read to their end when the loop closed.
    snapshots_left: Mutex<Snapshots>,
    /// Held while a watch is updated, see [`Handle::turn_to_update`].
    updates: update::Turns,
}

/// The state that the loop's thread owns.
pub(super) struct EventLoop {
    shared: Arc<Shared>,
    limits: Arc<Limits>,
    services: Arc<Services>,
    notifier: Arc<dyn Notifier>,
    mailbox: Arc<Mailbox>,
    wakeup: waker::WakeupFd,
    driver: Box<dyn Driver>,
    outbox: direct::Held,
    timers: Timers,
    ledger: Ledger,
    now: Now,
    jumps: Jumps,
    state: LoopState,
    /// The calls that wait for the loop to close, which get the cursor of its last event. Present
    /// once the loop is closing.
    closing: Option<Vec<Reply<crate::event::Cursor>>>,
    /// Why and how it closes.
    closes: LoopEnd,
    watches: Watches,
    registrations: Registrations,
    realtime: RealtimeClock,
    adoptions: Vec<Adoption>,
    /// What the next commit does.
    afterwards: Vec<Afterwards>,
    relays: Relays,
    /// The fences that wait. Their number is bounded by the calls that wait.
    fences: Vec<fence::Fence>,
    pressure: Pressure,
    snapshots: Snapshots,
    sweeps: Sweeps,
    /// A switch of the policy for which the journal had no room yet.
    pending_switch: Option<PolicyChanged>,
    /// Notices that came while the loop was stopped. Their number is bounded as that of all
    /// notices.
    held_notices: Vec<(Key, Notice)>,
    /// The tasks that wait for the ends of client processes. They end with the loop.
    clients: JoinSet<()>,
    /// The replies of this turn, which are sent once its events can be read.
    replies: Vec<Deferred>,
    /// What later lives find of the loop; `None` if they find nothing.
    kept: Option<kept::Kept>,
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
    fn run(mut self) {
        // Runs also if a turn panics, so that no caller waits for a thread that is gone.
        let (mailbox, shared) = (Arc::clone(&self.mailbox), Arc::clone(&self.shared));
        let _over = scopeguard::guard((mailbox, shared), |(mailbox, shared)| {
            // The enum's values are small numbers.
            shared
                .state
                .store(LoopState::Closed as u8, Ordering::Release);
            mailbox.close();
            shared.journal.close();
            drop(shared.paths.lock().take());
        });
        // Short waits end late by the thread's timer slack (prctl(2), PR_SET_TIMERSLACK), 50 µs by
        // default. If the slack cannot be set, waits end that much later.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS));
        let mut completions = Vec::new();
        let mut messages = Vec::new();
        // Writes to the eventfd that have not been drained yet: one for each kick that ended a
        // sleep.
        let mut wakes_to_drain: u64 = 0;
        while !self.is_over() {
            if self.timers.can_jump() && self.is_polled() && !self.realtime.is_followed() {
                self.follow_clock();
            }
            let slept = self.mailbox.waker.sleep();
            // Notices that were held while the loop was stopped are handled once it runs again.
            let no_due_notices = self.held_notices.is_empty() || !self.is_polled();
            let idle = no_due_notices && self.fences.is_empty() && !self.has_more_to_do();
            let timeout = if slept && idle && self.mailbox.is_empty() {
                self.time_until_next()
            } else {
                Some(Duration::ZERO)
            };
            self.start_fences();
            self.driver.committed();
            faults::point(Point::ReceiptsForgotten);
            let waited = self.wait(timeout, &mut completions);
            let found = completions.len();
            wakes_to_drain += u64::from(self.mailbox.waker.awake() && slept);
            self.outbox.set_exposed(self.driver.exposed() as u64);
            if wakes_to_drain > 0 {
                wakes_to_drain = wakes_to_drain.saturating_sub(self.wakeup.drain());
            }
            if self.driver.is_lossy() || self.relays.is_lossy() {
                self.outbox.lose();
            }
            // Called after the eventfd was drained: a later kick ends the next wait.
            self.outbox.refresh();
            self.sample_clocks();
            self.sweeps.begin_turn();
            if let Err(error) = waited {
                self.backend_failed(&error);
            }
            for completion in completions.drain(..) {
                self.handle_completion(completion);
            }
            if self.takes_events() {
                self.fire_timers();
            }
            if self.takes_events() {
                for (key, notice) in std::mem::take(&mut self.held_notices) {
                    self.notice(key, notice);
                }
            }
            self.mailbox.take(self.limits.turn_events, &mut messages);
            for message in messages.drain(..) {
                self.handle_message(message);
            }
            self.continue_sweeps();
            self.tidy_snapshots();
            self.remove_expired();
            self.expire_leases();
            self.outbox.expire(self.now);
            self.close_if_done();
            self.commit();
            // Resumed watches may append events, and readers may have acknowledged events since, so
            // pauses are updated until nothing changes.
            while self.update_pauses() && !self.is_over() {
                self.commit();
            }
            self.answer_fences(found);
        }
        self.share_snapshots();
    }

    fn sample_clocks(&mut self) {
        let before = std::mem::replace(&mut self.now, Now::sample());
        self.jumps.observe(before, self.now, Now::sample);
    }

    fn is_over(&self) -> bool {
        self.state == LoopState::Closed
    }

    /// Returns whether sources are polled and timers fire.
    fn is_polled(&self) -> bool {
        self.state == LoopState::Running || self.closing.is_some()
    }

    /// Returns whether completions, timers and notices are handled. A loop that closes while it is
    /// stopped first ends all of its watches.
    fn takes_events(&self) -> bool {
        self.is_polled() && (self.state == LoopState::Running || !self.sweeps.is_ending())
    }

    fn handle_completion(&mut self, completion: Completion) {
        if completion.id.watch == CLOCK.watch {
            self.clock_was_set();
            return;
        }
        let Some(slot) = self.watches.slot(completion.id.watch) else {
            return;
        };
        let record = &mut self.watches[slot];
        if completion.last {
            record.control.sources.end(completion.id.lane);
        }
        self.with_watch(slot, |watch, cx| {
            watch.complete(cx, completion.id.lane, completion.done);
        });
    }

    /// Fires due alarms, for a bounded time: the next turn goes on with those that are left.
    fn fire_timers(&mut self) {
        for count in 0..self.limits.turn_events {
            if count % ALARMS_AT_ONCE == ALARMS_AT_ONCE - 1
                && Now::sample().monotonic > self.now.monotonic + ALARMS_TIME_NS
            {
                break;
            }
            let Some((key, id)) = self.timers.due(self.now) else {
                break;
            };
            let Some(slot) = self.watches.slot(key) else {
                continue;
            };
            let record = &mut self.watches[slot];
            if record.alarm == Some(id) {
                record.alarm = None;
                self.with_watch(slot, |watch, cx| watch.alarm(cx));
                // What is due now may have found no room.
                if let Some(reason) = self.pressure.full {
                    self.pause_source(slot, reason);
                }
            }
        }
    }

    fn handle_message(&mut self, message: Message) {
        match message {
            Message::Command(command, held) => {
                self.carry_out(command);
                drop(held);
            }
            Message::Internal(command) => self.carry_out(command),
            Message::Notice(key, notice) if self.takes_notice_for(key) => self.notice(key, notice),
            // Notices for other watches wait until sources are polled again.
            Message::Notice(key, notice) => self.held_notices.push((key, notice)),
            Message::ClientEnded(process) => self.sweep(Sweep::ClientEnded(process)),
            Message::ZonesChanged => self.sweep_time(TimeChange::Zones),
        }
    }

    /// Returns whether a notice is handled now. On a stopped loop, only closing watches get
    /// notices.
    fn takes_notice_for(&self, key: Key) -> bool {
        let closing = |slot| self.watches[slot].closing;
        self.takes_events() || self.watches.slot(key).is_some_and(closing)
    }

    fn notice(&mut self, key: Key, notice: Notice) {
        if let Some(slot) = self.watches.slot(key) {
            self.with_watch(slot, |watch, cx| watch.notice(cx, notice));
        }
    }

    fn enter(&mut self, state: LoopState, reason: CloseReason) -> u64 {
        self.state = state;
        // The enum's values are small numbers.
        self.shared.state.store(state as u8, Ordering::Release);
        let changed = LoopStateChanged {
            state: state.into(),
            reason: reason.into(),
        };
        self.emit(Kind::LoopStateChanged(changed))
    }

    /// Appends an event of the loop itself. Returns its sequence number.
    fn emit(&mut self, kind: Kind) -> u64 {
        self.outbox.push(self.now, About::default(), kind)
    }

    /// Makes the turn's events readable, then sends its replies.
    fn commit(&mut self) {
        faults::point(Point::EventsAppended);
        self.keep_changes();
        faults::point(Point::ChangesWritten);
        self.outbox.commit();
        faults::point(Point::EventsReadable);
        self.changes_are_kept();
        faults::point(Point::RecordsFreed);
        self.relays.committed();
        for step in self.afterwards.drain(..) {
            let closes = step.closes();
            step.run(&self.services);
            if let (Some(number), Some(kept)) = (closes, &mut self.kept) {
                kept.forget_accepted(number);
            }
        }
        let shared = &self.shared;
        shared.turns.fetch_add(1, Ordering::Relaxed);
        let (watches, open) = (self.watches.len(), self.watches.open());
        shared.watches.store(watches as u64, Ordering::Relaxed);
        shared.open_watches.store(open as u64, Ordering::Relaxed);
        if !self.replies.is_empty() {
            faults::point(Point::BeforeReplies);
        }
        for reply in self.replies.drain(..) {
            reply();
            faults::point(Point::Replied);
        }
    }
}
