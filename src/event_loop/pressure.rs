//! Pauses sources when the journal has no room for what they would read, and resumes them when it
//! has.

use std::collections::VecDeque;

use super::EventLoop;
use crate::clock;
use crate::config::{History, Policy};
use crate::driver::Budget;
use crate::journal::{Level, Limits, Room, WaitsFor};
use crate::proto::{self, PausedSource, SourcePause, SourcePauseReason};

/// The bytes that an event takes in the journal, beyond its text and payload.
pub(super) const EVENT_OVERHEAD: u64 = 128;

/// The room below which no source is read.
const LOW: Room = Room {
    events: 2,
    bytes: 8 * 1024,
};

/// The budget of a turn while the journal holds more than its limit.
pub(super) const BEHIND: Budget = Budget {
    completions: 64,
    bytes: 16 * 1024,
};

/// The budget of a turn that only ends cancelled operations.
pub(super) const CANCELLED_ONLY: Budget = Budget {
    completions: 0,
    bytes: 0,
};

/// The sources that are paused because the journal has no room.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// The reason why no source of the loop is read. `None`: only sources of watches without room
    /// of their own are paused.
    pub(super) full: Option<SourcePauseReason>,
    /// The ids of watches whose own pause may have to change.
    wait_changes: VecDeque<u64>,
}

impl Pressure {
    pub(super) fn has_more_to_do(&self) -> bool {
        !self.wait_changes.is_empty()
    }
}

/// The time since which a source is paused, in seconds and nanoseconds, and the id of its watch.
pub(super) type PausedKey = (i64, i32, u64);

pub(super) fn paused_key(watch: u64, pause: &SourcePause) -> PausedKey {
    let since = pause.since.unwrap_or_default();
    (since.seconds, since.nanos, watch)
}

/// Returns the limits that a policy sets for a journal.
pub(super) fn journal_limits(policy: &Policy, consumers: usize) -> Limits {
    let share = policy.journal_watch_bytes;
    Limits {
        events: policy.journal_events,
        bytes: policy.journal_bytes,
        watch_bytes: share.unwrap_or(policy.journal_bytes / 4),
        history: policy.history,
        watch_keep: match policy.history {
            History::Kept => policy.journal_watch_keep,
            History::None => 0,
        },
        attached_bytes: policy.attached_bytes,
        attached_patience: policy.attached_patience,
        when_full: policy.when_full,
        consumers,
        consumer_ttl: policy.consumer_ttl,
    }
}

/// Converts the setting for clients.
pub(super) const fn history_to_proto(history: History) -> proto::History {
    match history {
        History::Kept => proto::History::Kept,
        History::None => proto::History::None,
    }
}

impl EventLoop {
    /// Returns the budget of this turn: half of the room is for bytes that are read, half for the
    /// events around them.
    pub(super) fn budget(&self) -> Budget {
        // The values are bounded by the configuration, so they fit.
        let fit = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let most = self.limits.turn_events;
        if self.pressure.full.is_some() && self.sweeps.is_holding() {
            return CANCELLED_ONLY;
        }
        if self.pressure.full.is_some() {
            // No source is read. Other operations complete into reserved room.
            return Budget {
                completions: most,
                bytes: 1,
            };
        }
        if self.outbox.is_behind() {
            return BEHIND;
        }
        let room = self.outbox.room();
        let events = room.events.min(room.bytes / 2 / EVENT_OVERHEAD);
        let bytes = self.outbox.turn_bytes() / 2;
        Budget {
            completions: most.min(fit(events)),
            bytes: fit(bytes.min(self.limits.turn_bytes)),
        }
    }

    /// Pauses sources without room in the journal and resumes those with room. Returns whether the
    /// journal changed, so that the turn must commit again.
    pub(super) fn update_pauses(&mut self) -> bool {
        let before = (self.outbox.newest(), self.outbox.is_synchronized());
        self.pressure
            .wait_changes
            .extend(self.outbox.take_wait_changes());
        let reason = match self.outbox.level(LOW) {
            Level::Ample => None,
            Level::Enough => self.pressure.full,
            Level::Full => Some(self.pressure.full.unwrap_or(SourcePauseReason::JournalFull)),
            Level::OutOfMemory => Some(self.pressure.full.unwrap_or(SourcePauseReason::Memory)),
        };
        if self.pressure.full != reason {
            self.pressure.full = reason;
            self.outbox.set_sources_paused(reason.is_some());
            self.sweep_sources();
            if reason.is_none()
                && let Some(earlier) = self.pending_switch.take()
            {
                self.policy_changed(earlier);
            }
        }
        while self.sweeps.left > 0
            && let Some(watch) = self.pressure.wait_changes.pop_front()
        {
            self.sweeps.left -= 1;
            if self.pressure.full.is_none()
                && let Some(slot) = self.watches.by_id(watch)
            {
                self.pause_alone(slot);
            }
        }
        before != (self.outbox.newest(), self.outbox.is_synchronized())
    }

    /// Pauses the source of a watch that waits for its own readers or consumers, or resumes it.
    /// Other sources are not affected.
    pub(super) fn pause_alone(&mut self, slot: usize) {
        let Some(record) = self.watches.get(slot) else {
            return;
        };
        match self.outbox.waits_for(record.id()) {
            Some(WaitsFor::Readers) => self.pause_source(slot, SourcePauseReason::Readers),
            Some(WaitsFor::Consumers) => self.pause_source(slot, SourcePauseReason::WatchShare),
            None => self.resume_source(slot),
        }
    }

    pub(super) fn pause_source(&mut self, slot: usize, reason: SourcePauseReason) {
        let since = Some(clock::timestamp(self.now.realtime));
        let has_source = self.with_watch(slot, |watch, cx| watch.hold(cx, true));
        let Some(record) = self.watches.get_mut(slot) else {
            return;
        };
        if has_source != Some(true) || record.is_closed() {
            return;
        }
        let pause = record.rare_or_insert().paused.get_or_insert_default();
        pause.reason = reason.into();
        pause.since = pause.since.or(since);
        let pause = *pause;
        let key = paused_key(record.id(), &pause);
        let pause = Some(pause);
        let paused = PausedSource {
            watch_id: record.id(),
            name: record.name_text(),
            pause,
        };
        self.shared.paused.lock().insert(key, paused);
    }

    fn resume_source(&mut self, slot: usize) {
        self.keep_for_snapshots(slot);
        if let Some(record) = self.watches.get_mut(slot)
            && let Some(pause) = record.unpause()
        {
            let key = paused_key(record.id(), &pause);
            self.shared.paused.lock().remove(&key);
        }
        self.with_watch(slot, |watch, cx| watch.hold(cx, false));
    }
}
