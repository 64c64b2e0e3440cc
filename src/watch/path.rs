//! Watches a path by its name, with all below it if that is asked for.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::wake::WakeUp;
use super::{Change, Context, Need, Notice, Resumption, Watch};
use crate::driver::{Done, Driver, Lane};
use crate::error::{Error, Result, SystemError};
use crate::event::{Kind, PathChanged, PathRescan, PathRoot, PathSynced, largest};
use crate::paths::{self, GoneReason, Hub, Kinds, RescanReason, Subscription, Told};
use crate::proto::state::KeptPath;
use crate::proto::state::kept_watch_state::Of;
use crate::proto::{self, PathChangeKind, PathGoneReason};

/// Changes that are taken from the inbox at once, and the bytes of their paths.
const AT_ONCE: usize = 256;
const BYTES_AT_ONCE: usize = 64 << 10;
/// Changes that are told in one turn: the next turn goes on with those that are left.
const TURN_MAX: usize = 1024;

/// A path that is watched already, for a watch that begins or changes.
#[derive(Debug)]
pub struct PathOrder {
    subscription: Subscription,
    wake: Arc<WakeUp>,
    hub: Arc<Hub>,
    /// `fs.inotify.max_user_watches` when the watch began.
    user_watches_max: Option<u64>,
}

impl PathOrder {
    /// What the watch needs.
    pub const NEED: Need = Need::sources(0).and(largest::PATH_RESCAN).and_detail();

    /// Begins to watch the path. Blocks: it waits for the file system.
    ///
    /// # Errors
    /// A bad value of a field, a limit, or what the system refuses.
    pub fn begin(hub: &Arc<Hub>, spec: paths::Spec) -> Result<Self> {
        let wake = Arc::new(WakeUp::default());
        Self::watch(hub, spec, wake).map_err(|refused| refusal(&refused))
    }

    fn watch(
        hub: &Arc<Hub>,
        spec: paths::Spec,
        wake: Arc<WakeUp>,
    ) -> std::result::Result<Self, paths::Refused> {
        let sink = Arc::clone(&wake) as Arc<dyn paths::Sink>;
        let subscription = hub.watch(spec, sink)?;
        Ok(Self {
            subscription,
            wake,
            hub: Arc::clone(hub),
            user_watches_max: paths::KernelLimits::read().max_user_watches,
        })
    }

    /// Builds the watch again of a path that an earlier life has watched. It is watched once the watch
    /// goes on.
    #[must_use]
    pub fn again(spec: paths::Spec) -> Box<dyn Watch> {
        let again = true;
        Box::new(PathWatch {
            order: None,
            again: Some(paths::Spec { again, ..spec }),
            waiting: VecDeque::new(),
            rescan_fits: true,
            rescans_before: 0,
        })
    }

    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        Box::new(PathWatch {
            order: Some(self),
            again: None,
            waiting: VecDeque::new(),
            rescan_fits: true,
            rescans_before: 0,
        })
    }
}

/// Returns the error for a client whose path is not watched.
pub(super) fn refusal(refused: &paths::Refused) -> Error {
    use paths::Refused;
    let field = |name: &str| Error::invalid(format!("spec.path.{name}"), allowed(refused));
    // The error names the limit, so the hint does not.
    let limit = |limit, value: Option<u64>, hint: String| Error::Limit {
        limit,
        value: value.unwrap_or(0),
        hint: hint.into(),
    };
    let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    match refused {
        Refused::Path(_) | Refused::Silent { .. } => field("path"),
        Refused::NoKinds | Refused::PollKinds => field("kinds"),
        Refused::Pattern { index, .. } => field(&format!("ignore[{index}]")),
        Refused::TooManyPatterns { .. } => field("ignore"),
        Refused::PollInterval { .. } | Refused::PollEntries { .. } => field("poll"),
        Refused::KernelWatches {
            limit: most,
            used,
            needed,
        } => {
            let hint = format!("{used} watches are used here, {needed} more are needed at least");
            limit(most.name, most.value, hint)
        }
        Refused::HubWatches {
            limit: most,
            needed,
        } => {
            let hint = format!("{needed} more watches are needed at least");
            limit("limits.path_watches", Some(number(*most)), hint)
        }
        Refused::Subscriptions { limit: most } => {
            limit("limits.path_watches", Some(number(*most)), String::new())
        }
        Refused::Instances { limit: most } => limit(most.name, most.value, String::new()),
        Refused::InboxTooSmall { .. } => Error::Internal("the configured inbox has no room"),
        Refused::Unreadable { .. }
        | Refused::Descriptors
        | Refused::Kernel { .. }
        | Refused::Ended => system_error(refused).into(),
    }
}

