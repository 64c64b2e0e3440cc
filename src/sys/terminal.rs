//! Requests to pseudoterminals, by their master side.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use rustix::io::Errno;

use super::check;

/// The bit in the first byte of a read in packet mode which says that output was dropped.
pub(crate) const PACKET_FLUSHED: u8 = 2;

/// Sets packet mode: each read begins with a byte, which is 0 before data and else tells what has
/// happened to the terminal, see ioctl_tty(2).
///
/// # Errors
/// ENOTTY for a descriptor that is no master.
pub(crate) fn set_packet_mode(master: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    let on = libc::c_int::from(on);
    // SAFETY: the request reads one int, and `on` is one.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCPKT, &raw const on) };
    check(result.into()).map(drop)
}

/// Sends the foreground process group a signal. Only SIGINT, SIGQUIT and SIGTSTP can be sent so.
///
/// # Errors
/// EINVAL for another signal.
pub(crate) fn signal_foreground(master: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: the request takes a number.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSIG, signal) };
    check(result.into()).map(drop)
}

/// Returns whether the terminal of this pseudoterminal master is locked, so that nobody can open it;
/// `None` if this is no master.
pub(crate) fn terminal_is_locked(master: BorrowedFd<'_>) -> Option<bool> {
    let mut locked: libc::c_int = 0;
    // SAFETY: the request writes one int, and `locked` is one.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTLCK, &raw mut locked) };
    check(result.into()).ok().map(|_| locked != 0)
}
