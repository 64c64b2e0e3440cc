//! Watches signals sent to the daemon's own process.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Context, Notice, Notifier, Watch};
use crate::driver::{Done, Key, Lane};
use crate::event::{Kind, Signal};
use crate::proto;
use crate::signals::{Received, SignalSink, Subscription};

/// The checked order of a signal watch: allowed numbers, at least one.
#[derive(Debug, Clone)]
pub struct SignalOrder(pub Vec<i32>);

impl SignalOrder {
    /// Builds the watch.
    #[must_use]
    pub fn build(self) -> Box<dyn Watch> {
        Box::new(SignalWatch {
            numbers: self.0,
            subscription: None,
            waiting: BTreeMap::new(),
        })
    }
}

/// The signals that arrived since the loop last took them: one slot a number, so that repeats are
/// counted and not queued. At most one notice at a time is not handled yet.
#[derive(Debug)]
pub struct Inbox {
    to: Key,
    notifier: Arc<dyn Notifier>,
    pending: Mutex<BTreeMap<i32, (Received, u64)>>,
    this: std::sync::Weak<Self>,
}

impl SignalSink for Inbox {
    fn signal(&self, received: Received) {
        let mut pending = self.pending.lock();
        let first = pending.is_empty();
        let slot = pending.entry(received.number).or_insert((received, 0));
        *slot = (received, slot.1 + 1);
        drop(pending);
        if first && let Some(this) = self.this.upgrade() {
            self.notifier.notify(self.to, Notice::Signals(this));
        }
    }
}

#[derive(Debug)]
struct SignalWatch {
    numbers: Vec<i32>,
    subscription: Option<Subscription>,
    /// The signals that wait for room in the journal: one event a number, so that repeats are
    /// counted.
    waiting: BTreeMap<i32, (Received, u64)>,
}

impl SignalWatch {
    fn emit_waiting(&mut self, cx: &mut Context<'_>) {
        while !self.waiting.is_empty() && cx.has_room() {
            let Some((_, (received, count))) = self.waiting.pop_first() else {
                return;
            };
            cx.emit(Kind::Signal(Signal {
                number: received.number,
                sender_pid: received.sender_pid,
                sender_uid: received.sender_uid,
                value: received.value,
                count,
            }));
        }
    }
}

impl Watch for SignalWatch {
    fn start(&mut self, cx: &mut Context<'_>) {
        let inbox: Arc<Inbox> = Arc::new_cyclic(|this| Inbox {
            to: cx.key(),
            notifier: Arc::clone(cx.notifier),
            pending: Mutex::default(),
            this: this.clone(),
        });
        self.subscription = Some(cx.services.signals.subscribe(&self.numbers, inbox));
    }

    fn complete(&mut self, _cx: &mut Context<'_>, _lane: Lane, _done: Done) {}

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        let Notice::Signals(inbox) = notice else {
            return;
        };
        for (number, (received, count)) in std::mem::take(&mut *inbox.pending.lock()) {
            let slot = self.waiting.entry(number).or_insert((received, 0));
            *slot = (received, slot.1 + count);
        }
        self.emit_waiting(cx);
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        if !hold {
            self.emit_waiting(cx);
        }
        !self.waiting.is_empty()
    }

    fn closed(&mut self, _cx: &mut Context<'_>) -> u64 {
        self.subscription = None;
        0
    }

    fn status(&self) -> Option<proto::watch::Status> {
        None
    }
}
