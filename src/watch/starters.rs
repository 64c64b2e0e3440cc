//! The threads on which watches are prepared and children started.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error::{Error, Result, SystemError};

type Job = Box<dyn FnOnce() + Send>;

/// Some threads that do one thing after another. They last as long as this does, not as those of
/// the runtime's pool, which end when they are idle: the children of a thread that ends become the
/// main thread's, where strangers are reaped.
#[derive(Debug)]
pub struct Starters(mpsc::Sender<Job>);

impl Starters {
    /// Starts so many threads, at least one.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(threads: usize, runtime: &Handle) -> Result<Self> {
        let (sender, jobs) = mpsc::channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..threads.max(1) {
            let (jobs, runtime) = (Arc::clone(&jobs), runtime.clone());
            thread::Builder::new()
                .name(format!("start-{number}"))
                .spawn(move || work(&jobs, &runtime))
                .map_err(|error| SystemError::from_io(&error, "thread", ""))?;
        }
        Ok(Self(sender))
    }

    /// Has it done when a thread is free. What waits is bounded by who asks: registrations, which
    /// have their room set aside.
    ///
    /// # Errors
    /// It was not done to its end.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = oneshot::channel();
        let job = Box::new(move || {
            // Nobody waits any longer: what it made is dropped.
            let _ = tell.send(work());
        });
        let lost = Error::Internal("the preparation was lost");
        match self.0.send(job) {
            Ok(()) => told.await.map_err(|_| lost),
            Err(_) => Err(lost),
        }
    }
}

/// Does what comes until nobody is left to ask for more.
fn work(jobs: &Mutex<mpsc::Receiver<Job>>, runtime: &Handle) {
    let _entered = runtime.enter();
    loop {
        // One thread waits in the queue, the others for their turn to.
        let job = jobs.lock().recv();
        let Ok(job) = job else { return };
        // The thread has to last. Whoever waits for the job learns that it was lost.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_outlives_a_job_that_panics() {
        let starters = Starters::start(1, &Handle::current()).unwrap();
        let id = || thread::current().id();
        let first = starters.run(id).await.unwrap();
        let lost = starters.run(|| panic!("on purpose")).await;
        assert!(matches!(lost, Err(Error::Internal(_))), "{lost:?}");
        assert_eq!(starters.run(id).await.unwrap(), first);
    }

    #[tokio::test]
    async fn a_job_that_blocks_holds_up_its_own_thread_alone() {
        let starters = Starters::start(2, &Handle::current()).unwrap();
        let (release, released) = mpsc::channel::<()>();
        let blocked = starters.run(move || released.recv());
        let other = async {
            let done = starters.run(|| 7).await;
            release.send(()).unwrap();
            done
        };
        let (blocked, other) = tokio::join!(blocked, other);
        assert_eq!((blocked.unwrap(), other.unwrap()), (Ok(()), 7));
    }
}
