//! Children that no watch waits for any longer, and strangers.
//!
//! A child is reaped through its pidfd, by its watch or by [`Reaper`]. Strangers are children of
//! the process that no watch started: those it had before the daemon was executed in it, and
//! orphans, which the kernel gives to process 1 of a container and to a subreaper
//! (PR_SET_CHILD_SUBREAPER(2const)). Both are children of the main thread. No watch starts a child
//! there, but on the lasting threads of [`Starters`](crate::watch::Starters), so that
//! [`reap_strangers`], which takes the main thread's children alone, never takes a watch's.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::driver::Key;
use crate::signals::{Received, SignalHub};
use crate::sys;
use crate::watch::services::{Count, Permit};
use crate::watch::{Notice, Notifier};

/// How long the end of a killed child is waited for while its loop is stopped.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at a child that cannot be reaped although its pidfd says it has ended.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Strangers that are reaped before others of the runtime have their turn.
const STRANGERS_AT_ONCE: usize = 64;

/// Reaps the children that were let go, each with a task of the runtime: there are at most
/// `limits.children` of them, for each holds its permit until it has ended.
#[derive(Debug, Clone)]
pub struct Reaper {
    runtime: Handle,
    kept: Arc<Count>,
}

impl Reaper {
    /// For at most so many children at once.
    #[must_use]
    pub fn new(runtime: Handle, children: usize) -> Self {
        Self {
            runtime,
            kept: Count::new("limits.children", children),
        }
    }

    /// Children that it waits for.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.used()
    }

    /// Reaps the child once it has ended.
    pub(super) fn take(&self, pidfd: Arc<OwnedFd>, permit: Option<Permit>) {
        // Not refused: each has one of as many permits.
        let kept = self.kept.take();
        self.runtime.spawn(async move {
            ended(&pidfd).await;
            // A tracer has it first (ptrace(2)), or its end could not be waited for.
            while sys::reap(pidfd.as_fd()) == Ok(false) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            drop((kept, permit));
        });
    }

    /// Tells the watch once the child has ended, or has not although it was killed.
    pub(super) fn tell(&self, pidfd: Arc<OwnedFd>, key: Key, notifier: Arc<dyn Notifier>) {
        self.runtime.spawn(async move {
            // Either way the watch looks itself.
            let _ = tokio::time::timeout(KILLED_WITHIN, ended(&pidfd)).await;
            notifier.notify(key, Notice::ChildKilled);
        });
    }
}

/// Returns once the process has ended, or at once where that cannot be waited for.
async fn ended(pidfd: &Arc<OwnedFd>) {
    let readable = async {
        let watched = sys::async_fd(Arc::clone(pidfd), Interest::READABLE)?;
        watched.readable().await.map(drop)
    };
    if let Err(error) = readable.await {
        tracing::warn!(%error, "the end of a child cannot be waited for");
    }
}

/// Whether the main thread, which this is called on, has children, or may get some.
fn may_have_strangers() -> bool {
    let adopts = rustix::process::getpid().is_init()
        || !matches!(rustix::process::child_subreaper(), Ok(None));
    adopts || sys::has_own() != Err(Errno::CHILD)
}

/// Reaps the strangers that end. To be polled on the main thread, for as long as there may be any.
pub async fn reap_strangers(hub: &SignalHub) -> Infallible {
    if !may_have_strangers() {
        return std::future::pending().await;
    }
    let ended = Arc::new(Notify::new());
    let sink = {
        let ended = Arc::clone(&ended);
        move |_: Received| ended.notify_one()
    };
    let _told = hub.subscribe(&[libc::SIGCHLD], Arc::new(sink));
    loop {
        for _ in 0..STRANGERS_AT_ONCE {
            match sys::reap_own() {
                Ok(true) => {}
                // None has ended, or there is none.
                Ok(false) | Err(Errno::CHILD) => {
                    ended.notified().await;
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "strangers cannot be reaped");
                    return std::future::pending().await;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}
