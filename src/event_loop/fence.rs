//! Arming of fd watches, and fences. A fence gets its reply once the backend has checked everything
//! that is armed: it shows "what is ready now".

use super::command::Command;
use super::pressure::BEHIND;
use super::{EventLoop, Handle, Reply};
use crate::clock::Now;
use crate::error::Result;
use crate::proto;

/// The number of items that one command arms. A longer list takes several commands.
const REARM_STEP: usize = 1024;

/// The largest number of turns that a fence waits for, beyond the turns that it takes to check
/// every watch twice. If other watches always have completions, everything that was armed before
/// the fence has been checked by then as well.
const TURNS_MAX: usize = 64;

/// A call of [`Handle::fence`] that waits for its reply.
#[derive(Debug)]
pub(super) struct Fence {
    reply: Reply<u64>,
    /// The time right before the first check of the backend after the call.
    since: Option<Now>,
    turns: usize,
}

/// The result of arming and disarming.
#[derive(Debug, Default)]
pub struct Rearmed {
    /// The reply to the client.
    pub answer: proto::RearmResponse,
    /// The time before the first item, in nanoseconds of the monotonic clock; `None` if there was
    /// no item. Readiness that was found before has an earlier time.
    pub since: Option<u64>,
}

impl Handle {
    /// Arms or disarms directions, in order, and returns for each item whether anything changed.
    ///
    /// # Errors
    /// The loop is closed, or its mailbox is full.
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

    /// Waits until the backend has checked everything that is armed, without waiting for any of it
    /// to become ready, and until the resulting events can be read. Returns the time before that
    /// check, in nanoseconds of the monotonic clock: the journal has an event for everything that
    /// was ready then. Returns at once if the loop is not running.
    ///
    /// # Errors
    /// The loop is closed, or its mailbox is full.
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
    /// Records the time for new fences, before the turn waits on the backend.
    pub(super) fn start_fences(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        let now = Now::sample();
        for fence in &mut self.fences {
            fence.since.get_or_insert(now);
        }
    }

    /// Replies to the fences that are done, after the events of this turn can be read. `found` is
    /// the number of completions. A turn without completions has checked everything if the backend
    /// polled all sources, because a ready source stays ready until it completes. Due timers must
    /// have fired as well.
    pub(super) fn answer_fences(&mut self, found: usize) {
        if self.fences.is_empty() {
            return;
        }
        let seen = found == 0 && self.driver.has_polled_all();
        // A turn takes at least this many completions, and sources take turns.
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
