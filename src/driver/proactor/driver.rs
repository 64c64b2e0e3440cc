//! The driver, and its turn.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;
use slab::Slab;

use super::aside::Aside;
use super::entry::Token;
use super::operation::{Live, Source, Stage, What};
use super::ring::Ring;
use crate::driver::acceptor::Acceptor;
use crate::driver::turn::Turn;
use crate::driver::{
    AttachError, Budget, Completion, Direction, Done, Driver, Nonblocking, Op, OpId, SourceId,
};

/// So much is heard of one call only if the kernel held more back: it does at most 20
/// things a call. To go on for less would be to run after whoever makes events, and
/// tell them of none meanwhile.
const BATCH: usize = 16;

/// Most calls of the kernel for one turn that has something to tell already. Longer
/// turns keep readers waiting: measured with a thousand pipes and two processors, 50 calls
/// deliver 1.3 events per microsecond, 4 to 16 calls 1.8.
const CALLS_MAX: usize = 8;

/// Most calls of the kernel for one turn that has nothing to tell: the loop looks at its mailbox in
/// between, whatever sources do.
const STEPS_MAX: usize = 64;

/// A [`Driver`] by completion.
pub(super) struct Proactor {
    pub(super) ring: Ring,
    waker: Arc<OwnedFd>,
    /// A poll of the waker is in the kernel.
    pub(super) waker_polled: bool,
    pub(super) woken: bool,
    pub(super) aside: Aside,
    pub(super) acceptor: Acceptor,
    pub(super) sources: Slab<Source>,
    /// To go to the kernel in the next turn.
    pub(super) queued: Vec<Token>,
    /// Reads of files, which wait for room.
    pub(super) files: VecDeque<Token>,
    /// Found no buffer; they go on in this order. Who has another place by now has left.
    pub(super) starved: VecDeque<(Token, u64)>,
    /// The last place given.
    pub(super) places: u64,
    /// In the kernel, to be cancelled.
    pub(super) cancelled: Vec<Token>,
    /// Operations that receive.
    pub(super) receiving: usize,
    /// Operations that are cancelled and whose end was not told.
    pub(super) cancelling: usize,
    /// What the kernel said and no turn had budget for.
    pub(super) found: VecDeque<(Token, What)>,
    /// Bytes in `found`.
    pub(super) held: usize,
    /// Refused operations, told at the next turn.
    refused: Vec<Completion>,
    /// See [`Driver::has_looked`].
    looked: bool,
}

impl fmt::Debug for Proactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proactor")
            .field("ring", &self.ring)
            .field("waker", &self.waker)
            .field("sources", &self.sources.len())
            .field("lined_up", &self.starved.len())
            .finish_non_exhaustive()
    }
}

impl Proactor {
    pub(super) fn new(ring: Ring, waker: Arc<OwnedFd>) -> Self {
        Self {
            ring,
            waker,
            waker_polled: false,
            woken: false,
            aside: Aside::default(),
            acceptor: Acceptor::default(),
            sources: Slab::new(),
            queued: Vec::new(),
            files: VecDeque::new(),
            starved: VecDeque::new(),
            places: 0,
            cancelled: Vec::new(),
            receiving: 0,
            cancelling: 0,
            found: VecDeque::new(),
            held: 0,
            refused: Vec::new(),
            looked: false,
        }
    }

    pub(super) fn live(&mut self, token: Token) -> Option<&mut Live> {
        let source = self.sources.get_mut(token.source())?;
        source.lane(token.direction()).as_mut()
    }

    /// To be told when it is its turn.
    pub(super) fn find(&mut self, token: Token, what: What) {
        if let What::Data(bytes) = &what {
            self.held += bytes.len();
        }
        self.found.push_back((token, what));
    }

    pub(super) fn end(&mut self, token: Token, done: Done) {
        if let Some(live) = self.live(token) {
            live.stage = Stage::Found;
            self.find(token, What::End(done));
        }
    }

    /// It goes to the kernel again, unless nobody wants it any more.
    pub(super) fn again(&mut self, token: Token) {
        if let Some(live) = self.live(token) {
            if live.cancelling {
                return self.end(token, Done::Cancelled);
            }
            live.stage = Stage::Queued;
            self.queue(token);
        }
    }

    /// To go to the kernel.
    fn queue(&mut self, token: Token) {
        let file = |live: &mut Live| matches!(live.op, Op::ReadAt { .. });
        if self.live(token).is_some_and(file) {
            self.files.push_back(token);
        } else {
            self.queued.push(token);
        }
    }

    /// Something can go to the kernel that could not before.
    fn is_behind(&self) -> bool {
        !self.queued.is_empty() || (!self.starved.is_empty() && self.ring.exposed() > 0)
    }

    /// Has the loop's waker end the wait.
    fn watch_waker(&mut self) {
        if !self.waker_polled {
            // If the kernel takes no more, it has enough to say.
            self.waker_polled = self.ring.poll(Token::WAKER, self.waker.as_fd()).is_ok();
        }
    }

    /// Has the wait end for those that wait aside.
    fn watch_aside(&mut self) {
        if let Some(epoll) = self.aside.unpolled() {
            self.aside.polled = self.ring.poll(Token::ASIDE, epoll.as_fd()).is_ok();
        }
    }
}

