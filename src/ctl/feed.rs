//! A stream of events that comes back after a broken connection, where it was.

use std::path::PathBuf;
use std::time::Duration;

use tonic::{Status, Streaming};

use super::failure::Failure;
use super::session::Session;
use crate::history::file::Writer;
use crate::proto::{
    AckRequest, Batch, Cursor, Goodbye, GoodbyeReason, LoopRef, OnGap, RunRequest, RunResponse,
    SubscribeRequest, SubscribeResponse, loop_ref, run_response, subscribe_request,
    subscribe_response,
};

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

    const fn what(&self) -> &'static str {
        match self {
            Self::Subscribe(_) => "subscribe",
            Self::Run(_) => "run",
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

/// Where a subscription is recorded, answer by answer.
#[derive(Debug)]
pub(super) struct Tape {
    path: PathBuf,
    /// A file that exists gives way.
    replace: bool,
    /// From the first answer on, so that a refused subscription leaves no file.
    writer: Option<Writer>,
}

impl Tape {
    pub(super) const fn new(path: PathBuf, replace: bool) -> Self {
        Self {
            path,
            replace,
            writer: None,
        }
    }

    fn push(
        &mut self,
        request: &SubscribeRequest,
        response: &SubscribeResponse,
    ) -> Result<(), Failure> {
        let writer = match self.writer.take() {
            Some(writer) => Ok(writer),
            None => Writer::create(&self.path, self.replace, request),
        };
        let pushed = writer.and_then(|mut writer| {
            writer.push(response)?;
            self.writer = Some(writer);
            Ok(())
        });
        let what = format!("--record {}", self.path.display());
        pushed.map_err(|error| Failure::new(what, error))
    }
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
            failures: 0,
        }
    }

    /// Records a subscription, each answer before [`Self::next`] gives it.
    pub(super) fn record(self, tape: Tape) -> Self {
        let tape = Some(tape);
        Self { tape, ..self }
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
                    return Err(Failure::new(self.source.what(), broken));
                }
                self.through = Some(batch.through);
                self.failures = 0;
            }
            Item::Goodbye(_) => self.stream = None,
        }
        Ok(Some(item))
    }

    /// After a broken connection: waits before the next attempt, or gives up.
    async fn back_off(&mut self, status: &Status) -> Result<(), Failure> {
        self.stream = None;
        let failure = Failure::rpc(self.source.what(), status);
        let gone = ["LOOP_NOT_FOUND", "WATCH_NOT_FOUND", "CURSOR_OUT_OF_RANGE"];
        if self.header.is_some() && gone.contains(&failure.reason.as_str()) {
            return Err(self.restarted());
        }
        if !failure.lost || self.failures >= ATTEMPTS_MAX {
            return Err(failure);
        }
        let wait = WAIT_FIRST.saturating_mul(1 << self.failures).min(WAIT_MAX);
        self.failures += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn restarted(&self) -> Failure {
        let lost = "the daemon was restarted, and what it ran and recorded ended with it";
        Failure::new(self.source.what(), lost)
    }
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
