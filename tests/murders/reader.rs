//! The two readers of a loop, both consumers: a stream that is resumed after each death, somewhat before
//! where it was, and calls of Poll.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use evloopd::history::{Checker, View};
use evloopd::proto::event::Kind;
use evloopd::proto::event_service_client::EventServiceClient;
use evloopd::proto::subscribe_response::Message;
use evloopd::proto::*;
use prost::Message as _;
use tonic::{Status, Streaming};

use crate::client::is_broken;
use crate::common::millis;
use crate::field::Hand;
use crate::killer::Random;

/// Events and bytes that are not acknowledged at once, so that they can be read again.
const AGAIN: usize = 300;
const AGAIN_BYTES: usize = 512 * 1024;

fn hash(event: &Event) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

/// An event that was read.
struct Seen {
    seq: u64,
    hash: u64,
    bytes: usize,
}

/// Reads all events through all lives, checks them, and delivers them to the loads.
pub(crate) struct Reader {
    hand: Hand,
    random: Random,
    checker: Checker,
    epoch: String,
    /// What can be read again.
    latest: VecDeque<Seen>,
    latest_bytes: usize,
    /// Acknowledged, as far as there were answers, and as far as it was asked for.
    acked: u64,
    asked: u64,
    /// The registration of each open watch.
    keys: HashMap<u64, u64>,
    added: HashSet<u64>,
    recovered: usize,
    closed: bool,
}

impl Reader {
    pub(crate) fn new(hand: Hand, random: Random) -> Self {
        Self {
            hand,
            random,
            checker: Checker::new(0, View::All, true),
            epoch: String::new(),
            latest: VecDeque::new(),
            latest_bytes: 0,
            acked: 0,
            asked: 0,
            keys: HashMap::new(),
            added: HashSet::new(),
            recovered: 0,
            closed: false,
        }
    }

    /// Reads until the loop is closed.
    pub(crate) async fn read(mut self) {
        while !self.closed {
            if let Err(status) = self.life().await {
                assert!(is_broken(&status), "{status:?}");
            }
        }
        let deaths = self.hand.field.site.deaths_so_far();
        assert!(self.recovered <= deaths, "{} of {deaths}", self.recovered);
        let open = self.checker.finish().open_watches;
        assert_eq!(open, 0, "on {}", self.hand.field.backend);
    }

    /// Reads as long as this life of the daemon goes on.
    async fn life(&mut self) -> Result<(), Status> {
        let through = self.checker.through();
        let again = (through - self.asked).min(self.latest.len() as u64);
        let mut after = through - self.random.below(again + 1);
        let request = SubscribeRequest {
            r#loop: self.hand.target(),
            start: Some(subscribe_request::Start::After(Cursor {
                epoch: self.epoch.clone(),
                seq: after,
            })),
            heartbeat: Some(millis(500)),
            consumer: "reader".into(),
            max_in_flight_bytes: 8 << 20,
            ..SubscribeRequest::default()
        };
        let site = &self.hand.field.site;
        let mut events = EventServiceClient::new(self.hand.client.channel.clone());
        let answer = site.patient("subscribe", events.subscribe(request)).await?;
        let mut stream = answer.into_inner();
        while let Some(message) = self.message(&mut stream).await? {
            match message {
                Message::Header(header) => {
                    if self.epoch.is_empty() {
                        self.epoch.clone_from(&header.epoch);
                    }
                    assert_eq!((&header.epoch, header.after), (&self.epoch, after));
                }
                Message::Batch(batch) => {
                    assert!(batch.gaps.is_empty(), "{:?}", batch.gaps);
                    assert_eq!(batch.after, after);
                    after = batch.through;
                    self.take(batch);
                    self.acknowledge().await?;
                }
                Message::Goodbye(goodbye) => {
                    assert_eq!(goodbye.reason(), GoodbyeReason::LoopClosed, "{goodbye:?}");
                    assert!(self.closed);
                }
                Message::Snapshot(_) => panic!("nobody asked for it"),
            }
        }
        Ok(())
    }

    async fn message(
        &self,
        stream: &mut Streaming<SubscribeResponse>,
    ) -> Result<Option<Message>, Status> {
        let site = &self.hand.field.site;
        let message = site.patient("the next batch", stream.message()).await?;
        Ok(message.map(|message| message.message.expect("it has content")))
    }

    fn take(&mut self, batch: Batch) {
        let through = self.checker.through();
        let (again, new): (Vec<_>, Vec<_>) = batch
            .events
            .into_iter()
            .partition(|event| event.seq <= through);
        for event in again {
            let seen = self.latest.iter().find(|seen| seen.seq == event.seq);
            assert_eq!(seen.expect("it is new enough").hash, hash(&event));
            self.hand.count("events read again", 1);
        }
        if batch.through <= through {
            return;
        }
        let new = Batch {
            after: through,
            through: batch.through,
            events: new,
            gaps: Vec::new(),
            caught_up: batch.caught_up,
        };
        if let Err(violation) = self.checker.push(&new) {
            panic!("{violation} on {}, in {new:?}", self.hand.field.backend);
        }
        self.hand.count("events", new.events.len() as u64);
        for event in new.events {
            self.event(event);
        }
    }

