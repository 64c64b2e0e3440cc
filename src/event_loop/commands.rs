//! The commands of a loop that concern its watches, posts, and its own state.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;

use super::mailbox::Reply;
use super::record::TakenFd;
use super::sweeps::{STEP, Sweep};
use super::{EVENT_OVERHEAD, EventLoop, Kind, LoopState, STATE_CHANGE};
use crate::clock::Now;
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Cursor, PolicyChanged, Posted};
use crate::faults;
use crate::journal::{About, Outbox, Room};
use crate::proto::{self, TerminalSize};
use crate::watch::{Groups, Parcel, SignalTarget, StartTls, Taken, Tree, WaterMarks};

/// The encoded size in bytes at which a page ends: one more watch still fits the gRPC message.
pub(super) const PAGE_BYTES: usize = 3 << 20;
/// The largest number of watches that one part of a page examines; its filter may leave out most of
/// them.
const LIST_LOOKS: usize = 4096;

/// The way in which a client names a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchName {
    /// The id of the watch.
    Id(u64),
    /// The name of the watch.
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

/// Why and how a loop closes.
#[derive(Debug, Clone, Copy)]
pub struct LoopEnd {
    /// Whether a running loop is closed too.
    pub force: bool,
    /// Why it closes.
    pub reason: CloseReason,
    /// Whether children end with their descendants, whatever their `at_end` says.
    pub kill_tree: bool,
}

impl LoopEnd {
    /// Returns the close of a loop that may be running.
    #[must_use]
    pub fn forced() -> Self {
        Self {
            force: true,
            ..Self::default()
        }
    }
}

impl Default for LoopEnd {
    fn default() -> Self {
        Self {
            force: false,
            reason: CloseReason::LoopClosed,
            kill_tree: false,
        }
    }
}

/// A filter for the watches to list.
#[derive(Debug, Clone, Default)]
pub struct WatchFilter {
    /// The labels that a watch must have, all of them.
    pub labels: BTreeMap<String, String>,
    /// The kinds of watch to list; all kinds if empty.
    pub kinds: BTreeSet<String>,
    /// Whether to leave out closed watches.
    pub open_only: bool,
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The items, in the order of their ids.
    pub items: Vec<T>,
    /// The id after which the next page starts; `None` if this is the last page.
    pub next: Option<u64>,
}

/// A part of a page, collected in one step.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) items: Vec<proto::Watch>,
    /// The encoded size of the items.
    pub(super) bytes: usize,
    /// The id after which the next part starts; `None` if there are no more watches.
    pub(super) next: Option<u64>,
    /// Whether the page is full.
    pub(super) full: bool,
}

/// An event that a client posts.
#[derive(Debug, Clone)]
pub struct Posting {
    /// The event to append.
    pub posted: Posted,
    /// The `user_data` of the event.
    pub user_data: u64,
}

impl Posting {
    /// Returns the size in bytes of the strings and the payload.
    pub(super) fn bytes(&self) -> usize {
        let posted = &self.posted;
        posted.payload.len() + posted.topic.len() + posted.request_id.len()
    }

    /// Returns the room that they take in a journal.
    pub(super) fn room(postings: &[Self]) -> Room {
        let bytes = postings.iter().map(|p| p.bytes() as u64 + EVENT_OVERHEAD);
        Room {
            events: postings.len() as u64,
            bytes: bytes.sum(),
        }
    }

