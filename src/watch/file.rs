//! Reads a regular file, or follows one by its name, on a thread that may block.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::wake::WakeUp;
use super::{Context, Need, Notice, Resumption, Watch, path};
use crate::driver::{Done, Driver, Lane};
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Eof, FileChanged, Kind, Stream, largest};
use crate::follow::{self, Follower, Next, Standing, Step, Told};
use crate::paths::{self, Hub, Kinds, Subscription};
use crate::proto::state::KeptFile;
use crate::proto::state::kept_watch_state::Of;
use crate::proto::{self, FileChangeKind};

mod parts;

use parts::{Part, changed};

/// The most bytes that are read at once.
const AT_ONCE: u64 = 2 << 20;
/// How often a file whose changes the kernel tells is looked at all the same, unless its spec says so.
const TOLD_CHECK_EVERY: Duration = Duration::from_secs(10);
/// The room in the journal that a read wants at least.
const ROOM: u32 = 4 << 10;
/// What of a name and a file wakes its follower.
const WAKING: Kinds = Kinds::USUAL;

/// A file that is open already, or whose name is followed.
#[derive(Debug)]
pub struct FileOrder {
    follower: Box<Follower>,
    names: Option<Names>,
    paused: bool,
    /// Whether its spec says how often it is looked at.
    has_interval: bool,
}

/// The watching of a file's name. `None` where the file system does not tell of changes.
#[derive(Debug)]
struct Names {
    subscription: Subscription,
    wake: Arc<WakeUp>,
}

impl FileOrder {
    /// What the watch needs.
    pub const NEED: Need = Need::sources(0).and(largest::EOF).and_detail();

    /// Opens the file, after its name is watched. Blocks: it waits for the file system.
    ///
    /// # Errors
    /// A bad value of a field, or what the system refuses.
    pub fn open(hub: &Hub, spec: follow::Spec, has_interval: bool, paused: bool) -> Result<Self> {
        let names = match spec.follow {
            true => watched(hub, &spec)?,
            false => None,
        };
        let follower = Follower::open(spec, Instant::now()).map_err(|error| refusal(&error))?;
        Ok(Self {
            follower: Box::new(follower),
            names,
            paused,
            has_interval,
        })
    }

    /// Goes on with the files that an earlier life had open, after the name is watched. Blocks.
    fn resume(
        hub: &Hub,
        (spec, files): (follow::Spec, Vec<OwnedFd>),
        has_interval: bool,
    ) -> std::result::Result<Self, follow::Error> {
        let names = match spec.follow {
            // Where the name cannot be watched now, it is looked at by time.
            true => watched(hub, &spec).unwrap_or_default(),
            false => None,
        };
        let follower = Follower::again(spec, files, Instant::now())?;
        Ok(Self {
            follower: Box::new(follower),
            names,
            paused: false,
            has_interval,
        })
    }

    /// Builds the watch again of a file that an earlier life has read or followed, with what of it that
    /// life had open. It is looked at once the watch goes on.
    #[must_use]
    pub fn again(spec: follow::Spec, files: Vec<OwnedFd>, has_interval: bool) -> Box<dyn Watch> {
        Box::new(FileWatch {
            again: Some(Box::new((spec, files))),
            ..FileWatch::new(has_interval)
        })
    }

    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        Box::new(FileWatch {
            status: self.follower.status(),
            standing: Some(self.follower.standing()),
            follower: Some(self.follower),
            names: self.names,
            paused: self.paused,
            ..FileWatch::new(self.has_interval)
        })
    }
}

impl FileWatch {
    fn new(has_interval: bool) -> Self {
        Self {
            status: follow::Status::default(),
            standing: None,
            follower: None,
            again: None,
            names: None,
            has_interval,
            told: VecDeque::new(),
            kept: 0,
            next: Next::More,
            woken: true,
            path_event: false,
            paused: false,
            held: false,
            reading: 0,
        }
    }
}

fn watched(hub: &Hub, spec: &follow::Spec) -> Result<Option<Names>> {
    let wake = Arc::new(WakeUp::default());
    let mut of_name = paths::Spec::new(spec.path.as_os_str());
    of_name.kinds = WAKING;
    // Only whether anything came is of interest.
    of_name.inbox.entries = 1;
    match hub.watch(of_name, Arc::clone(&wake) as Arc<dyn paths::Sink>) {
        Ok(subscription) => Ok(Some(Names { subscription, wake })),
        // It is looked at by time.
        Err(paths::Refused::Silent { .. } | paths::Refused::Unreadable { .. }) => Ok(None),
        Err(refused) => Err(match path::refusal(&refused) {
            Error::InvalidField { allowed, .. } => Error::invalid("spec.file.path", allowed),
            other => other,
        }),
    }
}

