//! The clocks of the system, which a loop samples once a turn.

use rustix::time::{ClockId, clock_getres, clock_gettime};

/// A clock of the system, see clock_gettime(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`: stands still while the host is suspended.
    Monotonic,
    /// `CLOCK_BOOTTIME`: as the monotonic clock, and goes on while the host is suspended.
    Boottime,
    /// `CLOCK_REALTIME`: the time of day, which can be set.
    Realtime,
}

/// The time of all clocks at one moment, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// `CLOCK_MONOTONIC`: time since an unspecified moment in the past.
    pub monotonic: u64,
    /// `CLOCK_BOOTTIME`: time since the host was booted, suspensions included.
    pub boottime: u64,
    /// `CLOCK_REALTIME`: time since the Unix epoch.
    pub realtime: u64,
}

impl Now {
    /// Reads all clocks.
    #[must_use]
    pub fn sample() -> Self {
        Self {
            monotonic: read(ClockId::Monotonic),
            boottime: read(ClockId::Boottime),
            realtime: read(ClockId::Realtime),
        }
    }

    /// Returns the time of one clock.
    #[must_use]
    pub const fn of(self, clock: Clock) -> u64 {
        match clock {
            Clock::Monotonic => self.monotonic,
            Clock::Boottime => self.boottime,
            Clock::Realtime => self.realtime,
        }
    }
}

/// What a clock skipped: it went from `from` to `to` in less time than that, because it was set
/// forward or the host was suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Skip {
    from: u64,
    to: u64,
}

/// The latest jump forward of each clock, so that a timer can tell whether it is late because of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Jumps {
    boottime: Option<Skip>,
    realtime: Option<Skip>,
}

/// A clock jumps if it gains more than this on the monotonic clock between two samples, beside a
/// thousandth of the time between them: adjtimex(2) lets a clock gain half of that.
const JUMP_MIN_NS: u64 = 1_000_000_000;

impl Jumps {
    /// Records what happened between two samples.
    pub fn observe(&mut self, before: Now, now: Now) {
        let elapsed = now.monotonic.saturating_sub(before.monotonic);
        let observe = |latest: &mut Option<Skip>, clock| {
            let (from, to) = (before.of(clock).saturating_add(elapsed), now.of(clock));
            if to > from.saturating_add(JUMP_MIN_NS + elapsed / 1000) {
                *latest = Some(Skip { from, to });
            } else if to < before.of(clock) {
                // The times that it skipped may come again.
                *latest = None;
            }
        };
        observe(&mut self.boottime, Clock::Boottime);
        observe(&mut self.realtime, Clock::Realtime);
    }

    /// Returns whether the latest jump of the clock skipped that time.
    #[must_use]
    pub fn skipped(&self, clock: Clock, at: u64) -> bool {
        let skip = match clock {
            Clock::Monotonic => None,
            Clock::Boottime => self.boottime,
            Clock::Realtime => self.realtime,
        };
        skip.is_some_and(|skip| skip.from < at && at <= skip.to)
    }
}

/// Returns the smallest step of `CLOCK_MONOTONIC` in nanoseconds, clock_getres(2).
#[must_use]
pub fn resolution() -> u64 {
    in_nanos(clock_getres(ClockId::Monotonic))
}

/// Returns the time since boot in clock ticks, in which /proc counts the start of a process:
/// field 22 of proc_pid_stat(5).
#[must_use]
pub fn boot_ticks() -> u64 {
    let each = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    read(ClockId::Boottime) / each
}

fn read(clock: ClockId) -> u64 {
    in_nanos(clock_gettime(clock))
}

fn in_nanos(time: rustix::time::Timespec) -> u64 {
    // No clock is negative, unless the host's date is before 1970.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Converts nanoseconds since the Unix epoch to a protobuf timestamp.
#[must_use]
pub fn timestamp(realtime_ns: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(realtime_ns / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(realtime_ns % 1_000_000_000).unwrap_or(0),
    }
}

/// Converts a duration to a protobuf duration; one that is too long saturates.
#[must_use]
pub fn duration(duration: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// Converts a duration to nanoseconds, saturating at 584 years.
#[must_use]
pub fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(monotonic: u64, boottime: u64, realtime: u64) -> Now {
        Now {
            monotonic: monotonic * SECOND,
            boottime: boottime * SECOND,
            realtime: realtime * SECOND,
        }
    }

    #[test]
    fn a_time_that_a_clock_skipped_is_told_from_one_that_it_reached() {
        let mut jumps = Jumps::default();
        // An hour of sleep with the clock running fast, as NTP may make it.
        jumps.observe(at(100, 100, 1_000), at(3_700, 3_700, 4_603));
        assert!(!jumps.skipped(Clock::Realtime, 4_602 * SECOND));
        // A suspend of 600 s, 10 s after the sample.
        jumps.observe(at(3_700, 3_700, 4_603), at(3_710, 4_310, 5_213));
        assert!(jumps.skipped(Clock::Boottime, 4_310 * SECOND));
        assert!(!jumps.skipped(Clock::Boottime, 3_709 * SECOND));
        assert!(jumps.skipped(Clock::Realtime, 4_700 * SECOND));
        assert!(!jumps.skipped(Clock::Realtime, 5_214 * SECOND));
        assert!(!jumps.skipped(Clock::Monotonic, 3_705 * SECOND));
        // The clock is set back: what comes again was reached.
        jumps.observe(at(3_710, 4_310, 5_213), at(3_711, 4_311, 4_000));
        assert!(!jumps.skipped(Clock::Realtime, 4_700 * SECOND));
        assert!(jumps.skipped(Clock::Boottime, 4_310 * SECOND));
    }
}
