//! The time of a file that lost its name.

use std::time::{Duration, Instant};

use super::position::RotatedPosition;
use crate::clock::Now;

/// How soon a file that is read to its end, but not by its writer, is looked at again; then after
/// twice this time, and so on up to `check_every`.
const FIRST_PACE: Duration = Duration::from_millis(10);

/// When a file lost its name, and how long it is waited for.
#[derive(Debug)]
pub(super) struct Rotated {
    since: Instant,
    /// When bytes last came from it.
    active: Instant,
    /// Its size when `rotated_wait` was over.
    mark: Option<u64>,
    late: bool,
    look_at: Instant,
    pace: Duration,
}

impl Rotated {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            active: now,
            mark: None,
            late: false,
            look_at: now,
            pace: FIRST_PACE,
        }
    }

    /// As an earlier life of the process has left it.
    pub(super) fn again(known: &RotatedPosition, now: Instant) -> Self {
        let monotonic = Now::sample().monotonic;
        let at = |time: u64| {
            let ago = Duration::from_nanos(monotonic.saturating_sub(time));
            now.checked_sub(ago).unwrap_or(now)
        };
        Self {
            since: at(known.since),
            active: at(known.active),
            mark: known.mark,
            late: known.late,
            ..Self::new(now)
        }
    }

    pub(super) fn position(&self) -> RotatedPosition {
        let (now, monotonic) = (Instant::now(), Now::sample().monotonic);
        let at = |time: Instant| {
            let ago = now.saturating_duration_since(time);
            monotonic.saturating_sub(crate::clock::nanos(ago))
        };
        RotatedPosition {
            since: at(self.since),
            active: at(self.active),
            mark: self.mark,
            late: self.late,
        }
    }

    /// Whether later files do not wait for this one any more.
    pub(super) fn is_late(&self) -> bool {
        self.late
    }

    /// When it is to be looked at again.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Bytes came.
    pub(super) fn active(&mut self, now: Instant) {
        self.active = now;
    }

    /// Whether nothing came for this long.
    pub(super) fn is_quiet_for(&self, wait: Duration, now: Instant) -> bool {
        now >= self.active + wait
    }

    /// Once `wait` is over, it is late when it is read to the end that it had then.
    pub(super) fn judge(&mut self, now: Instant, wait: Duration, at: u64, size: u64, end: bool) {
        if now >= self.since + wait {
            self.late |= end || at >= *self.mark.get_or_insert(size);
        }
    }

    /// Looks again later; not later than when `wait` is over.
    pub(super) fn look_later(&mut self, now: Instant, wait: Duration, check_every: Duration) {
        let over = self.since + wait;
        self.look_at = now + self.pace.min(check_every);
        if over > now {
            self.look_at = self.look_at.min(over);
        }
        self.pace = (self.pace * 2).min(check_every);
    }
}
