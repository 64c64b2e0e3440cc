//! Requests to every method of the service: random messages, some of them damaged.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use evloopd::proto;
use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{DynamicMessage, MethodDescriptor};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::common::Daemon;
use crate::fuzz;
use crate::messages::{Random, message};

/// How long a stream is read; one that has nothing to tell is given up.
const READING: Duration = Duration::from_millis(20);

/// Passes bytes on as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

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

    fn encode(&mut self, bytes: Bytes, onto: &mut EncodeBuf<'_>) -> Result<(), Status> {
        onto.put(bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

fn methods() -> Vec<MethodDescriptor> {
    let services = proto::descriptors().services();
    let ours = services.filter(|service| service.full_name().starts_with("evloopd."));
    let methods: Vec<_> = ours
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect();
    assert!(methods.len() > 30);
    methods
}

/// Sends one request and reads what comes.
async fn call(
    channel: Channel,
    method: &MethodDescriptor,
    request: Bytes,
) -> Result<(), TestCaseError> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = http::uri::PathAndQuery::try_from(path).unwrap();
    let mut request = Request::new(tokio_stream::iter([request]));
    request.set_timeout(READING);
    let refused = |status: Status| {
        let reason = status.metadata().get("evloopd-reason");
        let reason = reason.map(|reason| reason.to_str().unwrap_or("?").to_owned());
        match (status.code(), reason.as_deref()) {
            // The library answers so for bytes that are no message of that kind.
            (Code::Internal, None) => {
                prop_assert!(
                    status.message().contains("decode"),
                    "{}: {:?}",
                    method.name(),
                    status
                );
            }
            (Code::DeadlineExceeded | Code::Cancelled | Code::OutOfRange, None) => {}
            (Code::Internal | Code::Unknown | Code::DataLoss, _) | (_, None) => {
                prop_assert!(false, "{}: {:?}", method.name(), status);
            }
            _ => {}
        }
        Ok(())
    };
    let reading = async {
        let answer = match client.streaming(request, path, Raw).await {
            Ok(answer) => answer,
            Err(status) => return refused(status),
        };
        let mut answers = answer.into_inner();
        loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    let answer = DynamicMessage::decode(method.output(), answer);
                    prop_assert!(answer.is_ok());
                }
                Ok(None) => return Ok(()),
                Err(status) => return refused(status),
            }
        }
    };
    tokio::time::timeout(READING, reading)
        .await
        .unwrap_or(Ok(()))
}

/// Damages the encoding of a message.
fn damage(bytes: &mut Vec<u8>, random: &mut Random<'_>) {
    let at = random.below(bytes.len().max(1));
    match random.byte() % 4 {
        0 => bytes.truncate(at),
        1 if !bytes.is_empty() => bytes[at] ^= random.byte() | 1,
        2 => bytes
            .splice(at..at, [random.byte(), 0xff, 0xff, 0xff, 0xff, 0x0f])
            .for_each(drop),
        // Groups within groups, which an older encoding has.
        _ => bytes.extend([0x0b; 300]),
    }
}

#[test]
fn every_request_has_an_answer_or_a_reason_and_the_daemon_goes_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let config = "[server]\ntls_keys_in_requests = true\n[limits]\nloops = 20\nchildren = 20\n\
                  close_linger = \"0s\"\n";
    let daemon = runtime.block_on(Daemon::start(config));
    let files = daemon.dir.path().to_str().unwrap().to_owned();
    let methods = methods();
    let one = (
        any::<prop::sample::Index>(),
        prop::collection::vec(any::<u8>(), 0..600),
        prop::bool::weighted(0.2),
    );
    fuzz(150, &prop::collection::vec(one, 1..20), |requests| {
        for (method, bytes, damaged) in requests {
            let method = &methods[method.index(methods.len())];
            let mut random = Random(&bytes);
            let request = message(&method.input(), &mut random, &files, 0);
            let mut request = request.encode_to_vec();
            if damaged {
                damage(&mut request, &mut random);
            }
            runtime.block_on(call(daemon.channel(), method, request.into()))?;
        }
        let log = daemon.log();
        prop_assert!(!log.contains("panicked"), "{}", log);
        Ok(())
    });
    // It still serves.
    runtime.block_on(daemon.status());
}
