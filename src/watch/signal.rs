//! Watches signals sent to the daemon's own process.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Change, Context, Notice, Notifier, Resumption, Watch};
use crate::driver::{Done, Driver, Key, Lane};
use crate::error::Result;
use crate::event::{Kind, Signal};
use crate::proto;
use crate::proto::state::KeptSignal;
use crate::proto::state::kept_watch_state::Of;
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
            inbox: None,
            waits: false,
        })
    }
}

/// The most different signals that wait in one watch. Further ones are counted in others.
const WAITING_MAX: usize = 1024;

/// Signals that wait, in the order of their arrival.
#[derive(Debug, Default)]
struct Waiting(VecDeque<Signal>);

impl Waiting {
    /// Adds a signal. If its like came last of its number, that one is counted, as it is if there is
    /// no more room.
    fn push(&mut self, received: Received) {
        let same = |signal: &&mut Signal| signal.number == received.number;
        let latest = self
            .0
            .iter()
            .rposition(|signal| signal.number == received.number);
        let full = self.0.len() >= WAITING_MAX;
        if let Some(latest) = latest.and_then(|index| self.0.get_mut(index)).filter(same) {
            let alike = (latest.sender_pid, latest.sender_uid, latest.value)
                == (received.sender_pid, received.sender_uid, received.value);
            if alike || full {
                latest.count += 1;
                latest.merged |= !alike;
                return;
            }
        }
        // There are at most 64 numbers, so the first of each one always fits.
        self.0.push_back(Signal {
            number: received.number,
            sender_pid: received.sender_pid,
            sender_uid: received.sender_uid,
            value: received.value,
            count: 1,
            merged: false,
        });
    }
}

/// The signals that arrived since the loop last took them. At most one notice at a time is not
/// handled yet.
#[derive(Debug)]
pub struct Inbox {
    to: Key,
    notifier: Arc<dyn Notifier>,
    pending: Mutex<Waiting>,
    this: std::sync::Weak<Self>,
}

impl SignalSink for Inbox {
    fn signal(&self, received: Received) {
        let mut pending = self.pending.lock();
        let first = pending.0.is_empty();
        pending.push(received);
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
    inbox: Option<Arc<Inbox>>,
    /// Whether the inbox has signals that found no room in the journal.
    waits: bool,
}

impl SignalWatch {
    fn subscribe(&mut self, cx: &mut Context<'_>) {
        let inbox = self.inbox.get_or_insert_with(|| {
            Arc::new_cyclic(|this| Inbox {
                to: cx.key(),
                notifier: Arc::clone(cx.notifier),
                pending: Mutex::default(),
                this: this.clone(),
            })
        });
        let sink = Arc::clone(inbox);
        self.subscription = Some(cx.services.signals.subscribe(&self.numbers, sink));
    }

    /// Appends the signals of the inbox, as far as the journal has room. Those that are left keep
    /// their places: the inbox gives no further notice while it has some.
    fn tell(&mut self, cx: &mut Context<'_>) {
        let Some(inbox) = &self.inbox else { return };
        loop {
            if inbox.pending.lock().0.is_empty() {
                self.waits = false;
                return;
            }
            if !cx.has_room() {
                self.waits = true;
                return;
            }
            let next = inbox.pending.lock().0.pop_front();
            if let Some(signal) = next {
                cx.emit(Kind::Signal(signal));
            }
        }
    }
}

impl Watch for SignalWatch {
    fn start(&mut self, cx: &mut Context<'_>) {
        self.subscribe(cx);
    }

    fn keep(&self, _driver: &dyn Driver) -> Option<Of> {
        Some(Of::Signal(KeptSignal {}))
    }

    fn resume(&mut self, cx: &mut Context<'_>, _kept: Resumption) -> Result<()> {
        self.subscribe(cx);
        Ok(())
    }

    fn complete(&mut self, _cx: &mut Context<'_>, _lane: Lane, _done: Done) {}

    fn notice(&mut self, cx: &mut Context<'_>, notice: Notice) {
        if matches!(notice, Notice::Signals(_)) {
            self.tell(cx);
        }
    }

    fn hold(&mut self, cx: &mut Context<'_>, hold: bool) -> bool {
        let waited = self.waits;
        if !hold && waited {
            self.tell(cx);
        }
        waited
    }

    fn change(&mut self, cx: &mut Context<'_>, change: Change) -> Result<()> {
        let Change::Signals(numbers) = change else {
            return Err(super::unsupported("what is to be changed"));
        };
        self.numbers = numbers;
        // The earlier subscription ends after the new one has begun, so that no signal of both is
        // missed.
        self.subscribe(cx);
        Ok(())
    }

    fn closed(&mut self, _cx: &mut Context<'_>) -> u64 {
        self.subscription = None;
        0
    }

    fn status(&self, _driver: &dyn Driver) -> Option<proto::watch::Status> {
        None
    }
}
