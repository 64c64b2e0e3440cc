//! Waits in the form that the system takes.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// The longest single wait; a loop whose next deadline is later waits again. Far below the
/// maximum of system calls that count milliseconds in 31 bits (24.8 days).
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Converts a timeout for the system, at most [`LONGEST_WAIT`].
pub(super) fn timespec(timeout: Duration) -> Timespec {
    Timespec::try_from(timeout.min(LONGEST_WAIT)).unwrap_or_default()
}

/// Waits for the waker only.
pub(super) fn wait(waker: &OwnedFd, timeout: Option<Duration>) -> Result<(), Errno> {
    let mut fds = [PollFd::new(waker, PollFlags::IN)];
    match rustix::event::poll(&mut fds, timeout.map(timespec).as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
