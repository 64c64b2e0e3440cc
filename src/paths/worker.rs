//! The thread that owns the kernel's queue.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{ReadFlags, Reader};
use rustix::io::{Errno, read, write};

use super::engine::{Engine, Work};
use super::events::Event;
use super::mounts::Mounts;
use super::refused::Refused;
use super::sub::{Order, Sub};
use super::told::Told;
use super::watches::{Owner, Place, SubId};

/// What others see of a worker, and how they wake it.
#[derive(Debug)]
pub(super) struct Shared {
    wake: OwnedFd,
    /// The hub has ended.
    pub(super) stop: AtomicBool,
    /// A subscription has ended.
    pub(super) ended: AtomicBool,
    pub(super) watches: AtomicUsize,
    pub(super) subscriptions: AtomicUsize,
    pub(super) pending: AtomicUsize,
    pub(super) overflows: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            watches: AtomicUsize::new(0),
            subscriptions: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            overflows: AtomicU64::new(0),
        })
    }

    /// Wakes the thread. Many wakes before it looks are one.
    pub(super) fn wake(&self) {
        let _ = write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Waits for a wake, for `others`, or until `due`. True: one of those has something urgent.
    pub(super) fn wait<'a>(
        &'a self,
        others: impl IntoIterator<Item = PollFd<'a>>,
        due: Option<Instant>,
    ) -> bool {
        let timeout = due.map(|due| {
            let left = due.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(others);
        // An interruption or a want of memory: the caller looks at everything and comes back.
        let _ = poll(&mut fds, timeout.as_ref());
        let _ = read(&self.wake, &mut [0; 8]);
        fds.iter().any(|fd| fd.revents().intersects(PollFlags::PRI))
    }
}

/// A request to watch, answered when the first part is done.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) order: Order,
    pub(super) reply: SyncSender<Result<(), Refused>>,
}

/// Bytes that one read of the kernel's queue takes at most.
const READ_BYTES: usize = 64 << 10;

/// The state of the thread.
pub(super) struct Worker {
    engine: Engine,
    queue: Arc<OwnedFd>,
    subs: HashMap<SubId, Sub>,
    next: SubId,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    owners: Vec<Owner>,
    mounts: Mounts,
}

impl Worker {
    pub(super) fn new(engine: Engine, shared: Arc<Shared>, commands: Receiver<Command>) -> Self {
        Self {
            queue: engine.watches.fd(),
            engine,
            subs: HashMap::new(),
            next: 0,
            shared,
            commands,
            owners: Vec::new(),
            mounts: Mounts::open(),
        }
    }

    /// Runs until the hub ends. In each turn the kernel's queue comes first, then one piece of work: a
    /// scan of any size does not let the queue overflow.
    pub(super) fn run(mut self) {
        let mut buffer = vec![MaybeUninit::uninit(); READ_BYTES];
        let mut remounted = false;
        while !self.shared.stop.load(Ordering::Acquire) {
            self.engine.now = Instant::now();
            let drained = self.drain(&mut buffer);
            self.ticks();
            if std::mem::take(&mut remounted) || self.mounts.have_changed(self.engine.now) {
                self.remounted();
            }
            if drained {
                self.engine.emptied = self.engine.now;
                self.settle();
            }
            self.sweep();
            let commanded = self.command();
            self.work();
            self.publish();
            if drained && !commanded && !self.engine.is_busy() && self.engine.settled.is_empty() {
                let due = self.engine.timers.peek().map(|Reverse((due, _))| *due);
                let queue = PollFd::new(&self.queue, PollFlags::IN);
                let others = [Some(queue), self.mounts.wanted()];
                remounted = self.shared.wait(others.into_iter().flatten(), due);
            }
        }
        for sub in self.subs.values_mut() {
            sub.tell(Told::Failed {
                error: Arc::new(Refused::Ended),
            });
        }
        self.subs.clear();
        self.publish();
    }

    /// Takes events from the kernel's queue. True: it is empty.
    fn drain(&mut self, buffer: &mut [MaybeUninit<u8>]) -> bool {
        let mut reader = Reader::new(Arc::clone(&self.queue), buffer);
        let mut left = self.engine.limits.drain_events.max(1);
        loop {
            if left == 0 && reader.is_buffer_empty() {
                return false;
            }
            match reader.next() {
                Ok(event) => {
                    let event = Event {
                        wd: event.wd(),
                        flags: event.events(),
                        cookie: event.cookie(),
                        name: event.file_name().map(std::ffi::CStr::to_bytes),
                    };
                    self.event(event);
                    left = left.saturating_sub(1);
                }
                Err(Errno::INTR) => {}
                Err(_) => return true,
            }
        }
    }

