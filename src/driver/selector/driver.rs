//! The driver that all selector backends share: its sources, their operations, and the turn.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::{Event, Interest, Poller};
use crate::driver::acceptor::Acceptor;
use crate::driver::recorded::Transfers;
use crate::driver::transfer::{self, CallError};
use crate::driver::turn::TurnState;
use crate::driver::wait::wait;
use crate::driver::{
    AttachError, Budget, Completion, Direction, Done, Driver, Nonblocking, Op, OpId, SourceId,
};
use crate::paged::Paged;
use crate::state::Keep;

/// The waker's token; a source's is one more than its index.
const WAKER: usize = 0;

const fn token(index: usize) -> usize {
    index + 1
}

#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    mode: Nonblocking,
    read: Option<Live>,
    write: Option<Live>,
    /// The interest registered with the poller.
    registered: Interest,
    /// Whether the source is in `Selector::dirty`.
    dirty: bool,
}

#[derive(Debug)]
struct Live {
    id: OpId,
    op: Op,
    /// Whether to try the operation without waiting for readiness first.
    fresh: bool,
}

impl Source {
    fn lane(&mut self, direction: Direction) -> &mut Option<Live> {
        match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }

    fn interest(&self) -> Interest {
        let waits = |live: &Live| matches!(live.op, Op::HangUp);
        let hang_up = self.read.as_ref().is_some_and(waits);
        Interest {
            read: self.read.is_some() && !hang_up,
            write: self.write.is_some(),
            hang_up,
        }
    }

    /// Returns the error if the operation cannot be started.
    fn refuses(&mut self, op: &Op) -> Option<Errno> {
        if !self.mode.allows(op) {
            Some(Errno::INVAL)
        } else if matches!(op, Op::ReadAt { .. }) {
            Some(Errno::OPNOTSUPP)
        } else if self.lane(op.direction()).is_some() {
            Some(Errno::BUSY)
        } else {
            None
        }
    }
}

/// A [`Driver`] of the selector class.
pub(super) struct Selector<P> {
    poller: P,
    waker: Arc<OwnedFd>,
    sources: Paged<Source>,
    /// Indices of sources whose registration may have to change, or that have a fresh operation.
    dirty: Vec<usize>,
    /// Ends of cancelled and refused operations, to be reported in the next turn.
    endings: Vec<Completion>,
    /// The events of the last wait, of which the first `served` have been served.
    events: Vec<Event>,
    served: usize,
    /// See [`Driver::has_polled_all`].
    polled_all: bool,
    transfers: Transfers,
    acceptor: Acceptor,
}

impl<P: Poller> fmt::Debug for Selector<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selector")
            .field("poller", &self.poller)
            .field("waker", &self.waker)
            .field("sources", &self.sources.len())
            .finish_non_exhaustive()
    }
}

impl<P: Poller> Selector<P> {
    pub(super) fn new(waker: Arc<OwnedFd>, keep: &Keep) -> Result<Self, Errno> {
        let mut poller = P::new()?;
        poller.add(WAKER, waker.as_fd(), Interest::READ)?;
        Ok(Self {
            poller,
            waker,
            sources: Paged::default(),
            dirty: Vec::new(),
            endings: Vec::new(),
            events: Vec::new(),
            served: 0,
            polled_all: false,
            transfers: Transfers::new(keep),
            acceptor: Acceptor::default(),
        })
    }

    /// Queues an operation's end for the next turn.
    fn end(&mut self, id: OpId, done: Done) {
        self.endings.push(Completion {
            id,
            done,
            last: true,
        });
    }

