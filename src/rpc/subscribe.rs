//! The beginning of Subscribe and Attach: turns a request into a checked stream.

use std::sync::Arc;
use std::time::Duration;

use super::snapshot::Unread;
use super::stream::{Acks, EventStream, Parts, Window};
use super::{Api, Requester, convert};
use crate::error::{Error, Result};
use crate::event::Cursor;
use crate::event_loop::Handle;
use crate::journal::{Filter, Reader, Start};
use crate::policy::check_loop_name;
use crate::proto::{StartAt, SubscribeHeader, SubscribeRequest, Watch, subscribe_request};

/// Bytes of events in a batch, if the subscriber names none.
const BATCH_BYTES: u32 = 64 * 1024;
/// Bytes that may be delivered and not acknowledged, if the subscriber names none.
const IN_FLIGHT: u32 = 256 * 1024;
const IN_FLIGHT_MIN: u32 = 4 * 1024;
const IN_FLIGHT_MAX: u32 = 64 << 20;
const HEARTBEAT: Duration = Duration::from_secs(15);
const HOUR: Duration = Duration::from_secs(3600);
const LINGER_MAX: Duration = Duration::from_secs(1);
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) fn heartbeat(given: Option<prost_types::Duration>) -> Result<Duration> {
    let bounds = Duration::from_millis(100)..=HOUR;
    convert::duration("heartbeat", given, HEARTBEAT, bounds)
}

pub(super) fn ttl(
    field: &'static str,
    given: Option<prost_types::Duration>,
) -> Result<Option<Duration>> {
    given
        .map(|ttl| convert::duration(field, Some(ttl), TTL_MAX, TTL_MIN..=TTL_MAX))
        .transpose()
}

/// Where a subscription begins.
enum Begin {
    /// A consumer begins right after its acknowledged cursor, an observer after the newest event.
    Resume,
    At(Start),
    Snapshot,
    /// After the cursor, or with a snapshot if an event after the cursor is lost.
    AtOrSnapshot(Cursor),
}

fn begin(request: &SubscribeRequest) -> Result<Begin> {
    let on_gap = convert::on_gap(request.on_gap)?;
    let at = match &request.start {
        None => StartAt::Unspecified,
        Some(subscribe_request::Start::StartAt(at)) => StartAt::try_from(*at)
            .map_err(|_| Error::invalid("start_at", "must be NOW, OLDEST or SNAPSHOT"))?,
        Some(subscribe_request::Start::After(cursor)) => {
            let cursor = convert::cursor("after", cursor)?;
            return Ok(match on_gap {
                convert::OnGap::Snapshot => Begin::AtOrSnapshot(cursor),
                convert::OnGap::Skip => Begin::At(Start::After { cursor, skip: true }),
                convert::OnGap::Fail => Begin::At(Start::After {
                    cursor,
                    skip: false,
                }),
            });
        }
    };
    Ok(match at {
        StartAt::Unspecified => Begin::Resume,
        StartAt::Now => Begin::At(Start::Now),
        StartAt::Oldest => Begin::At(Start::Oldest),
        StartAt::Snapshot => Begin::Snapshot,
    })
}

/// What a subscription reads, and as which consumer.
struct Reading<'a> {
    on: &'a Handle,
    consumer: &'a str,
    ttl: Option<Duration>,
    filter: Filter,
}

impl Reading<'_> {
    fn reader(&self, start: Option<Start>) -> Result<Reader> {
        let (journal, filter) = (self.on.journal(), self.filter.clone());
        if self.consumer.is_empty() {
            return journal.reader(start.unwrap_or(Start::Now), filter);
        }
        journal.hold(self.consumer, start, self.ttl, filter)
    }

    /// Takes a snapshot and makes a reader that begins right after it.
    async fn snapshot(&self) -> Result<(Reader, Option<Unread>)> {
        // In a journal without history, events after the snapshot stay only while there is a
        // reader.
        let _here = self.on.journal().reader(Start::Now, Filter::default())?;
        let Filter {
            watches, labels, ..
        } = self.filter.clone();
        let wanted = move |watch: &Watch| {
            let has = |(k, v): (&String, &String)| watch.labels.get(k) == Some(v);
            (watches.is_empty() || watches.contains(&watch.watch_id)) && labels.iter().all(has)
        };
        let snapshot = self.on.snapshot(Arc::new(wanted)).await?;
        let start = Start::After {
            cursor: snapshot.cursor(),
            skip: true,
        };
        let reader = self.reader(Some(start))?;
        Ok((reader, Some(Unread::new(snapshot, self.on.view()))))
    }
}

