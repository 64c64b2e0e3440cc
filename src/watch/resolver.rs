//! The threads on which names are resolved.
//!
//! getaddrinfo(3) has no timeout of its own: while the name servers are silent, each call keeps its
//! thread for many seconds. So names have threads of their own, a bounded number of them, and no
//! principal gets all of these.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::Mutex;

use crate::access::Principal;
use crate::descriptors::Closing;
use crate::error::{Error, Result, SystemError};

/// A job, which is called with an error if there is no thread for it.
type Job = Box<dyn FnOnce(Result<()>) + Send>;

/// A pool of threads that resolve names. A thread exists only while it has a job.
///
/// A principal has at most half of the threads that the others leave, rounded up: so with 16 threads
/// and silent name servers, the second principal still has 4, and the third 2. Further jobs wait; of
/// those that may begin, one of the principal with the fewest threads is first.
pub struct Resolver(Arc<Pool>);

struct Pool {
    threads: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    principals: BTreeMap<Principal, Share>,
    /// The number of threads of all principals.
    running: usize,
    last_id: u64,
}

#[derive(Default)]
struct Share {
    /// The jobs that wait, by their number, the oldest first.
    waiting: BTreeMap<u64, Job>,
    /// The number of threads.
    running: usize,
}

/// A job of a [`Resolver`]. If it waits for a thread when this is dropped, it is forgotten.
#[derive(Debug)]
pub struct Lookup {
    pool: Weak<Pool>,
    owner: Principal,
    id: u64,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads)
            .field("running", &self.state.lock().running)
            .finish_non_exhaustive()
    }
}

impl Resolver {
    /// Makes a pool of at most that many threads, at least one.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self(Arc::new(Pool {
            threads: threads.max(1),
            state: Mutex::default(),
        }))
    }

    /// Runs `work` on a thread once the principal may have one, and then passes its result to `tell`
    /// on the same thread; if `work` panics or the system refuses the thread, the result is an
    /// error. The number of waiting jobs is bounded, because each belongs to a watch or to a
    /// registration whose room is set aside.
    pub fn run<T>(
        &self,
        owner: &Principal,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        tell: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Lookup {
        let job: Job = Box::new(move |thread| {
            let done = thread.and_then(|()| {
                let done = catch_unwind(AssertUnwindSafe(work));
                let lost = Error::Internal("the thread that resolves names gave no result");
                done.unwrap_or(Err(lost))
            });
            tell(done);
        });
        let mut state = self.0.state.lock();
        state.last_id += 1;
        let id = state.last_id;
        let share = state.principals.entry(owner.clone()).or_default();
        share.waiting.insert(id, job);
        let begins = state.next(self.0.threads).is_some();
        drop(state);
        if begins {
            self.0.begin();
        }
        Lookup {
            pool: Arc::downgrade(&self.0),
            owner: owner.clone(),
            id,
        }
    }
}

impl State {
    /// Returns the principal whose job is to begin next; `None` if no job may begin.
    fn next(&self, threads: usize) -> Option<&Principal> {
        let may = |share: &Share| {
            let left = threads.saturating_sub(self.running - share.running);
            self.running < threads && !share.waiting.is_empty() && share.running < left.div_ceil(2)
        };
        let eligible = self.principals.iter().filter(|(_, share)| may(share));
        let first = eligible.min_by_key(|(_, share)| share.running);
        first.map(|(principal, _)| principal)
    }

    /// Takes the job that is to begin next, and counts a thread for its principal.
    fn take(&mut self, threads: usize) -> Option<(Principal, Job)> {
        let principal = self.next(threads)?.clone();
        let share = self.principals.get_mut(&principal)?;
        let (_, job) = share.waiting.pop_first()?;
        share.running += 1;
        self.running += 1;
        Some((principal, job))
    }

    /// Counts a thread of that principal as ended.
    fn ended(&mut self, principal: &Principal) {
        self.running -= 1;
        if let Some(share) = self.principals.get_mut(principal) {
            share.running -= 1;
        }
        self.tidy(principal);
    }

    /// Forgets a principal without jobs.
    fn tidy(&mut self, principal: &Principal) {
        let share = self.principals.get(principal);
        if share.is_some_and(|share| share.running == 0 && share.waiting.is_empty()) {
            self.principals.remove(principal);
        }
    }
}

