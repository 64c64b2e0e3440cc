//! Makes memory before it is needed, on a thread of its own: whoever appends does not wait for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock, Weak};

use super::arena::{Arena, Sort};

/// Asks the thread, which ends with the arena.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// `None`: the system refused a thread.
    thread: OnceLock<Option<SyncSender<Sort>>>,
    /// What it was asked for and has not done, by [`Sort::index`].
    asked: [AtomicBool; Sort::COUNT],
}

impl Ahead {
    /// Has a region made, unless that was asked for before.
    pub(super) fn ask(&self, arena: &Arc<Arena>, sort: Sort) {
        let thread = self.thread.get_or_init(|| start(Arc::downgrade(arena)));
        if let Some(thread) = thread
            && !self.asked[sort.index()].swap(true, Ordering::AcqRel)
        {
            // There is room for one of each.
            let _ = thread.try_send(sort);
        }
    }

    pub(super) fn is_done(&self, sort: Sort) {
        self.asked[sort.index()].store(false, Ordering::Release);
    }
}

fn start(arena: Weak<Arena>) -> Option<SyncSender<Sort>> {
    let (sender, asked) = sync_channel(Sort::COUNT);
    let thread = std::thread::Builder::new().name("memory".to_owned());
    let started = thread.spawn(move || make(&arena, &asked));
    started.is_ok().then_some(sender)
}

fn make(arena: &Weak<Arena>, asked: &Receiver<Sort>) {
    while let Ok(sort) = asked.recv()
        && let Some(arena) = arena.upgrade()
    {
        arena.make_ahead(sort);
    }
}
