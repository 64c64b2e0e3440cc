//! What waits for the reader of a subscription.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::limits::InboxLimits;
use super::refused::Refused;
use super::told::{RescanReason, Synced, Told};

/// Is told when there is something to read.
pub trait Sink: Send + Sync {
    /// The inbox was empty and is not any more, or it was full and all has become a `Rescan`. Called by the hub's threads: it must not block.
    fn woken(&self);
}

/// A bounded queue of events, filled by the hub and emptied by one reader.
///
/// When it is full, all that waits becomes one `Rescan`: the room for it is always there. Until that
/// is taken nothing else is kept.
pub struct Inbox {
    limits: InboxLimits,
    sink: Arc<dyn Sink>,
    state: Mutex<State>,
}

/// How far the reader is with listing what it was told to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Listing {
    /// Nothing was to be listed yet.
    #[default]
    None,
    /// `Synced` waits.
    Waiting,
    /// `Synced` was taken: the reader lists before it takes more.
    Taken,
    /// It came back for more at this time.
    Done(Instant),
}

#[derive(Default)]
struct State {
    queue: VecDeque<Told>,
    bytes: usize,
    collapsed: bool,
    /// The last `Synced`, while it holds.
    synced: Option<Synced>,
    listing: Listing,
    failed: Option<Arc<Refused>>,
    ended: bool,
    rescans: u64,
}

impl State {
    fn is_empty(&self) -> bool {
        self.queue.is_empty() && !self.collapsed && self.failed.is_none()
    }

    fn put(&mut self, told: Told) {
        self.bytes += told.bytes();
        self.queue.push_back(told);
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.bytes = 0;
    }
}

impl Inbox {
    pub(super) fn new(limits: InboxLimits, sink: Arc<dyn Sink>) -> Self {
        Self {
            limits,
            sink,
            state: Mutex::default(),
        }
    }

    pub(super) fn limits(&self) -> InboxLimits {
        self.limits
    }

