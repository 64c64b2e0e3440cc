//! The promises that a history is checked against, and how a broken one is reported.

use std::fmt;

macro_rules! rules {
    ($($(#[$doc:meta])+ $rule:ident = $name:literal,)+) => {
        /// A promise of evloopd that a recorded history can break.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule {
            $($(#[$doc])+ $rule,)+
        }

        impl Rule {
            /// All rules.
            pub const ALL: &[Self] = &[$(Self::$rule,)+];

            /// Returns the rule's short name, for reports and scripts.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$rule => $name,)+
                }
            }
        }
    };
}

rules! {
    /// A stream has exactly one header, as its first message.
    HeaderOnce = "header-once",
    /// A snapshot comes if and only if the header announces it: before the first batch, as a whole,
    /// and only its last part is marked as last.
    SnapshotPlace = "snapshot-place",
    /// A snapshot's cursor is the header's, where the batches begin.
    SnapshotCursor = "snapshot-cursor",
    /// The first part of a snapshot has the loop, and no other part has it.
    SnapshotLoop = "snapshot-loop",
    /// A snapshot lists its watches in the order of their ids, each once.
    SnapshotOrder = "snapshot-order",
    /// No message follows the goodbye.
    GoodbyeLast = "goodbye-last",
    /// A goodbye's cursor is the last batch's `through`; without a batch, the header's `after`.
    GoodbyeCursor = "goodbye-cursor",
    /// A batch's `after` is the `through` of the batch before; the first batch's is the header's.
    BatchAfter = "batch-after",
    /// A batch's `through` is not before its `after`.
    BatchThrough = "batch-through",
    /// Events come in the order of their sequence numbers, each once.
    EventOrder = "event-order",
    /// Events and gaps lie within their batch's (after, through].
    Outside = "outside",
    /// A gap is not empty, has a reason, and is in order.
    GapShape = "gap-shape",
    /// No gap overlaps an event or another gap.
    Overlap = "overlap",
    /// An unfiltered stream accounts for every sequence number.
    Unaccounted = "unaccounted",
    /// The monotonic clock never goes back from one event to the next.
    Clock = "clock",
    /// `Added` is the first event of every watch, and comes once.
    AddedFirst = "added-first",
    /// `Closed` comes once.
    ClosedOnce = "closed-once",
    /// No event but `Removed` follows the `Closed` of a watch.
    AfterClosed = "after-closed",
    /// `Removed` follows `Closed`.
    RemovedUnclosed = "removed-unclosed",
    /// No event of a watch follows its `Removed`; a `watch_id` is never reused.
    AfterRemoved = "after-removed",
    /// `Closed` and `StreamEnd` carry an error if and only if their reason is an error.
    ErrorSet = "error-set",
    /// A watch has only events of its kind.
    ForeignKind = "foreign-kind",
    /// `user_data` is the same in all events of a watch.
    UserData = "user-data",
    /// The bytes of a stream are contiguous from 0.
    DataOffset = "data-offset",
    /// `Data` has at least one byte and at most 256 KiB.
    DataSize = "data-size",
    /// A stream ends once, and no `Data` of it comes after that.
    AfterEnd = "after-end",
    /// The end of a stream tells how many bytes the stream had.
    EndOffset = "end-offset",
    /// `Started` follows a process's `Added`, once.
    StartedFirst = "started-first",
    /// `Exited` comes once.
    ExitedOnce = "exited-once",
    /// A process is completed only after `Exited` and the end of its streams.
    CompletedEarly = "completed-early",
    /// `Connected` comes before all other events of a connection, once.
    ConnectedFirst = "connected-first",
    /// `WritePaused` and `WriteResumed` alternate.
    WriteFlow = "write-flow",
    /// `Accepted` is followed by the `Added` of the connection it names.
    AcceptedAdded = "accepted-added",
    /// A timer never fires early.
    TimerEarly = "timer-early",
    /// Ticks count up, and missed ticks are counted.
    TimerTick = "timer-tick",
    /// Ticks are a fixed interval apart.
    TimerRate = "timer-rate",
    /// A timer closes as completed only after it has fired once.
    TimerCompleted = "timer-completed",
    /// `Ready` names what is ready, and only of the direction that fired.
    ReadyEmpty = "ready-empty",
    /// A `Signal` stands for at least one signal.
    SignalCount = "signal-count",
    /// The states of a loop change only as allowed: from created or stopped to running, from
    /// running to stopped, from any to closed.
    LoopState = "loop-state",
    /// A loop that does not run has no events from its sources.
    LoopIdle = "loop-idle",
    /// No event follows the closing of a loop.
    LoopClosed = "loop-closed",
    /// Recordings that are compared have the same epoch.
    Epoch = "epoch",
    /// A subscription resumes at or before the end of those before it.
    ResumeHole = "resume-hole",
    /// A sequence number has the same content for every reader at every time.
    Content = "content",
    /// An event that a reader was told is lost is not delivered to it later.
    LostAndFound = "lost-and-found",
    /// `Added` is at the cursor in the reply to the registration.
    AddedFence = "added-fence",
    /// `Removed` is at the cursor in the reply to the removal.
    RemovedFence = "removed-fence",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {message}")]
pub struct Violation {
    /// The promise that is broken.
    pub rule: Rule,
    /// Where and how, in one sentence with the sequence numbers.
    pub message: String,
}

impl Violation {
    /// Adds where the violation was found, when several histories are checked.
    pub(super) fn of(self, place: impl fmt::Display) -> Self {
        Self {
            message: format!("in {place}, {}", self.message),
            ..self
        }
    }
}

/// Fails with `rule` unless `holds`.
pub(super) fn require(
    holds: bool,
    rule: Rule,
    message: impl FnOnce() -> String,
) -> Result<(), Violation> {
    if holds {
        return Ok(());
    }
    Err(Violation {
        rule,
        message: message(),
    })
}
