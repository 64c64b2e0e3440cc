//! The driver of the proactor class: the kernel carries operations out and reports their results,
//! through `io_uring`(7).
//!
//! - Operations started since the last turn are queued in the turn and submitted by the same
//!   io_uring_enter(2) that also waits; then the results that the kernel has left are reported.
//! - Bytes are received by operations that stay in the kernel. They take buffers from a shared
//!   pool only when bytes arrive ([`buffers`]). Bytes are sent without a copy ([`ring`]).
//! - For readiness, accepting and connecting, the ring only polls, once each, and the same system
//!   calls as on the selectors do the rest. The ring's own operations do not fit: a multishot poll
//!   is silent about a source that stays ready; an accept in the kernel needs a descriptor
//!   (`EMFILE`) before there is a connection, and a multishot accept has no limit; and a connect
//!   in the kernel waits where connect(2) fails with `EAGAIN`.
//! - The kernel's results are kept, in order, until a turn's budget allows them to be reported.
//!   They are bounded by the bytes that were exposed, and by one result for each operation.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Driver;
use crate::state::Keep;
use driver::Proactor;
pub(super) use kept::uncommitted;
use probe::Refused;
use ring::Ring;

#[allow(unsafe_code)]
mod buffers;
mod driver;
mod entry;
mod epoll;
mod kept;
#[allow(unsafe_code)]
mod left;
mod operation;
mod probe;
mod report;
mod results;
#[allow(unsafe_code)]
mod ring;
mod submit;

/// Opens a ring. The thread of the first turn becomes its only user.
///
/// # Errors
/// io_uring is not available on this host, or a system call failed.
pub(super) fn open(waker: Arc<OwnedFd>, keep: &Keep) -> io::Result<Box<dyn Driver>> {
    Ok(Box::new(Proactor::new(Ring::new(true, keep)?, waker)))
}

/// Opens a ring that behaves as on kernels older than Linux 6.16: each receive uses a separate
/// buffer, and descriptors other than sockets are read by single reads.
///
/// # Errors
/// As [`open`].
#[cfg(test)]
pub(super) fn open_plain(waker: Arc<OwnedFd>) -> io::Result<Box<dyn Driver>> {
    Ok(Box::new(Proactor::new(
        Ring::new(false, &Keep::Own)?,
        waker,
    )))
}

/// Checks whether io_uring is available on this host. Exhaustion does not make it unavailable.
///
/// # Errors
/// The reason why it is not, as text.
pub(super) fn probe() -> Result<(), String> {
    match Ring::new(true, &Keep::Own) {
        Err(Refused::Unavailable(reason)) => Err(reason),
        Err(Refused::System(_)) | Ok(_) => Ok(()),
    }
}
