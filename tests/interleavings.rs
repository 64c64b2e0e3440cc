//! The places where threads hand something to each other, checked in every interleaving. The files
//! of the library are compiled here against loom's primitives.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, dead_code)]

use std::os::fd::AsFd;
use std::task::{Context, Poll, Wake};

use loom::sync::Arc;
use loom::thread;

/// Replaces `src/sync.rs`.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

    /// Has the interface of parking_lot's mutex: locking cannot fail.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

#[path = "../src/journal/committed.rs"]
mod committed;
#[path = "../src/journal/monitor.rs"]
mod monitor;
#[path = "../src/event_loop/waker.rs"]
mod waker;

use committed::Committed;
use monitor::Monitor;
use sync::{AtomicU8, Ordering};
use waker::{Waker, WakeupFd};

/// Whether the eventfd is readable, so that a thread that waits for it would wake.
fn is_readable(wakeup: &WakeupFd) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(
        wakeup.as_fd(),
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut fds, Some(&rustix::time::Timespec::default())).unwrap() > 0
}

/// A loop that looks at its mailbox and then goes to sleep is woken by every command put there, at
/// any moment and by any number of threads.
#[test]
fn a_loop_does_not_sleep_while_its_mailbox_has_something() {
    loom::model(|| {
        let (waker, wakeup) = Waker::new().unwrap();
        let waker = Arc::new(waker);
        let mailbox = Arc::new(AtomicU8::new(0));
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let (waker, mailbox) = (Arc::clone(&waker), Arc::clone(&mailbox));
                thread::spawn(move || {
                    mailbox.fetch_add(1, Ordering::AcqRel);
                    waker.kick();
                })
            })
            .collect();
        // One turn, in the order of `EventLoop::run`.
        let slept = waker.sleep();
        let seen = mailbox.load(Ordering::Acquire);
        let waits = slept && seen == 0;
        for sender in senders {
            sender.join().unwrap();
        }
        if waits {
            assert!(
                is_readable(&wakeup),
                "the loop would sleep although its mailbox has something"
            );
        }
        let owed = u64::from(waker.awake() && slept);
        if owed > 0 {
            assert_eq!(wakeup.drain(), 1, "one write for all kicks");
        }
        assert!(
            !is_readable(&wakeup),
            "the eventfd stays readable although every kick was drained"
        );
    });
}

#[derive(Debug)]
struct Woken(AtomicU8);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// A reader that found nothing and then waits is woken by an append that it did not see.
#[test]
fn a_reader_misses_no_append_between_its_look_and_its_wait() {
    loom::model(|| {
        let monitor = Arc::new(Monitor::new(0u64));
        let place = monitor
            .try_add_waiter(|_, place| Ok::<_, ()>(place))
            .unwrap();
        let writer = {
            let monitor = Arc::clone(&monitor);
            thread::spawn(move || {
                for _ in 0..2 {
                    let mut woken = Vec::new();
                    monitor.notify_all(&mut woken, |newest| *newest += 1);
                    woken.into_iter().for_each(std::task::Waker::wake);
                }
            })
        };
        let count = std::sync::Arc::new(Woken(AtomicU8::new(0)));
        let waker = std::task::Waker::from(std::sync::Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let look = |after: u64| move |newest: &mut u64| (*newest > after).then_some(*newest);
        let mut after = 0;
        let mut polls = 0;
        let mut asleep = false;
        while polls < 3 && after < 2 && !asleep {
            polls += 1;
            match monitor.poll(&cx, place, look(after)) {
                Poll::Ready(newest) => after = newest,
                Poll::Pending => asleep = count.0.load(Ordering::Acquire) == 0,
            }
        }
        writer.join().unwrap();
        if asleep {
            assert!(
                count.0.load(Ordering::Acquire) > 0,
                "the reader sleeps although an append happened"
            );
        }
        // Woken or not, the next look finds both appends. A reader that has left is not woken.
        assert_eq!(monitor.with(|newest| *newest), 2);
        monitor.remove_waiter(place, |_| ());
    });
}

/// An acknowledgement wakes the reader that waits for it, and wakes nobody if none waits.
#[test]
fn an_acknowledgement_wakes_only_a_reader_that_waits_for_it() {
    loom::model(|| {
        let monitor = Arc::new(Monitor::new(0u64));
        let place = monitor
            .try_add_waiter(|_, place| Ok::<_, ()>(place))
            .unwrap();
        let acker = {
            let monitor = Arc::clone(&monitor);
            thread::spawn(move || {
                let ((), waker) = monitor.notify_one(|acked| {
                    *acked = 1;
                    ((), Some(place))
                });
                if let Some(waker) = waker {
                    waker.wake();
                }
            })
        };
        let count = std::sync::Arc::new(Woken(AtomicU8::new(0)));
        let waker = std::task::Waker::from(std::sync::Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let polled = monitor.poll(&cx, place, |acked| (*acked > 0).then_some(()));
        acker.join().unwrap();
        let woken = count.0.load(Ordering::Acquire);
        assert_eq!(woken, u8::from(polled.is_pending()));
    });
}

/// A loop that finds too little memory left either sees the memory that another loop releases, or
/// the other loop sees that it waits.
#[test]
fn no_release_of_memory_is_missed() {
    loom::model(|| {
        let committed = Arc::new(Committed::new());
        committed.change(0, 1);
        let other = {
            let committed = Arc::clone(&committed);
            thread::spawn(move || {
                committed.change(1, 0);
                committed.take_awaited()
            })
        };
        let left = committed.look(1, |committed| 1 - committed);
        let told = other.join().unwrap();
        assert!(
            left == 1 || told,
            "the loop waits for memory, and nobody tells it of the release"
        );
    });
}

/// A loop that has just woken sees the change made by an acknowledgement, or does not sleep next.
#[test]
fn a_loop_that_wakes_misses_no_change() {
    loom::model(|| {
        let (waker, wakeup) = Waker::new().unwrap();
        let waker = Arc::new(waker);
        let changed = Arc::new(AtomicU8::new(0));
        let acker = {
            let (waker, changed) = (Arc::clone(&waker), Arc::clone(&changed));
            thread::spawn(move || {
                changed.store(1, Ordering::Release);
                waker.kick();
            })
        };
        // The end of a wait and the beginning of the next, in the order of `EventLoop::run`.
        let slept = waker.sleep();
        let mut owed = u64::from(waker.awake() && slept);
        owed = owed.saturating_sub(wakeup.drain());
        let seen = changed.swap(0, Ordering::AcqRel) != 0;
        let sleeps = waker.sleep();
        acker.join().unwrap();
        assert!(
            seen || !sleeps || owed > 0 || is_readable(&wakeup),
            "the loop sleeps although something has changed"
        );
    });
}
