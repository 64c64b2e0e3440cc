//! Tells who waits for a free file descriptor that one was closed. All descriptors of the daemon
//! count against one limit, so there is one such list.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// The number of descriptors that were closed so far, as far as they are told here.
static CLOSINGS: AtomicU64 = AtomicU64::new(0);
/// The length of [`WAITING`].
static WAITERS: AtomicUsize = AtomicUsize::new(0);
static WAITING: Mutex<Vec<Waiter>> = Mutex::new(Vec::new());

type Waiter = Box<dyn FnOnce() + Send>;

/// Tells, when it is dropped, that a descriptor was closed. Whatever owns the descriptor must be
/// dropped before.
#[derive(Debug)]
pub(crate) struct Closing;

impl Drop for Closing {
    fn drop(&mut self) {
        CLOSINGS.fetch_add(1, Ordering::SeqCst);
        if WAITERS.load(Ordering::SeqCst) > 0 {
            let waiting = {
                let mut waiting = WAITING.lock();
                WAITERS.store(0, Ordering::SeqCst);
                std::mem::take(&mut *waiting)
            };
            for waiter in waiting {
                waiter();
            }
        }
    }
}

/// Returns how many descriptors were closed so far.
pub(crate) fn closings() -> u64 {
    CLOSINGS.load(Ordering::SeqCst)
}

/// Calls `waiter` once, as soon as more descriptors were closed than `seen`; at once, if that is so
/// already.
pub(crate) fn when_closed(seen: u64, waiter: impl FnOnce() + Send + 'static) {
    let mut waiting = WAITING.lock();
    // Counted before looking: a descriptor that is closed after the look finds the waiter.
    WAITERS.store(waiting.len() + 1, Ordering::SeqCst);
    if closings() == seen {
        waiting.push(Box::new(waiter));
    } else {
        WAITERS.store(waiting.len(), Ordering::SeqCst);
        drop(waiting);
        waiter();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_waiter_is_called_once_and_misses_no_closing() {
        let calls = Arc::new(AtomicUsize::new(0));
        let waiter = || {
            let calls = Arc::clone(&calls);
            move || {
                calls.fetch_add(1, Ordering::SeqCst);
            }
        };
        let called = || calls.load(Ordering::SeqCst);
        let seen = closings();
        drop(Closing);
        when_closed(seen, waiter());
        assert_eq!(called(), 1, "one was closed before");
        when_closed(closings(), waiter());
        drop(Closing);
        drop(Closing);
        assert_eq!(called(), 2);
        // Other tests of this process may close descriptors at the same time, so that a waiter may
        // be called before.
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| (0..1000).for_each(|_| drop(Closing))))
            .collect();
        for _ in 0..1000 {
            when_closed(closings(), waiter());
        }
        for thread in threads {
            thread.join().unwrap();
        }
        drop(Closing);
        assert_eq!(called(), 1002);
    }
}
