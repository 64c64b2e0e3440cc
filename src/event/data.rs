//! Encoders for `Data` and `Datagram` events, the most frequent ones, that take the payload straight
//! from the bytes that were read.

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::{Encode, Stream};
use crate::clock::Now;
use crate::proto::EventKind;

/// An event without what is of its kind.
#[derive(Debug, Clone, Copy)]
pub struct EventHead {
    /// The sequence number in the journal.
    pub seq: u64,
    /// When it happened.
    pub now: Now,
    /// The id of the watch.
    pub watch: u64,
    /// The watch's `user_data`, a number that the client chose.
    pub user_data: u64,
}

/// A `Datagram` without its payload.
#[derive(Debug, Clone, Copy, Default)]
pub struct DatagramHead<'a> {
    /// The peer, encoded as the field of the message; empty if there is none.
    pub peer: &'a [u8],
    /// The whole length if the payload is cut, else 0.
    pub full_length: u64,
    /// The local address.
    pub local_ip: &'a str,
    /// The index of the interface.
    pub interface_index: u32,
}

/// Enough for seven numbers and two lengths of at most ten bytes, two fixed numbers of eight, and
/// their keys.
const HEAD_MAX: usize = 128;
/// Few bytes are copied along.
const FEW: usize = 16;

/// The encoding of everything before the payload, on the stack.
#[derive(Debug)]
struct Head {
    bytes: [u8; HEAD_MAX + FEW],
    len: usize,
}

impl Head {
    /// Begins an event of this kind, the message of which takes `len` bytes, as an element of
    /// `Batch.events`.
    #[inline]
    fn begin(of: &EventHead, kind: u64, len: usize) -> Self {
        let mut out = Self {
            bytes: [0; HEAD_MAX + FEW],
            len: 0,
        };
        let key = kind << 3 | 2;
        let event_len = number_len(of.seq)
            + fixed_len(of.now.monotonic)
            + fixed_len(of.now.realtime)
            + number_len(of.watch)
            + number_len(of.user_data)
            + encoded_len_varint(key)
            + encoded_len_varint(len as u64)
            + len;
        // A key is the number of the field, and in the last three bits how the field is encoded.
        out.byte(3 << 3 | 2);
        out.varint(event_len as u64);
        out.number(1 << 3, of.seq);
        out.fixed(2 << 3 | 1, of.now.monotonic);
        out.fixed(3 << 3 | 1, of.now.realtime);
        out.number(4 << 3, of.watch);
        out.number(5 << 3, of.user_data);
        out.varint(key);
        out.varint(len as u64);
        out
    }

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

const fn bytes_len(len: usize) -> usize {
    if len == 0 {
        0
    } else {
        1 + encoded_len_varint(len as u64) + len
    }
}

/// A `Data` of a stream, encoded as any other event.
#[derive(Debug)]
pub struct DataEvent<'a> {
    head: Head,
    /// What follows the head.
    data: &'a [u8],
}

impl<'a> DataEvent<'a> {
    /// Encodes all but the payload. The stream has `offset` bytes before it.
    #[inline]
    #[must_use]
    pub fn new(of: &EventHead, (stream, offset): (Stream, u64), data: &'a [u8]) -> Self {
        let stream = u64::from(i32::from(stream).unsigned_abs());
        let len = number_len(stream) + number_len(offset) + bytes_len(data.len());
        let mut head = Head::begin(of, EventKind::Data as u64, len);
        head.number(1 << 3, stream);
        head.number(2 << 3, offset);
        if !data.is_empty() {
            head.byte(3 << 3 | 2);
            head.varint(data.len() as u64);
        }
        let data = if head.few(data) { &[] } else { data };
        Self { head, data }
    }
}

impl Encode for DataEvent<'_> {
    #[inline]
    fn size(&self) -> usize {
        self.head.len + self.data.len()
    }

    #[inline]
    fn put(self, buf: &mut impl BufMut) {
        buf.put_slice(&self.head.bytes[..self.head.len]);
        buf.put_slice(self.data);
    }
}

/// A `Datagram`, encoded as any other event.
#[derive(Debug)]
pub struct DatagramEvent<'a> {
    head: Head,
    of: &'a DatagramHead<'a>,
    len: usize,
    data: &'a [u8],
}

