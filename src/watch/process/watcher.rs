//! How the end of a child is noticed: by its pidfd, by a thread that waits, or by SIGCHLD.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::child::Child;
use crate::driver::Key;
use crate::error::{Result, SystemError};
use crate::signals::{Received, SignalSink};
use crate::watch::{Notice, Notifier};

/// A thread that waits for the end of a child, and ends with it or with this. It takes nothing
/// from the child: whom it tells looks.
#[derive(Debug)]
pub(super) struct Waiter {
    whom: mpsc::Sender<(Key, Arc<dyn Notifier>)>,
    stop: Arc<OwnedFd>,
}

impl Waiter {
    pub(super) fn start(child: &Child) -> Result<Self> {
        let pidfd = child.watchable()?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| SystemError::new(errno, "eventfd", ""))?;
        let stop = Arc::new(stop);
        let stopped = Arc::clone(&stop);
        let (whom, told) = mpsc::channel::<(Key, Arc<dyn Notifier>)>();
        let run = move || {
            if let Ok((key, notifier)) = told.recv()
                && ended(&pidfd, &stopped)
            {
                notifier.notify(key, Notice::ChildEnded);
            }
        };
        std::thread::Builder::new()
            .name(format!("wait-{}", child.pid))
            .stack_size(64 * 1024)
            .spawn(run)
            .map_err(|error| SystemError::from_io(&error, "thread", ""))?;
        Ok(Self { whom, stop })
    }

    /// Whom to tell. To be called once.
    pub(super) fn tell(&self, key: Key, notifier: Arc<dyn Notifier>) {
        // It waits for this, and the receiver with it.
        let _ = self.whom.send((key, notifier));
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // An eventfd takes any number that it has room for, and this is its first.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }
}

/// Waits for the end of the child; false: it is not to be waited for any longer.
fn ended(pidfd: &OwnedFd, stop: &OwnedFd) -> bool {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            // Whom it tells looks, and looks again if it was told too early.
            Err(_) => return true,
            Ok(_) => return fds[1].revents().is_empty(),
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