    pub(super) fn push(postings: Vec<Self>, now: Now, outbox: &mut Outbox) {
        for Self { posted, user_data } in postings {
            faults::word(&posted.topic);
            let about = About {
                user_data,
                ..About::default()
            };
            outbox.push(now, about, Kind::Posted(posted));
        }
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

    /// Returns the slot of a watch that is not closed.
    pub(super) fn find_open(&self, name: &WatchName) -> Result<usize> {
        let slot = self.find(name)?;
        let record = &self.watches[slot];
        if record.is_closed() {
            return Err(Error::WatchClosed { watch: record.id() });
        }
        Ok(slot)
    }

    fn with_open_watch<R>(
        &mut self,
        name: &WatchName,
        action: impl FnOnce(&mut dyn crate::watch::Watch, &mut crate::watch::Context<'_>) -> Result<R>,
    ) -> Result<R> {
        let slot = self.find_open(name)?;
        let busy = Error::Internal("the watch is in another call");
        self.with_watch(slot, action).unwrap_or(Err(busy))
    }

    /// As [`Self::with_open_watch`], but also refuses a watch whose end was requested.
    fn with_live_watch<R>(
        &mut self,
        name: &WatchName,
        action: impl FnOnce(&mut dyn crate::watch::Watch, &mut crate::watch::Context<'_>) -> Result<R>,
    ) -> Result<R> {
        let record = &self.watches[self.find_open(name)?];
        if record.control.end.is_some() {
            return Err(Error::WatchClosed { watch: record.id() });
        }
        self.with_open_watch(name, action)
    }

    pub(super) fn get(&self, name: &WatchName) -> Result<proto::Watch> {
        let slot = self.find(name)?;
        Ok(self.watches[slot].view(&self.shared.journal, &*self.driver, self.shared.survives))
    }

    /// Collects one part of a page: at most `max` watches, and none after the one that exceeds
    /// `bytes`.
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
            let view = record.view(&self.shared.journal, &*self.driver, self.shared.survives);
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
            Ok(slot) => self.request_removal(slot, request_id, reply),
            Err(error) => self.reply(reply, Err(error)),
        }
    }

    pub(super) fn rearm(&mut self, items: &[proto::RearmItem]) -> Vec<bool> {
        let rearm = |item: &proto::RearmItem| {
            let name = WatchName::Id(item.watch_id);
            self.with_live_watch(&name, |watch, cx| Ok(watch.rearm(cx, item)))
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
        self.with_live_watch(name, |watch, cx| watch.write(cx, data, at))
    }

    pub(super) fn write_eof(&mut self, name: &WatchName) -> Result<()> {
        self.with_live_watch(name, |watch, cx| watch.write_eof(cx))
    }

    pub(super) fn start_tls(&mut self, name: &WatchName, order: StartTls) -> Result<()> {
        self.with_live_watch(name, |watch, cx| watch.start_tls(cx, order))
    }

    pub(super) fn send_to(&mut self, name: &WatchName, parcel: Parcel) -> Result<u64> {
        self.with_live_watch(name, |watch, cx| watch.send_to(cx, parcel))
    }

    pub(super) fn set_water_marks(&mut self, name: &WatchName, marks: WaterMarks) -> Result<()> {
        self.with_live_watch(name, |watch, cx| watch.set_water_marks(cx, marks))
    }

    /// Returns a duplicate of the socket, so that what may block is done on another thread.
    pub(super) fn group_socket(&mut self, name: &WatchName) -> Result<(OwnedFd, Arc<Groups>)> {
        self.with_live_watch(name, |watch, cx| {
            let (source, groups) = watch.group_socket()?;
            let socket = cx.fd(source).ok_or(Errno::BADF);
            let copy = socket.and_then(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 0));
            let copy = copy.map_err(|errno| SystemError::new(errno, "dup", ""))?;
            Ok((copy, groups))
        })
    }

    pub(super) fn pause_reading(&mut self, name: &WatchName, pause: bool) -> Result<()> {
        self.with_live_watch(name, |watch, cx| watch.pause_reading(cx, pause))
    }

    pub(super) fn signal(
        &mut self,
        name: &WatchName,
        number: i32,
        target: SignalTarget,
    ) -> Result<()> {
        self.with_open_watch(name, |watch, _| watch.signal(number, target))
    }

    pub(super) fn tree(&mut self, name: &WatchName) -> Result<Tree> {
        self.with_open_watch(name, |watch, cx| watch.tree(cx))
    }

    pub(super) fn resize(&mut self, name: &WatchName, size: TerminalSize) -> Result<()> {
        self.with_live_watch(name, |watch, cx| watch.resize(cx, size))
    }

    pub(super) fn abort(&mut self, name: &WatchName, reply: Reply<Cursor>) {
        let abortable = self.with_open_watch(name, |watch, _| Ok(watch.can_abort()));
        match abortable.and_then(|can| Ok((can, self.find_open(name)?))) {
            Ok((true, slot)) => {
                self.watches[slot].rare_or_insert().on_closed.push(reply);
                self.with_watch(slot, |watch, cx| watch.abort(cx));
            }
            Ok((false, _)) => {
                let error = Error::wrong_state(
                    "only connections, pipes and datagram sockets can be aborted",
                );
                self.reply(reply, Err(error));
            }
            Err(error) => self.reply(reply, Err(error)),
        }
    }

    pub(super) fn take_fd(&mut self, name: &WatchName, reply: Reply<TakenFd>) {
        let takeable = self.with_open_watch(name, |watch, _| watch.takeable());
        match takeable.and_then(|found| Ok((found, self.find_open(name)?))) {
            Ok((_, slot)) if self.watches[slot].control.end.is_some() => {
                let watch = self.watches[slot].id();
                self.reply(reply, Err(Error::WatchClosed { watch }));
            }
            Ok((source, slot)) => {
                self.watches[slot].rare_or_insert().take = Some((source, reply));
                self.end(slot, CloseReason::FdTaken);
            }
            Err(error) => self.reply(reply, Err(error)),
        }
    }

    pub(super) fn post(&mut self, postings: Vec<Posting>) -> Result<Cursor> {
        self.check_open()?;
        self.outbox.check_room(Posting::room(&postings))?;
        Posting::push(postings, self.now, &mut self.outbox);
        Ok(self.newest())
    }

    /// Appends `PolicyChanged` after the policy of the loop's owner was switched. While the journal
    /// has no room, several switches are merged into one event.
    pub(super) fn policy_changed(&mut self, changed: PolicyChanged) {
        if self.is_over() {
            return;
        }
        let earlier = self.pending_switch.take();
        let switch = PolicyChanged {
            old_policy: earlier.map_or(changed.old_policy, |first| first.old_policy),
            ..changed
        };
        if self.outbox.has_room(1) {
            self.emit(Kind::PolicyChanged(switch));
        } else {
            self.pending_switch = Some(switch);
        }
    }

    pub(super) fn newest(&self) -> Cursor {
        self.shared.journal.cursor(self.outbox.newest())
    }

    pub(super) fn run_loop(&mut self) -> Result<Cursor> {
        self.check_open()?;
        if self.state != LoopState::Running {
            // One event for this change. A stopped loop also needs one for its next stop, because
            // the last stop used the event that was reserved for it.
            let changes = if self.state == LoopState::Stopped {
                2
            } else {
                1
            };
            self.outbox.reserve(STATE_CHANGE.times(changes))?;
            self.outbox.unreserve(STATE_CHANGE);
            self.enter(LoopState::Running, CloseReason::Unspecified);
        }
        Ok(self.newest())
    }

    pub(super) fn stop_loop(&mut self) -> Result<Cursor> {
        self.check_open()?;
        if self.state == LoopState::Running {
            self.outbox.unreserve(STATE_CHANGE);
            self.enter(LoopState::Stopped, CloseReason::Unspecified);
            self.sweep(Sweep::EndUnpolled);
        }
        Ok(self.newest())
    }

    /// Closes the loop; with `force` also if it is running, as when the daemon ends.
    pub(super) fn close_loop(&mut self, end: LoopEnd, reply: Reply<Cursor>) {
        if self.state == LoopState::Running && !end.force && self.closing.is_none() {
            let name = self.shared.full_name.clone();
            self.reply(reply, Err(Error::LoopRunning { name }));
            return;
        }
        let first = self.closing.is_none();
        self.closing.get_or_insert_default().push(reply);
        if first {
            self.closes = end;
            self.begin_close(CloseReason::LoopClosed, None);
        }
    }

    /// Starts to close the loop: ends all watches and refuses new ones. The loop is closed once all
    /// watches are removed.
    pub(super) fn begin_close(&mut self, reason: CloseReason, failed: Option<Errno>) {
        self.closing.get_or_insert_default();
        for need in self.registrations.clear() {
            self.ledger.release(&mut self.outbox, need);
        }
        self.sweeps.discard(|sweep| matches!(sweep, Sweep::End(..)));
        self.sweep(Sweep::End(reason, failed));
    }
}
