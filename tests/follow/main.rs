//! Following files: each rule of the module `follow`, on real files.

// A test fails by panicking.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod copytruncate;
mod errors;
mod identity;
mod missed;
mod model;
mod order;
mod pause;
mod rotating;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use evloopd::follow::{Change, Follower, Next, Spec, Status, Step, Told};

/// More than any test writes.
const ALL: usize = 1 << 20;

/// Held for writing while a process is started: until it has called exec, it has a copy of every
/// descriptor, so that files have writers that nobody expects.
static SPAWNING: RwLock<()> = RwLock::new(());

/// A directory with a followed name, and a clock that only the test moves.
struct Rig {
    directory: TempDir,
    path: PathBuf,
    spec: Spec,
    now: Instant,
    /// None: between two lives.
    follower: Option<Follower>,
    /// None: the test bears with processes that are started meanwhile.
    _no_spawning: Option<RwLockReadGuard<'static, ()>>,
}

impl Rig {
    /// Follows `log`, which holds `first` if that is given.
    fn new(first: Option<&str>) -> Self {
        Self::with(first, |_| ())
    }

    fn with(first: Option<&str>, change: impl FnOnce(&mut Spec)) -> Self {
        Self::within(tempfile::tempdir().unwrap(), first, change)
    }

    fn within(directory: TempDir, first: Option<&str>, change: impl FnOnce(&mut Spec)) -> Self {
        let no_spawning = Some(SPAWNING.read().unwrap_or_else(PoisonError::into_inner));
        let path = directory.path().join("log");
        if let Some(first) = first {
            fs::write(&path, first).unwrap();
        }
        let mut spec = Spec::new(&path, true);
        change(&mut spec);
        let now = Instant::now();
        let follower = Some(Follower::open(spec.clone(), now).unwrap());
        Self {
            directory,
            path,
            spec,
            now,
            follower,
            _no_spawning: no_spawning,
        }
    }

    /// A writer that appends, as loggers do.
    fn writer(&self) -> File {
        append(&self.path)
    }

    fn other(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn rename_to(&self, name: &str) {
        fs::rename(&self.path, self.other(name)).unwrap();
    }

    fn step(&mut self, budget: usize) -> Step {
        let now = self.now;
        self.follower().step(now, budget)
    }

    /// What the follower tells until there is nothing left to read.
    fn told(&mut self) -> Vec<Told> {
        self.told_by(ALL)
    }

    fn told_by(&mut self, budget: usize) -> Vec<Told> {
        let mut all = Vec::new();
        loop {
            let step = self.step(budget);
            all.extend(step.told);
            if step.next != Next::More {
                return all;
            }
        }
    }

    fn shown(&mut self) -> Vec<String> {
        show(&self.told())
    }

    fn paused(&mut self) -> Vec<String> {
        show(&self.step(0).told)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn follower(&mut self) -> &mut Follower {
        self.follower.as_mut().unwrap()
    }

    fn status(&mut self) -> Status {
        self.follower().status()
    }

    /// Ends this follower, and goes on with another after `meanwhile`, as a new process does.
    fn restart(&mut self, meanwhile: impl FnOnce(&Path)) {
        let position = self.follower.take().unwrap().position();
        let kept = serde_json::to_string(&position).unwrap();
        meanwhile(&self.path);
        let resume = Some(serde_json::from_str(&kept).unwrap());
        let spec = Spec {
            resume,
            ..self.spec.clone()
        };
        self.follower = Some(Follower::open(spec, self.now).unwrap());
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap()
}

fn write(mut file: &File, text: &str) {
    file.write_all(text.as_bytes()).unwrap();
}

/// Short texts for comparison: `1@0 bytes` is data of generation 1 at offset 0, adjacent data of one
/// generation joined.
fn show(told: &[Told]) -> Vec<String> {
    let mut shown = Vec::new();
    let mut end = None;
    for one in told {
        let (text, next) = match one {
            Told::Data {
                generation,
                offset,
                bytes,
            } => {
                let bytes_shown = String::from_utf8_lossy(bytes);
                let next = Some((*generation, offset + bytes.len() as u64));
                if end == Some((*generation, *offset)) {
                    if let Some(last) = shown.last_mut() {
                        String::push_str(last, &bytes_shown);
                    }
                    end = next;
                    continue;
                }
                (format!("{generation}@{offset} {bytes_shown}"), next)
            }
            Told::Changed { generation, change } => {
                let change = match change {
                    Change::Appeared => "appeared".into(),
                    Change::Rotated => "rotated".into(),
                    Change::Removed => "removed".into(),
                    Change::Truncated { at, lost_at_least } => {
                        format!("truncated@{at}-{lost_at_least}")
                    }
                    Change::Hole { offset, length } => format!("hole@{offset}+{length}"),
                    Change::GaveUp {
                        unread_at_least,
                        reason,
                    } => format!("gave up {unread_at_least} {reason:?}"),
                };
                (format!("{generation} {change}"), None)
            }
            Told::Failed(error) => (error.to_string(), None),
            Told::Eof { offset } => (format!("eof@{offset}"), None),
        };
        shown.push(text);
        end = next;
    }
    shown
}
