//! Reads a stream of events. After the connection broke, it connects again and goes on after the last batch.

use std::time::Duration;

use tonic::{Status, Streaming};

use super::failure::{Failure, complain};
use super::session::{Session, answer};
use super::standstill::{self, Standstill};
use crate::proto::{
    AckRequest, Batch, Cursor, EventKind, Filter, GetServerInfoRequest, Goodbye, GoodbyeReason,
    LoopRef, OnGap, RunRequest, RunResponse, SubscribeRequest, SubscribeResponse, Watch, loop_ref,
    run_response, subscribe_request, subscribe_response,
};

mod tape;

pub(super) use tape::Tape;

/// The largest number of attempts in a row to open a broken stream again. With the waits between them, they take about 9 s.
const ATTEMPTS_MAX: u32 = 8;
/// The wait before the first attempt; it doubles with each attempt.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// The longest wait before an attempt.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The request that opens the stream.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a command has one of them")]
pub(super) enum Source {
    /// Events of a loop.
    Subscribe(SubscribeRequest),
    /// Events of one process, by its name. Only the first request may start the process; later requests join it.
    Run(RunRequest),
}

impl Source {
    /// Changes the request so that it opens the same stream again: on the same loop, even if the context has another loop
    /// by now, after the cursor `after`, and without starting a process.
    fn resume(&mut self, loop_id: u64, after: Option<Cursor>) {
        let of = Some(LoopRef {
            r#ref: Some(loop_ref::Ref::LoopId(loop_id)),
        });
        match self {
            Self::Subscribe(request) => {
                request.r#loop = of;
                if let Some(cursor) = after {
                    request.start = Some(subscribe_request::Start::After(cursor));
                    request.set_on_gap(OnGap::Skip);
                }
            }
            Self::Run(request) => {
                request.r#loop = of;
                request.spec = None;
                request.after = after;
                request.set_on_gap(OnGap::Skip);
            }
        }
    }
}

/// The first message of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The instance of the daemon, which changes when the daemon is restarted, and its life.
    daemon: (String, u64),
    pub(super) loop_id: u64,
    pub(super) epoch: String,
    /// The id of the process's watch; 0 for a subscription.
    pub(super) watch_id: u64,
    /// Whether the process existed before the request.
    pub(super) existed: bool,
    /// The sequence number after which the first batch begins; only for a subscription.
    after: Option<u64>,
}

/// One message of a feed.
#[derive(Debug)]
pub(super) enum Item {
    /// Comes once, before all other items.
    Header(Header),
    Batch(Batch),
    /// Comes once, after all other items.
    Goodbye(Goodbye),
}

enum Stream {
    Subscribe(Streaming<SubscribeResponse>),
    Run(Streaming<RunResponse>),
}

/// A message as the daemon sent it.
enum Answer {
    Subscribe(Box<SubscribeResponse>),
    Run(RunResponse),
}

impl Stream {
    async fn next(&mut self) -> Result<Option<Answer>, Status> {
        Ok(match self {
            Self::Subscribe(stream) => {
                let response = stream.message().await?;
                response.map(|response| Answer::Subscribe(Box::new(response)))
            }
            Self::Run(stream) => stream.message().await?.map(Answer::Run),
        })
    }
}

/// Converts a message. Returns `None` for a snapshot, which no verb asks for, and for a kind of message that this program
/// does not know.
fn item(answer: Answer) -> Option<Item> {
    match answer {
        Answer::Subscribe(response) => response.message.and_then(of_loop),
        Answer::Run(response) => response.message.map(of_process),
    }
}

fn of_loop(message: subscribe_response::Message) -> Option<Item> {
    Some(match message {
        subscribe_response::Message::Header(h) => Item::Header(Header {
            daemon: (h.instance, h.life),
            loop_id: h.loop_id,
            epoch: h.epoch,
            after: Some(h.after),
            ..Header::default()
        }),
        subscribe_response::Message::Batch(batch) => Item::Batch(batch),
        subscribe_response::Message::Goodbye(goodbye) => Item::Goodbye(goodbye),
        subscribe_response::Message::Snapshot(_) => return None,
    })
}

fn of_process(message: run_response::Message) -> Item {
    match message {
        run_response::Message::Header(h) => Item::Header(Header {
            daemon: (h.instance, h.life),
            loop_id: h.loop_id,
            epoch: h.epoch,
            watch_id: h.watch_id,
            existed: h.existed,
            after: None,
        }),
        run_response::Message::Batch(batch) => Item::Batch(batch),
        run_response::Message::Goodbye(goodbye) => Item::Goodbye(goodbye),
    }
}

/// Reads each event exactly once and in order, over one connection or several.
pub(super) struct Feed {
    session: Session,
    source: Source,
    stream: Option<Stream>,
    header: Option<Header>,
    /// The last sequence number that was read; before the first batch, the number after which it begins, if known.
    through: Option<u64>,
    /// The last sequence number that was acknowledged for the consumer.
    acked: Option<u64>,
    tape: Option<Tape>,
    /// Reports why no event comes, if that is wanted.
    standstill: Option<Standstill>,
    /// The number of failed attempts since the last batch.
    failures: u32,
}

