//! Panics that nothing may go on after: those of a loop's thread, or of any thread that holds a lock
//! of a loop. What the loop owns may be half changed then, and it has no other owner, so the daemon
//! ends as if it was killed, and its next life takes up what was whole.
//!
//! All other panics are caught where they concern one call or one job, which fails.

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic;

thread_local! {
    /// How many [`Critical`]s this thread has.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// While a thread has one, a panic on it ends the daemon.
#[derive(Debug)]
#[must_use]
pub(crate) struct Critical {
    /// It counts for the thread that made it.
    here: PhantomData<*const ()>,
}

impl Critical {
    pub(crate) fn new() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self { here: PhantomData }
    }
}

impl Drop for Critical {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}

/// Restores the depth, also if what ran in between panics.
struct Apart(usize);

impl Drop for Apart {
    fn drop(&mut self) {
        DEPTH.set(self.0);
    }
}

/// Runs what is no part of what the thread does otherwise, and whose panics the caller catches.
pub(crate) fn apart<R>(run: impl FnOnce() -> R) -> R {
    let _depth = Apart(DEPTH.replace(0));
    run()
}

/// From now on, panics of threads that have a [`Critical`] end the process by SIGABRT.
pub(crate) fn abort_where_critical() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        before(info);
        if DEPTH.get() > 0 {
            let why = b"evloopd: the panic may have left a loop half changed: the daemon ends\n";
            let _ = rustix::io::write(rustix::stdio::stderr(), why);
            std::process::abort();
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_for_as_long_as_it_is_there_and_not_apart() {
        let outer = Critical::new();
        let inner = Critical::new();
        assert_eq!(DEPTH.get(), 2);
        let caught = panic::catch_unwind(|| {
            apart(|| {
                assert_eq!(DEPTH.get(), 0);
                let _own = Critical::new();
                panic!("on purpose");
            });
        });
        assert!(caught.is_err());
        assert_eq!(DEPTH.get(), 2);
        drop((inner, outer));
        assert_eq!(DEPTH.get(), 0);
    }
}