    fn event(&mut self, event: Event<'_>) {
        if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.shared.overflows.fetch_add(1, Ordering::Relaxed);
            self.engine.watches.overflowed();
            self.engine.scanned.clear();
            for sub in self.subs.values_mut() {
                sub.overflowed(&mut self.engine);
            }
            return;
        }
        let mut owners = std::mem::take(&mut self.owners);
        self.engine.watches.owners(event.wd, &mut owners);
        if event.flags.contains(ReadFlags::IGNORED) {
            self.engine.watches.ignored(event.wd);
        }
        for owner in &owners {
            let Some(sub) = self.subs.get_mut(&owner.sub) else {
                continue;
            };
            match owner.place {
                Place::Way => sub.on_way(&mut self.engine, event),
                Place::Node(node) => sub.on_node(&mut self.engine, node, event),
            }
        }
        self.owners = owners;
    }

    /// Looks at what has changed in the mount table.
    fn remounted(&mut self) {
        for (at, mounted) in self.mounts.changes() {
            for sub in self.subs.values_mut() {
                sub.remounted(&mut self.engine, &at, mounted);
            }
        }
    }

    fn ticks(&mut self) {
        while let Some(Reverse((due, id))) = self.engine.timers.peek().copied()
            && due <= self.engine.now
        {
            self.engine.timers.pop();
            if let Some(sub) = self.subs.get_mut(&id) {
                sub.tick(&mut self.engine);
            }
        }
    }

    /// Looks after scans that ended before the queue was found empty.
    fn settle(&mut self) {
        for (id, node) in std::mem::take(&mut self.engine.scanned) {
            if let Some(sub) = self.subs.get_mut(&id) {
                sub.scanned(node);
            }
        }
        for id in std::mem::take(&mut self.engine.settled) {
            if let Some(sub) = self.subs.get_mut(&id) {
                sub.settle();
            }
        }
    }

    /// Ends the subscriptions that were dropped.
    fn sweep(&mut self) {
        if !self.shared.ended.swap(false, Ordering::AcqRel) {
            return;
        }
        let ended = |sub: &Sub| sub.order.ended.load(Ordering::Acquire);
        let ids: Vec<_> = self
            .subs
            .values()
            .filter(|sub| ended(sub))
            .map(|sub| sub.id)
            .collect();
        for id in ids {
            self.end(id);
        }
    }

    fn end(&mut self, id: SubId) {
        if let Some(mut sub) = self.subs.remove(&id) {
            sub.leave(&mut self.engine);
        }
    }

    fn command(&mut self) -> bool {
        let Ok(Command { order, reply }) = self.commands.try_recv() else {
            return false;
        };
        let limit = self.engine.limits.subscriptions;
        let result = if self.subs.len() >= limit {
            Err(Refused::Subscriptions { limit })
        } else {
            self.next += 1;
            let mut sub = Sub::new(self.next, order);
            let started = sub.start(&mut self.engine);
            match started {
                Ok(()) => drop(self.subs.insert(self.next, sub)),
                Err(_) => sub.leave(&mut self.engine),
            }
            started
        };
        self.publish();
        // Who asked may have given up; then the subscription is dropped and swept.
        let _ = reply.send(result);
        true
    }

    /// Does one bounded piece.
    fn work(&mut self) {
        if let Some(mut reading) = self.engine.reading.take() {
            let Some(sub) = self.subs.get_mut(&reading.sub) else {
                return;
            };
            if sub.read(&mut self.engine, &mut reading) {
                self.engine.reading = Some(reading);
            } else {
                sub.done(&mut self.engine);
            }
            return;
        }
        match self.engine.work.pop_front() {
            Some(Work::Resolve(id)) => {
                let Some(sub) = self.subs.get_mut(&id) else {
                    return;
                };
                let resolved = sub.resolve(&mut self.engine);
                sub.done(&mut self.engine);
                if let Err(refused) = resolved {
                    sub.tell(Told::Failed {
                        error: Arc::new(refused),
                    });
                    self.end(id);
                }
            }
            Some(Work::Visit(id, node)) => {
                if let Some(sub) = self.subs.get_mut(&id) {
                    sub.visit(&mut self.engine, node);
                }
            }
            Some(Work::Narrow(wd)) => {
                if let Some(owner) = self.engine.watches.an_owner(wd)
                    && let Some(sub) = self.subs.get(&owner.sub)
                {
                    sub.narrow(&mut self.engine, wd, owner.place);
                }
            }
            None => {}
        }
    }

    fn publish(&self) {
        let reading = usize::from(self.engine.reading.is_some());
        self.shared
            .watches
            .store(self.engine.watches.len(), Ordering::Relaxed);
        self.shared
            .subscriptions
            .store(self.subs.len(), Ordering::Relaxed);
        self.shared
            .pending
            .store(self.engine.work.len() + reading, Ordering::Relaxed);
    }
}
