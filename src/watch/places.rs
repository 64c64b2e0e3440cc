//! Counts the open connections of a listener, within its limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{Notice, Notifier};
use crate::driver::Key;

/// The places of a listener's connections.
#[derive(Debug)]
pub(super) struct Places {
    most: AtomicU32,
    /// The number of open connections and of those that may be accepted at any moment.
    taken: AtomicU32,
    /// Whether the listener waits for a place.
    wanted: AtomicBool,
    listener: Key,
    notifier: Arc<dyn Notifier>,
}

/// The place of one open connection. It is free again when this is dropped; then a listener that
/// waits for a place gets [`Notice::PlaceFree`].
#[derive(Debug)]
pub struct Place(Arc<Places>);

impl Places {
    /// Makes `most` free places for the connections of `listener`.
    pub(super) fn new(most: u32, listener: Key, notifier: Arc<dyn Notifier>) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicU32::new(most),
            taken: AtomicU32::new(0),
            wanted: AtomicBool::new(false),
            listener,
            notifier,
        })
    }

    /// Takes up to `wanted` free places and returns how many. If that is none, a notice follows when
    /// one becomes free.
    pub(super) fn take(&self, wanted: u32) -> u32 {
        let most = self.most.load(Ordering::SeqCst);
        let free = most.saturating_sub(self.taken.load(Ordering::SeqCst));
        let taken = wanted.min(free);
        self.taken.fetch_add(taken, Ordering::SeqCst);
        if taken == 0 {
            self.wanted.store(true, Ordering::SeqCst);
        }
        taken
    }

    /// Changes their number. If more are taken, they stay so.
    pub(super) fn set_most(&self, most: u32) {
        self.most.store(most, Ordering::SeqCst);
    }

    /// Releases places that were taken and not used.
    pub(super) fn give_back(&self, unused: u32) {
        self.taken.fetch_sub(unused, Ordering::SeqCst);
    }

    /// Makes one of the taken places that of a connection.
    pub(super) fn fill(self: &Arc<Self>) -> Place {
        Place(Arc::clone(self))
    }

    /// Returns a place for a connection that an earlier life has accepted, even if none is free.
    pub(super) fn of_earlier_life(self: &Arc<Self>) -> Place {
        self.taken.fetch_add(1, Ordering::SeqCst);
        self.fill()
    }

    /// Returns the number of taken places.
    pub(super) fn taken(&self) -> u32 {
        self.taken.load(Ordering::SeqCst)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &self.0;
        places.taken.fetch_sub(1, Ordering::SeqCst);
        if places.wanted.swap(false, Ordering::SeqCst) {
            places.notifier.notify(places.listener, Notice::PlaceFree);
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Notices(Mutex<u32>);

    impl Notifier for Notices {
        fn notify(&self, _: Key, notice: Notice) {
            assert!(matches!(notice, Notice::PlaceFree));
            *self.0.lock() += 1;
        }
    }

    #[test]
    fn a_listener_that_waits_gets_one_notice_and_no_place_is_there_twice() {
        let notices = Arc::new(Notices::default());
        let key = Key {
            slot: 1,
            generation: 1,
        };
        let places = Places::new(3, key, notices.clone());
        assert_eq!(places.take(16), 3);
        let (one, two) = (places.fill(), places.fill());
        places.give_back(1);
        drop(one);
        assert_eq!(*notices.0.lock(), 0, "the listener does not wait");
        assert_eq!((places.taken(), places.take(1), places.take(5)), (1, 1, 1));
        assert_eq!(places.take(1), 0);
        let (three, four) = (places.fill(), places.fill());
        drop((two, three));
        assert_eq!(*notices.0.lock(), 1, "one notice until it waits again");
        assert_eq!(places.take(9), 2);
        assert_eq!(places.take(1), 0);
        drop(four);
        assert_eq!((*notices.0.lock(), places.taken()), (2, 2));
    }
}
