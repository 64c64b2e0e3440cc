//! Removes the cgroups of children whose processes have all ended.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tokio::runtime::Handle;

use super::below;

/// The times between two attempts to remove a cgroup: processes may live on in it. What is there after
/// the last one is removed at the daemon's end, or at the start of a later daemon.
const ATTEMPTS: [Duration; 8] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(60),
];
/// Most cgroups of dead daemons that are removed at a start.
const STALE_MAX: usize = 65_536;
/// Most levels of cgroups below one that are removed with it.
const DEPTH_MAX: usize = 16;

/// The cgroups that wait to be removed.
#[derive(Debug)]
pub struct Removals {
    runtime: Handle,
    /// The first attempts that are due.
    first: Mutex<Vec<PathBuf>>,
}

impl Removals {
    pub(super) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            first: Mutex::default(),
        })
    }

    /// Removes a cgroup off the calling thread, now or once it is empty.
    pub(super) fn remove(self: Arc<Self>, path: PathBuf) {
        let mut first = self.first.lock();
        first.push(path);
        if first.len() > 1 {
            // The job that waits to run removes this one too.
            return;
        }
        drop(first);
        let runtime = self.runtime.clone();
        runtime.spawn_blocking(move || {
            for path in std::mem::take(&mut *self.first.lock()) {
                if !remove_one(&path) {
                    self.runtime.spawn(try_again(path));
                }
            }
        });
    }
}

async fn try_again(path: PathBuf) {
    for delay in ATTEMPTS {
        tokio::time::sleep(delay).await;
        let path = path.clone();
        if let Ok(true) = tokio::task::spawn_blocking(move || remove_one(&path)).await {
            return;
        }
    }
    tracing::info!(path = %path.display(), "processes live on in the cgroup of a child that has ended");
}

/// Removes a cgroup. Returns whether it is gone.
fn remove_one(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(_) => {
            // The child may have made cgroups of its own.
            remove_below(path, DEPTH_MAX);
            fs::remove_dir(path).is_ok()
        }
    }
}

fn remove_below(path: &Path, depth: usize) {
    if depth > 0 {
        for one in below(path).into_iter().take(STALE_MAX) {
            remove_below(&one, depth - 1);
            // It fails if processes live in it.
            let _ = fs::remove_dir(one);
        }
    }
}

/// Removes a directory and all cgroups below it that are empty.
pub(super) fn remove_all(path: &Path) {
    remove_one(path);
}

/// Removes the directories of daemons that have died, as far as they are empty.
pub(super) fn remove_stale(own: &Path, prefix: &str) {
    for path in below(own).into_iter().take(STALE_MAX) {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(prefix)) && is_abandoned(&path) {
            remove_one(&path);
        }
    }
}

/// Returns whether no daemon holds the lock of that directory.
fn is_abandoned(path: &Path) -> bool {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .and_then(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive))
        .is_ok()
}
