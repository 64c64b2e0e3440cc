//! A reader of subscriptions for tests, and a picture of a tree kept as `Told` says.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(missing_docs, unreachable_pub, reason = "for the tests of this folder")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evloopd::paths::{Change, Hub, Kinds, Limits, Refused, Sink, Spec, Subscription, Synced, Told};
use parking_lot::{Condvar, Mutex};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::{TempDir, tempdir};

/// Long enough on a busy machine; a test that passes does not wait for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Sink for Bell {
    fn woken(&self) {
        *self.rung.lock() = true;
        self.ring.notify_one();
    }
}

impl Bell {
    /// Waits for a ring. False: none came in time.
    fn wait(&self, until: Instant) -> bool {
        let mut rung = self.rung.lock();
        while !*rung {
            if self.ring.wait_until(&mut rung, until).timed_out() {
                return false;
            }
        }
        *rung = false;
        true
    }
}

/// Stands still in the hub's thread when it is told to, which a real sink must not do.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    holds: usize,
    told: bool,
}

impl Sink for Gate {
    fn woken(&self) {
        let mut state = self.state.lock();
        state.told = true;
        self.changed.notify_all();
        let hold = state.holds;
        while state.closed && state.holds == hold {
            self.changed.wait(&mut state);
        }
    }
}

/// A hub's thread, which can be held, so that what happens meanwhile waits in the kernel's queue.
pub struct Thread {
    dir: TempDir,
    subscription: Subscription,
    gate: Arc<Gate>,
}

impl Thread {
    pub fn of(hub: &Hub) -> Self {
        let dir = tempdir().expect("directory");
        let gate = Arc::new(Gate::default());
        let spec = Spec {
            kinds: Kinds::CREATED,
            ..Spec::new(dir.path())
        };
        let subscription = hub
            .watch(spec, Arc::clone(&gate) as Arc<dyn Sink>)
            .expect("watch");
        let thread = Self {
            dir,
            subscription,
            gate,
        };
        thread.tells();
        thread
    }

    /// Waits until the hub has told something, and takes it.
    fn tells(&self) {
        let mut state = self.gate.state.lock();
        while !state.told {
            let late = self.gate.changed.wait_for(&mut state, PATIENCE);
            assert!(!late.timed_out(), "told nothing in time");
        }
        state.told = false;
        drop(state);
        self.subscription.inbox().take(100, 1 << 20);
    }

    /// Returns once the thread stands still.
    pub fn hold(&self) {
        let mut state = self.gate.state.lock();
        state.closed = true;
        state.holds += 1;
        drop(state);
        tempfile::Builder::new()
            .tempfile_in(&self.dir)
            .expect("file");
        self.tells();
    }

    pub fn let_go(&self) {
        self.gate.state.lock().closed = false;
        self.gate.changed.notify_all();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.let_go();
    }
}

pub struct Reader {
    pub subscription: Subscription,
    bell: Arc<Bell>,
    taken: VecDeque<Told>,
}

impl Reader {
    pub fn try_new(hub: &Hub, spec: Spec) -> Result<Self, Refused> {
        let bell = Arc::new(Bell::default());
        let subscription = hub.watch(spec, Arc::clone(&bell) as Arc<dyn Sink>)?;
        Ok(Self {
            subscription,
            bell,
            taken: VecDeque::new(),
        })
    }

    pub fn new(hub: &Hub, spec: Spec) -> Self {
        Self::try_new(hub, spec).expect("watch")
    }

    /// A reader of `spec` that has been told `Synced`.
    pub fn synced(hub: &Hub, spec: Spec) -> (Self, Synced) {
        let mut reader = Self::new(hub, spec);
        let told = reader.until(|told| matches!(told, Told::Synced(_)));
        let Some(Told::Synced(synced)) = told.last() else {
            unreachable!()
        };
        (reader, *synced)
    }

    pub fn next_before(&mut self, until: Instant) -> Option<Told> {
        while self.taken.is_empty() {
            self.taken
                .extend(self.subscription.inbox().take(256, 1 << 20));
            if self.taken.is_empty() && !self.bell.wait(until) {
                return None;
            }
        }
        self.taken.pop_front()
    }

    pub fn next(&mut self) -> Told {
        self.next_before(Instant::now() + PATIENCE)
            .expect("told nothing in time")
    }

    /// All that is told up to what `wanted` holds for.
    pub fn until(&mut self, wanted: impl Fn(&Told) -> bool) -> Vec<Told> {
        let until = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        loop {
            let Some(told) = self.next_before(until) else {
                panic!("not told in time; before: {all:#?}")
            };
            all.push(told);
            if wanted(&all[all.len() - 1]) {
                return all;
            }
        }
    }

    /// All that is told up to a change of `path` with one of `kinds`.
    pub fn until_change(&mut self, path: &str, kinds: Kinds) -> Vec<Told> {
        self.until(|told| is_change(told, path, kinds))
    }
}

pub fn is_change(told: &Told, path: &str, wanted: Kinds) -> bool {
    matches!(told, Told::Changed(Change { path: at, kinds, .. }) if at == path.as_bytes() && kinds.intersects(wanted))
}

pub fn rescans(told: &[Told]) -> usize {
    told.iter()
        .filter(|told| matches!(told, Told::Rescan { .. }))
        .count()
}

pub fn hub() -> Hub {
    Hub::new(Limits::default())
}

