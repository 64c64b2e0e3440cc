//! What concerns many watches at once is done in steps, some watches a turn: what others ask for,
//! and what happens, is served in between.

use std::collections::VecDeque;

use rustix::io::Errno;

use super::{EventLoop, Reply};
use crate::access::ProcessKey;
use crate::driver::{Completion, Done, OpId};
use crate::event::{CloseReason, LoopState};
use crate::watch::Teardown;

/// Watches that all sweeps of a loop together deal with in one turn.
pub(super) const STEP: usize = 256;
/// Free places that a step passes at most, for each watch it may deal with.
const FREE_AT_ONCE: usize = 16;

/// What is done with each watch.
#[derive(Debug)]
pub(super) enum Sweep {
    /// The loop closes: it ends for that reason, with the backend's error if there was one.
    End(CloseReason, Option<Errno>),
    /// Its source is held, or let go on, as [`Pressure::full`](super::pressure::Pressure) says.
    Hold,
    /// If it is a child, it is killed.
    Kill(Reply<()>),
    /// It was ending by itself and cannot any more, now that nothing is polled.
    EndUnpolled,
    /// If it was bound to this client process, it ends.
    ClientEnded(ProcessKey),
}

/// The sweeps that are under way, and how much of them this turn may still do.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    walks: VecDeque<Walk>,
    /// Watches that this turn may still deal with.
    pub(super) left: usize,
}

impl Sweeps {
    pub(super) const fn begin_turn(&mut self) {
        self.left = STEP;
    }

    pub(super) fn has_more_to_do(&self) -> bool {
        !self.walks.is_empty()
    }

    /// Whether some watches of the closing loop have not been told yet.
    pub(super) fn is_ending(&self) -> bool {
        let ends = |walk: &Walk| matches!(walk.sweep, Sweep::End(..));
        self.walks.iter().any(ends)
    }

    /// Whether some sources have not been held, or let go on, yet.
    pub(super) fn is_holding(&self) -> bool {
        let holds = |walk: &Walk| matches!(walk.sweep, Sweep::Hold);
        self.walks.iter().any(holds)
    }

    /// Another sweep takes their place.
    pub(super) fn discard(&mut self, which: impl Fn(&Sweep) -> bool) {
        self.walks.retain(|walk| !which(&walk.sweep));
    }
}

/// A sweep that is under way.
#[derive(Debug)]
pub(super) struct Walk {
    sweep: Sweep,
    /// The slot to go on with.
    next: usize,
    /// Slots below come last.
    first: usize,
    /// It is at those.
    wrapped: bool,
}

impl Walk {
    /// The slot to go on with, of so many; none if it has been round.
    fn slot(&mut self, slots: usize) -> Option<usize> {
        if !self.wrapped && self.next >= slots {
            (self.next, self.wrapped) = (0, true);
        }
        let end = if self.wrapped { self.first } else { slots };
        (self.next < end).then_some(self.next)
    }
}

impl EventLoop {
    /// Begins a sweep: a loop with few watches is done with it at once.
    pub(super) fn sweep(&mut self, sweep: Sweep) {
        let walk = Walk {
            sweep,
            next: 0,
            first: 0,
            wrapped: false,
        };
        if let Some(walk) = self.walk(walk) {
            self.sweeps.walks.push_back(walk);
        }
    }

    /// All sources are held, or let go on. If they were being let go on, or held, this goes round from
    /// there: every source gets its turn, however often that changes.
    pub(super) fn sweep_sources(&mut self) {
        let under_way = |walk: &Walk| matches!(walk.sweep, Sweep::Hold).then_some(walk.next);
        let first = self.sweeps.walks.iter().find_map(under_way).unwrap_or(0);
        self.sweeps.discard(|sweep| matches!(sweep, Sweep::Hold));
        let walk = Walk {
            sweep: Sweep::Hold,
            next: first,
            first,
            wrapped: false,
        };
        if let Some(walk) = self.walk(walk) {
            // Before anything else, or they read on.
            self.sweeps.walks.push_front(walk);
        }
    }

    /// Goes on with sweeps, as far as this turn may.
    pub(super) fn go_on(&mut self) {
        while self.sweeps.left > 0 {
            let Some(walk) = self.sweeps.walks.pop_front() else {
                return;
            };
            if let Some(walk) = self.walk(walk) {
                self.sweeps.walks.push_front(walk);
                return;
            }
        }
    }

