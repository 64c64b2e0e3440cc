//! Reading the files in their order, and the bounds on those that lost their name.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Follower;
use super::error::{Doing, Error};
use super::generation::{Generation, Read};
use super::told::{Change, GaveUp, Told};
use crate::sys::file::{Writers, writers};

/// How often one file is read in a step at most, as holes cost no budget.
const READS_MAX: usize = 64;

/// Why reading of a file stopped.
enum Stop {
    /// There is more, but not in this step.
    Spent,
    /// All is read that is there now, or it cannot be read now.
    Later,
    /// It is closed, and not among `generations` any more.
    Closed,
}

impl Follower {
    /// Reads at most `budget` bytes. Returns whether there is more to read at once.
    pub(super) fn read(&mut self, now: Instant, budget: usize, told: &mut Vec<Told>) -> bool {
        let mut left = budget;
        let mut more = false;
        let mut index = 0;
        while left > 0 && index < self.generations.len() {
            let (due, late) = match &self.generations[index].rotated {
                None => (true, false),
                Some(rotated) => (now >= rotated.look_at(), rotated.is_late()),
            };
            if due {
                let mut share = if late { left.div_ceil(2) } else { left };
                left -= share;
                let stop = self.read_one(index, now, &mut share, told);
                self.mark(told);
                left += share;
                match stop {
                    Stop::Closed => continue,
                    Stop::Spent => more = true,
                    Stop::Later => {}
                }
            }
            index += 1;
            if makes_wait(&self.generations[index - 1]) {
                break;
            }
        }
        for index in index..self.generations.len() {
            self.check_one(index, told);
            self.mark(told);
        }
        more
    }

    /// When to look again if no path event comes.
    pub(super) fn wake_after(&self, now: Instant, budget: usize) -> Duration {
        let every = self.spec.check_every;
        if budget == 0 {
            return every;
        }
        // Files behind one that makes them wait were not read, so they have no time yet.
        let waiting = self.generations.iter().position(makes_wait);
        let read = waiting.map_or(self.generations.len(), |index| index + 1);
        self.generations
            .iter()
            .take(read)
            .filter_map(|generation| generation.rotated.as_ref())
            .map(|rotated| rotated.look_at().saturating_duration_since(now))
            .fold(every, Duration::min)
    }

    /// Reads one file until its end or until `share` is used up.
    fn read_one(
        &mut self,
        index: usize,
        now: Instant,
        share: &mut usize,
        told: &mut Vec<Told>,
    ) -> Stop {
        let wait = self.spec.rotated_wait;
        let mut reads = 0;
        let mut no_writer = false;
        while *share > 0 && reads < READS_MAX {
            reads += 1;
            let generation = &mut self.generations[index];
            let read = match generation.read(self.spec.read_size.min(*share)) {
                Ok(read) => read,
                Err(errno) => return self.read_failed(index, errno, now, told),
            };
            generation.failing = None;
            generation.judge(now, wait, matches!(read, Read::End { .. }));
            let Read::End { hole } = read else {
                if let Some(rotated) = &mut generation.rotated {
                    rotated.active(now);
                }
                let number = generation.number;
                *share -= self.tell(number, read, told);
                continue;
            };
            if no_writer || !self.spec.follow {
                let number = generation.number;
                if hole > 0 {
                    self.tell(number, Read::Hole(hole), told);
                }
                self.close(index);
                return Stop::Closed;
            }
            let Some(rotated) = &mut generation.rotated else {
                return Stop::Later;
            };
            match writers(&generation.file) {
                // The last one may have written after the file was read: once more.
                Writers::None => no_writer = true,
                Writers::Unknown if rotated.is_quiet_for(wait, now) => {
                    self.give_up(index, GaveUp::WritersUnknown, told);
                    return Stop::Closed;
                }
                Writers::Some | Writers::Unknown => {
                    rotated.look_later(now, wait, self.spec.check_every);
                    return Stop::Later;
                }
            }
        }
        Stop::Spent
    }

    /// Looks whether a file was cut that is not read in this step.
    fn check_one(&mut self, index: usize, told: &mut Vec<Told>) {
        let generation = &mut self.generations[index];
        let number = generation.number;
        match generation.check() {
            Ok(cut) => {
                generation.failing = None;
                if let Some(cut) = cut {
                    self.tell(number, cut, told);
                }
            }
            Err(errno) => self.tell_failure(index, errno, told),
        }
    }