pub fn recursive(path: &Path) -> Spec {
    Spec {
        recursive: true,
        ..Spec::new(path)
    }
}

/// Exchanges two names.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// What is below `root`, by relative path.
pub fn disk(root: &Path) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::new();
    list(root, b"", &mut all);
    all
}

fn list(root: &Path, at: &[u8], all: &mut BTreeSet<Vec<u8>>) {
    let Ok(entries) = fs::read_dir(root.join(OsStr::from_bytes(at))) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let path = if at.is_empty() {
            name.as_bytes().to_vec()
        } else {
            [at, name.as_bytes()].join(&b'/')
        };
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        all.insert(path.clone());
        if is_dir {
            list(root, &path, all);
        }
    }
}

/// Events kept to be shown when a test fails.
const LOG: usize = 100;

/// What a reader knows of a tree, kept by the rules that stand at `Told`.
pub struct Picture {
    root: PathBuf,
    pub known: BTreeSet<Vec<u8>>,
    stale: Vec<Vec<u8>>,
    pub synced: usize,
    pub rescans: usize,
    /// Rescans of all of it.
    pub whole: usize,
    log: VecDeque<Told>,
}

impl Picture {
    /// Watches a whole tree. Returns the reader, and a picture that knows nothing below the root yet.
    pub fn synced(hub: &Hub, top: &Path) -> (Reader, Self) {
        let (reader, synced) = Reader::synced(hub, recursive(top));
        let mut picture = Self::new(top);
        picture.apply(&Told::Synced(synced));
        (reader, picture)
    }

    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            known: BTreeSet::new(),
            stale: vec![Vec::new()],
            synced: 0,
            rescans: 0,
            whole: 0,
            log: VecDeque::new(),
        }
    }

    fn drop_below(&mut self, path: &[u8]) -> Vec<Vec<u8>> {
        let prefix = if path.is_empty() {
            Vec::new()
        } else {
            [path, b"/"].concat()
        };
        let below: Vec<_> = self
            .known
            .range(prefix.clone()..)
            .take_while(|known| known.starts_with(&prefix))
            .cloned()
            .collect();
        for path in &below {
            self.known.remove(path);
        }
        below
    }

    pub fn apply(&mut self, told: &Told) {
        self.log.push_back(told.clone());
        if self.log.len() > LOG {
            self.log.pop_front();
        }
        match told {
            Told::Changed(change)
                if change.kinds.intersects(Kinds::CREATED | Kinds::MOVED_HERE) =>
            {
                if change.is_dir {
                    self.drop_below(&change.path);
                }
                self.known.insert(change.path.clone());
            }
            Told::Changed(change)
                if change.kinds.intersects(Kinds::DELETED | Kinds::MOVED_AWAY) =>
            {
                self.drop_below(&change.path);
                self.known.remove(&change.path);
            }
            Told::Moved(moved) => {
                let mut below = self.drop_below(&moved.from);
                if !moved.is_dir {
                    // Listed since: a directory has taken the file's name, and will be told.
                    below.clear();
                }
                self.known.remove(&moved.from);
                self.drop_below(&moved.to);
                self.known.insert(moved.to.clone());
                self.known.extend(
                    below
                        .iter()
                        .map(|path| [&moved.to, &path[moved.from.len()..]].concat()),
                );
            }
            Told::Rescan { path, .. } => {
                self.rescans += 1;
                self.whole += usize::from(path.is_empty());
                self.stale.push(path.clone());
            }
            Told::Synced(_) => {
                self.synced += 1;
                for path in std::mem::take(&mut self.stale) {
                    self.drop_below(&path);
                    self.known.remove(&path);
                    let at = self.root.join(OsStr::from_bytes(&path));
                    if !path.is_empty() && fs::symlink_metadata(at).is_ok() {
                        self.known.insert(path.clone());
                    }
                    list(&self.root, &path, &mut self.known);
                }
            }
            Told::RootGone { .. } => self.known.clear(),
            Told::Failed { error } => panic!("{error}"),
            Told::Changed(_) | Told::RootAppeared { .. } => {}
        }
    }

    /// Reads on until the picture is what is on disk; then once more, so that what was still to come
    /// has come too.
    pub fn settle(&mut self, reader: &mut Reader) {
        for sentinel in ["sentinel-1", "sentinel-2", "sentinel-3"] {
            fs::write(self.root.join(sentinel), b"").expect("write");
            let disk = disk(&self.root);
            let until = Instant::now() + PATIENCE;
            loop {
                while let Some(told) = reader.next_before(Instant::now()) {
                    self.apply(&told);
                }
                if self.known == disk && self.stale.is_empty() {
                    break;
                }
                let Some(told) = reader.next_before(until) else {
                    self.differs(&disk)
                };
                self.apply(&told);
            }
        }
    }

    fn differs(&self, disk: &BTreeSet<Vec<u8>>) -> ! {
        let show = |paths: Vec<&Vec<u8>>| {
            paths
                .into_iter()
                .take(20)
                .map(|path| String::from_utf8_lossy(path).into_owned())
                .collect::<Vec<_>>()
        };
        panic!(
            "missing: {:?}, too many: {:?}, stale: {:?}, rescans {}, synced {}, told {:#?}",
            show(disk.difference(&self.known).collect()),
            show(self.known.difference(disk).collect()),
            self.stale,
            self.rescans,
            self.synced,
            self.log,
        );
    }
}

/// Numbers that look random and are the same in each run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).expect("less than sides")
    }
}
