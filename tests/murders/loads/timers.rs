//! Timers: each tick is told, or counted as missed.

use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::*;

use crate::common::{after, millis, timer};
use crate::field::Hand;

/// An interval for as long as the load.
pub(super) async fn ticks(hand: Hand) {
    let mut inbox = hand.inbox();
    let every = timer_spec::Schedule::Every(millis(10));
    let id = hand.add(&inbox, timer(every)).await;
    let (mut tick, mut scheduled) = (0, 0);
    while !hand.is_over() {
        match inbox.next("a tick").await.kind.unwrap() {
            Kind::Added(_) => {}
            Kind::TimerFired(fired) => {
                assert_eq!(fired.tick, tick + fired.missed + 1, "{fired:?}");
                if tick > 0 {
                    let passed = fired.scheduled_ns - scheduled;
                    assert_eq!(passed, (fired.tick - tick) * 10_000_000, "{fired:?}");
                }
                (tick, scheduled) = (fired.tick, fired.scheduled_ns);
                hand.count("ticks", 1);
                hand.count("ticks missed", fired.missed);
            }
            other => panic!("{other:?}"),
        }
    }
    hand.remove(&mut inbox, id).await;
}

/// Timers that fire once, one after the other.
pub(super) async fn alarms(hand: Hand) {
    while !hand.is_over() {
        let mut inbox = hand.inbox();
        let delay = Duration::from_millis(inbox.key * 7 % 200);
        let id = hand.add(&inbox, after(delay)).await;
        let mut fired = 0;
        loop {
            match inbox.next("an alarm").await.kind.unwrap() {
                Kind::Added(_) => {}
                Kind::TimerFired(_) => fired += 1,
                Kind::Closed(closed) => {
                    assert_eq!(closed.reason(), CloseReason::Completed, "{closed:?}");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(fired, 1);
        hand.remove(&mut inbox, id).await;
        hand.count("alarms", 1);
    }
}
