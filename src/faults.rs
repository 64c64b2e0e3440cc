//! Faults on demand, for tests of the whole daemon. There are none in builds without debug assertions.
//!
//! `EVLOOPD_TEST_POINT=NAME:COUNT:HOW[:LIFE]` ends the process when it reaches the `Point` of that
//! name for the COUNTth time, as HOW says: `kill`, `segv` or `abort`, by that signal; or `panic`. It
//! concerns only the life of that number, by default the first; life 0 is the keeper.
//!
//! `EVLOOPD_TEST_PANIC=WORD` panics wherever that word is used, in every life.

#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// A place between two steps of which a life may have done the first one alone.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Point {
            $($(#[$doc])* $name,)+
        }

        /// The names of all points.
        pub const POINTS: &[&str] = &[$(stringify!($name),)+];
    };
}

points! {
    /// A read is intended: its receipt has the mark.
    ReadIntended,
    /// The bytes are read.
    BytesRead,
    /// Their receipt says so.
    ReadNoted,
    /// A send through the relay is intended.
    SendIntended,
    /// The bytes are in the relay.
    Relayed,
    /// The receipt says so.
    RelayNoted,
    /// Some bytes have left the relay.
    Spliced,
    /// The receipt says so.
    SpliceNoted,
    /// A send without the relay is intended.
    SendInDoubt,
    /// The socket has taken the bytes.
    SocketTook,
    /// The receipt says so.
    SocketNoted,
    /// A socket that counts what it takes has taken the bytes.
    CountedSent,
    /// A ring is known before its first send.
    RingExpected,
    /// Operations are submitted, and some may be completed.
    RingEntered,
    /// Completions are taken out of the queue.
    CompletionsTaken,
    /// Received bytes are copied out of their buffer.
    ArrivalCopied,
    /// The receipt of a completion is written and does not count.
    ArrivalWritten,
    /// It counts.
    ArrivalNoted,
    /// The completion counts as processed.
    ArrivalSeen,
    /// There is room for an event, which is not written.
    EventHalfWritten,
    /// The events of a turn are appended.
    EventsAppended,
    /// What has changed in the turn is written to records.
    ChangesWritten,
    /// A run of events is committed, and the turn is not.
    RunCommitted,
    /// The newest event of the turn is noted.
    TurnNumbered,
    /// The turn is committed.
    TurnCommitted,
    /// Its events can be read.
    EventsReadable,
    /// Records of earlier turns are free again.
    RecordsFreed,
    /// A descriptor is about to be closed.
    BeforeClose,
    /// What follows the commit is done, and no reply is sent.
    BeforeReplies,
    /// All replies of the turn are sent.
    Replied,
    /// The receipts of the turn are forgotten.
    ReceiptsForgotten,
    /// A start is intended.
    StartIntended,
    /// The child is there in the next moment.
    BeforeFork,
    /// In the child: it has not said that it is there, and says it while no life looks.
    ChildBeforeSwap,
    /// In the child: it has not said that it is there, and the next life abandons it.
    ChildAbandoned,
    /// In the child: it has said that it is there.
    ChildAfterSwap,
    /// The child has executed its program.
    ChildExecuted,
    /// `Started` is appended.
    StartAppended,
    /// The child is recorded, and its start is about to be forgotten.
    StartRecorded,
    /// An exit was looked at.
    ExitLooked,
    /// `Exited` is appended.
    ExitAppended,
    /// The exit is committed, and the child is about to be reaped.
    BeforeReap,
    /// The child is reaped.
    Reaped,
    /// A connection is accepted.
    Accepted,
    /// Its socket is recorded.
    AcceptRecorded,
    /// It is reported.
    AcceptReported,
    /// Numbers that change often are half written.
    CellHalfWritten,
    /// A record is written and does not count.
    RecordWritten,
    /// The new version of a record counts, and so does the earlier one.
    RecordDoubled,
    /// A new consumer's cursor is kept, and the consumer is not.
    ConsumerHalfKept,
    /// A consumer is kept.
    ConsumerKept,
    /// An acknowledgement is about to be kept.
    BeforeAck,
    /// It is kept.
    AckKept,
    /// A request is kept, and nothing is done.
    RequestKept,
    /// It is carried out, and its answer is not kept.
    RequestDone,
    /// Its answer is kept, and not sent.
    AnswerKept,
    /// Its answer is on its way.
    Answered,
    /// A new loop runs, and is not kept.
    LoopStarted,
    /// Its id counts as used.
    LoopNumbered,
    /// It is kept.
    LoopKept,
    /// A new watch is written to a record.
    WatchWritten,
    /// The records of a removed watch are marked.
    WatchForgotten,
    /// A packet of a terminal is in the pipe.
    PacketMoved,
    /// What is to be typed is in the file.
    TypedWritten,
    /// It is typed.
    Typed,
    /// Datagrams are in doubt.
    DatagramsInDoubt,
    /// They are received.
    DatagramsReceived,
    /// It is noted how many they were.
    DatagramsNoted,
    /// In a later life: what nobody needs is closed.
    OthersClosed,
    /// In a later life: starts without a child are abandoned.
    StartsAbandoned,
    /// In a later life: the records of a loop are read.
    LoopFound,
    /// In a later life: what was transferred last is looked up.
    TransfersFound,
    /// In a later life: the watches of a loop are taken up, and nothing is committed.
    WatchesTakenUp,
    /// In a later life: that is committed.
    LoopTakenUp,
    /// In a later life: all loops go on.
    AllTakenUp,
    /// In a later life: children whose start was not recorded are ended.
    Settled,
    /// In the keeper: an exit was looked at.
    KeeperLooked,
    /// In the keeper: it is written and does not count.
    KeeperWritten,
    /// In the keeper: it is recorded.
    KeeperRecorded,
    /// In the keeper: the child is reaped.
    KeeperReaped,
}

