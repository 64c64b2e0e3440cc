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
    told: mpsc::Sender<Told>,
    stop: Arc<OwnedFd>,
}

/// What its thread has to know, in this order.
#[derive(Debug)]
enum Told {
    Child(Arc<OwnedFd>),
    Whom(Key, Arc<dyn Notifier>),
}

impl Waiter {
    /// Starts the thread, before there is a child: nothing can be refused once that runs.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub(super) fn start() -> Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| SystemError::new(errno, "eventfd", ""))?;
        let stop = Arc::new(stop);
        let stopped = Arc::clone(&stop);
        let (told, hears) = mpsc::channel();
        let run = move || {
            if let Ok(Told::Child(pidfd)) = hears.recv()
                && let Ok(Told::Whom(key, notifier)) = hears.recv()
                && ended(&pidfd, &stopped)
            {
                notifier.notify(key, Notice::ChildEnded);
            }
        };
        std::thread::Builder::new()
            .name("wait-child".to_owned())
            .stack_size(64 * 1024)
            .spawn(run)
            .map_err(|error| SystemError::from_io(&error, "thread", ""))?;
        Ok(Self { told, stop })
    }

    /// For whose end to wait. To be called once.
    pub(super) fn wait_for(&self, child: &Child) {
        if let Some(pidfd) = child.pidfd_shared() {
            // It waits for this, and the receiver with it.
            let _ = self.told.send(Told::Child(pidfd));
        }
    }

    /// Whom to tell. To be called once, after [`Waiter::wait_for`].
    pub(super) fn tell(&self, key: Key, notifier: Arc<dyn Notifier>) {
        let _ = self.told.send(Told::Whom(key, notifier));
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
