//! Consumers: named readers whose acknowledged cursor the journal keeps. Events after that cursor
//! are held for them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::monitor::WaiterId;
use crate::clock::{Now, nanos};
use crate::error::{Error, Result};

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
}

impl Consumer {
    fn rest(&mut self, now: Now) {
        self.expires = now.monotonic.saturating_add(nanos(self.ttl));
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
}

impl Consumers {
    pub(super) const fn new(max: usize, ttl: Duration) -> Self {
        Self {
            by_name: BTreeMap::new(),
            max,
            ttl,
            holders: 0,
        }
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
        };
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
    ) -> Result<(Holder, Option<Holder>)> {
        self.holders += 1;
        let holder = Holder {
            waiter,
            number: self.holders,
        };
        let consumer = self.find(name)?;
        consumer.ttl = ttl.unwrap_or(consumer.ttl);
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

    pub(super) fn delete(&mut self, name: &str) -> Result<Consumer> {
        let consumer = self.by_name.remove(name);
        consumer.ok_or_else(|| Error::ConsumerNotFound {
            name: name.to_owned(),
        })
    }

    /// Returns when the next consumer is to be deleted, monotonic nanoseconds.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        let idle = self.by_name.values().filter(|c| c.holder.is_none());
        idle.map(|consumer| consumer.expires).min()
    }

    /// Deletes the consumers whose time is over and returns their names.
    pub(super) fn expire(&mut self, now: Now) -> Vec<String> {
        let mut expired = Vec::new();
        self.by_name.retain(|name, consumer| {
            let over = consumer.holder.is_none() && consumer.expires <= now.monotonic;
            if over {
                expired.push(name.clone());
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
