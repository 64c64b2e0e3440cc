//! The monotonic and the realtime clock, which a loop samples once a turn.

use rustix::time::{ClockId, clock_getres, clock_gettime};

/// The time of both clocks at one moment, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// `CLOCK_MONOTONIC`: time since an unspecified moment in the past.
    pub monotonic: u64,
    /// `CLOCK_REALTIME`: time since the Unix epoch.
    pub realtime: u64,
}

impl Now {
    /// Reads both clocks.
    #[must_use]
    pub fn sample() -> Self {
        Self {
            monotonic: read(ClockId::Monotonic),
            realtime: read(ClockId::Realtime),
        }
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
    // Neither clock is negative, unless the host's date is before 1970.
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
