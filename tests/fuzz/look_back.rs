//! The search in the journal for bytes that were received before and belong to a handshake.

use std::sync::Arc;
use std::time::Duration;

use evloopd::clock::Now;
use evloopd::config::{History, WhenFull};
use evloopd::event::{Kind, Posted, Stream};
use evloopd::journal::{About, Journal, Limits, Memory, Outbox};
use proptest::prelude::*;

use crate::fuzz;

const WATCHES: usize = 3;
const ROOMY: u64 = 1 << 20;

#[derive(Debug, Clone)]
enum Step {
    /// Bytes of a watch arrive.
    Data(usize, usize),
    /// Another event of that watch, with a payload of so many bytes.
    Other(usize, usize),
    /// The turn ends.
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![1..20usize, 1..3_000usize];
    prop_oneof![
        6 => (0..WATCHES, size()).prop_map(|(watch, size)| Step::Data(watch, size)),
        2 => (0..WATCHES, 0..300usize).prop_map(|(watch, size)| Step::Other(watch, size)),
        2 => Just(Step::Commit),
    ]
}

#[test]
fn what_is_found_is_what_was_received_and_all_of_it_while_there_is_room() {
    let steps = prop::collection::vec(step(), 1..120);
    let looks = prop::collection::vec((0..WATCHES, any::<prop::sample::Index>()), 1..8);
    let bytes = prop_oneof![Just(4_096), Just(20_000), Just(ROOMY)];
    let keep = prop_oneof![Just(0), Just(1_000)];
    fuzz(
        1_000,
        &(steps, looks, bytes, keep),
        |(steps, looks, bytes, watch_keep)| {
            let limits = Limits {
                events: 1_000,
                bytes,
                watch_bytes: bytes / 4,
                history: History::Kept,
                watch_keep,
                attached_bytes: bytes / 8,
                attached_patience: Duration::from_secs(60),
                when_full: WhenFull::DropOldest,
                consumers: 1,
                consumer_ttl: Duration::from_secs(60),
            };
            let journal = Journal::new(limits, &Memory::new(1 << 30)).unwrap();
            let mut outbox = Outbox::new(Arc::clone(&journal));
            let mut streams = vec![Vec::new(); WATCHES];
            for step in steps {
                let about = |watch: usize| About {
                    watch: watch as u64,
                    ..About::default()
                };
                match step {
                    Step::Data(watch, size) => {
                        let stream: &mut Vec<u8> = &mut streams[watch];
                        let offset = stream.len();
                        let more = (offset..offset + size)
                            .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]);
                        stream.extend(more);
                        let at = (Stream::Input, offset as u64);
                        outbox.push_data(Now::default(), about(watch), at, &stream[offset..]);
                    }
                    Step::Other(watch, size) => {
                        let payload = vec![0x1a; size].into();
                        let posted = Kind::Posted(Posted {
                            payload,
                            ..Posted::default()
                        });
                        outbox.push(Now::default(), about(watch), posted);
                    }
                    Step::Commit => outbox.commit(),
                }
                for (watch, index) in &looks {
                    let stream = &streams[*watch];
                    let offset = index.index(stream.len() + 1);
                    let found =
                        outbox.data_since(*watch as u64, offset as u64, stream.len() as u64);
                    match found {
                        Some(found) => prop_assert_eq!(&found, &stream[offset..]),
                        None => prop_assert!(bytes < ROOMY, "it was not found"),
                    }
                }
            }
            Ok(())
        },
    );
}
