//! How the end of a child is noticed: by its pidfd, by a thread that waits, or by SIGCHLD.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use nix::libc;

use super::child;
use crate::driver::Key;
use crate::error::{Error, Result, SystemError};
use crate::signals::{Received, SignalSink};
use crate::watch::{Notice, Notifier};

/// The child's pidfd. A child that was started and never came to be watched
/// is killed and reaped: a failed registration leaves nothing.
#[derive(Debug)]
pub(super) struct Pidfd(pub(super) Option<OwnedFd>);

impl Pidfd {
    pub(super) fn dup(&self) -> Result<OwnedFd> {
        let fd = self
            .0
            .as_ref()
            .ok_or(Error::Internal("the pidfd is there"))?;
        let dup = fd.try_clone();
        dup.map_err(|e| SystemError::from_io(&e, "pidfd", "").into())
    }
}

impl Drop for Pidfd {
    fn drop(&mut self) {
        if let Some(pidfd) = self.0.take() {
            let _ = crate::sys::signal_group(pidfd.as_fd(), libc::SIGKILL);
            let _ = crate::sys::signal_process(pidfd.as_fd(), libc::SIGKILL);
            child::reap_elsewhere(pidfd);
        }
    }
}

/// A thread that waits for the child, and then for whom to tell.
#[derive(Debug)]
pub(super) struct Waiter(pub(super) mpsc::Sender<(Key, Arc<dyn Notifier>)>);

impl Waiter {
    pub(super) fn start(pid: i32, pidfd: &Pidfd) -> Result<Self> {
        let pidfd = pidfd.dup()?;
        let (sender, receiver) = mpsc::channel::<(Key, Arc<dyn Notifier>)>();
        let thread = std::thread::Builder::new()
            .name(format!("wait-{pid}"))
            .stack_size(64 * 1024);
        let run = move || {
            let exited = child::reap_blocking(pidfd.as_fd());
            if let Ok((key, notifier)) = receiver.recv() {
                notifier.notify(key, Notice::ChildExited(exited));
            }
        };
        match thread.spawn(run) {
            Ok(_) => Ok(Self(sender)),
            Err(error) => Err(SystemError::from_io(&error, "thread", "").into()),
        }
    }
}

/// Tells one watch of SIGCHLD, at most once until it has looked.
#[derive(Debug)]
pub(super) struct ChildSignals {
    pub(super) key: Key,
    pub(super) notifier: Arc<dyn Notifier>,
    pub(super) told: Arc<AtomicBool>,
}

impl SignalSink for ChildSignals {
    fn signal(&self, _: Received) {
        if !self.told.swap(true, Ordering::AcqRel) {
            self.notifier.notify(self.key, Notice::ChildSignal);
        }
    }
}
