//! Reads what the journal needs to know of an encoded event, without decoding it.

use prost::encoding::decode_varint;

/// An encoded event, an element of `Batch.events`, at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// The sequence number in the journal.
    pub seq: u64,
    /// The id of the watch; 0 means the loop itself.
    pub watch: u64,
    /// When it happened, nanoseconds of CLOCK_MONOTONIC.
    pub monotonic: u64,
    /// The number of its kind: that of the field in `Event.kind`.
    pub kind: u8,
    /// The size of the whole element, bytes.
    pub size: usize,
}

/// The key of an element of `Batch.events`.
const ELEMENT: u8 = 3 << 3 | 2;

impl Scanned {
    /// Looks at the event with which `bytes` begin. `None` if they do not begin with a whole one.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (ELEMENT, mut rest) = bytes.split_first().map(|(key, rest)| (*key, rest))? else {
            return None;
        };
        let len = usize::try_from(varint(&mut rest)?).ok()?;
        let mut event = rest.get(..len)?;
        let mut scanned = Self {
            seq: 0,
            watch: 0,
            monotonic: 0,
            kind: 0,
            size: bytes.len() - rest.len() + len,
        };
        // Fields come in the order of their numbers, the kind last.
        while let Some((key, rest)) = event.split_first() {
            match *key {
                0x08 | 0x20 | 0x28 => {
                    event = rest;
                    let number = varint(&mut event)?;
                    match *key {
                        0x08 => scanned.seq = number,
                        0x20 => scanned.watch = number,
                        _ => {}
                    }
                }
                0x11 | 0x19 => {
                    let (number, after) = rest.split_first_chunk()?;
                    if *key == 0x11 {
                        scanned.monotonic = u64::from_le_bytes(*number);
                    }
                    event = after;
                }
                _ => {
                    let key = varint(&mut event)?;
                    scanned.kind = u8::try_from(key >> 3).ok()?;
                    return (key & 7 == 2).then_some(scanned);
                }
            }
        }
        None
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    decode_varint(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Encode as _, Event, Kind, Started, WholeEvent};
    use crate::kinds::event_kind;

    #[test]
    fn what_is_read_is_what_was_encoded() {
        let numbers = [0, 1, 127, 128, u64::MAX];
        for (seq, watch) in numbers
            .iter()
            .flat_map(|seq| numbers.map(|watch| (*seq, watch)))
        {
            let kind = Kind::Started(Started { pid: 3 });
            let number = event_kind(&kind) as u8;
            let event = Event {
                seq,
                monotonic_ns: watch,
                realtime_ns: seq,
                watch_id: watch,
                user_data: seq,
                kind: Some(kind),
            };
            let mut bytes = Vec::new();
            WholeEvent::new(&event).put(&mut bytes);
            let size = bytes.len();
            for cut in 0..size {
                assert_eq!(Scanned::read(&bytes[..cut]), None);
            }
            bytes.extend(b"more");
            let wanted = Scanned {
                seq,
                watch,
                monotonic: watch,
                kind: number,
                size,
            };
            assert_eq!(Scanned::read(&bytes), Some(wanted));
        }
    }
}
