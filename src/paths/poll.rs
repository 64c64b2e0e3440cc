//! Polling, for file systems that tell nothing.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, lstat, open, stat};
use rustix::io::Errno;

use super::limits::Limits;
use super::refused::Refused;
use super::spec::Kinds;
use super::sub::Order;
use super::told::{Change, GoneReason, RescanReason, Synced, Told};
use super::worker::Shared;
use crate::poison::Critical;

/// What polling can tell. Without inode numbers, which such file systems make up anew, a rename is a
/// removal and a creation, and a file that replaces another is `MODIFIED`.
const KINDS: Kinds = Kinds::CREATED
    .union(Kinds::DELETED)
    .union(Kinds::MODIFIED)
    .union(Kinds::ATTRIBUTES);

/// The thread that polls, started by the first polled subscription.
#[derive(Debug)]
pub(super) struct Poller {
    limits: Arc<Limits>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    new: Arc<Mutex<Vec<Polled>>>,
}

impl Poller {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self {
            limits,
            running: Mutex::new(None),
        }
    }

    pub(super) fn len(&self) -> usize {
        let running = self.running.lock();
        running.as_ref().map_or(0, |running| {
            running.shared.subscriptions.load(Ordering::Relaxed)
        })
    }

    pub(super) fn descriptors(&self) -> usize {
        // eventfd, and the directory that is read.
        self.running.lock().as_ref().map_or(0, |_| 2)
    }

    /// Polls from now on. The first look is the thread's, since it may hang.
    pub(super) fn watch(&self, order: Order, interval: Duration) -> Result<Arc<Shared>, Refused> {
        if !order.kinds.intersects(KINDS) {
            return Err(Refused::PollKinds);
        }
        let mut running = self.running.lock();
        let running = match &mut *running {
            Some(running) => running,
            none => none.insert(self.start()?),
        };
        let limit = self.limits.subscriptions;
        if running.shared.subscriptions.fetch_add(1, Ordering::Relaxed) >= limit {
            running.shared.subscriptions.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::Subscriptions { limit });
        }
        running.new.lock().push(Polled {
            order,
            interval,
            due: Instant::now(),
            known: None,
            failing: HashSet::new(),
            synced: false,
        });
        running.shared.wake();
        Ok(Arc::clone(&running.shared))
    }

    fn start(&self) -> Result<Running, Refused> {
        let shared = Arc::new(Shared::new().map_err(Refused::instance)?);
        let new = Arc::default();
        let (limits, thread_shared, thread_new) = (
            Arc::clone(&self.limits),
            Arc::clone(&shared),
            Arc::clone(&new),
        );
        thread::Builder::new()
            .name("paths-poll".to_owned())
            .spawn(move || {
                // Without this thread the loop misses what happens.
                let _critical = Critical::new();
                run(&limits, &thread_shared, &thread_new);
            })
            .map_err(|source| Refused::Kernel {
                path: "thread `paths-poll`".into(),
                source,
            })?;
        Ok(Running { shared, new })
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        // The thread is not waited for: a server that does not answer may hold it.
        if let Some(running) = self.running.get_mut() {
            running.shared.stop.store(true, Ordering::Release);
            running.shared.wake();
        }
    }
}

fn run(limits: &Limits, shared: &Shared, new: &Mutex<Vec<Polled>>) {
    let mut all: Vec<Polled> = Vec::new();
    while !shared.stop.load(Ordering::Acquire) {
        all.append(&mut new.lock());
        all.retain_mut(|polled| {
            let keep = !polled.order.ended.load(Ordering::Acquire) && polled.round(limits, shared);
            if !keep {
                shared.subscriptions.fetch_sub(1, Ordering::Relaxed);
            }
            keep
        });
        let due = all.iter().map(|polled| polled.due).min();
        shared.wait([], due);
    }
    all.append(&mut new.lock());
    for polled in all {
        polled.order.inbox.push(Told::Failed {
            error: Arc::new(Refused::Ended),
        });
    }
}

