//! Arming, and "what is ready now": an answer once everything that is armed has been looked at.

use super::command::Command;
use super::pressure::BEHIND;
use super::{EventLoop, Handle, Reply};
use crate::clock::Now;
use crate::error::Result;
use crate::proto;

/// Watches that one turn arms: a longer list takes several.
const REARM_STEP: usize = 1024;

/// Most turns that one answer waits for, beside those it takes to get to every watch twice: where
/// others always have something to tell, what was armed before has been looked at by then, too.
const TURNS_MAX: usize = 64;

/// Somebody waits for a look at everything.
#[derive(Debug)]
pub(super) struct Fence {
    reply: Reply<u64>,
    /// Right before the first look.
    since: Option<Now>,
    turns: usize,
}

/// What came of arming and disarming.
#[derive(Debug, Default)]
pub struct Rearmed {
    /// As told to clients.
    pub answer: proto::RearmResponse,
    /// Monotonic nanoseconds, from before all of it; none if there was nothing to do. What was found
    /// before has an earlier time.
    pub since: Option<u64>,
}

impl Handle {
    /// Arms or disarms directions, in order; says for each whether anything changed.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn rearm(&self, items: Vec<proto::RearmItem>) -> Result<Rearmed> {
        let mut done = Rearmed::default();
        for step in items.chunks(REARM_STEP) {
            let items = step.to_vec();
            let armed = self.call(|reply| Command::Rearm { items, reply }).await?;
            done.since.get_or_insert(armed.at);
            done.answer.armed.extend(armed.changed);
            done.answer.cursor = Some(armed.newest.into());
        }
        Ok(done)
    }

    /// Waits until the backend has looked at everything that is armed, without waiting for any of
    /// it, and until what it found can be read. Answers the monotonic clock, nanoseconds, from
    /// before the look: what was ready then is told. A loop that is not running does not look.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn fence(&self) -> Result<u64> {
        self.call(|reply| Command::Fence { reply }).await
    }
}

impl Fence {
    pub(super) const fn new(reply: Reply<u64>) -> Self {
        Self {
            reply,
            since: None,
            turns: 0,
        }
    }
}

impl EventLoop {
    /// The turn is about to look at what is ready.
    pub(super) fn begin_look(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        let now = Now::sample();
        for fence in &mut self.fences {
            fence.since.get_or_insert(now);
        }
    }

    /// The turn has looked, and what it `found` can be read. A look that finds nothing has seen
    /// everything, if it got to everything: what is ready stays so until it is told. So do timers.
    pub(super) fn end_look(&mut self, found: usize) {
        if self.fences.is_empty() {
            return;
        }
        let seen = found == 0 && self.driver.has_looked();
        // A turn gets to at least so many, each when it is its turn.
        let least = self.limits.turn_events.min(BEHIND.completions);
        let most = TURNS_MAX + 2 * self.watches.len() / least;
        for mut fence in std::mem::take(&mut self.fences) {
            let Some(since) = fence.since else {
                self.fences.push(fence);
                continue;
            };
            fence.turns += 1;
            let due = self.timers.next_in(since) == Some(0);
            if self.is_polled() && (due || !seen) && fence.turns < most {
                self.fences.push(fence);
            } else {
                fence.reply.send(Ok(since.monotonic));
            }
        }
    }
}
