//! A loop from outside its thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::commands::{Page, Posting, WatchFilter, WatchName};
use super::mailbox::{Mailbox, Message, Reply, closed};
use super::record::{Registration, TakenFd};
use super::registration::{Registered, Reserved, Ticket};
use super::{Blueprint, EventLoop, Shared};
use crate::access::Principal;
use crate::clock;
use crate::config::{Policy, WatchKind};
use crate::error::{Error, Result};
use crate::event::{Cursor, LoopState, PolicyChanged};
use crate::journal::{Journal, Reader};
use crate::proto;
use crate::watch::{Build, Order, Prepare, Services, SignalTarget, Taken};

/// Most paused sources that are shown of a loop.
const PAUSED_SHOWN: usize = 100;

fn since(pause: Option<&proto::SourcePause>) -> (i64, i32) {
    let since = pause.and_then(|pause| pause.since);
    since.map_or((0, 0), |since| (since.seconds, since.nanos))
}

/// A loop, for everybody who is not its thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    services: Arc<Services>,
}

/// A watch that was asked for and is there.
#[derive(Debug)]
pub struct Added {
    /// How it is.
    pub watch: proto::Watch,
    /// It was there before.
    pub existed: bool,
    /// Of a new watch, if one was asked for: attached from its first event on.
    pub reader: Option<Reader>,
}

impl Handle {
    /// Starts a loop.
    ///
    /// # Errors
    /// The system's refusal of a thread or a descriptor.
    pub fn start(blueprint: Blueprint) -> Result<Self> {
        EventLoop::start(blueprint)
    }