    /// Something is left to do that waits for nothing but the next turn.
    pub(super) fn has_more_to_do(&self) -> bool {
        self.sweeps.has_more_to_do()
            || self.pressure.has_more_to_do()
            || self.is_emptying()
            || (self.takes_in() && !self.held.is_empty())
            || self.snapshots.has_more_to_do()
    }

    /// One step; gives the walk back if there is more of it.
    fn walk(&mut self, mut walk: Walk) -> Option<Walk> {
        if let Sweep::ClientEnded(process) = walk.sweep {
            return self.client_ended(process).then_some(walk);
        }
        let mut looks = self.sweeps.left * FREE_AT_ONCE;
        while let Some(slot) = walk.slot(self.watches.slots()) {
            if self.sweeps.left == 0 || looks == 0 {
                return Some(walk);
            }
            looks -= 1;
            if self.watches.contains(slot) {
                self.sweeps.left -= 1;
                self.visit(slot, &walk.sweep);
            }
            walk.next += 1;
        }
        if let Sweep::Kill(reply) = walk.sweep {
            self.reply(reply, Ok(()));
        }
        None
    }

    fn visit(&mut self, slot: usize, sweep: &Sweep) {
        match *sweep {
            Sweep::End(reason, None) => self.end(slot, reason),
            Sweep::End(reason, Some(errno)) => self.end_broken(slot, reason, errno),
            Sweep::Hold => match self.pressure.full {
                Some(reason) => self.pause_source(slot, reason),
                None => self.pause_alone(slot),
            },
            Sweep::Kill(_) => drop(self.tell(slot, |watch, _| watch.kill_now())),
            Sweep::EndUnpolled => self.end_unpolled(slot),
            Sweep::ClientEnded(_) => {}
        }
    }

    /// What was under way has no end of its own any more.
    fn end_broken(&mut self, slot: usize, reason: CloseReason, errno: Errno) {
        self.tell(slot, |_, cx| cx.fail(errno, "wait"));
        self.end(slot, reason);
        let Some(record) = self.watches.get(slot) else {
            return;
        };
        let (watch, live) = (record.seat.key, record.seat.ops.clone());
        for (lane, _) in live {
            self.completed(Completion {
                id: OpId { watch, lane },
                done: Done::Failed(errno),
                last: true,
            });
        }
    }

    fn end_unpolled(&mut self, slot: usize) {
        let record = &self.watches[slot];
        let ending = record.closing && !record.is_closed() && !record.seat.finished;
        if ending && !self.is_polled() {
            self.tell(slot, |watch, cx| {
                if watch.closing(cx) == Teardown::Now {
                    cx.finish();
                }
            });
        }
    }

    /// The client process ended, and with it what was bound to it. Says whether there is more.
    fn client_ended(&mut self, process: ProcessKey) -> bool {
        let (step, more) = self.watches.unbind(process, self.sweeps.left);
        self.sweeps.left -= step.len();
        for key in step {
            if let Some(slot) = self.watches.slot(key) {
                self.end(slot, CloseReason::ProcessEnded);
            }
        }
        more
    }

    /// The closing loop has no open watch any more, but closed ones to remove.
    fn is_emptying(&self) -> bool {
        self.closing.is_some() && !self.sweeps.is_ending() && self.watches.open() == 0
    }

    /// Once a closing loop has no open watch: removes the rest, and it is closed.
    pub(super) fn close_if_done(&mut self) {
        if !self.is_emptying() {
            return;
        }
        while self.sweeps.left > 0
            && let Some(slot) = self.watches.next_to_expire()
        {
            self.sweeps.left -= 1;
            self.remove(slot);
        }
        if self.watches.len() > 0 {
            return;
        }
        let replies = self.closing.take().unwrap_or_default();
        let seq = self.enter(LoopState::Closed);
        for reply in replies {
            let cursor = self.shared.journal.cursor(seq);
            self.reply(reply, Ok(cursor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_that_begins_anywhere_goes_round_all_slots_once() {
        for first in [0, 1, 5, 9] {
            let mut walk = Walk {
                sweep: Sweep::Hold,
                next: first,
                first,
                wrapped: false,
            };
            let mut visited = Vec::new();
            // More slots come while it is under way: those are told as they come.
            while let Some(slot) = walk.slot(if visited.len() < 3 { 10 } else { 12 }) {
                visited.push(slot);
                walk.next += 1;
            }
            let mut sorted = visited.clone();
            sorted.sort_unstable();
            sorted.retain(|slot| *slot < 10);
            assert_eq!(sorted, (0..10).collect::<Vec<_>>(), "{visited:?}");
        }
    }
}