#[cfg(debug_assertions)]
mod armed {
    use super::{AtomicI32, AtomicU64, AtomicUsize};

    /// The point that ends the process; one that does not exist for none.
    pub(super) static POINT: AtomicUsize = AtomicUsize::new(usize::MAX);
    /// How often it is reached until then.
    pub(super) static LEFT: AtomicU64 = AtomicU64::new(0);
    /// The signal; 0 for a panic.
    pub(super) static HOW: AtomicI32 = AtomicI32::new(0);
}

/// Reads the environment for the life of that number.
#[inline]
pub(crate) fn arm(life: u64) {
    #[cfg(debug_assertions)]
    {
        let named = std::env::var("EVLOOPD_TEST_POINT").ok();
        let point = named.and_then(|named| {
            let mut words = named.split(':');
            let point = words.next()?;
            let point = POINTS.iter().position(|known| *known == point)?;
            armed::LEFT.store(words.next()?.parse().ok()?, Ordering::Relaxed);
            let how = match words.next()? {
                "kill" => nix::libc::SIGKILL,
                "segv" => nix::libc::SIGSEGV,
                "abort" => nix::libc::SIGABRT,
                "panic" => 0,
                _ => return None,
            };
            armed::HOW.store(how, Ordering::Relaxed);
            let of: u64 = words.next().unwrap_or("1").parse().ok()?;
            (of == life).then_some(point)
        });
        armed::POINT.store(point.unwrap_or(usize::MAX), Ordering::Relaxed);
    }
    #[cfg(not(debug_assertions))]
    let _ = life;
}

/// Returns whether this is the time at which the process ends here.
#[cfg(debug_assertions)]
fn is_time(at: Point) -> bool {
    armed::POINT.load(Ordering::Relaxed) == at as usize
        && armed::LEFT.fetch_sub(1, Ordering::Relaxed) == 1
}

/// Ends the process, if the environment says so.
#[inline]
pub(crate) fn point(at: Point) {
    #[cfg(debug_assertions)]
    if is_time(at) {
        let how = armed::HOW.load(Ordering::Relaxed);
        #[allow(clippy::panic)]
        if how == 0 {
            panic!("a test wants a panic at {at:?}");
        }
        crate::sys::keeper::end_by(how);
        // Another thread may get the signal first.
        loop {
            std::thread::park();
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = at;
}

/// Ends the process's parent, if the environment says so, and returns once `has_changed`. For a child
/// before it executes its program: makes system calls only.
#[inline]
pub(crate) fn point_of_child(at: Point, has_changed: impl Fn() -> bool) {
    #[cfg(debug_assertions)]
    if is_time(at) {
        let parent = || rustix::process::getppid();
        let daemon = parent();
        if let Some(daemon) = daemon {
            let _ = rustix::process::kill_process(daemon, rustix::process::Signal::KILL);
        }
        let moment = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        while parent() == daemon || !has_changed() {
            let _ = rustix::thread::nanosleep(&moment);
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = (at, has_changed);
}

/// Panics if the environment names this word.
#[inline]
pub(crate) fn word(word: &str) {
    #[cfg(debug_assertions)]
    #[allow(clippy::panic)]
    if std::env::var_os("EVLOOPD_TEST_PANIC").is_some_and(|named| named == *word) {
        panic!("a test wants a panic at {word}");
    }
    #[cfg(not(debug_assertions))]
    let _ = word;
}
