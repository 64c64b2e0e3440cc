//! Reporting to the watches: results become completions as far as a turn's budget allows.

use super::driver::Proactor;
use super::entry::Token;
use super::operation::{Live, Pending, Report};
use crate::driver::transfer::{self, CallError};
use crate::driver::turn::TurnState;
use crate::driver::{Done, Op};

impl Proactor {
    /// Reports results until the budget is spent. Results of cancelled operations are reported
    /// regardless of the budget.
    pub(super) fn report(&mut self, turn: &mut TurnState<'_>) {
        while let Some(pending) = self.reports.pop_front() {
            if turn.is_spent() && !self.is_cancelling(pending.token) {
                self.reports.push_front(pending);
                break;
            }
            if let Some(rest) = self.report_one(pending, turn) {
                self.reports.push_front(rest);
            }
        }
        if self.cancelling > 0 {
            for pending in std::mem::take(&mut self.reports) {
                let kept = if self.is_cancelling(pending.token) {
                    self.report_one(pending, turn)
                } else {
                    Some(pending)
                };
                self.reports.extend(kept);
            }
        }
    }

    fn is_cancelling(&mut self, token: Token) -> bool {
        self.live(token).is_some_and(|live| live.cancelling)
    }

    /// Reports one result. Returns the part that exceeds the budget.
    fn report_one(&mut self, pending: Pending, turn: &mut TurnState<'_>) -> Option<Pending> {
        let Pending {
            token,
            what,
            receipt,
        } = pending;
        let live = self.live(token)?;
        let (id, cancelling) = (live.id, live.cancelling);
        match what {
            Report::Data(data) => {
                let (max, once) = match live.op {
                    Op::Recv { max, .. } => (max, false),
                    Op::ReadAt { max, .. } => (max, true),
                    _ => return None,
                };
                let mut rest = Some(data);
                while let Some(data) = rest.take_if(|_| cancelling || !turn.is_spent()) {
                    let room = if cancelling {
                        usize::MAX
                    } else {
                        turn.budget.bytes
                    };
                    let piece;
                    (piece, rest) = data.split(room.min(max as usize));
                    self.held -= piece.len();
                    let last = once && rest.is_none();
                    if last {
                        self.take_out(token);
                    }
                    turn.push_data(id, piece, last);
                }
                rest.map(|rest| Pending {
                    token,
                    what: Report::Data(rest),
                    receipt,
                })
            }
            Report::End(done) => {
                self.report_end(token, done, turn);
                None
            }
            Report::Ready if cancelling => {
                self.report_end(token, Done::Cancelled, turn);
                None
            }
            Report::Ready => {
                self.attempt(token, turn);
                None
            }
        }
    }

    /// Makes the system call for which a poll waited until the source was ready.
    fn attempt(&mut self, token: Token, turn: &mut TurnState<'_>) {
        let Some(source) = self.sources.get_mut(token.source()) else {
            return;
        };
        let mode = source.mode;
        let Some((fd, live)) = source.parts(token.direction()) else {
            return;
        };
        let attempt = match &mut live.op {
            Op::Ready(direction) => transfer::readiness(fd, *direction).map(Done::Ready),
            Op::HangUp => transfer::hang_up(fd).map(Done::Ready),
            Op::Accept { limit } => match turn.accept(&mut self.acceptor, fd, mode, live.id, limit)
            {
                Ok(false) => return self.resubmit(token),
                other => other.map(|_| Done::Cancelled),
            },
            Op::Connect(_) => transfer::connected(fd).map(|()| Done::Connected),
            // The kernel carries these out.
            Op::Recv { .. } | Op::ReadAt { .. } | Op::Send(_) => return,
        };
        match attempt {
            Ok(done) => self.report_end(token, done, turn),
            Err(CallError::Failed(errno)) => self.report_end(token, Done::Failed(errno), turn),
            // A watched source is no longer ready. `stuck` is not called for it, because that
            // would take the pending error out of a client's socket.
            Err(CallError::WouldBlock) if matches!(live.op, Op::Ready(_) | Op::HangUp) => {
                self.resubmit(token);
            }
            Err(CallError::WouldBlock) => match transfer::stuck(fd, token.direction()) {
                Some(errno) => self.report_end(token, Done::Failed(errno), turn),
                None => self.resubmit(token),
            },
        }
    }

    /// Reports the end of an operation.
    fn report_end(&mut self, token: Token, done: Done, turn: &mut TurnState<'_>) {
        if let Some(live) = self.take_out(token) {
            turn.push(live.id, done, true);
        }
    }

    /// Removes an operation that has ended.
    fn take_out(&mut self, token: Token) -> Option<Live> {
        let source = self.sources.get_mut(token.source())?;
        let live = source.lane(token.direction()).take()?;
        self.cancelling -= usize::from(live.cancelling);
        self.receiving -= usize::from(matches!(live.op, Op::Recv { .. }));
        Some(live)
    }
}
