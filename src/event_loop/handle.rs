//! A loop from outside its thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::command::Command;
use super::commands::{PAGE_BYTES, Page, Part, Posting, WatchFilter, WatchName};
use super::mailbox::{Mailbox, Message, Reply, closed};
use super::record::TakenFd;
use super::{Blueprint, EventLoop, Shared};
use crate::access::{Principal, ProcessKey};
use crate::clock;
use crate::config::Policy;
use crate::error::{Error, Result};
use crate::event::{Cursor, LoopState, PolicyChanged};
use crate::journal::Journal;
use crate::kinds::WatchKind;
use crate::proto;
use crate::watch::{SignalTarget, Taken};

/// Most paused sources that are shown of a loop.
const PAUSED_SHOWN: usize = 100;

/// A loop, for everybody who is not its thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    pub(super) mailbox: Arc<Mailbox>,
}

impl Handle {
    /// Starts a loop.
    ///
    /// # Errors
    /// The system's refusal of a thread or a descriptor.
    pub fn start(blueprint: Blueprint) -> Result<Self> {
        EventLoop::start(blueprint)
    }

    pub(super) const fn new(shared: Arc<Shared>, mailbox: Arc<Mailbox>) -> Self {
        Self { shared, mailbox }
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Of what need not wait for room.
    pub(super) fn push(&self, message: Message) {
        self.mailbox.push(message);
    }

    /// Never reused.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Its name, without the owner's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its name in full.
    #[must_use]
    pub fn full_name(&self) -> &str {
        &self.shared.full_name
    }

    /// Whose it is.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.shared.principal
    }

