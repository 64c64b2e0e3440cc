//! Results from the kernel, and how they change the state of operations.

use std::io;

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::driver::Proactor;
use super::entry::{Entry, Outcome, Token};
use super::operation::{Report, Stage};
use crate::driver::{Direction, Done, Op, transfer};

/// Returns the error for a result that is impossible. After one, no result can be trusted.
fn impossible(what: &str) -> io::Error {
    io::Error::other(format!("io_uring reported {what}"))
}

/// Checks a result of an operation that the kernel carries out. Returns what is impossible in it.
fn check_result(op: &Op, outcome: &Outcome) -> Option<&'static str> {
    let receives = matches!(op, Op::Recv { .. } | Op::ReadAt { .. });
    match (op, outcome.result) {
        (Op::Send(outbound), Ok(sent)) if sent > outbound.bytes.len() => {
            Some("more bytes sent than were submitted")
        }
        (_, Ok(len)) if receives && len != outcome.data.len() => {
            Some("bytes that are in no buffer of the daemon")
        }
        (Op::Recv { .. }, Ok(1..)) => None,
        _ => (!outcome.last).then_some("a final result, marked as not the last"),
    }
}

/// Checks the result of a cancellation. `ENOENT` and `EALREADY` are harmless: the operation had
/// ended, or ends by itself.
fn cancellation_failed(result: Result<usize, Errno>) -> Result<(), Errno> {
    match result {
        Ok(_) | Err(Errno::NOENT | Errno::ALREADY) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Returns whether a poll for writing ended although the source is neither writable, hung up nor
/// failed.
fn is_for_nothing(token: Token, found: usize) -> bool {
    let meant = PollFlags::OUT | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    let found = u16::try_from(found).map_or(PollFlags::all(), PollFlags::from_bits_retain);
    token.direction() == Direction::Write && !found.intersects(meant)
}

impl Proactor {
    /// Processes the results that the kernel has left. Returns their number.
    ///
    /// # Errors
    /// A result is impossible.
    pub(super) fn process_results(&mut self) -> io::Result<usize> {
        let entries = self.ring.take_results();
        let count = entries.len();
        let result = entries
            .iter()
            .try_for_each(|entry| self.process_entry(entry));
        self.ring.recycle(entries);
        if result.is_err() {
            self.ring.distrust();
        }
        result.map(|()| count)
    }

    fn process_entry(&mut self, entry: &Entry) -> io::Result<()> {
        let token = entry.token;
        let stage = self.live(token).map(|live| live.stage);
        let asked = match token {
            Token::CANCELLATION => {
                self.ring.saw();
                return Ok(cancellation_failed(entry.result)?);
            }
            Token::WAKER => self.waker_polled,
            Token::EPOLL => self.epoll.polled,
            _ => matches!(stage, Some(Stage::Polling | Stage::Submitted)),
        };
        if !asked {
            return Err(impossible("the end of an operation that was not submitted"));
        }
        self.receipt = self.ring.next_receipt();
        let submitted = self
            .live(token)
            .filter(|live| live.stage == Stage::Submitted);
        let offset = submitted.and_then(|live| live.op.offset());
        let outcome = self.ring.read(entry, offset);
        let outcome = outcome.ok_or_else(|| impossible("a buffer that was not provided"))?;
        let op = self.live(token).map(|live| &live.op);
        let violation = match (stage, op) {
            (Some(Stage::Submitted), Some(op)) => check_result(op, &outcome),
            // Every poll is submitted as single-shot.
            _ => (!outcome.last).then_some("a single-shot poll that goes on"),
        };
        if let Some(what) = violation {
            return Err(impossible(what));
        }
        match (token, stage) {
            (_, Some(Stage::Submitted)) => self.done(outcome),
            (Token::WAKER, _) => {
                // Without a poll of the waker, the loop would miss wake-ups.
                outcome.result?;
                (self.waker_polled, self.woken) = (false, true);
            }
            (Token::EPOLL, _) => {
                outcome.result?;
                self.process_epoll();
            }
            _ => self.polled(token, outcome.result),
        }
        Ok(())
    }

    /// Processes the result of a poll.
    fn polled(&mut self, token: Token, result: Result<usize, Errno>) {
        let Some(live) = self.live(token) else {
            return;
        };
        match result {
            Ok(found) if is_for_nothing(token, found) => self.wait_in_epoll(token),
            Ok(_) if live.waits_to_transfer() => {
                (live.poll_first, live.polled) = (false, true);
                self.resubmit(token);
            }
            Ok(_) => {
                live.stage = Stage::Done;
                self.queue_report(token, Report::Ready);
            }
            Err(Errno::CANCELED | Errno::INTR | Errno::AGAIN) => self.resubmit(token),
            Err(errno) => self.end(token, Done::Failed(errno)),
        }
    }

    /// Processes a result of an operation that the kernel carries out.
    fn done(&mut self, outcome: Outcome) {
        let Outcome {
            token,
            result,
            data,
            last,
        } = outcome;
        let Some(source) = self.sources.get_mut(token.source()) else {
            return;
        };
        let many = source.reads_many;
        let Some((fd, live)) = source.parts(token.direction()) else {
            return;
        };
        let once = matches!(live.op, Op::ReadAt { .. });
        let receives = once || matches!(live.op, Op::Recv { .. });
        match result {
            Ok(len) if !receives => self.end(token, Done::Sent(len)),
            Ok(_) if !data.is_empty() => {
                live.polled = false;
                if let Op::Recv { offset, .. } = &mut live.op {
                    offset.advance(data.len());
                }
                if once {
                    live.stage = Stage::Done;
                }
                self.queue_report(token, Report::Data(data));
                if last && !once {
                    self.resubmit(token);
                }
            }
            Ok(_) => self.end(token, Done::Eof),
            Err(Errno::NOBUFS) if receives => {
                self.ring.ran_out_of_buffers();
                if live.cancelling {
                    return self.end(token, Done::Cancelled);
                }
                self.wait_for_buffer(token);
            }
            Err(Errno::INTR) => self.resubmit(token),
            // An operation that the kernel gave up by itself is treated as not ready.
            Err(Errno::AGAIN | Errno::CANCELED) => {
                live.poll_first = true;
                let stuck = (live.polled && !live.cancelling)
                    .then(|| transfer::stuck(fd, token.direction()));
                match stuck.flatten() {
                    Some(errno) => self.end(token, Done::Failed(errno)),
                    None => self.resubmit(token),
                }
            }
            // Some devices do not support the multishot read.
            Err(Errno::BADFD | Errno::INVAL | Errno::OPNOTSUPP) if receives && many && !once => {
                source.reads_many = false;
                self.resubmit(token);
            }
            Err(errno) => self.end(token, Done::Failed(errno)),
        }
    }

    /// Makes an operation wait in epoll after the ring's poll ended only because of `RDHUP`.
    pub(super) fn wait_in_epoll(&mut self, token: Token) {
        let Some(source) = self.sources.get_mut(token.source()) else {
            return;
        };
        let Some((fd, live)) = source.parts(token.direction()) else {
            return;
        };
        if live.cancelling {
            return self.end(token, Done::Cancelled);
        }
        match self.epoll.add(token, fd) {
            Ok(()) => live.stage = Stage::InEpoll,
            Err(errno) => self.end(token, Done::Failed(errno)),
        }
    }

    /// Removes an operation's source from epoll.
    pub(super) fn leave_epoll(&mut self, token: Token) {
        if let Some(source) = self.sources.get_mut(token.source())
            && let Some((fd, _)) = source.parts(token.direction())
        {
            self.epoll.remove(fd);
        }
    }

    /// Goes on with the operations that are ready, after the ring's poll of epoll has ended.
    pub(super) fn process_epoll(&mut self) {
        self.epoll.polled = false;
        for token in self.epoll.ready() {
            self.leave_epoll(token);
            if let Some(live) = self.live(token)
                && live.stage == Stage::InEpoll
            {
                if live.waits_to_transfer() {
                    (live.poll_first, live.polled) = (false, true);
                    self.resubmit(token);
                } else {
                    live.stage = Stage::Done;
                    self.queue_report(token, Report::Ready);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::driver::proactor::ring::Ring;
    use crate::driver::{
        Budget, Completion, Driver, Key, Lane, Nonblocking, Offset, OpId, Outbound, SourceId,
    };
    use crate::state::Keep;

    const AMPLE: Budget = Budget {
        completions: 10,
        bytes: 1 << 20,
    };
    /// Flags of a completion: `IORING_CQE_F_BUFFER` with a buffer's number, `IORING_CQE_F_MORE`.
    const NO_SUCH_BUFFER: u32 = 1 | 9999 << 16;
    const MORE: u32 = 2;
    const READ: Op = Op::Ready(Direction::Read);
    const RECV: Op = Op::Recv {
        max: 100,
        offset: Offset::NONE,
    };

    fn outbound(bytes: impl Into<Bytes>) -> Op {
        let (bytes, offset) = (bytes.into(), Offset::NONE);
        Op::Send(Box::new(Outbound { bytes, offset }))
    }

    struct Shared(Arc<[u8; 10]>);

    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &*self.0
        }
    }

    struct Rig {
        driver: Proactor,
        source: SourceId,
        _peer: OwnedFd,
    }

    impl Rig {
        /// Starts the operation on the reading end of an empty pipe or the writing end of a full
        /// one, so that it waits.
        fn new(op: Op) -> Self {
            let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
            let mut driver = Proactor::new(Ring::new(true, &Keep::Own).unwrap(), waker);
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let (ours, peer) = if op.direction() == Direction::Read {
                (reader, writer)
            } else {
                rustix::io::write(&writer, &[0; 1 << 16]).unwrap();
                (writer, reader)
            };
            let source = driver.attach(ours, Nonblocking::Pipe).unwrap();
            let watch = Key {
                slot: 0,
                generation: 0,
            };
            let lane = Lane(0);
            driver.start(OpId { watch, lane }, source, op);
            let mut rig = Self {
                driver,
                source,
                _peer: peer,
            };
            rig.turn().unwrap();
            rig
        }

        fn turn(&mut self) -> io::Result<Vec<Completion>> {
            let mut completions = Vec::new();
            let turn = (self.driver).turn(Some(Duration::ZERO), AMPLE, &mut completions);
            turn.map(|()| completions)
        }
    }

    #[test]
    fn what_cannot_be_fails_the_backend_with_its_reason() {
        let read = Token::new(0, Direction::Read);
        let write = Token::new(0, Direction::Write);
        let send = || outbound(vec![0; 10]);
        type Case = (Op, Token, Result<usize, Errno>, u32, &'static str);
        let cases: [Case; 11] = [
            (
                READ,
                Token::new(7, Direction::Read),
                Ok(1),
                0,
                "not submitted",
            ),
            (READ, write, Ok(4), 0, "not submitted"),
            (READ, Token::WAKER, Ok(1), 0, "not submitted"),
            (READ, Token::EPOLL, Ok(1), 0, "not submitted"),
            (READ, read, Ok(1), MORE, "poll that goes on"),
            (
                READ,
                Token::CANCELLATION,
                Err(Errno::INVAL),
                0,
                "Invalid argument",
            ),
            (RECV, read, Ok(10), 0, "in no buffer of the daemon"),
            (RECV, read, Ok(10), NO_SUCH_BUFFER, "not provided"),
            (RECV, read, Err(Errno::IO), MORE, "not the last"),
            (send(), write, Ok(11), 0, "more bytes sent"),
            (send(), write, Ok(10), MORE, "not the last"),
        ];
        for (op, token, result, flags, reason) in cases {
            let case = format!("{op:?} {token:?} {result:?} {flags}");
            // `start` only polled for the source so far; inject that the kernel has the operation.
            let submitted = !matches!(op, Op::Ready(_));
            let mut rig = Rig::new(op);
            if submitted && let Some(live) = rig.driver.live(token) {
                live.stage = Stage::Submitted;
            }
            rig.driver.ring.inject(token, result, flags);
            let error = rig.turn().expect_err(&case).to_string();
            assert!(error.contains(reason), "{case}: {error}");
        }
    }

    #[test]
    fn what_is_in_flight_keeps_its_memory_when_nothing_can_be_relied_on() {
        let memory = Arc::new([0; 10]);
        let bytes = Bytes::from_owner(Shared(memory.clone()));
        let mut rig = Rig::new(outbound(bytes));
        rig.driver.ring.inject(Token::WAKER, Ok(1), 0);
        rig.turn().unwrap_err();
        drop(rig);
        assert_eq!(Arc::strong_count(&memory), 2, "freed in flight");
    }

    #[test]
    fn a_cancellation_that_comes_too_late_is_harmless() {
        let mut rig = Rig::new(READ);
        for errno in [Errno::NOENT, Errno::ALREADY] {
            rig.driver.ring.inject(Token::CANCELLATION, Err(errno), 0);
            assert!(rig.turn().unwrap().is_empty());
        }
        assert!(rig.driver.fd(rig.source).is_some());
    }

    #[test]
    fn a_wait_that_cannot_be_ended_fails_the_backend() {
        let mut rig = Rig::new(READ);
        rig.driver.waker_polled = true;
        rig.driver.ring.inject(Token::WAKER, Err(Errno::INVAL), 0);
        rig.turn().unwrap_err();
    }
}