impl Feed {
    pub(super) const fn new(session: Session, source: Source) -> Self {
        Self {
            session,
            source,
            stream: None,
            header: None,
            through: None,
            acked: None,
            tape: None,
            standstill: None,
            failures: 0,
        }
    }

    /// Records a subscription: each message is written to `tape` before [`Self::next`] returns it.
    pub(super) fn record(self, tape: Tape) -> Self {
        let tape = Some(tape);
        Self { tape, ..self }
    }

    /// Asks the daemon for an empty batch whenever no event came for [`standstill::HEARTBEAT`].
    pub(super) fn with_heartbeat(mut self) -> Self {
        let heartbeat = prost_types::Duration::try_from(standstill::HEARTBEAT).ok();
        match &mut self.source {
            Source::Subscribe(request) => request.heartbeat = heartbeat,
            Source::Run(request) => request.heartbeat = heartbeat,
        }
        self
    }

    /// Reports on stderr why no event comes, if the loop does not run or its journal is full of events that a consumer has
    /// not acknowledged.
    pub(super) fn reporting_standstill(self) -> Self {
        let standstill = Some(Standstill::default());
        Self {
            standstill,
            ..self.with_heartbeat()
        }
    }

    /// Waits for the next item. Cancelling it loses nothing.
    ///
    /// # Errors
    /// The daemon refuses the request or was restarted, or the connection stays broken.
    pub(super) async fn next(&mut self) -> Result<Item, Failure> {
        loop {
            let received = match &mut self.stream {
                Some(stream) => stream.next().await,
                None => match self.open().await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(status) => Err(status),
                },
            };
            match received {
                Ok(Some(mut answer)) => {
                    self.record_answer(&mut answer)?;
                    if let Some(item) = item(answer)
                        && let Some(item) = self.take(item)?
                    {
                        return Ok(item);
                    }
                }
                Ok(None) => {
                    let broken = Status::unavailable("the stream broke off");
                    self.back_off(&broken).await?;
                }
                Err(status) => self.back_off(&status).await?,
            }
        }
    }

    /// Returns the cursor of the last event that was read; `None` if it is not known yet.
    pub(super) fn cursor(&self) -> Option<Cursor> {
        let epoch = self.header.as_ref()?.epoch.clone();
        self.through.map(|seq| Cursor { epoch, seq })
    }

    /// Returns the name of the consumer that reads; empty if the feed has no consumer.
    pub(super) fn consumer(&self) -> &str {
        match &self.source {
            Source::Subscribe(request) => &request.consumer,
            Source::Run(_) => "",
        }
    }

    /// Acknowledges all items that were returned so far, if the feed has a consumer. After the connection broke, it makes
    /// the call again: an acknowledgement can be repeated.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(super) async fn acknowledge(&mut self) -> Result<(), Failure> {
        let (Some(header), Some(cursor)) = (&self.header, self.cursor()) else {
            return Ok(());
        };
        if self.consumer().is_empty() || self.acked >= Some(cursor.seq) {
            return Ok(());
        }
        let seq = cursor.seq;
        let request = AckRequest {
            r#loop: Some(LoopRef {
                r#ref: Some(loop_ref::Ref::LoopId(header.loop_id)),
            }),
            consumer: self.consumer().to_owned(),
            cursor: Some(cursor),
            ..AckRequest::default()
        };
        while let Err(status) = self.session.events().ack(request.clone()).await {
            self.back_off(&status).await?;
        }
        self.acked = Some(seq);
        self.failures = 0;
        Ok(())
    }

    fn record_answer(&mut self, answer: &mut Answer) -> Result<(), Failure> {
        match (&mut self.tape, &self.source, answer) {
            (Some(tape), Source::Subscribe(request), Answer::Subscribe(response)) => {
                response.padding.clear();
                tape.push(request, response)
            }
            _ => Ok(()),
        }
    }

    async fn open(&mut self) -> Result<Stream, Status> {
        if let Some(header) = &self.header {
            let (loop_id, cursor) = (header.loop_id, self.cursor());
            self.source.resume(loop_id, cursor);
        }
        match &self.source {
            Source::Subscribe(request) => {
                let stream = self.session.events().subscribe(request.clone()).await?;
                Ok(Stream::Subscribe(stream.into_inner()))
            }
            Source::Run(request) => {
                let stream = self.session.processes().run(request.clone()).await?;
                Ok(Stream::Run(stream.into_inner()))
            }
        }
    }

    fn take(&mut self, item: Item) -> Result<Option<Item>, Failure> {
        self.check_standstill(&item);
        match &item {
            Item::Header(new) => match &self.header {
                None => {
                    self.through = new.after;
                    self.header = Some(new.clone());
                }
                // The same history: the loop goes on, in the same life of the daemon or in another.
                Some(old) if old.epoch == new.epoch => {
                    if old.daemon != new.daemon {
                        complain(format_args!("the daemon was restarted; this goes on"));
                        self.header = Some(new.clone());
                    }
                    return Ok(None);
                }
                Some(_) => return Err(self.restarted()),
            },
            Item::Batch(batch) => {
                if self.through.is_some_and(|through| through != batch.after) {
                    let broken = "the daemon left events out: a batch does not begin where the one before it ended";
                    return Err(Failure::plain(broken));
                }
                self.through = Some(batch.through);
                self.failures = 0;
            }
            Item::Goodbye(_) => self.stream = None,
        }
        Ok(Some(item))
    }

    /// Looks for a standstill at the start of a stream, and when no event came.
    fn check_standstill(&mut self, item: &Item) {
        match (&mut self.standstill, item) {
            (Some(standstill), Item::Header(header)) => {
                let watch_ids = match &self.source {
                    Source::Run(_) => vec![header.watch_id],
                    Source::Subscribe(request) => {
                        let filter = request.filter.as_ref();
                        filter.map_or_else(Vec::new, |filter| filter.watch_ids.clone())
                    }
                };
                standstill.begin(self.session.clone(), header.loop_id, watch_ids);
            }
            (Some(standstill), Item::Batch(batch)) if batch.events.is_empty() => standstill.look(),
            _ => {}
        }
    }

    /// Waits before the next attempt after the connection broke.
    ///
    /// # Errors
    /// Another attempt is useless: the daemon refused the request or was restarted, or there were [`ATTEMPTS_MAX`] attempts.
    async fn back_off(&mut self, status: &Status) -> Result<(), Failure> {
        self.stream = None;
        let mut failure = Failure::rpc(status);
        let gone = ["LOOP_NOT_FOUND", "WATCH_NOT_FOUND", "CURSOR_OUT_OF_RANGE"];
        if gone.contains(&failure.reason.as_str())
            && let Some(header) = &self.header
        {
            let mut admin = self.session.admin();
            let info = admin.get_server_info(GetServerInfoRequest {}).await;
            match answer(info) {
                Ok(info) if header.daemon == (info.instance.clone(), info.life) => {
                    return Err(failure);
                }
                Ok(_) => return Err(self.restarted()),
                // The connection broke again.
                Err(broken) => failure = broken,
            }
        }
        if !failure.lost || self.failures >= ATTEMPTS_MAX {
            return Err(failure);
        }
        let wait = WAIT_FIRST.saturating_mul(1 << self.failures).min(WAIT_MAX);
        self.failures += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Returns the failure for a stream whose daemon was restarted.
    fn restarted(&self) -> Failure {
        let restarted = "the daemon was restarted";
        match &self.source {
            Source::Subscribe(_) => Failure::plain(format!(
                "{restarted}: it no longer has the events of this loop"
            )),
            Source::Run(request) => {
                let unknown =
                    format_args!("{restarted}: whether the process still runs is not known");
                Failure::new(&request.name, unknown)
            }
        }
    }
}

