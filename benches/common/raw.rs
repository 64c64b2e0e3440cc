//! Messages as bytes, because delivery is measured and not decoding.

use bytes::{Buf, BufMut, Bytes};
use evloopd::proto::{SubscribeRequest, SubscribeResponse, subscribe_response::Message};
use http::uri::PathAndQuery;
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::Outcome;

const SUBSCRIBE: &str = "/evloopd.v1.EventService/Subscribe";

/// A codec that passes bytes through.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = from.remaining();
        Ok(Some(from.copy_to_bytes(len)))
    }
}

/// Calls a server-streaming method.
pub(crate) async fn call(
    channel: Channel,
    path: &'static str,
    request: Bytes,
) -> Outcome<Streaming<Bytes>> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let path = PathAndQuery::from_static(path);
    let answer = grpc.server_streaming(Request::new(request), path, Raw);
    Ok(answer.await?.into_inner())
}

/// Subscribes without decoding the messages.
pub(crate) async fn subscribe(
    channel: Channel,
    request: &SubscribeRequest,
) -> Outcome<Streaming<Bytes>> {
    call(channel, SUBSCRIBE, request.encode_to_vec().into()).await
}

/// Returns the `through` of a message of a subscription; `None` for the header.
pub(crate) fn through(message: &Bytes) -> Outcome<Option<u64>> {
    let mut bytes = message.clone();
    let mut key = || prost::encoding::decode_varint(&mut bytes).map_err(|error| error.to_string());
    // Field 2 of the message and its length; then fields 1 and 2 of the batch, which are absent if
    // 0.
    if key()? != 0x12 {
        return Ok(None);
    }
    key()?;
    let mut through = 0;
    for field in [0x08, 0x10] {
        if key()? == field {
            through = key()?;
        } else {
            return Ok(Some(through));
        }
    }
    Ok(Some(through))
}

/// Returns every message of a subscription as received, until they have accounted for `last`.
pub(crate) async fn capture(
    channel: Channel,
    request: &SubscribeRequest,
    last: u64,
) -> Outcome<Vec<Bytes>> {
    let mut stream = subscribe(channel, request).await?;
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        let reached = through(&message)? >= Some(last);
        let decoded = SubscribeResponse::decode(message.clone())?;
        match decoded.message {
            Some(Message::Batch(batch)) if !batch.gaps.is_empty() => {
                return Err(format!("events are lost: {:?}", batch.gaps).into());
            }
            Some(Message::Header(_) | Message::Batch(_)) => messages.push(message),
            other => return Err(format!("not a batch: {other:?}").into()),
        }
        if reached {
            return Ok(messages);
        }
    }
    Err("the subscription ended".into())
}
