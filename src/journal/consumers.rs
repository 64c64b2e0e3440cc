//! Consumers: named readers whose acknowledged cursor the journal keeps. Events after that cursor
//! are held for them.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;

use super::monitor::WaiterId;
use super::recovery::{ACKED, CONSUMER, no_memory};
use crate::clock::{Now, nanos};
use crate::error::{Error, Result};
use crate::faults::{self, Point};
use crate::proto::state::KeptConsumer;
use crate::state::{Cell, Entry, Records};

/// The reader that reads as a consumer now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) waiter: WaiterId,
    /// Tells this reader apart from others that have had the same id.
    pub(super) number: u64,
}

#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) acked: u64,
    pub(super) ttl: Duration,
    pub(super) holder: Option<Holder>,
    /// When the consumer is deleted unless a reader holds or uses it, monotonic nanoseconds.
    expires: u64,
    /// When the consumer was made, realtime nanoseconds.
    created: u64,
    takeovers: u64,
    /// What later lives find of it.
    kept: Option<(Entry, Cell<1>)>,
}

impl Consumer {
    /// Records that all up to `seq` is acknowledged; an older one changes nothing.
    pub(super) fn acknowledge(&mut self, seq: u64) {
        if seq > self.acked {
            self.acked = seq;
            if let Some((_, acked)) = &self.kept {
                faults::point(Point::BeforeAck);
                acked.set(seq + 1, [seq]);
                faults::point(Point::AckKept);
            }
        }
    }

    fn message(&self, name: &str) -> Vec<u8> {
        let kept = KeptConsumer {
            name: name.to_owned(),
            ttl: prost_types::Duration::try_from(self.ttl).ok(),
            created: self.created,
        };
        kept.encode_to_vec()
    }

    fn rest(&mut self, now: Now) {
        self.expires = now.monotonic.saturating_add(nanos(self.ttl));
    }
}

/// Has later lives not find a consumer.
fn forget(consumer: &mut Consumer, records: &mut Records) {
    if let Some((entry, acked)) = consumer.kept.take() {
        // In this order: how far one has acknowledged means nothing without it.
        records.free_now(entry);
        records.free_now(acked.into_entry());
    }
}

/// The figures of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerStatus {
    /// Its name.
    pub name: String,
    /// The sequence number up to which it has acknowledged.
    pub acked: u64,
    /// The number of events after `acked`, lost ones included.
    pub lag_events: u64,
    /// The bytes of the events after `acked` that the journal holds.
    pub lag_bytes: u64,
    /// The number of events after `acked` that the journal holds no longer.
    pub lost_events: u64,
    /// Whether a reader holds the consumer now.
    pub held: bool,
    /// How long the consumer is kept while no reader holds it.
    pub ttl: Duration,
    /// The time left until it is deleted; `None` while a reader holds it.
    pub expires_in: Option<Duration>,
    /// When the consumer was made, realtime nanoseconds.
    pub created: u64,
    /// How often a reader took the consumer over from another.
    pub takeovers: u64,
}

/// All consumers of a journal.
#[derive(Debug)]
pub(super) struct Consumers {
    by_name: BTreeMap<String, Consumer>,
    max: usize,
    ttl: Duration,
    holders: u64,
    /// The number of the newest consumer that later lives find.
    kept: u64,
}

impl Consumers {
    pub(super) const fn new(max: usize, ttl: Duration) -> Self {
        Self {
            by_name: BTreeMap::new(),
            max,
            ttl,
            holders: 0,
            kept: 0,
        }
    }

