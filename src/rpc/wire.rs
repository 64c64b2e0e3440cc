//! The messages of streams and of Poll. They are the same as in `proto/`, but their batch is a
//! header and slices of the journal's own bytes. Nothing is decoded or encoded again on the way
//! out; the bytes are copied once, into the connection's buffer.

use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, encode_key, encode_varint, encoded_len_varint};
use prost::{DecodeError, Message};
use tonic::Status;
use tonic::codec::{BufferSettings, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::event::{batch_header_len, encode_batch_header};
use crate::journal::Read;
use crate::proto;

/// A codec like [`ProstCodec`] that reserves the size of a message before it writes it, so that a
/// batch is copied once and not again each time the buffer grows.
#[derive(Debug, Clone)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = RoomyEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> RoomyEncoder<T> {
        RoomyEncoder(PhantomData)
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::default())
    }
}

/// The encoder of a [`Codec`].
#[derive(Debug, Clone)]
pub struct RoomyEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for RoomyEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(message.encoded_len());
        message.encode_raw(buf);
        Ok(())
    }
}

/// `SubscribeResponse` on the wire.
pub type SubscribeResponse = Streamed<proto::SubscribeHeader>;
/// `AttachResponse` on the wire.
pub type AttachResponse = Streamed<proto::SubscribeHeader>;
/// `RunResponse` on the wire.
pub type RunResponse = Streamed<proto::RunHeader>;
/// `AttachTerminalResponse` on the wire.
pub type AttachTerminalResponse = Streamed<proto::RunHeader>;

/// HTTP/2 libraries (h2 from 0.4.16 on) end the connection of a reader that leaves many frames of less
/// bytes than this unread. A message is a frame at least, after the five bytes of gRPC.
const SMALL: usize = 256 - 5;
/// The field `padding` of the messages of streams.
const PADDING: u32 = 15;

/// Returns the zeros that make a message of `len` bytes no small one.
fn padding(len: usize) -> &'static [u8] {
    static ZEROS: [u8; SMALL] = [0; SMALL];
    let missing = SMALL.saturating_sub(len);
    let head = prost::encoding::key_len(PADDING) + encoded_len_varint(missing as u64);
    match missing {
        0 => &[],
        _ => &ZEROS[..missing.saturating_sub(head).max(1)],
    }
}

fn padding_len(zeros: &[u8]) -> usize {
    match zeros.len() {
        0 => 0,
        len => prost::encoding::key_len(PADDING) + encoded_len_varint(len as u64) + len,
    }
}

/// A message of a stream: header, batch, goodbye, snapshot or result, in the fields 1 to 5.
#[derive(Debug, Clone)]
pub enum Streamed<H> {
    /// The first message, sent once.
    Header(H),
    /// The events and gaps of a range of the journal.
    Batch(Read),
    /// The last message, sent once.
    Goodbye(proto::Goodbye),
    /// A part of the snapshot after the header; only of Subscribe and Attach.
    Snapshot(Box<proto::Snapshot>),
    /// The answer to a request; only of Attach.
    Result(proto::AttachResult),
    /// The screen of a terminal; only of AttachTerminal.
    Screen(Box<proto::Screen>),
    /// The state of a view; only of AttachTerminal.
    View(proto::ViewState),
    /// Of AttachTerminal, after input that could not be typed.
    Refused(Box<proto::InputRefused>),
}

impl<H: Default> Default for Streamed<H> {
    fn default() -> Self {
        Self::Header(H::default())
    }
}

fn batch_len(read: &Read) -> usize {
    batch_header_len(read.after, read.through, &read.gaps, read.caught_up) + read.bytes
}

fn encode_batch(tag: u32, read: &Read, buf: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buf);
    encode_varint(batch_len(read) as u64, buf);
    encode_batch_header(read.after, read.through, &read.gaps, read.caught_up, buf);
    for slice in &read.slices {
        buf.put_slice(slice);
    }
}

fn encoded_batch_len(tag: u32, read: &Read) -> usize {
    let len = batch_len(read);
    prost::encoding::key_len(tag) + encoded_len_varint(len as u64) + len
}

impl<H: Message + Default> Streamed<H> {
    /// Returns the encoded size without the padding.
    fn content_len(&self) -> usize {
        match self {
            Self::Header(header) => prost::encoding::message::encoded_len(1, header),
            Self::Batch(read) => encoded_batch_len(2, read),
            Self::Goodbye(goodbye) => prost::encoding::message::encoded_len(3, goodbye),
            Self::Snapshot(snapshot) => prost::encoding::message::encoded_len(4, &**snapshot),
            Self::Result(result) => prost::encoding::message::encoded_len(5, result),
            Self::Screen(screen) => prost::encoding::message::encoded_len(6, &**screen),
            Self::View(state) => prost::encoding::message::encoded_len(7, state),
            Self::Refused(refused) => prost::encoding::message::encoded_len(8, &**refused),
        }
    }
}