fn refusal(error: &follow::Error) -> Error {
    match error {
        follow::Error::InvalidField { field, allowed } => {
            let field = if *field == "from" { "offset" } else { field };
            Error::invalid(format!("spec.file.{field}"), allowed.clone())
        }
        follow::Error::NotRegular { .. } => Error::invalid("spec.file.path", error.to_string()),
        follow::Error::NoSize { .. } => {
            Error::invalid("spec.file.follow", format!("must be false: {error}"))
        }
        follow::Error::Io { .. } => system_error(error).into(),
    }
}

fn system_error(error: &follow::Error) -> SystemError {
    match error {
        follow::Error::Io { doing, path, errno } => {
            let step = match doing {
                follow::Doing::Find => "find",
                follow::Doing::Open => "open",
                follow::Doing::Read => "read",
            };
            SystemError::new(*errno, step, path.display().to_string())
        }
        other => SystemError::new(Errno::INVAL, "open", other.to_string()),
    }
}

#[derive(Debug)]
struct FileWatch {
    /// `None` while a step is under way on another thread, and once the watch has closed.
    follower: Option<Box<Follower>>,
    /// How far it is told.
    standing: Option<Standing>,
    /// The file of an earlier life, until the watch goes on.
    again: Option<Box<(follow::Spec, Vec<OwnedFd>)>>,
    names: Option<Names>,
    has_interval: bool,
    /// What the last step told and found no room in the journal.
    told: VecDeque<Part>,
    /// The bytes that may come as Data: those of `told`, or those that the step under way may read.
    kept: usize,
    next: Next,
    /// Whether a step is due.
    woken: bool,
    /// Whether there was a path event since the last step began.
    path_event: bool,
    paused: bool,
    held: bool,
    /// The file that the last Data was of; 0 before the first.
    reading: u64,
    status: follow::Status,
}

impl FileWatch {
    /// Tells what waits, and then begins the next step if one is due.
    fn advance(&mut self, cx: &mut Context<'_>) {
        if !self.tell(cx) || cx.is_closing() {
            return;
        }
        if self.next == Next::Done {
            cx.close(CloseReason::Completed);
            return;
        }
        if self.follower.is_none() {
            return;
        }
        let reads = !self.paused && !self.held && cx.has_room_for(ROOM);
        if self.woken || (self.next == Next::More && reads) {
            self.step(
                cx,
                if reads {
                    cx.read_budget().min(AT_ONCE)
                } else {
                    0
                },
            );
        } else if let Next::Wake { after } = self.next {
            let told = self.names.is_some() && self.status.rotated == 0;
            let seldom = told && !self.has_interval;
            cx.set_alarm_in(if seldom { TOLD_CHECK_EVERY } else { after });
        }
    }

    fn step(&mut self, cx: &mut Context<'_>, budget: u64) {
        let Some(mut follower) = self.follower.take() else {
            return;
        };
        self.woken = false;
        if std::mem::take(&mut self.path_event) {
            follower.path_event();
        }
        cx.clear_alarm();
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        self.count(cx, budget);
        let (key, notifier) = (cx.key(), Arc::clone(cx.notifier));
        cx.services.runtime.spawn_blocking(move || {
            // A panic must not leave the watch waiting for ever.
            let step = catch_unwind(AssertUnwindSafe(|| follower.step(Instant::now(), budget)));
            let done = step.ok().map(|step| (follower, step));
            notifier.notify(key, Notice::FileStep(done));
        });
    }

    fn stepped(&mut self, cx: &mut Context<'_>, done: Option<(Box<Follower>, Step)>) {
        let Some((follower, step)) = done else {
            cx.fail(Errno::IO, "read");
            return;
        };
        self.status = follower.status();
        self.follower = Some(follower);
        self.next = step.next;
        let bytes = step.told.iter().map(|told| match told {
            Told::Data { bytes, .. } => bytes.len(),
            _ => 0,
        });
        self.count(cx, bytes.sum());
        self.told.extend(Part::of(step));
        self.advance(cx);
    }

    fn count(&mut self, cx: &mut Context<'_>, bytes: usize) {
        cx.keep(self.kept, bytes);
        self.kept = bytes;
    }

    /// Appends what the last step told. Returns whether all of it had room.
    fn tell(&mut self, cx: &mut Context<'_>) -> bool {
        const MOST: u32 = largest::FILE_CHANGED + largest::DETAIL;
        while let Some(part) = self.told.front() {
            // Room for bytes was set aside before they were read.
            if !cx.has_room_for_all(part.events(self.reading), MOST) {
                return false;
            }
            if let Some(part) = self.told.pop_front() {
                for told in part.told {
                    self.tell_one(cx, told);
                }
                self.standing = Some(part.standing);
                cx.close_files(part.released);
                cx.changed();
            }
        }
        true
    }

