//! An encoder for `Data` events, the most frequent ones, that takes the payload straight from the
//! bytes that were read.

use bytes::{BufMut as _, BytesMut};
use prost::encoding::encoded_len_varint;

use super::Stream;
use crate::clock::Now;

/// A `Data` event without its payload.
#[derive(Debug, Clone, Copy)]
pub struct DataHead {
    /// The sequence number in the journal.
    pub seq: u64,
    /// When it happened.
    pub now: Now,
    /// The id of the watch.
    pub watch: u64,
    /// The watch's `user_data`, a number that the client chose.
    pub user_data: u64,
    /// The stream of the watch that the payload belongs to.
    pub stream: Stream,
    /// How many bytes of the stream came before.
    pub offset: u64,
}

/// Enough for seven numbers and two lengths of at most ten bytes, two fixed numbers of eight, and
/// their keys.
const HEAD_MAX: usize = 128;
/// Few bytes are copied along.
const FEW: usize = 16;

/// The encoding of everything before the payload, on the stack.
struct Head {
    bytes: [u8; HEAD_MAX + FEW],
    len: usize,
}

impl Head {
    /// The bytes themselves, if they are few.
    #[inline]
    fn few(&mut self, data: &[u8]) -> bool {
        let few = data.len() <= FEW;
        if few {
            data.iter().for_each(|byte| self.byte(*byte));
        }
        few
    }

    fn byte(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    #[allow(clippy::cast_possible_truncation)]
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    /// Appends a field, unless it has its default value.
    fn number(&mut self, key: u8, value: u64) {
        if value != 0 {
            self.byte(key);
            self.varint(value);
        }
    }

    fn fixed(&mut self, key: u8, value: u64) {
        if value != 0 {
            self.byte(key);
            let end = self.len + 8;
            if let Some(place) = self.bytes.get_mut(self.len..end) {
                place.copy_from_slice(&value.to_le_bytes());
                self.len = end;
            }
        }
    }
}

const fn number_len(value: u64) -> usize {
    if value == 0 {
        0
    } else {
        1 + encoded_len_varint(value)
    }
}

const fn fixed_len(value: u64) -> usize {
    if value == 0 { 0 } else { 9 }
}

/// Appends the same bytes as [`encode`](super::encode) does, and returns their number.
pub fn encode_data(head: &DataHead, data: &[u8], buf: &mut BytesMut) -> usize {
    let before = buf.len();
    let stream = u64::from(i32::from(head.stream).unsigned_abs());
    let bytes_len = match data.len() {
        0 => 0,
        len => 1 + encoded_len_varint(len as u64) + len,
    };
    let data_len = number_len(stream) + number_len(head.offset) + bytes_len;
    let event_len = number_len(head.seq)
        + fixed_len(head.now.monotonic)
        + fixed_len(head.now.realtime)
        + number_len(head.watch)
        + number_len(head.user_data)
        + 2
        + encoded_len_varint(data_len as u64)
        + data_len;

    let mut out = Head {
        bytes: [0; HEAD_MAX + FEW],
        len: 0,
    };
    // A key is the number of the field, and in the last three bits how the field is encoded.
    out.byte(3 << 3 | 2);
    out.varint(event_len as u64);
    out.number(1 << 3, head.seq);
    out.fixed(2 << 3 | 1, head.now.monotonic);
    out.fixed(3 << 3 | 1, head.now.realtime);
    out.number(4 << 3, head.watch);
    out.number(5 << 3, head.user_data);
    out.varint(16 << 3 | 2);
    out.varint(data_len as u64);
    out.number(1 << 3, stream);
    out.number(2 << 3, head.offset);
    if !data.is_empty() {
        out.byte(3 << 3 | 2);
        out.varint(data.len() as u64);
    }
    let few = out.few(data);
    buf.put_slice(&out.bytes[..out.len]);
    if !few {
        buf.put_slice(data);
    }
    buf.len() - before
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Data, Event, Kind, encode};

    fn any_number() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0..300_u64, any::<u64>()]
    }

    proptest! {
        #[test]
        fn it_is_encoded_as_any_other_event(
            [seq, monotonic, realtime, watch, user_data, offset] in
                [any_number(), any_number(), any_number(), any_number(), any_number(), any_number()],
            stream in 0..4_i32,
            data in prop::collection::vec(any::<u8>(), 0..150),
        ) {
            let now = Now { monotonic, realtime };
            let stream = Stream::try_from(stream).unwrap_or(Stream::Input);
            let head = DataHead { seq, now, watch, user_data, stream, offset };
            let (mut by_hand, mut other) = (BytesMut::new(), BytesMut::new());
            let len = encode_data(&head, &data, &mut by_hand);
            let event = Event {
                seq,
                monotonic_ns: monotonic,
                realtime_ns: realtime,
                watch_id: watch,
                user_data,
                kind: Some(Kind::Data(Data { stream: stream.into(), offset, data: data.into() })),
            };
            prop_assert_eq!(encode(&event, &mut other), len);
            prop_assert_eq!(by_hand, other);
        }
    }
}
