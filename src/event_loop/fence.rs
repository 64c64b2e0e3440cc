//! "What is ready now": an answer once everything that is armed has been looked at.

use super::{EventLoop, Handle, Reply};
use crate::clock::Now;
use crate::error::Result;

/// Most turns that one answer waits for: where other watches always have something to tell, what
/// was armed before has been looked at by then, too.
const TURNS_MAX: u32 = 64;

/// Somebody waits for a look at everything.
#[derive(Debug)]
pub(super) struct Fence {
    reply: Reply<u64>,
    /// Monotonic nanoseconds, from right before the first look.
    since: Option<u64>,
    turns: u32,
}

impl Handle {
    /// Waits until the backend has looked at everything that is armed, without waiting for any of
    /// it, and until what it found can be read. Answers the monotonic clock, nanoseconds, from
    /// before the look: what was ready then is told. A loop that is not running does not look.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn fence(&self) -> Result<u64> {
        self.call(|on, reply| {
            on.fences.push(Fence {
                reply,
                since: None,
                turns: 0,
            });
        })
        .await
    }
}

impl EventLoop {
    /// The turn is about to look at what is ready.
    pub(super) fn begin_look(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        let now = Now::sample().monotonic;
        for fence in &mut self.fences {
            fence.since.get_or_insert(now);
        }
    }

    /// The turn has looked, and what it `found` can be read. A look that finds nothing has seen
    /// everything: what is ready stays so until it is told.
    pub(super) fn end_look(&mut self, found: usize) {
        let looks = self.is_polled();
        for mut fence in std::mem::take(&mut self.fences) {
            let Some(since) = fence.since else {
                self.fences.push(fence);
                continue;
            };
            fence.turns += 1;
            if looks && found > 0 && fence.turns < TURNS_MAX {
                self.fences.push(fence);
            } else {
                fence.reply.send(Ok(since));
            }
        }
    }
}
