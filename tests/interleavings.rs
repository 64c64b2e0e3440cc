//! The hand-offs between threads in every interleaving: the very files of the library, compiled
//! against loom's primitives.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, dead_code)]

use std::os::fd::AsFd;
use std::task::{Context, Poll, Wake};

use loom::sync::Arc;
use loom::thread;

/// In place of `src/sync.rs`.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

    /// As parking_lot's: locking does not fail.
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

#[path = "../src/journal/board.rs"]
mod board;
#[path = "../src/journal/committed.rs"]
mod committed;
#[path = "../src/event_loop/waker.rs"]
mod waker;

use board::Board;
use committed::Committed;
use sync::{AtomicU8, Ordering};
use waker::{Bell, Waker};

/// Whether the eventfd is readable: whoever waits for it would wake.
fn is_rung(bell: &Bell) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(
        bell.as_fd(),
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut fds, Some(&rustix::time::Timespec::default())).unwrap() > 0
}

/// A loop that goes to sleep after it has looked at its mailbox is woken by whatever is put
/// there, at whatever moment, by however many.
#[test]
fn no_kick_is_slept_through() {
    loom::model(|| {
        let (waker, bell) = Waker::new().unwrap();
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
        // One turn, as `EventLoop::run` makes it.
        let slept = waker.sleep();
        let seen = mailbox.load(Ordering::Acquire);
        let waits = slept && seen == 0;
        for sender in senders {
            sender.join().unwrap();
        }
        if waits {
            assert!(is_rung(&bell), "it would sleep, and something is there");
        }
        let owed = u64::from(waker.awake() && slept);
        if owed > 0 {
            assert_eq!(bell.drain(), 1, "one write for all kicks");
        }
        assert!(!is_rung(&bell), "nothing is left to wake it for nothing");
    });
}

#[derive(Debug)]
struct Woken(AtomicU8);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// A reader that found nothing is woken by the append that it did not see.
#[test]
fn no_append_falls_between_a_readers_look_and_its_waker() {
    loom::model(|| {
        let board = Arc::new(Board::new(0u64));
        let place = board.join(|_, place| Ok::<_, ()>(place)).unwrap();
        let writer = {
            let board = Arc::clone(&board);
            thread::spawn(move || {
                for _ in 0..2 {
                    let mut woken = Vec::new();
                    board.post(&mut woken, |newest| *newest += 1);
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
            match board.poll(&cx, place, look(after)) {
                Poll::Ready(newest) => after = newest,
                Poll::Pending => asleep = count.0.load(Ordering::Acquire) == 0,
            }
        }
        writer.join().unwrap();
        if asleep {
            assert!(
                count.0.load(Ordering::Acquire) > 0,
                "it sleeps through an append"
            );
        }
        // Woken or not, the next look finds what is there, and one who left is not woken.
        assert_eq!(board.with(|newest| *newest), 2);
        board.leave(place, |_| ());
    });
}

/// An acknowledgement wakes the one who waits for it, and only while it waits.
#[test]
fn an_acknowledgement_finds_who_waits_for_it() {
    loom::model(|| {
        let board = Arc::new(Board::new(0u64));
        let place = board.join(|_, place| Ok::<_, ()>(place)).unwrap();
        let acker = {
            let board = Arc::clone(&board);
            thread::spawn(move || {
                let ((), waker) = board.tell(|acked| {
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
        let polled = board.poll(&cx, place, |acked| (*acked > 0).then_some(()));
        acker.join().unwrap();
        let woken = count.0.load(Ordering::Acquire);
        assert_eq!(woken, u8::from(polled.is_pending()));
    });
}

/// A loop that finds too little memory left either sees what another lets go of, or is found
/// waiting by it.
#[test]
fn no_memory_is_let_go_of_unseen() {
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
        assert!(left == 1 || told, "it waits, and nobody tells it");
    });
}

/// A loop that has just woken sees what an acknowledgement changed, or does not sleep next.
#[test]
fn no_change_is_lost_to_a_loop_that_wakes() {
    loom::model(|| {
        let (waker, bell) = Waker::new().unwrap();
        let waker = Arc::new(waker);
        let changed = Arc::new(AtomicU8::new(0));
        let acker = {
            let (waker, changed) = (Arc::clone(&waker), Arc::clone(&changed));
            thread::spawn(move || {
                changed.store(1, Ordering::Release);
                waker.kick();
            })
        };
        // The end of a wait, and the beginning of the next, as `EventLoop::run` has them.
        let slept = waker.sleep();
        let mut owed = u64::from(waker.awake() && slept);
        owed = owed.saturating_sub(bell.drain());
        let seen = changed.swap(0, Ordering::AcqRel) != 0;
        let sleeps = waker.sleep();
        acker.join().unwrap();
        assert!(
            seen || !sleeps || owed > 0 || is_rung(&bell),
            "it sleeps, and something has changed"
        );
    });
}