/// What of an entry is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    kind: FileType,
    content: (i64, i64, u64),
    attributes: (u32, u32, u32, i64, u64),
}

impl Stamp {
    #[allow(
        clippy::useless_conversion,
        reason = "the types differ between architectures"
    )]
    fn new(stat: &Stat) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let change = if kind == FileType::Directory {
            // A directory's times change with its entries, which are told themselves.
            (0, 0)
        } else {
            (stat.st_ctime.into(), stat.st_ctime_nsec.into())
        };
        Self {
            kind,
            content: (
                stat.st_size.into(),
                stat.st_mtime.into(),
                stat.st_mtime_nsec.into(),
            ),
            attributes: (stat.st_mode, stat.st_uid, stat.st_gid, change.0, change.1),
        }
    }

    fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }
}

type Entries = BTreeMap<Vec<u8>, Stamp>;

#[derive(Debug)]
struct Polled {
    order: Order,
    interval: Duration,
    due: Instant,
    /// What was there. None: no root.
    known: Option<Entries>,
    /// Directories that cannot be read; each was named by a Rescan.
    failing: HashSet<Vec<u8>>,
    synced: bool,
}

impl Polled {
    /// Looks if it is due. False: it has ended.
    fn round(&mut self, limits: &Limits, shared: &Shared) -> bool {
        if self.due > Instant::now() {
            return true;
        }
        let looked = self.look(limits, shared);
        self.due = Instant::now() + self.interval;
        match looked {
            Ok(found) => self.compare(Some(found), GoneReason::Missing),
            Err(Stop::Root(Errno::NOENT | Errno::NOTDIR)) => {
                self.compare(None, GoneReason::Missing);
            }
            Err(Stop::Root(errno)) => self.compare(
                None,
                GoneReason::Unreachable {
                    errno: errno.raw_os_error(),
                },
            ),
            Err(Stop::Ended) => return false,
            Err(Stop::Full) => {
                let error = Arc::new(Refused::PollEntries {
                    limit: limits.poll_entries,
                });
                self.order.inbox.push(Told::Failed { error });
                return false;
            }
        }
        true
    }

    fn look(&mut self, limits: &Limits, shared: &Shared) -> Result<Entries, Stop> {
        let root = PathBuf::from(OsStr::from_bytes(&self.order.path));
        let top = Stamp::new(&stat(&root).map_err(Stop::Root)?);
        let mut left = if top.is_dir() {
            vec![Vec::new()]
        } else {
            Vec::new()
        };
        let mut entries = Entries::from([(Vec::new(), top)]);
        while let Some(path) = left.pop() {
            if shared.stop.load(Ordering::Acquire) || self.order.ended.load(Ordering::Acquire) {
                return Err(Stop::Ended);
            }
            match self.list(&root, &path, &mut entries, limits)? {
                Ok(directories) => {
                    self.failing.remove(&path);
                    left.extend(directories);
                }
                Err(Errno::NOENT | Errno::NOTDIR) if !path.is_empty() => {}
                Err(errno) if path.is_empty() => return Err(Stop::Root(errno)),
                Err(errno) => self.keep(path, errno, &mut entries),
            }
        }
        Ok(entries)
    }

