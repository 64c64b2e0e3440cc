//! Mutations with a request id: each is done once, however often it is repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::*;
use tonic::Code;

use crate::client::is_unknown;
use crate::common::{by_id, never};
use crate::field::Hand;

/// Watches that are added, changed and removed. The readers of the loop see to it that none is added
/// twice.
pub(super) async fn single(hand: Hand) {
    while !hand.is_over() {
        let mut inbox = hand.inbox();
        let mut request = hand.request(inbox.key, never());
        let (first, _) = hand.try_add(&mut request).await.unwrap();
        // The answer stays the same, also when the daemon has died meanwhile.
        let (again, _) = hand.try_add(&mut request).await.unwrap();
        assert_eq!(first, again);
        let id = first.watch.unwrap().watch_id;
        let request = UpdateWatchRequest {
            r#loop: hand.target(),
            watch: by_id(id),
            labels: [("key".to_owned(), inbox.key.to_string())].into(),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["labels".into()],
            }),
            request_id: format!("update {}", inbox.key),
            ..UpdateWatchRequest::default()
        };
        let answer = hand.client.call("update_watch", |channel| {
            let request = request.clone();
            async move { WatchServiceClient::new(channel).update_watch(request).await }
        });
        let deaths = hand.deaths();
        let answer = answer.await.unwrap();
        assert_eq!(answer.watch.unwrap().labels, request.labels);
        let updated = answer.updated.map(|cursor| cursor.seq);
        // A repeat may have found that all was done.
        assert!(updated.is_some() || hand.deaths() > deaths);
        let mut updates = Vec::new();
        hand.ask_to_remove(id).await;
        loop {
            let event = inbox.next("Removed").await;
            match event.kind.unwrap() {
                Kind::Updated(_) => updates.push(event.seq),
                Kind::Removed(_) => break,
                _ => {}
            }
        }
        assert_eq!(updates, [updated.unwrap_or(updates[0])]);
        hand.count("registrations", 1);
    }
}

/// Watches that are added together.
pub(super) async fn batches(hand: Hand) {
    const SIZE: usize = 8;
    while !hand.is_over() {
        let mut inboxes: Vec<_> = (0..SIZE).map(|_| hand.inbox()).collect();
        let requests = inboxes.iter().map(|inbox| AddWatchRequest {
            r#loop: None,
            ..hand.request(inbox.key, never())
        });
        let mut request = BatchAddWatchesRequest {
            r#loop: hand.target(),
            requests: requests.collect(),
            request_id: format!("batch {}", inboxes[0].key),
        };
        let first = request.request_id.clone();
        let mut unknown = 0;
        let results = loop {
            let answer = hand.client.call("batch_add_watches", |channel| {
                let request = request.clone();
                async move {
                    let mut watches = WatchServiceClient::new(channel);
                    watches.batch_add_watches(request).await
                }
            });
            match answer.await {
                Ok(answer) => break answer.results,
                Err(status) => assert!(is_unknown(&status), "{status:?}"),
            }
            hand.count("registrations, outcome unknown", 1);
            unknown += 1;
            request.request_id = format!("{first} again {unknown}");
        };
        assert_eq!(results.len(), SIZE);
        for (inbox, result) in inboxes.iter_mut().zip(results) {
            match result.result.unwrap() {
                batch_add_watches_result::Result::Added(added) => {
                    let watch = added.watch.unwrap();
                    assert_eq!(watch.user_data, inbox.key);
                    hand.remove(inbox, watch.watch_id).await;
                    hand.count("registrations", 1);
                }
                batch_add_watches_result::Result::Error(error) => {
                    assert_eq!(error.reason, "JOURNAL_FULL", "{error:?}");
                }
            }
        }
    }
}

/// Numbered posts: each is there at most once and in order, and the ones that the daemon confirmed are.
pub(super) async fn posts(hand: Hand) {
    let mut inbox = hand.inbox();
    let (mut confirmed, mut unknown) = (BTreeMap::new(), 0);
    let mut next = 0_u64;
    loop {
        let is_over = hand.is_over();
        let request = PostRequest {
            r#loop: hand.target(),
            posts: vec![Post {
                request_id: next.to_string(),
                user_data: inbox.key,
                ..Post::default()
            }],
            request_id: format!("post {next} of {}", inbox.key),
        };
        let answer = hand.client.call("post", |channel| {
            let request = request.clone();
            async move { EventServiceClient::new(channel).post(request).await }
        });
        match answer.await {
            Ok(answer) => {
                confirmed.insert(next, answer.cursor.unwrap().seq);
                // None of those before it can come later.
                if is_over {
                    break;
                }
            }
            Err(status) if is_unknown(&status) => unknown += 1,
            Err(status) if status.code() == Code::ResourceExhausted => {}
            Err(status) => panic!("{status:?}"),
        }
        next += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    hand.count("posts", confirmed.len() as u64);
    hand.count("posts, outcome unknown", unknown);
    let (&last, _) = confirmed.last_key_value().expect("the last one");
    let mut told = BTreeMap::new();
    while !told.contains_key(&last) {
        let event = inbox.next("the last post").await;
        let Some(Kind::Posted(posted)) = event.kind else {
            panic!("{event:?}");
        };
        let number: u64 = posted.request_id.parse().unwrap();
        let latest = told.last_key_value().map(|(latest, _)| *latest);
        assert!(latest < Some(number), "{number} after {latest:?}");
        told.insert(number, event.seq);
    }
    for (number, seq) in &confirmed {
        assert_eq!(told.get(number), Some(seq), "post {number}");
    }
    let doubtful = told.len() - confirmed.len();
    assert!(doubtful as u64 <= unknown, "{doubtful} of {unknown}");
}