    pub(super) const fn new(
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
        services: Arc<Services>,
    ) -> Self {
        Self {
            shared,
            mailbox,
            services,
        }
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
        let mut paused: Vec<proto::PausedSource> = shared.paused.lock().values().cloned().collect();
        paused.sort_by_key(|paused| since(paused.pause.as_ref()));
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
                paused_source_count: paused.len() as u64,
                paused_sources: paused.into_iter().take(PAUSED_SHOWN).collect(),
            }),
            watches: shared.watches.load(Ordering::Relaxed),
            open_watches: self.open_watches(),
            survives: proto::Survives::Nothing.into(),
            turns: shared.turns.load(Ordering::Relaxed),
            history: super::pressure::told(shared.policy.history).into(),
        }
    }

    /// Has something done on the loop's thread; its reply may come later.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut EventLoop, Reply<T>) + Send + 'static,
    ) -> Result<T> {
        let answer = self.ask(ask).await?;
        self.hear(answer).await
    }

    /// As [`Self::call`], up to where it has its place in the order of what is done.
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut EventLoop, Reply<T>) + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (reply, answer) = Reply::new();
        let command = Box::new(move |on: &mut EventLoop| ask(on, reply));
        self.mailbox.command(self.full_name(), command).await?;
        Ok(answer)
    }

    async fn hear<T>(&self, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        let gone = |_| Err(closed(self.full_name()));
        answer.await.unwrap_or_else(gone)
    }

    /// Has something done that has its result at once; the reply leaves with the turn.
    pub(super) async fn call_now<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut EventLoop) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call(move |on, reply| {
            let result = ask(on);
            on.reply(reply, result);
        })
        .await
    }

    /// As [`Self::call`], of what cannot be refused any more: it does not wait for room.
    async fn insist<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut EventLoop, Reply<T>) + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = Reply::new();
        let command = Box::new(move |on: &mut EventLoop| ask(on, reply));
        self.mailbox.push(Message::Internal(command));
        self.hear(answer).await
    }

    /// Adds a watch. What can fail before it exists fails here and leaves nothing.
    ///
    /// # Errors
    /// A taken name, a limit, the system's refusal, a closed loop, a full mailbox.
    pub async fn add(&self, registration: Registration, order: Order) -> Result<Added> {
        self.begin_add(registration, order).await?.await
    }

    /// As [`Self::add`], up to where it has its place in the order of what is done. What it
    /// gives back waits for the rest.
    ///
    /// # Errors
    /// A closed loop, a full mailbox. The others come later.
    pub async fn begin_add(
        &self,
        registration: Registration,
        order: Order,
    ) -> Result<impl Future<Output = Result<Added>> + Send + use<>> {
        let (build, mut later) = match order {
            Order::Now(build) => (Some(build), None),
            Order::Later(prepare) => (None, Some(prepare)),
        };
        let mut answer = self.ask_room(&registration, build).await?;
        let on = self.clone();
        Ok(async move {
            loop {
                let (reserved, unused) = on.hear(answer).await?;
                match (reserved, later.take()) {
                    (Reserved::Exists(registered), _) => return Ok((*registered).into()),
                    (Reserved::Ticket(ticket), Some(prepare)) => {
                        return on.prepare(registration, prepare, ticket).await;
                    }
                    (Reserved::Ticket(_), None) => {
                        return Err(Error::Internal("a reservation was left"));
                    }
                    (Reserved::Undecided(decided), prepare) => {
                        later = prepare;
                        // An error means decided as well: the other registration is gone.
                        let _ = decided.await;
                        answer = on.ask_room(&registration, unused).await?;
                    }
                }
            }
        })
    }

    async fn ask_room(
        &self,
        registration: &Registration,
        build: Option<Build>,
    ) -> Result<oneshot::Receiver<Result<(Reserved, Option<Build>)>>> {
        let registration = registration.clone();
        self.ask(move |on: &mut EventLoop, reply| {
            let result = on.reserve_and_build(registration, build);
            on.reply(reply, result);
        })
        .await
    }

    /// Prepares the watch off the loop's thread and makes it exist, both in one job: nothing
    /// can come between them.
    async fn prepare(
        &self,
        registration: Registration,
        prepare: Prepare,
        ticket: Ticket,
    ) -> Result<Added> {
        let services = Arc::clone(&self.services);
        let (reply, answer) = Reply::new();
        let job = move || {
            let watch = prepare(&services)?;
            ticket.complete(move |on, number| {
                let registered = on.register(number, registration, watch);
                on.reply(reply, registered);
            });
            Ok::<_, Error>(())
        };
        self.services.starters.run(job).await??;
        self.hear(answer).await.map(Into::into)
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
        self.call_now(move |on| on.get(&name).and_then(admit)).await
    }

    /// Watches with an id above `after`, or what `admit` makes of them before they leave the loop.
    ///
    /// # Errors
    /// A closed loop, a full mailbox; they are not admitted.
    pub async fn list<T: Send + 'static>(
        &self,
        after: u64,
        max: usize,
        filter: WatchFilter,
        admit: impl FnOnce(Page<proto::Watch>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call_now(move |on| admit(on.list(after, max, &filter)))
            .await
    }

    /// Closes and forgets a watch; answers the cursor of its `Removed`.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn remove(&self, name: WatchName, request_id: String) -> Result<Cursor> {
        self.call(move |on, reply| on.remove_watch(&name, request_id, reply))
            .await
    }

    /// Has bytes sent.
    ///
    /// # Errors
    /// No such watch, a watch without an outgoing stream, a hole.
    pub async fn write(&self, name: WatchName, data: Bytes, at: Option<u64>) -> Result<Taken> {
        self.call_now(move |on| on.write(&name, data, at)).await
    }

    /// Ends an outgoing stream behind what was taken.
    ///
    /// # Errors
    /// No such watch, a watch without an outgoing stream.
    pub async fn write_eof(&self, name: WatchName) -> Result<()> {
        self.call_now(move |on| on.write_eof(&name)).await
    }

    /// Stops reading, or goes on.
    ///
    /// # Errors
    /// No such watch, a watch without an incoming stream.
    pub async fn pause_reading(&self, name: WatchName, pause: bool) -> Result<()> {
        self.call_now(move |on| on.pause_reading(&name, pause))
            .await
    }

    /// Sends a signal to a child or its group.
    ///
    /// # Errors
    /// No such watch, no process, one that has ended.
    pub async fn signal(&self, name: WatchName, number: i32, to: SignalTarget) -> Result<()> {
        self.call_now(move |on| on.signal(&name, number, to)).await
    }

    /// Closes a transport at once; answers the cursor of its `Closed`.
    ///
    /// # Errors
    /// No such watch, not a transport.
    pub async fn abort(&self, name: WatchName) -> Result<Cursor> {
        self.call(move |on, reply| on.abort(&name, reply)).await
    }

    /// Takes a watch's file descriptor out of the daemon and closes the watch.
    ///
    /// # Errors
    /// No such watch, or one whose descriptor stays.
    pub async fn take_fd(&self, name: WatchName) -> Result<TakenFd> {
        self.call(move |on, reply| on.take_fd(&name, reply)).await
    }

    /// Appends what a client posts; answers the cursor of the last.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn post(&self, postings: Vec<Posting>) -> Result<Cursor> {
        self.call_now(move |on| on.post(postings)).await
    }

    /// Tells that the policy in force for the loop's owner was switched.
    ///
    /// # Errors
    /// A closed loop.
    pub async fn policy_changed(&self, changed: PolicyChanged) -> Result<()> {
        self.insist(move |on, reply| {
            on.policy_changed(changed);
            on.reply(reply, Ok(()));
        })
        .await
    }

    /// The state of all its watches, by id, and the position it is the state at.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn snapshot(&self) -> Result<(Cursor, Vec<proto::Watch>)> {
        self.call_now(|on| Ok(on.snapshot())).await
    }

    /// Kills the children that end with the daemon.
    ///
    /// # Errors
    /// A closed loop.
    pub async fn kill_children(&self) -> Result<()> {
        self.insist(|on, reply| {
            on.kill_children();
            on.reply(reply, Ok(()));
        })
        .await
    }

    /// Lets it run.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn run(&self) -> Result<Cursor> {
        self.call_now(EventLoop::run_loop).await
    }

    /// Ends polling with the current turn.
    ///
    /// # Errors
    /// A closed loop, a full mailbox.
    pub async fn stop(&self) -> Result<Cursor> {
        self.call_now(EventLoop::stop_loop).await
    }

    /// Closes it, with all its watches; `force`: although it runs, and however many commands wait
    /// for it. Answers the cursor of its last event.
    ///
    /// # Errors
    /// Without `force`, a running loop, a full mailbox.
    pub async fn close(&self, force: bool) -> Result<Cursor> {
        let close = move |on: &mut EventLoop, reply| on.close_loop(force, reply);
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

impl From<Registered> for Added {
    fn from(registered: Registered) -> Self {
        Self {
            watch: registered.watch,
            existed: registered.existed,
            reader: registered.reader,
        }
    }
}