    /// Tells what was read. Returns how many bytes it holds in memory.
    fn tell(&mut self, generation: u64, read: Read, told: &mut Vec<Told>) -> usize {
        let offset = self.offset;
        let change = match read {
            Read::Data(bytes) => {
                let length = bytes.len();
                self.offset += length as u64;
                told.push(Told::Data {
                    generation,
                    offset,
                    bytes,
                });
                return length;
            }
            Read::Hole(length) => {
                self.offset += length;
                Change::Hole { offset, length }
            }
            Read::Truncated { lost } => Change::Truncated {
                at: offset,
                lost_at_least: lost,
            },
            Read::End { .. } => return 0,
        };
        told.push(Told::Changed { generation, change });
        self.mark(told);
        0
    }

    fn read_failed(
        &mut self,
        index: usize,
        errno: Errno,
        now: Instant,
        told: &mut Vec<Told>,
    ) -> Stop {
        self.tell_failure(index, errno, told);
        let wait = self.spec.rotated_wait;
        if let Some(rotated) = &mut self.generations[index].rotated {
            if rotated.is_quiet_for(wait, now) {
                self.give_up(index, GaveUp::ReadFailed(errno), told);
                return Stop::Closed;
            }
            rotated.look_later(now, wait, self.spec.check_every);
        }
        Stop::Later
    }

    fn tell_failure(&mut self, index: usize, errno: Errno, told: &mut Vec<Told>) {
        if self.generations[index].failing.replace(errno) != Some(errno) {
            let path = self.spec.path.clone();
            told.push(Told::Failed(Error::Io {
                doing: Doing::Read,
                path,
                errno,
            }));
        }
    }

    /// Gives up the oldest files until the bounds hold.
    pub(super) fn keep_within_bounds(&mut self, told: &mut Vec<Told>) {
        for _ in self.spec.keep_generations..self.rotated() {
            self.give_up(0, GaveUp::TooMany, told);
        }
        while self.deleted_bytes() > self.spec.keep_bytes {
            let oldest = self.generations.iter().position(|generation| {
                generation.rotated.is_some() && generation.deleted_bytes > 0
            });
            let Some(oldest) = oldest else { break };
            self.give_up(oldest, GaveUp::TooManyBytes, told);
        }
    }

    /// How many open files have lost the name.
    pub(super) fn rotated(&self) -> usize {
        self.generations.len() - usize::from(self.leads)
    }

    /// The disk space that deleted files hold, in bytes.
    pub(super) fn deleted_bytes(&self) -> u64 {
        self.generations
            .iter()
            .map(|generation| generation.deleted_bytes)
            .sum()
    }

    fn give_up(&mut self, index: usize, reason: GaveUp, told: &mut Vec<Told>) {
        let generation = &mut self.generations[index];
        // The size as it is now, if it can be had.
        let _ = generation.look();
        let (number, unread) = (generation.number, generation.unread());
        self.close(index);
        self.tell_gave_up(number, unread, reason, told);
        self.mark(told);
    }

    /// Counts and tells a file that is given up.
    pub(super) fn tell_gave_up(
        &mut self,
        generation: u64,
        unread_at_least: u64,
        reason: GaveUp,
        told: &mut Vec<Told>,
    ) {
        self.given_up += 1;
        self.given_up_bytes += unread_at_least;
        let change = Change::GaveUp {
            unread_at_least,
            reason,
        };
        told.push(Told::Changed { generation, change });
    }

    /// Closes a file, but remembers how far it was read, as it may come back.
    fn close(&mut self, index: usize) {
        if let Some(generation) = self.generations.remove(index) {
            self.closed.push_back(generation.position());
            self.released.push(generation.file);
            // The last one is only closed when the name is lost, or not followed.
            self.leads &= index < self.generations.len();
        }
        while self.closed.len() > self.spec.keep_generations {
            self.closed.pop_front();
        }
    }
}

/// Whether later files wait for this one.
fn makes_wait(generation: &Generation) -> bool {
    generation
        .rotated
        .as_ref()
        .is_some_and(|rotated| !rotated.is_late())
}
