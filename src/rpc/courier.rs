//! Takes wake-ups from loop threads to the thread that serves streams.
//!
//! A task woken from another thread is woken through an eventfd, and the kernel then
//! likes to start its thread on an idle CPU, which has to be fetched out of its sleep first.
//! A write to a pipe says that the writer is about to wait (`WF_SYNC`): the reader goes on where the
//! loop's thread ends. `cargo bench --bench delivery` shows the difference as latency.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;
use rustix::pipe::PipeFlags;
use tokio::net::unix::pipe::Receiver;

/// The way from loop threads to one runtime.
#[derive(Debug)]
pub struct Courier {
    /// At most one for each stream: a woken stream waits again only after it has run.
    waiting: Mutex<Vec<Waker>>,
    bell: OwnedFd,
}

impl Courier {
    /// Starts carrying, for as long as the runtime runs.
    ///
    /// # Errors
    /// The system's: no descriptor is left.
    pub fn start() -> io::Result<Arc<Self>> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (reader, bell) = rustix::pipe::pipe_with(flags)?;
        let reader = Receiver::from_owned_fd(reader)?;
        let courier = Arc::new(Self {
            waiting: Mutex::default(),
            bell,
        });
        tokio::spawn(Arc::clone(&courier).carry(reader));
        Ok(courier)
    }

    async fn carry(self: Arc<Self>, reader: Receiver) {
        let mut rings = [0; 64];
        while reader.readable().await.is_ok() {
            // Empty is what it should be after this.
            let _ = reader.try_read(&mut rings);
            let waiting = std::mem::take(&mut *self.waiting.lock());
            for waker in waiting {
                waker.wake();
            }
        }
    }

    fn take(&self, waker: Waker) {
        let mut waiting = self.waiting.lock();
        waiting.push(waker);
        let first = waiting.len() == 1;
        drop(waiting);
        if first {
            // Full means that it rings already.
            let _ = rustix::io::write(&self.bell, &[1]);
        }
    }
}

/// Wakes one task by courier.
#[derive(Debug)]
pub(super) struct ByCourier {
    wake: Arc<Carried>,
    waker: Waker,
}

#[derive(Debug)]
struct Carried {
    courier: Arc<Courier>,
    task: Mutex<Option<Waker>>,
}

impl Wake for Carried {
    fn wake(self: Arc<Self>) {
        if let Some(task) = self.task.lock().take() {
            self.courier.take(task);
        }
    }
}

impl ByCourier {
    pub(super) fn new(courier: Arc<Courier>) -> Self {
        let wake = Arc::new(Carried {
            courier,
            task: Mutex::default(),
        });
        let waker = Waker::from(Arc::clone(&wake));
        Self { wake, waker }
    }

    /// A context that wakes the task of `cx`, by courier.
    pub(super) fn instead_of(&self, cx: &Context<'_>) -> Context<'_> {
        *self.wake.task.lock() = Some(cx.waker().clone());
        Context::from_waker(&self.waker)
    }
}
