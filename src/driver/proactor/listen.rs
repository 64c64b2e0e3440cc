//! From the kernel: what it has said, and what follows from it.

use std::io;

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::driver::Proactor;
use super::operation::{Stage, What};
use super::ring::{Said, Token};
use crate::driver::{Direction, Done, Op, transfer};

/// A poll that waits for room to write ended, and there is neither room nor an end.
fn is_for_nothing(token: Token, found: usize) -> bool {
    let meant = PollFlags::OUT | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    let found = u16::try_from(found).map_or(PollFlags::all(), PollFlags::from_bits_retain);
    token.direction() == Direction::Write && !found.intersects(meant)
}

impl Proactor {
    /// Takes in what the kernel has said; how much that was.
    ///
    /// # Errors
    /// It says what cannot be.
    pub(super) fn listen(&mut self) -> io::Result<usize> {
        let said = self.ring.said();
        for entry in &said {
            let Some(said) = self.ring.read(entry) else {
                continue;
            };
            if said.token == Token::WAKER {
                (self.waker_polled, self.woken) = (false, true);
                continue;
            }
            if said.token == Token::ASIDE {
                self.look_aside();
                continue;
            }
            match self.live(said.token).map(|live| live.stage) {
                Some(Stage::Polling) => self.polled(said.token, said.result),
                Some(Stage::Submitted) => self.done(said),
                // Nothing of that is in the kernel: what else it says cannot be relied on.
                None | Some(Stage::Queued | Stage::Aside | Stage::Found) => {
                    return Err(io::Error::other("io_uring ended what was not asked of it"));
                }
            }
        }
        let heard = said.len();
        self.ring.recycle(said);
        Ok(heard)
    }

    /// A poll has ended.
    fn polled(&mut self, token: Token, result: Result<usize, Errno>) {
        let Some(live) = self.live(token) else {
            return;
        };
        match result {
            Ok(found) if is_for_nothing(token, found) => self.set_aside(token),
            Ok(_) if live.waits_to_transfer() => {
                (live.poll_first, live.polled) = (false, true);
                self.again(token);
            }
            Ok(_) => {
                live.stage = Stage::Found;
                self.find(token, What::Ready);
            }
            Err(Errno::CANCELED | Errno::INTR | Errno::AGAIN) => self.again(token),
            Err(errno) => self.end(token, Done::Failed(errno)),
        }
    }

    /// The kernel said something of an operation that it carries out.
    fn done(&mut self, said: Said) {
        let Said {
            token,
            result,
            data,
            last,
        } = said;
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
                if once {
                    live.stage = Stage::Found;
                }
                self.find(token, What::Data(data));
                if last && !once {
                    self.again(token);
                }
            }
            Ok(_) => self.end(token, Done::Eof),
            Err(_) if !last => {}
            Err(Errno::NOBUFS) if receives => {
                self.ring.starved();
                if live.cancelling {
                    return self.end(token, Done::Cancelled);
                }
                self.starve(token);
            }
            Err(Errno::INTR) => self.again(token),
            // What the kernel gave up by itself is as good as not ready.
            Err(Errno::AGAIN | Errno::CANCELED) => {
                live.poll_first = true;
                let stuck = (live.polled && !live.cancelling)
                    .then(|| transfer::stuck(fd, token.direction()));
                match stuck.flatten() {
                    Some(errno) => self.end(token, Done::Failed(errno)),
                    None => self.again(token),
                }
            }
            // Some devices can be read only one read at a time.
            Err(Errno::BADFD | Errno::INVAL | Errno::OPNOTSUPP) if receives && many && !once => {
                source.reads_many = false;
                self.again(token);
            }
            // The other side of a pseudoterminal is gone, see ioctl_tty(2).
            Err(Errno::IO) if receives && rustix::termios::isatty(fd) => {
                self.end(token, Done::Eof);
            }
            Err(errno) => self.end(token, Done::Failed(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::driver::proactor::ring::Ring;
    use crate::driver::{Budget, Driver};

    #[test]
    fn a_completion_of_nothing_fails_the_backend() {
        let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let mut driver = Proactor::new(Ring::new(true).unwrap(), waker);
        driver.ring.enable().unwrap();
        let token = Token::new(7, Direction::Read);
        driver.ring.poll(token, ready.as_fd()).unwrap();
        let budget = Budget {
            completions: 10,
            bytes: 10,
        };
        let turn = driver.turn(Some(Duration::from_secs(20)), budget, &mut Vec::new());
        turn.unwrap_err();
    }
}
