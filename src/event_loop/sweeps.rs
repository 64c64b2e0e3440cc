//! Sweeps: actions on all watches of a loop, carried out in steps of a bounded number of watches a
//! turn, so that commands and events are handled in between.

use std::collections::VecDeque;

use rustix::io::Errno;
use smallvec::SmallVec;

use super::{EventLoop, Reply};
use crate::access::ProcessKey;
use crate::driver::{Completion, Done, Lane, OpId};
use crate::event::{CloseReason, LoopState};
use crate::watch::{Teardown, TimeChange};

/// The number of watches that all sweeps of a loop together handle in one turn.
pub(super) const STEP: usize = 256;
/// The number of free slots that a step may pass for each watch it may handle.
const FREE_AT_ONCE: usize = 16;

/// The action on each watch.
#[derive(Debug)]
pub(super) enum Sweep {
    /// End the watch because the loop closes, for this reason, with the error of the backend if
    /// that failed.
    End(CloseReason, Option<Errno>),
    /// Pause or resume its source, as [`Pressure::full`](super::pressure::Pressure) says.
    Hold,
    /// Kill the child process, if the watch has one that must not outlive the daemon.
    Kill(Reply<()>),
    /// Close the watch if it was ending and cannot finish, because the loop no longer polls.
    EndUnpolled,
    /// End the watch if it is bound to this client process.
    ClientEnded(ProcessKey),
    /// End the watch, for this reason, if this listener has accepted it.
    Accepted(u64, CloseReason),
    /// Tell the watch, which may be a calendar timer.
    TimeChanged(TimeChange),
}

/// The sweeps in progress, and how many watches this turn may still handle.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    walks: VecDeque<Walk>,
    /// The number of watches that this turn may still handle.
    pub(super) left: usize,
}

impl Sweeps {
    pub(super) const fn begin_turn(&mut self) {
        self.left = STEP;
    }

    pub(super) fn has_more_to_do(&self) -> bool {
        !self.walks.is_empty()
    }

    /// Returns whether some watches of the closing loop have not been ended yet.
    pub(super) fn is_ending(&self) -> bool {
        let ends = |walk: &Walk| matches!(walk.sweep, Sweep::End(..));
        self.walks.iter().any(ends)
    }

    /// Returns whether some sources have not been paused or resumed yet.
    pub(super) fn is_holding(&self) -> bool {
        let holds = |walk: &Walk| matches!(walk.sweep, Sweep::Hold);
        self.walks.iter().any(holds)
    }

    /// Drops the sweeps that match, to be replaced by another one.
    pub(super) fn discard(&mut self, mut which: impl FnMut(&Sweep) -> bool) {
        self.walks.retain(|walk| !which(&walk.sweep));
    }
}

/// A sweep in progress.
#[derive(Debug)]
pub(super) struct Walk {
    sweep: Sweep,
    /// The next slot to visit.
    next: usize,
    /// The slot where the walk began; the slots below it are visited last.
    first: usize,
    /// Whether the walk has wrapped around to slot 0.
    wrapped: bool,
}

impl Walk {
    /// Returns the next slot to visit, of `slots`; `None` once all were visited.
    fn slot(&mut self, slots: usize) -> Option<usize> {
        if !self.wrapped && self.next >= slots {
            (self.next, self.wrapped) = (0, true);
        }
        let end = if self.wrapped { self.first } else { slots };
        (self.next < end).then_some(self.next)
    }
}

impl EventLoop {
    /// Begins a sweep. It ends at once on a loop with few watches.
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

