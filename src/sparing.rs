//! Lines of the log that anybody can cause, as often as they like: written sparingly.

use std::mem::take;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines of one kind that are written in a second; what is beyond is counted.
pub const LINES_PER_SECOND: u32 = 5;

const SECOND: Duration = Duration::from_secs(1);

/// One kind of line.
#[derive(Debug)]
pub struct Sparing(Mutex<Count>);

#[derive(Debug)]
struct Count {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Sparing {
    /// None is written yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Count {
            since: None,
            written: 0,
            left_out: 0,
        }))
    }

    /// Whether to write one now; then how many were left out since the last, to be told with it.
    pub fn one_more(&self) -> Option<u64> {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Option<u64> {
        let mut count = self.0.lock();
        let over = |since| now.saturating_duration_since(since) >= SECOND;
        if count.since.is_none_or(over) {
            count.since = Some(now);
            count.written = 0;
        }
        if count.written >= LINES_PER_SECOND {
            count.left_out = count.left_out.saturating_add(1);
            return None;
        }
        count.written += 1;
        Some(take(&mut count.left_out))
    }
}

impl Default for Sparing {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_a_second_and_none_is_lost_count_of() {
        let sparing = Sparing::new();
        let start = Instant::now();
        let (mut written, mut told) = (0, 0);
        // Ten seconds of a thousand a second, and one of another day.
        let times = (0..10_000).map(|n| start + Duration::from_millis(n));
        for now in times.chain([start + 86_400 * SECOND]) {
            if let Some(left_out) = sparing.at(now) {
                written += 1;
                told += left_out;
            }
        }
        assert_eq!(written, 10 * u64::from(LINES_PER_SECOND) + 1);
        assert_eq!(written + told, 10_001);
    }
}
