//! The threads on which watches are prepared and child processes started.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::runtime::Handle;

use crate::descriptors::Closing;
use crate::error::{Error, Result, SystemError};

type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads that run jobs. The threads run as long as the pool exists; those of the
/// runtime's pool end when they are idle, and then the kernel makes their children children of the
/// main thread, on which [`reap_inherited`](super::reap_inherited) would reap them.
pub struct Starters(Arc<Queue>);

#[derive(Default)]
struct Queue {
    /// The jobs that wait for a thread; `None` once the pool is dropped.
    jobs: Mutex<Option<VecDeque<Job>>>,
    more: Condvar,
}

impl fmt::Debug for Starters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let jobs = self.0.jobs.lock();
        let waiting = jobs.as_ref().map(VecDeque::len);
        f.debug_tuple("Starters").field(&waiting).finish()
    }
}

impl Starters {
    /// Starts `threads` threads, at least one.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn start(threads: usize, runtime: &Handle) -> Result<Self> {
        let starters = Self(Arc::default());
        *starters.0.jobs.lock() = Some(VecDeque::new());
        for number in 0..threads.max(1) {
            let (queue, runtime) = (Arc::clone(&starters.0), runtime.clone());
            thread::Builder::new()
                .name(format!("start-{number}"))
                .spawn(move || work(&queue, &runtime))
                .map_err(|error| SystemError::from_io(&error, "thread", ""))?;
        }
        Ok(starters)
    }

    /// Runs `work` on the next free thread, and then passes its result to `tell` on the same thread;
    /// if `work` panics, the result is an error. The number of waiting jobs is bounded, because each
    /// belongs to a registration whose room is set aside.
    pub fn run<T>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        tell: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let job = Box::new(move || {
            // A panic must not end the thread.
            let done = catch_unwind(AssertUnwindSafe(work));
            // It may have had descriptors open for a while.
            drop(Closing);
            tell(done.unwrap_or(Err(Error::Internal(
                "the thread that starts processes gave no result",
            ))));
        });
        if let Some(jobs) = &mut *self.0.jobs.lock() {
            jobs.push_back(job);
        }
        self.0.more.notify_one();
    }
}

impl Drop for Starters {
    fn drop(&mut self) {
        let left = self.0.jobs.lock().take();
        self.0.more.notify_all();
        drop(left);
    }
}

/// Runs jobs until the pool is dropped.
fn work(queue: &Queue, runtime: &Handle) {
    let _entered = runtime.enter();
    let mut waiting = queue.jobs.lock();
    while let Some(jobs) = &mut *waiting {
        match jobs.pop_front() {
            Some(job) => MutexGuard::unlocked(&mut waiting, || {
                // A panic of `tell` must not end the thread either.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }),
            None => queue.more.wait(&mut waiting),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    async fn done<T: Send + 'static>(
        starters: &Starters,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = oneshot::channel();
        starters.run(move || Ok(work()), move |done| drop(tell.send(done)));
        told.await.unwrap()
    }

    #[tokio::test]
    async fn a_thread_outlives_a_job_that_panics() {
        let starters = Starters::start(1, &Handle::current()).unwrap();
        let id = || thread::current().id();
        let first = done(&starters, id).await.unwrap();
        let lost = done(&starters, || panic!("on purpose")).await;
        assert!(matches!(lost, Err(Error::Internal(_))), "{lost:?}");
        assert_eq!(done(&starters, id).await.unwrap(), first);
    }

    #[tokio::test]
    async fn a_job_that_blocks_holds_up_its_own_thread_alone() {
        let starters = Starters::start(2, &Handle::current()).unwrap();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let blocked = done(&starters, move || released.recv());
        let other = async {
            let done = done(&starters, || 7).await;
            release.send(()).unwrap();
            done
        };
        let (blocked, other) = tokio::join!(blocked, other);
        assert_eq!((blocked.unwrap(), other.unwrap()), (Ok(()), 7));
    }
}
