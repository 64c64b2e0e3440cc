//! A stream of events that comes back after a broken connection, where it was.

use std::time::Duration;

use tonic::{Status, Streaming};

use super::failure::Failure;
use super::session::Session;
use crate::proto::{
    Batch, Cursor, Goodbye, GoodbyeReason, OnGap, RunRequest, RunResponse, SubscribeRequest,
    SubscribeResponse, run_response, subscribe_request, subscribe_response,
};

/// Attempts to get a broken stream back, and the waits between them: about 9 s in all.
const ATTEMPTS_MAX: u32 = 8;
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Which stream.
#[derive(Debug)]
pub(super) enum Source {
    /// Events of a loop.
    Subscribe(SubscribeRequest),
    /// Events of one process, by name: after the first answer it is only ever joined.
    Run(RunRequest),
}

impl Source {
    /// From the second attempt on: nothing is started, and nothing is seen twice.
    fn resume(&mut self, after: Option<Cursor>) {
        match self {
            Self::Subscribe(request) => {
                if let Some(cursor) = after {
                    request.start = Some(subscribe_request::Start::After(cursor));
                    request.set_on_gap(OnGap::Skip);
                }
            }
            Self::Run(request) => {
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

impl Stream {
    async fn next(&mut self) -> Result<Option<Item>, Status> {
        Ok(match self {
            Self::Subscribe(stream) => loop {
                let Some(message) = stream.message().await?.and_then(|m| m.message) else {
                    break None;
                };
                if let Some(item) = of_loop(message) {
                    break Some(item);
                }
            },
            Self::Run(stream) => stream
                .message()
                .await?
                .and_then(|m| m.message)
                .map(of_process),
        })
    }
}

fn of_loop(message: subscribe_response::Message) -> Option<Item> {
    Some(match message {
        subscribe_response::Message::Header(h) => Item::Header(Header {
            instance: h.instance,
            loop_id: h.loop_id,
            epoch: h.epoch,
            ..Header::default()
        }),
        subscribe_response::Message::Batch(batch) => Item::Batch(batch),
        subscribe_response::Message::Goodbye(goodbye) => Item::Goodbye(goodbye),
        // Nobody here asks for one.
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
    /// The `through` of the last batch.
    through: Option<u64>,
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
            failures: 0,
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
                Ok(Some(item)) => {
                    if let Some(item) = self.take(item)? {
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

    /// Where to go on from; none before the first batch.
    pub(super) fn cursor(&self) -> Option<Cursor> {
        let epoch = self.header.as_ref()?.epoch.clone();
        self.through.map(|seq| Cursor { epoch, seq })
    }

    async fn open(&mut self) -> Result<Stream, Status> {
        if self.header.is_some() {
            self.source.resume(self.cursor());
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
                None => self.header = Some(new.clone()),
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
