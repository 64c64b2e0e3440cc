//! What a history can get wrong.

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

            /// A short name for reports and scripts.
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
    /// A stream has one header, at its beginning.
    HeaderOnce = "header-once",
    /// A snapshot comes if the header says so: before the first batch, whole, its last part
    /// and no other flagged as such.
    SnapshotPlace = "snapshot-place",
    /// A snapshot is of the position that the header says, where the batches begin.
    SnapshotCursor = "snapshot-cursor",
    /// A snapshot's first part has the loop, and no other part.
    SnapshotLoop = "snapshot-loop",
    /// A snapshot has its watches in the order of their ids, each once.
    SnapshotOrder = "snapshot-order",
    /// Nothing comes after the goodbye.
    GoodbyeLast = "goodbye-last",
    /// A goodbye's cursor is the last batch's `through`; without one, the header's `after`.
    GoodbyeCursor = "goodbye-cursor",
    /// A batch's `after` is the `through` of the one before; the first one's is the header's.
    BatchAfter = "batch-after",
    /// A batch's `through` is not before its `after`.
    BatchThrough = "batch-through",
    /// Events come in the order of their sequence numbers, each once.
    EventOrder = "event-order",
    /// Events and gaps lie within their batch's (after, through].
    Outside = "outside",
    /// A gap is not empty, has a reason, and comes in order.
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
    /// Nothing but `Removed` follows `Closed`.
    AfterClosed = "after-closed",
    /// `Removed` follows `Closed`.
    RemovedUnclosed = "removed-unclosed",
    /// Nothing follows `Removed`; a `watch_id` is never reused.
    AfterRemoved = "after-removed",
    /// `Closed` and `StreamEnd` carry an error exactly if that is their reason.
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
    /// A stream's end tells how many bytes it had.
    EndOffset = "end-offset",
    /// `Started` follows a process's `Added`, once.
    StartedFirst = "started-first",
    /// `Exited` comes once.
    ExitedOnce = "exited-once",
    /// A process is completed only after `Exited` and the end of its streams.
    CompletedEarly = "completed-early",
    /// `Connected` comes before all else that a connection does, once.
    ConnectedFirst = "connected-first",
    /// `WritePaused` and `WriteResumed` alternate.
    WriteFlow = "write-flow",
    /// `Accepted` is followed by the `Added` of the connection it names.
    AcceptedAdded = "accepted-added",
    /// A timer never fires early.
    TimerEarly = "timer-early",
    /// Ticks count up, and those that were missed are counted.
    TimerTick = "timer-tick",
    /// Ticks are a fixed interval apart.
    TimerRate = "timer-rate",
    /// A timer is completed by firing once.
    TimerCompleted = "timer-completed",
    /// `Ready` says what is ready, of the direction that fired.
    ReadyEmpty = "ready-empty",
    /// A `Signal` stands for at least one.
    SignalCount = "signal-count",
    /// States of a loop change, in the order created, running, stopped, closed.
    LoopState = "loop-state",
    /// A loop that does not run reports nothing from its sources.
    LoopIdle = "loop-idle",
    /// Nothing follows the closing of a loop.
    LoopClosed = "loop-closed",
    /// Recordings that are compared are of one history.
    Epoch = "epoch",
    /// A life resumes at or before the place where the lives before it ended.
    ResumeHole = "resume-hole",
    /// A sequence number has one content, for every reader and every time.
    Content = "content",
    /// What a reader was told is lost is not delivered to it later.
    LostAndFound = "lost-and-found",
    /// `Added` is at the cursor of the registration's reply.
    AddedFence = "added-fence",
    /// `Removed` is at the cursor of the removal's reply.
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
    /// Which.
    pub rule: Rule,
    /// Where and how, in one sentence with the sequence numbers.
    pub message: String,
}

impl Violation {
    /// As found in one of several places.
    pub(super) fn of(self, place: impl fmt::Display) -> Self {
        Self {
            message: format!("in {place}, {}", self.message),
            ..self
        }
    }
}

/// Shorthand of the checks: fails with `rule` unless `holds`.
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