impl<H: Message + Default> Message for Streamed<H> {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        match self {
            Self::Header(header) => prost::encoding::message::encode(1, header, buf),
            Self::Batch(read) => encode_batch(2, read, buf),
            Self::Goodbye(goodbye) => prost::encoding::message::encode(3, goodbye, buf),
            Self::Snapshot(snapshot) => prost::encoding::message::encode(4, &**snapshot, buf),
            Self::Result(result) => prost::encoding::message::encode(5, result, buf),
            Self::Screen(screen) => prost::encoding::message::encode(6, &**screen, buf),
            Self::View(state) => prost::encoding::message::encode(7, state, buf),
            Self::Refused(refused) => prost::encoding::message::encode(8, &**refused, buf),
        }
        let zeros = padding(self.content_len());
        if !zeros.is_empty() {
            encode_key(PADDING, WireType::LengthDelimited, buf);
            encode_varint(zeros.len() as u64, buf);
            buf.put_slice(zeros);
        }
    }

    fn encoded_len(&self) -> usize {
        let len = self.content_len();
        len + padding_len(padding(len))
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        // The server uses this type only to send.
        prost::encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// `PollResponse` on the wire.
#[derive(Debug, Clone, Default)]
pub struct PollResponse {
    /// The events after the cursor.
    pub batch: Read,
    /// The epoch of the batch's sequence numbers.
    pub epoch: String,
    /// Whether more events are waiting than fit.
    pub more: bool,
    /// With `fence`: a time sampled before all armed watches were looked at, CLOCK_MONOTONIC
    /// nanoseconds. 0 without.
    pub looked_at_ns: u64,
}

impl Message for PollResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        encode_batch(1, &self.batch, buf);
        prost::encoding::string::encode(2, &self.epoch, buf);
        if self.more {
            prost::encoding::bool::encode(3, &self.more, buf);
        }
        if self.looked_at_ns != 0 {
            prost::encoding::fixed64::encode(4, &self.looked_at_ns, buf);
        }
    }

    fn encoded_len(&self) -> usize {
        let more = if self.more { 2 } else { 0 };
        let looked_at = match self.looked_at_ns {
            0 => 0,
            at => prost::encoding::fixed64::encoded_len(4, &at),
        };
        encoded_batch_len(1, &self.batch)
            + prost::encoding::string::encoded_len(2, &self.epoch)
            + more
            + looked_at
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        prost::encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Encode as _, WholeEvent};

    #[test]
    fn what_is_sent_decodes_as_the_message_of_the_contract() {
        let event = proto::Event {
            seq: 3,
            ..proto::Event::default()
        };
        let mut encoded = bytes::BytesMut::new();
        WholeEvent::new(&event).put(&mut encoded);
        let bytes = encoded.len();
        let read = Read {
            after: 2,
            through: 3,
            slices: [encoded.freeze()].into_iter().collect(),
            events: 1,
            bytes,
            gaps: Vec::new(),
            caught_up: true,
            ended: false,
        };
        let batch = proto::Batch {
            after: 2,
            through: 3,
            events: vec![event],
            gaps: Vec::new(),
            caught_up: true,
        };
        let sent = SubscribeResponse::Batch(read.clone()).encode_to_vec();
        let got = proto::SubscribeResponse::decode(sent.as_slice()).unwrap();
        let message = Some(proto::subscribe_response::Message::Batch(batch.clone()));
        assert_eq!(got.message, message);
        let goodbye = proto::Goodbye::default();
        let sent = RunResponse::Goodbye(goodbye.clone()).encode_to_vec();
        let got = proto::RunResponse::decode(sent.as_slice()).unwrap();
        let message = Some(proto::run_response::Message::Goodbye(goodbye));
        assert_eq!(got.message, message);
        let sent = PollResponse {
            batch: read,
            epoch: "e".to_owned(),
            more: true,
            looked_at_ns: 7,
        };
        let got = proto::PollResponse::decode(sent.encode_to_vec().as_slice()).unwrap();
        let got = (got.batch, got.more, got.looked_at_ns);
        assert_eq!(got, (Some(batch), true, 7));
    }
}
