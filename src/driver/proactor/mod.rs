//! The driver of the proactor class: the kernel carries operations out and says what came
//! of them, by `io_uring`(7).
//!
//! - What was started since the last turn is queued in the turn and goes in with the one
//!   io_uring_enter(2) that also waits; what it left for us is then told.
//! - Bytes are received by operations that stay in the kernel, into buffers it takes when
//!   there are bytes ([`buffers`]). Bytes are sent from where they are ([`ring`]).
//! - Whatever else is possible only when something is ready (to be reported, accepted,
//!   connected) is polled for, once, and done by the calls that the selectors make: a poll
//!   that repeats is silent about what stays ready; an accept in the kernel needs a
//!   descriptor (`EMFILE`) before there is a connection, and one that repeats stops at no
//!   limit; and a connect in the kernel waits where connect(2) fails with `EAGAIN`.
//! - What the kernel said is kept until a turn's budget lets it be told, in its order. It
//!   is bounded by what was exposed, and by one for each operation.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Driver;
use driver::Proactor;
use probe::Refused;
use ring::Ring;

mod aside;
#[allow(unsafe_code)]
mod buffers;
mod driver;
mod entry;
mod listen;
mod operation;
mod probe;
#[allow(unsafe_code)]
mod ring;
mod submit;
mod tell;

/// Opens a ring. It belongs to the thread of the first turn.
///
/// # Errors
/// It cannot be had here, or the system's.
pub(super) fn open(waker: Arc<OwnedFd>) -> io::Result<Box<dyn Driver>> {
    Ok(Box::new(Proactor::new(Ring::new(true)?, waker)))
}

/// As [`open`], as it is where the kernel is older than Linux 6.16: each receive takes a
/// buffer of its own, and what is no socket is read once at a time.
///
/// # Errors
/// As [`open`].
#[cfg(test)]
pub(super) fn open_plain(waker: Arc<OwnedFd>) -> io::Result<Box<dyn Driver>> {
    Ok(Box::new(Proactor::new(Ring::new(false)?, waker)))
}

/// Whether it can be had here. Exhaustion does not make it unavailable.
///
/// # Errors
/// Why not, in words.
pub(super) fn probe() -> Result<(), String> {
    match Ring::new(true) {
        Err(Refused::Unavailable(reason)) => Err(reason),
        Err(Refused::System(_)) | Ok(_) => Ok(()),
    }
}