impl<'a> DatagramEvent<'a> {
    /// Encodes the part that is the same for all events.
    #[must_use]
    pub fn new(head: &EventHead, of: &'a DatagramHead<'a>, data: &'a [u8]) -> Self {
        let len = bytes_len(of.peer.len())
            + bytes_len(data.len())
            + number_len(of.full_length)
            + bytes_len(of.local_ip.len())
            + number_len(u64::from(of.interface_index));
        let head = Head::begin(head, EventKind::Datagram as u64, len);
        Self {
            head,
            of,
            len,
            data,
        }
    }
}

impl Encode for DatagramEvent<'_> {
    fn size(&self) -> usize {
        self.head.len + self.len
    }

    fn put(self, buf: &mut impl BufMut) {
        let of = self.of;
        buf.put_slice(&self.head.bytes[..self.head.len]);
        for (field, bytes) in [(1, of.peer), (2, self.data)] {
            put_bytes(field, bytes, buf);
        }
        put_number(3, of.full_length, buf);
        put_bytes(4, of.local_ip.as_bytes(), buf);
        put_number(5, u64::from(of.interface_index), buf);
    }
}

fn put_bytes(field: u32, bytes: &[u8], buf: &mut impl BufMut) {
    if !bytes.is_empty() {
        encode_key(field, WireType::LengthDelimited, buf);
        encode_varint(bytes.len() as u64, buf);
        buf.put_slice(bytes);
    }
}

fn put_number(field: u32, number: u64, buf: &mut impl BufMut) {
    if number != 0 {
        encode_key(field, WireType::Varint, buf);
        encode_varint(number, buf);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use prost::Message as _;

    use crate::event::{Data, Datagram, Event, Kind, WholeEvent};
    use crate::proto::{InetAddress, SocketAddress, socket_address::Address};

    fn encoded(event: impl Encode) -> Vec<u8> {
        let size = event.size();
        let mut bytes = Vec::new();
        event.put(&mut bytes);
        assert_eq!(bytes.len(), size);
        bytes
    }

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
            let now = Now { monotonic, realtime, ..Now::default() };
            let stream = Stream::try_from(stream).unwrap_or(Stream::Input);
            let head = EventHead { seq, now, watch, user_data };
            let by_hand = encoded(DataEvent::new(&head, (stream, offset), &data));
            let event = Event {
                seq,
                monotonic_ns: monotonic,
                realtime_ns: realtime,
                watch_id: watch,
                user_data,
                kind: Some(Kind::Data(Data { stream: stream.into(), offset, data: data.into() })),
            };
            prop_assert_eq!(by_hand, encoded(WholeEvent::new(&event)));
        }

        #[test]
        fn a_datagram_is_encoded_as_any_other_event(
            [seq, monotonic, realtime, watch, user_data, full_length] in
                [any_number(), any_number(), any_number(), any_number(), any_number(), any_number()],
            interface_index in prop_oneof![Just(0), any::<u32>()],
            local_ip in prop_oneof![Just(""), Just("127.0.0.1"), Just("2001:db8::1")],
            port in prop::option::of(0..70_000_u32),
            data in prop::collection::vec(any::<u8>(), 0..150),
        ) {
            let now = Now { monotonic, realtime, ..Now::default() };
            let head = EventHead { seq, now, watch, user_data };
            let peer = port.map(|port| SocketAddress {
                address: Some(Address::Inet(InetAddress { ip: local_ip.to_owned(), port })),
            });
            let peer_bytes = peer.as_ref().map_or_else(Vec::new, SocketAddress::encode_to_vec);
            let of = DatagramHead { peer: &peer_bytes, full_length, local_ip, interface_index };
            let by_hand = encoded(DatagramEvent::new(&head, &of, &data));
            let event = Event {
                seq,
                monotonic_ns: monotonic,
                realtime_ns: realtime,
                watch_id: watch,
                user_data,
                kind: Some(Kind::Datagram(Datagram {
                    peer,
                    data: data.into(),
                    full_length,
                    local_ip: local_ip.to_owned(),
                    interface_index,
                })),
            };
            prop_assert_eq!(by_hand, encoded(WholeEvent::new(&event)));
        }
    }
}
