//! What can be asked of a loop, done on its thread.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use rustix::io::Errno;

use super::mailbox::Reply;
use super::record::TakenFd;
use super::sweeps::{STEP, Sweep};
use super::{EVENT_OVERHEAD, EventLoop, Kind, LoopState, STATE_CHANGE};
use crate::error::{Error, Result};
use crate::event::{CloseReason, Cursor, PolicyChanged, Posted};
use crate::journal::{About, Room};
use crate::proto;
use crate::watch::{SignalTarget, Taken};

/// A page ends once it holds this many bytes: one more specification still fits a message.
pub(super) const PAGE_BYTES: usize = 3 << 20;
/// Watches that one step of a page looks at, most of which its filter may leave out.
const LIST_LOOKS: usize = 4096;

/// How a client names a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchName {
    /// By its id.
    Id(u64),
    /// By its name.
    Name(String),
}

impl fmt::Display for WatchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "@{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Which watches to list.
#[derive(Debug, Clone, Default)]
pub struct WatchFilter {
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Of these kinds; all if empty.
    pub kinds: BTreeSet<String>,
    /// Not closed.
    pub open_only: bool,
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// In the order of their ids.
    pub items: Vec<T>,
    /// The id to go on after, if there is more.
    pub next: Option<u64>,
}

/// What one step has of a page.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) items: Vec<proto::Watch>,
    /// Of those, encoded.
    pub(super) bytes: usize,
    /// The id to go on after, if there is more.
    pub(super) next: Option<u64>,
    /// No more fits the page.
    pub(super) full: bool,
}

/// Something a client posts.
#[derive(Debug, Clone)]
pub struct Posting {
    /// Its event.
    pub posted: Posted,
    /// In its event.
    pub user_data: u64,
}

impl Posting {
    /// What it carries.
    pub(super) fn bytes(&self) -> usize {
        let posted = &self.posted;
        posted.payload.len() + posted.topic.len() + posted.request_id.len()
    }
}

impl EventLoop {
    fn find(&self, name: &WatchName) -> Result<usize> {
        let slot = match name {
            WatchName::Id(id) => self.watches.by_id(*id),
            WatchName::Name(name) => self.watches.by_name(name),
        };
        slot.ok_or_else(|| Error::WatchNotFound {
            on: self.shared.full_name.clone(),
            watch: name.to_string(),
        })
    }

    /// The slot of an open watch.
    fn find_open(&self, name: &WatchName) -> Result<usize> {
        let slot = self.find(name)?;
        let record = &self.watches[slot];
        if record.is_closed() {
            return Err(Error::WatchClosed { watch: record.id() });
        }
        Ok(slot)
    }

