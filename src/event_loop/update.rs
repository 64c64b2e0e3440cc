//! Changes watches in place.

use std::time::Duration;

use super::command::Command;
use super::commands::WatchName;
use super::record::Encoded;
use super::{EventLoop, Handle};
use crate::error::{Error, Result};
use crate::event::{Cursor, Kind, Labels, UpdateCause, Updated};
use crate::journal::Room;
use crate::proto;
use crate::watch::Change;

/// The most bytes of an `Updated` beside its texts.
const UPDATED_BYTES: u64 = 256;

/// A checked change of a watch. What is `None` stays as it is.
#[derive(Debug)]
pub struct Update {
    /// The specification that the change was made from, and the whole one after it.
    pub spec: Option<Box<(proto::WatchSpec, proto::WatchSpec)>>,
    /// The change for the watch's kind, if the specification changes.
    pub change: Option<Change>,
    /// The new labels.
    pub labels: Option<Labels>,
    /// The new time for which the watch stays once it is closed; within, `None` means the policy's.
    pub finished_ttl: Option<Option<Duration>>,
    /// The names of the fields that the specification changes in.
    pub fields: Vec<String>,
    /// The id of the request, repeated in `Updated`.
    pub request_id: String,
}

/// The result of an update.
#[derive(Debug)]
pub enum UpdateOutcome {
    /// The watch as it is now, and the cursor of its `Updated` if anything changed.
    Done(Box<proto::Watch>, Option<Cursor>),
    /// Another update changed the specification meanwhile. Nothing was changed.
    Outdated,
}

/// The locks of updates. Several watches share one.
pub(super) type Turns = [tokio::sync::Mutex<()>; 8];

impl Handle {
    /// Waits until no other update of this watch, by its id, is under way. While all updates of a watch
    /// hold what this returns, none of them is outdated.
    pub async fn turn_to_update(&self, watch: u64) -> tokio::sync::MutexGuard<'_, ()> {
        let turns = &self.shared().updates;
        let index = usize::try_from(watch).unwrap_or_default() % turns.len();
        turns[index].lock().await
    }

    /// Changes a watch in place.
    ///
    /// # Errors
    /// The watch is unknown or closed, the change is refused, or the journal has no room for its event.
    pub async fn update(&self, name: WatchName, update: Update) -> Result<UpdateOutcome> {
        let update = Box::new(update);
        self.call(|reply| Command::Update {
            name,
            update,
            reply,
        })
        .await
    }
}

impl EventLoop {
    /// Changes a watch.
    pub(super) fn update(&mut self, name: &WatchName, update: Update) -> Result<UpdateOutcome> {
        let slot = self.find_open(name)?;
        let record = &self.watches[slot];
        if record.control.end.is_some() {
            return Err(Error::WatchClosed { watch: record.id() });
        }
        if let Some(specs) = &update.spec
            && record.spec.decode().as_ref() != Some(&specs.0)
        {
            return Ok(UpdateOutcome::Outdated);
        }
        let Update {
            spec,
            change,
            labels,
            finished_ttl,
            mut fields,
            request_id,
        } = update;
        let before = record.labels().cloned().unwrap_or_default();
        let labels = labels.filter(|labels| *labels != before);
        let usual = self.shared.policy.finished_ttl;
        let ttl = |ttl: Option<Duration>| ttl.unwrap_or(usual);
        let finished_ttl = finished_ttl.filter(|given| ttl(*given) != ttl(record.finished_ttl()));
        fields.extend(labels.is_some().then(|| "labels".to_owned()));
        fields.extend(finished_ttl.is_some().then(|| "finished_ttl".to_owned()));
        if fields.is_empty() {
            let watch =
                Box::new(record.view(&self.shared.journal, &*self.driver, self.shared.survives));
            return Ok(UpdateOutcome::Done(watch, None));
        }
        let texts: usize = fields.iter().map(|field| field.len() + 4).sum();
        let room = Room::event(0).bytes + UPDATED_BYTES + (texts + request_id.len()) as u64;
        self.outbox.check_room(Room {
            events: 1,
            bytes: room,
        })?;
        self.keep_for_snapshots(slot);
        if let Some(change) = change {
            let busy = Error::Internal("the watch is in another call");
            self.with_watch(slot, |watch, cx| watch.change(cx, change))
                .unwrap_or(Err(busy))?;
        }
        let journal = &self.shared.journal;
        let record = &mut self.watches[slot];
        if let Some(specs) = spec {
            record.spec = Encoded::new(Some(&specs.1));
        }
        if let Some(labels) = labels {
            let set = journal.intern_labels(&labels);
            let before = std::mem::replace(&mut record.control.about.labels, set);
            self.outbox.release_labels(before);
            record.rare_or_insert().labels = labels;
        }
        if let Some(ttl) = finished_ttl {
            record.rare_or_insert().finished_ttl = ttl;
        }
        let mut updated = Updated {
            request_id,
            cause: UpdateCause::Request.into(),
            fields,
            ..Updated::default()
        };
        if let Some(proto::watch::Status::Timer(timer)) = record.status(&*self.driver) {
            (updated.next_ns, updated.time_zone) = (timer.next_ns, timer.time_zone);
        }
        let about = record.control.about;
        let seq = self.outbox.push(self.now, about, Kind::Updated(updated));
        self.keep_watch_as_it_is(slot);
        let journal = &self.shared.journal;
        let watch = Box::new(self.watches[slot].view(journal, &*self.driver, self.shared.survives));
        Ok(UpdateOutcome::Done(watch, Some(journal.cursor(seq))))
    }
}
