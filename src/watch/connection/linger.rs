//! Closes a TCP connection without a reset.
//!
//! The kernel resets a TCP socket that is closed with unread input or to which its peer still
//! writes (RFC 1122, section 4.2.2.13), and a reset can destroy bytes that the peer has not read
//! yet (RFC 9112, section 9.6). So an orderly close reads on and drops the input until the peer
//! closes too, or has received everything and is silent, or the configured time has passed.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags};

use super::IN;
use crate::clock::nanos;
use crate::driver::{Direction, Op, Readiness, SourceId};
use crate::watch::{Alarm, Context};

/// The time between two checks of a peer that does not close.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The number of bytes of one read, and of reads before other sources are served.
const DROP_SIZE: usize = 16 * 1024;
const DROPS_AT_ONCE: usize = 16;

/// The state of a connection during its orderly close.
#[derive(Debug)]
pub(super) struct Linger {
    /// When the connection closes in any case, in nanoseconds of the monotonic clock.
    deadline: u64,
    /// Whether input arrived since the last check.
    heard: bool,
    /// Whether the peer will send no more.
    pub(super) peer_ended: bool,
}

/// The input that was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    Nothing,
    Bytes,
    /// The input ended, or the connection is broken.
    End,
}

impl Linger {
    pub(super) const fn until(deadline: u64, peer_ended: bool) -> Self {
        Self {
            deadline,
            heard: false,
            peer_ended,
        }
    }

    /// Waits for input to drop. The lane of the input must be free.
    pub(super) fn listen(&self, cx: &mut Context<'_>, source: SourceId) {
        if !self.peer_ended {
            cx.start(IN, source, Op::Ready(Direction::Read));
        }
    }

    /// Drops the input that has arrived.
    pub(super) fn ready(&mut self, cx: &mut Context<'_>, source: SourceId, found: Readiness) {
        let dropped = cx.fd(source).map_or(Dropped::End, drop_input);
        self.heard |= dropped == Dropped::Bytes;
        // A socket that is ready and not readable is broken.
        self.peer_ended |= dropped == Dropped::End || !found.readable;
        self.listen(cx, source);
    }

    /// Returns whether the close may complete; if not, sets the alarm for the next check. `sent`:
    /// the kernel has taken all bytes that the watch took.
    pub(super) fn is_over(&mut self, cx: &mut Context<'_>, source: SourceId, sent: bool) -> bool {
        let silent = !std::mem::take(&mut self.heard);
        if cx.now.monotonic >= self.deadline || (sent && silent && is_idle(cx, source)) {
            return true;
        }
        let look = cx.now.monotonic.saturating_add(nanos(CHECK_INTERVAL));
        cx.set_alarm(Alarm::Monotonic(look.min(self.deadline)));
        false
    }
}

/// Returns whether no input is unread and the peer's host has acknowledged everything, so that a
/// close resets nothing.
pub(super) fn is_idle(cx: &Context<'_>, source: SourceId) -> bool {
    let Some(fd) = cx.fd(source) else { return true };
    let unread = rustix::io::ioctl_fionread(fd).unwrap_or(0);
    unread == 0 && (is_unix(fd) || crate::sys::unacknowledged(fd).unwrap_or(0) == 0)
}

/// Returns whether it is a Unix socket, whose peer receives everything at once.
fn is_unix(fd: BorrowedFd<'_>) -> bool {
    let name = rustix::net::getsockname(fd);
    name.is_ok_and(|name| name.address_family() == AddressFamily::UNIX)
}

/// Drops unread input right before the close. This also happens on a stopped loop, where nothing is
/// waited for.
pub(super) fn drop_unread(cx: &Context<'_>, source: SourceId) {
    if let Some(fd) = cx.fd(source) {
        drop_input(fd);
    }
}

fn drop_input(fd: BorrowedFd<'_>) -> Dropped {
    let mut scratch = [0; DROP_SIZE];
    let mut dropped = Dropped::Nothing;
    for _ in 0..DROPS_AT_ONCE {
        match rustix::net::recv(fd, &mut scratch, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Dropped::End,
            Ok(_) => dropped = Dropped::Bytes,
            Err(Errno::AGAIN | Errno::INTR) => break,
            Err(_) => return Dropped::End,
        }
    }
    dropped
}