    /// Takes the oldest events: at most `max_events`, and no more once their size (paths and
    /// [`EVENT_BYTES`](super::EVENT_BYTES) each) reaches `max_bytes`. At least one if there is one.
    ///
    /// After a `Synced` the reader lists what it was told to before it takes more.
    ///
    /// The sink is woken again only after the inbox was empty.
    pub fn take(&self, max_events: usize, max_bytes: usize) -> Vec<Told> {
        let mut state = self.state.lock();
        if state.listing == Listing::Taken {
            state.listing = Listing::Done(Instant::now());
        }
        if state.collapsed {
            state.collapsed = false;
            state.put(Told::Rescan {
                reason: RescanReason::ReaderTooSlow,
                path: Vec::new(),
            });
            // The watches went on meanwhile: what changes from now on is told.
            if let Some(synced) = state.synced {
                state.put(Told::Synced(synced));
            }
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < max_events.max(1) && (bytes < max_bytes || taken.is_empty()) {
            let Some(told) = state.queue.pop_front() else {
                break;
            };
            bytes += told.bytes();
            if let Told::Synced(_) = told {
                state.listing = Listing::Taken;
            }
            taken.push(told);
        }
        state.bytes -= bytes;
        if taken.len() < max_events.max(1) && state.queue.is_empty() {
            taken.extend(state.failed.take().map(|error| Told::Failed { error }));
        }
        taken
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.state.lock().is_empty()
    }

    /// Whether it was full, so that all that waits has become one `Rescan`.
    pub fn is_collapsed(&self) -> bool {
        self.state.lock().collapsed
    }

    /// How often a `Rescan` was told.
    pub fn rescans(&self) -> u64 {
        self.state.lock().rescans
    }

    /// The last `Synced`, while it holds.
    pub fn synced(&self) -> Option<Synced> {
        self.state.lock().synced
    }

    /// A scan has begun: the last `Synced` does not hold.
    pub(super) fn unsynced(&self) {
        self.state.lock().synced = None;
    }

    /// Whether what the reader has listed shows nothing that happened after `time`.
    pub(super) fn listed_before(&self, time: Instant) -> bool {
        match self.state.lock().listing {
            Listing::None => true,
            Listing::Waiting | Listing::Taken => false,
            Listing::Done(at) => at < time,
        }
    }

    /// Adds an event.
    pub(super) fn push(&self, told: Told) {
        let mut state = self.state.lock();
        if state.ended {
            return;
        }
        let mut woken = state.is_empty();
        match &told {
            Told::Synced(synced) => {
                state.synced = Some(*synced);
                state.listing = Listing::Waiting;
            }
            Told::Rescan { path, .. } => {
                state.rescans += 1;
                if path.is_empty() {
                    // It stands for all that was to be read before it.
                    state.clear();
                }
            }
            Told::Failed { error } => {
                state.failed = Some(Arc::clone(error));
                state.ended = true;
            }
            _ => {}
        }
        if !state.collapsed && !state.ended {
            if state.queue.len() >= self.limits.entries
                || state.bytes + told.bytes() > self.limits.bytes
            {
                state.clear();
                state.collapsed = true;
                woken = true;
                state.listing = Listing::Waiting;
                state.rescans += 1;
            } else {
                state.put(told);
            }
        }
        drop(state);
        if woken {
            self.sink.woken();
        }
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Inbox")
            .field("entries", &state.queue.len())
            .field("bytes", &state.bytes)
            .field("collapsed", &state.collapsed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::paths::EVENT_BYTES;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Sink for Wakes {
        fn woken(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn rescan(path: &str) -> Told {
        Told::Rescan {
            reason: RescanReason::Raced,
            path: path.into(),
        }
    }

    fn inbox(entries: usize, bytes: usize) -> (Inbox, Arc<Wakes>) {
        let wakes = Arc::new(Wakes::default());
        (
            Inbox::new(
                InboxLimits { entries, bytes },
                Arc::clone(&wakes) as Arc<dyn Sink>,
            ),
            wakes,
        )
    }

    #[test]
    fn a_full_inbox_becomes_one_rescan_and_synced_if_it_holds() {
        let (inbox, wakes) = inbox(2, 1 << 20);
        inbox.push(Told::Synced(Synced::default()));
        for path in ["a", "b", "c"] {
            inbox.push(rescan(path));
        }
        let whole = Told::Rescan {
            reason: RescanReason::ReaderTooSlow,
            path: Vec::new(),
        };
        assert_eq!(
            inbox.take(10, 1 << 20),
            [whole.clone(), Told::Synced(Synced::default())]
        );
        assert!(inbox.is_empty());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);

        inbox.unsynced();
        for path in ["a", "b", "c"] {
            inbox.push(rescan(path));
        }
        assert_eq!(inbox.take(10, 1 << 20), [whole]);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn bytes_count_too() {
        let (inbox, _) = inbox(100, 2 * EVENT_BYTES + 2);
        inbox.push(rescan("a"));
        inbox.push(rescan("b"));
        assert_eq!(inbox.take(1, usize::MAX), [rescan("a")]);
        inbox.push(rescan("cc"));
        assert_eq!(
            inbox.take(9, 1).len(),
            1,
            "the reader gets what is too slow in pieces as well"
        );
        assert!(inbox.is_empty());
    }

    #[test]
    fn the_end_is_told_even_if_the_inbox_is_full() {
        let (inbox, wakes) = inbox(1, 1);
        inbox.push(rescan("a"));
        inbox.push(Told::Failed {
            error: Arc::new(Refused::Ended),
        });
        inbox.push(rescan("b"));
        assert!(matches!(
            inbox.take(9, 999)[..],
            [Told::Rescan { .. }, Told::Failed { .. }]
        ));
        assert!(inbox.is_empty() && inbox.take(9, 999).is_empty());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_rescan_of_the_root_stands_for_what_was_before() {
        let (inbox, _) = inbox(9, 999);
        inbox.push(rescan("a"));
        inbox.push(rescan(""));
        assert_eq!(inbox.take(9, 999), [rescan("")]);
    }
}
