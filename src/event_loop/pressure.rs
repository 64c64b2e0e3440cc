//! Reading only as much as the journal has room for: sources pause when it is full, and go on by
//! themselves.

use std::collections::VecDeque;

use super::EventLoop;
use crate::clock;
use crate::config::{History, Policy};
use crate::driver::Budget;
use crate::journal::{Level, Limits, Room, WaitsFor};
use crate::proto::{self, PausedSource, SourcePause, SourcePauseReason};

/// What an event takes in the journal beside its text and bytes.
pub(super) const EVENT_OVERHEAD: u64 = 128;

/// With less room than this no source is read.
const LOW: Room = Room {
    events: 2,
    bytes: 8 * 1024,
};

/// What a turn takes while the journal holds more than its budget.
pub(super) const BEHIND: Budget = Budget {
    completions: 64,
    bytes: 16 * 1024,
};

/// What a turn takes that only ends what was cancelled.
pub(super) const NOTHING: Budget = Budget {
    completions: 0,
    bytes: 0,
};

/// Which sources are not read for want of room in the journal.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Why no source of the loop is read; `None`: those with room of their own are.
    pub(super) full: Option<SourcePauseReason>,
    /// Watches whose own pause has to be looked at.
    crossed: VecDeque<u64>,
}

impl Pressure {
    pub(super) fn has_more_to_do(&self) -> bool {
        !self.crossed.is_empty()
    }
}

/// Since when a source is paused, seconds and nanoseconds, and whose it is.
pub(super) type PausedKey = (i64, i32, u64);

pub(super) fn paused_key(watch: u64, pause: &SourcePause) -> PausedKey {
    let since = pause.since.unwrap_or_default();
    (since.seconds, since.nanos, watch)
}

/// The budget that a policy gives a journal.
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

/// As shown to clients.
pub(super) const fn told(history: History) -> proto::History {
    match history {
        History::Kept => proto::History::Kept,
        History::None => proto::History::None,
    }
}

impl EventLoop {
    /// What this turn may take: half of the room for what is read, half for what is around it.
    pub(super) fn budget(&self) -> Budget {
        // A turn's bounds are of the configuration: they fit.
        let fit = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let most = self.limits.turn_events;
        if self.pressure.full.is_some() && self.sweeps.is_holding() {
            return NOTHING;
        }
        if self.pressure.full.is_some() {
            // Nothing reads; what else completes has room set aside.
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

    /// Pauses sources that there is no room for, and lets go on those there is. Says whether
    /// the journal has to hear of it.
    pub(super) fn balance(&mut self) -> bool {
        let before = (self.outbox.newest(), self.outbox.is_settled());
        self.pressure.crossed.extend(self.outbox.crossed());
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
                && let Some(unsaid) = self.unsaid_switch.take()
            {
                self.policy_changed(unsaid);
            }
        }
        while self.sweeps.left > 0
            && let Some(watch) = self.pressure.crossed.pop_front()
        {
            self.sweeps.left -= 1;
            if self.pressure.full.is_none()
                && let Some(slot) = self.watches.by_id(watch)
            {
                self.pause_alone(slot);
            }
        }
        before != (self.outbox.newest(), self.outbox.is_settled())
    }

    /// Pauses the source of a watch that waits for somebody alone; others' go on.
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
        let has_source = self.tell(slot, |watch, cx| watch.hold(cx, true));
        let Some(record) = self.watches.get_mut(slot) else {
            return;
        };
        if has_source != Some(true) || record.is_closed() {
            return;
        }
        let pause = record.make_rare().paused.get_or_insert_default();
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
        self.keep(slot);
        if let Some(record) = self.watches.get_mut(slot)
            && let Some(pause) = record.unpause()
        {
            let key = paused_key(record.id(), &pause);
            self.shared.paused.lock().remove(&key);
        }
        self.tell(slot, |watch, cx| watch.hold(cx, false));
    }
}
