//! A stream of events that comes back after a broken connection, where it was.

use std::time::Duration;

use tonic::{Status, Streaming};

use super::failure::Failure;
use super::session::{Session, answer};
use super::standstill::{self, Standstill};
use crate::proto::{
    AckRequest, Batch, Cursor, EventKind, Filter, GetServerInfoRequest, Goodbye, GoodbyeReason,
    LoopRef, OnGap, RunRequest, RunResponse, SubscribeRequest, SubscribeResponse, Watch, loop_ref,
    run_response, subscribe_request, subscribe_response,
};

mod tape;

pub(super) use tape::Tape;

/// Attempts to get a broken stream back, and the waits between them: about 9 s in all.
const ATTEMPTS_MAX: u32 = 8;
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Which stream.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a command has one of them")]
pub(super) enum Source {
    /// Events of a loop.
    Subscribe(SubscribeRequest),
    /// Events of one process, by name: after the first answer it is only ever joined.
    Run(RunRequest),
}

impl Source {
    /// From the second attempt on: the same loop, whatever the context's is by now; nothing is
    /// started, and nothing is seen twice.
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

/// What a stream begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Of the daemon.
    instance: String,
    pub(super) loop_id: u64,
    pub(super) epoch: String,
    /// The process; 0 for a subscription.
    pub(super) watch_id: u64,
    /// The process was there already.
    pub(super) existed: bool,
    /// Of a subscription: where the first batch begins.
    after: Option<u64>,
}

/// One thing out of a feed.
#[derive(Debug)]
pub(super) enum Item {
    /// Once, first.
    Header(Header),
    Batch(Batch),
    /// Once, last.
    Goodbye(Goodbye),
}

enum Stream {
    Subscribe(Streaming<SubscribeResponse>),
    Run(Streaming<RunResponse>),
}

/// A message as it came.
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

/// Nothing if it is not for us: a snapshot, which nobody here asks for, or a message newer
/// than this program.
fn item(answer: Answer) -> Option<Item> {
    match answer {
        Answer::Subscribe(response) => response.message.and_then(of_loop),
        Answer::Run(response) => response.message.map(of_process),
    }
}

fn of_loop(message: subscribe_response::Message) -> Option<Item> {
    Some(match message {
        subscribe_response::Message::Header(h) => Item::Header(Header {
            instance: h.instance,
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
            instance: h.instance,
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

/// Events, exactly once and in order, over as many connections as it takes.
pub(super) struct Feed {
    session: Session,
    source: Source,
    stream: Option<Stream>,
    header: Option<Header>,
    /// The `through` of the last batch; before it, where the first one begins, if that is known.
    through: Option<u64>,
    /// Acknowledged by us, of a consumer.
    acked: Option<u64>,
    tape: Option<Tape>,
    /// Says why nothing comes, if that is wanted.
    standstill: Option<Standstill>,
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

    /// Records a subscription, each answer before [`Self::next`] gives it.
    pub(super) fn record(self, tape: Tape) -> Self {
        let tape = Some(tape);
        Self { tape, ..self }
    }

    /// Asks for an empty batch whenever nothing came for [`standstill::HEARTBEAT`].
    pub(super) fn with_heartbeat(mut self) -> Self {
        let heartbeat = prost_types::Duration::try_from(standstill::HEARTBEAT).ok();
        match &mut self.source {
            Source::Subscribe(request) => request.heartbeat = heartbeat,
            Source::Run(request) => request.heartbeat = heartbeat,
        }
        self
    }

    /// Says on stderr why nothing comes, when the loop does not run or a consumer holds its journal full.
    pub(super) fn telling_standstill(self) -> Self {
        let standstill = Some(Standstill::default());
        Self {
            standstill,
            ..self.with_heartbeat()
        }
    }

    /// The next item. Cancelling it loses nothing.
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
                Ok(Some(answer)) => {
                    self.keep(&answer)?;
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

    /// Where to go on from; none before that is known.
    pub(super) fn cursor(&self) -> Option<Cursor> {
        let epoch = self.header.as_ref()?.epoch.clone();
        self.through.map(|seq| Cursor { epoch, seq })
    }

    /// The consumer that reads; empty if none does.
    pub(super) fn consumer(&self) -> &str {
        match &self.source {
            Source::Subscribe(request) => &request.consumer,
            Source::Run(_) => "",
        }
    }

    /// Everything given so far is dealt with: acknowledges it, if a consumer reads.
    ///
    /// A broken connection is no failure, here as in [`Self::next`]: an acknowledgement can be repeated.
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

    fn keep(&mut self, answer: &Answer) -> Result<(), Failure> {
        match (&mut self.tape, &self.source, answer) {
            (Some(tape), Source::Subscribe(request), Answer::Subscribe(response)) => {
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
        self.look_after(&item);
        match &item {
            Item::Header(new) => match &self.header {
                None => {
                    self.through = new.after;
                    self.header = Some(new.clone());
                }
                Some(old) if (&old.instance, &old.epoch) == (&new.instance, &new.epoch) => {
                    return Ok(None);
                }
                Some(_) => return Err(self.restarted()),
            },
            Item::Batch(batch) => {
                if self.through.is_some_and(|through| through != batch.after) {
                    let broken = "the daemon's batches do not join";
                    return Err(Failure::plain(broken));
                }
                self.through = Some(batch.through);
                self.failures = 0;
            }
            Item::Goodbye(_) => self.stream = None,
        }
        Ok(Some(item))
    }

    /// Looks at the loop at the start of a stream, and when nothing came.
    fn look_after(&mut self, item: &Item) {
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

    /// After a broken connection: waits before the next attempt, or gives up.
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
                Ok(info) if info.instance == header.instance => return Err(failure),
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

    /// The daemon that answers now is not the one that began the stream.
    fn restarted(&self) -> Failure {
        let new = "the daemon was restarted, and the new one does not know";
        match &self.source {
            Source::Subscribe(_) => {
                Failure::plain(format!("{new} the events of this loop's history"))
            }
            Source::Run(request) => {
                let unknown =
                    format_args!("{new} this process: whether it still runs is not known");
                Failure::new(&request.name, unknown)
            }
        }
    }
}

/// Subscribes to the ends of these processes and to nothing else of them, from the time when `first`, the oldest of
/// them, was added.
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

/// What became of a consumer that is no longer ours.
pub(super) fn ousted(consumer: &str, goodbye: &Goodbye) -> Option<Failure> {
    let (what, advice) = match goodbye.reason() {
        GoodbyeReason::TakenOver => (
            "somebody else reads as it now",
            "each reader needs a --consumer of its own",
        ),
        GoodbyeReason::ConsumerDeleted => (
            "it was deleted",
            "`evloopctl consumer create` makes it again",
        ),
        _ => return None,
    };
    Some(Failure::new(format!("consumer {consumer}"), what).advice(advice))
}

/// A stream that the daemon ended before what it was about did.
pub(super) fn cut_short(goodbye: &Goodbye) -> Option<Failure> {
    let reason = match goodbye.reason() {
        GoodbyeReason::Done => return None,
        GoodbyeReason::Shutdown => "the daemon is ending",
        GoodbyeReason::LoopClosed => "the loop was closed",
        GoodbyeReason::TakenOver => "somebody else reads as this consumer now",
        GoodbyeReason::ConsumerDeleted => "the consumer was deleted",
        GoodbyeReason::Unspecified => "the daemon ended the stream",
    };
    Some(Failure::new("stream", reason))
}

#[cfg(test)]
mod tests;