impl Api {
    /// Makes the stream of a request. `acks` means that the stream carries acknowledgements itself.
    pub(super) async fn subscription(
        &self,
        requester: &Requester,
        request: SubscribeRequest,
        acks: bool,
    ) -> Result<(Handle, EventStream<SubscribeHeader>)> {
        let permit = self.streams.take()?;
        let begin = begin(&request)?;
        let batch_bytes = match request.max_batch_bytes {
            0 => BATCH_BYTES,
            1024..=1_048_576 => request.max_batch_bytes,
            _ => return Err(Error::invalid("max_batch_bytes", "must be 1 KiB to 1 MiB")),
        };
        let in_flight = match request.max_in_flight_bytes {
            0 => IN_FLIGHT,
            IN_FLIGHT_MIN..=IN_FLIGHT_MAX => request.max_in_flight_bytes,
            _ => {
                let allowed = "must be 4 KiB to 64 MiB";
                return Err(Error::invalid("max_in_flight_bytes", allowed));
            }
        };
        let heartbeat = heartbeat(request.heartbeat)?;
        let bounds = Duration::ZERO..=LINGER_MAX;
        let linger = convert::duration("linger", request.linger, Duration::ZERO, bounds)?;
        let consumer = request.consumer.as_str();
        if !consumer.is_empty() {
            check_loop_name("consumer", consumer)?;
        } else if request.auto_ack {
            return Err(Error::invalid(
                "auto_ack",
                "must not be set without consumer",
            ));
        } else if request.consumer_ttl.is_some() {
            return Err(Error::invalid(
                "consumer_ttl",
                "must not be set without consumer",
            ));
        }
        let ttl = ttl("consumer_ttl", request.consumer_ttl)?;
        let filter = convert::filter(request.filter)?;
        let on = self.on(requester, request.r#loop, true)?;
        if !consumer.is_empty() {
            convert::can_consume("consumer", &on)?;
        }
        let reading = Reading {
            on: &on,
            consumer,
            ttl,
            filter,
        };
        let (reader, snapshot) = match begin {
            Begin::Resume => (reading.reader(None)?, None),
            Begin::At(start) => (reading.reader(Some(start))?, None),
            Begin::Snapshot => reading.snapshot().await?,
            Begin::AtOrSnapshot(cursor) => {
                let start = Start::After {
                    cursor,
                    skip: false,
                };
                match reading.reader(Some(start)) {
                    Err(Error::CursorOutOfRange { .. }) => reading.snapshot().await?,
                    reader => (reader?, None),
                }
            }
        };
        let window = (acks || !consumer.is_empty()) && !request.auto_ack;
        let header = SubscribeHeader {
            instance: self.identity.instance.clone(),
            life: self.identity.life_number(),
            boot_id: self.identity.boot_id.clone(),
            loop_id: on.id(),
            loop_name: on.full_name().to_owned(),
            epoch: on.journal().epoch().to_string(),
            after: reader.after(),
            max_in_flight_bytes: if window { in_flight } else { 0 },
            snapshot: snapshot.is_some(),
        };
        let stream = EventStream::new(Parts {
            header,
            snapshot,
            quota: Arc::clone(&requester.quota),
            acks: if request.auto_ack {
                Acks::Auto
            } else if window {
                Acks::Window(Window::new(in_flight.into(), reader.after()))
            } else {
                Acks::None
            },
            reader,
            registry: Arc::clone(&self.registry),
            batch_bytes: batch_bytes as usize,
            heartbeat,
            linger,
            until_closed: false,
            done: false,
            permit,
        });
        Ok((on, stream))
    }
}
