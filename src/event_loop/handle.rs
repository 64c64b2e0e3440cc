//! Access to a loop from outside its thread.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::command::Command;
use super::commands::{LoopEnd, PAGE_BYTES, Page, Part, Posting, WatchFilter, WatchName};
use super::mailbox::{Mailbox, Message, Reply, closed};
use super::record::TakenFd;
use super::{Blueprint, EventLoop, Shared};
use crate::access::Principal;
use crate::clock;
use crate::config::{Policy, Refusable, Survives};
use crate::descriptors::Closing;
use crate::error::{Error, Result};
use crate::event::{Cursor, LoopState, PolicyChanged};
use crate::journal::Journal;
use crate::kinds::WatchKind;
use crate::proto::{self, TerminalSize};
use crate::watch::{Group, Membership, Parcel, SignalTarget, StartTls, Taken, Tree, WaterMarks};

/// The largest number of paused sources in the view of a loop.
const PAUSED_SHOWN: usize = 100;

/// A handle to a loop, for all threads but its own. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    pub(super) mailbox: Arc<Mailbox>,
}

impl Handle {
    /// Starts a loop.
    ///
    /// # Errors
    /// The system refused a descriptor, a thread or random bytes, or the backend does not work.
    pub fn start(blueprint: Blueprint) -> Result<Self> {
        EventLoop::start(blueprint)
    }

    pub(super) const fn new(shared: Arc<Shared>, mailbox: Arc<Mailbox>) -> Self {
        Self { shared, mailbox }
    }

    /// Returns when it was made, realtime nanoseconds.
    #[must_use]
    pub fn created(&self) -> u64 {
        self.shared.created
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Queues a message that need not wait for room in the mailbox.
    pub(super) fn push(&self, message: Message) {
        self.mailbox.push(message);
    }

    /// Tells the loop that time zones were replaced.
    pub fn zones_changed(&self) {
        self.push(Message::ZonesChanged);
    }

    /// Returns the loop's id, which is never reused.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Returns its name, without the owner.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Returns its full name, with the owner.
    #[must_use]
    pub fn full_name(&self) -> &str {
        &self.shared.full_name
    }

    /// Returns its owner.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.shared.principal
    }