/// Returns what is wrong, without the name of the field that it begins with.
fn allowed(refused: &paths::Refused) -> String {
    let text = refused.to_string();
    match text.split_once(": ") {
        Some((field, rest)) if !field.contains('/') => rest.to_owned(),
        _ => text,
    }
}

/// Returns the error of the system for a path that is not watched any more.
pub(super) fn system_error(refused: &paths::Refused) -> SystemError {
    use paths::Refused;
    let errno = match refused {
        Refused::Unreadable { .. } => Errno::ACCESS,
        Refused::Descriptors | Refused::Instances { .. } => Errno::MFILE,
        Refused::KernelWatches { .. } | Refused::HubWatches { .. } => Errno::NOSPC,
        Refused::Silent { .. } => Errno::OPNOTSUPP,
        Refused::Kernel { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        _ => Errno::INVAL,
    };
    SystemError::new(errno, "watch", refused.to_string())
}

/// Returns a path as text, or as bytes if it is none.
pub(super) fn text_or_bytes(path: Vec<u8>) -> (String, bytes::Bytes) {
    match String::from_utf8(path) {
        Ok(text) => (text, bytes::Bytes::new()),
        Err(other) => (String::new(), other.into_bytes().into()),
    }
}

#[derive(Debug)]
struct PathWatch {
    /// Until the watch has closed. `None` too while a path of an earlier life is not watched yet.
    order: Option<PathOrder>,
    /// What was watched in an earlier life, until the watch goes on.
    again: Option<paths::Spec>,
    /// What was taken from the inbox and found no room in the journal.
    waiting: VecDeque<Told>,
    /// Whether room for one `PathRescan` is set aside.
    rescan_fits: bool,
    /// `PathRescan`s of the subscriptions before this one, and those for their changes.
    rescans_before: u64,
}

impl PathWatch {
    fn rescans(&self) -> u64 {
        let own = self.order.as_ref();
        let own = own.map(|order| order.subscription.status().rescans);
        self.rescans_before + own.unwrap_or(0)
    }

    /// Goes on with another subscription, in a rescan of the root for that reason.
    fn take(&mut self, cx: &mut Context<'_>, order: PathOrder, reason: RescanReason) {
        order.wake.connect(cx);
        self.rescans_before = self.rescans() + 1;
        self.order = Some(order);
        // What was not told yet is in what the client lists now, and so is what it did not see before.
        self.waiting.clear();
        self.waiting.push_back(Told::Rescan {
            reason,
            path: Vec::new(),
        });
        cx.changed();
        // What it has found already comes after the event of the change.
        cx.notifier.notify(cx.key(), Notice::Woken);
    }

    /// Appends what waits, as far as the journal has room.
    fn tell(&mut self, cx: &mut Context<'_>) {
        for _ in 0..TURN_MAX {
            let Some(order) = &self.order else { return };
            if self.waiting.is_empty() {
                let inbox = order.subscription.inbox();
                self.waiting.extend(inbox.take(AT_ONCE, BYTES_AT_ONCE));
            }
            let Some(told) = self.waiting.front() else {
                return;
            };
            if !cx.has_room_for(room(told)) {
                self.tell_rescan(cx);
                return;
            }
            if let Some(told) = self.waiting.pop_front() {
                emit(cx, told);
            }
        }
        cx.notifier.notify(cx.key(), Notice::Woken);
    }

    /// If a rescan of the root is next, or what waits in the inbox has become one, tells that in the room
    /// that is set aside for it. It stands for all that was to be told before.
    fn tell_rescan(&mut self, cx: &mut Context<'_>) {
        let Some(order) = &self.order else { return };
        let inbox = order.subscription.inbox();
        if !self.rescan_fits {
            return;
        }
        if inbox.is_collapsed() {
            self.waiting.clear();
            self.waiting.extend(inbox.take(1, 0));
        } else if !matches!(self.waiting.front(), Some(Told::Rescan { path, .. }) if path.is_empty())
        {
            return;
        }
        if let Some(told) = self.waiting.pop_front() {
            self.rescan_fits = false;
            cx.release_event(largest::PATH_RESCAN);
            emit(cx, told);
        }
    }
}

/// Returns the most bytes that an event takes.
fn room(told: &Told) -> u32 {
    let of = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    match told {
        Told::Changed(change) => largest::PATH_CHANGED + of(change.path.len()),
        Told::Moved(moved) => largest::PATH_CHANGED + of(moved.from.len() + moved.to.len()),
        Told::Rescan { path, .. } => largest::PATH_RESCAN + largest::DETAIL + of(path.len()),
        Told::RootGone { .. } => largest::PATH_ROOT,
        // The end needs no room that is not set aside.
        Told::Failed { .. } => 0,
        Told::Synced(_) | Told::RootAppeared { .. } => largest::PATH_SYNCED,
    }
}

fn kinds(kinds: Kinds) -> Vec<i32> {
    const NAMES: [(Kinds, PathChangeKind); 10] = [
        (Kinds::CREATED, PathChangeKind::Created),
        (Kinds::DELETED, PathChangeKind::Deleted),
        (Kinds::MODIFIED, PathChangeKind::Modified),
        (Kinds::WRITE_ENDED, PathChangeKind::WriteEnded),
        (Kinds::ATTRIBUTES, PathChangeKind::Attributes),
        (Kinds::MOVED_AWAY, PathChangeKind::MovedAway),
        (Kinds::MOVED_HERE, PathChangeKind::MovedHere),
        (Kinds::OPENED, PathChangeKind::Opened),
        (Kinds::ACCESSED, PathChangeKind::Accessed),
        (Kinds::CLOSED_UNWRITTEN, PathChangeKind::ClosedUnwritten),
    ];
    let told = NAMES.into_iter().filter(|(kind, _)| kinds.contains(*kind));
    told.map(|(_, name)| name.into()).collect()
}

fn of_errno(errno: i32, path: &[u8]) -> proto::SystemError {
    let path = Path::new(OsStr::from_bytes(path)).display().to_string();
    let errno = Errno::from_raw_os_error(errno);
    (&SystemError::new(errno, "scan", path)).into()
}

fn emit(cx: &mut Context<'_>, told: Told) {
    if let Told::Rescan { .. } = told {
        cx.changed();
    }
    let kind = match told {
        Told::Changed(change) => {
            let (path, path_bytes) = text_or_bytes(change.path);
            Kind::PathChanged(PathChanged {
                path,
                path_bytes,
                kinds: kinds(change.kinds),
                is_directory: change.is_dir,
                count: change.count,
                ..PathChanged::default()
            })
        }
        Told::Moved(moved) => {
            let (path, path_bytes) = text_or_bytes(moved.to);
            let (from_path, from_path_bytes) = text_or_bytes(moved.from);
            Kind::PathChanged(PathChanged {
                path,
                path_bytes,
                kinds: vec![PathChangeKind::Moved.into()],
                is_directory: moved.is_dir,
                count: 1,
                from_path,
                from_path_bytes,
            })
        }
        Told::Synced(synced) => Kind::PathSynced(PathSynced {
            directories: synced.directories,
            entries: synced.entries,
            unwatched: synced.unwatched,
        }),
        Told::Rescan { reason, path } => Kind::PathRescan(rescan(&reason, path)),
        Told::RootAppeared { is_dir } => Kind::PathRoot(PathRoot {
            present: true,
            is_directory: is_dir,
            ..PathRoot::default()
        }),
        Told::RootGone { reason } => {
            let (reason, errno) = match reason {
                GoneReason::Missing => (PathGoneReason::Missing, None),
                GoneReason::Replaced => (PathGoneReason::Replaced, None),
                GoneReason::Unreachable { errno } => (PathGoneReason::Unreachable, Some(errno)),
            };
            Kind::PathRoot(PathRoot {
                reason: reason.into(),
                error: errno.map(|errno| of_errno(errno, b"")),
                ..PathRoot::default()
            })
        }
        Told::Failed { error } => return cx.close_with_error(system_error(&error)),
    };
    cx.emit(kind);
}

fn rescan(reason: &RescanReason, path: Vec<u8>) -> PathRescan {
    use proto::RescanReason as Shown;
    let (shown, error) = match reason {
        RescanReason::QueueOverflow => (Shown::QueueOverflow, None),
        RescanReason::ReaderTooSlow => (Shown::JournalFull, None),
        RescanReason::TooManyWatches(refused) => {
            let error = system_error(refused);
            (Shown::TooManyWatches, Some((&error).into()))
        }
        RescanReason::ScanFailed { errno } => (Shown::ScanFailed, Some(of_errno(*errno, &path))),
        RescanReason::Silent { file_system } => {
            let error = SystemError::new(Errno::OPNOTSUPP, "watch", *file_system);
            (Shown::SilentFileSystem, Some((&error).into()))
        }
        RescanReason::TooDeep { .. } => (Shown::TooDeep, None),
        RescanReason::Mounted => (Shown::Mounted, None),
        RescanReason::Unmounted => (Shown::Unmounted, None),
        RescanReason::Raced => (Shown::Raced, None),
        RescanReason::WatchedAgain => (Shown::WatchedAgain, None),
        RescanReason::Exchanged => (Shown::Exchanged, None),
        RescanReason::Updated => (Shown::Updated, None),
        RescanReason::Recovered => (Shown::Recovered, None),
    };
    let (path, path_bytes) = text_or_bytes(path);
    PathRescan {
        reason: shown.into(),
        path,
        path_bytes,
        error,
    }
}

impl Watch for PathWatch {
    fn start(&mut self, cx: &mut Context<'_>) {
        if let Some(order) = &self.order {
            order.wake.connect(cx);
        }
        cx.changed();
        self.tell(cx);
    }

    fn keep(&self, _driver: &dyn Driver) -> Option<Of> {
        Some(Of::Path(KeptPath {
            rescans: self.rescans(),
            rescan_spent: !self.rescan_fits,
        }))
    }

    fn resume(&mut self, cx: &mut Context<'_>, kept: Resumption) -> Result<()> {
        let (Of::Path(before), Some(spec)) = (kept.of, self.again.take()) else {
            return Err(Error::Internal("what was kept is no path"));
        };
        let hub = kept.paths;
        let hub = hub.ok_or_else(|| Error::wrong_state("the loop watches no paths"))?;
        (self.rescans_before, self.rescan_fits) = (before.rescans, !before.rescan_spent);
        let (key, notifier) = (cx.key(), Arc::clone(cx.notifier));
        cx.services.runtime.spawn_blocking(move || {
            let wake = Arc::new(WakeUp::default());
            let begun = PathOrder::watch(&hub, spec, wake);
            let begun = begun.map_err(|refused| system_error(&refused));
            notifier.notify(key, Notice::PathAgain(begun.map(Box::new)));
        });
        Ok(())
    }

    fn complete(&mut self, _cx: &mut Context<'_>, _lane: Lane, _done: Done) {}

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        match notice {
            Notice::Woken => self.tell(cx),
            // Else it was updated meanwhile.
            Notice::PathAgain(Ok(order)) if self.order.is_none() => {
                self.take(cx, *order, RescanReason::Recovered);
            }
            Notice::PathAgain(Err(error)) if self.order.is_none() => cx.close_with_error(error),
            _ => {}
        }
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        let waits = !self.waiting.is_empty();
        if !hold {
            if !self.rescan_fits {
                self.rescan_fits = cx.reserve_event(largest::PATH_RESCAN).is_ok();
                cx.changed();
            }
            self.tell(cx);
        }
        waits
    }

    fn change(&mut self, cx: &mut Context<'_>, change: Change) -> Result<()> {
        let Change::Path(order) = change else {
            return Err(super::unsupported("what is to be changed"));
        };
        self.take(cx, *order, RescanReason::Updated);
        Ok(())
    }

    fn closed(&mut self, _cx: &mut Context<'_>) -> u64 {
        self.order = None;
        self.waiting.clear();
        0
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        let order = self.order.as_ref();
        let of_watch = order.map(|order| order.subscription.status());
        let synced = of_watch.and_then(|status| status.synced);
        let (used, most) = order.map_or((0, 0), |order| order.hub.watches());
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Some(proto::watch::Status::Path(proto::PathStatus {
            synced: synced.is_some(),
            directories: synced.map_or(0, |synced| synced.directories),
            unwatched: synced.map_or(0, |synced| synced.unwatched),
            rescans: self.rescans(),
            kernel_watches: number(used),
            kernel_watches_max: number(most),
            user_watches_max: order.and_then(|order| order.user_watches_max).unwrap_or(0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::{Refused, UserLimit};

    #[test]
    fn a_limit_is_named_once() {
        let of = |name, value| UserLimit {
            name,
            value: Some(value),
        };
        let refusals = [
            Refused::Instances {
                limit: of("user.max_inotify_instances", 128),
            },
            Refused::KernelWatches {
                limit: of("fs.inotify.max_user_watches", 9),
                used: 8,
                needed: 2,
            },
            Refused::HubWatches {
                limit: 7,
                needed: 3,
            },
        ];
        let texts = refusals.map(|refused| refusal(&refused).to_string());
        assert_eq!(
            texts,
            [
                "the limit user.max_inotify_instances = 128 is reached",
                "the limit fs.inotify.max_user_watches = 9 is reached: 8 watches are used here, 2 more are \
                 needed at least",
                "the limit limits.path_watches = 7 is reached: 3 more watches are needed at least",
            ]
        );
    }
}