    /// Adds a consumer of an earlier life.
    pub(super) fn restore(
        &mut self,
        found: KeptConsumer,
        entry: Entry,
        acked: Cell<1>,
        newest: u64,
        now: Now,
    ) {
        self.kept = self.kept.max(entry.id());
        let ttl = found.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
        let mut consumer = Consumer {
            acked: acked.get()[0].min(newest),
            ttl: ttl.unwrap_or(self.ttl),
            holder: None,
            expires: 0,
            created: found.created,
            takeovers: 0,
            kept: Some((entry, acked)),
        };
        consumer.rest(now);
        self.by_name.insert(found.name, consumer);
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Returns the lowest acknowledged sequence number; `None` without consumers.
    pub(super) fn floor(&self) -> Option<u64> {
        self.by_name.values().map(|consumer| consumer.acked).min()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Consumer> {
        self.by_name.get(name)
    }

    pub(super) fn find(&mut self, name: &str) -> Result<&mut Consumer> {
        let consumer = self.by_name.get_mut(name);
        consumer.ok_or_else(|| Error::ConsumerNotFound {
            name: name.to_owned(),
        })
    }

    /// Adds a consumer. No consumer of that name may exist.
    pub(super) fn create(
        &mut self,
        name: &str,
        acked: u64,
        ttl: Option<Duration>,
        now: Now,
        records: Option<&mut Records>,
    ) -> Result<()> {
        if self.by_name.len() >= self.max {
            return Err(Error::Limit {
                limit: "limits.consumers",
                value: self.max as u64,
                hint: "delete consumers that nobody needs any more".into(),
            });
        }
        let ttl = ttl.unwrap_or(self.ttl);
        let mut consumer = Consumer {
            acked,
            ttl,
            holder: None,
            expires: 0,
            created: now.realtime,
            takeovers: 0,
            kept: None,
        };
        if let Some(records) = records {
            self.kept += 1;
            let mut keep = || {
                let cell = records.cell_now(acked + 1, ACKED, self.kept, [acked])?;
                faults::point(Point::ConsumerHalfKept);
                let entry = records.put_now(CONSUMER, self.kept, &consumer.message(name))?;
                Ok((entry, cell))
            };
            consumer.kept = Some(keep().map_err(no_memory)?);
            faults::point(Point::ConsumerKept);
        }
        consumer.rest(now);
        self.by_name.insert(name.to_owned(), consumer);
        Ok(())
    }

    /// Makes the reader with this id the holder. Returns the new holder and the one before, if any.
    pub(super) fn hold(
        &mut self,
        name: &str,
        waiter: WaiterId,
        ttl: Option<Duration>,
        records: Option<&mut Records>,
    ) -> Result<(Holder, Option<Holder>)> {
        self.holders += 1;
        let holder = Holder {
            waiter,
            number: self.holders,
        };
        let consumer = self.find(name)?;
        let ttl = ttl.unwrap_or(consumer.ttl);
        if std::mem::replace(&mut consumer.ttl, ttl) != ttl
            && let Some(records) = records
        {
            let message = consumer.message(name);
            if let Some((entry, _)) = &mut consumer.kept {
                records.replace_now(entry, &message).map_err(no_memory)?;
            }
        }
        let before = consumer.holder.replace(holder);
        consumer.takeovers += u64::from(before.is_some());
        Ok((holder, before))
    }

    /// Ends `holder`'s hold on the consumer, unless another reader holds it by now.
    pub(super) fn release(&mut self, name: &str, holder: Holder, now: Now) {
        if let Some(consumer) = self.by_name.get_mut(name)
            && consumer.holder == Some(holder)
        {
            consumer.holder = None;
            consumer.rest(now);
        }
    }

    /// Starts the time to live again: the consumer was used without being held.
    pub(super) fn touch(&mut self, name: &str, now: Now) {
        if let Some(consumer) = self.by_name.get_mut(name) {
            consumer.rest(now);
        }
    }

    pub(super) fn delete(&mut self, name: &str, records: Option<&mut Records>) -> Result<Consumer> {
        let consumer = self.by_name.remove(name);
        let mut consumer = consumer.ok_or_else(|| Error::ConsumerNotFound {
            name: name.to_owned(),
        })?;
        if let Some(records) = records {
            forget(&mut consumer, records);
        }
        Ok(consumer)
    }

    /// Returns when the next consumer is to be deleted, monotonic nanoseconds.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        let idle = self.by_name.values().filter(|c| c.holder.is_none());
        idle.map(|consumer| consumer.expires).min()
    }

    /// Deletes the consumers whose time is over and returns their names.
    pub(super) fn expire(&mut self, now: Now, mut records: Option<&mut Records>) -> Vec<String> {
        let mut expired = Vec::new();
        self.by_name.retain(|name, consumer| {
            let over = consumer.holder.is_none() && consumer.expires <= now.monotonic;
            if over {
                expired.push(name.clone());
                if let Some(records) = &mut records {
                    forget(consumer, records);
                }
            }
            !over
        });
        expired
    }

    /// Returns the names after `after`, in order.
    pub(super) fn names_after(&self, after: &str) -> impl Iterator<Item = &str> {
        let names = self.by_name.keys().map(String::as_str);
        names.skip_while(move |name| *name <= after)
    }

    pub(super) fn status(&self, name: &str, now: Now) -> Option<ConsumerStatus> {
        let consumer = self.by_name.get(name)?;
        let left = consumer.expires.saturating_sub(now.monotonic);
        Some(ConsumerStatus {
            name: name.to_owned(),
            acked: consumer.acked,
            lag_events: 0,
            lag_bytes: 0,
            lost_events: 0,
            held: consumer.holder.is_some(),
            ttl: consumer.ttl,
            expires_in: consumer
                .holder
                .is_none()
                .then(|| Duration::from_nanos(left)),
            created: consumer.created,
            takeovers: consumer.takeovers,
        })
    }
}