    fn mark(&mut self, index: usize) {
        if let Some(source) = self.sources.get_mut(index)
            && !source.dirty
        {
            source.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Tries fresh operations and registers changed interest.
    fn apply_changes(&mut self, turn: &mut TurnState<'_>) {
        // Sends get half of the budget, so that a loop that sends a lot also receives.
        let reserve = turn.budget.completions / 2;
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|&index| {
            let Some(source) = self.sources.get_mut(index) else {
                return false;
            };
            if let Some(live) = &mut source.write
                && live.fresh
            {
                if turn.budget.completions <= reserve {
                    return true;
                }
                self.attempt(index, Direction::Write, turn);
            }
            self.register(index, turn);
            if let Some(source) = self.sources.get_mut(index) {
                source.dirty = false;
            }
            false
        });
        self.dirty = dirty;
    }

    /// Registers a source's current interest. If the system refuses, the source's operations fail.
    fn register(&mut self, index: usize, turn: &mut TurnState<'_>) {
        let Some(source) = self.sources.get_mut(index) else {
            return;
        };
        let (was, now) = (source.registered, source.interest());
        if was == now {
            return;
        }
        let (token, fd) = (token(index), source.fd.as_fd());
        let result = if now == Interest::NONE {
            self.poller.remove(token, fd)
        } else if was == Interest::NONE {
            self.poller.add(token, fd, now)
        } else {
            self.poller.modify(token, fd, now)
        };
        source.registered = now;
        if let Err(errno) = result {
            if was != Interest::NONE {
                // The registration has failed already, which its operations report below.
                let _ = self.poller.remove(token, fd);
            }
            source.registered = Interest::NONE;
            let ended = [source.read.take(), source.write.take()];
            for Live { id, .. } in ended.into_iter().flatten() {
                turn.push(id, Done::Failed(errno), true);
            }
        }
    }

    /// Serves the events of the last wait until the budget is spent.
    fn serve(&mut self, turn: &mut TurnState<'_>) {
        while let Some(&Event { token, read, write }) = self.events.get(self.served) {
            if token != WAKER {
                for (direction, found) in [(Direction::Read, read), (Direction::Write, write)] {
                    if !found {
                        continue;
                    }
                    if turn.is_spent() {
                        return;
                    }
                    self.attempt(token - 1, direction, turn);
                    // The budget may be spent before the write direction is served.
                    self.events[self.served].read = false;
                }
            }
            self.served += 1;
        }
    }

    /// Tries the source's operation in that direction, if it has one.
    fn attempt(&mut self, index: usize, direction: Direction, turn: &mut TurnState<'_>) {
        let Some(source) = self.sources.get_mut(index) else {
            return;
        };
        let mode = source.mode;
        let (fd, lane) = match direction {
            Direction::Read => (source.fd.as_fd(), &mut source.read),
            Direction::Write => (source.fd.as_fd(), &mut source.write),
        };
        let Some(Live { id, op, fresh }) = lane else {
            return;
        };
        let id = *id;
        let was_fresh = std::mem::take(fresh);
        let attempt = match op {
            Op::Ready(direction) => transfer::readiness(fd, *direction).map(Done::Ready),
            Op::HangUp => transfer::hang_up(fd).map(Done::Ready),
            Op::Recv { max, offset } => {
                let max = turn.budget.bytes.min(*max as usize);
                match self.transfers.read(fd, mode, *offset, max) {
                    Ok(bytes) if !bytes.is_empty() => {
                        offset.advance(bytes.len());
                        return turn.push_data(id, bytes, false);
                    }
                    other => other.map(|_| Done::Eof),
                }
            }
            // `Source::refuses` does not let it start.
            Op::ReadAt { .. } => return,
            Op::Accept { limit } => match turn.accept(&mut self.acceptor, fd, mode, id, limit) {
                Ok(false) => return,
                other => other.map(|_| Done::Cancelled),
            },
            Op::Connect(address) if was_fresh => {
                transfer::connect(fd, address).map(|()| Done::Connected)
            }
            Op::Connect(_) => transfer::connected(fd).map(|()| Done::Connected),
            Op::Send(outbound) => self.transfers.send(fd, mode, outbound).map(Done::Sent),
        };
        let done = match attempt {
            Ok(done) => done,
            Err(CallError::Failed(errno)) => Done::Failed(errno),
            // A watched source is no longer ready. `stuck` is not called for it, because that
            // would take the pending error out of a client's socket.
            Err(CallError::WouldBlock) if was_fresh || matches!(op, Op::Ready(_) | Op::HangUp) => {
                return;
            }
            Err(CallError::WouldBlock) => match transfer::stuck(fd, direction) {
                Some(errno) => Done::Failed(errno),
                None => return,
            },
        };
        *lane = None;
        turn.push(id, done, true);
        self.mark(index);
    }
}

impl<P: Poller> Driver for Selector<P> {
    fn attach(&mut self, fd: OwnedFd, mode: Nonblocking) -> Result<SourceId, AttachError> {
        if self.room() == 0 {
            return Err(AttachError::Limit(P::LIMIT));
        }
        Ok(SourceId::at(self.sources.insert(Source {
            fd,
            mode,
            read: None,
            write: None,
            registered: Interest::NONE,
            dirty: false,
        })))
    }

