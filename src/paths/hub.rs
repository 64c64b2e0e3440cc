//! The hub: what the rest of the program sees.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use rustix::fs::statfs;

use super::engine::Engine;
use super::filesystems::silent_type;
use super::ignore::Ignore;
use super::inbox::{Inbox, Sink};
use super::limits::{KernelLimits, Limits};
use super::poll::Poller;
use super::refused::{PATH_BYTES_MAX, PathFault, Refused};
use super::spec::Spec;
use super::sub::Order;
use super::watches::Watches;
use super::window::Window;
use super::worker::{Command, Shared, Worker};
use crate::poison::Critical;

/// One inotify instance and the thread that owns it, started by the first subscription. File systems
/// that tell nothing are polled by a second thread, so that a server that hangs holds up no one else.
///
/// Dropping it ends all subscriptions with `Failed`.
#[derive(Debug)]
pub struct Hub {
    limits: Arc<Limits>,
    running: Mutex<Option<Running>>,
    poller: Poller,
}

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    commands: SyncSender<Command>,
    thread: JoinHandle<()>,
}

/// Figures of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// File descriptors that the hub holds.
    pub descriptors: usize,
    /// Kernel watches in use, over all subscriptions; each is a directory.
    pub watches: usize,
    /// The hub's own limit on them.
    pub watches_limit: usize,
    /// Subscriptions, polled ones not counted.
    pub subscriptions: usize,
    /// Polled subscriptions.
    pub polled: usize,
    /// Pieces of scans and checks that wait.
    pub pending_scans: usize,
    /// How often the kernel's queue overflowed.
    pub overflows: u64,
    /// The kernel's limits now.
    pub kernel: KernelLimits,
}

/// Figures of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionStatus {
    /// The last `Synced`, while it holds. None: a scan goes on.
    pub synced: Option<super::told::Synced>,
    /// Rescans told so far.
    pub rescans: u64,
}

