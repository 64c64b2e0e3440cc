//! The life of a watch on its loop: insert, call, close, remove.

use std::sync::Arc;

use super::record::{Encoded, Ending, Record, Removal, TakenFd};
use super::{EventLoop, Lifetime, LifetimeEnd, Registration};
use crate::driver::OpId;
use crate::event::{Accepted, Added, CloseReason, Closed, Kind, Removed, largest};
use crate::faults::{self, Point};
use crate::journal::{About, Room};
use crate::kinds::WatchKind;
use crate::watch::{
    Adoption, Afterwards, Alarm, Context, ControlBlock, End, ONE_BY_ONE, Teardown, Watch,
};

impl EventLoop {
    /// Calls an open watch, then carries out what it requested: its alarm, accepted connections,
    /// its end. Returns `None` without a call if the watch is closed.
    pub(super) fn with_watch<R>(
        &mut self,
        slot: usize,
        action: impl FnOnce(&mut dyn Watch, &mut Context<'_>) -> R,
    ) -> Option<R> {
        self.keep_for_snapshots(slot);
        if self.watches.get(slot)?.is_closed() {
            return None;
        }
        let polled = self.is_polled();
        let result = self.call(slot, polled, action)?;
        self.adopt(slot);
        self.close_if_ended(slot);
        Some(result)
    }

    /// Sets or removes the alarm of a watch.
    fn set_alarm(&mut self, slot: usize, alarm: Option<Alarm>) {
        let record = &mut self.watches[slot];
        let before = record.alarm.take();
        let key = record.control.key;
        record.alarm = alarm.map(|alarm| self.timers.set(alarm, key));
        if let Some(before) = before {
            let watches = &self.watches;
            self.timers.mark_stale(before, |key, id| {
                let record = watches.get(key.slot as usize);
                record.is_some_and(|r| r.alarm == Some(id))
            });
        }
    }

    /// Closes the watch if its end was requested and all its operations have ended. Cancels
    /// operations that have not.
    fn close_if_ended(&mut self, slot: usize) {
        let record = &mut self.watches[slot];
        if !record.closing && record.control.end.is_some() {
            record.closing = true;
            self.kept_changes(slot);
            let teardown = self.with_watch(slot, |watch, cx| watch.closing(cx));
            if teardown != Some(Teardown::Now) {
                return;
            }
            if let Some(record) = self.watches.get_mut(slot) {
                record.control.finished = true;
            }
        }
        let Some(record) = self.watches.get_mut(slot) else {
            return;
        };
        if !record.closing || record.is_closed() || !record.control.finished {
            return;
        }
        if record.control.sources.live().next().is_none() {
            self.watches.set_cancelling(slot, false);
            self.record_closed(slot);
        } else {
            self.watches.set_cancelling(slot, true);
            let record = &self.watches[slot];
            // Repeated for operations started meanwhile: cancelling an operation twice does
            // nothing.
            let watch = record.control.key;
            for (lane, source) in record.control.sources.live() {
                self.driver.cancel(OpId { watch, lane }, source);
            }
        }
    }

    /// Appends `Closed`, closes the sources, and replies to the commands that wait for the close.
    /// All operations of the watch have ended.
    pub(super) fn record_closed(&mut self, slot: usize) {
        // The watch may append its last events.
        let left = self.call(slot, false, |watch, cx| {
            (watch.closed(cx), watch.unaccepted(cx))
        });
        let (unsent_bytes, unaccepted_connections) = left.unwrap_or_default();
        let record = &mut self.watches[slot];
        let end = record.control.end.take();
        let end = end.map_or_else(End::completed, |end| *end);
        let closed = Closed {
            reason: end.reason.into(),
            error: end.error.as_ref().map(Into::into),
            unsent_bytes,
            failed_attempts: end.failed_attempts,
            unaccepted_connections,
        };
        let kind = Kind::Closed(closed.clone());
        let seq = self.outbox.push(self.now, record.control.about, kind);
        let ttl = record
            .finished_ttl()
            .unwrap_or(self.shared.policy.finished_ttl);
        let expires = self.now.monotonic.saturating_add(crate::clock::nanos(ttl));
        let rare = record.rare_or_insert();
        rare.ending = Some(Ending {
            closed,
            seq,
            at: self.now,
            expires,
            status: None,
        });
        let take = rare.take.take();
        let mut taken = None;
        for source in record.control.sources.take() {
            let shared = self.driver.is_shared(source);
            let Some(fd) = self.driver.detach(source) else {
                continue;
            };
            match &take {
                Some((wanted, ..)) if *wanted == source => taken = Some(fd),
                _ => self.afterwards.push(Afterwards::Close(fd, shared)),
            }
        }
        let record = &mut self.watches[slot];
        let one_by_one = ONE_BY_ONE.times(std::mem::take(&mut record.control.reserved).into());
        self.outbox.unreserve(one_by_one);
        self.ledger
            .release_closed(&mut self.outbox, &mut record.need);
        if let Some(pause) = record.unpause() {
            let key = super::pressure::paused_key(record.id(), &pause);
            self.shared.paused.lock().remove(&key);
        }
        let cursor = self.shared.journal.cursor(seq);
        if let Some((_, reply)) = take {
            let taken = taken.map(|fd| TakenFd {
                fd,
                closed: cursor,
                received: record.received(&*self.driver),
            });
            let gone = crate::error::Error::Internal("a watch has no descriptor to take");
            self.reply(reply, taken.ok_or(gone));
        }
        let rare = self.watches[slot].rare_mut();
        let waiting = rare.map(|rare| std::mem::take(&mut rare.on_closed));
        for reply in waiting.unwrap_or_default() {
            self.reply(reply, Ok(cursor));
        }
        self.set_alarm(slot, None);
        self.watches.closed(slot, expires);
        self.keep_watch_as_it_is(slot);
        let rare = self.watches[slot].rare();
        if rare.is_some_and(|rare| rare.removal.is_some()) {
            self.remove(slot);
        }
    }

    /// Calls a watch. Returns `None` if it is in another call.
    pub(super) fn call<R>(
        &mut self,
        slot: usize,
        polled: bool,
        action: impl FnOnce(&mut dyn Watch, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let record = self.watches.get_mut(slot)?;
        let mut watch = record.watch.take()?;
        let mut cx = Context {
            now: self.now,
            jumps: &self.jumps,
            timer_tick: crate::clock::nanos(self.shared.policy.timer_tick),
            services: &self.services,
            notifier: &self.notifier,
            control: &mut record.control,
            need: &mut record.need,
            driver: &mut *self.driver,
            outbox: &mut self.outbox,
            adoptions: &mut self.adoptions,
            afterwards: &mut self.afterwards,
            relays: &mut self.relays,
            ledger: &mut self.ledger,
            doubts: &mut self.kept,
            polled,
            alarm: None,
            changed: false,
            progressed: false,
        };
        let before = *cx.need;
        let result = action(&mut *watch, &mut cx);
        let (alarm, changed, progressed) = (cx.alarm, cx.changed, cx.progressed);
        record.watch = Some(watch);
        if changed || record.need != before {
            self.kept_changes(slot);
        } else if progressed {
            self.kept_progresses(slot);
        }
        if let Some(alarm) = alarm {
            self.set_alarm(slot, alarm);
        }
        Some(result)
    }

    /// Removes a closed watch.
    pub(super) fn remove(&mut self, slot: usize) {
        self.keep_for_snapshots(slot);
        let mut record = self.watches.remove(slot);
        self.keep_no_more(record.id());
        faults::point(Point::WatchForgotten);
        let removal = record.rare_mut().and_then(|rare| rare.removal.take());
        let Removal {
            request_id,
            replies,
        } = removal.unwrap_or_default();
        let removed = Removed { request_id };
        let about = record.control.about;
        let seq = self.outbox.push(self.now, about, Kind::Removed(removed));
        self.outbox.release_labels(about.labels);
        let cursor = self.shared.journal.cursor(seq);
        for reply in replies {
            self.reply(reply, Ok(cursor));
        }
        self.ledger.release(&mut self.outbox, record.need);
    }

    /// Removes closed watches whose `finished_ttl` has passed.
    pub(super) fn remove_expired(&mut self) {
        for _ in 0..self.limits.turn_events {
            let due = self.watches.next_expiry();
            if due.is_none_or(|at| at > self.now.monotonic) {
                return;
            }
            if let Some(slot) = self.watches.next_to_expire() {
                self.remove(slot);
            }
        }
    }

    /// Requests the end of a watch.
    pub(super) fn end(&mut self, slot: usize, reason: CloseReason) {
        self.with_watch(slot, |_, cx| cx.close(reason));
    }

    /// Adds a watch for each connection that a listener has just accepted.
    fn adopt(&mut self, listener: usize) {
        for adoption in std::mem::take(&mut self.adoptions) {
            let Adoption {
                watch,
                need,
                peer,
                socket,
            } = adoption;
            if let Some(socket) = socket {
                self.keep_accepted(&socket);
                faults::point(Point::AcceptRecorded);
            }
            let parent = &self.watches[listener];
            // A connection ends with its listener's process. It has no lease of its own to renew.
            let lifetime = match parent.lifetime.process() {
                Some(_) if parent.lifetime.at_end() != LifetimeEnd::Keep => parent.lifetime.clone(),
                _ => Lifetime::Daemon,
            };
            let registration = Registration {
                name: None,
                labels: parent.labels().map(Arc::clone).unwrap_or_default(),
                user_data: parent.control.about.user_data,
                kind: WatchKind::Connection,
                spec: None,
                or_existing: false,
                request_id: String::new(),
                lifetime,
                finished_ttl: parent.finished_ttl(),
                need: need.without(largest::ACCEPTED),
                attached: false,
                memory: None,
            };
            let (about, parent) = (parent.control.about, parent.id());
            let accepted = Accepted {
                watch_id: self.watches.next_id(),
                peer,
            };
            self.outbox.push(self.now, about, Kind::Accepted(accepted));
            faults::point(Point::AcceptReported);
            // The room was reserved with that of the new watch.
            self.outbox.unreserve(Room::event(largest::ACCEPTED));
            let slot = self.insert(registration, watch, parent);
            if self.closing.is_some() {
                self.end(slot, CloseReason::LoopClosed);
            }
        }
    }

    /// Adds a watch whose room is reserved, and starts it. Returns its slot.
    pub(super) fn insert(
        &mut self,
        registration: Registration,
        watch: Box<dyn Watch>,
        parent: u64,
    ) -> usize {
        let Registration {
            name,
            labels,
            user_data,
            kind,
            spec,
            request_id,
            lifetime,
            finished_ttl,
            mut need,
            ..
        } = registration;
        let mut lifetime = lifetime;
        if let Some(lease) = lifetime.lease_mut() {
            // Its preparation may have taken a while.
            lease.renew(None);
        }
        let (id, key) = (self.watches.next_id(), self.watches.next_key());
        let about = About {
            watch: id,
            user_data,
            labels: self.shared.journal.intern_labels(&labels),
        };
        let added = Added {
            request_id,
            name: name.as_deref().unwrap_or_default().to_owned(),
            watch_kind: kind.name().to_owned(),
            parent_watch_id: parent,
        };
        let added = self.outbox.push(self.now, about, Kind::Added(added));
        self.outbox.unreserve(Room::event(largest::ADDED));
        need = need.without(largest::ADDED);
        let bound = lifetime.process().map(Arc::clone);
        let finished_ttl = finished_ttl.filter(|ttl| *ttl != self.shared.policy.finished_ttl);
        let mut record = Record {
            control: ControlBlock::new(key, about),
            watch: Some(watch),
            spec: Encoded::new(spec.as_deref()),
            lifetime,
            created: self.now.realtime,
            added,
            need,
            alarm: None,
            rare: None,
            kind,
            closing: false,
        };
        if name.is_some() || !labels.is_empty() || parent != 0 || finished_ttl.is_some() {
            let rare = record.rare_or_insert();
            (rare.name, rare.labels) = (name, labels);
            (rare.parent, rare.finished_ttl) = (parent, finished_ttl);
        }
        let (slot, first_bound) = self.watches.insert(record);
        self.keep_watch_as_it_is(slot);
        faults::point(Point::WatchWritten);
        if first_bound && let Some(process) = bound {
            self.end_after_process(process);
        }
        self.with_watch(slot, |watch, cx| watch.start(cx));
        if let Some(reason) = self.pressure.full {
            self.pause_source(slot, reason);
        }
        slot
    }

    /// Starts a task that waits for the end of a client process and then has the loop end the
    /// watches bound to it. There is one task for each process.
    pub(super) fn end_after_process(&mut self, process: Arc<crate::access::ClientProcess>) {
        let mailbox = Arc::downgrade(&self.mailbox);
        let wait = async move {
            process.ended().await;
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.push(super::Message::ClientEnded(process.key()));
            }
        };
        while self.clients.try_join_next().is_some() {}
        self.clients.spawn_on(wait, &self.services.runtime);
    }

    /// Removes a watch, which is closed first if it is open.
    pub(super) fn request_removal(
        &mut self,
        slot: usize,
        request_id: String,
        reply: super::Reply<crate::event::Cursor>,
    ) {
        let record = &mut self.watches[slot];
        let removal = record.rare_or_insert().removal.get_or_insert_default();
        if removal.replies.is_empty() {
            removal.request_id = request_id;
        }
        removal.replies.push(reply);
        if record.is_closed() {
            self.remove(slot);
        } else {
            self.end(slot, CloseReason::Removed);
        }
    }
}