impl Pool {
    /// Starts a thread for the job that is to begin next.
    fn begin(self: &Arc<Self>) {
        let Some((principal, job)) = self.state.lock().take(self.threads) else {
            return;
        };
        // The job is handed over through this, so that it is still here if there is no thread.
        let job = Arc::new(Mutex::new(Some((principal, job))));
        let (pool, given) = (Arc::clone(self), Arc::clone(&job));
        let thread = thread::Builder::new()
            .name("resolve".to_owned())
            .spawn(move || {
                let mut next = given.lock().take();
                while let Some((principal, job)) = next {
                    pool.carry_out(&principal, job, Ok(()));
                    next = pool.state.lock().take(pool.threads);
                }
            });
        if let Err(error) = thread
            && let Some((principal, job)) = job.lock().take()
        {
            let error = SystemError::from_io(&error, "resolve", "a thread");
            self.carry_out(&principal, job, Err(error.into()));
        }
    }

    fn carry_out(&self, principal: &Principal, job: Job, thread: Result<()>) {
        // A panic of `tell` must not end the thread.
        let _ = catch_unwind(AssertUnwindSafe(|| job(thread)));
        // It may have had descriptors open for a while.
        drop(Closing);
        self.state.lock().ended(principal);
    }
}

impl Lookup {
    /// Lets the job run even if nothing waits for it any more.
    pub fn keep(mut self) {
        self.pool = Weak::new();
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let mut state = pool.state.lock();
        let share = state.principals.get_mut(&self.owner);
        // Dropped without the lock, because the job may own anything.
        let forgotten = share.and_then(|share| share.waiting.remove(&self.id));
        state.tidy(&self.owner);
        drop(state);
        drop(forgotten);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Jobs that report when they begin, and hang until their gate is dropped.
    struct Jobs {
        resolver: Resolver,
        began: Receiver<u32>,
        report: Sender<u32>,
        lookups: Vec<(Lookup, Sender<()>)>,
    }

    impl Jobs {
        fn on(threads: usize) -> Self {
            let (report, began) = channel();
            Self {
                resolver: Resolver::new(threads),
                began,
                report,
                lookups: Vec::new(),
            }
        }

        fn hang(&mut self, uid: u32) {
            let (gate, shut) = channel();
            let report = self.report.clone();
            let work = move || {
                report.send(uid).unwrap();
                let _ = shut.recv();
                Ok(())
            };
            let lookup = self.resolver.run(&Principal::uid(uid), work, drop);
            self.lookups.push((lookup, gate));
        }

        fn running(&self) -> usize {
            self.resolver.0.state.lock().running
        }
    }

    #[test]
    fn hanging_names_of_one_principal_leave_threads_for_the_others() {
        let mut jobs = Jobs::on(16);
        for (uid, share) in [(1, 8), (2, 4), (3, 2), (4, 1), (5, 1)] {
            (0..300).for_each(|_| jobs.hang(uid));
            for _ in 0..share {
                assert_eq!(jobs.began.recv().unwrap(), uid);
            }
        }
        assert_eq!(jobs.running(), 16);
        assert!(jobs.began.try_recv().is_err(), "no thread is left");

        // A thread that becomes free is used again, for a principal that may have it.
        drop(jobs.lookups.remove(4 * 300));
        assert_eq!(jobs.began.recv().unwrap(), 5);
    }

    #[test]
    fn a_dropped_lookup_never_begins() {
        let mut jobs = Jobs::on(1);
        jobs.hang(1);
        assert_eq!(jobs.began.recv().unwrap(), 1);
        jobs.hang(2);
        jobs.hang(3);
        drop(jobs.lookups.remove(1));
        drop(jobs.lookups.remove(0));
        assert_eq!(jobs.began.recv().unwrap(), 3);
        let waiting = |jobs: &Jobs| jobs.resolver.0.state.lock().principals.len();
        assert_eq!(waiting(&jobs), 1);
    }

    #[test]
    fn a_thread_outlives_a_job_that_panics() {
        let jobs = Jobs::on(1);
        let (tell, told) = channel();
        let owner = Principal::uid(1);
        let first = tell.clone();
        let panics = || -> Result<()> { panic!("on purpose") };
        let lost = jobs.resolver.run(&owner, panics, move |done| {
            first.send(done).unwrap();
        });
        let next = jobs
            .resolver
            .run(&owner, || Ok(()), move |done| tell.send(done).unwrap());
        assert!(matches!(told.recv().unwrap(), Err(Error::Internal(_))));
        assert!(told.recv().unwrap().is_ok());
        drop((lost, next));
    }
}
