//! Terminals: what is typed comes back once.

use std::time::Duration;

use bytes::Bytes;
use evloopd::proto::watch_spec::Spec;
use tokio::sync::watch;

use super::children::follow;
use crate::client::reason;
use crate::common::{in_terminal, shell};
use crate::field::Hand;

const READY: &[u8] = b"ready\n";
/// Bytes of a number, with a space.
const WORD: usize = 8;

/// Programs that give back what is typed, one after the other.
pub(super) async fn typed(hand: Hand) {
    const ALL: usize = 24_000;
    while !hand.is_over() {
        let mut inbox = hand.inbox();
        let exit = i32::try_from(inbox.key % 200).unwrap();
        // It neither echoes by itself nor edits.
        let line = format!("stty raw -echo; echo ready; head -c {ALL}; exit {exit}");
        let id = hand
            .add(&inbox, Spec::Process(in_terminal(shell(&line))))
            .await;
        // Nothing of it may mean a question to the terminal, whose answers would be typed, too.
        let numbers = (0..ALL / WORD).map(|word| format!("{word:07} "));
        let input = Bytes::from(numbers.collect::<String>());
        let (is_ready, mut ready) = watch::channel(false);
        let typing = async {
            ready.wait_for(|ready| *ready).await.unwrap();
            let mut at = 0;
            while at < ALL {
                let piece = input.slice(at..ALL.min(at + 400));
                let taken = match hand.write_at(id, piece, at as u64).await {
                    Ok(taken) => usize::try_from(taken).unwrap(),
                    // It had all of it already.
                    Err(status) if reason(&status) == "WATCH_CLOSED" => ALL,
                    Err(status) => panic!("{status:?}"),
                };
                if taken < at + 400 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                assert!(taken >= at, "{taken} of {at}");
                at = taken;
            }
        };
        let mut told = Vec::new();
        let reading = follow(&hand, &mut inbox, id, |data| {
            told.extend_from_slice(&data.data);
            is_ready.send_replace(told.len() >= READY.len());
        });
        let ((), end) = tokio::join!(typing, reading);
        assert_eq!(end.exit, exit, "on {}", hand.field.backend);
        let told = told.strip_prefix(READY).unwrap();
        let first = told
            .iter()
            .zip(&input)
            .position(|(told, typed)| told != typed);
        let around = first.map(|first| {
            let text = &told[first / WORD * WORD..];
            String::from_utf8_lossy(&text[..text.len().min(8 * WORD)]).into_owned()
        });
        let backend = hand.field.backend;
        assert_eq!((told.len(), first), (ALL, None), "{around:?} on {backend}");
        hand.count("terminals", 1);
        hand.count("bytes written", ALL as u64);
    }
}
