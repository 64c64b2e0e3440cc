//! Detects the end of a child: by its pidfd, by a thread that waits, or by SIGCHLD.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::child::Child;
use crate::driver::Key;
use crate::error::{Result, SystemError};
use crate::poison::Critical;
use crate::signals::{Received, SignalSink};
use crate::watch::{Notice, Notifier};

/// A thread that waits for the end of a child. It ends with the child, or when this value is
/// dropped. It does not reap the child: the watch that it notifies checks the child.
#[derive(Debug)]
pub(super) struct Waiter {
    setup: mpsc::Sender<Setup>,
    stop: Arc<OwnedFd>,
}

/// The data that the thread needs, sent in this order.
#[derive(Debug)]
enum Setup {
    Child(Arc<OwnedFd>),
    Recipient(Key, Arc<dyn Notifier>),
}

impl Waiter {
    /// Starts the thread before the child is started, so that nothing can be refused while the
    /// child runs.
    ///
    /// # Errors
    /// The system refused a descriptor or a thread.
    pub(super) fn start() -> Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| SystemError::new(errno, "eventfd", ""))?;
        let stop = Arc::new(stop);
        let stopped = Arc::clone(&stop);
        let (setup, received) = mpsc::channel();
        let run = move || {
            // Without this thread the end of the child is not noticed.
            let _critical = Critical::new();
            if let Ok(Setup::Child(pidfd)) = received.recv()
                && let Ok(Setup::Recipient(key, notifier)) = received.recv()
                && wait_for_end(&pidfd, &stopped)
            {
                notifier.notify(key, Notice::ChildEnded);
            }
        };
        std::thread::Builder::new()
            .name("wait-child".to_owned())
            .stack_size(64 * 1024)
            .spawn(run)
            .map_err(|error| SystemError::from_io(&error, "thread", ""))?;
        Ok(Self { setup, stop })
    }

    /// Sets the child whose end to wait for. Must be called once.
    pub(super) fn set_child(&self, child: &Child) {
        if let Some(pidfd) = child.pidfd_shared() {
            // The thread waits for this message, so its receiver exists.
            let _ = self.setup.send(Setup::Child(pidfd));
        }
    }

    /// Sets the watch to notify. Must be called once, after [`Waiter::set_child`].
    pub(super) fn set_recipient(&self, key: Key, notifier: Arc<dyn Notifier>) {
        let _ = self.setup.send(Setup::Recipient(key, notifier));
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // This write does not fail: it is the first to this eventfd, whose counter has room for it.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }
}

/// Waits for the end of the child. Returns false if the waiter was dropped before.
fn wait_for_end(pidfd: &OwnedFd, stop: &OwnedFd) -> bool {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            // The watch checks the child, and checks again later if it has not ended.
            Err(_) => return true,
            Ok(_) => return fds[1].revents().is_empty(),
        }
    }
}

/// Notifies one watch of SIGCHLD, at most once until the watch has checked its child.
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
