//! Real signals to this process. The test harness is not used: it starts threads before any test
//! runs, and those threads do not block the signals.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]
#![allow(unsafe_code)]

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use evloopd::error::Error;
use evloopd::signals::{Received, SignalHub, SignalSink, block_all};
use nix::libc;

/// A limit far longer than a signal takes; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(10);

fn queue(number: i32, value: i32) {
    let value = libc::sigval {
        sival_ptr: std::ptr::without_provenance_mut(usize::try_from(value).unwrap()),
    };
    // SAFETY: sigqueue(3) takes plain values; the signals used here are blocked.
    let result = unsafe { libc::sigqueue(libc::getpid(), number, value) };
    assert_eq!(result, 0);
}

fn sink() -> (Arc<dyn SignalSink>, Receiver<Received>) {
    let (sender, receiver) = channel();
    let sink = move |received| {
        let _ = sender.send(received);
    };
    (Arc::new(sink), receiver)
}

fn main() {
    let (first, second) = (libc::SIGRTMIN() + 1, libc::SIGRTMIN() + 2);
    let allowed = [first, second, libc::SIGUSR1];
    block_all(&allowed, None).unwrap();
    let hub = SignalHub::start(&allowed).unwrap();

    only_allowed_signals_are_for_clients(&hub, first);
    every_subscriber_gets_each_queued_signal_in_order(&hub, first, second);
    signals_without_a_subscriber_are_dropped(&hub, first, second);
    a_reserved_signal_waits_for_its_subscriber(&hub);
    children_are_reported(&hub);
    a_number_that_is_no_signal_is_refused();
    the_thread_ends_with_the_hub(hub);
}

fn only_allowed_signals_are_for_clients(hub: &SignalHub, allowed: i32) {
    assert!(hub.allowed(allowed));
    for number in [libc::SIGUSR2, libc::SIGTERM, libc::SIGCHLD] {
        assert!(!hub.allowed(number));
    }
    let generous = SignalHub::start(&[libc::SIGTERM]).unwrap();
    assert!(!generous.allowed(libc::SIGTERM));
}

fn every_subscriber_gets_each_queued_signal_in_order(hub: &SignalHub, first: i32, second: i32) {
    let (one, ones) = sink();
    let (both, boths) = sink();
    let _one = hub.subscribe(&[first], one);
    let _both = hub.subscribe(&[first, second], both);
    queue(first, 1);
    queue(second, 2);
    queue(first, 3);
    let expected = |number, value| Received {
        number,
        sender_pid: i32::try_from(std::process::id()).unwrap(),
        sender_uid: rustix::process::getuid().as_raw(),
        value,
    };
    for value in [1, 3] {
        assert_eq!(ones.recv_timeout(PATIENCE), Ok(expected(first, value)));
    }
    let mut seen: Vec<_> = (0..3)
        .map(|_| boths.recv_timeout(PATIENCE).unwrap())
        .collect();
    seen.sort_by_key(|received| received.value);
    assert_eq!(
        seen,
        [expected(first, 1), expected(second, 2), expected(first, 3)]
    );
    assert!(ones.try_recv().is_err());
}

fn signals_without_a_subscriber_are_dropped(hub: &SignalHub, first: i32, second: i32) {
    let (gone, gones) = sink();
    drop(hub.subscribe(&[first], gone));
    let (mark, marks) = sink();
    let marked = hub.subscribe(&[second], mark);
    // The kernel delivers the lower number first: once `second` is here, `first` was delivered too.
    queue(first, 4);
    queue(second, 5);
    assert_eq!(marks.recv_timeout(PATIENCE).map(|r| r.value), Ok(5));
    assert_eq!(
        gones.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected)
    );
    drop(marked);
}

fn children_are_reported(hub: &SignalHub) {
    let (sink, signals) = sink();
    let _subscription = hub.subscribe(&[libc::SIGCHLD], sink);
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let received = signals.recv_timeout(PATIENCE).unwrap();
    assert_eq!(u32::try_from(received.sender_pid), Ok(child.id()));
    assert!(child.wait().unwrap().success());
}

fn a_number_that_is_no_signal_is_refused() {
    for number in [0, -1, 65] {
        let refused = SignalHub::start(&[number]);
        assert!(
            matches!(refused, Err(Error::InvalidField { .. })),
            "{number}"
        );
    }
}

fn the_thread_ends_with_the_hub(hub: Arc<SignalHub>) {
    let (sink, signals) = sink();
    let subscription = hub.subscribe(&[libc::SIGUSR1], Arc::clone(&sink));
    let weak: Weak<_> = Arc::downgrade(&hub);
    drop(hub);
    assert!(weak.upgrade().is_none());
    drop(subscription);
    assert_eq!(Arc::strong_count(&sink), 1);
    assert!(signals.try_recv().is_err());
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert_eq!(threads, 1);
}

fn a_reserved_signal_waits_for_its_subscriber(hub: &SignalHub) {
    nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGTERM).unwrap();
    // The thread of the hub has nothing more to do once it has told this one.
    let (sink_of_other, other) = sink();
    let subscription = hub.subscribe(&[libc::SIGUSR1], sink_of_other);
    nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGUSR1).unwrap();
    other.recv_timeout(PATIENCE).unwrap();
    drop(subscription);
    let (sink_of_term, term) = sink();
    let _term = hub.subscribe(&[libc::SIGTERM], sink_of_term);
    assert_eq!(term.recv_timeout(PATIENCE).unwrap().number, libc::SIGTERM);
}