/// Subscribes to the ends of these processes, and to no other events of them. `first` is the oldest of the processes: the
/// subscription begins when it was added.
pub(super) fn end_feed(
    session: &Session,
    of: Option<LoopRef>,
    first: &Watch,
    watch_ids: Vec<u64>,
) -> Feed {
    let added = first.added.clone().unwrap_or_default();
    let request = SubscribeRequest {
        r#loop: of,
        start: Some(subscribe_request::Start::After(added)),
        on_gap: OnGap::Skip.into(),
        filter: Some(Filter {
            watch_ids,
            kinds: vec![EventKind::Exited.into(), EventKind::Closed.into()],
            ..Filter::default()
        }),
        ..SubscribeRequest::default()
    };
    Feed::new(session.clone(), Source::Subscribe(request))
}

/// Returns the failure for a consumer that this feed can no longer read as; `None` if the stream ended for another reason.
pub(super) fn consumer_lost(consumer: &str, goodbye: &Goodbye) -> Option<Failure> {
    let (what, advice) = match goodbye.reason() {
        GoodbyeReason::TakenOver => (
            "another reader has taken it over",
            "each reader needs a --consumer of its own",
        ),
        GoodbyeReason::ConsumerDeleted => (
            "it was deleted",
            "`evloopctl consumer create` makes a new one",
        ),
        _ => return None,
    };
    Some(Failure::new(format!("consumer {consumer}"), what).advice(advice))
}

/// Returns the failure for a stream that the daemon ended early; `None` if it is complete.
pub(super) fn cut_short(goodbye: &Goodbye) -> Option<Failure> {
    let reason = match goodbye.reason() {
        GoodbyeReason::Done => return None,
        GoodbyeReason::Shutdown => "the daemon is shutting down",
        GoodbyeReason::LoopClosed => "the loop was closed",
        GoodbyeReason::TakenOver => "another reader has taken the consumer over",
        GoodbyeReason::ConsumerDeleted => "the consumer was deleted",
        GoodbyeReason::Unspecified => "the daemon gave no reason",
    };
    Some(Failure::new("the stream of events ended", reason))
}

#[cfg(test)]
mod tests;
