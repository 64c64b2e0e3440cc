//! The terminals of processes: what their screens show, and who views them.
//!
//! For each terminal a task reads the events of its process, as a reader that the process waits for,
//! and feeds the output to a screen. So the screen and the events after it are always the whole,
//! whatever the journal has dropped. The tasks have threads of their own, because parsing takes
//! processor time.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use rustix::io::Errno;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::error::{Error, Result, SystemError};
use crate::event_loop::{Handle, WatchName};
use crate::journal::{Read, Reader};
use crate::memory::{Budget, Taken, Use};
use crate::proto::event::Kind;
use crate::proto::{Batch, Exited, Stream, TerminalSize};
use crate::screen::Screen;
use views::Views;

mod views;

pub use views::SizeOf;

/// The most bytes of events of one read, after which the other terminals of the thread get a turn.
const READ_BYTES: usize = 64 * 1024;
/// The most events of one read.
const READ_EVENTS: usize = 1024;
/// How long a view waits for the screen to have everything that was written before it asked. What
/// is missing after that follows as output.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How long input waits before it is offered to a full terminal again.
const RETRY: Duration = Duration::from_millis(10);

/// The screen of a terminal at one point of the journal.
#[derive(Debug)]
pub struct Shot {
    /// The bytes that make a terminal of that size, just reset, show the screen.
    pub restore: Bytes,
    /// The size of the terminal.
    pub size: TerminalSize,
    /// The sequence number of the last event of the terminal that it shows.
    pub shown: u64,
    /// How the process has ended, which may be before that.
    pub exited: Option<Exited>,
}

/// A screen.
#[derive(Debug)]
enum State {
    Followed(Box<Screen>),
    /// The output has ended: the bytes that show the screen are all that is needed.
    Last(Bytes),
}

/// What a screen shows, and how far it has come.
#[derive(Debug)]
struct Shown {
    screen: State,
    size: TerminalSize,
    /// The memory that it is counted with.
    charge: Taken,
    /// The sequence number of the last event that it shows.
    seq: u64,
    exited: Option<Exited>,
}

/// The terminal of a process.
#[derive(Debug)]
pub struct Terminal {
    on: Handle,
    watch_id: u64,
    size_of: SizeOf,
    shown: Mutex<Shown>,
    /// The sequence number up to which the screen has read the journal.
    through: watch::Sender<u64>,
    views: watch::Sender<Views>,
    /// The sequence number up to which an earlier life has answered what the program has asked.
    answered: u64,
    /// Held by the view whose input is being taken, so that inputs do not mix.
    typing: tokio::sync::Mutex<()>,
}

impl Terminal {
    /// Returns the screen with everything in it that was written until now.
    pub async fn shot(&self) -> Shot {
        let newest = self.on.journal().status().newest;
        let mut through = self.through.subscribe();
        let caught_up = through.wait_for(|through| *through >= newest);
        // What is missing after that time follows as output.
        let _ = tokio::time::timeout(CATCH_UP, caught_up).await;
        let shown = self.shown.lock();
        Shot {
            restore: match &shown.screen {
                State::Followed(screen) => screen.restore().into(),
                State::Last(restore) => restore.clone(),
            },
            size: shown.size,
            shown: shown.seq,
            exited: shown.exited.clone(),
        }
    }

    /// Returns the loop of the process.
    #[must_use]
    pub const fn on(&self) -> &Handle {
        &self.on
    }

    /// Opens a view; `size` is `None` if it has no part in the size of the terminal.
    #[must_use]
    pub async fn view(self: &Arc<Self>, size: Option<TerminalSize>, read_only: bool) -> OpenView {
        let mut id = 0;
        self.views
            .send_modify(|views| id = views.open(size, read_only));
        let view = OpenView {
            changes: self.views.subscribe(),
            terminal: Arc::clone(self),
            id,
        };
        self.fit().await;
        view
    }

    /// Gives the terminal the size that its views want.
    async fn fit(&self) {
        let wanted = self.views.borrow().size(self.size_of);
        if let Some(size) = wanted {
            // A process that has ended needs no size. Without memory for a larger screen the size
            // stays.
            let _ = self.resize(size).await;
        }
    }

