//! The futures of one connection. They are polled one at a time: by a task of the runtime, or by a
//! loop's thread that has an event for one of them.
//!
//! The task does all the work. A loop's thread only delivers the events that its loop has just
//! appended (see [`InlineTask`]); it leaves what the client sends to the task.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::ptr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::journal::{InlineTask, offer_inline};

/// How often a loop's thread polls again after its delivery has woken futures: the stream wakes the
/// connection, and the connection wakes the stream.
const ROUNDS_MAX: usize = 4;

/// Most futures that may end in one poll before other tasks of the runtime, or the loop, get their
/// turn.
const ENDS_AT_ONCE: usize = 32;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The futures of one connection.
pub(super) struct Strand {
    runtime: Handle,
    tasks: Mutex<FuturesUnordered<Task>>,
    /// New futures that are not among `tasks` yet.
    born: Mutex<Vec<Task>>,
    /// The waker of the runtime's task.
    driver: AtomicWaker,
}

impl fmt::Debug for Strand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Strand").finish_non_exhaustive()
    }
}

/// The delivery that this loop's thread carries out.
struct Delivery {
    /// The strand that it polls; null if there is none.
    strand: Cell<*const Strand>,
    /// A future of the strand was woken during the delivery.
    woken: Cell<bool>,
    /// The client has sent bytes.
    input: Cell<bool>,
}

thread_local! {
    static DELIVERY: Delivery = const { Delivery {
        strand: Cell::new(ptr::null()),
        woken: Cell::new(false),
        input: Cell::new(false),
    } };
}

/// Returns whether a loop's thread polls now. Then nothing may be read from the client.
pub(super) fn is_delivering() -> bool {
    DELIVERY.with(|delivery| !delivery.strand.get().is_null())
}

/// Leaves the client's bytes to the runtime's task.
pub(super) fn leave_input(cx: &Context<'_>) {
    DELIVERY.with(|delivery| delivery.input.set(true));
    cx.waker().wake_by_ref();
}

impl Strand {
    /// Polls the future that `first` makes, and the futures that it spawns, until all have ended.
    pub(super) fn start<F>(first: impl FnOnce(Spawner) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let strand = Arc::new(Self {
            runtime: Handle::current(),
            tasks: Mutex::default(),
            born: Mutex::default(),
            driver: AtomicWaker::new(),
        });
        let first = first(Spawner(Arc::downgrade(&strand)));
        strand.tasks.lock().push(Box::pin(first));
        strand.runtime.clone().spawn(Driver(strand));
    }

    /// Polls the futures that were woken. Once [`ENDS_AT_ONCE`] of them have ended, wakes the task
    /// for the rest.
    fn poll(self: &Arc<Self>, tasks: &mut FuturesUnordered<Task>) -> Poll<()> {
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        for _ in 0..ENDS_AT_ONCE {
            tasks.extend(self.born.lock().drain(..));
            match catch_unwind(AssertUnwindSafe(|| tasks.poll_next_unpin(&mut cx))) {
                // One of the futures has ended. A panic ends only the future that panicked.
                Ok(Poll::Ready(Some(()))) | Err(_) => {}
                Ok(poll) if self.born.lock().is_empty() => return poll.map(drop),
                Ok(_) => {}
            }
        }
        self.driver.wake();
        Poll::Pending
    }
}

impl Wake for Strand {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let here = DELIVERY.with(|delivery| {
            let here = ptr::eq(delivery.strand.get(), Arc::as_ptr(self));
            delivery.woken.set(delivery.woken.get() || here);
            here
        });
        if !here && !offer_inline(self) {
            self.driver.wake();
        }
    }
}

impl InlineTask for Strand {
    fn run(self: Arc<Self>) {
        // Another thread polls now, but may already be past the future that was woken.
        let Some(mut tasks) = self.tasks.try_lock() else {
            return self.driver.wake();
        };
        let _runtime = self.runtime.enter();
        let left = DELIVERY.with(|delivery| {
            delivery.strand.set(Arc::as_ptr(&self));
            delivery.input.set(false);
            let mut left = true;
            for _ in 0..ROUNDS_MAX {
                delivery.woken.set(false);
                let ended = self.poll(&mut tasks).is_ready();
                left = ended || delivery.woken.get() || delivery.input.get();
                if !left || ended || delivery.input.get() {
                    break;
                }
            }
            delivery.strand.set(ptr::null());
            left
        });
        drop(tasks);
        if left {
            self.driver.wake();
        }
    }
}

/// The task of the runtime.
struct Driver(Arc<Strand>);

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let strand = &self.0;
        strand.driver.register(cx.waker());
        // If a loop's thread has the lock, this waits no longer than one delivery takes.
        let mut tasks = strand.tasks.lock();
        strand.poll(&mut tasks)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The runtime is ending. The futures must be dropped here, because their wakers keep the
        // strand alive.
        let tasks = std::mem::take(&mut *self.0.tasks.lock());
        drop(tasks);
    }
}

/// Adds futures to a strand; hyper uses it for the calls of a connection.
#[derive(Debug, Clone)]
pub(super) struct Spawner(std::sync::Weak<Strand>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        // Without the strand, the connection and its calls have ended.
        if let Some(strand) = self.0.upgrade() {
            strand.born.lock().push(Box::pin(future));
            strand.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::OnceLock;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    /// Longer than any step of these tests takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Wakes a future of the strand in a way that only this thread notices, and polls it.
    fn deliver(waker: &Waker, strand: &Arc<Strand>) {
        DELIVERY.with(|delivery| {
            delivery.strand.set(Arc::as_ptr(strand));
            waker.wake_by_ref();
            delivery.strand.set(ptr::null());
        });
        Arc::clone(strand).run();
    }

    #[tokio::test]
    async fn a_loops_thread_polls_what_it_woke_and_leaves_input_to_the_task() {
        let (polled, first) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let place = Arc::new(OnceLock::new());
        Strand::start(|Spawner(strand)| {
            let (mut tell, mut polled) = (Some(tell), Some(polled));
            let place = Arc::clone(&place);
            poll_fn(move |cx| {
                if let Some(polled) = polled.take() {
                    let _ = place.set((strand.upgrade().unwrap(), cx.waker().clone()));
                    let _ = polled.send(());
                } else if is_delivering() {
                    leave_input(cx);
                } else {
                    let _ = tell
                        .take()
                        .map(|tell| tell.send(std::thread::current().id()));
                    return Poll::Ready(());
                }
                Poll::Pending
            })
        });
        first.await.unwrap();
        let elsewhere = tokio::task::spawn_blocking(move || {
            let (strand, waker) = place.get().unwrap();
            deliver(waker, strand);
            std::thread::current().id()
        });
        let by = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
        assert_ne!(by, elsewhere.await.unwrap());
    }

    #[tokio::test]
    async fn a_panic_ends_one_future_and_the_strand_ends_with_the_last() {
        let (tell, told) = oneshot::channel::<()>();
        Strand::start(|spawner| async move {
            hyper::rt::Executor::execute(&spawner, async { panic!("on purpose") });
            hyper::rt::Executor::execute(&spawner, async move { tell.send(()).unwrap() });
        });
        let told = tokio::time::timeout(PATIENCE, told).await;
        told.unwrap().unwrap();
    }
}
