//! A rate limit for log lines that any client can cause as often as it likes.

use std::mem::take;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The lines of one kind that are written per second; further lines are only counted.
pub const LINES_PER_SECOND: u32 = 5;

const SECOND: Duration = Duration::from_secs(1);

/// The rate limit of one kind of line.
#[derive(Debug)]
pub struct Sparing(Mutex<Count>);

#[derive(Debug)]
struct Count {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Sparing {
    /// Makes a rate limit of which no line is written yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Count {
            since: None,
            written: 0,
            left_out: 0,
        }))
    }

    /// Asks whether to write a line now. Returns the number of lines left out since the last one,
    /// to be written with it; none if this line is to be left out.
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
        // A thousand lines a second for ten seconds, and one line a day later.
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
