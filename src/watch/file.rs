//! Reads a regular file, or follows one by its name, on a thread that may block.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::wake::WakeUp;
use super::{Context, Need, Notice, Watch, path};
use crate::driver::{Done, Driver, Lane};
use crate::error::{Error, Result, SystemError};
use crate::event::{CloseReason, Eof, FileChanged, Kind, Stream, largest};
use crate::follow::{self, Follower, GaveUp, Next, Step, Told};
use crate::paths::{self, Hub, Kinds, Subscription};
use crate::proto::{self, FileChangeKind, GiveUpReason};

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

    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        Box::new(FileWatch {
            status: self.follower.status(),
            follower: Some(self.follower),
            names: self.names,
            has_interval: self.has_interval,
            told: VecDeque::new(),
            kept: 0,
            next: Next::More,
            woken: true,
            path_event: false,
            paused: self.paused,
            held: false,
            reading: 0,
        })
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
    names: Option<Names>,
    has_interval: bool,
    /// What the last step told and found no room in the journal.
    told: VecDeque<Told>,
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
        self.keep(cx, budget);
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
        self.keep(cx, bytes.sum());
        self.told.extend(step.told);
        self.advance(cx);
    }

    fn keep(&mut self, cx: &mut Context<'_>, bytes: usize) {
        cx.keep(self.kept, bytes);
        self.kept = bytes;
    }

    /// Appends what the last step told. Returns whether all of it had room.
    fn tell(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some(told) = self.told.front() {
            if let Told::Data {
                generation, offset, ..
            } = told
                && *generation != self.reading
            {
                let (generation, offset) = (*generation, *offset);
                if !cx.has_room_for(largest::FILE_CHANGED) {
                    return false;
                }
                self.reading = generation;
                cx.emit(Kind::FileChanged(FileChanged {
                    change: FileChangeKind::Reading.into(),
                    generation,
                    offset,
                    ..FileChanged::default()
                }));
            }
            // Room for bytes was set aside before they were read.
            let needed = match told {
                Told::Data { .. } | Told::Eof { .. } => 0,
                _ => largest::FILE_CHANGED + largest::DETAIL,
            };
            if needed > 0 && !cx.has_room_for(needed) {
                return false;
            }
            match self.told.pop_front() {
                Some(Told::Data { offset, bytes, .. }) => {
                    self.keep(cx, self.kept.saturating_sub(bytes.len()));
                    cx.emit_data(Stream::Input, offset, &bytes);
                }
                Some(Told::Eof { offset }) => {
                    cx.emit(Kind::Eof(Eof { offset }));
                }
                Some(Told::Changed { generation, change }) => {
                    cx.emit(Kind::FileChanged(changed(generation, &change)));
                }
                Some(Told::Failed(error)) => {
                    cx.emit(Kind::FileChanged(FileChanged {
                        change: FileChangeKind::Failed.into(),
                        error: Some((&system_error(&error)).into()),
                        ..FileChanged::default()
                    }));
                }
                None => {}
            }
        }
        true
    }
}

fn changed(generation: u64, change: &follow::Change) -> FileChanged {
    use follow::Change;
    let of = |kind: FileChangeKind| FileChanged {
        change: kind.into(),
        generation,
        ..FileChanged::default()
    };
    match change {
        Change::Appeared => of(FileChangeKind::Appeared),
        Change::Rotated => of(FileChangeKind::Rotated),
        Change::Removed => of(FileChangeKind::Removed),
        Change::Truncated { at, lost_at_least } => FileChanged {
            offset: *at,
            length: *lost_at_least,
            ..of(FileChangeKind::Truncated)
        },
        Change::Hole { offset, length } => FileChanged {
            offset: *offset,
            length: *length,
            ..of(FileChangeKind::Hole)
        },
        Change::GaveUp {
            unread_at_least,
            reason,
        } => {
            let (give_up, errno) = match reason {
                GaveUp::TooMany => (GiveUpReason::TooMany, None),
                GaveUp::TooManyBytes => (GiveUpReason::TooManyBytes, None),
                GaveUp::WritersUnknown => (GiveUpReason::WritersUnknown, None),
                GaveUp::ReadFailed(errno) => (GiveUpReason::ReadFailed, Some(*errno)),
                GaveUp::NotFound => (GiveUpReason::NotFound, None),
            };
            FileChanged {
                length: *unread_at_least,
                give_up: give_up.into(),
                error: errno.map(|errno| (&SystemError::new(errno, "read", "")).into()),
                ..of(FileChangeKind::GaveUp)
            }
        }
    }
}

impl Watch for FileWatch {
    fn start(&mut self, cx: &mut Context<'_>) {
        if let Some(names) = &self.names {
            names.wake.connect(cx);
        }
        self.advance(cx);
    }

    fn complete(&mut self, _cx: &mut Context<'_>, _lane: Lane, _done: Done) {}

    fn alarm(&mut self, cx: &mut Context<'_>) {
        self.woken = true;
        self.advance(cx);
    }

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        match notice {
            Notice::FileStep(done) => self.stepped(cx, done),
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
        self.woken = true;
        self.advance(cx);
        Ok(())
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> u64 {
        self.keep(cx, 0);
        self.told.clear();
        self.status = follow::Status {
            open: 0,
            rotated: 0,
            unread_bytes: 0,
            deleted_bytes: 0,
            ..self.status
        };
        let open = (self.follower.take(), self.names.take());
        // Closing a file can block.
        cx.services.runtime.spawn_blocking(move || drop(open));
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