impl Driver for Proactor {
    fn attach(&mut self, fd: OwnedFd, mode: Nonblocking) -> Result<SourceId, AttachError> {
        let socket = match mode {
            Nonblocking::Socket => true,
            Nonblocking::Pipe
            | Nonblocking::Listener
            | Nonblocking::ReadinessOnly
            | Nonblocking::File => false,
            Nonblocking::Own => {
                let stat = rustix::fs::fstat(&fd).map_err(AttachError::System)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Socket
            }
        };
        Ok(SourceId::at(self.sources.insert(Source {
            fd,
            mode,
            socket,
            reads_many: socket || self.ring.reads_many(),
            read: None,
            write: None,
        })))
    }

    fn room(&self) -> usize {
        usize::MAX - self.sources.len()
    }

    fn start(&mut self, id: OpId, source: SourceId, op: Op) {
        let index = source.index();
        let direction = op.direction();
        let refusal = match self.sources.get_mut(index) {
            None => Errno::BADF,
            Some(source) if !source.mode.allows(&op) => Errno::INVAL,
            Some(source) => {
                let receives = matches!(op, Op::Recv { .. });
                // To read from a FIFO that nobody has opened for writing yet gives its end.
                let poll_first = receives && !source.socket;
                match source.lane(direction) {
                    Some(_) => Errno::BUSY,
                    lane => {
                        self.receiving += usize::from(receives);
                        *lane = Some(Live::new(id, op, poll_first));
                        return self.queue(Token::new(index, direction));
                    }
                }
            }
        };
        self.refused.push(Completion {
            id,
            done: Done::Failed(refusal),
            last: true,
        });
    }

    fn cancel(&mut self, id: OpId, source: SourceId) {
        let index = source.index();
        for direction in [Direction::Read, Direction::Write] {
            let token = Token::new(index, direction);
            let Some(live) = self.live(token).filter(|live| live.id == id) else {
                continue;
            };
            if std::mem::replace(&mut live.cancelling, true) {
                return;
            }
            match live.stage {
                Stage::Queued => self.end(token, Done::Cancelled),
                Stage::Submitted | Stage::Polling => self.cancelled.push(token),
                Stage::Aside => {
                    self.leave_aside(token);
                    self.end(token, Done::Cancelled);
                }
                Stage::Found => {}
            }
            self.cancelling += 1;
            return;
        }
    }

    fn detach(&mut self, source: SourceId) -> Option<OwnedFd> {
        let index = source.index();
        let source = self.sources.get(index)?;
        let live = source.read.is_some() || source.write.is_some();
        debug_assert!(!live, "live operations");
        // Whatever is in the kernel for it would be taken for the next in its place.
        (!live).then(|| self.sources.remove(index).fd)
    }

    fn fd(&self, source: SourceId) -> Option<BorrowedFd<'_>> {
        let index = source.index();
        self.sources.get(index).map(|source| source.fd.as_fd())
    }

    fn is_shared(&self, source: SourceId) -> bool {
        let source = self.sources.get(source.index());
        source.is_some_and(|source| source.mode != Nonblocking::Own)
    }

    fn exposed(&self) -> usize {
        self.ring.exposed() + self.ring.lent() + self.held
    }

    fn has_looked(&self) -> bool {
        self.looked
    }

    fn turn(
        &mut self,
        timeout: Option<Duration>,
        budget: Budget,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        self.ring.enable()?;
        self.looked = false;
        let mut wait = timeout;
        let deadline = timeout
            .filter(|timeout| !timeout.is_zero())
            .and_then(|timeout| Instant::now().checked_add(timeout));
        let mut turn = Turn::new(budget, completions);
        for Completion { id, done, last } in self.refused.drain(..) {
            turn.push(id, done, last);
        }
        self.tell(&mut turn);
        // Calls of the kernel in a row that brought nothing.
        let mut quiet = 0;
        let mut calls = 0;
        loop {
            self.read_files(turn.room(self.exposed()));
            if self.receiving > 0 {
                self.ring.replenish(turn.room(self.exposed()));
            } else {
                self.ring.withdraw();
            }
            self.watch_aside();
            let taken = self.submit();
            let can_tell = !self.found.is_empty() && !turn.is_spent();
            let hurry = turn.progress || self.is_behind() || can_tell;
            if hurry {
                wait = Some(Duration::ZERO);
            } else if wait != Some(Duration::ZERO) {
                self.watch_waker();
            }
            self.ring.enter(wait)?;
            let heard = self.listen()?;
            self.tell(&mut turn);
            let woken = std::mem::take(&mut self.woken);
            calls += 1;
            quiet = if heard > 0 { 0 } else { quiet + 1 };
            // It takes the kernel two steps to do some things. That there is a next one is
            // only a hint: it may be said of work that is done.
            let next_step = quiet < 2 && self.ring.has_more();
            // What was heard was not for the watches, or may be followed by what is.
            let unsettled = heard > 0 || hurry || next_step;
            let more = if turn.progress {
                let held_back = heard >= BATCH && calls < CALLS_MAX;
                next_step && (held_back || self.cancelling > 0) && !turn.is_spent()
            } else {
                !woken && unsettled
            };
            if !more || !taken || calls >= STEPS_MAX {
                self.looked = taken && !unsettled && self.found.is_empty();
                return Ok(());
            }
            wait = match deadline {
                Some(deadline) => Some(deadline.saturating_duration_since(Instant::now())),
                None => timeout,
            };
        }
    }
}