/// A watched path. Dropping it ends the watching.
#[derive(Debug)]
pub struct Subscription {
    inbox: Arc<Inbox>,
    ended: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Subscription {
    /// Where its events are read.
    #[must_use]
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Its figures.
    #[must_use]
    pub fn status(&self) -> SubscriptionStatus {
        SubscriptionStatus {
            synced: self.inbox.synced(),
            rescans: self.inbox.rescans(),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.shared.ended.store(true, Ordering::Release);
        self.shared.wake();
    }
}

impl Hub {
    /// A hub that has not started anything.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limits = Arc::new(limits);
        Self {
            poller: Poller::new(Arc::clone(&limits)),
            limits,
            running: Mutex::new(None),
        }
    }

    /// Watches a path. When it returns, the path's way is watched, and the root if it exists; what is
    /// below is scanned by the hub's thread, up to `Synced`.
    ///
    /// It waits for that thread, and for the file system: not to be called where one must not block.
    ///
    /// # Errors
    /// Bad fields of `spec`; limits of the kernel, the process and the hub; a root that cannot be read,
    /// or that is where nothing is told and `spec.poll` is not given.
    pub fn watch(&self, spec: Spec, sink: Arc<dyn Sink>) -> Result<Subscription, Refused> {
        let (poll, limits) = (spec.poll, self.limits.poll_interval_min);
        if let Some(given) = poll.filter(|given| *given < limits) {
            return Err(Refused::PollInterval {
                given,
                least: limits,
            });
        }
        let again = poll.map(|interval| (interval, spec.clone(), Arc::clone(&sink)));
        let order = self.order(spec, sink)?;
        // A file system whose server does not answer holds up the caller here, and not the hub.
        let path = Path::new(OsStr::from_bytes(&order.path));
        let watched = match statfs(path).ok().and_then(|stat| silent_type(&stat)) {
            Some(file_system) => Err(Refused::Silent {
                path: path.to_owned(),
                file_system,
            }),
            None => self.watch_told(order),
        };
        match (watched, again) {
            (Err(Refused::Silent { .. }), Some((interval, spec, sink))) => {
                let order = self.order(spec, sink)?;
                let (inbox, ended) = (Arc::clone(&order.inbox), Arc::clone(&order.ended));
                let shared = self.poller.watch(order, interval)?;
                Ok(Subscription {
                    inbox,
                    ended,
                    shared,
                })
            }
            (result, _) => result,
        }
    }

    /// Kernel watches in use, over all subscriptions, and the hub's own limit on them. Does not block.
    #[must_use]
    pub fn watches(&self) -> (usize, usize) {
        // The lock is held by who starts the hub, which has no watches yet.
        let running = self.running.try_lock();
        let shared = running.as_ref().and_then(|running| running.as_ref());
        let used = shared.map_or(0, |running| running.shared.watches.load(Ordering::Relaxed));
        (used, self.limits.watches)
    }

    /// Figures for a status report. Reads files of `/proc`.
    #[must_use]
    pub fn status(&self) -> Status {
        let running = self.running.lock();
        let shared = running.as_ref().map(|running| &running.shared);
        let load = |value: fn(&Shared) -> usize| shared.map_or(0, |shared| value(shared));
        Status {
            // inotify, eventfd and the mount table, and the directory that is read.
            descriptors: shared.map_or(0, |_| 4) + self.poller.descriptors(),
            watches: load(|shared| shared.watches.load(Ordering::Relaxed)),
            watches_limit: self.limits.watches,
            subscriptions: load(|shared| shared.subscriptions.load(Ordering::Relaxed)),
            polled: self.poller.len(),
            pending_scans: load(|shared| shared.pending.load(Ordering::Relaxed)),
            overflows: shared.map_or(0, |shared| shared.overflows.load(Ordering::Relaxed)),
            kernel: KernelLimits::read(),
        }
    }

    fn order(&self, spec: Spec, sink: Arc<dyn Sink>) -> Result<Order, Refused> {
        let path = spec.path.into_vec();
        let fault = if path.is_empty() {
            Some(PathFault::Empty)
        } else if path[0] != b'/' {
            Some(PathFault::NotAbsolute)
        } else if path.contains(&0) {
            Some(PathFault::Nul)
        } else if path.len() > PATH_BYTES_MAX {
            Some(PathFault::TooLong)
        } else {
            None
        };
        if let Some(fault) = fault {
            return Err(Refused::Path(fault));
        }
        if spec.kinds.is_empty() {
            return Err(Refused::NoKinds);
        }
        for (field, value) in [("entries", spec.inbox.entries), ("bytes", spec.inbox.bytes)] {
            if value == 0 {
                return Err(Refused::InboxTooSmall { field });
            }
        }
        Ok(Order {
            path,
            recursive: spec.recursive,
            kinds: spec.kinds,
            ignore: Ignore::new(&spec.ignore, &self.limits)?,
            window: Window::new(spec.window),
            inbox: Arc::new(Inbox::new(spec.inbox, sink)),
            ended: Arc::default(),
            again: spec.again,
        })
    }

    fn watch_told(&self, order: Order) -> Result<Subscription, Refused> {
        let (inbox, ended) = (Arc::clone(&order.inbox), Arc::clone(&order.ended));
        let (commands, shared) = self.running()?;
        let (reply, answer) = sync_channel(1);
        commands
            .send(Command { order, reply })
            .map_err(|_| Refused::Ended)?;
        shared.wake();
        answer.recv().map_err(|_| Refused::Ended)??;
        Ok(Subscription {
            inbox,
            ended,
            shared,
        })
    }

    fn running(&self) -> Result<(SyncSender<Command>, Arc<Shared>), Refused> {
        let mut running = self.running.lock();
        let running = match &mut *running {
            Some(running) => running,
            none => none.insert(self.start()?),
        };
        Ok((running.commands.clone(), Arc::clone(&running.shared)))
    }

    fn start(&self) -> Result<Running, Refused> {
        let watches = Watches::new(self.limits.watches).map_err(Refused::instance)?;
        let shared = Arc::new(Shared::new().map_err(Refused::instance)?);
        let (commands, receiver) = sync_channel(self.limits.commands);
        let worker = Worker::new(
            Engine::new(watches, Arc::clone(&self.limits)),
            Arc::clone(&shared),
            receiver,
        );
        let thread = thread::Builder::new()
            .name("paths".to_owned())
            .spawn(move || {
                // Without this thread the loop misses what happens.
                let _critical = Critical::new();
                worker.run();
            })
            .map_err(|source| Refused::Kernel {
                path: "thread `paths`".into(),
                source,
            })?;
        Ok(Running {
            shared,
            commands,
            thread,
        })
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(Running { shared, thread, .. }) = self.running.get_mut().take() {
            shared.stop.store(true, Ordering::Release);
            shared.wake();
            // A panic of the thread has been reported when it happened.
            let _ = thread.join();
        }
    }
}
