//! The rules for the ticks of a timer.

use super::super::coverage::Coverage;
use super::super::violation::require;
use super::super::{Rule, Violation};
use super::{Observed, WatchHistory, agrees};
use crate::proto::{Event, TimerClock, TimerFired};

impl WatchHistory {
    pub(super) fn fired(
        &mut self,
        event: &Event,
        fired: &TimerFired,
        coverage: Coverage,
    ) -> Result<(), Violation> {
        let (id, seq, scheduled) = (self.id, event.seq, fired.scheduled_ns);
        let clock = match fired.clock() {
            TimerClock::Monotonic => event.monotonic_ns,
            TimerClock::Realtime => event.realtime_ns,
            // The event does not have this clock's time.
            TimerClock::Boottime | TimerClock::Unspecified => {
                scheduled.saturating_add(fired.late_ns)
            }
        };
        require(scheduled <= clock, Rule::TimerEarly, || {
            format!("event {seq} fires at {clock} ns, but the tick is scheduled for {scheduled} ns")
        })?;
        let tick = fired.tick;
        let seen = tick
            .checked_sub(1)
            .and_then(|t| t.checked_sub(fired.missed));
        require(
            seen.is_some_and(|t| agrees(self.tick, t, coverage)),
            Rule::TimerTick,
            || {
                format!(
                    "event {seq} is tick {tick} of watch {id} with {} missed, but the tick before \
                     is {}",
                    fired.missed,
                    last_tick(self.tick)
                )
            },
        )?;
        // The only other timers by that clock fire once.
        self.by_calendar = fired.clock() == TimerClock::Realtime;
        if fired.clock() == TimerClock::Boottime {
            self.rate(seq, tick, scheduled)?;
        }
        self.tick = Some(Observed { seq, value: tick });
        self.scheduled_ns = scheduled;
        Ok(())
    }

    /// Checks that ticks are a fixed interval apart, missed ones included.
    fn rate(&mut self, seq: u64, tick: u64, scheduled: u64) -> Result<(), Violation> {
        let Some(before) = self.tick.filter(|before| before.value > 0) else {
            return Ok(());
        };
        let ticks = tick.saturating_sub(before.value).max(1);
        let elapsed = scheduled.saturating_sub(self.scheduled_ns);
        let interval = *self.interval_ns.get_or_insert(elapsed / ticks);
        let fixed = elapsed > 0 && interval.checked_mul(ticks) == Some(elapsed);
        require(fixed, Rule::TimerRate, || {
            format!(
                "event {seq} is scheduled {elapsed} ns after an event {ticks} ticks before it, but the \
                 interval is {interval} ns"
            )
        })
    }
}

/// Returns the last tick that is known, for a report.
pub(super) fn last_tick(tick: Option<Observed>) -> String {
    tick.map_or_else(
        || "not known".to_owned(),
        |Observed { seq, value }| format!("{value}, at event {seq}"),
    )
}