    fn room(&self) -> usize {
        P::LIMIT.saturating_sub(self.sources.len())
    }

    fn committed(&mut self) {
        self.transfers.committed();
    }

    fn is_lossy(&self) -> bool {
        self.transfers.is_lossy()
    }

    fn start(&mut self, id: OpId, source: SourceId, op: Op) {
        let index = source.index();
        let refusal = match self.sources.get_mut(index) {
            None => Some(Errno::BADF),
            Some(source) => source.refuses(&op),
        };
        if let Some(errno) = refusal {
            return self.end(id, Done::Failed(errno));
        }
        if let Some(source) = self.sources.get_mut(index) {
            let fresh = matches!(op, Op::Connect(_) | Op::Send(_));
            let lane = source.lane(op.direction());
            *lane = Some(Live { id, op, fresh });
            self.mark(index);
        }
    }

    fn cancel(&mut self, id: OpId, source: SourceId) {
        let index = source.index();
        let Some(source) = self.sources.get_mut(index) else {
            return;
        };
        for direction in [Direction::Read, Direction::Write] {
            if source
                .lane(direction)
                .take_if(|live| live.id == id)
                .is_some()
            {
                self.end(id, Done::Cancelled);
                return self.mark(index);
            }
        }
    }

    fn detach(&mut self, source: SourceId) -> Option<OwnedFd> {
        let index = source.index();
        let source = self.sources.try_remove(index)?;
        debug_assert_eq!(source.interest(), Interest::NONE, "live operations");
        if source.registered != Interest::NONE {
            // Fails only for a descriptor that is not registered, so nothing is left behind.
            let _ = self.poller.remove(token(index), source.fd.as_fd());
        }
        Some(source.fd)
    }

    fn fd(&self, source: SourceId) -> Option<BorrowedFd<'_>> {
        let index = source.index();
        self.sources.get(index).map(|source| source.fd.as_fd())
    }

    fn is_shared(&self, source: SourceId) -> bool {
        let source = self.sources.get(source.index());
        source.is_some_and(|source| source.mode != Nonblocking::Own)
    }

    fn has_polled_all(&self) -> bool {
        self.polled_all
    }

    fn turn(
        &mut self,
        timeout: Option<Duration>,
        budget: Budget,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        self.polled_all = false;
        let mut turn = TurnState::new(budget, completions);
        for Completion { id, done, last } in self.endings.drain(..) {
            turn.push(id, done, last);
        }
        self.apply_changes(&mut turn);
        if turn.is_spent() && !turn.progress {
            // With a budget of zero a ready source cannot be reported, so it must not end the wait.
            return Ok(wait(&self.waker, timeout)?);
        }
        self.serve(&mut turn);
        if self.served < self.events.len() || turn.is_spent() {
            return Ok(());
        }

        self.events.clear();
        self.served = 0;
        let timeout = if turn.progress {
            Some(Duration::ZERO)
        } else {
            timeout
        };
        match self.poller.wait(timeout, &mut self.events) {
            Ok(()) => {
                self.serve(&mut turn);
                self.polled_all = self.served == self.events.len() && self.dirty.is_empty();
                Ok(())
            }
            // Signals reach the loop through its mailbox and waker.
            Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop may have a million sources.
    #[test]
    fn a_source_is_small() {
        assert!(size_of::<Source>() <= 80, "{} bytes", size_of::<Source>());
    }
}
