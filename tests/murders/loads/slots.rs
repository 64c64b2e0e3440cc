//! Descriptors that are handed over.

use std::io::{PipeReader, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use bytes::Bytes;
use evloopd::proto::event::Kind;
use evloopd::proto::*;

use super::children::Numbers;
use crate::client::{is_unknown, reason};
use crate::common::{Handover, read_pipe};
use crate::field::Hand;

/// Pipes, one after the other: each is written to at once, and read once it is watched.
pub(super) async fn pipes(hand: Hand) {
    const ALL: u64 = 20_000;
    while !hand.is_over() {
        let (from, mut to) = std::io::pipe().unwrap();
        let writer = tokio::task::spawn_blocking(move || {
            for number in 0..ALL {
                writeln!(to, "{number}").unwrap();
                if number % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let mut inbox = hand.inbox();
        let mut attempt = 0_u32;
        let id = loop {
            let slot = give(&hand, &from).await;
            let request = AddWatchRequest {
                request_id: format!("{} {attempt}", inbox.key),
                ..hand.request(inbox.key, read_pipe(slot))
            };
            attempt += 1;
            match hand.ask_to_add(&request).await {
                Ok(answer) => break answer.watch.unwrap().watch_id,
                Err(status) if is_unknown(&status) => {}
                // The daemon has died in between.
                Err(status) => {
                    assert_eq!(reason(&status), "SLOT_NOT_FOUND", "{status:?}");
                    assert!(hand.deaths() > 0);
                    hand.count("slots lost", 1);
                }
            }
        };
        drop(from);
        let mut numbers = Numbers::default();
        loop {
            match inbox.next("the end of a pipe").await.kind.unwrap() {
                Kind::Added(_) => {}
                Kind::Data(data) => numbers.take(data.offset, &data.data),
                Kind::Eof(eof) => assert_eq!(eof.offset, numbers.bytes),
                Kind::Closed(closed) => {
                    assert_eq!(closed.reason(), CloseReason::Completed, "{closed:?}");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(numbers.is_at(ALL), "{numbers:?}");
        writer.await.unwrap();
        hand.remove(&mut inbox, id).await;
        hand.count("descriptors handed over", 1);
        hand.count("bytes read", numbers.bytes);
    }
}

/// Hands a descriptor over. If the daemon dies before it answers, this begins anew.
async fn give(hand: &Hand, from: &PipeReader) -> Bytes {
    let path = hand.field.site.handover_socket.clone();
    let from = from.try_clone().unwrap();
    let slot = tokio::task::spawn_blocking(move || {
        loop {
            let handover = Handover::connect(&path);
            if let Some(slot) = handover.try_give(from.as_fd()) {
                return slot;
            }
        }
    });
    slot.await.unwrap()
}