    /// Begins to pause or resume all sources. A sweep of the same kind in progress is replaced by
    /// one that starts at its position, so that every source is visited however often the direction
    /// changes.
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
            // First, because sources that should pause are still read until then.
            self.sweeps.walks.push_front(walk);
        }
    }

    /// Begins to tell all watches that the time changed. One sweep tells of all changes of a kind, so
    /// that there is at most one of each however often the clock is set.
    pub(super) fn sweep_time(&mut self, mut change: TimeChange) {
        self.sweeps.discard(|sweep| match (sweep, &mut change) {
            (Sweep::TimeChanged(TimeChange::Zones), TimeChange::Zones) => true,
            (
                Sweep::TimeChanged(TimeChange::ClockSet { back: earlier }),
                TimeChange::ClockSet { back },
            ) => {
                *back = (*back).max(*earlier);
                true
            }
            _ => false,
        });
        self.sweep(Sweep::TimeChanged(change));
    }

    /// Continues the sweeps, within the limit of this turn.
    pub(super) fn continue_sweeps(&mut self) {
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

    /// Returns whether there is work for the next turn, so that it must not wait.
    pub(super) fn has_more_to_do(&self) -> bool {
        self.sweeps.has_more_to_do()
            || self.pressure.has_more_to_do()
            || self.is_emptying()
            || (self.takes_events() && !self.held_notices.is_empty())
            || self.snapshots.has_more_to_do()
    }

    /// Performs one step of a walk. Returns the walk if it is not done.
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
            Sweep::End(reason, None) => {
                if self.closes.kill_tree {
                    self.with_watch(slot, |watch, _| watch.kill_at_end());
                }
                self.end(slot, reason);
            }
            Sweep::Accepted(listener, reason) => {
                if self.watches[slot]
                    .rare()
                    .is_some_and(|rare| rare.parent == listener)
                {
                    self.end(slot, reason);
                }
            }
            Sweep::End(reason, Some(errno)) => self.end_broken(slot, reason, errno),
            Sweep::Hold => match self.pressure.full {
                Some(reason) => self.pause_source(slot, reason),
                None => self.pause_alone(slot),
            },
            Sweep::Kill(_) => drop(self.with_watch(slot, |watch, _| watch.kill_now())),
            Sweep::EndUnpolled => self.end_unpolled(slot),
            Sweep::TimeChanged(change) => {
                self.with_watch(slot, |watch, cx| watch.time_changed(cx, change));
            }
            Sweep::ClientEnded(_) => {}
        }
    }

    /// Closes a watch after the backend failed: its operations will not complete, so they end here.
    fn end_broken(&mut self, slot: usize, reason: CloseReason, errno: Errno) {
        self.with_watch(slot, |_, cx| cx.fail(errno, "wait"));
        self.end(slot, reason);
        let Some(record) = self.watches.get(slot) else {
            return;
        };
        let watch = record.control.key;
        let live: SmallVec<[Lane; 4]> = record
            .control
            .sources
            .live()
            .map(|(lane, _)| lane)
            .collect();
        for lane in live {
            self.handle_completion(Completion {
                id: OpId { watch, lane },
                done: Done::Failed(errno),
                last: true,
            });
        }
    }

    fn end_unpolled(&mut self, slot: usize) {
        let record = &self.watches[slot];
        let ending = record.closing && !record.is_closed() && !record.control.finished;
        if ending && !self.is_polled() {
            self.with_watch(slot, |watch, cx| {
                if watch.closing(cx) == Teardown::Now {
                    cx.finish();
                }
            });
        }
    }

    /// Ends watches that were bound to a client process. Returns whether there are more of them.
    fn client_ended(&mut self, process: ProcessKey) -> bool {
        let (step, more) = self.watches.unbind(process, self.sweeps.left);
        self.sweeps.left -= step.len();
        for key in step {
            if let Some(slot) = self.watches.slot(key) {
                self.lifetime_over(slot, CloseReason::ProcessEnded);
            }
        }
        more
    }

    /// Returns whether the closing loop has no open watch, so that only closed ones remain to be
    /// removed.
    fn is_emptying(&self) -> bool {
        self.closing.is_some() && !self.sweeps.is_ending() && self.watches.open() == 0
    }

    /// Removes the closed watches of a closing loop that has no open watch, then closes the loop.
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
        self.shared.lifetime.lock().release();
        let seq = self.enter(LoopState::Closed, self.closes.reason);
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
            // Slots that are added meanwhile need no visit: their watches are set up when they are
            // added.
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
