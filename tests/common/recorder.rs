//! Readers that record the messages of a stream and check every batch when it arrives.

use std::collections::VecDeque;
use std::pin::Pin;

use evloopd::history::{Checker, Recording, View, view_of};
use evloopd::kinds::event_kind_name;
use evloopd::proto::event::Kind;
use evloopd::proto::process_service_client::ProcessServiceClient;
use evloopd::proto::{
    AttachRequest, AttachResult, Batch, Event, Goodbye, LoopRef, RunHeader, RunRequest, Snapshot,
    StartAt, SubscribeRequest, attach_request, attach_response, run_response, subscribe_request,
    subscribe_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use tonic::transport::Channel;

use super::{Daemon, within};

enum Message {
    Batch(Batch),
    Goodbye(Goodbye),
    Snapshot(Box<Snapshot>),
    Result(AttachResult),
}

type Messages = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

/// One subscription. A batch that violates order or delivery panics when it is received.
pub(crate) struct Recorder {
    messages: Messages,
    checker: Option<Checker>,
    pub(crate) recording: Recording,
    pub(crate) goodbye: Option<Goodbye>,
    pub(crate) snapshot: Vec<Snapshot>,
    /// The results of the requests sent on an attached stream.
    pub(crate) results: VecDeque<AttachResult>,
    /// The header of a Run; `None` for other streams.
    pub(crate) run: Option<RunHeader>,
}

impl Recorder {
    /// Records all events of a loop, from the oldest on.
    pub(crate) async fn of(daemon: &Daemon, target: &LoopRef) -> Self {
        let request = SubscribeRequest {
            r#loop: Some(target.clone()),
            start: Some(subscribe_request::Start::StartAt(StartAt::Oldest.into())),
            ..SubscribeRequest::default()
        };
        Self::subscribe(daemon, request).await.unwrap()
    }

    pub(crate) async fn subscribe(
        daemon: &Daemon,
        request: SubscribeRequest,
    ) -> Result<Self, Status> {
        use subscribe_response::Message::{Batch, Goodbye, Header, Snapshot};
        let view = view_of(request.filter.as_ref());
        let mut stream = daemon.events().subscribe(request).await?.into_inner();
        let first = within("a header", stream.message()).await?;
        let Some(Header(header)) = first.and_then(|first| first.message) else {
            panic!("a stream begins with its header");
        };
        let messages = stream.map(|message| {
            Ok(match message?.message.expect("a message has content") {
                Batch(batch) => Message::Batch(batch),
                Goodbye(goodbye) => Message::Goodbye(goodbye),
                Snapshot(snapshot) => Message::Snapshot(Box::new(snapshot)),
                Header(_) => panic!("a header comes once"),
            })
        });
        let mut recording = Recording::new(header.epoch, header.after);
        recording.view = view;
        Ok(Self::new(Box::pin(messages), recording, None))
    }

    /// Attaches; the sender takes the requests for this stream.
    pub(crate) async fn attach(
        daemon: &Daemon,
        start: SubscribeRequest,
    ) -> Result<(Self, mpsc::Sender<attach_request::Message>), Status> {
        use attach_response::Message::{Batch, Goodbye, Header, Result, Snapshot};
        let view = view_of(start.filter.as_ref());
        let (sender, requests) = mpsc::channel(64);
        sender
            .send(attach_request::Message::Start(start))
            .await
            .unwrap();
        let requests = ReceiverStream::new(requests).map(|message| AttachRequest {
            message: Some(message),
        });
        let mut stream = daemon.events().attach(requests).await?.into_inner();
        let first = within("a header", stream.message()).await?;
        let Some(Header(header)) = first.and_then(|first| first.message) else {
            panic!("a stream begins with its header");
        };
        let messages = stream.map(|message| {
            Ok(match message?.message.expect("a message has content") {
                Batch(batch) => Message::Batch(batch),
                Goodbye(goodbye) => Message::Goodbye(goodbye),
                Snapshot(snapshot) => Message::Snapshot(Box::new(snapshot)),
                Result(result) => Message::Result(result),
                Header(_) => panic!("a header comes once"),
            })
        });
        let mut recording = Recording::new(header.epoch, header.after);
        recording.view = view;
        Ok((Self::new(Box::pin(messages), recording, None), sender))
    }

    pub(crate) async fn run(daemon: &Daemon, request: RunRequest) -> Result<Self, Status> {
        Self::run_over(daemon.channel(), request).await
    }

    /// Runs over the given connection. The streams of one connection share its flow-control window.
    pub(crate) async fn run_over(channel: Channel, request: RunRequest) -> Result<Self, Status> {
        use run_response::Message::{Batch, Goodbye, Header};
        let after = request.after.as_ref().map(|cursor| cursor.seq);
        let mut client = ProcessServiceClient::new(channel);
        let mut stream = client.run(request).await?.into_inner();
        let first = within("a header", stream.message()).await?;
        let Some(Header(header)) = first.and_then(|first| first.message) else {
            panic!("a stream begins with its header");
        };
        let messages = stream.map(|message| {
            Ok(match message?.message.expect("a message has content") {
                Batch(batch) => Message::Batch(batch),
                Goodbye(goodbye) => Message::Goodbye(goodbye),
                Header(_) => panic!("a header comes once"),
            })
        });
        let added = header.added.as_ref().expect("a run has its Added").seq;
        let mut recording = Recording::new(header.epoch.clone(), after.unwrap_or(added - 1));
        recording.view = View::Watches;
        recording.from_birth = recording.start < added;
        Ok(Self::new(Box::pin(messages), recording, Some(header)))
    }

    fn new(messages: Messages, recording: Recording, run: Option<RunHeader>) -> Self {
        let (start, view) = (recording.start, recording.view);
        Self {
            messages,
            checker: Some(Checker::new(start, view, recording.from_birth)),
            recording,
            goodbye: None,
            snapshot: Vec::new(),
            results: VecDeque::new(),
            run,
        }
    }

    /// Takes the next message; false if the stream has ended.
    pub(crate) async fn step(&mut self) -> bool {
        match self.try_step().await {
            Ok(more) => more,
            Err(status) => panic!("the stream failed: {status:?}"),
        }
    }

    /// Takes all that has arrived on a stream whose daemon has died.
    pub(crate) async fn take_rest(&mut self) {
        within("the end of a dead daemon's stream", async {
            while let Ok(true) = self.try_step().await {}
        })
        .await;
    }

    async fn try_step(&mut self) -> Result<bool, Status> {
        match self.messages.next().await {
            None => return Ok(false),
            Some(Err(status)) => return Err(status),
            Some(Ok(Message::Goodbye(goodbye))) => self.goodbye = Some(goodbye),
            Some(Ok(Message::Snapshot(snapshot))) => {
                assert!(self.recording.batches.is_empty(), "a snapshot comes first");
                assert!(
                    !self.snapshot.last().is_some_and(|s| s.last),
                    "a snapshot part after the last one"
                );
                self.snapshot.push(*snapshot);
            }
            Some(Ok(Message::Result(result))) => self.results.push_back(result),
            Some(Ok(Message::Batch(batch))) => {
                assert!(self.goodbye.is_none(), "a batch after Goodbye");
                let checker = self
                    .checker
                    .as_mut()
                    .expect("there is a checker until the stream ends");
                if let Err(violation) = checker.push(&batch) {
                    panic!("{violation}\nin {batch:?}\nafter {}", self.text());
                }
                self.recording.batches.push(batch);
            }
        }
        Ok(true)
    }

    /// Returns the first event, received or still to come, for which `wanted` holds.
    pub(crate) async fn find(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        if let Some(event) = self.recording.events().find(|event| wanted(event)) {
            return event.clone();
        }
        let waiting = async {
            loop {
                let before = self.recording.batches.len();
                assert!(self.step().await, "the stream ended without {what}");
                let new = self.recording.batches[before..].iter();
                if let Some(event) = new.flat_map(|batch| &batch.events).find(|e| wanted(e)) {
                    return Some(event.clone());
                }
            }
        };
        match tokio::time::timeout(super::PATIENCE, waiting).await {
            Ok(event) => event.expect("found"),
            Err(_) => panic!("{what} never came; there is:\n{}", self.text()),
        }
    }

    /// Returns the `nth` event (from 1) of that watch and kind; the kind is named as in the
    /// `.proto`.
    pub(crate) async fn nth(&mut self, watch_id: u64, kind: &str, nth: usize) -> Event {
        let mut after = 0;
        for _ in 1..nth {
            after = self.after(after, watch_id, kind).await.seq;
        }
        self.after(after, watch_id, kind).await
    }

    /// Returns the first event of that watch and kind.
    pub(crate) async fn first(&mut self, watch_id: u64, kind: &str) -> Event {
        self.after(0, watch_id, kind).await
    }

    /// Returns the first event of that watch and kind after `seq`.
    pub(crate) async fn after(&mut self, seq: u64, watch_id: u64, kind: &str) -> Event {
        let what = format!("{kind} of watch {watch_id} after {seq}");
        self.find(&what, |event| {
            event.seq > seq && event.watch_id == watch_id && is(event, kind)
        })
        .await
    }

    /// Waits until the stream has accounted for `seq`.
    pub(crate) async fn reach(&mut self, seq: u64) {
        let what = format!("sequence number {seq}");
        within(&what, async {
            while self.recording.through() < seq {
                assert!(self.step().await, "the stream ended before {seq}");
            }
        })
        .await;
    }

    /// Waits until the daemon ends the stream.
    pub(crate) async fn end(&mut self) -> Goodbye {
        within("the end of the stream", async {
            while self.step().await {}
        })
        .await;
        self.goodbye.clone().expect("a stream says why it ends")
    }

    /// Returns the bytes of one of a watch's streams that have been received so far.
    pub(crate) fn bytes(&self, watch_id: u64, stream: evloopd::proto::Stream) -> Vec<u8> {
        let mut all = Vec::new();
        for event in self.recording.events().filter(|e| e.watch_id == watch_id) {
            if let Some(Kind::Data(data)) = &event.kind
                && data.stream() == stream
            {
                all.extend_from_slice(&data.data);
            }
        }
        all
    }

    /// Returns the kinds of a watch's events that have been received so far.
    pub(crate) fn kinds(&self, watch_id: u64) -> Vec<&'static str> {
        let of_it = self.recording.events().filter(|e| e.watch_id == watch_id);
        of_it
            .filter_map(|e| e.kind.as_ref().map(event_kind_name))
            .collect()
    }

    fn text(&self) -> String {
        let lines = self.recording.events().map(|event| format!("{event:?}\n"));
        lines.collect()
    }
}

/// Whether the event is of that kind, named as in the `.proto` file.
pub(crate) fn is(event: &Event, kind: &str) -> bool {
    event
        .kind
        .as_ref()
        .is_some_and(|k| event_kind_name(k) == kind)
}
