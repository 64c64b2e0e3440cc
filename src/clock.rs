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

/// A clock went from `from` to `to` in less time than that, because it was set forward or the host
/// was suspended, so it skipped some of the times in between. One of these that it did not skip is
/// late for the same reason: a loop acts in time, unless its host was about to be suspended or has
/// not gone on yet.
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
    /// The largest set-back of the realtime clock that nobody has taken, in nanoseconds.
    set_back: u64,
}

/// A clock jumps if it gains more than this on the monotonic clock between two samples, beside a
/// thousandth of the time between them: adjtimex(2) lets a clock gain half of that. ntpd(8) sets a
/// clock that is wrong by 128 ms or more.
const JUMP_MIN_NS: u64 = 100_000_000;

impl Jumps {
    /// Records what happened between two samples. The clocks are read one after the other, so what
    /// looks like a jump may be a thread that did not run in between: `again` samples once more.
    pub fn observe(&mut self, before: Now, now: Now, again: impl Fn() -> Now) {
        let jumped = |clock, now: Now| {
            let elapsed = now.monotonic.saturating_sub(before.monotonic);
            let slewed = before.of(clock).saturating_add(elapsed + elapsed / 1000);
            now.of(clock) > slewed.saturating_add(JUMP_MIN_NS)
        };
        let observe = |latest: &mut Option<Skip>, clock| {
            let (from, to) = (before.of(clock), now.of(clock));
            if jumped(clock, now) && jumped(clock, again()) {
                *latest = Some(Skip { from, to });
            } else if to < from {
                // The times that it skipped may come again.
                *latest = None;
            }
        };
        observe(&mut self.boottime, Clock::Boottime);
        observe(&mut self.realtime, Clock::Realtime);
        let elapsed = now.monotonic.saturating_sub(before.monotonic);
        let expected = before.realtime.saturating_add(elapsed);
        self.set_back = self.set_back.max(expected.saturating_sub(now.realtime));
    }

    /// Returns by how much the realtime clock was set back at most at once since the last call, in
    /// nanoseconds.
    pub const fn take_set_back(&mut self) -> u64 {
        std::mem::replace(&mut self.set_back, 0)
    }

    /// Returns whether the clock passed that time by its latest jump.
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

/// Converts a protobuf duration; `None` if it is negative, or if its nanoseconds are not below a second.
///
/// The conversion of the crate prost-types overflows at [`i64::MIN`] seconds.
#[must_use]
pub fn span(duration: &prost_types::Duration) -> Option<std::time::Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok()?;
    (nanos < 1_000_000_000).then(|| std::time::Duration::new(seconds, nanos))
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

    fn observe(jumps: &mut Jumps, before: Now, now: Now) {
        jumps.observe(before, now, || now);
    }

    #[test]
    fn a_time_that_a_clock_skipped_is_told_from_one_that_it_reached() {
        let mut jumps = Jumps::default();
        // An hour of sleep with the clock running fast, as NTP may make it.
        observe(&mut jumps, at(100, 100, 1_000), at(3_700, 3_700, 4_603));
        assert!(!jumps.skipped(Clock::Realtime, 4_602 * SECOND));
        // A suspend of 600 s, 10 s after the sample.
        observe(&mut jumps, at(3_700, 3_700, 4_603), at(3_710, 4_310, 5_213));
        assert!(jumps.skipped(Clock::Boottime, 4_310 * SECOND));
        assert!(!jumps.skipped(Clock::Boottime, 3_700 * SECOND));
        assert!(jumps.skipped(Clock::Realtime, 4_700 * SECOND));
        assert!(!jumps.skipped(Clock::Realtime, 5_214 * SECOND));
        assert!(!jumps.skipped(Clock::Monotonic, 3_705 * SECOND));
        // It was due while all programs were frozen already, before the suspension itself.
        assert!(jumps.skipped(Clock::Boottime, 3_709 * SECOND));
        // The clock is set back: what comes again was reached.
        observe(&mut jumps, at(3_710, 4_310, 5_213), at(3_711, 4_311, 4_000));
        assert!(!jumps.skipped(Clock::Realtime, 4_700 * SECOND));
        assert!(jumps.skipped(Clock::Boottime, 4_310 * SECOND));
        assert_eq!(jumps.take_set_back(), 1_214 * SECOND);
        assert_eq!(jumps.take_set_back(), 0);
    }

    #[test]
    fn a_step_as_of_ntp_is_a_jump_and_a_clock_that_runs_fast_does_not_jump() {
        const MS: u64 = 1_000_000;
        let now = |monotonic: u64, realtime: u64| Now {
            monotonic: monotonic * MS,
            boottime: monotonic * MS,
            realtime: realtime * MS,
        };
        let mut jumps = Jumps::default();
        // The thread did not run for a while between two readings.
        jumps.observe(now(400, 10_400), now(450, 10_600), || now(601, 10_601));
        assert!(!jumps.skipped(Clock::Realtime, 10_500 * MS));
        observe(&mut jumps, now(500, 10_500), now(550, 10_640));
        assert!(!jumps.skipped(Clock::Realtime, 10_600 * MS));
        observe(&mut jumps, now(600, 10_600), now(700, 10_830));
        assert!(jumps.skipped(Clock::Realtime, 10_800 * MS));
        assert!(!jumps.skipped(Clock::Realtime, 10_600 * MS));
        assert!(!jumps.skipped(Clock::Boottime, 700 * MS));
        // 500 ppm fast, for an hour.
        observe(&mut jumps, now(700, 10_830), now(3_600_700, 3_612_630));
        assert!(!jumps.skipped(Clock::Realtime, 3_612_000 * MS));
    }
}
