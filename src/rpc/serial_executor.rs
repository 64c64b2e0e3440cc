//! Runs the futures of one connection. They are polled one at a time: by a task of the runtime, or
//! by a loop's thread that has an event for one of them.
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
use crate::poison;

/// How often a loop's thread polls again after its delivery has woken futures. A delivery wakes the
/// future of the connection, which wakes the future of the stream in turn.
const ROUNDS_MAX: usize = 4;

/// Most futures that may end in one poll before other tasks of the runtime, or the loop, get their
/// turn.
const ENDS_AT_ONCE: usize = 32;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An executor of the futures of one connection.
pub(super) struct SerialExecutor {
    runtime: Handle,
    tasks: Mutex<FuturesUnordered<Task>>,
    /// New futures that are not among `tasks` yet.
    spawned: Mutex<Vec<Task>>,
    /// The waker of the runtime's task.
    task: AtomicWaker,
}

impl fmt::Debug for SerialExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialExecutor").finish_non_exhaustive()
    }
}

/// The delivery that this loop's thread carries out.
struct Delivery {
    /// The executor that it polls; null if there is none.
    executor: Cell<*const SerialExecutor>,
    /// A future of the executor was woken during the delivery.
    woken: Cell<bool>,
    /// The client has sent bytes.
    input: Cell<bool>,
}

thread_local! {
    static DELIVERY: Delivery = const { Delivery {
        executor: Cell::new(ptr::null()),
        woken: Cell::new(false),
        input: Cell::new(false),
    } };
}

/// Returns whether a loop's thread polls now. Then nothing may be read from the client.
pub(super) fn is_delivering() -> bool {
    DELIVERY.with(|delivery| !delivery.executor.get().is_null())
}

/// Leaves the client's bytes to the runtime's task.
pub(super) fn leave_input(cx: &Context<'_>) {
    DELIVERY.with(|delivery| delivery.input.set(true));
    cx.waker().wake_by_ref();
}

impl SerialExecutor {
    /// Polls the future that `first` makes, and the futures that it spawns, until all have ended.
    pub(super) fn start<F>(first: impl FnOnce(Spawner) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let executor = Arc::new(Self {
            runtime: Handle::current(),
            tasks: Mutex::default(),
            spawned: Mutex::default(),
            task: AtomicWaker::new(),
        });
        let first = first(Spawner(Arc::downgrade(&executor)));
        executor.tasks.lock().push(Box::pin(first));
        executor.runtime.clone().spawn(RuntimeTask(executor));
    }

    /// Polls the futures that were woken. Once [`ENDS_AT_ONCE`] of them have ended, wakes the task
    /// for the rest.
    fn poll(self: &Arc<Self>, tasks: &mut FuturesUnordered<Task>) -> Poll<()> {
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        for _ in 0..ENDS_AT_ONCE {
            tasks.extend(self.spawned.lock().drain(..));
            match catch_unwind(AssertUnwindSafe(|| tasks.poll_next_unpin(&mut cx))) {
                // One of the futures has ended. A panic ends only the future that panicked.
                Ok(Poll::Ready(Some(()))) | Err(_) => {}
                Ok(poll) if self.spawned.lock().is_empty() => return poll.map(drop),
                Ok(_) => {}
            }
        }
        self.task.wake();
        Poll::Pending
    }
}

impl Wake for SerialExecutor {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let here = DELIVERY.with(|delivery| {
            let here = ptr::eq(delivery.executor.get(), Arc::as_ptr(self));
            delivery.woken.set(delivery.woken.get() || here);
            here
        });
        if !here && !offer_inline(self) {
            self.task.wake();
        }
    }
}

impl InlineTask for SerialExecutor {
    fn run(self: Arc<Self>) {
        // Another thread polls now, but may already be past the future that was woken.
        let Some(mut tasks) = self.tasks.try_lock() else {
            return self.task.wake();
        };
        let _runtime = self.runtime.enter();
        let left = DELIVERY.with(|delivery| {
            delivery.executor.set(Arc::as_ptr(&self));
            delivery.input.set(false);
            let mut left = true;
            for _ in 0..ROUNDS_MAX {
                delivery.woken.set(false);
                // A panic concerns the future alone, not the loop whose thread this is.
                let ended = poison::apart(|| self.poll(&mut tasks)).is_ready();
                left = ended || delivery.woken.get() || delivery.input.get();
                if !left || ended || delivery.input.get() {
                    break;
                }
            }
            delivery.executor.set(ptr::null());
            left
        });
        drop(tasks);
        if left {
            self.task.wake();
        }
    }
}

/// The task of the runtime.
struct RuntimeTask(Arc<SerialExecutor>);

impl Future for RuntimeTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let executor = &self.0;
        executor.task.register(cx.waker());
        // If a loop's thread has the lock, this waits no longer than one delivery takes.
        let mut tasks = executor.tasks.lock();
        executor.poll(&mut tasks)
    }
}

impl Drop for RuntimeTask {
    fn drop(&mut self) {
        // The runtime is ending. The futures must be dropped here, because their wakers keep the
        // executor alive.
        let tasks = std::mem::take(&mut *self.0.tasks.lock());
        drop(tasks);
    }
}

/// Adds futures to an executor; hyper uses it for the calls of a connection.
#[derive(Debug, Clone)]
pub(super) struct Spawner(std::sync::Weak<SerialExecutor>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        // Without the executor, the connection and its calls have ended.
        if let Some(executor) = self.0.upgrade() {
            executor.spawned.lock().push(Box::pin(future));
            executor.wake();
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

    /// Wakes a future of the executor in a way that only this thread notices, and polls it.
    fn deliver(waker: &Waker, executor: &Arc<SerialExecutor>) {
        DELIVERY.with(|delivery| {
            delivery.executor.set(Arc::as_ptr(executor));
            waker.wake_by_ref();
            delivery.executor.set(ptr::null());
        });
        Arc::clone(executor).run();
    }

    #[tokio::test]
    async fn a_loops_thread_polls_what_it_woke_and_leaves_input_to_the_task() {
        let (polled, first) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let place = Arc::new(OnceLock::new());
        SerialExecutor::start(|Spawner(executor)| {
            let (mut tell, mut polled) = (Some(tell), Some(polled));
            let place = Arc::clone(&place);
            poll_fn(move |cx| {
                if let Some(polled) = polled.take() {
                    let _ = place.set((executor.upgrade().unwrap(), cx.waker().clone()));
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
            let (executor, waker) = place.get().unwrap();
            deliver(waker, executor);
            std::thread::current().id()
        });
        let by = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
        assert_ne!(by, elsewhere.await.unwrap());
    }

    #[tokio::test]
    async fn a_panic_ends_one_future_and_the_strand_ends_with_the_last() {
        let (tell, told) = oneshot::channel::<()>();
        SerialExecutor::start(|spawner| async move {
            hyper::rt::Executor::execute(&spawner, async { panic!("on purpose") });
            hyper::rt::Executor::execute(&spawner, async move { tell.send(()).unwrap() });
        });
        let told = tokio::time::timeout(PATIENCE, told).await;
        told.unwrap().unwrap();
    }
}
