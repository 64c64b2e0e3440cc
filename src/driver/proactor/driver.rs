//! The io_uring driver and its turn.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::entry::Token;
use super::epoll::EpollSet;
use super::operation::{Live, Pending, Report, Source, Stage};
use super::ring::{MUCH, Ring};
use crate::driver::acceptor::Acceptor;
use crate::driver::turn::TurnState;
use crate::driver::{
    AttachError, Budget, Completion, Direction, Done, Driver, Nonblocking, Op, OpId, SourceId,
};
use crate::paged::Paged;

/// The number of results that one io_uring_enter(2) brings at most, unless it asks for more.
const CALL: usize = 20;

/// If one io_uring_enter(2) brings this many results, the kernel probably has more. A turn does not
/// go on for fewer results: it would keep collecting events as fast as they are produced and
/// deliver none meanwhile.
const BATCH: usize = 16;

/// Most calls of io_uring_enter(2) in one turn that already has something to report. Longer turns
/// keep readers waiting: measured with a thousand pipes and two processors, 50 calls
/// deliver 1.3 events per microsecond, 4 to 16 calls 1.8.
const CALLS_MAX: usize = 8;

/// Most calls of io_uring_enter(2) in one turn that has nothing to report, so that busy sources
/// cannot keep the loop from its mailbox.
const STEPS_MAX: usize = 64;

/// A [`Driver`] of the proactor class.
pub(super) struct Proactor {
    pub(super) ring: Ring,
    waker: Arc<OwnedFd>,
    /// Whether a poll of the waker is in the kernel.
    pub(super) waker_polled: bool,
    pub(super) woken: bool,
    pub(super) epoll: EpollSet,
    pub(super) acceptor: Acceptor,
    pub(super) sources: Paged<Source>,
    /// Operations to submit in the next turn.
    pub(super) queued: Vec<Token>,
    /// Reads of regular files that wait for room in the budget.
    pub(super) files: VecDeque<Token>,
    /// Receives that found no buffer, each with its place in the queue; they go on in this order.
    /// An entry is stale if its operation has since ended or been given another place.
    pub(super) waiting_receives: VecDeque<(Token, u64)>,
    /// The last place given in `waiting_receives`.
    pub(super) places: u64,
    /// Operations in the kernel for which a cancellation is to be submitted.
    pub(super) cancelled: Vec<Token>,
    /// Number of live operations that receive.
    pub(super) receiving: usize,
    /// Number of cancelled operations whose end was not reported yet.
    pub(super) cancelling: usize,
    /// Results of the kernel that no turn has had budget for yet.
    pub(super) reports: VecDeque<Pending>,
    /// The number of the next receipt before the result that is processed.
    pub(super) receipt: u64,
    /// Bytes in `reports`.
    pub(super) held: usize,
    /// Refused operations, to be reported in the next turn.
    refused: Vec<Completion>,
    /// See [`Driver::has_polled_all`].
    polled_all: bool,
}

impl fmt::Debug for Proactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proactor")
            .field("ring", &self.ring)
            .field("waker", &self.waker)
            .field("sources", &self.sources.len())
            .field("waiting_receives", &self.waiting_receives.len())
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
            epoll: EpollSet::default(),
            acceptor: Acceptor::default(),
            sources: Paged::default(),
            queued: Vec::new(),
            files: VecDeque::new(),
            waiting_receives: VecDeque::new(),
            places: 0,
            cancelled: Vec::new(),
            receiving: 0,
            cancelling: 0,
            reports: VecDeque::new(),
            receipt: 0,
            held: 0,
            refused: Vec::new(),
            polled_all: false,
        }
    }

    pub(super) fn live(&mut self, token: Token) -> Option<&mut Live> {
        let source = self.sources.get_mut(token.source())?;
        source.lane(token.direction()).as_mut()
    }

    /// Queues a result, to be reported when a turn has budget for it.
    pub(super) fn queue_report(&mut self, token: Token, what: Report) {
        if let Report::Data(bytes) = &what {
            self.held += bytes.len();
        }
        self.reports.push_back(Pending {
            token,
            what,
            receipt: self.receipt,
        });
    }

    pub(super) fn end(&mut self, token: Token, done: Done) {
        if let Some(live) = self.live(token) {
            live.stage = Stage::Done;
            self.queue_report(token, Report::End(done));
        }
    }

    /// Queues an operation to be submitted again, or ends it if it was cancelled.
    pub(super) fn resubmit(&mut self, token: Token) {
        if let Some(live) = self.live(token) {
            if live.cancelling {
                return self.end(token, Done::Cancelled);
            }
            live.stage = Stage::Queued;
            self.queue(token);
        }
    }

    /// Queues an operation to be submitted to the kernel.
    fn queue(&mut self, token: Token) {
        let file = |live: &mut Live| matches!(live.op, Op::ReadAt { .. });
        if self.live(token).is_some_and(file) {
            self.files.push_back(token);
        } else {
            self.queued.push(token);
        }
    }

    /// Returns whether operations wait that can be submitted now.
    fn is_behind(&self) -> bool {
        !self.queued.is_empty() || (!self.waiting_receives.is_empty() && self.ring.exposed() > 0)
    }

    /// Polls the loop's waker, so that it ends the wait.
    fn poll_waker(&mut self) {
        if !self.waker_polled {
            // If the kernel takes no more entries, other results will end the wait.
            self.waker_polled = self.ring.poll(Token::WAKER, self.waker.as_fd()).is_ok();
        }
    }

    /// Polls the epoll instance of [`EpollSet`], so that its sources end the wait.
    fn poll_epoll(&mut self) {
        if let Some(epoll) = self.epoll.unpolled() {
            self.epoll.polled = self.ring.poll(Token::EPOLL, epoll.as_fd()).is_ok();
        }
    }
}