    fn tell_one(&mut self, cx: &mut Context<'_>, told: Told) {
        match told {
            Told::Data {
                generation,
                offset,
                bytes,
            } => {
                if generation != self.reading {
                    self.reading = generation;
                    cx.emit(Kind::FileChanged(FileChanged {
                        change: FileChangeKind::Reading.into(),
                        generation,
                        offset,
                        ..FileChanged::default()
                    }));
                }
                self.count(cx, self.kept.saturating_sub(bytes.len()));
                cx.emit_data(Stream::Input, offset, &bytes);
            }
            Told::Eof { offset } => {
                cx.emit(Kind::Eof(Eof { offset }));
            }
            Told::Changed { generation, change } => {
                cx.emit(Kind::FileChanged(changed(generation, &change)));
            }
            Told::Failed(error) => {
                cx.emit(Kind::FileChanged(FileChanged {
                    change: FileChangeKind::Failed.into(),
                    error: Some((&system_error(&error)).into()),
                    ..FileChanged::default()
                }));
            }
        }
    }

    /// Reads and follows on what an earlier life has left.
    fn go_on(&mut self, cx: &mut Context<'_>, order: FileOrder) {
        if let Some(names) = &order.names {
            names.wake.connect(cx);
        }
        self.status = order.follower.status();
        (self.follower, self.names) = (Some(order.follower), order.names);
        self.woken = true;
        self.advance(cx);
    }
}

impl Watch for FileWatch {
    fn start(&mut self, cx: &mut Context<'_>) {
        if let Some(names) = &self.names {
            names.wake.connect(cx);
        }
        cx.changed();
        self.advance(cx);
    }

    fn keep(&self, _driver: &dyn Driver) -> Option<Of> {
        let standing = self.standing.as_ref()?;
        Some(Of::File(KeptFile {
            files: standing.files.clone(),
            position: serde_json::to_vec(&standing.position).ok()?,
            reading: self.reading,
            paused: self.paused,
        }))
    }

    fn resume(&mut self, cx: &mut Context<'_>, kept: Resumption) -> Result<()> {
        let (Of::File(before), Some(again)) = (kept.of, self.again.take()) else {
            return Err(Error::Internal("what was kept is no file"));
        };
        let hub = kept.paths;
        let hub = hub.ok_or_else(|| Error::wrong_state("the loop watches no paths"))?;
        let position: follow::Position = serde_json::from_slice(&before.position)
            .map_err(|_| Error::Internal("how far it was read cannot be understood"))?;
        (self.paused, self.reading) = (before.paused, before.reading);
        self.status = position.status();
        self.standing = Some(Standing {
            position: position.clone(),
            files: before.files,
        });
        let (mut spec, files) = *again;
        spec.resume = Some(position);
        let has_interval = self.has_interval;
        let (key, notifier) = (cx.key(), Arc::clone(cx.notifier));
        cx.services.runtime.spawn_blocking(move || {
            let order = FileOrder::resume(&hub, (spec, files), has_interval);
            let order = order.map(Box::new).map_err(|error| system_error(&error));
            notifier.notify(key, Notice::FileAgain(order));
        });
        cx.changed();
        Ok(())
    }

    fn complete(&mut self, _cx: &mut Context<'_>, _lane: Lane, _done: Done) {}

    fn alarm(&mut self, cx: &mut Context<'_>) {
        self.woken = true;
        self.advance(cx);
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        match notice {
            Notice::FileStep(done) => self.stepped(cx, done),
            Notice::FileAgain(Ok(order)) => self.go_on(cx, *order),
            Notice::FileAgain(Err(error)) => cx.close_with_error(error),
            Notice::Woken => {
                if let Some(names) = &self.names {
                    let news = names.subscription.inbox().take(usize::MAX, usize::MAX);
                    let failed = |told: &paths::Told| matches!(told, paths::Told::Failed { .. });
                    self.path_event |= !news.is_empty();
                    if news.iter().any(failed) {
                        self.names = None;
                    }
                }
                self.woken = true;
                self.advance(cx);
            }
            _ => {}
        }
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        self.held = hold;
        if !hold {
            // The last step may have been one that was to read nothing, and so found nothing.
            self.woken = true;
            self.advance(cx);
        }
        !self.paused
    }

    fn pause_reading(&mut self, cx: &mut Context<'_>, pause: bool) -> Result<()> {
        self.paused = pause;
        cx.changed();
        self.woken = true;
        self.advance(cx);
        Ok(())
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        self.count(cx, 0);
        for part in self.told.drain(..) {
            cx.close_files(part.released);
        }
        self.status = follow::Status {
            open: 0,
            rotated: 0,
            unread_bytes: 0,
            deleted_bytes: 0,
            ..self.status
        };
        if let Some(follower) = self.follower.take() {
            cx.close_files(follower.into_files());
        }
        self.names = None;
        0
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        let status = &self.status;
        Some(proto::watch::Status::File(proto::FileStatus {
            reading_paused: self.paused,
            generation: status.generation,
            offset: status.offset,
            open_files: u32::try_from(status.open).unwrap_or(u32::MAX),
            unread_bytes: status.unread_bytes,
            deleted_bytes: status.deleted_bytes,
            given_up: status.given_up,
            given_up_bytes: status.given_up_bytes,
            notified: self.names.is_some(),
        }))
    }
}
