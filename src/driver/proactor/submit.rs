//! Submission to the kernel: new operations, receives for which there are buffers again, and
//! cancellations.

use std::os::fd::AsRawFd;

use rustix::io::Errno;

use super::driver::Proactor;
use super::entry::Token;
use super::operation::{Live, Stage};
use super::ring::Receive;
use crate::driver::transfer::{self, CallError};
use crate::driver::{Done, Op};

/// The number of exposed bytes for which one receive that had found no buffer is resubmitted.
const SHARE: usize = 4 * 1024;

impl Proactor {
    /// Submits new operations, receives for which there are buffers again, and cancellations.
    /// Returns false if the kernel takes no more entries now.
    pub(super) fn submit(&mut self) -> bool {
        let mut queued = std::mem::take(&mut self.queued);
        queued.retain(|&token| {
            if self.must_wait_for_buffer(token) {
                self.wait_for_buffer(token);
                return false;
            }
            self.submit_one(token).is_err()
        });
        queued.append(&mut self.queued);
        self.queued = queued;

        // One receive may use all buffers, so only a few go on at a time. A receive that finds no
        // bytes waits in the kernel and needs no place in the queue.
        for _ in 0..self.ring.exposed().div_ceil(SHARE) {
            let Some((token, place)) = self.waiting_receives.pop_front() else {
                break;
            };
            let here = self.live(token).is_some_and(|live| live.place == place);
            if here && self.submit_one(token).is_err() {
                self.waiting_receives.push_front((token, place));
                break;
            }
        }

        let mut cancelled = std::mem::take(&mut self.cancelled);
        cancelled.retain(|&token| {
            // The operation may have ended meanwhile, and another may have its token.
            let Some(source) = self.sources.get_mut(token.source()) else {
                return false;
            };
            let Some((fd, live)) = source.parts(token.direction()) else {
                return false;
            };
            let number = match live.stage {
                Stage::Submitted => fd.as_raw_fd(),
                _ => 0,
            };
            live.cancelling && live.is_in_kernel() && self.ring.cancel(token, number).is_err()
        });
        self.cancelled = cancelled;
        self.queued.is_empty() && self.cancelled.is_empty()
    }

    /// Returns whether a receive must wait: there are no buffers, or other receives wait for them.
    fn must_wait_for_buffer(&mut self, token: Token) -> bool {
        let short = self.ring.exposed() == 0 || !self.waiting_receives.is_empty();
        let receives = |live: &mut Live| {
            let receives = matches!(live.op, Op::Recv { .. });
            receives && !live.poll_first && live.stage == Stage::Queued
        };
        short && self.live(token).is_some_and(receives)
    }

    /// Appends a receive to the queue of those that wait for buffers.
    pub(super) fn wait_for_buffer(&mut self, token: Token) {
        self.places += 1;
        let place = self.places;
        if let Some(live) = self.live(token) {
            (live.stage, live.place) = (Stage::Queued, place);
            self.waiting_receives.push_back((token, place));
        }
        if self.waiting_receives.len() > 64 + 2 * self.sources.len() {
            let mut waiting_receives = std::mem::take(&mut self.waiting_receives);
            waiting_receives.retain(|&(token, place)| {
                let live = self.live(token);
                live.is_some_and(|live| live.place == place && live.stage == Stage::Queued)
            });
            self.waiting_receives = waiting_receives;
        }
    }

    /// Submits reads of files for at most `room` bytes; further reads wait.
    pub(super) fn read_files(&mut self, mut room: usize) {
        while room > 0
            && let Some(token) = self.files.pop_front()
        {
            let Some(source) = self.sources.get_mut(token.source()) else {
                continue;
            };
            let Some((fd, live)) = source.parts(token.direction()) else {
                continue;
            };
            let (Op::ReadAt { offset, max }, Stage::Queued) = (&live.op, live.stage) else {
                continue;
            };
            let len = room.min(*max as usize).min(transfer::READ_MAX);
            if self.ring.read_at(token, fd, *offset, len).is_err() {
                self.files.push_front(token);
                return;
            }
            live.stage = Stage::Submitted;
            room -= len;
        }
    }

    /// Submits one queued operation, or a poll of its source.
    ///
    /// # Errors
    /// The kernel takes no more entries now.
    fn submit_one(&mut self, token: Token) -> Result<(), Errno> {
        let Some(source) = self.sources.get_mut(token.source()) else {
            return Ok(());
        };
        let (many, socket) = (source.reads_many, source.socket);
        let Some((fd, live)) = source.parts(token.direction()) else {
            return Ok(());
        };
        if live.stage != Stage::Queued {
            return Ok(());
        }
        match &live.op {
            Op::Connect(address) if !live.begun => match transfer::connect(fd, address) {
                Err(CallError::WouldBlock) => live.begun = true,
                over => {
                    let done = match over {
                        Err(CallError::Failed(errno)) => Done::Failed(errno),
                        _ => Done::Connected,
                    };
                    self.end(token, done);
                    return Ok(());
                }
            },
            Op::Recv { max, .. } if !live.poll_first => {
                let way = match (many, socket) {
                    (false, _) => Receive::Read,
                    (true, true) => Receive::Recv,
                    (true, false) => Receive::ReadMany,
                };
                self.ring.receive(token, fd, way, *max)?;
                live.stage = Stage::Submitted;
                return Ok(());
            }
            Op::Send(outbound) if !live.poll_first => {
                let (bytes, offset) = (outbound.bytes.clone(), outbound.offset);
                self.ring.send(token, fd, socket, bytes, offset)?;
                live.stage = Stage::Submitted;
                return Ok(());
            }
            Op::HangUp => {
                self.ring.poll_hang_up(token, fd)?;
                live.stage = Stage::Polling;
                return Ok(());
            }
            _ => {}
        }
        self.ring.poll(token, fd)?;
        live.stage = Stage::Polling;
        Ok(())
    }
}
