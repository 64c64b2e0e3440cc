//! Closing without a reset.
//!
//! A TCP socket that is closed with unread input, or that its peer still writes to, is reset by
//! the kernel (RFC 1122, section 4.2.2.13), and a reset can destroy what the peer has not read yet
//! (RFC 9112, section 9.6). So an orderly close reads on and drops what comes, until the peer
//! closes too, or has received everything and is silent, or the configured time is over.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags};

use super::IN;
use crate::clock::nanos;
use crate::driver::{Direction, Op, Readiness, SourceId};
use crate::watch::{Alarm, Context};

/// Between two looks at a peer that does not close.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of one read, and how many reads before others get their turn.
const DROP_SIZE: usize = 16 * 1024;
const DROPS_AT_ONCE: usize = 16;

/// A connection on its way to its close.
#[derive(Debug)]
pub(super) struct Linger {
    /// When it closes whatever is left, monotonic nanoseconds.
    deadline: u64,
    /// Something came in since the last look.
    heard: bool,
    /// The peer will send no more.
    pub(super) peer_ended: bool,
}

/// What was found to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    Nothing,
    Bytes,
    /// The end of the input, or the connection is broken.
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

    /// Waits for input to drop. The input's lane must be free.
    pub(super) fn listen(&self, cx: &mut Context<'_>, source: SourceId) {
        if !self.peer_ended && !cx.is_cancelling() {
            cx.start(IN, source, Op::Ready(Direction::Read));
        }
    }

    /// There is input to drop.
    pub(super) fn ready(&mut self, cx: &mut Context<'_>, source: SourceId, found: Readiness) {
        let dropped = cx.fd(source).map_or(Dropped::End, drop_input);
        self.heard |= dropped == Dropped::Bytes;
        // What is not readable and yet ready is broken.
        self.peer_ended |= dropped == Dropped::End || !found.readable;
        self.listen(cx, source);
    }

    /// Whether it has lasted long enough; if not, looks again later. `sent`: all that was taken
    /// is with the kernel.
    pub(super) fn is_over(&mut self, cx: &mut Context<'_>, source: SourceId, sent: bool) -> bool {
        let silent = !std::mem::take(&mut self.heard);
        if cx.now.monotonic >= self.deadline || (sent && silent && is_idle(cx, source)) {
            return true;
        }
        let look = cx.now.monotonic.saturating_add(nanos(LOOK));
        cx.set_alarm(Alarm::Monotonic(look.min(self.deadline)));
        false
    }
}

/// Nothing is unread, and the peer's host has all that was sent: a close resets nothing.
pub(super) fn is_idle(cx: &Context<'_>, source: SourceId) -> bool {
    let Some(fd) = cx.fd(source) else { return true };
    let unread = rustix::io::ioctl_fionread(fd).unwrap_or(0);
    unread == 0 && (is_unix(fd) || crate::sys::unacknowledged(fd).unwrap_or(0) == 0)
}

/// What is sent over a Unix socket is with its peer at once.
fn is_unix(fd: BorrowedFd<'_>) -> bool {
    let name = rustix::net::getsockname(fd);
    name.is_ok_and(|name| name.address_family() == AddressFamily::UNIX)
}

/// Drops what is unread at the very end, on a loop that is stopped too: there nothing is waited for.
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
