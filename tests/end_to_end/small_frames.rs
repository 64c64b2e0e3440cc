//! Many small messages that wait to be read. HTTP/2 libraries (h2 from 0.4.16 on) count frames of less than
//! 256 bytes that nobody has read yet, and end the connection when they are too many.

use bytes::Bytes;
use evloopd::proto::*;
use tonic::transport::Endpoint;

use crate::common::{Daemon, Scene, connect_with, post, within};
use crate::neighbours::{call, connection, framed};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_that_leaves_small_messages_unread_keeps_its_connection() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    // The smaller the window, the fewer small frames are too many.
    let endpoint = Endpoint::from_static("http://localhost")
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(64 * 1024);
    let channel = connect_with(&scene.daemon.socket, endpoint).await;
    let request = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Oldest.into())),
        ..SubscribeRequest::default()
    };
    let mut reader = event_service_client::EventServiceClient::new(channel);
    let mut reader = reader.subscribe(request).await.unwrap().into_inner();
    let mut last = 0;
    for _ in 0..1_000 {
        last = scene.post(vec![post("", b"x")]).await;
    }
    let mut seen = 0;
    while seen < last {
        let message = within("a message", reader.message()).await.unwrap();
        if let Some(subscribe_response::Message::Batch(batch)) = message.unwrap().message {
            seen = batch.through;
        }
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_small_requests_at_once_keep_their_connection() {
    let scene = Scene::new(Daemon::start("").await, "", "").await;
    let last = scene.post(vec![post("", b"x")]).await;
    let mut client = connection(&scene.daemon, 1 << 20).await;
    let (response, mut body) = call(&mut client, "EventService/Attach").await.unwrap();
    let request = |message| AttachRequest {
        message: Some(message),
    };
    let start = SubscribeRequest {
        r#loop: Some(scene.target.clone()),
        start: Some(subscribe_request::Start::StartAt(StartAt::Oldest.into())),
        ..SubscribeRequest::default()
    };
    body.send_data(
        framed(&request(attach_request::Message::Start(start))),
        false,
    )
    .unwrap();
    let mut told = within("an answer", response).await.unwrap().into_body();
    let ack = Cursor {
        epoch: String::new(),
        seq: last,
    };
    let ack = framed(&request(attach_request::Message::Ack(ack)));
    for _ in 0..20_000 {
        body.send_data(ack.clone(), false).unwrap();
    }
    body.send_data(Bytes::new(), true).unwrap();
    // It ends with a Goodbye, in order.
    while let Some(data) = within("the end", told.data()).await {
        let data = data.unwrap();
        told.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers = within("the status", told.trailers())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(trailers.get("grpc-status").unwrap(), "0");
    scene.finish().await;
}