    fn ask<R>(
        &mut self,
        name: &WatchName,
        ask: impl FnOnce(&mut dyn crate::watch::Watch, &mut crate::watch::Context<'_>) -> Result<R>,
    ) -> Result<R> {
        let slot = self.find_open(name)?;
        let busy = Error::Internal("the watch is busy");
        self.tell(slot, ask).unwrap_or(Err(busy))
    }

    /// As [`Self::ask`], of a watch that is not ending.
    fn ask_lively<R>(
        &mut self,
        name: &WatchName,
        ask: impl FnOnce(&mut dyn crate::watch::Watch, &mut crate::watch::Context<'_>) -> Result<R>,
    ) -> Result<R> {
        let record = &self.watches[self.find_open(name)?];
        if record.seat.end.is_some() {
            return Err(Error::WatchClosed { watch: record.id() });
        }
        self.ask(name, ask)
    }

    pub(super) fn get(&self, name: &WatchName) -> Result<proto::Watch> {
        let slot = self.find(name)?;
        Ok(self.watches[slot].view(&self.shared.journal))
    }

    /// One step of a page: at most `max` watches, and no more once they have so many bytes.
    pub(super) fn list(&self, after: u64, max: usize, bytes: usize, filter: &WatchFilter) -> Part {
        let mut page = Part::default();
        let mut last = after;
        for looked_at in 0.. {
            let Some(id) = self.watches.next_after(last) else {
                break;
            };
            if looked_at == LIST_LOOKS || page.items.len() == STEP {
                page.next = Some(last);
                break;
            }
            let before = std::mem::replace(&mut last, id);
            let Some(slot) = self.watches.by_id(id) else {
                continue;
            };
            let record = &self.watches[slot];
            let labelled = |(k, v): (&String, &String)| {
                let labels = record.labels();
                labels.is_some_and(|labels| labels.get(k) == Some(v))
            };
            let kind = filter.kinds.is_empty() || filter.kinds.contains(record.kind.name());
            if !kind
                || (filter.open_only && record.is_closed())
                || !filter.labels.iter().all(labelled)
            {
                continue;
            }
            if page.items.len() == max || page.bytes > bytes {
                (page.next, page.full) = (Some(before), true);
                break;
            }
            let view = record.view(&self.shared.journal);
            page.bytes += prost::Message::encoded_len(&view);
            page.items.push(view);
        }
        page
    }

    pub(super) fn remove_watch(
        &mut self,
        name: &WatchName,
        request_id: String,
        reply: Reply<Cursor>,
    ) {
        match self.find(name) {
            Ok(slot) => self.remove_later(slot, request_id, reply),
            Err(error) => self.reply(reply, Err(error)),
        }
    }

    pub(super) fn rearm(&mut self, items: &[proto::RearmItem]) -> Vec<bool> {
        let rearm = |item: &proto::RearmItem| {
            let name = WatchName::Id(item.watch_id);
            self.ask_lively(&name, |watch, cx| Ok(watch.rearm(cx, item)))
                .unwrap_or(false)
        };
        items.iter().map(rearm).collect()
    }

    pub(super) fn write(
        &mut self,
        name: &WatchName,
        data: Bytes,
        at: Option<u64>,
    ) -> Result<Taken> {
        self.ask_lively(name, |watch, cx| watch.write(cx, data, at))
    }

    pub(super) fn write_eof(&mut self, name: &WatchName) -> Result<()> {
        self.ask_lively(name, |watch, cx| watch.write_eof(cx))
    }

    pub(super) fn pause_reading(&mut self, name: &WatchName, pause: bool) -> Result<()> {
        self.ask_lively(name, |watch, cx| watch.pause_reading(cx, pause))
    }

    pub(super) fn signal(
        &mut self,
        name: &WatchName,
        number: i32,
        target: SignalTarget,
    ) -> Result<()> {
        self.ask(name, |watch, _| watch.signal(number, target))
    }

    pub(super) fn abort(&mut self, name: &WatchName, reply: Reply<Cursor>) {
        let abortable = self.ask(name, |watch, _| Ok(watch.can_abort()));
        match abortable.and_then(|can| Ok((can, self.find_open(name)?))) {
            Ok((true, slot)) => {
                self.watches[slot].make_rare().on_closed.push(reply);
                self.tell(slot, |watch, cx| watch.abort(cx));
            }
            Ok((false, _)) => {
                let error = Error::wrong_state("only connections and pipes can be aborted");
                self.reply(reply, Err(error));
            }
            Err(error) => self.reply(reply, Err(error)),
        }
    }

    pub(super) fn take_fd(&mut self, name: &WatchName, reply: Reply<TakenFd>) {
        let takeable = self.ask(name, |watch, _| watch.takeable());
        match takeable.and_then(|found| Ok((found, self.find_open(name)?))) {
            Ok((_, slot)) if self.watches[slot].seat.end.is_some() => {
                let watch = self.watches[slot].id();
                self.reply(reply, Err(Error::WatchClosed { watch }));
            }
            Ok((source, slot)) => {
                self.watches[slot].make_rare().take = Some((source, reply));
                self.end(slot, CloseReason::FdTaken);
            }
            Err(error) => self.reply(reply, Err(error)),
        }
    }

    pub(super) fn post(&mut self, postings: Vec<Posting>) -> Result<Cursor> {
        self.check_open()?;
        let bytes = postings.iter().map(|p| p.bytes() as u64 + EVENT_OVERHEAD);
        self.outbox.check_room(Room {
            events: postings.len() as u64,
            bytes: bytes.sum(),
        })?;
        for Posting { posted, user_data } in postings {
            let about = About {
                user_data,
                ..About::default()
            };
            self.outbox.push(self.now, about, Kind::Posted(posted));
        }
        Ok(self.newest())
    }

    /// The policy in force for the loop's owner was switched. Without room, the switches until
    /// there is some become one.
    pub(super) fn policy_changed(&mut self, changed: PolicyChanged) {
        if self.is_over() {
            return;
        }
        let unsaid = self.unsaid_switch.take();
        let switch = PolicyChanged {
            old_policy: unsaid.map_or(changed.old_policy, |first| first.old_policy),
            ..changed
        };
        if self.outbox.has_room(1) {
            self.emit(Kind::PolicyChanged(switch));
        } else {
            self.unsaid_switch = Some(switch);
        }
    }

    pub(super) fn newest(&self) -> Cursor {
        self.shared.journal.cursor(self.outbox.newest())
    }

    pub(super) fn run_loop(&mut self) -> Result<Cursor> {
        self.check_open()?;
        if self.state != LoopState::Running {
            // For itself, and for the next stop, if that has used what was set aside for it.
            let changes = if self.state == LoopState::Stopped {
                2
            } else {
                1
            };
            self.outbox.reserve(STATE_CHANGE.times(changes))?;
            self.outbox.unreserve(STATE_CHANGE);
            self.enter(LoopState::Running);
        }
        Ok(self.newest())
    }

    pub(super) fn stop_loop(&mut self) -> Result<Cursor> {
        self.check_open()?;
        if self.state == LoopState::Running {
            self.outbox.unreserve(STATE_CHANGE);
            self.enter(LoopState::Stopped);
            self.sweep(Sweep::EndUnpolled);
        }
        Ok(self.newest())
    }

    /// `force`: also a running loop, as the daemon's end does.
    pub(super) fn close_loop(&mut self, force: bool, reply: Reply<Cursor>) {
        if self.state == LoopState::Running && !force && self.closing.is_none() {
            let name = self.shared.full_name.clone();
            self.reply(reply, Err(Error::LoopRunning { name }));
            return;
        }
        let first = self.closing.is_none();
        self.closing.get_or_insert_default().push(reply);
        if first {
            self.begin_close(CloseReason::LoopClosed, None);
        }
    }

    /// Ends all watches and refuses new ones; the loop is closed once they are gone.
    pub(super) fn begin_close(&mut self, reason: CloseReason, failed: Option<Errno>) {
        self.closing.get_or_insert_default();
        for need in self.registrations.clear() {
            self.ledger.release(&mut self.outbox, need);
        }
        self.sweeps.discard(|sweep| matches!(sweep, Sweep::End(..)));
        self.sweep(Sweep::End(reason, failed));
    }
}