    /// By whose rules it was made.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.shared.policy
    }

    /// What it waits with.
    #[must_use]
    pub fn backend(&self) -> crate::driver::Backend {
        self.shared.backend
    }

    /// The client process it is bound to.
    #[must_use]
    pub fn process(&self) -> Option<ProcessKey> {
        self.shared.process
    }

    /// Its events.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.shared.journal
    }

    /// The state it is in.
    #[must_use]
    pub fn state(&self) -> LoopState {
        let state = self.shared.state.load(Ordering::Acquire);
        LoopState::try_from(i32::from(state)).unwrap_or(LoopState::Closed)
    }

    /// Open watches.
    #[must_use]
    pub fn open_watches(&self) -> u64 {
        self.shared.open_watches.load(Ordering::Relaxed)
    }

    /// As shown to clients.
    #[must_use]
    pub fn view(&self) -> proto::Loop {
        let shared = &self.shared;
        let journal = shared.journal.status();
        let paused = shared.paused.lock();
        let paused_count = paused.len() as u64;
        let paused_sources = paused.values().take(PAUSED_SHOWN).cloned().collect();
        drop(paused);
        let watcher = if shared.policy.watch_kinds.contains(&WatchKind::Process) {
            shared.policy.child_watcher.name()
        } else {
            ""
        };
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
                readers_let_go: journal.let_go,
                paused_source_count: paused_count,
                paused_sources,
            }),
            watches: shared.watches.load(Ordering::Relaxed),
            open_watches: self.open_watches(),
            survives: proto::Survives::Nothing.into(),
            turns: shared.turns.load(Ordering::Relaxed),
            history: super::pressure::told(shared.policy.history).into(),
            lifetime: super::record::lifetime(shared.process).into(),
        }
    }

    /// Has a command carried out on the loop's thread, and waits for its reply.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T> {
        let answer = self.ask(command).await?;
        self.hear(answer).await
    }

    /// As [`Self::call`], up to where it has its place in the order of what is done.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (reply, answer) = Reply::new();
        self.mailbox
            .command(self.full_name(), command(reply))
            .await?;
        Ok(answer)
    }

    pub(super) async fn hear<T>(&self, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        let gone = |_| Err(closed(self.full_name()));
        answer.await.unwrap_or_else(gone)
    }

    /// As [`Self::call`], of what cannot be refused any more: it does not wait for room.
    async fn insist<T: Send + 'static>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T> {
        let (reply, answer) = Reply::new();
        self.mailbox.push(Message::Internal(command(reply)));
        self.hear(answer).await
    }

    /// One watch, or what `admit` makes of it before it leaves the loop.
    ///
    /// # Errors
    /// There is none of that name; it is not admitted.
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

    /// Watches with an id above `after`. `admit` is asked before any of them leave the loop, which
    /// tells a page in steps, and is given back.
    ///
    /// # Errors
    /// A closed loop, a full mailbox; they are not admitted.
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

    /// Closes and forgets a watch; answers the cursor of its `Removed`.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn remove(&self, name: WatchName, request_id: String) -> Result<Cursor> {
        self.call(|reply| Command::Remove {
            name,
            request_id,
            reply,
        })
        .await
    }

    /// Has bytes sent.
    ///
    /// # Errors
    /// No such watch, a watch without an outgoing stream, a hole.
    pub async fn write(&self, name: WatchName, data: Bytes, at: Option<u64>) -> Result<Taken> {
        self.call(|reply| Command::Write {
            name,
            data,
            at,
            reply,
        })
        .await
    }

    /// Ends an outgoing stream behind what was taken.
    ///
    /// # Errors
    /// No such watch, a watch without an outgoing stream.
    pub async fn write_eof(&self, name: WatchName) -> Result<()> {
        self.call(|reply| Command::WriteEof { name, reply }).await
    }

    /// Stops reading, or goes on.
    ///
    /// # Errors
    /// No such watch, a watch without an incoming stream.
    pub async fn pause_reading(&self, name: WatchName, pause: bool) -> Result<()> {
        self.call(|reply| Command::PauseReading { name, pause, reply })
            .await
    }

    /// Sends a signal to a child or its group.
    ///
    /// # Errors
    /// No such watch, no process, one that has ended.
    pub async fn signal(&self, name: WatchName, number: i32, to: SignalTarget) -> Result<()> {
        self.call(|reply| Command::Signal {
            name,
            number,
            target: to,
            reply,
        })
        .await
    }

    /// Closes a transport at once; answers the cursor of its `Closed`.
    ///
    /// # Errors
    /// No such watch, not a transport.
    pub async fn abort(&self, name: WatchName) -> Result<Cursor> {
        self.call(|reply| Command::Abort { name, reply }).await
    }

    /// Takes a watch's file descriptor out of the daemon and closes the watch.
    ///
    /// # Errors
    /// No such watch, or one whose descriptor stays.
    pub async fn take_fd(&self, name: WatchName) -> Result<TakenFd> {
        self.call(|reply| Command::TakeFd { name, reply }).await
    }

    /// Appends what a client posts; answers the cursor of the last.
    ///
    /// # Errors
    /// A closed loop, a full mailbox, no memory for it to wait in.
    pub async fn post(&self, postings: Vec<Posting>) -> Result<Cursor> {
        self.call(|reply| Command::Post { postings, reply }).await
    }

    /// Tells that the policy in force for the loop's owner was switched.
    ///
    /// # Errors
    /// A closed loop.
    pub async fn policy_changed(&self, changed: PolicyChanged) -> Result<()> {
        self.insist(|reply| Command::PolicyChanged { changed, reply })
            .await
    }

    /// Kills the children that end with the daemon.
    ///
    /// # Errors
    /// A closed loop.
    pub async fn kill_children(&self) -> Result<()> {
        self.insist(|reply| Command::KillChildren { reply }).await
    }

    /// Lets it run.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn run(&self) -> Result<Cursor> {
        self.call(|reply| Command::Run { reply }).await
    }

    /// Ends polling with the current turn.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn stop(&self) -> Result<Cursor> {
        self.call(|reply| Command::Stop { reply }).await
    }

    /// Closes it, with all its watches; `force`: although it runs, and however many commands wait
    /// for it. Answers the cursor of its last event.
    ///
    /// # Errors
    /// Without `force`, a running loop, a full mailbox.
    pub async fn close(&self, force: bool) -> Result<Cursor> {
        let close = |reply| Command::Close { force, reply };
        let closed = if force {
            self.insist(close).await
        } else {
            self.call(close).await
        };
        match closed {
            // It was closed before, or by another call at the same time.
            Err(Error::LoopClosed { .. }) => {
                let journal = self.journal();
                Ok(journal.cursor(journal.status().newest))
            }
            closed => closed,
        }
    }
}