    /// Returns the policy that it was made with.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.shared.policy
    }

    /// Returns its backend.
    #[must_use]
    pub fn backend(&self) -> crate::driver::Backend {
        self.shared.backend
    }

    /// Returns what watches the paths of its watches.
    ///
    /// # Errors
    /// The loop is closed.
    pub fn paths(&self) -> Result<Arc<crate::paths::Hub>> {
        let hub = self.shared.paths.lock().clone();
        hub.ok_or_else(|| closed(self.full_name()))
    }

    /// Returns the journal of its events.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.shared.journal
    }

    /// Returns its current state.
    #[must_use]
    pub fn state(&self) -> LoopState {
        let state = self.shared.state.load(Ordering::Acquire);
        LoopState::try_from(i32::from(state)).unwrap_or(LoopState::Closed)
    }

    /// Returns the number of its open watches.
    #[must_use]
    pub fn open_watches(&self) -> u64 {
        self.shared.open_watches.load(Ordering::Relaxed)
    }

    /// Returns the loop as clients see it.
    #[must_use]
    pub fn view(&self) -> proto::Loop {
        let shared = &self.shared;
        let journal = shared.journal.status();
        let paused = shared.paused.lock();
        let paused_count = paused.len() as u64;
        let paused_sources = paused.values().take(PAUSED_SHOWN).cloned().collect();
        drop(paused);
        let processes = Refusable::Kind(WatchKind::Process);
        let watcher = match shared.policy.refusal(processes) {
            None => shared.policy.child_watcher.name(),
            Some(_) => "",
        };
        let lifetime = shared.lifetime.lock().to_proto();
        proto::Loop {
            loop_id: shared.id,
            name: shared.name.clone(),
            principal: shared.principal.to_string(),
            full_name: shared.full_name.clone(),
            state: self.state().into(),
            policy: shared.policy.name.clone(),
            loop_class: shared.backend.class().name().to_owned(),
            backend: shared.backend.name().to_owned(),
            child_watcher: watcher.to_owned(),
            created: Some(clock::timestamp(shared.created)),
            journal: Some(proto::JournalStatus {
                epoch: journal.epoch.to_string(),
                oldest_seq: journal.oldest,
                newest_seq: journal.newest,
                events: journal.events,
                bytes: journal.bytes,
                max_events: journal.limits.events,
                max_bytes: journal.limits.bytes,
                islands: journal.islands,
                trimmed: journal.trimmed,
                readers: u32::try_from(journal.readers).unwrap_or(u32::MAX),
                pinned_events: journal.pinned.events,
                pinned_bytes: journal.pinned.bytes,
                reserved_events: journal.reserved.events,
                reserved_bytes: journal.reserved.bytes,
                when_full: journal.limits.when_full.name().to_owned(),
                max_watch_bytes: journal.limits.watch_bytes,
                dropped: journal.dropped,
                gaps: journal.gaps,
                consumers: u32::try_from(journal.consumers).unwrap_or(u32::MAX),
                unread_bytes: journal.unread.bytes,
                readers_let_go: journal.readers_let_go,
                paused_source_count: paused_count,
                paused_sources,
            }),
            watches: shared.watches.load(Ordering::Relaxed),
            open_watches: self.open_watches(),
            survives: proto::Survives::from(shared.survives).into(),
            turns: shared.turns.load(Ordering::Relaxed),
            history: super::pressure::history_to_proto(shared.policy.history).into(),
            lifetime: lifetime.lifetime.into(),
            at_lifetime_end: lifetime.at_end.into(),
            lease: lifetime.lease,
            lease_left: lifetime.left,
        }
    }

    /// Returns what the loop survives.
    #[must_use]
    pub fn survives(&self) -> Survives {
        self.shared.survives
    }

    /// Sends a command to the loop's thread and waits for the reply.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T> {
        let answer = self.send(command).await?;
        self.await_reply(answer).await
    }

    /// Sends a command and returns once it is in the mailbox. The reply arrives on the
    /// returned channel.
    pub(super) async fn send<T: Send + 'static>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (reply, answer) = Reply::new();
        self.mailbox
            .send_command(self.full_name(), command(reply))
            .await?;
        Ok(answer)
    }

    pub(super) async fn await_reply<T>(&self, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        let gone = |_| Err(closed(self.full_name()));
        answer.await.unwrap_or_else(gone)
    }

    /// As [`Self::call`], for a command that must not be refused: it does not wait for room in the
    /// mailbox.
    pub(super) async fn call_internal<T: Send + 'static>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T> {
        let (reply, answer) = Reply::new();
        self.mailbox.push(Message::Internal(command(reply)));
        self.await_reply(answer).await
    }

    /// Returns one watch, converted by `admit` on the loop's thread.
    ///
    /// # Errors
    /// There is no watch of that name, or `admit` refuses it.
    pub async fn get<T: Send + 'static>(
        &self,
        name: WatchName,
        admit: impl FnOnce(proto::Watch) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(|reply| Command::Get {
            name,
            visit: reply.after(admit),
        })
        .await
    }

    /// Returns a page of watches with an id above `after`, collected in several commands. Each
    /// time, `admit` checks the watches before they leave the loop's thread. It is returned with
    /// the page.
    ///
    /// # Errors
    /// The loop is closed, its mailbox is full, or `admit` refuses the watches.
    pub async fn list<A>(
        &self,
        after: u64,
        max: usize,
        filter: WatchFilter,
        mut admit: A,
    ) -> Result<(Page<proto::Watch>, A)>
    where
        A: FnMut(&[proto::Watch]) -> Result<()> + Send + 'static,
    {
        let filter = Arc::new(filter);
        let mut page = Page {
            items: Vec::new(),
            next: Some(after),
        };
        let mut bytes = PAGE_BYTES;
        while let Some(after) = page.next {
            let step = |reply: Reply<(Part, A)>| Command::List {
                after,
                max: max - page.items.len(),
                bytes,
                filter: Arc::clone(&filter),
                visit: reply.after(move |part: Part| {
                    admit(&part.items)?;
                    Ok((part, admit))
                }),
            };
            let part;
            (part, admit) = self.call(step).await?;
            bytes = bytes.saturating_sub(part.bytes);
            page.items.extend(part.items);
            page.next = part.next;
            if part.full {
                break;
            }
        }
        Ok((page, admit))
    }

    /// Closes and removes a watch. Returns the cursor of its `Removed`.
    ///
    /// # Errors
    /// There is no watch of that name.
    pub async fn remove(&self, name: WatchName, request_id: String) -> Result<Cursor> {
        self.call(|reply| Command::Remove {
            name,
            request_id,
            reply,
        })
        .await
    }

    /// Queues bytes for a watch to send. `at` is their offset in the outgoing stream; `None` means
    /// its end.
    ///
    /// # Errors
    /// There is no such watch, it has no outgoing stream, or `at` leaves a hole.
    pub async fn write(&self, name: WatchName, data: Bytes, at: Option<u64>) -> Result<Taken> {
        self.call(|reply| Command::Write {
            name,
            data,
            at,
            reply,
        })
        .await
    }

    /// Ends the outgoing stream after the bytes that the watch holds are sent.
    ///
    /// # Errors
    /// There is no such watch, or it has no outgoing stream.
    pub async fn write_eof(&self, name: WatchName) -> Result<()> {
        self.call(|reply| Command::WriteEof { name, reply }).await
    }

    /// Begins TLS on a connection in mid-stream.
    ///
    /// # Errors
    /// There is no such open connection, it has TLS already or has ended a direction, or the offset
    /// is wrong.
    pub async fn start_tls(&self, name: WatchName, order: StartTls) -> Result<()> {
        self.call(|reply| Command::StartTls { name, order, reply })
            .await
    }

    /// Sends one datagram. Returns the bytes that wait to be sent.
    ///
    /// # Errors
    /// There is no such watch, it sends no datagrams, or this one cannot be sent.
    pub async fn send_to(&self, name: WatchName, parcel: Parcel) -> Result<u64> {
        let parcel = Box::new(parcel);
        self.call(|reply| Command::SendTo {
            name,
            parcel,
            reply,
        })
        .await
    }

    /// Moves the water marks of a watch's outgoing stream or datagrams.
    ///
    /// # Errors
    /// There is no such watch, it has no outgoing stream, or its journal has no room.
    pub async fn set_water_marks(&self, name: WatchName, marks: WaterMarks) -> Result<()> {
        self.call(|reply| Command::SetWaterMarks { name, marks, reply })
            .await
    }

    /// Makes the socket of a watch a member of a multicast group, or ends that.
    ///
    /// # Errors
    /// There is no such watch, it has no groups, or the system refuses.
    pub async fn change_group(
        &self,
        name: WatchName,
        change: Membership,
        group: Group,
    ) -> Result<()> {
        let of = name.clone();
        let socket = self.call(|reply| Command::GroupSocket { name: of, reply });
        let (socket, groups) = socket.await?;
        let socket = (socket, Closing);
        let work = move || groups.change(socket.0.as_fd(), change, &group);
        let lost = |_| Error::Internal("the thread of the call ended without a result");
        tokio::task::spawn_blocking(work).await.map_err(lost)??;
        // What is answered is there in the next life. A watch that has ended meanwhile has no groups.
        let kept = self.call(|reply| Command::KeepGroups { name, reply });
        match kept.await {
            Err(Error::WatchNotFound { .. } | Error::WatchClosed { .. }) => Ok(()),
            kept => kept,
        }
    }

    /// Pauses or resumes reading.
    ///
    /// # Errors
    /// There is no such watch, or it has no incoming stream.
    pub async fn pause_reading(&self, name: WatchName, pause: bool) -> Result<()> {
        self.call(|reply| Command::PauseReading { name, pause, reply })
            .await
    }

    /// Sends a signal to a child process or to its process group.
    ///
    /// # Errors
    /// There is no such watch, it is not a process, or the process has ended.
    pub async fn signal(&self, name: WatchName, number: i32, to: SignalTarget) -> Result<()> {
        self.call(|reply| Command::Signal {
            name,
            number,
            target: to,
            reply,
        })
        .await
    }

    /// Returns a child process with its descendants, after its exit was appended if it has ended.
    ///
    /// # Errors
    /// There is no such watch, it is not a process, or the process has ended.
    pub async fn tree(&self, name: WatchName) -> Result<Tree> {
        self.call(|reply| Command::Tree { name, reply }).await
    }

    /// Changes the size of the terminal of a process.
    ///
    /// # Errors
    /// There is no such watch, it has no terminal, or the process has ended.
    pub async fn resize_pty(&self, name: WatchName, size: TerminalSize) -> Result<()> {
        self.call(|reply| Command::Resize { name, size, reply })
            .await
    }

    /// Closes a transport at once, without sending the bytes it holds. Returns the cursor of its
    /// `Closed`.
    ///
    /// # Errors
    /// There is no such watch, or it is not a transport.
    pub async fn abort(&self, name: WatchName) -> Result<Cursor> {
        self.call(|reply| Command::Abort { name, reply }).await
    }

    /// Takes a watch's file descriptor out of the daemon and closes the watch.
    ///
    /// # Errors
    /// There is no such watch, or its descriptor cannot be taken.
    pub async fn take_fd(&self, name: WatchName) -> Result<TakenFd> {
        self.call(|reply| Command::TakeFd { name, reply }).await
    }

    /// Appends the events that a client posts. Returns the cursor of the last one.
    ///
    /// # Errors
    /// The loop is closed, its mailbox is full, or there is no memory or journal room for the
    /// events.
    pub async fn post(&self, postings: Vec<Posting>) -> Result<Cursor> {
        self.call(|reply| Command::Post { postings, reply }).await
    }

    /// Records that the policy of the loop's owner was switched.
    ///
    /// # Errors
    /// The loop is closed.
    pub async fn policy_changed(&self, changed: PolicyChanged) -> Result<()> {
        self.call_internal(|reply| Command::PolicyChanged { changed, reply })
            .await
    }

    /// Kills the child processes that must not outlive the daemon.
    ///
    /// # Errors
    /// The loop is closed.
    pub async fn kill_children(&self) -> Result<()> {
        self.call_internal(|reply| Command::KillChildren { reply })
            .await
    }

    /// Starts the loop, or starts it again.
    ///
    /// # Errors
    /// The loop is closed, or its mailbox is full.
    pub async fn run(&self) -> Result<Cursor> {
        self.call(|reply| Command::Run { reply }).await
    }

    /// Stops the loop: sources are not polled after the current turn.
    ///
    /// # Errors
    /// The loop is closed, or its mailbox is full.
    pub async fn stop(&self) -> Result<Cursor> {
        self.call(|reply| Command::Stop { reply }).await
    }

    /// Closes the loop and all its watches. With `force`, closes it even if it is running, and
    /// without waiting for room in the mailbox. Returns the cursor of its last event.
    ///
    /// # Errors
    /// Without `force`: the loop is running, or its mailbox is full.
    pub async fn close(&self, end: LoopEnd) -> Result<Cursor> {
        let close = |reply| Command::Close { end, reply };
        let closed = if end.force {
            self.call_internal(close).await
        } else {
            self.call(close).await
        };
        match closed {
            // The loop was closed before, or by a concurrent call.
            Err(Error::LoopClosed { .. }) => {
                let journal = self.journal();
                Ok(journal.cursor(journal.status().newest))
            }
            closed => closed,
        }
    }
}