    fn fit_later(self: &Arc<Self>) {
        let terminal = Arc::clone(self);
        // A view that closes because the daemon ends needs no size.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { terminal.fit().await });
        }
    }

    /// Changes the size of the terminal.
    ///
    /// # Errors
    /// The process has ended, or there is no memory for a larger screen.
    pub async fn resize(&self, size: TerminalSize) -> Result<()> {
        {
            let charge = &mut self.shown.lock().charge;
            let more = memory(size).saturating_sub(charge.bytes());
            if more > 0 {
                charge.grow(more)?;
            }
        }
        self.on.resize_pty(self.name(), size).await
    }

    /// Writes input to the terminal, as fast as it takes it.
    ///
    /// # Errors
    /// The process has ended, or the terminal cannot hold a line; and the number of bytes at the end
    /// that were not written.
    pub async fn take(&self, mut input: Bytes) -> Result<(), (usize, Error)> {
        let _typing = self.typing.lock().await;
        let write = |data: Bytes| self.on.write(self.name(), data, None);
        let all = input.len();
        let mut before = write(Bytes::new())
            .await
            .map_err(|error| (all, error))?
            .taken;
        while !input.is_empty() {
            let left = input.len();
            let taken = write(input.clone())
                .await
                .map_err(|error| (left, error))?
                .taken;
            let new = usize::try_from(taken.saturating_sub(before)).unwrap_or(usize::MAX);
            drop(input.split_to(new.min(input.len())));
            before = taken;
            if !input.is_empty() {
                tokio::time::sleep(RETRY).await;
            }
        }
        Ok(())
    }

    const fn name(&self) -> WatchName {
        WatchName::Id(self.watch_id)
    }

    /// Feeds what was read to the screen. Returns the answers to what the program has asked, and
    /// whether the watch was removed.
    fn feed(&self, read: &Read) -> (Vec<u8>, bool) {
        let mut shown = self.shown.lock();
        let shown = &mut *shown;
        let (mut answers, mut removed) = (Vec::new(), false);
        for slice in &read.slices {
            let batch = Batch::decode(slice.clone()).unwrap_or_default();
            for event in batch.events {
                match (event.kind, &mut shown.screen) {
                    (Some(Kind::Data(data)), State::Followed(screen))
                        if data.stream() == Stream::Stdout =>
                    {
                        screen.feed(&data.data);
                    }
                    (Some(Kind::Resized(resized)), State::Followed(screen)) => {
                        let size = resized.size.unwrap_or_default();
                        let (rows, columns) = sides(size);
                        screen.resize(rows, columns);
                        shown.size = size;
                        shown.count(memory(size));
                    }
                    (Some(Kind::StreamEnd(end)), State::Followed(screen))
                        if end.stream() == Stream::Stdout =>
                    {
                        answers.append(&mut screen.take_answers());
                        let restore = Bytes::from(screen.restore());
                        shown.count(restore.len() as u64);
                        shown.screen = State::Last(restore);
                    }
                    (Some(Kind::Exited(exited)), _) => {
                        shown.exited = Some(exited);
                        continue;
                    }
                    (kind, _) => {
                        removed |= matches!(kind, Some(Kind::Removed(_)));
                        continue;
                    }
                }
                shown.seq = event.seq;
                if event.seq <= self.answered
                    && let State::Followed(screen) = &mut shown.screen
                {
                    screen.take_answers();
                }
            }
        }
        if let State::Followed(screen) = &mut shown.screen {
            answers.append(&mut screen.take_answers());
        }
        (answers, removed)
    }

    /// Keeps the screen until the watch is removed.
    async fn keep(&self, mut reader: Reader) {
        while let Ok(read) = poll_fn(|cx| reader.poll_read(cx, READ_BYTES, READ_EVENTS)).await {
            let (answers, removed) = self.feed(&read);
            self.through.send_replace(read.through);
            if !answers.is_empty() && !self.views.borrow().has_active() {
                // A process that has ended waits for no answer, and one that reads none gets no more
                // of them than its input holds: the screen must not wait for it.
                let _ = self.on.write(self.name(), answers.into(), None).await;
            }
            if removed {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Whoever waits for the screen to catch up need not wait any longer.
        self.through.send_replace(u64::MAX);
    }
}

impl Shown {
    /// Counts the screen with so much memory from now on.
    fn count(&mut self, bytes: u64) {
        let held = self.charge.bytes();
        self.charge.shrink(held.saturating_sub(bytes));
        if bytes > held {
            // Whoever changes the size takes the memory first, but another change may have given it
            // back since. If there is none now, the screen is counted too low until its next size.
            let _ = self.charge.grow(bytes - held);
        }
    }
}

/// Returns the memory that the screen of a terminal of that size takes.
fn memory(size: TerminalSize) -> u64 {
    let (rows, columns) = sides(size);
    Screen::memory(rows, columns) as u64
}

/// Returns rows and columns, which a terminal has at most 1,000 of.
fn sides(size: TerminalSize) -> (u16, u16) {
    let side = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    (side(size.rows), side(size.columns))
}

/// A view of a terminal. It is closed when this is dropped.
#[derive(Debug)]
pub struct OpenView {
    terminal: Arc<Terminal>,
    id: u64,
    changes: watch::Receiver<Views>,
}

impl OpenView {
    /// Returns the terminal.
    #[must_use]
    pub const fn terminal(&self) -> &Arc<Terminal> {
        &self.terminal
    }

    /// Records that the user has typed, and gives the terminal the size of this view, if the last
    /// one typed into has it.
    pub fn typed(&self) {
        let changed = |views: &mut Views| views.typed(self.id);
        if self.terminal.views.send_if_modified(changed) {
            self.terminal.fit_later();
        }
    }

    /// Changes the size of the view.
    pub fn resize(&self, size: TerminalSize) {
        let resized = |views: &mut Views| views.resize(self.id, size);
        self.terminal.views.send_modify(resized);
        self.terminal.fit_later();
    }

    /// Returns whether the program's questions are for this view, and how many views there are.
    pub fn state(&mut self) -> (bool, usize) {
        let views = self.changes.borrow_and_update();
        (views.is_active(self.id), views.count())
    }

    /// Waits until some view has changed since [`OpenView::state`].
    pub async fn changed(&mut self) {
        // The sender lives as long as the terminal.
        let _ = self.changes.changed().await;
    }
}

impl Drop for OpenView {
    fn drop(&mut self) {
        self.terminal
            .views
            .send_modify(|views| views.close(self.id));
        self.terminal.fit_later();
    }
}

/// The place of a screen, before its process has started: all that the screen needs.
#[derive(Debug)]
pub struct Place {
    size: TerminalSize,
    size_of: SizeOf,
    charge: Taken,
}

/// A loop's id and a watch's.
type Id = (u64, u64);

/// The terminals of all processes.
#[derive(Debug)]
pub struct Terminals {
    threads: usize,
    budget: Arc<Budget>,
    runtime: Mutex<Option<Runtime>>,
    open: Arc<Mutex<HashMap<Id, Arc<Terminal>>>>,
}

impl Terminals {
    /// Returns terminals whose screens are kept on `threads` threads, at least one, in memory that
    /// the budget counts. The threads start with the first terminal.
    #[must_use]
    pub fn new(threads: usize, budget: Arc<Budget>) -> Self {
        Self {
            threads,
            budget,
            runtime: Mutex::new(None),
            open: Arc::default(),
        }
    }

    /// Returns a place for the screen of a terminal.
    ///
    /// # Errors
    /// [`Error::Limit`] if there is no memory for it; the system refuses
    /// the threads.
    pub fn place(&self, size: TerminalSize, size_of: SizeOf) -> Result<Place> {
        let charge = self.budget.take(Use::Screens, memory(size))?;
        let mut runtime = self.runtime.lock();
        if runtime.is_none() {
            *runtime = Some(start(self.threads)?);
        }
        Ok(Place {
            size,
            size_of,
            charge,
        })
    }

    /// Keeps the screen of a process, from what `reader` reads, until its watch is removed.
    pub fn keep(&self, on: &Handle, watch_id: u64, place: Place, reader: Reader) {
        self.take_up(on, watch_id, place, reader, 0);
    }

    /// As [`Terminals::keep`], of a process that an earlier life has started: it has answered what the
    /// program asked up to `answered`.
    pub fn take_up(&self, on: &Handle, watch_id: u64, place: Place, reader: Reader, answered: u64) {
        let Place {
            size,
            size_of,
            charge,
        } = place;
        let id = (on.id(), watch_id);
        let (rows, columns) = sides(size);
        let terminal = Arc::new(Terminal {
            on: on.clone(),
            watch_id,
            size_of,
            shown: Mutex::new(Shown {
                screen: State::Followed(Box::new(Screen::new(rows, columns))),
                size,
                charge,
                seq: reader.after(),
                exited: None,
            }),
            through: watch::Sender::new(reader.after()),
            views: watch::Sender::default(),
            answered,
            typing: tokio::sync::Mutex::default(),
        });
        self.open.lock().insert(id, Arc::clone(&terminal));
        // The place has started it.
        if let Some(runtime) = self.runtime.lock().as_ref() {
            let open = Arc::clone(&self.open);
            runtime.spawn(async move {
                terminal.keep(reader).await;
                open.lock().remove(&id);
            });
        }
    }

    /// Returns the terminal of a process; `None` if it has none.
    #[must_use]
    pub fn get(&self, loop_id: u64, watch_id: u64) -> Option<Arc<Terminal>> {
        self.open.lock().get(&(loop_id, watch_id)).map(Arc::clone)
    }
}

impl Drop for Terminals {
    fn drop(&mut self) {
        // Does not wait for the threads, which is not allowed on a thread of another runtime.
        if let Some(runtime) = self.runtime.get_mut().take() {
            runtime.shutdown_background();
        }
    }
}

fn start(threads: usize) -> Result<Runtime, SystemError> {
    let started = Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("screens")
        .enable_time()
        .build();
    started.map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
        SystemError::new(errno, "screens", "")
    })
}
