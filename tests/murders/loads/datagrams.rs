//! Datagrams are told, and sent, at most once and in order; what may be missing is said.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::transport_service_client::TransportServiceClient;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Code;

use crate::client::is_unknown;
use crate::common::{PATIENCE, by_id, datagrams_at, inet};
use crate::field::{Hand, Inbox};

const LAST: &[u8] = b"last";

fn number(data: &[u8]) -> Option<u64> {
    data.try_into().ok().map(u64::from_be_bytes)
}

async fn bind(hand: &Hand, inbox: &Inbox) -> (u64, u16) {
    let spec = DatagramSpec {
        receive_buffer: 8 << 20,
        ..datagrams_at(inet("127.0.0.1", 0))
    };
    let id = hand.add(inbox, Spec::Datagram(spec)).await;
    let Some(watch::Status::Datagram(status)) = hand.get(id).await.status else {
        panic!("a datagram socket");
    };
    (id, super::connections::port(&status.local.unwrap()))
}

/// Numbered datagrams to the daemon.
pub(super) async fn received(hand: Hand) {
    let mut inbox = hand.inbox();
    let (id, port) = bind(&hand, &inbox).await;
    let site = Arc::clone(&hand.field.site);
    let sender = tokio::task::spawn_blocking(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sent = 0_u64;
        while !site.is_over() {
            socket
                .send_to(&sent.to_be_bytes(), ("127.0.0.1", port))
                .unwrap();
            sent += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        socket.send_to(LAST, ("127.0.0.1", port)).unwrap();
        sent
    });
    let (mut next, mut missing, mut in_doubt, mut dropped) = (0, 0, 0, 0);
    loop {
        match inbox.next("the last datagram").await.kind.unwrap() {
            Kind::Added(_) => {}
            Kind::Datagram(datagram) if datagram.data == LAST => break,
            Kind::Datagram(datagram) => {
                let number = number(&datagram.data).unwrap();
                assert!(number >= next, "{number} came after {next}");
                missing += number - next;
                next = number + 1;
            }
            Kind::DatagramsDropped(more) => {
                assert_eq!(more.unsent, 0);
                in_doubt += more.in_doubt;
                dropped += more.count;
            }
            other => panic!("{other:?}"),
        }
    }
    let sent = sender.await.unwrap();
    missing += sent - next;
    hand.ask_to_remove(id).await;
    loop {
        match inbox.next("Removed").await.kind.unwrap() {
            Kind::Removed(_) => break,
            Kind::DatagramsDropped(more) => dropped += more.count,
            Kind::Closed(closed) => assert_eq!(closed.reason(), CloseReason::Removed),
            other => panic!("{other:?}"),
        }
    }
    assert!(
        missing <= in_doubt + dropped,
        "{missing} of {sent} missing, {in_doubt} in doubt, {dropped} dropped"
    );
    hand.count("datagrams to the daemon", sent);
    hand.count("datagrams to the daemon, missing", missing);
    hand.count("datagrams to the daemon, in doubt", in_doubt);
}

/// Numbered datagrams from the daemon.
pub(super) async fn sent(hand: Hand) {
    let mut inbox = hand.inbox();
    let (id, _) = bind(&hand, &inbox).await;
    let theirs = UdpSocket::bind("127.0.0.1:0").unwrap();
    theirs.set_read_timeout(Some(PATIENCE / 4)).unwrap();
    let to = inet("127.0.0.1", theirs.local_addr().unwrap().port());
    let receiver = tokio::task::spawn_blocking(move || {
        let (mut next, mut missing) = (0, 0);
        let mut data = [0; 64];
        loop {
            let len = theirs.recv(&mut data).unwrap();
            if &data[..len] == LAST {
                return (next, missing);
            }
            let number = number(&data[..len]).unwrap();
            assert!(number >= next, "{number} came after {next}");
            missing += number - next;
            next = number + 1;
        }
    });
    let (mut sent, mut unknown) = (0_u64, 0);
    let mut last = false;
    while !last {
        last = hand.is_over();
        let data = match last {
            true => LAST.to_vec(),
            false => sent.to_be_bytes().to_vec(),
        };
        let mut attempt = 0;
        loop {
            let request = SendToRequest {
                r#loop: hand.target(),
                watch: by_id(id),
                data: data.clone().into(),
                peer: Some(to.clone()),
                request_id: format!("datagram {sent} of {} {attempt}", inbox.key),
                ..SendToRequest::default()
            };
            let answer = hand.client.call("send_to", |channel| {
                let request = request.clone();
                async move { TransportServiceClient::new(channel).send_to(request).await }
            });
            match answer.await {
                Ok(_) => break,
                Err(status) if is_unknown(&status) => {
                    unknown += 1;
                    if !last {
                        break;
                    }
                    // The last one has to come; no death is left that it could come twice after.
                    attempt += 1;
                }
                Err(status) if status.code() == Code::ResourceExhausted => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(status) => panic!("{status:?}"),
            }
        }
        sent += u64::from(!last);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let (next, missing) = receiver.await.unwrap();
    let missing = missing + sent - next;
    hand.ask_to_remove(id).await;
    let mut unsent = 0;
    loop {
        match inbox.next("Removed").await.kind.unwrap() {
            Kind::Removed(_) => break,
            Kind::DatagramsDropped(more) => unsent += more.unsent,
            Kind::Added(_) | Kind::Closed(_) | Kind::WritePaused(_) | Kind::WriteResumed(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(
        missing <= unknown + unsent,
        "{missing} of {sent} missing, {unknown} unknown, {unsent} unsent"
    );
    hand.count("datagrams from the daemon", sent);
    hand.count("datagrams from the daemon, missing", missing);
    hand.count("datagrams from the daemon, outcome unknown", unknown);
}
