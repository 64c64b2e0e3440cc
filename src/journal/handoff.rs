//! Delivery by the thread that has the news.
//!
//! Waking a thread that sleeps on another CPU is most of what an event's way to its reader
//! takes. So while a writer wakes readers, one of them may have its work done by the
//! writer's own thread instead: a waker *offers* it, and it is done once all
//! others have been woken.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::Waker;

/// Most bytes of news for which a writer delivers itself: beyond, reading and sending are
/// better done side by side.
const NEWS_MAX: usize = 16 * 1024;

/// Work that any thread may do. It neither blocks nor takes long.
pub trait Errand: Send + Sync {
    /// Does it.
    fn run(self: Arc<Self>);
}

enum Offers {
    /// Nothing is woken, or nothing may be done here.
    Closed,
    /// One is taken.
    Open,
    Taken(Arc<dyn Errand>),
}

thread_local! {
    static OFFERS: RefCell<Offers> = const { RefCell::new(Offers::Closed) };
}

/// For wakers: whether the thread that wakes will do this itself. If not, it has to be
/// done as usual.
pub fn offer<T: Errand + 'static>(errand: &Arc<T>) -> bool {
    OFFERS.with_borrow_mut(|offers| {
        let open = matches!(offers, Offers::Open);
        if open {
            *offers = Offers::Taken(Arc::clone(errand) as Arc<dyn Errand>);
        }
        open
    })
}

/// Wakes all, and delivers so much news to one of them from here. No lock may be held.
pub(super) fn wake(waiting: impl Iterator<Item = Waker>, news: usize) {
    if news <= NEWS_MAX {
        OFFERS.set(Offers::Open);
    }
    waiting.for_each(Waker::wake);
    if let Offers::Taken(errand) = OFFERS.replace(Offers::Closed) {
        errand.run();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    /// Counts how often it was woken, and how often run.
    #[derive(Default)]
    struct Counter {
        refused: AtomicU32,
        ran: AtomicU32,
    }

    impl Errand for Counter {
        fn run(self: Arc<Self>) {
            assert!(!offer(&self), "an errand is not run inside another");
            self.ran.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            if !offer(&self) {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn one_of_the_woken_is_run_here_if_the_news_is_small() {
        let counter = Arc::new(Counter::default());
        let wakers = || (0..3).map(|_| Waker::from(Arc::clone(&counter)));
        let counts = || {
            let count = |n: &AtomicU32| n.load(Ordering::Relaxed);
            (count(&counter.ran), count(&counter.refused))
        };
        wake(wakers(), NEWS_MAX);
        assert_eq!(counts(), (1, 2));
        wake(wakers(), NEWS_MAX + 1);
        assert_eq!(counts(), (1, 5));
        wakers().for_each(Waker::wake);
        assert_eq!(counts(), (1, 8));
    }
}