impl Driver for Proactor {
    fn attach(&mut self, fd: OwnedFd, mode: Nonblocking) -> Result<SourceId, AttachError> {
        let socket = match mode {
            Nonblocking::Socket => true,
            Nonblocking::Pipe
            | Nonblocking::Terminal
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

    fn committed(&mut self) {
        let oldest = self.reports.front().map(|pending| pending.receipt);
        let first = oldest.unwrap_or_else(|| self.ring.next_receipt());
        self.ring.committed(first);
    }

    fn is_lossy(&self) -> bool {
        self.ring.is_lossy()
    }

    fn start(&mut self, id: OpId, source: SourceId, op: Op) {
        let index = source.index();
        let direction = op.direction();
        let refusal = match self.sources.get_mut(index) {
            None => Errno::BADF,
            Some(source) if !source.mode.allows(&op) => Errno::INVAL,
            Some(source) => {
                let receives = matches!(op, Op::Recv { .. });
                // A read from a FIFO that no process has opened for writing yet returns end of
                // file; a poll waits for the first writer.
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
                Stage::InEpoll => {
                    self.leave_epoll(token);
                    self.end(token, Done::Cancelled);
                }
                Stage::Done => {}
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
        // A result for an operation still in the kernel would be taken for one of the next source
        // with the same index.
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

    fn has_polled_all(&self) -> bool {
        self.polled_all
    }

    fn turn(
        &mut self,
        timeout: Option<Duration>,
        budget: Budget,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        self.ring.enable()?;
        self.polled_all = false;
        let mut wait = timeout;
        let deadline = timeout
            .filter(|timeout| !timeout.is_zero())
            .and_then(|timeout| Instant::now().checked_add(timeout));
        let mut turn = TurnState::new(budget, completions);
        for Completion { id, done, last } in self.refused.drain(..) {
            turn.push(id, done, last);
        }
        self.report(&mut turn);
        // Consecutive calls of io_uring_enter(2) that brought nothing.
        let mut quiet = 0;
        let mut calls = 0;
        // Whether the last call brought as many results as it may.
        let mut much = false;
        loop {
            self.read_files(turn.room(self.exposed()));
            if self.receiving > 0 {
                self.ring.replenish(turn.room(self.exposed()));
            } else {
                self.ring.withdraw();
            }
            self.poll_epoll();
            if self.ring.is_crowded() && self.cancelling == 0 {
                // What was handed over has to be committed first.
                let timeout = if turn.progress {
                    Some(Duration::ZERO)
                } else {
                    wait
                };
                return Ok(crate::driver::wait::wait(&self.waker, timeout)?);
            }
            let taken = self.submit();
            let can_tell = !self.reports.is_empty() && !turn.is_spent();
            let hurry = turn.progress || self.is_behind() || can_tell;
            if hurry {
                wait = Some(Duration::ZERO);
            } else if wait != Some(Duration::ZERO) {
                self.poll_waker();
            }
            self.ring.enter(wait, much)?;
            calls += if much { MUCH / CALL } else { 1 };
            let count = self.process_results()?;
            much = count >= BATCH;
            self.report(&mut turn);
            let woken = std::mem::take(&mut self.woken);
            quiet = if count > 0 { 0 } else { quiet + 1 };
            // Some operations take the kernel two calls. `has_more` is only a hint: the kernel
            // may also set it for work that is done.
            let next_step = quiet < 2 && self.ring.has_more();
            // Results for the watches may still follow.
            let unsettled = count > 0 || hurry || next_step;
            let more = if turn.progress {
                let held_back = count >= BATCH && calls < CALLS_MAX;
                next_step && (held_back || self.cancelling > 0) && !turn.is_spent()
            } else {
                !woken && unsettled
            };
            if !more || !taken || calls >= STEPS_MAX {
                self.polled_all = taken && !unsettled && self.reports.is_empty();
                return Ok(());
            }
            wait = match deadline {
                Some(deadline) => Some(deadline.saturating_duration_since(Instant::now())),
                None => timeout,
            };
        }
    }
}