    fn event(&mut self, event: Event) {
        let (hash, bytes) = (hash(&event), event.encoded_len());
        self.hand.field.compare(event.seq, hash);
        let seq = event.seq;
        self.latest.push_back(Seen { seq, hash, bytes });
        self.latest_bytes += bytes;
        while self.latest.len() > AGAIN || self.latest_bytes > AGAIN_BYTES {
            let Some(oldest) = self.latest.pop_front() else {
                break;
            };
            self.latest_bytes -= oldest.bytes;
        }
        let id = event.watch_id;
        let key = match &event.kind {
            Some(Kind::Recovered(recovered)) => {
                assert_eq!(recovered.why(), RecoveryReason::Crash);
                self.recovered += 1;
                return;
            }
            Some(Kind::LoopStateChanged(change)) => {
                self.closed = change.state() == LoopState::Closed;
                return;
            }
            Some(Kind::Posted(_)) => event.user_data,
            Some(Kind::Added(added)) => {
                let key = match added.parent_watch_id {
                    0 => event.user_data,
                    parent => self.keys[&parent],
                };
                if added.parent_watch_id == 0 {
                    assert!(self.added.insert(key), "{key} was added twice: {added:?}");
                }
                self.keys.insert(id, key);
                key
            }
            Some(Kind::Removed(_)) => self.keys.remove(&id).expect("it was added"),
            _ => self.keys[&id],
        };
        if let Err(event) = self.hand.field.deliver(key, event) {
            panic!("nobody expects {event:?}");
        }
    }

    /// Acknowledges what need not be read again.
    async fn acknowledge(&mut self) -> Result<(), Status> {
        let oldest = self.latest.front().map_or(0, |seen| seen.seq - 1);
        if oldest < self.asked + AGAIN as u64 / 4 {
            return Ok(());
        }
        self.asked = oldest;
        let request = AckRequest {
            r#loop: self.hand.target(),
            consumer: "reader".into(),
            cursor: Some(Cursor {
                epoch: self.epoch.clone(),
                seq: oldest,
            }),
            ..AckRequest::default()
        };
        let mut events = EventServiceClient::new(self.hand.client.channel.clone());
        let site = &self.hand.field.site;
        let answer = site.patient("ack", events.ack(request)).await?;
        let acked = answer.into_inner().acked.unwrap().seq;
        // What was asked for without an answer may have been done.
        assert!(acked >= self.acked && acked == oldest, "{acked}, {oldest}");
        self.acked = acked;
        self.hand.count("acknowledgements", 1);
        Ok(())
    }
}

/// Polls all events through all lives, and acknowledges them with the next call.
pub(crate) async fn poll(hand: Hand) {
    let name = String::from("poller");
    let request = CreateConsumerRequest {
        r#loop: hand.target(),
        name: name.clone(),
        start: Some(create_consumer_request::Start::StartAt(
            StartAt::Oldest.into(),
        )),
        if_exists: IfExists::Return.into(),
        ..CreateConsumerRequest::default()
    };
    let answer = hand.client.call("create_consumer", |channel| {
        let request = request.clone();
        async move {
            EventServiceClient::new(channel)
                .create_consumer(request)
                .await
        }
    });
    let consumer = answer.await.unwrap().consumer.unwrap();
    let Cursor { epoch, mut seq } = consumer.acked.unwrap();
    for turn in 0_u64.. {
        let cursor = Cursor {
            epoch: epoch.clone(),
            seq,
        };
        let request = PollRequest {
            r#loop: hand.target(),
            after: Some(cursor.clone()),
            ack: Some(cursor),
            consumer: name.clone(),
            timeout: Some(millis(500)),
            ..PollRequest::default()
        };
        let answer = hand.client.call("poll", |channel| {
            let request = request.clone();
            async move { EventServiceClient::new(channel).poll(request).await }
        });
        let answer = answer.await.unwrap();
        let batch = answer.batch.unwrap();
        assert_eq!((&answer.epoch, batch.after), (&epoch, seq));
        assert!(batch.gaps.is_empty(), "{:?}", batch.gaps);
        for event in batch.events {
            assert_eq!(event.seq, seq + 1);
            seq = event.seq;
            hand.field.compare(seq, hash(&event));
            if let Some(Kind::LoopStateChanged(change)) = event.kind
                && change.state() == LoopState::Closed
            {
                return;
            }
        }
        if turn % 20 == 0 {
            look(&hand, &name, request.ack.unwrap().seq).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What was acknowledged stays so.
async fn look(hand: &Hand, name: &str, acked: u64) {
    let request = GetConsumerRequest {
        r#loop: hand.target(),
        name: name.to_owned(),
    };
    let answer = hand.client.call("get_consumer", |channel| {
        let request = request.clone();
        async move { EventServiceClient::new(channel).get_consumer(request).await }
    });
    let now = answer.await.unwrap().consumer.unwrap().acked.unwrap().seq;
    assert_eq!(now, acked, "on {}", hand.field.backend);
    hand.count("consumers looked at", 1);
}
