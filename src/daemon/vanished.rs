//! Looks after the files of the listening sockets: one that is gone, because a logout or a cleaner has
//! removed it or its directory, is bound again.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::SocketType;
use std::os::fd::{AsFd as _, OwnedFd};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::sockets::keep;
use crate::access::SocketFile;
use crate::keeper::{Kept, Life};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A listening socket whose file is looked after.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) path: PathBuf,
    pub(super) kind: SocketType,
    pub(super) mode: u32,
    /// Where the next life finds the socket and the lock of its path.
    pub(super) kept: (Kept, Kept),
    /// `None` if systemd has bound the socket.
    pub(super) file: Option<SocketFile>,
    /// Takes a socket that was bound anew.
    pub(super) fresh: mpsc::Sender<OwnedFd>,
}

/// The files of the sockets, which are removed when this is dropped.
#[derive(Debug)]
pub(super) struct Files(Arc<Mutex<Vec<Followed>>>);

impl Files {
    pub(super) fn new(files: Vec<Followed>) -> Self {
        Self(Arc::new(Mutex::new(files)))
    }

    /// Looks after them for as long as they are there. What is wrong with them is put into `troubles`.
    pub(super) fn follow(&self, life: Option<Life>, troubles: Arc<Mutex<Vec<String>>>) {
        tokio::spawn(follow(Arc::downgrade(&self.0), life, troubles));
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // The task that looks after them may hold them for a moment longer.
        self.0.lock().clear();
    }
}

async fn follow(
    files: Weak<Mutex<Vec<Followed>>>,
    life: Option<Life>,
    troubles: Arc<Mutex<Vec<String>>>,
) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(files) = files.upgrade() else { return };
        let look = move || -> Vec<String> {
            let mut files = files.lock();
            let found = files.iter_mut().filter_map(|one| one.look(life.as_ref()));
            found.collect()
        };
        let Ok(found) = tokio::task::spawn_blocking(look).await else {
            continue;
        };
        let mut known = troubles.lock();
        for trouble in found.iter().filter(|trouble| !known.contains(trouble)) {
            tracing::error!("{trouble}");
        }
        *known = found;
    }
}

impl Followed {
    /// Binds the socket again if its file is gone. Returns what is wrong.
    fn look(&mut self, life: Option<&Life>) -> Option<String> {
        let path = self.path.display();
        let Some(file) = &mut self.file else {
            let is_there = self.path.symlink_metadata().is_ok();
            return (!is_there).then(|| {
                format!(
                    "the socket's file {path} is gone; a restart of its socket unit makes it anew"
                )
            });
        };
        if file.is_there() {
            return None;
        }
        match file.bind_again(self.kind, self.mode) {
            Ok(listener) => {
                tracing::warn!(%path, "the socket's file was gone: it is bound again");
                keep(life, self.kept.0, listener.as_fd());
                keep(life, self.kept.1, file.lock());
                // Nobody takes it once the daemon ends.
                let _ = self.fresh.blocking_send(listener);
                None
            }
            Err(error) => Some(format!(
                "the socket's file {path} is gone, and cannot be bound again: {error}"
            )),
        }
    }
}