    /// Adds the entries of one directory; gives the directories among them that are to be listed.
    fn list(
        &self,
        root: &Path,
        path: &[u8],
        entries: &mut Entries,
        limits: &Limits,
    ) -> Result<Result<Vec<Vec<u8>>, Errno>, Stop> {
        let at = if path.is_empty() {
            root.to_owned()
        } else {
            root.join(OsStr::from_bytes(path))
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let dir = match open(&at, flags, Mode::empty()).and_then(Dir::new) {
            Ok(dir) => dir,
            Err(errno) => return Ok(Err(errno)),
        };
        let mut directories = Vec::new();
        for entry in dir {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => return Ok(Err(errno)),
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            // One that is gone by now is not there.
            let Ok(stat) = lstat(at.join(OsStr::from_bytes(name))) else {
                continue;
            };
            let stamp = Stamp::new(&stat);
            let child = if path.is_empty() {
                name.to_vec()
            } else {
                [path, name].join(&b'/')
            };
            if self.order.ignore.matches(&child, stamp.is_dir()) {
                continue;
            }
            if entries.len() >= limits.poll_entries {
                return Err(Stop::Full);
            }
            let depth = child.iter().filter(|byte| **byte == b'/').count();
            if stamp.is_dir() && self.order.recursive && depth < limits.depth {
                directories.push(child.clone());
            }
            entries.insert(child, stamp);
        }
        Ok(Ok(directories))
    }

    /// A directory cannot be read: what was known of it stays, and the reader is told so once.
    fn keep(&mut self, path: Vec<u8>, errno: Errno, entries: &mut Entries) {
        let prefix = [&path[..], b"/"].concat();
        let below = self
            .known
            .iter()
            .flatten()
            .filter(|(known, _)| known.starts_with(&prefix));
        entries.extend(below.map(|(known, stamp)| (known.clone(), stamp.clone())));
        if self.failing.insert(path.clone()) {
            self.synced = false;
            let reason = RescanReason::ScanFailed {
                errno: errno.raw_os_error(),
            };
            self.order.inbox.push(Told::Rescan { reason, path });
        }
    }

    fn compare(&mut self, found: Option<Entries>, gone: GoneReason) {
        let first = !self.synced && self.known.is_none();
        let known = self.known.take();
        match (&known, &found) {
            (Some(_), None) => self.order.inbox.push(Told::RootGone { reason: gone }),
            (None, Some(found)) if !first => {
                let is_dir = found.get(&b""[..]).is_some_and(Stamp::is_dir);
                self.order.inbox.push(Told::RootAppeared { is_dir });
                self.synced = false;
                self.changes(&Entries::new(), found);
            }
            (Some(known), Some(found)) => self.changes(known, found),
            _ => {}
        }
        let entries = found.as_ref().map_or(0, |found| found.len() as u64 - 1);
        let directories = found
            .iter()
            .flat_map(BTreeMap::values)
            .filter(|stamp| stamp.is_dir())
            .count() as u64;
        self.known = found;
        if !self.synced {
            self.synced = true;
            let unwatched = self.failing.len() as u64;
            self.order.inbox.push(Told::Synced(Synced {
                directories,
                entries,
                unwatched,
            }));
        }
    }

    fn changes(&self, known: &Entries, found: &Entries) {
        // What is below a directory goes before it and comes after it.
        for (path, stamp) in known.iter().rev() {
            if found.get(path).is_none_or(|now| now.kind != stamp.kind) {
                self.tell(path, Kinds::DELETED, stamp);
            }
        }
        for (path, stamp) in found {
            match known.get(path).filter(|before| before.kind == stamp.kind) {
                None => self.tell(path, Kinds::CREATED, stamp),
                Some(before) if !stamp.is_dir() && before.content != stamp.content => {
                    self.tell(path, Kinds::MODIFIED, stamp);
                }
                Some(before) if before.attributes != stamp.attributes => {
                    self.tell(path, Kinds::ATTRIBUTES, stamp);
                }
                Some(_) => {}
            }
        }
    }

    fn tell(&self, path: &[u8], kinds: Kinds, stamp: &Stamp) {
        let kinds = kinds & self.order.kinds;
        // The root's coming and going has events of its own.
        let of_root = path.is_empty() && kinds.intersects(Kinds::STRUCTURE);
        if !kinds.is_empty() && !of_root {
            let change = Change {
                path: path.to_vec(),
                kinds,
                is_dir: stamp.is_dir(),
                count: 1,
            };
            self.order.inbox.push(Told::Changed(change));
        }
    }
}

/// Why a look has ended early.
#[derive(Debug)]
enum Stop {
    Ended,
    Full,
    Root(Errno),
}
